//! A virtio-net device (virtio 1.3 §5.1) behind vhost-user: from a driver's transmit ring to a checked frame, from a
//! frame to a driver's receive ring. It knows queues, headers and offloads; it does not know where it runs, which
//! ports there are, or who may talk to whom.
//!
//! The walk of a frame: [`tx`] takes a chain and copies the virtio header and the first bytes of the frame into
//! private memory; [`packet`] finds out what it is; [`offload`] checks what the sender asks for against
//! that. After policy, which is elsewhere, [`deliver`] gives it to a receiver as it is, or with [`checksum`] completed
//! or cut by [`segment`] for one that cannot take it, and [`rx`] writes it. Headers are written from the private bytes that were
//! looked at; payload goes from guest memory to guest memory once.
//!
//! What it doesn't implement: several queue pairs and the control queue (the VMM owns both, and the configuration
//! space, for a vhost-user network device), UDP segmentation, event index, packed rings, the legacy interface.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod deliver;
pub mod error;
pub mod features;
pub mod header;
pub mod metrics;
pub mod offload;
pub mod packet;
mod queue;
pub mod rx;
pub mod segment;
pub mod tx;

pub use queue::{QUEUE_COUNT, QUEUE_PAIRS_MAX, QUEUE_SIZE_MAX, Queue, QueueKind};

use packet::ETHERNET_HEADER_LEN;

/// First bytes of a frame that are copied to private memory and may be looked at, in bytes. All headers must fit.
pub const HEAD_LEN_MAX: usize = 256;

/// Largest frame taken from a guest, in bytes without the virtio header: a 65,536-byte IP packet and an Ethernet header
/// (virtio 1.3 §5.1.6.3.1).
pub const FRAME_LEN_MAX: usize = 65_550;

/// The MTU while the VMM has told none, or the driver did not take the feature: what Ethernet has, in bytes.
pub const MTU_DEFAULT: u16 = 1_500;

/// The least MTU a VMM may tell, in bytes (virtio 1.3 §5.1.4.1).
pub const MTU_MIN: u16 = 68;

/// Largest frame by an MTU that is not to be segmented, in bytes without the virtio header.
pub const fn frame_len_max(mtu: u16) -> usize {
    ETHERNET_HEADER_LEN + mtu as usize
}
