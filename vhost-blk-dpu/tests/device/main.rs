//! The device as a guest sees it.

// Test patterns are made by cutting numbers down to bytes.
#![allow(clippy::cast_possible_truncation)]

mod allocations;
mod dirty;
mod flush_is_durable;
mod framing;
mod gated;
mod guest;
mod hostile;
mod late;
mod lifecycle;
mod negotiation;
mod queues;
mod ranges;
mod recovery;
mod round_trips;

/// All that is offered, with rings of the kind that this program tries.
pub const DEFAULT_FEATURES: u64 = vhost_blk_dpu::DEFAULT_FEATURES & !PACKED | RINGS;
const PACKED: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
/// Which kind that is.
pub const FORMAT: outboard_ring::RingFormat = outboard_ring::RingFormat::of(RINGS);
/// Split ones.
const RINGS: u64 = 0;
