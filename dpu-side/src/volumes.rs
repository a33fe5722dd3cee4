//! Setting volumes up: from the broker's record to a unit that the datapath serves.

use std::path::{Path, PathBuf};

use outboard_protocol::{
    desired::{Volume, VolumeBackend},
    id::Name,
    refusal::{Code, Refusal},
};
use outboard_storage::{Backend, MemoryBackend, NullBackend, open_file};
use vhost_blk_dpu::{BlkConfig, BlkUnit};

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

    /// Opens the backend of a volume. The refusal is for the operator and names what to do.
    pub fn open(&mut self, volume: &Volume) -> Result<BlkUnit, Refusal> {
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
                Box::new(opened.map_err(|e| unavailable(name, &format!("{e}")))?)
            }
            VolumeBackend::Memory => {
                self.reserve_memory(name, *size_bytes)?;
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

    /// Where relative paths begin.
    pub fn volume_dir(&self) -> &Path {
        &self.volume_dir
    }

    fn reserve_memory(&mut self, name: &Name, size_bytes: u64) -> Result<(), Refusal> {
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
