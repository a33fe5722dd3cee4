//! Setting volumes up: from the broker's record to a unit that the datapath serves.

use std::path::PathBuf;

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

/// Opens volumes' backends, within bounds.
pub struct Opener {
    volume_dir: PathBuf,
    memory_bytes_max: u64,
    /// Volumes in memory that are set up.
    in_memory: Vec<(Name, u64)>,
}

impl Opener {
    /// An opener of files in `volume_dir`, and of at most `memory_bytes_max` bytes in memory.
    pub fn new(volume_dir: PathBuf, memory_bytes_max: u64) -> Self {
        Self {
            volume_dir,
            memory_bytes_max,
            in_memory: Vec::new(),
        }
    }

    /// Opens the backend of a volume. Never waits for whoever has its file locked.
    pub fn open(&mut self, volume: &Volume) -> Result<BlkUnit, Unavailable> {
        let Volume {
            name,
            size_bytes,
            backend,
            read_only,
        } = volume;
        let backend: Box<dyn Backend> = match backend {
            VolumeBackend::File { path } => {
                let path = self.volume_dir.join(path);
                let opened = open_file(&path, *size_bytes, *read_only);
                Box::new(opened.map_err(|e| {
                    let refusal = unavailable(name, &e.to_string());
                    match e {
                        OpenError::InUse { .. } => Unavailable::Locked(refusal),
                        _ => Unavailable::Failed(refusal),
                    }
                })?)
            }
            VolumeBackend::Memory => {
                self.reserve_memory(name, *size_bytes).map_err(Unavailable::Failed)?;
                Box::new(MemoryBackend::new(*size_bytes, *read_only))
            }
            VolumeBackend::Null => Box::new(NullBackend::new(*size_bytes, *read_only)),
        };
        let config = BlkConfig {
            name: name.to_string(),
            read_only: *read_only,
            size_bytes: *size_bytes,
        };
        Ok(BlkUnit::new(config, backend))
    }

    /// The volume was taken down.
    pub fn closed(&mut self, name: &Name) {
        self.in_memory.retain(|(n, _)| n != name);
    }

    fn reserve_memory(&mut self, name: &Name, size_bytes: u64) -> Result<(), Refusal> {
        // Whatever an attempt that came to nothing left.
        self.closed(name);
        let used: u64 = self.in_memory.iter().map(|(_, size)| size).sum();
        if used
            .checked_add(size_bytes)
            .is_none_or(|sum| sum > self.memory_bytes_max)
        {
            let max = self.memory_bytes_max;
            let text = format!(
                "{size_bytes} bytes of memory are wanted, {used} of {max} are in use: raise limits.memory_volume_bytes in \
                 the DPU's configuration, or use a file"
            );
            return Err(unavailable(name, &text));
        }
        self.in_memory.push((name.clone(), size_bytes));
        Ok(())
    }
}

fn unavailable(name: &Name, why: &str) -> Refusal {
    Refusal::new(Code::Unavailable, format!("volume {name}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(size_bytes: u64, backend: VolumeBackend) -> Volume {
        Volume {
            name: "disk".parse().unwrap(),
            size_bytes,
            backend,
            read_only: false,
        }
    }

    #[test]
    fn memory_is_counted_once_however_often_a_volume_is_tried() {
        let mut opener = Opener::new("/nonexistent".into(), 4096);
        let disk = volume(4096, VolumeBackend::Memory);
        for _ in 0..3 {
            assert!(opener.open(&disk).is_ok());
        }
        let mut other = disk.clone();
        other.name = "other".parse().unwrap();
        assert!(matches!(opener.open(&other), Err(Unavailable::Failed(_))));
        opener.closed(&disk.name);
        assert!(opener.open(&other).is_ok());
    }

    #[test]
    fn a_locked_file_is_told_from_other_trouble() {
        let directory = tempfile::tempdir().unwrap();
        let mut opener = Opener::new(directory.path().to_owned(), 0);
        let disk = volume(4096, VolumeBackend::File { path: "disk".into() });
        assert!(matches!(opener.open(&disk), Err(Unavailable::Failed(_))), "missing");
        std::fs::File::create(directory.path().join("disk"))
            .unwrap()
            .set_len(4096)
            .unwrap();
        let first = opener.open(&disk).ok().unwrap();
        let refused = opener.open(&disk).err().unwrap();
        assert!(
            matches!(&refused, Unavailable::Locked(refusal) if refusal.text.contains("another volume of this DPU")),
            "{refused:?}"
        );
        drop(first);
        assert!(opener.open(&disk).is_ok());
    }
}
