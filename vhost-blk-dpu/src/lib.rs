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
//! **Durable.** With a write-back cache a flush is answered once every write answered before it survives a power cut; with
//! write-through each write is answered only then. A driver chooses by the field `writeback` of config space
//! (`VIRTIO_BLK_F_CONFIG_WCE`), for all queues at once; one that does not know the field gets write-back if it negotiates
//! `VIRTIO_BLK_F_FLUSH`, else write-through (virtio 1.3 §5.2.6.2). A front-end that starts a device anew, after one that
//! was lost, has to write the field anew too: it is on when a device starts.
//!
//! **Fair.** The queues of a volume take turns by bytes. One breath begins a bounded number of requests and bytes.
//!
//! **In flight.** Requests end in any order. Where a front-end keeps a log of what is in flight, a device that starts on
//! it takes those requests first; reads, writes, flushes, discards and zeroing may all be done twice. A queue that is to
//! stop before it has taken them all does so first: its index alone would not tell of them. A queue that starts calls its
//! driver once in any case, since nobody may have told it of what stands in the used ring.
//!
//! **Segments.** A chain may have at most as many descriptors as its queue, whether it lies in an indirect table or not
//! (virtio 1.3 §2.7.5.3.1), or its queue is broken. `seg_max` is told before a queue has a size: it fits queues of 128,
//! which VMMs give unless told otherwise. Segments longer than `size_max`, and more of them than `seg_max`, are served.
//!
//! # What it doesn't implement
//!
//! Secure erase, zoned storage, lifetime information. The memory behind a volume may differ from what a
//! smaller size cut off when it grows again: a file still has it, a volume in memory has not.
#![forbid(unsafe_code)]

mod answer;
mod cache;
mod config_space;
mod counters;
mod features;
mod id;
mod queue;
mod ranges;
mod request;
mod slot;
mod state;
mod unit;

pub use config_space::{CONFIG_LEN, SEG_MAX, SIZE_MAX, WRITEBACK_OFFSET};
pub use counters::VolumeCounters;
pub use features::{DEFAULT_FEATURES, features};
pub use id::device_id;
pub use queue::{StartError, Stopped};
pub use ranges::{DISCARD_SECTORS_MAX, RANGE_COUNT_MAX, RangeKind, Ranges, ZEROES_SECTORS_MAX};
pub use request::{HEADER_LEN, Limits, Request, RequestError, Shape, parse};
pub use state::QueueState;
pub use unit::{BlkConfig, BlkUnit, QUEUE_COUNT, QUEUE_SIZE_MAX};
