//! The shim's configuration file.

use std::path::{Path, PathBuf};

use outboard_protocol::id::{Name, ObjectKind, ObjectRef};
use outboard_shim_api::{DeviceKind, DeviceSpec, default_socket};
use serde::Deserialize;

use crate::agent::DeviceSettings;

/// Longest configuration file, in bytes.
const CONFIG_LEN_MAX: u64 = 1 << 20;
/// Longest name of a unix socket, in bytes (unix(7), without the zero at its end).
pub const SOCKET_PATH_LEN_MAX: usize = 107;

/// `shim.toml`. Keys that are not listed here are refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The DPU's link socket.
    pub link_socket: PathBuf,
    /// Where the local API listens.
    pub api_socket: PathBuf,
    /// Who may use the API beside root and the shim's own uid.
    #[serde(default)]
    pub api_uids: Vec<u32>,
    /// Where VMM sockets go that name no path: `ports/<name>.sock` and `volumes/<name>.sock`.
    pub socket_dir: PathBuf,
    /// What outlives the process: its boot epoch and what is still to be given back. By default `shim-state.json` in
    /// `socket_dir`.
    pub state_file: Option<PathBuf>,
    /// Devices attached at start.
    #[serde(default, rename = "device")]
    pub devices: Vec<DeviceSpec>,
}

/// What is wrong with a configuration, or with a device to attach.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key or a wrong type; the text says where.
    #[error("{path}: {text}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        text: String,
    },
    /// Too long to be a configuration.
    #[error("{0} is longer than {CONFIG_LEN_MAX} bytes")]
    TooLong(PathBuf),
    /// A device's name is not one.
    #[error("{kind} '{name}': {error}")]
    Name {
        /// Port or volume.
        kind: DeviceKind,
        /// The name given.
        name: String,
        /// What is wrong with it.
        error: String,
    },
    /// A device's socket does not fit a socket address, or is not absolute.
    #[error("{object}: socket {socket} {fault}")]
    Socket {
        /// The device.
        object: ObjectRef,
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        fault: &'static str,
    },
    /// A device is named twice.
    #[error("{0} is attached twice")]
    Twice(ObjectRef),
}

impl ConfigError {
    /// What to do.
    pub fn remedy(&self) -> String {
        match self {
            Self::Read { .. } => "name the file with --config, and let the shim's user read it".to_owned(),
            Self::Parse { .. } => "the keys are link_socket, api_socket, api_uids, socket_dir, state_file and \
                [[device]] with kind, name, socket, role, uid"
                .to_owned(),
            Self::TooLong(_) => "name the shim's configuration with --config".to_owned(),
            Self::Name { .. } => "give the port's or volume's name as the broker has it".to_owned(),
            Self::Socket { .. } => format!(
                "give an absolute path of at most {SOCKET_PATH_LEN_MAX} bytes as `socket`, or a shorter `socket_dir`"
            ),
            Self::Twice(_) => "leave one of the two [[device]] sections out".to_owned(),
        }
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(unreadable)?.len() > CONFIG_LEN_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(unreadable)?, path)
    }

    /// Parses and checks a file's text; `path` is for messages.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            text: e.to_string().trim_end().to_owned(),
        })?;
        let mut seen = std::collections::BTreeSet::new();
        for spec in &config.devices {
            let (object, _) = resolve(spec, &config.socket_dir)?;
            if !seen.insert(object.clone()) {
                return Err(ConfigError::Twice(object));
            }
        }
        Ok(config)
    }

    /// Where to keep what outlives the process.
    pub fn state_file(&self) -> PathBuf {
        self.state_file
            .clone()
            .unwrap_or_else(|| self.socket_dir.join("shim-state.json"))
    }
}

/// The object that a device is for, and how it meets its VMM.
///
/// # Errors
/// A bad name or socket.
pub fn resolve(spec: &DeviceSpec, socket_dir: &Path) -> Result<(ObjectRef, DeviceSettings), ConfigError> {
    let object = object(spec.kind, &spec.name)?;
    let socket = spec
        .socket
        .clone()
        .unwrap_or_else(|| default_socket(socket_dir, spec.kind, &spec.name));
    let fault = if socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
        Some("is too long")
    } else if !socket.is_absolute() && spec.socket.is_some() {
        Some("is not an absolute path")
    } else {
        None
    };
    match fault {
        Some(fault) => Err(ConfigError::Socket { object, socket, fault }),
        None => Ok((
            object,
            DeviceSettings {
                socket,
                role: spec.role,
                uid: spec.uid,
            },
        )),
    }
}

/// The object of a kind and name.
///
/// # Errors
/// A bad name.
pub fn object(kind: DeviceKind, name: &str) -> Result<ObjectRef, ConfigError> {
    let parsed: Result<Name, _> = name.parse();
    let name = parsed.map_err(|error| ConfigError::Name {
        kind,
        name: name.to_owned(),
        error: error.to_string(),
    })?;
    let kind = match kind {
        DeviceKind::Port => ObjectKind::Port,
        DeviceKind::Volume => ObjectKind::Volume,
    };
    Ok(ObjectRef { kind, name })
}

#[cfg(test)]
mod tests {
    use outboard_shim_api::Role;

    use super::*;

    const GOOD: &str = r#"
link_socket = "/run/o/link.sock"
api_socket = "/run/o/shim.sock"
socket_dir = "/run/o"
api_uids = [1000]

[[device]]
kind = "port"
name = "vm1"

[[device]]
kind = "volume"
name = "disk1"
socket = "/run/vm1/disk1.sock"
role = "connect"
uid = 107
"#;

    fn error(text: &str) -> String {
        let error = Config::parse(text, Path::new("shim.toml")).unwrap_err();
        assert!(!error.remedy().is_empty());
        error.to_string()
    }

    #[test]
    fn a_full_file_is_read() {
        let config = Config::parse(GOOD, Path::new("shim.toml")).unwrap();
        assert_eq!(config.state_file(), Path::new("/run/o/shim-state.json"));
        let (object, settings) = resolve(&config.devices[0], &config.socket_dir).unwrap();
        assert_eq!((object.to_string().as_str(), settings.role), ("port vm1", Role::Listen));
        assert_eq!(settings.socket, Path::new("/run/o/ports/vm1.sock"));
        let (_, settings) = resolve(&config.devices[1], &config.socket_dir).unwrap();
        assert_eq!((settings.role, settings.uid), (Role::Connect, Some(107)));
    }

    #[test]
    fn unknown_keys_are_refused_by_name_and_line() {
        let text = error(&GOOD.replace("api_uids", "api_uid"));
        assert!(text.contains("api_uid") && text.contains("line 5"), "{text}");
        let text = error(&GOOD.replace("uid = 107", "user = 107"));
        assert!(text.contains("user"), "{text}");
    }

    #[test]
    fn missing_keys_bad_names_and_bad_sockets_are_refused() {
        assert!(error("").contains("link_socket"));
        assert!(error(&GOOD.replace("\"vm1\"", "\"../vm1\"")).contains("port '../vm1'"));
        assert!(error(&GOOD.replace("/run/vm1/disk1.sock", "disk1.sock")).contains("not an absolute path"));
        assert!(error(&GOOD.replace("/run/vm1", &format!("/{}", "x".repeat(100)))).contains("too long"));
        assert!(
            error(&format!("{GOOD}[[device]]\nkind=\"port\"\nname=\"vm1\"\n")).contains("port vm1 is attached twice")
        );
        let missing = Config::load(Path::new("/nowhere/shim.toml")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/shim.toml"));
    }
}
