//! The DPU's side: enforces what the broker wants, serves the host's link and runs the datapath.
//!
//! ```text
//! broker ── broker_channel ──► gate (shuts at once) ──► enforcement ◄── link (host's requests) ◄── shim
//!                                      │                    │  ▲
//!                                      ▼                    ▼  │ rings live, session over
//!                                   worker: datapath ◄── sessions (vhost-user, one thread each) ◄── VMM
//! ```
//!
//! One thread, [`enforcement`], decides; it runs the pure core of `outboard_protocol::card_side` and performs its
//! effects in order. The datapath runs on the [`workers`] of `outboard_engine` and is reached only by closures between two
//! breaths. Security groups are compiled by [`policy`] on the deciding thread; the worker takes over what is finished. What must not wait for a disk, silence after a revocation, goes past the enforcement through the [`gate`].
#![forbid(unsafe_code)]

pub mod balance;
pub mod broker_channel;
pub mod broker_stream;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod devices;
mod durable;
pub mod enforcement;
pub mod enrolment;
pub mod error;
pub mod forgotten;
pub mod gate;
pub mod history;
pub mod identity;
pub mod inquiry;
pub mod link;
mod locked;
pub mod log_writer;
pub mod message;
pub mod opener;
mod pace;
pub mod placement;
pub mod policy;
pub mod program;
pub mod sessions;
pub mod state_file;
pub mod state_lock;
pub mod telemetry;
pub mod tls;
pub mod volume_totals;
pub mod volumes;
pub mod workers;
