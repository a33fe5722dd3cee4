//! Arithmetic of packed rings (virtio 1.3 §2.8): positions, wrap counters, and which event one passes.
//!
//! A position is a running number of descriptors, of 16 bits. Its remainder by the size is the slot in the ring; whether
//! the lap is odd gives the wrap counter, which is 1 in the first lap (virtio 1.3 §2.8.1). As sizes are powers of two of at
//! most 2^15, two laps divide 2^16.

/// A descriptor's flag for the wrap counter of the driver (virtio 1.3 §2.8.1).
pub(crate) const AVAIL: u16 = 1 << 7;
/// A descriptor's flag for the wrap counter of the device (virtio 1.3 §2.8.1).
pub(crate) const USED: u16 = 1 << 15;
/// Where the wrap counter is in a position as it is told: above the slot (virtio 1.3 §2.8.14).
const WRAP: u16 = 1 << 15;

/// The size of a ring, and what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Laps {
    size: u16,
}

impl Laps {
    /// Of a ring of `size` descriptors, a power of two.
    pub(crate) fn new(size: u16) -> Self {
        Self { size }
    }

    /// Where in the ring a position is.
    #[inline]
    pub(crate) fn slot(self, position: u16) -> u16 {
        position & (self.size - 1)
    }

    /// The wrap counter at a position.
    #[inline]
    fn wrap(self, position: u16) -> bool {
        position & self.size == 0
    }

    /// What tells that the driver has made the descriptor at a position available: AVAIL is the wrap counter, and USED
    /// is not.
    #[inline]
    pub(crate) fn available(self, position: u16) -> u16 {
        if self.wrap(position) { AVAIL } else { USED }
    }

    /// What tells that the device has used it: both are the wrap counter.
    #[inline]
    pub(crate) fn used(self, position: u16) -> u16 {
        if self.wrap(position) { AVAIL | USED } else { 0 }
    }

    /// Has the driver made the descriptor of these flags available at a position?
    #[inline]
    pub(crate) fn is_available(self, position: u16, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.available(position)
    }

    /// Has the device used it?
    pub(crate) fn is_used(self, position: u16, flags: u16) -> bool {
        flags & (AVAIL | USED) == self.used(position)
    }

    /// A position as it is told: the slot, and the wrap counter above it (virtio 1.3 §2.8.14; vhost-user, "Vring base").
    #[inline]
    pub(crate) fn told(self, position: u16) -> u16 {
        self.slot(position) | if self.wrap(position) { WRAP } else { 0 }
    }

    /// The position that is told like this. `None` if the ring has no such slot.
    pub(crate) fn position(self, told: u16) -> Option<u16> {
        let slot = told & !WRAP;
        let lap = if told & WRAP != 0 { 0 } else { self.size };
        (slot < self.size).then_some(slot | lap)
    }

    /// How far it is from one position to a later one, less than two laps.
    #[inline]
    pub(crate) fn distance(self, from: u16, to: u16) -> u16 {
        // Two laps of the largest ring are all of 16 bits.
        to.wrapping_sub(from) & self.size.wrapping_mul(2).wrapping_sub(1)
    }

    /// The same position in the first two laps: how it is told and distances stay what they are.
    pub(crate) fn canonical(self, position: u16) -> u16 {
        position & self.size.wrapping_mul(2).wrapping_sub(1)
    }

    /// Is the descriptor of a told event among those from `old` on to before `new`? (virtio 1.3 §2.8.14, as
    /// vring_need_event of §2.7.10)
    #[inline]
    pub(crate) fn passes(self, event: u16, old: u16, new: u16) -> bool {
        match self.position(event) {
            Some(event) => self.distance(old, event) < self.distance(old, new),
            // It makes no sense, so that nothing says that no call is wanted.
            None => true,
        }
    }
}

// Exhaustive, and of numbers only: miri would take hours, and find nothing.
#[cfg(all(test, not(miri)))]
mod tests;
