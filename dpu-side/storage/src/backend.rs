//! The seam between a namespace and what stores its blocks.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use outboard_controls::{Check, on};
use outboard_ring::MemoryError;

use crate::Buffer;

/// Bytes in a sector: offsets and lengths are multiples of it.
pub const SECTOR_LEN: u64 = 512;

/// Bytes that one discard or zeroing is about at most, so that a backend which does it on the worker holds up the others
/// for some 100 µs only.
pub const RANGE_LEN_MAX: u64 = 32 << 20;

/// Check a size that a volume is to have.
pub(crate) fn check_size(size_bytes: u64) -> Result<(), ResizeError> {
    match size_bytes.is_multiple_of(SECTOR_LEN) && size_bytes > 0 {
        true => Ok(()),
        false => Err(ResizeError::Size { size_bytes }),
    }
}

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the buffer from the backend.
    Read,
    /// Store the buffer. After its completion every read sees it.
    Write {
        /// Complete only once the data survives a power cut.
        durable: bool,
    },
    /// Complete only once every write that was completed before this request was submitted survives a power cut.
    /// Writes in flight beside it may or may not be covered.
    Flush,
    /// Nobody needs the data of this range any more. It promises nothing: reads of it may give what was there, zeros or
    /// a mix by sectors, now and after a power cut, until the range is written again.
    Discard {
        /// Length in bytes.
        len: u64,
    },
    /// After its completion every read of this range gives zeros. A flush covers it as it does a write.
    WriteZeroes {
        /// Length in bytes.
        len: u64,
        /// The range's room may be given back too.
        unmap: bool,
        /// Complete only once the zeros survive a power cut.
        durable: bool,
    },
}

impl Op {
    /// May it change what is stored?
    pub fn changes(self) -> bool {
        matches!(
            self,
            Self::Write { .. } | Self::Discard { .. } | Self::WriteZeroes { .. }
        )
    }

    /// Is it complete only once what it did survives a power cut?
    pub fn is_durable(self) -> bool {
        matches!(
            self,
            Self::Write { durable: true } | Self::WriteZeroes { durable: true, .. }
        )
    }
}

/// One operation on a backend. A read or write is as long as its buffer; what any other has in its buffer means nothing.
#[derive(Debug)]
pub struct Request {
    /// Chosen by the submitter, for telling completions apart. The backend does not look at it.
    pub tag: u64,
    /// What to do.
    pub op: Op,
    /// Where, in bytes from the start of the volume; ignored by a flush.
    pub offset: u64,
    /// The guest memory to read into or write from.
    pub buffer: Buffer,
}

impl Request {
    /// Length in bytes of the range that it is about; 0 for a flush.
    pub fn range_len(&self) -> u64 {
        match self.op {
            Op::Read | Op::Write { .. } => self.buffer.len(),
            Op::Discard { len } | Op::WriteZeroes { len, .. } => len,
            Op::Flush => 0,
        }
    }
}

/// A request that is over. Its buffer is the submitter's again: nothing touches the guest's memory any more.
#[derive(Debug)]
pub struct Completion {
    /// The request.
    pub request: Request,
    /// How it went. After a failed read or write any part of it may have been done.
    pub result: Result<(), IoError>,
}

/// The backend has as many requests in flight as it takes; submit it again after a completion.
#[derive(Debug)]
pub struct Busy(pub Request);

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// Outside the volume.
    #[error("request for {len} bytes at byte {offset} is not inside the volume of {size_bytes} bytes")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the volume in bytes.
        size_bytes: u64,
    },
    /// Offset or length is not a multiple of [`SECTOR_LEN`].
    #[error("request for {len} bytes at byte {offset} is not made of whole sectors of {SECTOR_LEN} bytes")]
    PartialSector {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A write to a read-only volume.
    #[error("the volume is read-only")]
    ReadOnly,
    /// A flush failed earlier, so that writes may be lost which the guest holds to be stored.
    #[error(
        "an earlier flush failed and data may be lost: check the device under the volume, then attach the volume again"
    )]
    Latched,
    /// The guest's memory could not be accessed.
    #[error("the guest's buffer could not be accessed: {0}")]
    GuestMemory(#[from] MemoryError),
    /// The volume's file is shorter than it was when it was opened.
    #[error("the volume's file ends before byte {offset}: it was truncated while in use; give it its size back")]
    EndOfFile {
        /// The first byte that is not there.
        offset: u64,
    },
    /// No memory is left for new blocks of a volume in memory.
    #[error("the DPU has no memory left for this volume: make it smaller or keep it in a file")]
    OutOfMemory,
    /// The kernel reports an error.
    #[error("{call} failed: {errno}")]
    System {
        /// What was tried.
        call: &'static str,
        /// Why it failed.
        errno: Errno,
    },
}

/// Why a backend keeps its size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// The size is 0 or not a multiple of [`SECTOR_LEN`].
    #[error("a volume of {size_bytes} bytes is not possible: its size must be a multiple of {SECTOR_LEN} bytes")]
    Size {
        /// The size that was asked for.
        size_bytes: u64,
    },
    /// What is below it has fewer bytes.
    #[error(
        "the volume's file or device has {found_bytes} bytes, but the volume is to have {size_bytes}: enlarge it first, \
         or make the volume smaller"
    )]
    TooSmall {
        /// How many it has.
        found_bytes: u64,
        /// How many it needs.
        size_bytes: u64,
    },
    /// The kernel reports an error.
    #[error("the volume's file could not be measured: {errno}")]
    Measure {
        /// Why not.
        errno: Errno,
    },
}

/// Size and kind of a backend. The size changes by [`Backend::resize`] only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size in bytes, a multiple of [`SECTOR_LEN`].
    pub size_bytes: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Geometry {
    /// Check that `request` may be carried out on a volume of this geometry.
    ///
    /// # Errors
    /// [`IoError::ReadOnly`], [`IoError::PartialSector`], [`IoError::OutOfRange`].
    pub fn check(&self, request: &Request) -> Result<(), IoError> {
        let (offset, len) = (request.offset, request.range_len());
        match request.op {
            Op::Flush => return Ok(()),
            op if op.changes() && self.read_only => return Err(IoError::ReadOnly),
            _ => {}
        }
        if !offset.is_multiple_of(SECTOR_LEN) || (!len.is_multiple_of(SECTOR_LEN) && on(Check::RequestLength)) {
            return Err(IoError::PartialSector { offset, len });
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes || !on(Check::VolumeRange) => Ok(()),
            _ => Err(IoError::OutOfRange {
                offset,
                len,
                size_bytes: self.size_bytes,
            }),
        }
    }
}

/// What stores the blocks of a volume.
///
/// A backend never panics and never blocks, whatever offset, length or guest memory a request has: it completes the
/// request with an error. In return it may rely on one thing: every request that it took is taken back by
/// [`Backend::complete`] unless the backend is dropped.
///
/// Discards and zeroing may take as long as a backend likes only where they are asynchronous: one that carries requests
/// out while they are submitted expects ranges of at most [`RANGE_LEN_MAX`].
///
/// Requests may be carried out and completed in any order. Two requests in flight at once that touch the same sector,
/// one of them writing, leave that sector with either's data, or a mix if they are longer than a sector.
pub trait Backend: Send {
    /// Size and kind.
    fn geometry(&self) -> Geometry;

    /// Have `size_bytes` from now on. What a smaller size cuts off is gone, or comes back when the size does: the
    /// backend's choice. Requests in flight go on; those submitted from now on are checked against the new size.
    ///
    /// # Errors
    /// See [`ResizeError`]. The size stays what it was.
    fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError>;

    /// How many requests it takes at once.
    fn depth(&self) -> usize;

    /// Take a request. It may not begin before [`Backend::start`].
    ///
    /// # Errors
    /// [`Busy`] gives the request back if [`Backend::depth`] requests are in flight.
    fn submit(&mut self, request: Request) -> Result<(), Busy>;

    /// Begin everything that was submitted. One call per batch: it may cost a system call.
    fn start(&mut self);

    /// Take a completion, if there is one. Never waits.
    fn complete(&mut self) -> Option<Completion>;

    /// Requests taken and not yet given back.
    fn in_flight(&self) -> usize;

    /// Readable once there are completions, after [`Backend::arm`]. None if completions never come later than
    /// [`Backend::start`].
    fn wake_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Prepare for sleeping on [`Backend::wake_fd`]. True if completions are waiting already.
    fn arm(&mut self) -> bool;
}
