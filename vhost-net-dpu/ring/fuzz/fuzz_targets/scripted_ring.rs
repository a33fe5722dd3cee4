//! `cargo +nightly fuzz run scripted_ring` in `vhost-net-dpu/ring`.
#![no_main]

#[path = "../scripted_ring.rs"]
mod scripted_ring;

libfuzzer_sys::fuzz_target!(|data: &[u8]| scripted_ring::run(data));
