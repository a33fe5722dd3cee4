//! A backend that loses what no flush covered, on demand. For tests.
//!
//! It keeps what survives a power cut apart from what merely was written. [`Recording::power_loss`] goes back to the
//! former, and may let some of the latter survive too, sector by sector, as a disk's cache does.
//!
//! ```
//! use outboard_ring::{Segment, driver::GuestRam};
//! use outboard_storage::{Backend, Buffer, Op, Request, recording::{Keep, Recording}};
//!
//! let ram = GuestRam::new(1 << 16);
//! let at = ram.alloc(512, 512);
//! ram.memory().write(at, &[7; 512])?;
//! let mut buffer = Buffer::new();
//! buffer.fill(ram.memory(), &[Segment { addr: at, len: 512 }], 0, 512)?;
//!
//! let recording = Recording::new(1 << 20, false);
//! let mut backend = recording.backend();
//! let write = Request { tag: 1, op: Op::Write { durable: false }, offset: 0, buffer };
//! backend.submit(write).expect("it is idle");
//! assert_eq!(backend.complete().expect("writes are instant").result, Ok(()));
//! assert_eq!(recording.sector(0), [7; 512]);
//!
//! recording.power_loss(Keep::Nothing);
//! assert_eq!(recording.sector(0), [0; 512]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::errno::Errno;

use crate::{
    Backend, Buffer, Busy, Completion, Geometry, IoError, Op, Request, ResizeError, SECTOR_LEN, backend::check_size,
};

/// Requests in flight.
const DEPTH: usize = 64;
const SYNC_FAILED: IoError = IoError::System {
    call: "fdatasync",
    errno: Errno::EIO,
};

/// The bytes of one sector.
pub type Sector = [u8; 512];
const _: () = assert!(size_of::<Sector>() as u64 == SECTOR_LEN);
const ZEROS: Sector = [0; size_of::<Sector>()];
/// What reads see of a discarded sector: a backend promises nothing, and zeros would hide who relies on them.
pub const DISCARDED: Sector = [0xdd; size_of::<Sector>()];

/// What survives a power cut, besides everything that was flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// The first so many sector writes.
    Prefix(u64),
    /// For each sector, any of the things written to it since it was flushed, or none: chosen by this seed.
    Subset(u64),
}

/// What a [`RecordingBackend`] stores to; outlives it, as a disk does.
#[derive(Debug, Clone)]
pub struct Recording(Arc<Mutex<Disk>>);

#[derive(Debug)]
struct Disk {
    geometry: Geometry,
    /// What reads see. Sectors that are not there are zeros.
    current: BTreeMap<u64, Sector>,
    /// What survives for certain.
    durable: BTreeMap<u64, Sector>,
    /// What was written to each sector since it was last durable, with the number of the write.
    volatile: BTreeMap<u64, Vec<(u64, Sector)>>,
    writes: u64,
    syncs: u64,
    syncs_to_fail: u32,
    writes_to_fail: u32,
}

impl Recording {
    /// A disk of zeros. `size_bytes` is rounded down to whole sectors.
    pub fn new(size_bytes: u64, read_only: bool) -> Self {
        let size_bytes = size_bytes - size_bytes % SECTOR_LEN;
        Self(Arc::new(Mutex::new(Disk {
            geometry: Geometry { size_bytes, read_only },
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            volatile: BTreeMap::new(),
            writes: 0,
            syncs: 0,
            syncs_to_fail: 0,
            writes_to_fail: 0,
        })))
    }

    /// A backend on this disk that completes requests in order.
    pub fn backend(&self) -> RecordingBackend {
        RecordingBackend {
            disk: self.clone(),
            geometry: self.disk().geometry,
            pending: VecDeque::with_capacity(DEPTH),
            order: None,
            latched: false,
        }
    }

    /// A backend on this disk that lets requests wait, and carries them out and completes them in an order chosen by
    /// `seed`.
    pub fn shuffled_backend(&self, seed: u64) -> RecordingBackend {
        RecordingBackend {
            order: Some(Random(seed)),
            ..self.backend()
        }
    }

    /// The power goes. Drop the backends that are open: what they have in flight was never done.
    pub fn power_loss(&self, keep: Keep) {
        self.disk().power_loss(keep);
    }

    /// Let the next `count` flushes or durable writes fail. What they would have made durable is lost at the next power
    /// cut even if a later flush succeeds, as it is with Linux' page cache.
    pub fn fail_syncs(&self, count: u32) {
        self.disk().syncs_to_fail = count;
    }

    /// Let the next `count` writes fail.
    pub fn fail_writes(&self, count: u32) {
        self.disk().writes_to_fail = count;
    }

    /// How many flushes and durable writes were carried out.
    pub fn syncs(&self) -> u64 {
        self.disk().syncs
    }

    /// How many sectors were written, zeroed or discarded in all.
    pub fn writes(&self) -> u64 {
        self.disk().writes
    }

    /// What a read of this sector sees.
    pub fn sector(&self, sector: u64) -> Sector {
        self.disk().current.get(&sector).copied().unwrap_or(ZEROS)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn power_loss(&mut self, keep: Keep) {
        let volatile = std::mem::take(&mut self.volatile);
        let mut random = Random(if let Keep::Subset(seed) = keep { seed } else { 0 });
        for (sector, versions) in volatile {
            let survivor = match keep {
                Keep::Nothing => None,
                Keep::Prefix(writes) => versions.iter().rfind(|(number, _)| *number < writes),
                Keep::Subset(_) => versions.get(random.below(versions.len() + 1)),
            };
            if let Some((_, bytes)) = survivor {
                self.durable.insert(sector, *bytes);
            }
        }
        self.current = self.durable.clone();
    }

    fn carry_out(&mut self, request: &Request) -> Result<(), IoError> {
        let first = request.offset / SECTOR_LEN;
        let sectors = request.buffer.len() / SECTOR_LEN;
        match request.op {
            Op::Read => self.read(first, sectors, &request.buffer),
            Op::Write { durable } => {
                self.write(first, sectors, &request.buffer)?;
                if durable {
                    self.sync(first..first + sectors)
                } else {
                    Ok(())
                }
            }
            Op::Flush => self.sync(0..u64::MAX),
            Op::Discard { len } => {
                self.fill(first, len / SECTOR_LEN, DISCARDED);
                Ok(())
            }
            Op::WriteZeroes { len, durable, .. } => {
                self.fill(first, len / SECTOR_LEN, ZEROS);
                if durable {
                    self.sync(first..first + len / SECTOR_LEN)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn fill(&mut self, first: u64, sectors: u64, bytes: Sector) {
        for sector in first..first + sectors {
            self.put(sector, bytes);
        }
    }

    fn put(&mut self, sector: u64, bytes: Sector) {
        self.current.insert(sector, bytes);
        self.volatile.entry(sector).or_default().push((self.writes, bytes));
        self.writes += 1;
    }

    fn read(&self, first: u64, sectors: u64, buffer: &Buffer) -> Result<(), IoError> {
        for n in 0..sectors {
            let bytes = self.current.get(&(first + n)).unwrap_or(&ZEROS);
            buffer.write_at(n * SECTOR_LEN, bytes)?;
        }
        Ok(())
    }

    fn write(&mut self, first: u64, sectors: u64, buffer: &Buffer) -> Result<(), IoError> {
        if self.writes_to_fail > 0 {
            self.writes_to_fail -= 1;
            return Err(IoError::System {
                call: "writev",
                errno: Errno::EIO,
            });
        }
        for n in 0..sectors {
            let mut bytes = ZEROS;
            buffer.read_at(n * SECTOR_LEN, &mut bytes)?;
            self.put(first + n, bytes);
        }
        Ok(())
    }

    fn sync(&mut self, sectors: std::ops::Range<u64>) -> Result<(), IoError> {
        let failing = self.syncs_to_fail > 0;
        for (sector, versions) in self.volatile.extract_if(sectors, |_, _| true) {
            if let (false, Some((_, bytes))) = (failing, versions.last()) {
                self.durable.insert(sector, *bytes);
            }
        }
        if failing {
            self.syncs_to_fail -= 1;
            return Err(SYNC_FAILED);
        }
        self.syncs += 1;
        Ok(())
    }
}

/// A backend on a [`Recording`].
#[derive(Debug)]
pub struct RecordingBackend {
    disk: Recording,
    geometry: Geometry,
    pending: VecDeque<Request>,
    /// None: requests are completed in order and at once.
    order: Option<Random>,
    latched: bool,
}

impl RecordingBackend {
    fn carry_out(&mut self, request: &Request) -> Result<(), IoError> {
        self.geometry.check(request)?;
        if self.latched && request.op != Op::Read {
            return Err(IoError::Latched);
        }
        let result = self.disk.disk().carry_out(request);
        self.latched |= result == Err(SYNC_FAILED);
        result
    }
}

impl Backend for RecordingBackend {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
        check_size(size_bytes)?;
        let mut disk = self.disk.disk();
        disk.geometry.size_bytes = size_bytes;
        let end = size_bytes / SECTOR_LEN;
        disk.current.extract_if(end.., |_, _| true).for_each(drop);
        disk.durable.extract_if(end.., |_, _| true).for_each(drop);
        disk.volatile.extract_if(end.., |_, _| true).for_each(drop);
        self.geometry = disk.geometry;
        Ok(())
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn submit(&mut self, request: Request) -> Result<(), Busy> {
        if self.pending.len() >= DEPTH {
            return Err(Busy(request));
        }
        self.pending.push_back(request);
        Ok(())
    }

    fn start(&mut self) {}

    fn complete(&mut self) -> Option<Completion> {
        let waiting = self.pending.len();
        if waiting == 0 {
            return None;
        }
        let index = match &mut self.order {
            None => 0,
            Some(random) => {
                // One time in three, none is done yet.
                if random.below(3) == 0 {
                    return None;
                }
                random.below(waiting)
            }
        };
        let request = self.pending.remove(index)?;
        let result = self.carry_out(&request);
        Some(Completion { request, result })
    }

    fn in_flight(&self) -> usize {
        self.pending.len()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&mut self) -> bool {
        !self.pending.is_empty()
    }
}

/// A reproducible sequence of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The remainder is below `bound`.
        usize::try_from(self.next_u64() % bound as u64).unwrap_or(0)
    }
}
