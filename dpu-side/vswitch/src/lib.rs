//! The DPU's switch: takes frames from the ports' guests, asks the layers, and gives them to other ports' guests.
//!
//! [`Switch`] is a single owner of all queues, driven by whoever runs it: it polls in bursts, never waits, and does
//! not allocate or make a system call per packet; a lock is taken, for an instant, only where a connection begins or
//! ends. Policy is compiled from the ports' records and their security groups, replaced as a whole, and a frame that no
//! layer sends anywhere is dropped. Each drop has one [`DropReason`] and is counted at one port.
//!
//! # Counting
//!
//! A frame taken from a guest counts once in its port's `tx_frames`. Then either it counts as one drop at that port, or
//! for each receiver as one in the receiver's `rx_frames` or as one drop there. Two things count more often: a
//! broadcast, once for each receiver; and a large TCP segment or UDP datagram that has to be cut for a receiver, once for
//! each packet.
//! If the sender's memory vanishes while a frame is copied, that is one drop at the sender, and receivers that had the
//! frame already keep it.
//!
//! # Queues
//!
//! A port has up to [`vhost_net_dpu::QUEUE_PAIRS_MAX`] queue pairs, each of which starts, stops and fails on its own. The
//! port's share of the switch is the same however many of them it uses: its transmit queues share one burst. A frame
//! goes to the receive queue of its flow, one of those that run, so that a flow stays in order; when a receive queue
//! starts or stops, flows move, and frames that are under way may be overtaken once. Frames for a receive queue that
//! has failed are dropped: the others neither get more to do nor lose anything by it.
//!
//! Bursts are served in stages: all frames of a burst pass one before the first comes to the next, and each queue that
//! was given something shows it once.
//!
//! # Workers
//!
//! A switch may have several workers ([`Switch::fleet`]), each a [`Switch`] with the policy of all ports, whose every
//! virtqueue has one owner among them. A frame is decided about where it is taken; for a receive queue that another worker
//! has it crosses a bounded ring, is copied there, once, and its chain is given back where it was taken, in order. No worker
//! waits for another one: where there is no room the frame is dropped as [`DropReason::RxWorkerBusy`]. A flow's receive queue
//! is the same whichever worker forwards it. Queues move from one worker to another between two breaths
//! ([`Switch::take_pair`]). Connections, fragments and the answers to rejected packets are known to all of them in common;
//! counters are each worker's own and add up ([`PortCounters::add`]).
//!
//! # The firewall
//!
//! [`Switch::set_policy`] gives ports security groups, compiled by `outboard-firewall`; connections are followed by
//! `outboard-conntrack`, in one table with equal shares for the ports of networks in which one is filtered. Between ports
//! that are not filtered nothing is followed or asked, and that costs nothing. A rejected packet counts as a drop; the
//! answer that its sender gets counts in the sender's `rx_frames`, and nobody sent it.
//!
//! # Trunks
//!
//! A port may be carried by another port's device, in frames with a VLAN tag ([`TrunkPolicy`]). It counts as any port, by the
//! frames without their tags; the queues count for the port that has them. A tagged frame that belongs to no subport
//! counts at the port whose guest sent it.
//!
//! # What it doesn't implement
//!
//! Address learning (ports are where their records say), tags within tags, DHCP and ARP responders, multicast snooping, uplinks.
//! Fragments are not put together for the firewall: later ones that overtake their first are dropped.
#![forbid(unsafe_code)]

mod arrivals;
mod bell;
mod burst;
mod capture;
mod commons;
mod connections;
mod counters;
mod crossing;
mod firewall;
mod flow;
mod layers;
mod policy;
mod port;
mod queues;
mod reason;
mod rest;
mod seed;
mod stopping;
mod switch;
mod trace;
mod trunk;

pub use bell::Bell;
pub use burst::BURST_FRAMES;
pub use capture::{
    CAPTURES_MAX, CaptureFilter, CaptureRead, CaptureRefused, CaptureSpec, CaptureWay, Captured, Seen, SharedCapture,
};
pub use connections::{ConnectionFilter, Connections, ListedConnection};
pub use counters::{PortCounters, QueueCounters};
pub use crossing::{Crossed, WORKERS_MAX};
pub use firewall::CONNECTIONS_DEFAULT;
pub use policy::{PortPolicy, TrunkPolicy, link_local};
pub use reason::DropReason;
pub use switch::{MovedPair, Switch};
pub use trace::{Trace, TraceEnd, TraceStep, TraceVerdict};
