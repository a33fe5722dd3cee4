//! The host's side of Outboard: owns the sockets that VMMs open and hands each session to the DPU.
//!
//! ```text
//!  VMM ─vhost-user─ door ─ session ─stream─ DPU        doors: one thread per device; sessions: one per VMM
//!                     │                      │
//!                     └──── agent ── link ───┘         agent: one thread, all decisions; link: one thread
//!                             │
//!                            API                       JSON over a unix socket
//! ```
//!
//! The shim holds no policy, no key and no peer's data, and it is never on the data path: the memory of the guest and
//! the eventfds of its rings go to the DPU as descriptors, and the shim sleeps until the VMM or the DPU says something.
//!
//! - [`agent`] decides, without I/O or clock: what is redeemed, which sockets stand open, who gets a session.
//! - [`session`] knows what a VMM's session consists of, message by message.
//! - [`sockets`] are the VMM sockets, listening or connecting.
//! - [`link`] is the way to the DPU.
//! - [`daemon`] puts them together; [`api`] and [`client`] are the two ends of the local API.
//!
//! What it does not do: keep a session across the end of its DPU stream (the VMM's connection is closed and the VMM
//! has to connect again), remember devices attached by the API across its own restart (attach them again; their
//! grants are taken up where they were), post-copy migration, or any vhost-user message outside
//! [`session::vhost_user_wire::RULES`].
#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod client;
pub mod config;
pub mod daemon;
pub mod link;
pub mod session;
pub mod sockets;
pub mod state_file;
