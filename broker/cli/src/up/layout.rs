//! The run directory: what is where in it.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use outboard_shim_api::{DeviceKind, default_socket};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::plan::Plan;
use crate::{
    error::CliError,
    paths::{self, BROKER_SOCKET},
};

/// A run directory that is there and belongs to this user.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

/// Which card this run directory's state is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CardIdentity {
    /// Its name.
    pub name: String,
    /// Its serial, made once.
    pub serial: String,
}

impl RunDir {
    /// Makes the directory and what is in it, as far as it is not there.
    ///
    /// # Errors
    /// A socket's path would be too long, or the directory is not this user's alone.
    pub fn open(plan: &Plan) -> Result<Self, CliError> {
        let dir = Self {
            root: plan.run_dir.clone(),
        };
        dir.check_sockets(plan)?;
        // Open to others to pass through: a VMM may run as another user. Sockets, logs and state have their own modes.
        make(&dir.root, 0o755)?;
        check_owner(&dir.root)?;
        for (path, mode) in [
            (dir.root.join("ports"), 0o755),
            (dir.root.join("volumes"), 0o755),
            (dir.log_dir(), 0o700),
            (dir.state_dir(), 0o700),
        ] {
            make(&path, mode)?;
        }
        Ok(dir)
    }

    fn check_sockets(&self, plan: &Plan) -> Result<(), CliError> {
        let ports = plan
            .topology
            .ports
            .iter()
            .filter(|p| p.trunk.is_none())
            .map(|p| self.device_socket(DeviceKind::Port, p.name.as_str()));
        let volumes = plan
            .topology
            .volumes
            .iter()
            .map(|v| self.device_socket(DeviceKind::Volume, v.name.as_str()));
        let own = [self.broker_socket(), self.shim_socket(), self.link_socket()];
        own.into_iter().chain(ports).chain(volumes).try_for_each(|path| {
            paths::check_socket_path(&path).map_err(|e| e.with_remedy("name a shorter run directory with --run-dir"))
        })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The broker's API.
    pub fn broker_socket(&self) -> PathBuf {
        self.root.join(BROKER_SOCKET)
    }

    /// The shim's API.
    pub fn shim_socket(&self) -> PathBuf {
        self.root.join("shim.sock")
    }

    /// The link between shim and DPU.
    pub fn link_socket(&self) -> PathBuf {
        self.root.join("dpu.sock")
    }

    /// What a VMM opens.
    pub fn device_socket(&self, kind: DeviceKind, name: &str) -> PathBuf {
        default_socket(&self.root, kind, name)
    }

    /// A daemon's configuration file.
    pub fn config(&self, daemon: &str) -> PathBuf {
        self.root.join(format!("{daemon}.toml"))
    }

    /// A daemon's log.
    pub fn log(&self, daemon: &str) -> PathBuf {
        self.log_dir().join(format!("{daemon}.log"))
    }

    /// A daemon's state.
    pub fn state(&self, daemon: &str) -> PathBuf {
        self.state_dir().join(daemon)
    }

    /// Held by the `up` that uses the directory.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn log_dir(&self) -> PathBuf {
        self.root.join("log")
    }

    fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The card whose state this directory holds; made up the first time.
    ///
    /// # Errors
    /// The directory holds the state of a card of another name.
    pub fn card(&self, name: &str) -> Result<CardIdentity, CliError> {
        let path = self.state_dir().join("card.toml");
        let remedy = format!(
            "remove {} to begin anew; volumes' files are not in it",
            self.root.display()
        );
        let known = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str::<CardIdentity>(&text).map_err(|e| {
                CliError::coded(
                    "damaged",
                    format!("{} is damaged: {}", path.display(), e.message()),
                    &remedy,
                )
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let serial = format!("soft-{}", Uuid::new_v4().simple());
                let made = CardIdentity {
                    name: name.to_owned(),
                    serial,
                };
                write_config(&path, &made)?;
                made
            }
            Err(e) => return Err(CliError::io("read", &path, &e, remedy)),
        };
        if known.name == name {
            return Ok(known);
        }
        let what = format!(
            "{} holds the state of card {}, and the file names {name}",
            self.root.display(),
            known.name
        );
        let remedy = format!(
            "name card {} in the file, or another directory with --run-dir; or {remedy}",
            known.name
        );
        Err(CliError::coded("other_card", what, remedy))
    }
}

/// Writes a TOML file in one step: it is there whole or not at all.
///
/// # Errors
/// The directory cannot be written.
pub fn write_config(path: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let text = toml::to_string(value).map_err(|e| {
        CliError::new(
            format!("cannot write {}: {e}", path.display()),
            "check the paths on the command line",
        )
    })?;
    let part = path.with_extension("part");
    let write = || -> io::Result<()> {
        let mut file = std::fs::File::create(&part)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(|e| CliError::io("write", path, &e, "check the directory's owner and the space left"))
}

fn make(path: &Path, mode: u32) -> Result<(), CliError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|e| CliError::io("make", path, &e, "name a directory of yours with --run-dir"))
}

/// Whoever can write here could put sockets of their own in the daemons' place.
fn check_owner(path: &Path) -> Result<(), CliError> {
    let remedy = "name a directory of yours with --run-dir";
    let found = std::fs::metadata(path).map_err(|e| CliError::io("look at", path, &e, remedy))?;
    let problem = if found.uid() != nix::unistd::geteuid().as_raw() {
        format!("belongs to uid {}", found.uid())
    } else if found.mode() & 0o022 != 0 {
        format!("can be written by others (mode {:03o})", found.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(CliError::coded(
        "run_dir_not_own",
        format!("the run directory {} {problem}", path.display()),
        remedy,
    ))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
