//! What outlives the shim's process: its boot epoch, and what is still to be given back.
//!
//! The file is written whole and renamed into place, so it is never half there. It is not synced: it matters when
//! the process dies, and a host that loses power loses its VMs and sessions too.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use outboard_protocol::id::BootEpoch;
use serde::{Deserialize, Serialize};

use crate::agent::Leaving;

/// Longest file that is read, in bytes.
const STATE_LEN_MAX: u64 = 4 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    boot_epoch: BootEpoch,
    leaving: Vec<Leaving>,
}

/// The file, and this process's boot epoch.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    boot_epoch: BootEpoch,
}

impl StateFile {
    /// Reads the file, if there is one, and raises the epoch. A damaged file is put aside: without it the DPU still
    /// knows who holds what, and only what was detached while it was away has to be revoked and granted again.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Leaving>)> {
        let contents = match File::open(path) {
            Ok(file) => Self::read(file, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => return Err(error),
        };
        // The wall clock, in milliseconds so that no restarts overtake it, covers a file that was lost; the count, a
        // clock that was set back.
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let boot_epoch = BootEpoch(contents.boot_epoch.next().0.max(clock));
        let state = Self {
            path: path.to_owned(),
            boot_epoch,
        };
        state.save(contents.leaving.clone())?;
        Ok((state, contents.leaving))
    }

    fn read(file: File, path: &Path) -> io::Result<Contents> {
        let mut text = String::new();
        let read = file.take(STATE_LEN_MAX).read_to_string(&mut text);
        let parsed = match read {
            Ok(_) => serde_json::from_str(&text).map_err(io::Error::from),
            Err(error) => Err(error),
        };
        parsed.or_else(|error| {
            let aside = path.with_extension("damaged");
            tracing::error!(path = %path.display(), %error, aside = %aside.display(),
                "the shim's state file is damaged and was put aside; what was detached while the DPU was away has to be revoked and granted again");
            std::fs::rename(path, aside)?;
            Ok(Contents::default())
        })
    }

    /// This process's epoch, higher than that of any before.
    pub fn boot_epoch(&self) -> BootEpoch {
        self.boot_epoch
    }

    /// Replaces what is remembered.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, leaving: Vec<Leaving>) -> io::Result<()> {
        let contents = Contents {
            boot_epoch: self.boot_epoch,
            leaving,
        };
        let fresh = self.path.with_extension("new");
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(&contents)?)?;
        drop(file);
        std::fs::rename(fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use outboard_protocol::id::{Generation, Incarnation};
    use outboard_shim_api::DeviceKind;

    use super::*;
    use crate::{agent::Binding, config::object};

    #[test]
    fn what_is_leaving_survives_and_the_epoch_rises() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state.json");
        let (state, found) = StateFile::open(&path).unwrap();
        assert_eq!(found, []);
        let binding = Binding {
            generation: Generation(3),
            incarnation: Incarnation(2),
        };
        let of = |name, binding| Leaving {
            object: object(DeviceKind::Port, name).unwrap(),
            binding,
        };
        let leaving = vec![of("vm1", Some(binding)), of("vm2", None)];
        state.save(leaving.clone()).unwrap();
        let (again, found) = StateFile::open(&path).unwrap();
        assert_eq!(found, leaving);
        assert!(again.boot_epoch() > state.boot_epoch());
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        for damaged in [
            "{\"boot_epoch\": 3, \"obj",
            "",
            "\u{0}\u{0}",
            "{\"boot_epoch\":1,\"leaving\":[],\"more\":1}",
        ] {
            std::fs::write(&path, damaged).unwrap();
            let (_, leaving) = StateFile::open(&path).unwrap();
            assert_eq!(leaving, []);
            assert_eq!(
                std::fs::read_to_string(path.with_extension("damaged")).unwrap(),
                damaged
            );
        }
    }
}
