//! Where a split ring lies in guest memory (virtio 1.3 §2.7).

use std::ops::Range;

use outboard_controls::{Check, on};
use virtio_bindings::bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use crate::{
    descriptor::DESC_LEN,
    memory::{GuestMemory, MemoryError},
    view::RingView,
};

/// The largest queue size of a split ring (virtio 1.3 §2.7).
pub const QUEUE_SIZE_MAX: u16 = 32_768;

/// Bytes of the available ring before its entries: flags and idx (virtio 1.3 §2.7.6).
pub(crate) const AVAIL_RING_OFFSET: usize = 4;
/// Bytes of the used ring before its entries: flags and idx (virtio 1.3 §2.7.8).
pub(crate) const USED_RING_OFFSET: usize = 4;
/// Where idx is in both.
pub(crate) const IDX_OFFSET: usize = 2;
/// Where flags is in both.
pub(crate) const FLAGS_OFFSET: usize = 0;
/// Length of an available entry in bytes.
pub(crate) const AVAIL_ENTRY_LEN: usize = 2;
/// Length of a used entry in bytes.
pub(crate) const USED_ENTRY_LEN: usize = 8;
/// Length of used_event and avail_event in bytes.
pub(crate) const EVENT_LEN: usize = 2;

/// What the driver set up. Addresses are guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
    /// The available index to go on from.
    pub next_avail: u16,
    /// The virtio features that were negotiated.
    pub features: u64,
}

/// Why a ring cannot be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigFault {
    /// The size is 0, no power of two, or above [`QUEUE_SIZE_MAX`].
    #[error("its size is {size}, which is not a power of two from 1 to {QUEUE_SIZE_MAX}")]
    Size {
        /// The size.
        size: u16,
    },
    /// A part has the wrong alignment.
    #[error("its {part} is at {addr:#x}, not a multiple of {alignment}")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Guest-physical address.
        addr: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// A part is not within one region of guest memory.
    #[error("its {part} is not in guest memory: {source}")]
    Unmapped {
        /// Which part.
        part: &'static str,
        /// The range.
        source: MemoryError,
    },
    /// Two parts overlap.
    #[error("its {first} and its {second} overlap")]
    Overlap {
        /// One.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A packed ring was negotiated.
    #[error("it is a packed ring, which was not offered")]
    Packed,
}

/// The three parts of a ring.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) size: u16,
    pub(crate) indirect: bool,
    pub(crate) event_idx: bool,
    pub(crate) in_order: bool,
    pub(crate) view: RingView,
    /// Length of the used ring in bytes.
    pub(crate) used_len: usize,
    /// Guest-physical addresses of the parts, where no buffer may lie.
    own: [Range<u64>; 3],
    /// All of them and what is between.
    hull: Range<u64>,
}

const PARTS: [&str; 3] = ["descriptor table", "available ring", "used ring"];

impl Layout {
    pub(crate) fn new(config: &RingConfig, mem: &GuestMemory) -> Result<Self, ConfigFault> {
        let RingConfig { size, features, .. } = *config;
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(ConfigFault::Size { size });
        }
        let has = |bit: u32| features & 1 << bit != 0;
        if has(VIRTIO_F_RING_PACKED) {
            return Err(ConfigFault::Packed);
        }
        let event_idx = has(VIRTIO_RING_F_EVENT_IDX);
        let event_len = if event_idx { EVENT_LEN } else { 0 };
        let count = usize::from(size);
        let parts = [
            (config.desc, DESC_LEN * count, 16),
            (config.avail, AVAIL_RING_OFFSET + AVAIL_ENTRY_LEN * count + event_len, 2),
            (config.used, USED_RING_OFFSET + USED_ENTRY_LEN * count + event_len, 4),
        ];
        for (part, (addr, _, alignment)) in PARTS.into_iter().zip(parts) {
            if addr % alignment != 0 {
                return Err(ConfigFault::Misaligned { part, addr, alignment });
            }
        }
        let area = |n: usize| {
            let (addr, len, _) = parts[n];
            mem.area(addr, len)
                .map_err(|source| ConfigFault::Unmapped { part: PARTS[n], source })
        };
        let (desc, avail, used) = (area(0)?, area(1)?, area(2)?);
        // In guest memory, so the ends do not wrap.
        let own = parts.map(|(addr, len, _)| addr..addr + len as u64);
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            if overlap(&own[a], &own[b]) && on(Check::RingOverlap) {
                return Err(ConfigFault::Overlap {
                    first: PARTS[a],
                    second: PARTS[b],
                });
            }
        }
        let hull = Range {
            start: own.iter().map(|part| part.start).min().unwrap_or(0),
            end: own.iter().map(|part| part.end).max().unwrap_or(u64::MAX),
        };
        // Measured and aligned above; regions are mapped at addresses that agree with the guest's.
        let view = RingView::new(size, event_idx, desc, avail, used).ok_or(ConfigFault::Size { size })?;
        Ok(Self {
            size,
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx,
            in_order: has(VIRTIO_F_IN_ORDER),
            view,
            used_len: parts[2].1,
            own,
            hull,
        })
    }

    /// Does a buffer touch the ring itself?
    #[inline]
    pub(crate) fn holds(&self, buffer: &Range<u64>) -> bool {
        overlap(&self.hull, buffer) && self.own.iter().any(|part| overlap(part, buffer))
    }

    /// Where the entry of a running index is in the used ring.
    #[inline]
    pub(crate) fn used_entry(&self, index: u16) -> usize {
        USED_RING_OFFSET + USED_ENTRY_LEN * self.slot(index)
    }

    /// A running index is taken modulo the size.
    #[inline]
    pub(crate) fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }
}

#[inline]
fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
