//! A guest's network and block drivers without a guest: the driver's side of virtio rings in shared memory, offered to
//! any vhost-user back-end, loaded as fast as it goes, and checked.
//!
//! One thread plays everything: network mode has two ports, each with one receive and one transmit queue in a memory of
//! its own; block mode has one queue. Nothing is allocated per frame or request, descriptors are written once, and
//! indices are published once a burst, as the fastest drivers do, so that what is measured is the back-end.
//!
//! What was counted is judged: frames carry a sequence number that is checked on each, some are compared byte by byte,
//! and blocks can carry what they ought to be.
//!
//! # What it doesn't implement
//!
//! Packed rings, several queues, IPv6 and VLAN frames, more than one region of memory, reconnection (a shim keeps the
//! session up), in-flight regions, and dirty logging.
#![deny(unsafe_code)]

pub mod args;
pub mod blk;
pub mod ceiling;
pub mod error;
pub mod features;
pub mod histogram;
pub mod meter;
pub mod net;
pub mod raw;
pub mod report;
pub mod ring;
pub mod session;
