//! Guest memory and virtqueues, split and packed, for devices whose driver is hostile.
//!
//! A ring and everything in it is written by a guest that may change any byte at any time, and the memory itself
//! belongs to a host that may take it away. So:
//!
//! * [`GuestMemory`] maps only what lies inside memory files, and a page that vanishes later poisons that memory
//!   instead of killing the process ([`GuestMemory::poisoned`]).
//! * Each field of shared memory is read once. A descriptor is one volatile 16-byte read into a local; what was checked is
//!   what is used. No reference to guest memory is ever made: [`GuestBytes`] are a pointer and a length.
//! * A [`Ring`], which is a [`SplitRing`] or a [`PackedRing`], hands out a [`Chain`] only when every descriptor of it is in order. One malformed chain is reported
//!   once and latches the ring; other rings go on.
//! * Available entries and their first descriptors are read up to 32 ahead, so that cache misses overlap; a chain of one
//!   buffer in the region of the last one is checked by a few comparisons, every other one descriptor by descriptor.
//! * Nothing here allocates per packet, blocks, or makes a system call, except [`KickFd::drain`].
//!
//! # What it doesn't implement
//!
//! An IOMMU (`VIRTIO_F_ACCESS_PLATFORM`), and packed rings whose size is no power of two. A guest's memory that is
//! backed by anything but tmpfs, a memfd or hugetlbfs is refused.

mod ahead;
mod chain;
#[cfg(test)]
mod cut;
mod descriptor;
#[cfg(feature = "driver")]
pub mod driver;
mod error;
mod file;
mod heads;
mod inflight_log;
mod lap;
mod layout;
mod log;
mod mapping;
mod memory;
mod notify;
mod packed;
mod ring;
mod sigbus;
mod split;
mod view;
mod walk;

pub use chain::{Chain, ChainError, Reader, Segment, copy};
pub use descriptor::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};
pub use error::RingError;
pub use file::FileFault;
pub use inflight_log::{InflightError, InflightLog, InflightRegion};
pub use layout::{ConfigFault, QUEUE_SIZE_MAX, RingConfig, RingFormat};
pub use log::{DirtyLog, LOG_LEN_MAX, LOG_PAGE_LEN, LogError, RingLog};
pub use memory::{GUEST_MEMORY_LEN_MAX, GuestMemory, MemoryError, REGION_COUNT_MAX, RegionSpec};
pub use notify::{CallFd, KickFd, NotifyError, Signals};
pub use packed::PackedRing;
pub use ring::Ring;
pub use split::SplitRing;
pub use view::GuestBytes;
pub use walk::ChainFault;
