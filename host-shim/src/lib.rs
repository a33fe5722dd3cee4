//! The host shim.
#![forbid(unsafe_code)]

pub mod agent;
pub mod session;
