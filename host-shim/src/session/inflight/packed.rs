//! Regions of packed rings.
//!
//! A packed ring has no index in memory, so that the region alone tells where the DPU was. For each queue there is a header
//! of 32 bytes (`features` u64, `version`, `desc_num`, `free_head`, `old_free_head`, `used_idx`, `old_used_idx`, u16 each,
//! `used_wrap_counter`, `old_used_wrap_counter`, u8 each) and 32 bytes per descriptor (`inflight` u8, padding, `next` u16,
//! and what the descriptor was).

use super::{Inflight, u16_at};

pub(super) const HEADER_LEN: usize = 32;
pub(super) const ENTRY_LEN: usize = 32;
/// Offsets in the header, in bytes.
const VERSION_OFFSET: usize = 8;
const FREE_HEAD_OFFSET: usize = 12;
const OLD_FREE_HEAD_OFFSET: usize = 14;
const USED_OFFSET: usize = 16;
const USED_WRAP_OFFSET: usize = 20;
/// Offset of `next` in an entry, in bytes.
const NEXT_OFFSET: usize = 2;
/// The wrap counter above a position (vhost-user, "Vring descriptor indices for packed virtqueues").
const WRAP: u16 = 1 << 15;
/// Flags of a descriptor (virtio 1.3 §2.8.1).
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Where a packed ring stands, as far as its region tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedState {
    /// Up to where all is used, with the wrap counter in the highest bit. None if no DPU has begun with the ring.
    pub position: Option<u16>,
    /// Requests in flight.
    pub in_flight: u16,
    /// Used descriptors were being written, and the ring is not whole before a DPU has finished that.
    pub unfinished: bool,
}

impl Inflight {
    /// Where a packed ring stands. `flags_at` reads the flags of the descriptor in a slot of the ring. None if the region does
    /// not track the queue, or one of both cannot be read or makes no sense.
    pub fn packed_state(&self, queue: u16, flags_at: impl Fn(u16) -> Option<u16>) -> Option<PackedState> {
        if !self.packed {
            return None;
        }
        let part = self.part(queue)?;
        match u16_at(&part, VERSION_OFFSET) {
            0 => {
                return Some(PackedState {
                    position: None,
                    in_flight: 0,
                    unfinished: false,
                });
            }
            1 => {}
            _ => return None,
        }
        let position = |n: usize| {
            let slot = u16_at(&part, USED_OFFSET + 2 * n);
            match part.get(USED_WRAP_OFFSET + n)? {
                _ if slot >= self.queue_size => None,
                0 => Some(slot),
                1 => Some(slot | WRAP),
                _ => None,
            }
        };
        let (used, old) = (position(0)?, position(1)?);
        // The first descriptor of a batch is written last: once it is not available any more, all are written.
        let available = if old & WRAP != 0 { AVAIL } else { USED };
        let moved = used != old;
        let shown = moved && flags_at(old & !WRAP)? & (AVAIL | USED) != available;
        let free_head = if shown { FREE_HEAD_OFFSET } else { OLD_FREE_HEAD_OFFSET };
        Some(PackedState {
            position: Some(if shown { used } else { old }),
            in_flight: self.marked(&part, u16_at(&part, free_head)),
            unfinished: moved && !shown,
        })
    }

    /// The driver of a ring begins anew, and what was kept of it is of the ring before: the next DPU begins the part anew.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget(&self, queue: u16) -> rustix::io::Result<()> {
        let len = super::queue_len(self.packed, self.queue_size);
        let begin = self.mmap_offset + u64::from(queue) * len;
        rustix::io::pwrite(&self.file, &[0; 2], begin + VERSION_OFFSET as u64).map(drop)
    }

    /// Entries that are marked as in flight and are not in the list of free ones.
    fn marked(&self, part: &[u8], free_head: u16) -> u16 {
        let at = |entry: u16| HEADER_LEN + usize::from(entry) * ENTRY_LEN;
        let mut marked: Vec<bool> = (0..self.queue_size)
            .map(|entry| part.get(at(entry)) == Some(&1))
            .collect();
        let mut entry = free_head;
        for _ in 0..self.queue_size {
            let Some(mark) = marked.get_mut(usize::from(entry)) else {
                break;
            };
            *mark = false;
            entry = u16_at(part, at(entry) + NEXT_OFFSET);
        }
        u16::try_from(marked.iter().filter(|mark| **mark).count()).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::pwrite;

    use super::*;

    const SIZE: u16 = 8;

    /// A region of two queues with what a DPU would have written for the second.
    fn region(heads: [u16; 2], positions: [u16; 2], wraps: [u8; 2], marked: &[u16]) -> Inflight {
        let region = Inflight::make(true, 2, SIZE, 4).unwrap();
        let begin = super::super::queue_len(true, SIZE);
        let mut part = vec![0; HEADER_LEN + ENTRY_LEN * usize::from(SIZE)];
        part[VERSION_OFFSET] = 1;
        for n in 0..2 {
            part[FREE_HEAD_OFFSET + 2 * n..][..2].copy_from_slice(&heads[n].to_le_bytes());
            part[USED_OFFSET + 2 * n..][..2].copy_from_slice(&positions[n].to_le_bytes());
            part[USED_WRAP_OFFSET + n] = wraps[n];
        }
        for entry in 0..SIZE {
            let at = HEADER_LEN + ENTRY_LEN * usize::from(entry);
            part[at] = u8::from(marked.contains(&entry));
            part[at + NEXT_OFFSET..][..2].copy_from_slice(&(entry + 1).to_le_bytes());
        }
        pwrite(&region.file, &part, begin).unwrap();
        region
    }

    #[test]
    fn a_region_is_as_long_as_its_queues_need() {
        // As DPDK has them: 29 bytes and 32 a descriptor, rounded up.
        for (size, len) in [(1, 64), (8, 320), (128, 4160), (1024, 32_832)] {
            assert_eq!(Inflight::make(true, 3, size, 4).unwrap().mmap_size, 3 * len);
        }
    }

    #[test]
    fn a_ring_stands_where_its_region_says() {
        let state = |region: &Inflight, flags| region.packed_state(1, |slot| (slot == 3).then_some(flags));
        let at = |position, in_flight, unfinished| {
            Some(PackedState {
                position: Some(position),
                in_flight,
                unfinished,
            })
        };
        // At rest, whatever is in the ring; what is marked in the free list is none.
        let rests = region([2, 2], [3, 3], [1, 1], &[0, 1, 5]);
        assert_eq!(state(&rests, 0), at(0x8003, 2, false));
        assert_eq!(rests.packed_state(1, |_| None), at(0x8003, 2, false));
        // Two entries were given back, and the device was killed before or after that was shown.
        let cut = region([0, 2], [5, 3], [1, 1], &[0, 1]);
        assert_eq!(state(&cut, AVAIL), at(0x8003, 2, true));
        assert_eq!(state(&cut, AVAIL | USED), at(0x8005, 0, false));
        // The driver has made it available again since.
        assert_eq!(state(&cut, USED), at(0x8005, 0, false));
        assert_eq!(cut.packed_state(1, |_| None), None, "the ring cannot be read");
        // In the second lap the flags are the other way round.
        let cut = region([0, 2], [1, 3], [1, 0], &[0, 1]);
        assert_eq!(state(&cut, USED), at(0x0003, 2, true));
        assert_eq!(state(&cut, 0), at(0x8001, 0, false));
        assert_eq!(state(&cut, AVAIL), at(0x8001, 0, false));
    }

    #[test]
    fn a_region_that_nobody_began_or_that_makes_no_sense_tells_nothing() {
        let fresh = Inflight::make(true, 2, SIZE, 4).unwrap();
        assert_eq!(fresh.packed_state(0, |_| None).map(|state| state.position), Some(None));
        assert_eq!(fresh.packed_state(2, |_| None), None);
        let nothing = |region: Inflight| region.packed_state(1, |_| Some(0));
        assert_eq!(nothing(region([0, 0], [SIZE, 3], [1, 1], &[])), None);
        assert_eq!(nothing(region([0, 0], [3, 3], [2, 1], &[])), None);
        let split = Inflight::make(false, 2, SIZE, 4).unwrap();
        assert_eq!(split.packed_state(0, |_| Some(0)), None);
        // A list of free entries that loops ends.
        let loops = region([0, 0], [3, 3], [1, 1], &[1]);
        let begin = super::super::queue_len(true, SIZE);
        pwrite(&loops.file, &0u16.to_le_bytes(), begin + 32 + 2).unwrap();
        assert_eq!(nothing(loops).map(|state| state.in_flight), Some(1));
    }
}
