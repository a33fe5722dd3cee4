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
//! It remembers what each VMM has said, and so a DPU may be killed, upgraded or hang: the VMM is answered from memory
//! meanwhile, kicks pile up in the eventfds, and the next DPU is told everything and goes on from the rings.
//!
//! - [`agent`] decides, without I/O or clock: what is redeemed, which sockets stand open, who gets a session.
//! - [`session`] remembers a VMM's session and says it to any DPU that comes.
//! - [`sockets`] are the VMM sockets, listening or connecting.
//! - [`link`] is the way to the DPU.
//! - [`daemon`] puts them together; [`api`] and [`client`] are the two ends of the local API.
//!
//! What it does not do: keep sessions across its own restart (a VMM that reconnects says everything again, and brings
//! along its in-flight region), remember devices attached by the API across its own restart (attach them again; their
//! grants are taken up where they were), give up requests in flight that no DPU ends (`GET_VRING_BASE` of a volume waits for
//! one), call a driver in the DPU's place (a DPU calls each driver once when it starts a ring), keep the position of packed
//! rings of a port across its own restart (no VMM brings that along), post-copy migration, `SEND_RARP` and device
//! status, or any vhost-user message outside [`session::vhost_user_wire::RULES`].
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
