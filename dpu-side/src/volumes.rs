//! Setting volumes up: from the broker's record to a unit that the datapath serves.

use std::path::Path;

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

/// Opens the backend of a volume whose file, unless its path is absolute, is in `volume_dir`. May take as long as the
/// file system likes, but never waits for whoever has the file locked.
///
/// # Errors
/// See [`Unavailable`].
pub fn open_volume(volume_dir: &Path, volume: &Volume) -> Result<Box<BlkUnit>, Unavailable> {
    let Volume {
        name,
        size_bytes,
        backend,
        read_only,
    } = volume;
    let backend: Box<dyn Backend> = match backend {
        VolumeBackend::File { path } => {
            let opened = open_file(&volume_dir.join(path), *size_bytes, *read_only);
            Box::new(opened.map_err(|e| {
                let refusal = unavailable(name, &e.to_string());
                match e {
                    OpenError::InUse { .. } => Unavailable::Locked(refusal),
                    _ => Unavailable::Failed(refusal),
                }
            })?)
        }
        VolumeBackend::Memory => Box::new(MemoryBackend::new(*size_bytes, *read_only)),
        VolumeBackend::Null => Box::new(NullBackend::new(*size_bytes, *read_only)),
    };
    let config = BlkConfig {
        name: name.to_string(),
        read_only: *read_only,
        size_bytes: *size_bytes,
    };
    Ok(Box::new(BlkUnit::new(config, backend)))
}

/// The refusal that tells an operator why a volume cannot be served.
pub(crate) fn unavailable(name: &Name, why: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("volume {name}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_file_is_told_from_other_trouble() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Volume {
            name: "disk".parse().unwrap(),
            size_bytes: 4096,
            backend: VolumeBackend::File { path: "disk".into() },
            read_only: false,
        };
        let open = || open_volume(directory.path(), &disk);
        assert!(matches!(open(), Err(Unavailable::Failed(_))), "missing");
        std::fs::File::create(directory.path().join("disk"))
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
}
