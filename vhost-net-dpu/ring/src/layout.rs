//! Where a ring lies in guest memory (virtio 1.3 §2.7, §2.8).

use std::ops::Range;

use outboard_controls::{Check, on};
use virtio_bindings::bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use crate::{
    descriptor::DESC_LEN,
    mapping::Area,
    memory::{GuestMemory, MemoryError},
    view::{PackedView, RingView},
};

/// The largest queue size (virtio 1.3 §2.7, §2.8.10.1).
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
/// Length of each event suppression area of a packed ring in bytes (virtio 1.3 §2.8.14).
pub(crate) const EVENT_AREA_LEN: usize = 4;

/// Which kind of ring a driver has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingFormat {
    /// virtio 1.3 §2.7.
    Split,
    /// virtio 1.3 §2.8.
    Packed,
}

impl RingFormat {
    /// By the virtio features that were negotiated.
    pub const fn of(features: u64) -> Self {
        match features & 1 << VIRTIO_F_RING_PACKED {
            0 => Self::Split,
            _ => Self::Packed,
        }
    }
}

/// What the driver set up. Addresses are guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub desc: u64,
    /// The available ring; of a packed ring, the driver's event suppression area.
    pub avail: u64,
    /// The used ring; of a packed ring, the device's event suppression area.
    pub used: u64,
    /// Where to go on, as vhost-user tells it: the available index; of a packed ring, the available position in the lower
    /// 16 bits and the used one in the upper, each with its wrap counter above it. If the upper bits are 0, both are the
    /// lower: some front-ends know of no other (DPDK), and no other position can be told where nothing is in flight.
    pub base: u32,
    /// The virtio features that were negotiated.
    pub features: u64,
}

impl RingConfig {
    /// Was a feature negotiated?
    fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }

    fn check_format(&self, started: RingFormat) -> Result<(), ConfigFault> {
        match RingFormat::of(self.features) {
            format if format == started => Ok(()),
            format => Err(ConfigFault::Format { format }),
        }
    }
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
    /// It is one of the other kind.
    #[error("it is a {format:?} ring by the features that were negotiated, and was started as one of the other kind")]
    Format {
        /// Of which kind it is.
        format: RingFormat,
    },
    /// It cannot begin there.
    #[error("it is to go on at {base:#x}, but it has {size} descriptors")]
    Base {
        /// Where.
        base: u32,
        /// The queue's size.
        size: u16,
    },
}

/// The three parts of a ring.
#[derive(Debug)]
pub(crate) struct Layout<View = RingView> {
    pub(crate) size: u16,
    pub(crate) indirect: bool,
    pub(crate) event_idx: bool,
    pub(crate) in_order: bool,
    pub(crate) view: View,
    /// Length of the used ring in bytes.
    pub(crate) used_len: usize,
    /// Guest-physical addresses of the parts, where no buffer may lie.
    own: [Range<u64>; 3],
    /// All of them and what is between.
    hull: Range<u64>,
}

/// A part of a ring: what it is called, where it is, its length in bytes, and what its address is a multiple of.
#[derive(Clone, Copy)]
struct Part {
    name: &'static str,
    addr: u64,
    len: usize,
    alignment: u64,
}

impl Layout {
    pub(crate) fn new(config: &RingConfig, mem: &GuestMemory) -> Result<Self, ConfigFault> {
        config.check_format(RingFormat::Split)?;
        let event_idx = config.has(VIRTIO_RING_F_EVENT_IDX);
        let event_len = if event_idx { EVENT_LEN } else { 0 };
        let size = config.size;
        let count = usize::from(size);
        let part = |name, addr, len, alignment| Part {
            name,
            addr,
            len,
            alignment,
        };
        let used_len = USED_RING_OFFSET + USED_ENTRY_LEN * count + event_len;
        let avail_len = AVAIL_RING_OFFSET + AVAIL_ENTRY_LEN * count + event_len;
        let parts = [
            part("descriptor table", config.desc, DESC_LEN * count, 16),
            part("available ring", config.avail, avail_len, 2),
            part("used ring", config.used, used_len, 4),
        ];
        Self::of_parts(config, mem, parts, |[desc, avail, used]| {
            RingView::new(size, event_idx, desc, avail, used)
        })
    }

    /// Where the entry of a running index is in the used ring.
    #[inline]
    pub(crate) fn used_entry(&self, index: u16) -> usize {
        USED_RING_OFFSET + USED_ENTRY_LEN * self.slot(index)
    }
}

impl Layout<PackedView> {
    /// Of a packed ring (virtio 1.3 §2.8.10). Its size need not be a power of two by the specification; here it must.
    pub(crate) fn packed(config: &RingConfig, mem: &GuestMemory) -> Result<Self, ConfigFault> {
        config.check_format(RingFormat::Packed)?;
        let size = config.size;
        let part = |name, addr, len, alignment| Part {
            name,
            addr,
            len,
            alignment,
        };
        let parts = [
            part("descriptor ring", config.desc, DESC_LEN * usize::from(size), 16),
            part("driver event suppression", config.avail, EVENT_AREA_LEN, 4),
            part("device event suppression", config.used, EVENT_AREA_LEN, 4),
        ];
        Self::of_parts(config, mem, parts, |[desc, driver, device]| {
            PackedView::new(size, desc, driver, device)
        })
    }

    /// Guest-physical address of the descriptor in a slot, and of the device's event suppression area: what the device
    /// writes.
    pub(crate) fn written(&self, slot: u16) -> (u64, u64) {
        let [desc, _, device] = &self.own;
        (desc.start + DESC_LEN as u64 * u64::from(slot), device.start)
    }
}

impl<View> Layout<View> {
    fn of_parts(
        config: &RingConfig,
        mem: &GuestMemory,
        parts: [Part; 3],
        view: impl FnOnce([Area; 3]) -> Option<View>,
    ) -> Result<Self, ConfigFault> {
        let size = config.size;
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(ConfigFault::Size { size });
        }
        for part in parts {
            let Part {
                name, addr, alignment, ..
            } = part;
            if addr % alignment != 0 {
                return Err(ConfigFault::Misaligned {
                    part: name,
                    addr,
                    alignment,
                });
            }
        }
        let area = |part: Part| {
            mem.area(part.addr, part.len).map_err(|source| ConfigFault::Unmapped {
                part: part.name,
                source,
            })
        };
        let areas = [area(parts[0])?, area(parts[1])?, area(parts[2])?];
        // In guest memory, so the ends do not wrap.
        let own = parts.map(|Part { addr, len, .. }| addr..addr + len as u64);
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            if overlap(&own[a], &own[b]) && on(Check::RingOverlap) {
                return Err(ConfigFault::Overlap {
                    first: parts[a].name,
                    second: parts[b].name,
                });
            }
        }
        let hull = Range {
            start: own.iter().map(|part| part.start).min().unwrap_or(0),
            end: own.iter().map(|part| part.end).max().unwrap_or(u64::MAX),
        };
        Ok(Self {
            size,
            indirect: config.has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: config.has(VIRTIO_RING_F_EVENT_IDX),
            in_order: config.has(VIRTIO_F_IN_ORDER),
            // Measured and aligned above; regions are mapped at addresses that agree with the guest's.
            view: view(areas).ok_or(ConfigFault::Size { size })?,
            used_len: parts[2].len,
            own,
            hull,
        })
    }

    /// Does a buffer touch the ring itself?
    #[inline]
    pub(crate) fn holds(&self, buffer: &Range<u64>) -> bool {
        overlap(&self.hull, buffer) && self.own.iter().any(|part| overlap(part, buffer))
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
