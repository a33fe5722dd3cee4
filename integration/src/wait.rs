//! Waiting for something with a deadline. On a loaded machine everything takes longer than one thinks.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `condition` until it gives a value, for `limit` at most.
pub fn until<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A bar for an idle machine, raised by as much as this machine has more to run than CPUs to run it on: other work beside
/// the tests delays what they measure.
pub fn on_this_machine(bar: Duration) -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let runnable: f64 = load.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // what the tests run themselves keeps about two CPUs' worth busy
    bar.mul_f64(((runnable - 2.0) / f64::from(u32::try_from(cpus).unwrap_or(1))).clamp(1.0, 20.0))
}
