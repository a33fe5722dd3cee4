//! The region that tracks requests in flight (vhost-user, "Inflight I/O tracking"), of split rings here.
//!
//! The shim makes the region and keeps it, so that it outlives the DPU's process; the DPU writes it. For each queue there
//! is a header (`features` u64, `version`, `desc_num`, `last_batch_head`, `used_idx`, u16 each) and 16 bytes per
//! descriptor (`inflight` u8, padding, `next` u16, `counter` u64). A queue's part is a multiple of 64 bytes long.

use outboard_controls::{Check, on};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create},
    io::pread,
};

use super::{framing::Descriptor, guest_memory::is_memory_file, request::Payload, vhost_user_wire::QUEUE_SIZE_MAX};

mod packed;

pub use packed::PackedState;

/// Length of a queue's header in bytes.
const HEADER_LEN: usize = 16;
/// Length of what is kept per descriptor, in bytes.
const ENTRY_LEN: usize = 16;
/// A queue's part begins at a multiple of this.
const ALIGNMENT: u64 = 64;
/// Entries per queue of a region that no VMM asked for: the largest ring that a device of Outboard's has.
pub const OWN_QUEUE_SIZE: u16 = 1024;

/// What is wrong with a region that a VMM passed or asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// For no queue, or more than there are.
    #[error("{0} queues, of a device that has {1}")]
    Queues(u16, u16),
    /// No size that a ring can have.
    #[error("rings of {0} entries, which is not a power of two up to {QUEUE_SIZE_MAX}")]
    Size(u16),
    /// The queues do not fit.
    #[error("{given} bytes, and {needed} are needed")]
    TooShort {
        /// What it says it has.
        given: u64,
        /// What its queues need.
        needed: u64,
    },
    /// Not in a memory file, or past its end.
    #[error("it does not lie in its descriptor's memory file")]
    Outside,
    /// No descriptor or memory left.
    #[error("it cannot be made: {0}")]
    System(rustix::io::Errno),
}

/// A region.
#[derive(Debug, Clone)]
pub struct Inflight {
    /// Its file.
    pub file: Descriptor,
    /// Its length in bytes.
    pub mmap_size: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
    /// No VMM passed it or asked for it.
    pub own: bool,
    /// Its rings are packed.
    pub packed: bool,
    /// Rings it tracks.
    pub queue_count: u16,
    /// Entries per ring.
    pub queue_size: u16,
}

/// Length of one queue's part.
fn queue_len(packed: bool, queue_size: u16) -> u64 {
    let (header_len, entry_len) = match packed {
        false => (HEADER_LEN, ENTRY_LEN),
        true => (packed::HEADER_LEN, packed::ENTRY_LEN),
    };
    (header_len as u64 + u64::from(queue_size) * entry_len as u64).next_multiple_of(ALIGNMENT)
}

fn check(packed: bool, queue_count: u16, queue_size: u16, queues: u16) -> Result<u64, InflightError> {
    let needed = u64::from(queue_count) * queue_len(packed, queue_size);
    if !on(Check::SessionBounds) {
        return Ok(needed);
    }
    if queue_count == 0 || queue_count > queues {
        return Err(InflightError::Queues(queue_count, queues));
    }
    if !queue_size.is_power_of_two() || u32::from(queue_size) > QUEUE_SIZE_MAX {
        return Err(InflightError::Size(queue_size));
    }
    Ok(needed)
}

impl Inflight {
    /// Makes an empty region for `queue_count` of a device's `queues` rings. Its length is sealed.
    ///
    /// # Errors
    /// See [`InflightError`].
    pub fn make(packed: bool, queue_count: u16, queue_size: u16, queues: u16) -> Result<Self, InflightError> {
        let mmap_size = check(packed, queue_count, queue_size, queues)?;
        let file = memfd_create("outboard-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(InflightError::System)?;
        ftruncate(&file, mmap_size).map_err(InflightError::System)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(InflightError::System)?;
        Ok(Self {
            file: file.into(),
            mmap_size,
            mmap_offset: 0,
            own: false,
            packed,
            queue_count,
            queue_size,
        })
    }

    /// Checks a region that a VMM passes.
    ///
    /// # Errors
    /// See [`InflightError`].
    pub fn passed(packed: bool, payload: &Payload, file: Descriptor, queues: u16) -> Result<Self, InflightError> {
        let &Payload::Inflight {
            mmap_size,
            mmap_offset,
            queue_count,
            queue_size,
        } = payload
        else {
            return Err(InflightError::Outside);
        };
        let needed = check(packed, queue_count, queue_size, queues)?;
        if mmap_size < needed && on(Check::SessionBounds) {
            return Err(InflightError::TooShort {
                given: mmap_size,
                needed,
            });
        }
        let file_len = fstat(&file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        let end = mmap_offset.checked_add(mmap_size);
        let inside = is_memory_file(&file) && end.is_some_and(|end| file_len.is_some_and(|len| end <= len));
        if !inside && on(Check::SessionBounds) {
            return Err(InflightError::Outside);
        }
        Ok(Self {
            file,
            mmap_size,
            mmap_offset,
            own: false,
            packed,
            queue_count,
            queue_size,
        })
    }

    /// The payload that describes it.
    pub fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend_from_slice(&self.mmap_size.to_le_bytes());
        bytes.extend_from_slice(&self.mmap_offset.to_le_bytes());
        bytes.extend_from_slice(&self.queue_count.to_le_bytes());
        bytes.extend_from_slice(&self.queue_size.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    }

    /// How many requests of a queue are in flight, if its used ring stands at `used_idx`. None if the region does not
    /// track the queue or cannot be read.
    ///
    /// Entries of the batch that was published last may still be marked, where the DPU died between the used index and
    /// clearing them; these are done.
    pub fn in_flight(&self, queue: u16, used_idx: u16) -> Option<u16> {
        let part = self.part(queue)?;
        Some(count(&part, usize::from(self.queue_size), used_idx))
    }

    /// A queue's part of it.
    fn part(&self, queue: u16) -> Option<Vec<u8>> {
        if queue >= self.queue_count {
            return None;
        }
        let len = queue_len(self.packed, self.queue_size);
        let begin = self.mmap_offset.checked_add(u64::from(queue) * len)?;
        let mut part = vec![0; usize::try_from(len).ok()?];
        let mut have = 0;
        while have < part.len() {
            match pread(&self.file, &mut part[have..], begin + have as u64) {
                Ok(0) => return None,
                Ok(got) => have += got,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        Some(part)
    }
}

fn u16_at(part: &[u8], at: usize) -> u16 {
    part.get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn count(part: &[u8], entries: usize, used_idx: u16) -> u16 {
    let (last_batch_head, logged_idx) = (u16_at(part, 12), u16_at(part, 14));
    let at = |entry: u16| HEADER_LEN + usize::from(entry) * ENTRY_LEN;
    let mut marked: Vec<bool> = (0..entries).map(|e| part[HEADER_LEN + e * ENTRY_LEN] == 1).collect();
    // The chain of the last batch is as long as the used ring is ahead of the log.
    let (mut entry, mut left) = (
        last_batch_head,
        usize::from(used_idx.wrapping_sub(logged_idx)).min(entries),
    );
    while left > 0 {
        let Some(mark) = marked.get_mut(usize::from(entry)) else {
            break;
        };
        *mark = false;
        entry = u16_at(part, at(entry) + 6);
        left -= 1;
    }
    u16::try_from(marked.iter().filter(|mark| **mark).count()).unwrap_or(u16::MAX)
}

#[cfg(test)]
#[path = "inflight_tests.rs"]
mod tests;
