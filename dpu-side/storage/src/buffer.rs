//! The data of a request: pieces of one guest's memory.

use std::sync::Arc;

use outboard_ring::{GuestMemory, MemoryError, Segment};

/// Pieces a buffer may have: as many as the largest ring has descriptors, and as the kernel takes in one call (`IOV_MAX`).
pub const SEGMENT_COUNT_MAX: usize = 1024;

/// Why a buffer could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BufferError {
    /// More pieces than [`SEGMENT_COUNT_MAX`].
    #[error("guest gave a request in more than {SEGMENT_COUNT_MAX} pieces")]
    TooManySegments,
    /// The pieces are shorter than what is to be taken of them.
    #[error("guest gave {available} bytes where {wanted} are needed")]
    TooShort {
        /// How many bytes there are.
        available: u64,
        /// How many were asked for.
        wanted: u64,
    },
}

/// Pieces of a guest's memory, which stays mapped as long as they are in here. Its room is allocated once, so that it
/// can be filled again and again.
#[derive(Debug)]
pub struct Buffer {
    memory: Option<Arc<GuestMemory>>,
    segments: Vec<Segment>,
    len: u64,
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Buffer {
    /// An empty buffer with room for [`SEGMENT_COUNT_MAX`] pieces.
    pub fn new() -> Self {
        Self {
            memory: None,
            segments: Vec::with_capacity(SEGMENT_COUNT_MAX),
            len: 0,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Is there nothing in it?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces, none of them empty.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The memory that the pieces lie in; None while it is empty.
    pub fn memory(&self) -> Option<&Arc<GuestMemory>> {
        self.memory.as_ref()
    }

    /// Let go of the guest's memory.
    pub fn clear(&mut self) {
        self.memory = None;
        self.segments.clear();
        self.len = 0;
    }

    /// Refer to the `len` bytes that begin `skip` bytes into `segments`.
    ///
    /// # Errors
    /// There are not so many bytes, or they are in too many pieces. The buffer is empty then.
    pub fn fill(
        &mut self,
        memory: &Arc<GuestMemory>,
        segments: &[Segment],
        skip: u64,
        len: u64,
    ) -> Result<(), BufferError> {
        self.clear();
        let (mut skip_left, mut left) = (skip, len);
        for segment in segments {
            let segment_len = u64::from(segment.len);
            let skipped = skip_left.min(segment_len);
            skip_left -= skipped;
            let taken = left.min(segment_len - skipped);
            if taken == 0 {
                continue;
            }
            if self.segments.len() == SEGMENT_COUNT_MAX {
                self.clear();
                return Err(BufferError::TooManySegments);
            }
            let (Some(addr), Ok(piece_len)) = (segment.addr.checked_add(skipped), u32::try_from(taken)) else {
                // Not a piece of memory: it wraps. A checked chain has none such.
                break;
            };
            self.segments.push(Segment { addr, len: piece_len });
            left -= taken;
        }
        if left > 0 {
            self.clear();
            return Err(BufferError::TooShort {
                available: len - left,
                wanted: len,
            });
        }
        self.memory = (len > 0).then(|| Arc::clone(memory));
        self.len = len;
        Ok(())
    }

    /// Copy `bytes` to the guest, from `offset` into the buffer. What is beyond the end is not copied.
    ///
    /// # Errors
    /// The guest's memory could not be accessed.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.pieces(offset, bytes.len(), |memory, addr, range| {
            memory.write(addr, &bytes[range])
        })
    }

    /// Copy from the guest to `bytes`, from `offset` into the buffer. What is beyond the end is not copied.
    ///
    /// # Errors
    /// The guest's memory could not be accessed.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<(), MemoryError> {
        self.pieces(offset, bytes.len(), |memory, addr, range| {
            memory.read(addr, &mut bytes[range])
        })
    }

    /// Visit each piece of `offset .. offset + len`, with its address and which of the `len` bytes it is.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
        mut visit: impl FnMut(&GuestMemory, u64, std::ops::Range<usize>) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let Some(memory) = &self.memory else { return Ok(()) };
        let (mut skip, mut done) = (offset, 0);
        for segment in &self.segments {
            let segment_len = u64::from(segment.len);
            let skipped = skip.min(segment_len);
            skip -= skipped;
            let room = usize::try_from(segment_len - skipped).unwrap_or(usize::MAX);
            let taken = room.min(len - done);
            if taken > 0 {
                visit(memory, segment.addr + skipped, done..done + taken)?;
                done += taken;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
