//! One shared mapping of a memory file, guarded against faults.

use std::{
    fs::File,
    os::fd::AsFd,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use outboard_controls::{Check, on};
use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags, madvise, mmap},
};
use vm_memory::{AtomicAccess, Bytes, VolatileMemoryError, VolatileSlice};

use crate::{
    sigbus::{GuardError, Registration, any_fault},
    view::GuestBytes,
};

/// Why a file could not be mapped.
#[derive(Debug, Clone, Copy)]
pub(crate) enum MapError {
    Mmap(Errno),
    Guard(GuardError),
}

/// Mapped bytes of a file. Reached only through [`VolatileSlice`]s: the guest changes them at any time.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    guard: Option<Registration>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and lives until it is dropped.
unsafe impl Send for Mapping {}
// SAFETY: as above; it is accessed only by volatile and atomic operations, from any number of threads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map `len` bytes of `file` from `offset`, both multiples of the file's page size.
    pub(crate) fn new(file: &File, offset: u64, len: usize) -> Result<Self, MapError> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel picks the place, so that nothing that exists is touched.
        let start = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, file.as_fd(), offset) };
        let start = start.map_err(MapError::Mmap)?;
        let start = NonNull::new(start.cast()).ok_or(MapError::Mmap(Errno::NOMEM))?;
        // From here on dropping it unmaps.
        let mut mapping = Self {
            start,
            len,
            guard: None,
        };
        // A guest's memory has no place in a core file of ours.
        // SAFETY: the range is the mapping just made. The advice changes no byte of it.
        if let Err(error) = unsafe { madvise(start.as_ptr().cast(), len, Advice::LinuxDontDump) } {
            tracing::warn!(%error, "guest memory could not be excluded from core files");
        }
        if on(Check::SigbusGuard) {
            let guard = Registration::new(start.as_ptr() as usize, len).map_err(MapError::Guard)?;
            mapping.guard = Some(guard);
        }
        Ok(mapping)
    }

    /// The same of private memory, for an interpreter that cannot map files. Nobody takes it away.
    #[cfg(miri)]
    pub(crate) fn private(len: usize) -> Self {
        // SAFETY: the layout is of a length that is not 0.
        let start = unsafe { std::alloc::alloc_zeroed(private_layout(len)) };
        Self {
            start: NonNull::new(start).expect("there is memory"),
            len,
            guard: None,
        }
    }

    /// Did a fault replace it by zero pages?
    pub(crate) fn poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Registration::poisoned)
    }

    /// `len` bytes from `offset`, if they are inside.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: the bytes are inside the mapping, which outlives the slice, and are accessed only as volatile.
        Some(unsafe { VolatileSlice::new(self.start.as_ptr().add(offset), len) })
    }
}

#[cfg(miri)]
fn private_layout(len: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(len, 4096).expect("it is no larger than memory")
}

#[cfg(miri)]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was made by `private`, and no slice of it can be left, since slices borrow it.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), private_layout(self.len)) };
    }
}

#[cfg(not(miri))]
impl Drop for Mapping {
    fn drop(&mut self) {
        // A range that is no longer ours must not be replaced by a fault.
        self.guard = None;
        // SAFETY: the range is this mapping, and no slice of it can be left, since slices borrow it.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!(%error, len_bytes = self.len, "guest memory could not be unmapped");
        }
    }
}

/// A part of a mapping that is looked up once and then accessed by offset, such as a ring's descriptor table.
#[derive(Debug, Clone)]
pub(crate) struct Area {
    start: NonNull<u8>,
    len: usize,
    mapping: Arc<Mapping>,
}

// SAFETY: the bytes are the mapping's, which may be sent, and are accessed only by volatile and atomic operations.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// `len` bytes of `mapping` from `offset`, if they are inside.
    pub(crate) fn new(mapping: Arc<Mapping>, offset: usize, len: usize) -> Option<Self> {
        mapping.slice(offset, len)?;
        // SAFETY: the offset is inside the mapping or at its end.
        let start = unsafe { mapping.start.add(offset) };
        Some(Self { start, len, mapping })
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    #[inline]
    fn bytes(&self) -> VolatileSlice<'_> {
        // SAFETY: `new` found the range inside the mapping, which neither moves nor shrinks while it is held here.
        unsafe { VolatileSlice::new(self.start.as_ptr(), self.len) }
    }

    /// All of it, to be copied from and to.
    #[inline]
    pub(crate) fn guest_bytes(&self) -> GuestBytes<'_> {
        // SAFETY: as for `bytes`.
        unsafe { GuestBytes::new(self.start, self.len) }
    }

    /// `len` bytes from `offset` as volatile bytes, if they are inside.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<VolatileSlice<'_>> {
        self.bytes().subslice(offset, len).ok()
    }

    /// Read a naturally aligned value, once.
    #[inline]
    pub(crate) fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, VolatileMemoryError> {
        self.bytes().load(offset, order)
    }

    /// Write a naturally aligned value, once.
    #[inline]
    pub(crate) fn store<T: AtomicAccess>(
        &self,
        value: T,
        offset: usize,
        order: Ordering,
    ) -> Result<(), VolatileMemoryError> {
        #[cfg(test)]
        if !crate::cut::store_happens() {
            return Ok(());
        }
        self.bytes().store(value, offset, order)
    }

    /// Set bits of one byte, atomically, whoever else changes them. False if it is outside.
    #[inline]
    pub(crate) fn set_bits(&self, offset: usize, bits: u8, order: Ordering) -> bool {
        if offset >= self.len {
            return false;
        }
        // SAFETY: the byte is inside the mapping, as for `bytes`, and is accessed only by volatile and atomic operations.
        let byte = unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(offset)) };
        byte.fetch_or(bits, order);
        true
    }

    /// A part of it.
    pub(crate) fn part(&self, offset: usize, len: usize) -> Option<Self> {
        (offset <= self.len && len <= self.len - offset).then(|| Self {
            // SAFETY: the offset is inside or at the end.
            start: unsafe { self.start.add(offset) },
            len,
            mapping: self.mapping.clone(),
        })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Did a fault replace the mapping by zero pages?
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        any_fault() && self.mapping.poisoned()
    }
}
