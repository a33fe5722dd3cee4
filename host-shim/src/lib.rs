//! The host shim.
#![forbid(unsafe_code)]
