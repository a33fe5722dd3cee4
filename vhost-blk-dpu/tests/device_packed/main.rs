//! All that the device is tried with over split rings, over packed ones.

// Test patterns are made by cutting numbers down to bytes.
#![allow(clippy::cast_possible_truncation)]

#[path = "../device/allocations.rs"]
mod allocations;
#[path = "../device/dirty.rs"]
mod dirty;
#[path = "../device/flush_is_durable.rs"]
mod flush_is_durable;
#[path = "../device/framing.rs"]
mod framing;
#[path = "../device/gated.rs"]
mod gated;
#[path = "../device/guest.rs"]
mod guest;
#[path = "../device/hostile.rs"]
mod hostile;
#[path = "../device/late.rs"]
mod late;
#[path = "../device/lifecycle.rs"]
mod lifecycle;
#[path = "../device/negotiation.rs"]
mod negotiation;
#[path = "../device/queues.rs"]
mod queues;
#[path = "../device/ranges.rs"]
mod ranges;
#[path = "../device/recovery.rs"]
mod recovery;
#[path = "../device/round_trips.rs"]
mod round_trips;

/// All that is offered, with rings of the kind that this program tries.
pub const DEFAULT_FEATURES: u64 = vhost_blk_dpu::DEFAULT_FEATURES & !PACKED | RINGS;
const PACKED: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
/// Which kind that is.
pub const FORMAT: outboard_ring::RingFormat = outboard_ring::RingFormat::of(RINGS);
/// Packed ones.
const RINGS: u64 = PACKED;
