//! The one namespace of a controller.

use outboard_storage::{Backend, Geometry, ResizeError};

/// Its namespace id.
pub const NSID: u32 = 1;
/// Bytes in a logical block. Firmware boots from nothing else.
pub const LBA_LEN: u64 = 512;
/// Bytes that are best written at once and aligned: a page of the cache under most backends.
pub const PHYSICAL_BLOCK_LEN: u64 = 4096;

/// Logical blocks over a backend.
pub struct Namespace {
    pub(crate) backend: Box<dyn Backend>,
    geometry: Geometry,
}

impl Namespace {
    /// The first `size_bytes` of a backend, or all it has if that is less. Read-only if either says so.
    pub fn new(backend: Box<dyn Backend>, size_bytes: u64, read_only: bool) -> Self {
        let below = backend.geometry();
        let size_bytes = size_bytes.min(below.size_bytes);
        let geometry = Geometry {
            size_bytes: size_bytes - size_bytes % LBA_LEN,
            read_only: read_only || below.read_only,
        };
        Self { backend, geometry }
    }

    /// Have `size_bytes` from now on.
    pub(crate) fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
        self.backend.resize(size_bytes)?;
        self.geometry.size_bytes = size_bytes;
        Ok(())
    }

    /// Size in logical blocks.
    pub fn block_count(&self) -> u64 {
        self.geometry.size_bytes / LBA_LEN
    }

    /// Writes are refused.
    pub fn read_only(&self) -> bool {
        self.geometry.read_only
    }
}
