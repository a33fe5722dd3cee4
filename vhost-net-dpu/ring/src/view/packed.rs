//! The three parts of a packed ring.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use super::read_aligned_chunk;
use crate::{
    descriptor::{DESC_LEN, Descriptor},
    layout::EVENT_AREA_LEN,
    mapping::Area,
};

/// Where length, id and flags begin in a descriptor, and where the flags are (virtio 1.3 §2.8.13).
const TAIL_OFFSET: usize = 8;
const FLAGS_OFFSET: usize = 14;

/// What a driver or a device wants to be told (virtio 1.3 §2.8.14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventArea {
    /// A position.
    pub(crate) position: u16,
    /// `EVENT_FLAGS_*` in the lowest two bits.
    pub(crate) flags: u16,
}

/// Descriptor ring and event suppression areas (virtio 1.3 §2.8), found once. Slots are taken modulo the queue's size, so
/// that every access lies inside.
#[derive(Debug)]
pub(crate) struct PackedView {
    desc: NonNull<u8>,
    driver: NonNull<u8>,
    device: NonNull<u8>,
    /// The queue's size less 1.
    mask: u16,
    /// What keeps the memory mapped.
    _areas: [Area; 3],
}

// SAFETY: the memory is the areas', which may be sent, and is accessed only by volatile and atomic operations.
unsafe impl Send for PackedView {}
// SAFETY: as above.
unsafe impl Sync for PackedView {}

impl PackedView {
    /// Descriptor ring, the driver's area and the device's area of a queue of `size`, a power of two. `None` if one of
    /// them is too short or misaligned.
    pub(crate) fn new(size: u16, desc: Area, driver: Area, device: Area) -> Option<Self> {
        let fits = desc.len() >= DESC_LEN * usize::from(size)
            && driver.len() >= EVENT_AREA_LEN
            && device.len() >= EVENT_AREA_LEN;
        let aligned = desc.start().addr().get().is_multiple_of(DESC_LEN)
            && driver.start().addr().get().is_multiple_of(EVENT_AREA_LEN)
            && device.start().addr().get().is_multiple_of(EVENT_AREA_LEN);
        (size.is_power_of_two() && fits && aligned).then(|| Self {
            desc: desc.start(),
            driver: driver.start(),
            device: device.start(),
            mask: size - 1,
            _areas: [desc, driver, device],
        })
    }

    /// The descriptor of a position.
    #[inline]
    fn at(&self, position: u16) -> NonNull<u8> {
        let offset = DESC_LEN * usize::from(position & self.mask);
        // SAFETY: below the size, for which the ring was measured.
        unsafe { self.desc.add(offset) }
    }

    /// The flags of a descriptor. What is read later is what the driver wrote before them (virtio 1.3 §2.8.21.3.1).
    #[inline]
    pub(crate) fn flags(&self, position: u16) -> u16 {
        // SAFETY: inside the descriptor, which is aligned to 16, so that its flags are to 2.
        let flags = unsafe { AtomicU16::from_ptr(self.at(position).as_ptr().add(FLAGS_OFFSET).cast()) };
        u16::from_le(flags.load(Ordering::Acquire))
    }

    /// A descriptor, by one read.
    #[inline]
    pub(crate) fn descriptor(&self, position: u16) -> Descriptor {
        // SAFETY: the 16 bytes are there, and the ring's start was found aligned.
        Descriptor::from_packed(unsafe { read_aligned_chunk(self.at(position).as_ptr()) })
    }

    /// Write a used descriptor, after all that was written before: length, id and flags in one store. Its address stays.
    #[inline]
    pub(crate) fn set_used(&self, position: u16, tail: UsedTail) {
        #[cfg(test)]
        if !crate::cut::store_happens() {
            return;
        }
        // SAFETY: inside the descriptor, and aligned to 8.
        let to = unsafe { AtomicU64::from_ptr(self.at(position).as_ptr().add(TAIL_OFFSET).cast()) };
        to.store(tail.to_raw(), Ordering::Release);
    }

    /// Write the flags of a descriptor, after all that was written before.
    pub(crate) fn set_flags(&self, position: u16, flags: u16) {
        #[cfg(test)]
        if !crate::cut::store_happens() {
            return;
        }
        // SAFETY: as for `flags`.
        let to = unsafe { AtomicU16::from_ptr(self.at(position).as_ptr().add(FLAGS_OFFSET).cast()) };
        to.store(flags.to_le(), Ordering::Release);
    }

    /// What the driver wants to be told, by one read.
    #[inline]
    pub(crate) fn driver_event(&self) -> EventArea {
        // SAFETY: the area has 4 bytes and is aligned to 4.
        let area = unsafe { AtomicU32::from_ptr(self.driver.as_ptr().cast()) };
        let [p0, p1, f0, f1] = area.load(Ordering::Relaxed).to_ne_bytes();
        EventArea {
            position: u16::from_le_bytes([p0, p1]),
            flags: u16::from_le_bytes([f0, f1]),
        }
    }

    /// Write what the device wants to be told, by one store.
    pub(crate) fn set_device_event(&self, EventArea { position, flags }: EventArea) {
        #[cfg(test)]
        if !crate::cut::store_happens() {
            return;
        }
        let ([p0, p1], [f0, f1]) = (position.to_le_bytes(), flags.to_le_bytes());
        // SAFETY: as for `driver_event`.
        let area = unsafe { AtomicU32::from_ptr(self.device.as_ptr().cast()) };
        area.store(u32::from_ne_bytes([p0, p1, f0, f1]), Ordering::Relaxed);
    }
}

/// What the device writes into a descriptor (virtio 1.3 §2.8.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UsedTail {
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
}

impl UsedTail {
    /// Its 8 bytes in memory, as a number of the host.
    #[inline]
    fn to_raw(self) -> u64 {
        let ([l0, l1, l2, l3], [i0, i1], [f0, f1]) =
            (self.len.to_le_bytes(), self.id.to_le_bytes(), self.flags.to_le_bytes());
        u64::from_ne_bytes([l0, l1, l2, l3, i0, i1, f0, f1])
    }
}
