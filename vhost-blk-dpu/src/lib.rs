//! A virtio-blk device (virtio 1.3 §5.2) whose requests become NVMe commands.
//!
//! ```text
//! chain ──▶ Request (all checks) ──▶ NVMe command ──▶ Controller ──▶ backend
//!                                                         │
//! used entry ◀── status byte ◀── completion ◀─────────────┘
//! ```
//!
//! Data moves between the guest's memory and the backend without a copy in between. A [`BlkUnit`] is one volume. It
//! knows neither where it runs nor how its driver is reached: a worker calls [`BlkUnit::breathe`], a session starts and
//! stops its queue.
//!
//! **Durable.** A driver that negotiates `VIRTIO_BLK_F_FLUSH` gets a write-back cache: a flush is answered once every
//! write answered before it survives a power cut. For a driver that does not, each write is answered only then
//! (virtio 1.3 §5.2.6.2).
//!
//! # What it doesn't implement
//!
//! More than one queue, discard, write-zeroes and secure erase, resizing, a cache mode that the driver may change, zoned
//! storage, packed rings, in-flight logs. A driver's chains have at most as many descriptors as its queue, so queues
//! should have [`QUEUE_SIZE_MAX`] / 2 or more.
#![forbid(unsafe_code)]

mod answer;
mod config_space;
mod counters;
mod features;
mod id;
mod queue;
mod request;
mod slot;
mod unit;

pub use config_space::{CONFIG_LEN, SEG_MAX};
pub use counters::VolumeCounters;
pub use features::{DEFAULT_FEATURES, features};
pub use id::device_id;
pub use queue::{StartError, Stopped};
pub use request::{HEADER_LEN, Limits, Request, RequestError, Shape, parse};
pub use unit::{BlkConfig, BlkUnit, QUEUE_COUNT, QUEUE_SIZE_MAX};
