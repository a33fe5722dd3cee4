//! The daemon's clocks. Decisions take what this returns; nothing else asks the kernel.

use std::{
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use outboard_protocol::{binding::Now, id::BootEpoch};

/// The time, by both clocks.
pub fn now() -> Now {
    static START: OnceLock<Instant> = OnceLock::new();
    let since_start = START.get_or_init(Instant::now).elapsed();
    // A clock before 1970 is not set at all.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now {
        monotonic_ms: u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX),
        unix_s: unix.as_secs(),
    }
}

/// The boot epoch of a DPU that has no record of an earlier one: milliseconds since the Unix epoch.
pub fn boot_epoch() -> BootEpoch {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    BootEpoch(u64::try_from(unix.as_millis()).unwrap_or(u64::MAX))
}
