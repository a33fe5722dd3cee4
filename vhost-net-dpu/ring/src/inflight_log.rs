//! What a device had taken and not given back when its process ended, in memory that outlives it (vhost-user, "Inflight
//! I/O tracking").
//!
//! The region belongs to the front-end: everything read from it is checked, and it is read only when a ring starts.

use std::{fs::File, sync::atomic::Ordering};

use outboard_controls::{Check, on};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::VolatileMemoryError;

use crate::{
    file::{self, FileFault},
    layout::{QUEUE_SIZE_MAX, RingFormat},
    mapping::Area,
};

/// The layout that is written, and the only one that is read. A region of version 0 is new.
const VERSION: u16 = 1;
/// Offsets of the fields of a queue's part, in bytes; its first eight are features, of which there are none.
const VERSION_OFFSET: usize = 8;
const DESC_NUM_OFFSET: usize = 10;
const LAST_BATCH_HEAD_OFFSET: usize = 12;
const USED_IDX_OFFSET: usize = 14;
const HEADER_LEN: usize = 16;
/// Offsets of the fields of a descriptor's entry, in bytes.
const INFLIGHT_OFFSET: usize = 0;
const NEXT_OFFSET: usize = 6;
const COUNTER_OFFSET: usize = 8;
const ENTRY_LEN: usize = 16;
/// Parts of queues begin at multiples of this, as in other back-ends, so that a region can be handed from one to another.
const QUEUE_ALIGNMENT: u64 = 64;

/// Why an in-flight region, or what is in it, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InflightError {
    /// It cannot be mapped.
    #[error("host gave an in-flight region that cannot be used: {0}")]
    File(#[from] FileFault),
    /// No memory for a new one.
    #[error("an in-flight region could not be made: {call}: {errno}")]
    Create {
        /// Which system call.
        call: &'static str,
        /// Why.
        errno: rustix::io::Errno,
    },
    /// No queues, or queues of a size that does not exist.
    #[error(
        "host gave an in-flight region of {queue_count} queues of size {queue_size}: neither may be 0, nor a size above {QUEUE_SIZE_MAX}"
    )]
    Shape {
        /// Queues.
        queue_count: u16,
        /// Descriptors of each.
        queue_size: u16,
    },
    /// Its fields would not be aligned.
    #[error("host put an in-flight region at offset {offset:#x} of its file, which is no multiple of {ENTRY_LEN}")]
    Misaligned {
        /// Where in the file.
        offset: u64,
    },
    /// It is shorter than its queues need.
    #[error("host gave an in-flight region of {len} bytes, but its queues need {needed}")]
    TooSmall {
        /// Its length in bytes.
        len: u64,
        /// How long it should be, in bytes.
        needed: u64,
    },
    /// It is for rings of the other kind.
    #[error("host gave an in-flight region for {region:?} rings, but guest's is the other kind: pass another one")]
    Format {
        /// What it is for.
        region: RingFormat,
    },
    /// It has no part for a queue.
    #[error("host gave an in-flight region of {queue_count} queues, without one for queue {index}")]
    NoSuchQueue {
        /// Which queue.
        index: u16,
        /// Queues it has.
        queue_count: u16,
    },
    /// The ring has more descriptors than its part.
    #[error("host gave an in-flight region for queues of size {queue_size}, but the ring's is {ring_size}")]
    RingLarger {
        /// Descriptors it has room for.
        queue_size: u16,
        /// Descriptors of the ring.
        ring_size: u16,
    },
    /// A field has a value that it cannot have.
    #[error("host gave an in-flight region whose {field} is {value}: it belongs to another ring or was changed")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// The ring went on without it, by more than a batch.
    #[error(
        "the in-flight region was left at used index {logged}, but guest's ring is at {used_idx}: the host gave the region \
         of another ring, or the guest wrote used.idx, which is the device's; restart the VM"
    )]
    UsedIndex {
        /// Where the region says the used ring was.
        logged: u16,
        /// Where it is.
        used_idx: u16,
    },
    /// It could not be accessed at its own offsets.
    #[error("the in-flight region could not be accessed at its own offsets: report this as a bug")]
    Access,
}

impl From<VolatileMemoryError> for InflightError {
    fn from(_: VolatileMemoryError) -> Self {
        Self::Access
    }
}

/// The in-flight logs of a device's queues.
#[derive(Debug)]
pub struct InflightRegion {
    area: Area,
    format: RingFormat,
    queue_count: u16,
    queue_size: u16,
}

impl InflightRegion {
    /// Bytes that so many queues need.
    pub fn len_needed(format: RingFormat, queue_count: u16, queue_size: u16) -> u64 {
        u64::from(queue_count) * queue_len(format, queue_size)
    }

    /// A new region: a memfd of [`InflightRegion::len_needed`] bytes, whose size is fixed.
    ///
    /// # Errors
    /// The numbers make no region, or the system has no memory or descriptors left.
    pub fn create(format: RingFormat, queue_count: u16, queue_size: u16) -> Result<File, InflightError> {
        check_shape(queue_count, queue_size)?;
        let failed = |call| move |errno| InflightError::Create { call, errno };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("in-flight", flags).map_err(failed("memfd_create"))?);
        rustix::fs::ftruncate(&file, Self::len_needed(format, queue_count, queue_size)).map_err(failed("ftruncate"))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(failed("fcntl"))?;
        Ok(file)
    }

    /// Map a region: `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// It is no memory file, not inside it, or too small for its queues.
    pub fn map(
        file: &File,
        offset: u64,
        len: u64,
        format: RingFormat,
        (queue_count, queue_size): (u16, u16),
    ) -> Result<Self, InflightError> {
        check_shape(queue_count, queue_size)?;
        if !offset.is_multiple_of(ENTRY_LEN as u64) {
            return Err(InflightError::Misaligned { offset });
        }
        let needed = Self::len_needed(format, queue_count, queue_size);
        if len < needed && on(Check::InflightRegion) {
            return Err(InflightError::TooSmall { len, needed });
        }
        Ok(Self {
            area: file::map_area(file, offset, needed)?,
            format,
            queue_count,
            queue_size,
        })
    }

    /// The log of one queue.
    ///
    /// # Errors
    /// It has none for that queue.
    pub fn queue(&self, index: u16) -> Result<InflightLog, InflightError> {
        let no_such_queue = InflightError::NoSuchQueue {
            index,
            queue_count: self.queue_count,
        };
        if index >= self.queue_count {
            return Err(no_such_queue);
        }
        let len = queue_len(self.format, self.queue_size);
        let range = usize::try_from(u64::from(index) * len).and_then(|at| Ok((at, usize::try_from(len)?)));
        let area = range.ok().and_then(|(at, len)| self.area.part(at, len));
        Ok(InflightLog {
            area: area.ok_or(no_such_queue)?,
            format: self.format,
            queue_size: self.queue_size,
        })
    }
}

/// Length of a queue's part in bytes.
fn queue_len(format: RingFormat, queue_size: u16) -> u64 {
    let (header_len, entry_len) = match format {
        RingFormat::Split => (HEADER_LEN, ENTRY_LEN),
        RingFormat::Packed => (packed::HEADER_LEN, packed::ENTRY_LEN),
    };
    (header_len as u64 + entry_len as u64 * u64::from(queue_size)).next_multiple_of(QUEUE_ALIGNMENT)
}

fn check_shape(queue_count: u16, queue_size: u16) -> Result<(), InflightError> {
    if queue_count == 0 || queue_size == 0 || queue_size > QUEUE_SIZE_MAX {
        return Err(InflightError::Shape {
            queue_count,
            queue_size,
        });
    }
    Ok(())
}

/// The part of a region that is one queue's.
#[derive(Debug)]
pub struct InflightLog {
    area: Area,
    format: RingFormat,
    queue_size: u16,
}

/// What a log says when a ring starts.
pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    /// Heads that were in flight, in the order in which they were taken. `None` if the log is new.
    pub(crate) heads: Option<Vec<u16>>,
}

impl InflightLog {
    /// Note that nothing is in flight: the driver was reset, and with it the ring. No ring may run on the log.
    ///
    /// # Errors
    /// [`InflightError::Access`], which would be a bug.
    pub fn forget(&self) -> Result<(), InflightError> {
        if self.format == RingFormat::Packed {
            // It is a new one, to be begun where the ring begins.
            return self.store16(VERSION_OFFSET, 0);
        }
        (0..self.queue_size)
            .try_for_each(|head| Ok(self.area.store(0u8, entry(head) + INFLIGHT_OFFSET, Ordering::Release)?))
    }

    /// Finish what was cut off, and find what was in flight. `used_idx` is that of the used ring.
    pub(crate) fn recover(self, ring_size: u16, used_idx: u16) -> Result<Recovered, InflightError> {
        self.check_ring(RingFormat::Split, ring_size)?;
        let heads = match self.load16(VERSION_OFFSET)? {
            0 => {
                self.begin(used_idx)?;
                None
            }
            VERSION => Some(self.take_over(ring_size, used_idx)?),
            version => return Err(value("version", version)),
        };
        let (heads, counter) = match heads {
            None => (None, 0),
            // A front-end that puts the largest number there spoils its own order only.
            Some(pairs) => {
                let next = pairs.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
                (Some(pairs.into_iter().map(|(_, head)| head).collect()), next)
            }
        };
        let journal = Journal {
            staged: Vec::with_capacity(usize::from(ring_size)),
            area: self.area,
            counter,
            last_batch_head: 0,
        };
        Ok(Recovered { journal, heads })
    }

    /// Is it for a ring of this kind and size?
    fn check_ring(&self, format: RingFormat, ring_size: u16) -> Result<(), InflightError> {
        if format != self.format {
            return Err(InflightError::Format { region: self.format });
        }
        if ring_size > self.queue_size {
            return Err(InflightError::RingLarger {
                queue_size: self.queue_size,
                ring_size,
            });
        }
        Ok(())
    }

    /// Write a new log. Its version comes last, so that one that was cut off is begun again.
    fn begin(&self, used_idx: u16) -> Result<(), InflightError> {
        self.forget()?;
        self.area.store(0u64, 0, Ordering::Relaxed)?;
        self.store16(DESC_NUM_OFFSET, self.queue_size)?;
        self.store16(LAST_BATCH_HEAD_OFFSET, 0)?;
        self.store16(USED_IDX_OFFSET, used_idx)?;
        self.store16(VERSION_OFFSET, VERSION)
    }

    /// Heads in flight, each with its counter, oldest first.
    fn take_over(&self, ring_size: u16, used_idx: u16) -> Result<Vec<(u64, u16)>, InflightError> {
        let desc_num = self.load16(DESC_NUM_OFFSET)?;
        if desc_num != self.queue_size && desc_num != 0 {
            return Err(value("number of descriptors", desc_num));
        }
        let mut in_flight = vec![false; usize::from(self.queue_size)];
        for (head, in_flight) in (0..self.queue_size).zip(&mut in_flight) {
            *in_flight = match self.area.load::<u8>(entry(head) + INFLIGHT_OFFSET, Ordering::Acquire)? {
                0 => false,
                1 => true,
                other => return Err(value("in-flight flag", other.into())),
            };
        }
        // With nothing in flight the indices may differ for a good reason: the driver was reset in between.
        if in_flight.contains(&true) {
            self.finish_batch(&mut in_flight, used_idx)?;
        }
        self.store16(USED_IDX_OFFSET, used_idx)?;
        let mut heads = Vec::new();
        for head in (0..self.queue_size).filter(|&head| in_flight[usize::from(head)]) {
            if head >= ring_size && on(Check::InflightRegion) {
                return Err(value("head in flight", head));
            }
            let counter = self.area.load(entry(head) + COUNTER_OFFSET, Ordering::Relaxed)?;
            heads.push((counter, head));
        }
        heads.sort_unstable();
        Ok(heads)
    }

    /// Entries that were published, but are still marked as in flight: the last batch, if its end was not noted.
    fn finish_batch(&self, in_flight: &mut [bool], used_idx: u16) -> Result<(), InflightError> {
        let logged = self.load16(USED_IDX_OFFSET)?;
        let batch_len = used_idx.wrapping_sub(logged);
        if batch_len > self.queue_size && on(Check::InflightRegion) {
            return Err(InflightError::UsedIndex { logged, used_idx });
        }
        let mut head = self.load16(LAST_BATCH_HEAD_OFFSET)?;
        for _ in 0..batch_len {
            let flag = in_flight.get_mut(usize::from(head)).ok_or(value("last batch", head))?;
            *flag = false;
            self.area.store(0u8, entry(head) + INFLIGHT_OFFSET, Ordering::Release)?;
            head = self.load16(entry(head) + NEXT_OFFSET)?;
        }
        Ok(())
    }

    fn load16(&self, offset: usize) -> Result<u16, InflightError> {
        Ok(self.area.load(offset, Ordering::Acquire)?)
    }

    fn store16(&self, offset: usize, value: u16) -> Result<(), InflightError> {
        Ok(self.area.store(value, offset, Ordering::Release)?)
    }
}

fn value(field: &'static str, value: u16) -> InflightError {
    InflightError::Value {
        field,
        value: value.into(),
    }
}

/// Where a descriptor's entry is.
#[inline]
fn entry(head: u16) -> usize {
    HEADER_LEN + ENTRY_LEN * usize::from(head)
}

/// The log of a ring that runs. It is only written; what it needs it keeps.
#[derive(Debug)]
pub(crate) struct Journal {
    area: Area,
    /// What the next head that is taken gets.
    counter: u64,
    last_batch_head: u16,
    /// Heads of the batch that is being made.
    staged: Vec<u16>,
}

impl Journal {
    /// `head` was taken.
    #[inline]
    pub(crate) fn take(&mut self, head: u16) -> Result<(), VolatileMemoryError> {
        self.area
            .store(self.counter, entry(head) + COUNTER_OFFSET, Ordering::Relaxed)?;
        self.counter = self.counter.wrapping_add(1);
        // Release, here and below: each step is there only if those before it are.
        self.area.store(1u8, entry(head) + INFLIGHT_OFFSET, Ordering::Release)
    }

    /// `head` was put back as if it had not been taken.
    pub(crate) fn put_back(&mut self, head: u16) -> Result<(), VolatileMemoryError> {
        self.area.store(0u8, entry(head) + INFLIGHT_OFFSET, Ordering::Release)
    }

    /// `head` is part of the batch that is published next.
    #[inline]
    pub(crate) fn stage(&mut self, head: u16) -> Result<(), VolatileMemoryError> {
        self.area
            .store(self.last_batch_head, entry(head) + NEXT_OFFSET, Ordering::Relaxed)?;
        self.area.store(head, LAST_BATCH_HEAD_OFFSET, Ordering::Release)?;
        self.last_batch_head = head;
        self.staged.push(head);
        Ok(())
    }

    /// The batch was published: the used ring's index is `used_idx` now.
    #[inline]
    pub(crate) fn published(&mut self, used_idx: u16) -> Result<(), VolatileMemoryError> {
        for &head in &self.staged {
            self.area.store(0u8, entry(head) + INFLIGHT_OFFSET, Ordering::Release)?;
        }
        self.area.store(used_idx, USED_IDX_OFFSET, Ordering::Release)?;
        self.staged.clear();
        Ok(())
    }

    /// Did the host take its memory away?
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.area.poisoned()
    }
}

pub(crate) mod packed;
// Miri maps no files.
#[cfg(all(test, not(miri)))]
mod tests;
