//! The DPU's switch: takes frames from the ports' guests, asks the layers, and gives them to other ports' guests.
//!
//! [`Switch`] is a single owner of all queues, driven by whoever runs it: it polls in bursts, never blocks, and does
//! not allocate, lock or make a system call per packet. Policy is compiled from the ports' records alone, replaced as a
//! whole, and a frame that no layer sends anywhere is dropped. Each drop has one [`DropReason`] and is counted at one
//! port.
//!
//! # Counting
//!
//! A frame taken from a guest counts once in its port's `tx_frames`. Then either it counts as one drop at that port, or
//! for each receiver as one in the receiver's `rx_frames` or as one drop there. Two things count more often: a
//! broadcast, once for each receiver; and a large TCP segment that has to be cut for a receiver, once for each packet.
//! If the sender's memory vanishes while a frame is copied, that is one drop at the sender, and receivers that had the
//! frame already keep it.
//!
//! # What it doesn't implement
//!
//! Address learning (ports are where their records say), VLANs, DHCP and ARP responders, multicast snooping, uplinks.
#![forbid(unsafe_code)]

mod counters;
mod layers;
mod policy;
mod port;
mod reason;
mod switch;

pub use counters::PortCounters;
pub use policy::{PortPolicy, link_local};
pub use reason::DropReason;
pub use switch::{BURST_FRAMES, Switch};
