//! An NVMe controller core: the NVM command set as a state machine over a block backend.
//!
//! Whatever a volume looks like to a guest, its requests come here as NVMe commands, so that there is one place where
//! commands are checked and one meaning of *durable*. A front end encodes each request as a [`SubmissionEntry`], hands
//! it over with the guest memory that its data is in, and gets a [`CompletionEntry`] back, in any order.
//!
//! ```text
//! front end ── SubmissionEntry + Buffer ──▶ Controller ── Request ──▶ Backend
//!           ◀── CompletionEntry + Buffer ──            ◀── Completion ──
//! ```
//!
//! The core checks every field it acts upon. The data pointer (DPTR) and PSDT belong to the front end, which resolves
//! them to a [`Buffer`](outboard_storage::Buffer) first; so do the queue fields of a completion (SQHD, SQID, phase).
//! A front end splits what is longer than [`TRANSFER_LEN_MAX`]: to the core it is an invalid field, as MDTS says.
//!
//! # What it doesn't implement
//!
//! The admin command set, queues in host memory, PRP lists and SGLs, and with them any front end that a stock NVMe
//! driver could use; of the NVM command set everything but Read, Write, Flush, Write Zeroes and the deallocation of
//! Dataset Management; fused operations, metadata and protection information, more than one namespace, the event that
//! tells of a changed size (a front end that resizes tells its own driver). An unknown opcode is answered with Invalid
//! Command Opcode and Do Not Retry.
//!
//! Sections are those of the NVM Express Base Specification 2.0 ("base") and the NVM Command Set Specification 1.0
//! ("NVM").
#![forbid(unsafe_code)]

mod command;
mod controller;
mod deallocation;
mod namespace;
pub mod spec;

pub use command::TRANSFER_LEN_MAX;
pub use controller::{Busy, Completed, Controller};
pub use namespace::{LBA_LEN, NSID, Namespace, PHYSICAL_BLOCK_LEN};
pub use spec::{CompletionEntry, Range, Status, SubmissionEntry};
