//! The driver's side of a split ring (virtio 1.3 §2.7): indices, entries and notifications. What the descriptors mean
//! is up to its owner.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{
            AtomicU16, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

use crate::{
    features,
    raw::{Cells, LINE_LEN, Memory},
};

/// Where the memory begins in the guest's own addresses. Not at its user address, so that a back-end that mixes the two
/// up is found out.
pub const GUEST_START: u64 = 1 << 32;

/// A descriptor continues in another one.
pub const DESC_NEXT: u16 = 1;
/// A descriptor's buffer is for the device to write.
pub const DESC_WRITE: u16 = 2;
/// A descriptor's buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESC_LEN: usize = 16;

/// VIRTQ_AVAIL_F_NO_INTERRUPT and VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFICATION: u16 = 1;

/// Sets parts of a memory aside, from its start on.
#[derive(Debug)]
pub struct Space {
    memory: Arc<Memory>,
    next: usize,
}

impl Space {
    /// All of it is free.
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, next: 0 }
    }

    /// `len` bytes, aligned to a cache line: their offset.
    ///
    /// # Panics
    /// The memory was made too small.
    pub fn take(&mut self, len: usize) -> usize {
        let at = self.next.next_multiple_of(LINE_LEN);
        self.next = at + len;
        assert!(
            self.next <= self.memory.len(),
            "the memory was made too small for rings and buffers"
        );
        at
    }

    /// The memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

/// Bytes that a ring of `size` needs, with what alignment costs.
pub fn ring_len(size: u16) -> usize {
    let size = usize::from(size);
    DESC_LEN * size + (6 + 2 * size) + (6 + 8 * size) + 3 * LINE_LEN
}

/// A descriptor's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Offset of the buffer in the memory.
    pub at: usize,
    /// Its length.
    pub len: u32,
    /// `DESC_*`.
    pub flags: u16,
    /// The descriptor that follows with [`DESC_NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// As the device reads it.
    pub fn to_bytes(self) -> [u8; DESC_LEN] {
        let mut bytes = [0; DESC_LEN];
        bytes[..8].copy_from_slice(&(GUEST_START + self.at as u64).to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// The device gave back what it never got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// An entry of the used ring names no descriptor.
    #[error("it gave back descriptor {id} of a queue of {size}")]
    NoSuchDescriptor {
        /// What it says.
        id: u32,
        /// How many there are.
        size: u16,
    },
    /// used.idx is further than avail.idx.
    #[error("it gave back {used} buffers while it had {had}")]
    TooMany {
        /// How many were used.
        used: u16,
        /// How many there were.
        had: u16,
    },
    /// More bytes than the buffer has, or fewer than it must.
    #[error("it says that it wrote {len} bytes to descriptor {id}, which has room for {room}")]
    Length {
        /// Which descriptor.
        id: u16,
        /// What it says.
        len: u32,
        /// The buffer's length.
        room: u32,
    },
    /// One frame over more buffers than were used.
    #[error("it says that a frame is in {buffers} buffers, of which {there} are there")]
    Buffers {
        /// What it says.
        buffers: u16,
        /// How many are there.
        there: u16,
    },
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    size: u16,
    desc_at: usize,
    avail_at: usize,
    used_at: usize,
    avail_flags: Cells<AtomicU16>,
    avail_idx: Cells<AtomicU16>,
    avail: Cells<AtomicU16>,
    used_event: Cells<AtomicU16>,
    used_flags: Cells<AtomicU16>,
    used_idx: Cells<AtomicU16>,
    used_id: Cells<AtomicU32>,
    used_len: Cells<AtomicU32>,
    avail_event: Cells<AtomicU16>,
    /// avail.idx as published.
    next: u16,
    /// Used entries taken.
    seen: u16,
    event_idx: bool,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    /// A ring of `size` descriptors, all zero. Until [`Ring::arm`] it wants no calls.
    ///
    /// # Errors
    /// No more descriptors for eventfds.
    pub fn new(space: &mut Space, size: u16, negotiated: u64) -> io::Result<Self> {
        let count = usize::from(size);
        let desc_at = space.take(DESC_LEN * count);
        let avail_at = space.take(6 + 2 * count);
        let used_at = space.take(6 + 8 * count);
        let memory = Arc::clone(space.memory());
        let cell = |at| Cells::new(&memory, at, 1, 0);
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let ring = Self {
            size,
            desc_at,
            avail_at,
            used_at,
            avail_flags: cell(avail_at),
            avail_idx: cell(avail_at + 2),
            avail: Cells::new(&memory, avail_at + 4, count, 2),
            used_event: cell(avail_at + 4 + 2 * count),
            used_flags: cell(used_at),
            used_idx: cell(used_at + 2),
            used_id: Cells::new(&memory, used_at + 4, count, 8),
            used_len: Cells::new(&memory, used_at + 8, count, 8),
            avail_event: cell(used_at + 4 + 8 * count),
            memory: Arc::clone(&memory),
            next: 0,
            seen: 0,
            event_idx: negotiated & features::EVENT_IDX != 0,
            kick: event()?,
            call: event()?,
        };
        ring.avail_flags.at(0).store(NO_NOTIFICATION.to_le(), Relaxed);
        Ok(ring)
    }

    /// The other side of it, within this process.
    pub fn device_side(&self) -> DeviceSide {
        let count = usize::from(self.size);
        DeviceSide {
            addresses: Cells::new(&self.memory, self.desc_at, count, DESC_LEN),
            lens: Cells::new(&self.memory, self.desc_at + 8, count, DESC_LEN),
            avail_idx: self.avail_idx.clone(),
            avail: self.avail.clone(),
            used_idx: self.used_idx.clone(),
            used_id: self.used_id.clone(),
            used_len: self.used_len.clone(),
            memory: Arc::clone(&self.memory),
            next: 0,
        }
    }

    /// How many descriptors it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// User addresses of descriptor table, used ring and available ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.desc_at, self.used_at, self.avail_at].map(|at| self.memory.address() + at as u64)
    }

    /// How the device is kicked.
    pub fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// How the device calls.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// Writes a descriptor that the device does not hold.
    pub fn describe(&self, index: u16, descriptor: Descriptor) {
        let index = usize::from(index & (self.size - 1));
        self.memory
            .write(self.desc_at + DESC_LEN * index, &descriptor.to_bytes());
    }

    /// Puts a head into the `n`th available entry after those published.
    #[inline(always)]
    pub fn offer(&self, n: u16, head: u16) {
        self.avail
            .at(usize::from(self.next.wrapping_add(n)))
            .store(head.to_le(), Relaxed);
    }

    /// Publishes `count` more available entries.
    #[inline(always)]
    pub fn publish(&mut self, count: u16) {
        self.next = self.next.wrapping_add(count);
        self.avail_idx.at(0).store(self.next.to_le(), Release);
    }

    /// Index of the next available entry.
    #[inline(always)]
    pub fn next(&self) -> u16 {
        self.next
    }

    /// Index of the next used entry.
    #[inline(always)]
    pub fn seen(&self) -> u16 {
        self.seen
    }

    /// How many chains the device holds, as far as was seen.
    #[inline(always)]
    pub fn held(&self) -> u16 {
        self.next.wrapping_sub(self.seen)
    }

    /// How many used entries wait to be taken.
    ///
    /// # Errors
    /// More than the device had.
    #[inline(always)]
    pub fn waiting(&self) -> Result<u16, RingFault> {
        let used = u16::from_le(self.used_idx.at(0).load(Acquire)).wrapping_sub(self.seen);
        if used > self.held() {
            return Err(RingFault::TooMany { used, had: self.held() });
        }
        Ok(used)
    }

    /// The `n`th used entry that was not taken: its descriptor.
    ///
    /// # Errors
    /// There is no such descriptor.
    #[inline(always)]
    pub fn used_id(&self, n: u16) -> Result<u16, RingFault> {
        let id = u32::from_le(self.used_id.at(usize::from(self.seen.wrapping_add(n))).load(Relaxed));
        match u16::try_from(id) {
            Ok(head) if head < self.size => Ok(head),
            _ => Err(RingFault::NoSuchDescriptor { id, size: self.size }),
        }
    }

    /// Its length.
    #[inline(always)]
    pub fn used_len(&self, n: u16) -> u32 {
        u32::from_le(self.used_len.at(usize::from(self.seen.wrapping_add(n))).load(Relaxed))
    }

    /// Takes `count` used entries.
    #[inline(always)]
    pub fn take(&mut self, count: u16) {
        self.seen = self.seen.wrapping_add(count);
    }

    /// Kicks the device if it wants that, now that `count` entries were published.
    #[inline]
    pub fn notify(&self, count: u16) {
        // The device's wish must be read after the index is visible (virtio 1.3 §2.7.13.4.1).
        fence(SeqCst);
        let wanted = if self.event_idx {
            let event = u16::from_le(self.avail_event.at(0).load(Relaxed));
            self.next.wrapping_sub(event).wrapping_sub(1) < count
        } else {
            u16::from_le(self.used_flags.at(0).load(Relaxed)) & NO_NOTIFICATION == 0
        };
        if wanted {
            self.kick();
        }
    }

    #[cold]
    fn kick(&self) {
        // A full counter is a kick that was not taken yet.
        let _full = self.kick.write(1);
    }

    /// Asks to be called for the next used entry. False if there is one: do not wait then.
    ///
    /// # Errors
    /// As of [`Ring::waiting`].
    pub fn arm(&self) -> Result<bool, RingFault> {
        if self.event_idx {
            self.used_event.at(0).store(self.seen.to_le(), Relaxed);
        }
        self.avail_flags.at(0).store(0, Relaxed);
        fence(SeqCst);
        Ok(self.waiting()? == 0)
    }

    /// Asks for no more calls, and takes off those that came.
    pub fn disarm(&self) {
        self.avail_flags.at(0).store(NO_NOTIFICATION.to_le(), Relaxed);
        // Nothing to read is no error.
        let _count = self.call.read();
    }
}

/// The device's side of a ring whose driver is in this process, trusted, and has one descriptor a buffer. It wants no
/// kicks.
#[derive(Debug)]
pub struct DeviceSide {
    addresses: Cells<AtomicU64>,
    lens: Cells<AtomicU32>,
    avail_idx: Cells<AtomicU16>,
    avail: Cells<AtomicU16>,
    used_idx: Cells<AtomicU16>,
    used_id: Cells<AtomicU32>,
    used_len: Cells<AtomicU32>,
    memory: Arc<Memory>,
    next: u16,
}

impl DeviceSide {
    /// How many buffers are available.
    #[inline]
    pub fn waiting(&self) -> u16 {
        u16::from_le(self.avail_idx.at(0).load(Acquire)).wrapping_sub(self.next)
    }

    /// Head, offset and length of the `n`th available buffer.
    #[inline]
    pub fn buffer(&self, n: u16) -> (u16, usize, usize) {
        let head = u16::from_le(self.avail.at(usize::from(self.next.wrapping_add(n))).load(Relaxed));
        let index = usize::from(head);
        let at = u64::from_le(self.addresses.at(index).load(Relaxed)).wrapping_sub(GUEST_START);
        let len = u32::from_le(self.lens.at(index).load(Relaxed));
        (
            head,
            usize::try_from(at).unwrap_or(usize::MAX),
            usize::try_from(len).unwrap_or(usize::MAX),
        )
    }

    /// Says that the `n`th available buffer, of this head, is used.
    #[inline]
    pub fn stage(&self, n: u16, head: u16, len: u32) {
        let index = usize::from(self.next.wrapping_add(n));
        self.used_id.at(index).store(u32::from(head).to_le(), Relaxed);
        self.used_len.at(index).store(len.to_le(), Relaxed);
    }

    /// Publishes `count` used entries.
    #[inline]
    pub fn publish(&mut self, count: u16) {
        self.next = self.next.wrapping_add(count);
        self.used_idx.at(0).store(self.next.to_le(), Release);
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

/// Waits until one of the descriptors is readable, at most `limit`.
pub fn wait<const N: usize>(fds: [BorrowedFd<'_>; N], limit: Duration) {
    let mut fds = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // Woken or not: what there is to do shows in the rings.
    let _woken = poll(&mut fds, Some(&limit));
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
