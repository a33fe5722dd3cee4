//! The device as a guest sees it.

// Test patterns are made by cutting numbers down to bytes.
#![allow(clippy::cast_possible_truncation)]

mod allocations;
mod dirty;
mod flush_is_durable;
mod framing;
mod gated;
mod guest;
mod hostile;
mod late;
mod lifecycle;
mod negotiation;
mod queues;
mod ranges;
mod recovery;
mod round_trips;
