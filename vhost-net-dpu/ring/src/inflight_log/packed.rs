//! The same for packed rings, whose layout has more: a packed ring in memory tells neither where the device is nor,
//! once something was used out of order, what is still in flight (vhost-user, "Inflight I/O tracking",
//! QueueRegionPacked).
//!
//! Two ways to keep it, of one layout:
//!
//! * By entries, as the specification says: each descriptor that is taken is copied to the region and marked, so that it
//!   can be done again by a ring whose own memory has been written over.
//! * By position, for a device that uses in the order in which it takes and loses nothing by taking again: nothing is
//!   marked. Before used descriptors are written, the region has what is written, by their place in the ring; what was
//!   cut off is then written again.
//!
//! The four numbers that tell the position lie in one aligned word and are written as one, so that no cut falls between
//! them.

use std::sync::atomic::Ordering;

use outboard_controls::{Check, on};
use vm_memory::VolatileMemoryError;

use super::{InflightError, InflightLog, VERSION, VERSION_OFFSET, value};
use crate::{
    descriptor::Descriptor,
    lap::Laps,
    layout::RingFormat,
    mapping::Area,
    view::{PackedView, UsedTail},
};

/// Offsets of the fields of a queue's part, in bytes. Features, version and number are where split rings have them.
const DESC_NUM_OFFSET: usize = 10;
const FREE_HEAD_OFFSET: usize = 12;
const OLD_FREE_HEAD_OFFSET: usize = 14;
/// used_idx, old_used_idx, used_wrap_counter, old_used_wrap_counter, and two bytes of padding.
const POSITION_OFFSET: usize = 16;
pub(super) const HEADER_LEN: usize = 32;
/// Offsets of the fields of a descriptor's entry, in bytes. In flight, padding, next, last and number are the first 8.
const INFLIGHT_OFFSET: usize = 0;
const NEXT_OFFSET: usize = 2;
const LAST_OFFSET: usize = 4;
const NUM_OFFSET: usize = 6;
const COUNTER_OFFSET: usize = 8;
/// Id, flags and length.
const TAIL_OFFSET: usize = 16;
const ADDR_OFFSET: usize = 24;
pub(super) const ENTRY_LEN: usize = 32;

/// Where a descriptor's entry is.
#[inline]
fn entry(index: u16) -> usize {
    HEADER_LEN + ENTRY_LEN * usize::from(index)
}

/// What was used and is to be shown to the driver.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Used {
    pub(crate) id: u16,
    /// Descriptors it has in the ring.
    pub(crate) count: u16,
    /// Bytes written.
    pub(crate) len: u32,
    /// Its first entry in the log, if that has entries.
    pub(crate) entry: u16,
}

/// What was in flight when a ring started.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Its first entry in the log.
    pub(crate) entry: u16,
    /// Its descriptors, as they were in the ring.
    pub(crate) descriptors: Vec<Descriptor>,
}

/// What a log says when a packed ring starts.
pub(crate) struct Recovered {
    pub(crate) journal: Journal,
    /// Up to where everything was used.
    pub(crate) next_used: u16,
    /// What was in flight, in the order in which it was taken.
    pub(crate) replays: Vec<Replay>,
}

/// Both positions as the region has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Positions {
    used: u16,
    /// Before the batch that may have been cut off.
    old: u16,
}

impl Positions {
    fn to_raw(self, laps: Laps) -> u64 {
        let parts = |position| (laps.told(position) & 0x7fff, u8::from(laps.told(position) >> 15 != 0));
        let ((used, used_wrap), (old, old_wrap)) = (parts(self.used), parts(self.old));
        let ([u0, u1], [o0, o1]) = (used.to_ne_bytes(), old.to_ne_bytes());
        u64::from_ne_bytes([u0, u1, o0, o1, used_wrap, old_wrap, 0, 0])
    }

    fn from_raw(raw: u64, laps: Laps) -> Result<Self, InflightError> {
        let [u0, u1, o0, o1, used_wrap, old_wrap, _, _] = raw.to_ne_bytes();
        let position = |field, slot: u16, wrap: u8| {
            let told = (wrap <= 1).then(|| slot | u16::from(wrap) << 15);
            let known = told.filter(|_| slot >> 15 == 0).and_then(|told| laps.position(told));
            known.ok_or(InflightError::Value {
                field,
                value: u64::from(slot) | u64::from(wrap) << 16,
            })
        };
        Ok(Self {
            used: position("used index", u16::from_ne_bytes([u0, u1]), used_wrap)?,
            old: position("old used index", u16::from_ne_bytes([o0, o1]), old_wrap)?,
        })
    }
}

impl InflightLog {
    /// Finish or undo what was cut off, and find what was in flight. Where the log says that the ring is, it goes on; a log
    /// that is new begins at `base`. With `by_entries`, entries are kept.
    pub(crate) fn recover_packed(
        self,
        laps: Laps,
        (ring_size, base): (u16, u16),
        ring: &PackedView,
        by_entries: bool,
    ) -> Result<Recovered, InflightError> {
        self.check_ring(RingFormat::Packed, ring_size)?;
        match self.load16(VERSION_OFFSET)? {
            0 => self.begin_packed(laps, base)?,
            VERSION => {}
            version => return Err(value("version", version)),
        }
        let desc_num = self.load16(DESC_NUM_OFFSET)?;
        if desc_num != self.queue_size {
            return Err(value("number of descriptors", desc_num));
        }
        let found = Positions::from_raw(self.area.load(POSITION_OFFSET, Ordering::Acquire)?, laps)?;
        // Each batch moves the position, and by no more than the ring has.
        let moved = laps.distance(found.old, found.used);
        if moved > ring_size && on(Check::InflightRegion) {
            return Err(value("used index", laps.told(found.used)));
        }
        // The first descriptor of a batch is written last, so that it tells of all. The driver may have made it available
        // again since.
        let shown = moved == 0 || !laps.is_available(found.old, ring.flags(found.old));
        if by_entries {
            self.recover_entries(laps, ring_size, ring, (found, shown))
        } else {
            self.recover_position(laps, ring_size, ring, (found, shown))
        }
    }

    /// Write a new log. Its version comes last, so that one that was cut off is begun again.
    fn begin_packed(&self, laps: Laps, base: u16) -> Result<(), InflightError> {
        for index in 0..self.queue_size {
            self.area.store(0u64, entry(index), Ordering::Relaxed)?;
            // The last one has none.
            self.area
                .store(index + 1, entry(index) + NEXT_OFFSET, Ordering::Relaxed)?;
        }
        self.area.store(0u64, 0, Ordering::Relaxed)?;
        self.store16(DESC_NUM_OFFSET, self.queue_size)?;
        self.store_heads(0)?;
        self.store_positions(laps, Positions { used: base, old: base })?;
        self.store16(VERSION_OFFSET, VERSION)
    }

    fn store_heads(&self, head: u16) -> Result<(), InflightError> {
        Ok(self.area.store(heads(head), FREE_HEAD_OFFSET, Ordering::Release)?)
    }

    fn store_positions(&self, laps: Laps, positions: Positions) -> Result<(), InflightError> {
        let raw = positions.to_raw(laps);
        Ok(self.area.store(raw, POSITION_OFFSET, Ordering::Release)?)
    }

    /// Only the position is kept: a batch that was cut off is written again.
    fn recover_position(
        self,
        laps: Laps,
        ring_size: u16,
        ring: &PackedView,
        (found, shown): (Positions, bool),
    ) -> Result<Recovered, InflightError> {
        if !shown {
            self.write_again(laps, ring_size, ring, found)?;
        }
        let next_used = found.used;
        let positions = Positions {
            used: next_used,
            old: next_used,
        };
        self.store_positions(laps, positions)?;
        Ok(Recovered {
            journal: Journal {
                area: self.area,
                laps,
                entries: None,
            },
            next_used,
            replays: Vec::new(),
        })
    }

    /// Write the used descriptors of a batch, the first of them last.
    fn write_again(
        &self,
        laps: Laps,
        ring_size: u16,
        ring: &PackedView,
        found: Positions,
    ) -> Result<(), InflightError> {
        let mut batch = Vec::new();
        let mut position = found.old;
        while position != found.used {
            let at = entry(laps.slot(position));
            let count: u16 = self.area.load(at + NUM_OFFSET, Ordering::Acquire)?;
            let left = laps.distance(position, found.used);
            if (count == 0 || count > left) && on(Check::InflightRegion) {
                return Err(value("number of descriptors of a batch", count));
            }
            let tail = tail_from_raw(self.area.load(at + TAIL_OFFSET, Ordering::Acquire)?);
            if (tail.id >= ring_size || !laps.is_used(position, tail.flags)) && on(Check::InflightRegion) {
                return Err(value("used descriptor", tail.id));
            }
            batch.push((position, tail));
            position = laps.canonical(position.wrapping_add(count.clamp(1, left)));
        }
        for (position, tail) in batch.into_iter().rev() {
            ring.set_used(position, tail);
        }
        Ok(())
    }

    fn recover_entries(
        self,
        laps: Laps,
        ring_size: u16,
        ring: &PackedView,
        (found, shown): (Positions, bool),
    ) -> Result<Recovered, InflightError> {
        let head = self.load16(if shown { FREE_HEAD_OFFSET } else { OLD_FREE_HEAD_OFFSET })?;
        // A chain that was being taken is taken anew: it is not in flight before both heads have moved.
        let head = match found.used == found.old {
            true => self.load16(OLD_FREE_HEAD_OFFSET)?,
            false => head,
        };
        let mut free = self.free_list(head)?;
        let counted = self.in_flight(ring_size, &mut free)?;
        let next_used = if shown { found.used } else { found.old };
        if !shown {
            // What was written behind the first of the batch would be taken for used once the driver gets there.
            let mut position = found.old;
            while position != found.used {
                ring.set_flags(position, laps.available(position));
                position = laps.canonical(position.wrapping_add(1));
            }
        }
        self.store_heads(head)?;
        let positions = Positions {
            used: next_used,
            old: next_used,
        };
        self.store_positions(laps, positions)?;
        let counter = counted.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let last = self.lasts(&counted);
        Ok(Recovered {
            journal: Journal {
                area: self.area,
                laps,
                entries: Some(Entries {
                    free_head: head,
                    next: free.next,
                    last,
                    counter,
                }),
            },
            next_used,
            replays: counted.into_iter().map(|(_, (replay, _))| replay).collect(),
        })
    }

    /// The last entry of each chain in flight, by its first.
    fn lasts(&self, counted: &[Counted]) -> Box<[u16]> {
        let mut lasts = vec![0; usize::from(self.queue_size)];
        for (_, (replay, last)) in counted {
            if let Some(place) = lasts.get_mut(usize::from(replay.entry)) {
                *place = *last;
            }
        }
        lasts.into()
    }

    /// Follow the list of free entries, which are not in flight whatever they say.
    fn free_list(&self, head: u16) -> Result<FreeList, InflightError> {
        let mut list = FreeList {
            next: vec![self.queue_size; usize::from(self.queue_size)].into(),
            taken: vec![false; usize::from(self.queue_size)],
            count: 0,
        };
        let mut index = head;
        while index != self.queue_size {
            let taken = list
                .taken
                .get_mut(usize::from(index))
                .ok_or(value("free entry", index))?;
            if std::mem::replace(taken, true) {
                return Err(value("free entry", index));
            }
            let next = self.load16(entry(index) + NEXT_OFFSET)?;
            list.next[usize::from(index)] = next;
            list.count += 1;
            if self
                .area
                .load::<u8>(entry(index) + INFLIGHT_OFFSET, Ordering::Acquire)?
                != 0
            {
                self.area
                    .store(0u8, entry(index) + INFLIGHT_OFFSET, Ordering::Release)?;
            }
            index = next;
        }
        Ok(list)
    }

    /// The chains that are in flight, oldest first.
    fn in_flight(&self, ring_size: u16, list: &mut FreeList) -> Result<Vec<Counted>, InflightError> {
        let mut counted = Vec::new();
        let mut total = 0u16;
        for head in 0..self.queue_size {
            let flag: u8 = self.area.load(entry(head) + INFLIGHT_OFFSET, Ordering::Acquire)?;
            match flag {
                _ if list.taken[usize::from(head)] => continue,
                0 => continue,
                1 => {}
                other => return Err(value("in-flight flag", other.into())),
            }
            let num = self.load16(entry(head) + NUM_OFFSET)?;
            if num == 0 || num > ring_size - total {
                return Err(value("number of descriptors in flight", num));
            }
            total += num;
            let last = self.load16(entry(head) + LAST_OFFSET)?;
            let descriptors = self.chain(head, (last, num), list)?;
            let counter: u64 = self.area.load(entry(head) + COUNTER_OFFSET, Ordering::Relaxed)?;
            let replay = Replay {
                entry: head,
                descriptors,
            };
            counted.push((counter, (replay, last)));
        }
        if list.count + total != self.queue_size {
            return Err(value(
                "number of entries that are free or in flight",
                list.count + total,
            ));
        }
        counted.sort_unstable_by_key(|(counter, (replay, _))| (*counter, replay.entry));
        Ok(counted)
    }

    /// The descriptors of one chain, each read once.
    fn chain(&self, head: u16, (last, num): (u16, u16), list: &mut FreeList) -> Result<Vec<Descriptor>, InflightError> {
        let mut descriptors = Vec::with_capacity(num.into());
        let mut index = head;
        for n in 1..=num {
            let taken = list
                .taken
                .get_mut(usize::from(index))
                .ok_or(value("next entry", index))?;
            // The first one is looked at by who goes through all of them.
            if std::mem::replace(taken, true) {
                return Err(value("next entry", index));
            }
            let tail = tail_from_raw(self.area.load(entry(index) + TAIL_OFFSET, Ordering::Relaxed)?);
            descriptors.push(Descriptor {
                addr: self.area.load(entry(index) + ADDR_OFFSET, Ordering::Relaxed)?,
                len: tail.len,
                flags: tail.flags,
                next: tail.id,
            });
            if n == num {
                break;
            }
            let next = self.load16(entry(index) + NEXT_OFFSET)?;
            list.next[usize::from(index)] = next;
            index = next;
        }
        if index != last {
            return Err(value("last entry", last));
        }
        Ok(descriptors)
    }
}

/// A chain in flight with its last entry, and when it was taken.
type Counted = (u64, (Replay, u16));

/// Which entry follows which, and which were found.
struct FreeList {
    next: Box<[u16]>,
    taken: Vec<bool>,
    /// Free ones.
    count: u16,
}

/// Both heads of the free list as one number.
#[inline]
fn heads(head: u16) -> u32 {
    let [a, b] = head.to_ne_bytes();
    u32::from_ne_bytes([a, b, a, b])
}

#[inline]
fn tail_to_raw(tail: UsedTail) -> u64 {
    let ([i0, i1], [f0, f1], [l0, l1, l2, l3]) =
        (tail.id.to_ne_bytes(), tail.flags.to_ne_bytes(), tail.len.to_ne_bytes());
    u64::from_ne_bytes([i0, i1, f0, f1, l0, l1, l2, l3])
}

fn tail_from_raw(raw: u64) -> UsedTail {
    let [i0, i1, f0, f1, l0, l1, l2, l3] = raw.to_ne_bytes();
    UsedTail {
        id: u16::from_ne_bytes([i0, i1]),
        flags: u16::from_ne_bytes([f0, f1]),
        len: u32::from_ne_bytes([l0, l1, l2, l3]),
    }
}

/// The log of a packed ring that runs. It is only written; what it needs it keeps.
#[derive(Debug)]
pub(crate) struct Journal {
    area: Area,
    laps: Laps,
    entries: Option<Entries>,
}

/// What is known of the entries.
#[derive(Debug)]
struct Entries {
    free_head: u16,
    /// The one after each.
    next: Box<[u16]>,
    /// The last one of the chain that begins at each.
    last: Box<[u16]>,
    /// What the next chain that is taken gets.
    counter: u64,
}

impl Journal {
    /// Are entries kept, and not only the position?
    #[inline]
    pub(crate) fn has_entries(&self) -> bool {
        self.entries.is_some()
    }

    /// A chain of these descriptors was taken: its first entry.
    pub(crate) fn take(&mut self, descriptors: &[Descriptor]) -> Result<u16, VolatileMemoryError> {
        let Some(entries) = &mut self.entries else { return Ok(0) };
        let first = entries.free_head;
        let (mut last, mut free_head) = (first, first);
        let mut num = 0u16;
        for descriptor in descriptors {
            last = free_head;
            let tail = UsedTail {
                len: descriptor.len,
                id: descriptor.next,
                flags: descriptor.flags,
            };
            self.area
                .store(tail_to_raw(tail), entry(last) + TAIL_OFFSET, Ordering::Relaxed)?;
            self.area
                .store(descriptor.addr, entry(last) + ADDR_OFFSET, Ordering::Relaxed)?;
            // No more than the ring has were ever taken, and so many entries there are.
            free_head = entries.next.get(usize::from(last)).copied().unwrap_or(first);
            num += 1;
        }
        self.area
            .store(entries.counter, entry(first) + COUNTER_OFFSET, Ordering::Relaxed)?;
        entries.counter = entries.counter.wrapping_add(1);
        self.area.store(last, entry(first) + LAST_OFFSET, Ordering::Relaxed)?;
        self.area.store(num, entry(first) + NUM_OFFSET, Ordering::Relaxed)?;
        // Release, here and below: each step is there only if those before it are.
        self.area
            .store(1u8, entry(first) + INFLIGHT_OFFSET, Ordering::Release)?;
        self.area.store(heads(free_head), FREE_HEAD_OFFSET, Ordering::Release)?;
        entries.free_head = free_head;
        if let Some(place) = entries.last.get_mut(usize::from(first)) {
            *place = last;
        }
        Ok(first)
    }

    /// A chain was put back as if it had not been taken.
    pub(crate) fn put_back(&mut self, first: u16) -> Result<(), VolatileMemoryError> {
        let Some(entries) = &mut self.entries else {
            return Ok(());
        };
        entries.free(&self.area, first)?;
        self.area.store(heads(first), FREE_HEAD_OFFSET, Ordering::Release)?;
        self.area.store(0u8, entry(first) + INFLIGHT_OFFSET, Ordering::Release)
    }

    /// A batch is about to be written to the ring, from one position to another.
    pub(crate) fn begin(&mut self, batch: &[Used], old: u16, used: u16) -> Result<(), VolatileMemoryError> {
        if let Some(entries) = &mut self.entries {
            for done in batch {
                entries.free(&self.area, done.entry)?;
            }
            self.area
                .store(entries.free_head, FREE_HEAD_OFFSET, Ordering::Release)?;
        } else {
            let mut position = old;
            for done in batch {
                let at = entry(self.laps.slot(position));
                let tail = done.tail(self.laps, position);
                self.area
                    .store(tail_to_raw(tail), at + TAIL_OFFSET, Ordering::Relaxed)?;
                self.area.store(done.count, at + NUM_OFFSET, Ordering::Relaxed)?;
                position = position.wrapping_add(done.count);
            }
        }
        self.store_positions(Positions { used, old })
    }

    /// The batch was written.
    pub(crate) fn end(&mut self, batch: &[Used], used: u16) -> Result<(), VolatileMemoryError> {
        if let Some(entries) = &self.entries {
            for done in batch {
                self.area
                    .store(0u8, entry(done.entry) + INFLIGHT_OFFSET, Ordering::Release)?;
            }
            self.area
                .store(entries.free_head, OLD_FREE_HEAD_OFFSET, Ordering::Release)?;
        }
        self.store_positions(Positions { used, old: used })
    }

    fn store_positions(&self, positions: Positions) -> Result<(), VolatileMemoryError> {
        let raw = positions.to_raw(self.laps);
        self.area.store(raw, POSITION_OFFSET, Ordering::Release)
    }

    /// Did the host take its memory away?
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.area.poisoned()
    }
}

impl Entries {
    /// Put a chain's entries before those that are free.
    fn free(&mut self, area: &Area, first: u16) -> Result<(), VolatileMemoryError> {
        let last = self.last.get(usize::from(first)).copied().unwrap_or(first);
        area.store(self.free_head, entry(last) + NEXT_OFFSET, Ordering::Relaxed)?;
        if let Some(next) = self.next.get_mut(usize::from(last)) {
            *next = self.free_head;
        }
        self.free_head = first;
        Ok(())
    }
}

impl Used {
    /// What is written at a position. WRITE says that the length means something (virtio 1.3 §2.8.13).
    #[inline]
    pub(crate) fn tail(&self, laps: Laps, position: u16) -> UsedTail {
        let write = if self.len > 0 { crate::DESC_F_WRITE } else { 0 };
        UsedTail {
            len: self.len,
            id: self.id,
            flags: laps.used(position) | write,
        }
    }
}

// Miri maps no files.
#[cfg(all(test, not(miri)))]
mod tests;
