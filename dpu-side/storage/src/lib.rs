//! Block backends of the DPU, and what each of their operations guarantees.
//!
//! A [`Backend`] takes [`Request`]s whose data lies in guest memory and gives them back as [`Completion`]s, in any
//! order. Data moves between the guest's memory and the backend without a copy in between. A request owns its
//! [`Buffer`], and with it a reference to the guest's memory, until it is completed; so memory that the kernel may
//! still write to cannot be unmapped.
//!
//! | backend | survives a power cut | flush | discard | zeroes |
//! |---|---|---|---|---|
//! | [`FileBackend`] | what a flush covered | `fdatasync` | punches a hole, if the file can | by a hole, by the file system, or written |
//! | [`MemoryBackend`] | nothing | nothing to do | frees memory | frees memory |
//! | [`NullBackend`] | nothing: writes are discarded, reads give zeros | nothing to do | nothing to do | nothing to do |
//!
//! A volume's size may change while it is served ([`Backend::resize`]).
//!
//! Volumes are raw: no byte of a volume is ever looked at to find out what it might be.
//!
//! # What it doesn't implement
//!
//! Direct I/O (`O_DIRECT`) and backends over a network.

#![deny(unsafe_code)]

mod backend;
mod buffer;
mod file;
mod instant;
#[cfg(feature = "recording")]
pub mod recording;

pub use backend::{Backend, Busy, Completion, Geometry, IoError, Op, RANGE_LEN_MAX, Request, ResizeError, SECTOR_LEN};
pub use buffer::{Buffer, BufferError, SEGMENT_COUNT_MAX};
pub use file::{FileBackend, Holder, OpenError, holder_of, open_file};
pub use instant::{MemoryBackend, NullBackend};
