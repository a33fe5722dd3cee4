//! Backends that complete a request while it is submitted.

use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    ops::Range,
    os::fd::BorrowedFd,
};

use crate::{
    Backend, Buffer, Busy, Completion, Geometry, IoError, Op, Request, ResizeError, SECTOR_LEN, backend::check_size,
};

/// Requests submitted and not yet taken back.
const DEPTH: usize = 128;
/// Bytes of a volume in memory that are allocated at once, when the first of them is written.
const CHUNK_LEN: usize = 64 << 10;

static ZEROS: [u8; CHUNK_LEN] = [0; CHUNK_LEN];

/// Where bytes are kept. Ranges were checked.
trait Store: Send {
    /// Copy from `offset` on to the buffer.
    fn read(&self, offset: u64, buffer: &Buffer) -> Result<(), IoError>;
    /// Keep the buffer from `offset` on.
    fn write(&mut self, offset: u64, buffer: &Buffer) -> Result<(), IoError>;
    /// Read as zeros `len` bytes from `offset` on, and give room back where that is cheap.
    fn zero(&mut self, offset: u64, len: u64);
}

/// The part that both backends share.
struct Instant<S> {
    geometry: Geometry,
    store: S,
    finished: VecDeque<Completion>,
}

impl<S: Store> Instant<S> {
    fn new(size_bytes: u64, read_only: bool, store: S) -> Self {
        let size_bytes = size_bytes - size_bytes % SECTOR_LEN;
        Self {
            geometry: Geometry { size_bytes, read_only },
            store,
            finished: VecDeque::with_capacity(DEPTH),
        }
    }

    fn submit(&mut self, request: Request) -> Result<(), Busy> {
        if self.finished.len() >= DEPTH {
            return Err(Busy(request));
        }
        let result = self.geometry.check(&request).and_then(|()| match request.op {
            Op::Read => self.store.read(request.offset, &request.buffer),
            Op::Write { .. } => self.store.write(request.offset, &request.buffer),
            Op::Flush => Ok(()),
            // Memory that was never written takes no room, so nothing is lost by giving room back unasked.
            Op::Discard { len } | Op::WriteZeroes { len, .. } => {
                self.store.zero(request.offset, len);
                Ok(())
            }
        });
        self.finished.push_back(Completion { request, result });
        Ok(())
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
        check_size(size_bytes)?;
        // What is cut off must not come back when the volume grows again.
        if let Some(len) = self.geometry.size_bytes.checked_sub(size_bytes) {
            self.store.zero(size_bytes, len);
        }
        self.geometry.size_bytes = size_bytes;
        Ok(())
    }
}

/// Blocks in the DPU's memory, allocated as they are written. Nothing survives the process, and a flush does not change
/// that: the volume is empty again when it is next opened.
pub struct MemoryBackend(Instant<Chunks>);

/// No blocks at all: writes are discarded and reads give zeros. For measuring everything else.
pub struct NullBackend(Instant<Nothing>);

impl MemoryBackend {
    /// An empty volume of `size_bytes`, rounded down to whole sectors.
    pub fn new(size_bytes: u64, read_only: bool) -> Self {
        Self(Instant::new(size_bytes, read_only, Chunks(BTreeMap::new())))
    }
}

impl NullBackend {
    /// A volume of `size_bytes`, rounded down to whole sectors.
    pub fn new(size_bytes: u64, read_only: bool) -> Self {
        Self(Instant::new(size_bytes, read_only, Nothing))
    }
}

macro_rules! backend_through_instant {
    ($backend:ty) => {
        impl Backend for $backend {
            fn geometry(&self) -> Geometry {
                self.0.geometry
            }
            fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
                self.0.resize(size_bytes)
            }
            fn depth(&self) -> usize {
                DEPTH
            }
            fn submit(&mut self, request: Request) -> Result<(), Busy> {
                self.0.submit(request)
            }
            fn start(&mut self) {}
            fn complete(&mut self) -> Option<Completion> {
                self.0.finished.pop_front()
            }
            fn in_flight(&self) -> usize {
                self.0.finished.len()
            }
            fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
                None
            }
            fn arm(&mut self) -> bool {
                !self.0.finished.is_empty()
            }
        }
    };
}
backend_through_instant!(MemoryBackend);
backend_through_instant!(NullBackend);

/// Chunks of [`CHUNK_LEN`] bytes by number; what was never written has none. A map, so that a write at the end of a large
/// volume costs no more than one at its start.
struct Chunks(BTreeMap<u64, Box<[u8]>>);

impl Chunks {
    /// The chunk with number `index`, allocated if need be.
    fn chunk(&mut self, index: u64) -> Result<&mut [u8], IoError> {
        match self.0.entry(index) {
            Entry::Occupied(chunk) => Ok(chunk.into_mut()),
            Entry::Vacant(place) => {
                let mut chunk = Vec::new();
                chunk.try_reserve_exact(CHUNK_LEN).map_err(|_| IoError::OutOfMemory)?;
                chunk.resize(CHUNK_LEN, 0);
                Ok(place.insert(chunk.into_boxed_slice()))
            }
        }
    }

    /// Fill with zeros what there is of a range shorter than two chunks.
    fn zero_part(&mut self, first: u64, end: u64) {
        let filled = chunks_of(first, end.saturating_sub(first), |index, range, _| {
            if let Some(chunk) = self.0.get_mut(&index) {
                chunk[range].fill(0);
            }
            Ok(())
        });
        debug_assert!(filled.is_ok());
    }
}

/// Visit the chunks under `offset .. offset + len`: the chunk's number, which of its bytes, and where these are in the
/// buffer.
fn chunks_of(
    offset: u64,
    len: u64,
    mut visit: impl FnMut(u64, Range<usize>, u64) -> Result<(), IoError>,
) -> Result<(), IoError> {
    let chunk_len = CHUNK_LEN as u64;
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let taken = (chunk_len - at % chunk_len).min(len - done);
        // Both are at most CHUNK_LEN.
        #[allow(clippy::cast_possible_truncation)]
        let (first, count) = ((at % chunk_len) as usize, taken as usize);
        visit(at / chunk_len, first..first + count, done)?;
        done += taken;
    }
    Ok(())
}

impl Store for Chunks {
    fn read(&self, offset: u64, buffer: &Buffer) -> Result<(), IoError> {
        chunks_of(offset, buffer.len(), |index, range, done| {
            let chunk: &[u8] = self.0.get(&index).map_or(&ZEROS, |chunk| chunk);
            Ok(buffer.write_at(done, &chunk[range])?)
        })
    }

    fn write(&mut self, offset: u64, buffer: &Buffer) -> Result<(), IoError> {
        chunks_of(offset, buffer.len(), |index, range, done| {
            Ok(buffer.read_at(done, &mut self.chunk(index)?[range])?)
        })
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let (first, end) = (offset, offset.saturating_add(len));
        let chunk_len = CHUNK_LEN as u64;
        // The chunks that lie in the range as a whole, then what it has of the two at its ends.
        let (whole_first, whole_end) = (first.div_ceil(chunk_len), end / chunk_len);
        if whole_first >= whole_end {
            return self.zero_part(first, end);
        }
        self.0.extract_if(whole_first..whole_end, |_, _| true).for_each(drop);
        self.zero_part(first, whole_first * chunk_len);
        self.zero_part(whole_end * chunk_len, end);
    }
}

struct Nothing;

impl Store for Nothing {
    fn read(&self, _: u64, buffer: &Buffer) -> Result<(), IoError> {
        chunks_of(0, buffer.len(), |_, range, done| {
            Ok(buffer.write_at(done, &ZEROS[range])?)
        })
    }

    fn write(&mut self, _: u64, _: &Buffer) -> Result<(), IoError> {
        Ok(())
    }

    fn zero(&mut self, _: u64, _: u64) {}
}
