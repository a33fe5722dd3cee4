//! Setting volumes up: from the broker's record to a unit that the datapath serves.

use std::{
    fs::OpenOptions,
    io::{Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use outboard_protocol::{
    desired::{Volume, VolumeBackend},
    id::Name,
    refusal::{Code, Refusal},
};
use outboard_storage::{Backend, MemoryBackend, NullBackend, OpenError, open_file};
use vhost_blk_dpu::{BlkConfig, BlkUnit};

/// Why a volume cannot be set up. The refusal is for the operator and names what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unavailable {
    /// Somebody else has its file locked, and may let it go soon.
    Locked(Refusal),
    /// Something that takes the operator.
    Failed(Refusal),
}

/// A volume that was opened.
pub struct Opened {
    /// Its device, ready to serve.
    pub unit: Box<BlkUnit>,
    /// What the device has and why it is not the volume's size, if so.
    pub short: Option<(u64, Refusal)>,
}

/// Opens the backend of a volume whose file, unless its path is absolute, is in `volume_dir`. May take as long as the
/// file system likes, but never waits for whoever has the file locked.
///
/// A file that is too short does for `served_bytes`, which the guest has had: a volume that was to grow must not be gone
/// after a restart.
///
/// # Errors
/// See [`Unavailable`].
pub fn open_volume(volume_dir: &Path, volume: &Volume, served_bytes: Option<u64>) -> Result<Opened, Unavailable> {
    let Volume {
        name,
        size_bytes,
        backend,
        read_only,
    } = volume;
    let mut size = *size_bytes;
    let mut short = None;
    let backend: Box<dyn Backend> = match backend {
        VolumeBackend::File { path } => {
            let path = volume_dir.join(path);
            let mut opened = open_file(&path, size, *read_only);
            if let (Err(error @ OpenError::TooSmall { found_bytes, .. }), Some(served)) = (&opened, served_bytes)
                && served < size
                && served <= *found_bytes
            {
                short = Some((served, unavailable(name, &error.to_string())));
                size = served;
                opened = open_file(&path, size, *read_only);
            }
            Box::new(opened.map_err(|e| {
                let refusal = unavailable(name, &e.to_string());
                match e {
                    OpenError::InUse { .. } => Unavailable::Locked(refusal),
                    _ => Unavailable::Failed(refusal),
                }
            })?)
        }
        VolumeBackend::Memory => Box::new(MemoryBackend::new(size, *read_only)),
        VolumeBackend::Null => Box::new(NullBackend::new(size, *read_only)),
    };
    let config = BlkConfig {
        name: name.to_string(),
        read_only: *read_only,
        size_bytes: size,
    };
    let unit = Box::new(BlkUnit::new(config, backend));
    Ok(Opened { unit, short })
}

/// Whether what is below a volume has room for its size. May take as long as the file system likes.
///
/// # Errors
/// It has not, or cannot be looked at.
pub fn measure_volume(volume_dir: &Path, volume: &Volume) -> Result<(), Refusal> {
    let VolumeBackend::File { path } = &volume.backend else {
        return Ok(());
    };
    let path = volume_dir.join(path);
    // The length of a block device is where its end is.
    let found_bytes = OpenOptions::new()
        .read(true)
        // A pipe in its place must not hold up what is done to the volume next.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .map_err(|e| {
            let text = format!("{} could not be measured: {e}", path.display());
            unavailable(&volume.name, &text)
        })?;
    let size_bytes = volume.size_bytes;
    if found_bytes >= size_bytes {
        return Ok(());
    }
    let error = OpenError::TooSmall {
        path,
        found_bytes,
        size_bytes,
    };
    Err(unavailable(&volume.name, &error.to_string()))
}

/// The refusal that tells an operator why a volume cannot be served.
pub(crate) fn unavailable(name: &Name, why: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("volume {name}: {why}"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn disk(size_bytes: u64) -> Volume {
        Volume {
            name: "disk".parse().unwrap(),
            size_bytes,
            backend: VolumeBackend::File { path: "disk".into() },
            read_only: false,
        }
    }

    #[test]
    fn a_locked_file_is_told_from_other_trouble() {
        let directory = tempfile::tempdir().unwrap();
        let open = || open_volume(directory.path(), &disk(4096), None);
        assert!(matches!(open(), Err(Unavailable::Failed(_))), "missing");
        File::create(directory.path().join("disk"))
            .unwrap()
            .set_len(4096)
            .unwrap();
        let first = open().ok().unwrap();
        let refused = open().err().unwrap();
        assert!(
            matches!(&refused, Unavailable::Locked(refusal) if refusal.text.contains("another volume of this DPU")),
            "{refused:?}"
        );
        drop(first);
        assert!(open().is_ok());
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let directory = tempfile::tempdir().unwrap();
        mknodat(CWD, directory.path().join("disk"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let (done, measured) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(measure_volume(directory.path(), &disk(4096))));
        let result = measured.recv_timeout(std::time::Duration::from_secs(5)).unwrap();
        assert!(result.is_err_and(|e| e.text.contains("could not be measured")));
    }

    #[test]
    fn a_file_that_has_not_grown_yet_serves_what_it_did() {
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("disk")).unwrap();
        file.set_len(4096).unwrap();
        let open = |served| open_volume(directory.path(), &disk(8192), served);
        for served in [None, Some(4608)] {
            let error = open(served).err();
            assert!(matches!(error, Some(Unavailable::Failed(e)) if e.text.contains("truncate -s 8192")));
        }
        let opened = open(Some(4096)).ok().unwrap();
        let (served, error) = opened.short.unwrap();
        assert!(served == 4096 && error.text.contains("truncate -s 8192"), "{error}");
        assert_eq!(opened.unit.config_space()[..8], 8u64.to_le_bytes());
        drop(opened.unit);
        assert!(measure_volume(directory.path(), &disk(8192)).is_err_and(|e| e.text.contains("truncate -s 8192")));

        file.set_len(8192).unwrap();
        assert_eq!(measure_volume(directory.path(), &disk(8192)), Ok(()));
        let opened = open(Some(4096)).ok().unwrap();
        assert!(opened.short.is_none());
        assert_eq!(opened.unit.config_space()[..8], 16u64.to_le_bytes());
    }
}
