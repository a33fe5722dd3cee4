//! The driver of a packed ring (virtio 1.3 §2.8).

use std::sync::atomic::{Ordering, fence};

use vm_memory::Bytes;

use super::Driver;
use crate::{
    descriptor::{DESC_LEN, Descriptor},
    lap::Laps,
    layout::RingFormat,
};

/// Where flags are in a descriptor (virtio 1.3 §2.8.13).
const FLAGS_OFFSET: usize = 14;

/// Where a ring begins, as [`crate::RingConfig::base`] has it: a packed one with both wrap counters at 1.
pub(super) fn base(features: u64) -> u32 {
    match RingFormat::of(features) {
        RingFormat::Split => 0,
        RingFormat::Packed => 0x8000_8000,
    }
}

/// What only the driver of a packed ring knows.
#[derive(Debug)]
pub(super) struct State {
    laps: Laps,
    /// The descriptors that each id had last.
    descriptors: Vec<Vec<Descriptor>>,
    /// Flags of first descriptors, which are written last.
    pending: Vec<(u16, u16)>,
}

impl State {
    pub(super) fn new(features: u64, size: u16) -> Option<Self> {
        (RingFormat::of(features) == RingFormat::Packed).then(|| Self {
            laps: Laps::new(size),
            descriptors: vec![Vec::new(); usize::from(size)],
            pending: Vec::new(),
        })
    }
}

impl Driver {
    fn state(&mut self) -> &mut State {
        self.packed.as_mut().expect("the ring is packed")
    }

    fn laps(&self) -> Laps {
        self.packed.as_ref().expect("the ring is packed").laps
    }

    /// Begin at a position, with all descriptors used in the lap before.
    pub(super) fn packed_start(&mut self, position: u16) {
        let laps = self.laps();
        let told = u32::from(laps.told(position));
        self.config.base = told | told << 16;
        for n in 0..self.config.size {
            let at = position.wrapping_add(n);
            self.store_flags(at, laps.used(at.wrapping_sub(self.config.size)));
        }
    }

    pub(super) fn packed_base(&self) -> u32 {
        let told = u32::from(self.laps().told(self.used_idx));
        told | told << 16
    }

    fn address(&self, position: u16) -> u64 {
        self.config.desc + DESC_LEN as u64 * u64::from(self.laps().slot(position))
    }

    /// Bytes of the ring, whatever the host has done to the memory.
    fn look_at<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.mem.slice(addr, N).expect("the ring is mapped").copy_to(&mut bytes);
        bytes
    }

    fn store_flags(&self, position: u16, flags: u16) {
        let bytes = self
            .mem
            .slice(self.address(position) + FLAGS_OFFSET as u64, 2)
            .expect("the ring is mapped");
        bytes.store(flags.to_le(), 0, Ordering::Release).expect("it is aligned");
    }

    fn flags_at(&self, position: u16) -> u16 {
        let bytes = self
            .mem
            .slice(self.address(position) + FLAGS_OFFSET as u64, 2)
            .expect("the ring is mapped");
        u16::from_le(bytes.load(0, Ordering::Acquire).expect("it is aligned"))
    }

    /// Put a chain into the next slots. All but the flags of the first is written; those wait for [`Driver::publish`].
    pub(super) fn put(&mut self, id: u16, descriptors: Vec<Descriptor>) {
        let laps = self.laps();
        for (n, descriptor) in (0..).zip(&descriptors) {
            let position = self.avail_idx.wrapping_add(n);
            let flags = descriptor.flags | laps.available(position);
            let bytes = Descriptor {
                flags,
                next: id,
                ..*descriptor
            }
            .to_packed_bytes();
            let to = self.mem.slice(self.address(position), FLAGS_OFFSET);
            // As the CPU does it, whatever the host has done to the memory.
            to.expect("the ring is mapped").copy_from(&bytes[..FLAGS_OFFSET]);
            match n {
                0 => self.state().pending.push((position, flags)),
                _ => self.store_flags(position, flags),
            }
        }
        let count = u16::try_from(descriptors.len()).expect("no more than the ring has");
        self.avail_idx = self.avail_idx.wrapping_add(count);
        if self.in_order() {
            self.offered.push_back(id);
        }
        if let Some(known) = self.state().descriptors.get_mut(usize::from(id)) {
            *known = descriptors;
        }
    }

    /// Put the chain that an id had last once more, or one of a byte.
    pub(super) fn put_again(&mut self, id: u16) {
        let known = self.state().descriptors.get(usize::from(id)).cloned();
        let descriptors = known.filter(|known| !known.is_empty()).unwrap_or_else(|| {
            vec![Descriptor {
                addr: self.buffer(0),
                len: 1,
                flags: 0,
                next: 0,
            }]
        });
        self.put(id, descriptors);
    }

    /// Make all chains available that were put: the first one last, so that none is seen before another.
    pub(super) fn put_flags(&mut self) {
        for (position, flags) in std::mem::take(&mut self.state().pending).into_iter().rev() {
            self.store_flags(position, flags);
        }
    }

    /// Give every descriptor an id that is none, and make one more available if there is room.
    pub(super) fn packed_break_rules(&mut self) {
        for slot in 0..self.config.size {
            self.write(self.address(slot) + 12, &u16::MAX.to_le_bytes());
        }
        if !self.free.is_empty() {
            self.put_again(u16::MAX);
            self.put_flags();
        }
    }

    pub(super) fn packed_needs_kick(&self, old: u16, new: u16) -> bool {
        let [p0, p1, f0, f1] = self.look_at(self.config.used);
        match u16::from_le_bytes([f0, f1]) {
            0 => old != new,
            2 if self.event_idx() => self.laps().passes(u16::from_le_bytes([p0, p1]), old, new),
            _ => false,
        }
    }

    /// Write the driver's event suppression area.
    pub fn set_driver_event(&self, position: u16, flags: u16) {
        let ([p0, p1], [f0, f1]) = (position.to_le_bytes(), flags.to_le_bytes());
        let area = self.mem.slice(self.config.avail, 4).expect("the ring is mapped");
        area.copy_from(&[p0, p1, f0, f1]);
        fence(Ordering::SeqCst);
    }

    pub(super) fn set_used_position(&self, position: u16) {
        self.set_driver_event(self.laps().told(position), 2);
    }

    /// How many descriptors the chain of an id has in the ring.
    fn count(&self, id: u16) -> u16 {
        let known = self
            .packed
            .as_ref()
            .and_then(|state| state.descriptors.get(usize::from(id)));
        known.map_or(1, |descriptors| u16::try_from(descriptors.len()).unwrap_or(1).max(1))
    }

    pub(super) fn packed_used(&mut self) -> Option<(u16, u32)> {
        let flags = self.flags_at(self.used_idx);
        if self.batch_last.is_none() && !self.laps().is_used(self.used_idx, flags) {
            return None;
        }
        let [l0, l1, l2, l3, i0, i1] = self.look_at(self.address(self.used_idx) + 8);
        let (id, len) = (u16::from_le_bytes([i0, i1]), u32::from_le_bytes([l0, l1, l2, l3]));
        let (id, len) = match (self.in_order(), self.batch_last) {
            (false, _) => (id, len),
            (true, None) => self.first_of_batch(id, len),
            (true, Some(last)) => self.first_of_batch(last, 0),
        };
        self.used_idx = self.used_idx.wrapping_add(self.count(id));
        let freed = self.chains.get_mut(usize::from(id)).map(std::mem::take);
        self.free.extend(freed.unwrap_or_default().into_iter().rev());
        Some((id, len))
    }

    /// The chain that is due, where a batch ends with `last` (virtio 1.3 §2.8.9).
    fn first_of_batch(&mut self, last: u16, len: u32) -> (u16, u32) {
        let Some(place) = self.offered.iter().position(|id| *id == last) else {
            return (last, len);
        };
        let id = self.offered.pop_front().unwrap_or(last);
        self.batch_last = (place > 0).then_some(last);
        (id, if place > 0 { 0 } else { len })
    }
}
