//! A ring of either kind, as devices see it.

use std::sync::Arc;

use crate::{
    chain::Chain,
    error::RingError,
    inflight_log::InflightLog,
    layout::{RingConfig, RingFormat},
    log::RingLog,
    memory::GuestMemory,
    packed::PackedRing,
    split::SplitRing,
    view::GuestBytes,
};

/// The device's side of one virtqueue, of the kind that was negotiated. What each method does is said at [`SplitRing`].
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "a queue has one, and another indirection would cost each access"
)]
pub enum Ring {
    /// virtio 1.3 §2.7.
    Split(SplitRing),
    /// virtio 1.3 §2.8.
    Packed(PackedRing),
}

impl From<SplitRing> for Ring {
    fn from(ring: SplitRing) -> Self {
        Self::Split(ring)
    }
}

impl From<PackedRing> for Ring {
    fn from(ring: PackedRing) -> Self {
        Self::Packed(ring)
    }
}

/// The same of either kind.
macro_rules! either {
    ($ring:expr, $inner:ident => $does:expr) => {
        match $ring {
            Ring::Split($inner) => $does,
            Ring::Packed($inner) => $does,
        }
    };
}

impl Ring {
    /// A ring at rest, of the kind that the features say.
    ///
    /// # Errors
    /// [`RingError::Config`] if its parts are misaligned, not in memory, or overlap, or if it cannot go on there.
    pub fn new(config: RingConfig, mem: Arc<GuestMemory>) -> Result<Self, RingError> {
        match RingFormat::of(config.features) {
            RingFormat::Split => SplitRing::new(config, mem).map(Self::Split),
            RingFormat::Packed => PackedRing::new(config, mem).map(Self::Packed),
        }
    }

    /// The same with a log of what is in flight, for a device that finishes in any order.
    ///
    /// # Errors
    /// As for [`Ring::new`], and if the log cannot be that of this ring.
    pub fn with_inflight(config: RingConfig, mem: Arc<GuestMemory>, log: InflightLog) -> Result<Self, RingError> {
        match RingFormat::of(config.features) {
            RingFormat::Split => SplitRing::with_inflight(config, mem, log).map(Self::Split),
            RingFormat::Packed => PackedRing::with_inflight(config, mem, log).map(Self::Packed),
        }
    }

    /// The same for a device that finishes in the order in which it takes, and loses nothing by taking again. A split
    /// ring needs no log for that: its position is in the guest's memory.
    ///
    /// # Errors
    /// As for [`Ring::with_inflight`].
    pub fn with_position(config: RingConfig, mem: Arc<GuestMemory>, log: InflightLog) -> Result<Self, RingError> {
        match RingFormat::of(config.features) {
            RingFormat::Split => SplitRing::new(config, mem).map(Self::Split),
            RingFormat::Packed => PackedRing::with_position(config, mem, log).map(Self::Packed),
        }
    }

    /// See [`SplitRing::resume_at_used`].
    pub fn resume_at_used(&mut self) {
        either!(self, ring => ring.resume_at_used());
    }

    /// See [`SplitRing::set_log`].
    pub fn set_log(&mut self, log: Option<RingLog>) {
        either!(self, ring => ring.set_log(log));
    }

    /// The memory its chains are in.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        either!(self, ring => ring.memory())
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        either!(self, ring => ring.size())
    }

    /// See [`SplitRing::pop`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        either!(self, ring => ring.pop(chain))
    }

    /// See [`SplitRing::pop_burst`].
    #[inline]
    pub fn pop_burst(&mut self, chains: &mut [Chain]) -> (usize, Option<RingError>) {
        either!(self, ring => ring.pop_burst(chains))
    }

    /// Take the next chain, have `write` fill its first `len` bytes, and stage it as used: all at once, for the plainest
    /// of cases. False if this is not such a case, or `write` says that it did not write all: then nothing was taken, and
    /// what there is to say against the chain is said where it is popped.
    ///
    /// The case is: one buffer with so much room, no older chain in flight, nothing logged, and no memory taken away.
    // `write` stands once between the two, so that the compiler makes one of it with what comes before and after.
    #[inline]
    pub fn fill_next(&mut self, len: usize, write: impl FnOnce(GuestBytes<'_>) -> bool) -> bool {
        let (Some(bytes), Ok(used_len)) = (either!(self, ring => ring.next_room(len)), u32::try_from(len)) else {
            return false;
        };
        write(bytes) && either!(self, ring => ring.take_filled(used_len))
    }

    /// See [`SplitRing::unpop`].
    pub fn unpop(&mut self, n: u16) {
        either!(self, ring => ring.unpop(n));
    }

    /// See [`SplitRing::push_used`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn push_used(&mut self, chain: &Chain, len: u32) -> Result<(), RingError> {
        either!(self, ring => ring.push_used(chain, len))
    }

    /// See [`SplitRing::push_used_dirtying`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn push_used_dirtying(&mut self, chain: &Chain, len: u32, dirtied_len: u64) -> Result<(), RingError> {
        either!(self, ring => ring.push_used_dirtying(chain, len, dirtied_len))
    }

    /// See [`SplitRing::push_used_burst`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn push_used_burst(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        either!(self, ring => ring.push_used_burst(chains))
    }

    /// See [`SplitRing::publish`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        either!(self, ring => ring.publish())
    }

    /// See [`SplitRing::enable_kicks`].
    ///
    /// # Errors
    /// As there.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        either!(self, ring => ring.enable_kicks())
    }

    /// See [`SplitRing::disable_kicks`].
    pub fn disable_kicks(&mut self) {
        either!(self, ring => ring.disable_kicks());
    }

    /// Where another ring over the same memory goes on, once nothing is in flight or to be replayed, as
    /// [`RingConfig::base`] has it.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.next_avail().into(),
            Self::Packed(ring) => ring.base(),
        }
    }

    /// See [`SplitRing::to_replay`].
    pub fn to_replay(&self) -> u16 {
        either!(self, ring => ring.to_replay())
    }

    /// Chains popped and not yet pushed as used.
    pub fn in_flight(&self) -> u16 {
        either!(self, ring => ring.in_flight())
    }

    /// Why the ring yields nothing more, if so.
    #[inline]
    pub fn broken(&self) -> Option<&RingError> {
        either!(self, ring => ring.broken())
    }

    /// See [`SplitRing::fail`].
    pub fn fail(&mut self, error: RingError) {
        either!(self, ring => ring.fail(error));
    }
}

#[cfg(test)]
mod tests;
