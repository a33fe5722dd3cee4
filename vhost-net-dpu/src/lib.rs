//! A virtio-net device (virtio 1.3 §5.1) behind vhost-user: from a driver's transmit ring to a checked frame, from a
//! frame to a driver's receive ring. It knows queues, headers and offloads; it does not know where it runs, which
//! ports there are, or who may talk to whom.
//!
//! The walk of a frame: [`tx`] takes chains by the burst and copies the virtio header and the first bytes of each frame into
//! private memory; [`record`] says what it is, in short, with [`packet`]'s help where it is not plain; [`offload`] checks what the sender asks for against
//! that. After policy, which is elsewhere, [`deliver`] gives it to a receiver as it is, or with [`checksum`] completed
//! or cut by [`segment`] for one that cannot take it, and [`rx`] writes it. Headers are written from the private bytes that were
//! looked at; payload goes from guest memory to guest memory once.
//!
//! # What is offered
//!
//! | feature (virtio 1.3 §5.1.3, §6) | what it does here |
//! |---|---|
//! | VERSION_1 | demanded: the legacy interface is not served |
//! | INDIRECT_DESC, EVENT_IDX, RING_PACKED | the ring's |
//! | IN_ORDER | buffers are used in the order they were taken, of both kinds of queue: a burst of transmit buffers goes back as one, by a single used entry (virtio 1.3 §2.7.9), and receive buffers that a frame does not fill after all go back before the next are taken |
//! | MQ | up to [`QUEUE_PAIRS_MAX`] pairs, each started, stopped and failing on its own; which run is what SET_VRING_ENABLE says |
//! | MRG_RXBUF | a frame over up to [`rx::MERGED_BUFFERS_MAX`] buffers, all reserved before the first byte is written |
//! | MTU | the value is the VMM's, which tells it (NET_SET_MTU); without it, or for a driver that did not take the feature, it is [`MTU_DEFAULT`] |
//! | CSUM, HOST_TSO4/6, HOST_USO, HOST_ECN | a sender may leave checksums and segmentation to us |
//! | GUEST_CSUM, GUEST_TSO4/6, GUEST_USO4/6, GUEST_ECN | a receiver gets partial checksums and large frames as they are |
//!
//! What a sender may leave and a receiver does not take is done in software: see [`deliver`].
//!
//! # What it doesn't implement
//!
//! - The control queue and the configuration space: for a vhost-user network device they are the VMM's, and so are MAC
//!   filters, promiscuous mode and VLAN filters. None of them widens what a port may send or is sent.
//! - GUEST_ANNOUNCE and RARP: a port is where its record says, so a guest that moved has nobody to tell.
//! - UFO (HOST_UFO, GUEST_UFO): it makes IP fragments of a datagram, which firewalls cannot judge; USO took its place.
//! - RSS and HASH_REPORT: the device spreads flows by a hash of its own.
//! - Offloads of tunnelled packets, but for a checksum inside a tunnel, which is completed here.
//! - RING_RESET, and the legacy interface.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod deliver;
pub mod error;
pub mod features;
pub mod header;
pub mod metrics;
pub mod offload;
pub mod packet;
pub mod parcel;
mod queue;
pub mod record;
pub mod rx;
pub mod segment;
pub mod tx;
pub mod vlan;

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
