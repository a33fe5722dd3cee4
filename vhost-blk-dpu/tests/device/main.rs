//! The device as a guest sees it.

// Test patterns are made by cutting numbers down to bytes.
#![allow(clippy::cast_possible_truncation)]

mod flush_is_durable;
mod framing;
mod guest;
mod hostile;
mod lifecycle;
mod round_trips;
