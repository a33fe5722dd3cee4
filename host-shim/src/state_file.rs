//! What outlives the shim's process: its boot epoch, and under which operation each object was redeemed.
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

use crate::agent::Remembered;

/// Longest file that is read, in bytes.
const STATE_LEN_MAX: u64 = 4 << 20;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    boot_epoch: BootEpoch,
    objects: Vec<Remembered>,
}

/// The file, and this process's boot epoch.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    boot_epoch: BootEpoch,
}

impl StateFile {
    /// Reads the file, if there is one, and raises the epoch. A damaged file is put aside: without it the DPU still
    /// knows who holds what, and objects that an earlier process redeemed have to be revoked and granted again.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path) -> io::Result<(Self, Vec<Remembered>)> {
        let contents = match File::open(path) {
            Ok(file) => Self::read(file, path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
            Err(error) => return Err(error),
        };
        // The wall clock covers a file that was lost; the count, a clock that was set back.
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let boot_epoch = BootEpoch(contents.boot_epoch.next().0.max(clock));
        let state = Self {
            path: path.to_owned(),
            boot_epoch,
        };
        state.save(contents.objects.clone())?;
        Ok((state, contents.objects))
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
                "the shim's state file is damaged and was put aside; objects it had redeemed may have to be revoked and granted again");
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
    pub fn save(&self, objects: Vec<Remembered>) -> io::Result<()> {
        let contents = Contents {
            boot_epoch: self.boot_epoch,
            objects,
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
    use outboard_protocol::id::OperationId;

    use super::*;
    use crate::config::object;

    #[test]
    fn operations_survive_and_the_epoch_rises() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/state.json");
        let (state, objects) = StateFile::open(&path).unwrap();
        assert_eq!(objects, []);
        let remembered = Remembered {
            object: object(outboard_shim_api::DeviceKind::Port, "vm1").unwrap(),
            operation: OperationId(uuid::Uuid::new_v4()),
            leaving: true,
        };
        state.save(vec![remembered.clone()]).unwrap();
        let (again, objects) = StateFile::open(&path).unwrap();
        assert_eq!(objects, [remembered]);
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
            "{\"boot_epoch\":1,\"objects\":[],\"more\":1}",
        ] {
            std::fs::write(&path, damaged).unwrap();
            let (_, objects) = StateFile::open(&path).unwrap();
            assert_eq!(objects, []);
            assert_eq!(
                std::fs::read_to_string(path.with_extension("damaged")).unwrap(),
                damaged
            );
        }
    }
}
