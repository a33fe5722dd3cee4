//! The broker's configuration file.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::error::StartError;

/// Largest configuration file, in bytes.
pub const CONFIG_LEN_MAX: u64 = 1 << 20;

/// `broker.toml`. A key that is not listed here is refused.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of the store and the CA; made with mode 0700 if it is not there.
    pub state_dir: PathBuf,
    /// The operator's API: a unix socket of mode 0600.
    pub api_socket: PathBuf,
    /// The operator's API over mutual TLS, if wanted.
    pub api_listen: Option<SocketAddr>,
    /// Where cards connect; port 0 takes any free port, told in `<state_dir>/card_address`.
    pub card_listen: SocketAddr,
    /// What enrolment tokens tell the card to connect to, `host:port`; `card_listen` if it is not given.
    pub card_address: Option<String>,
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// Names the file and, for an unknown or missing key, the line.
    pub fn load(path: &Path) -> Result<Self, StartError> {
        let fix = "give the path of the broker's configuration with --config";
        let unreadable = |e: &std::io::Error| StartError::io("read", path, e, fix);
        let len = std::fs::metadata(path).map_err(|e| unreadable(&e))?.len();
        if len > CONFIG_LEN_MAX {
            return Err(StartError::new(
                format!("{} has {len} bytes, more than {CONFIG_LEN_MAX}", path.display()),
                fix,
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|e| unreadable(&e))?;
        Self::parse(&text).map_err(|e| StartError::new(format!("{}: {}", path.display(), e.what), e.fix))
    }

    /// The configuration that `text` spells.
    ///
    /// # Errors
    /// An unknown, missing or ill-formed key.
    pub fn parse(text: &str) -> Result<Self, StartError> {
        let config: Self = toml::from_str(text).map_err(|e| {
            StartError::new(
                e.to_string().trim_end().to_owned(),
                "the keys are state_dir, api_socket, card_listen, and optionally api_listen, card_address",
            )
        })?;
        if let Some(address) = &config.card_address
            && address
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return Err(StartError::new(
                format!("card_address '{address}' is not host:port"),
                "write it as card_address = \"broker.example:7470\"",
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "state_dir = '/s'\napi_socket = '/a'\ncard_listen = '127.0.0.1:0'\n";

    #[test]
    fn the_required_keys_suffice() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.card_listen.port(), 0);
        assert_eq!(config.api_listen, None);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = Config::parse(&format!("{GOOD}api_port = 1\n")).unwrap_err();
        assert!(
            error.what.contains("api_port") && error.what.contains("line 4"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = Config::parse("state_dir = '/s'\ncard_listen = '127.0.0.1:0'\n").unwrap_err();
        assert!(error.what.contains("api_socket"), "{error}");
    }

    #[test]
    fn a_card_address_without_port_is_refused() {
        let error = Config::parse(&format!("{GOOD}card_address = 'broker'\n")).unwrap_err();
        assert!(error.what.contains("'broker'"), "{error}");
        assert!(Config::parse(&format!("{GOOD}card_address = 'broker:1'\n")).is_ok());
    }
}
