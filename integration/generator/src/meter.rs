//! The measured seconds of a run, and the CPU time in them.

use std::time::{Duration, Instant};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use rustix::time::{ClockId, clock_gettime};

use crate::error::Error;

/// Pins this thread to a core.
///
/// # Errors
/// It does not exist, or is not allowed.
pub fn pin(core: usize) -> Result<(), Error> {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|source| {
        Error::system(
            format!("pinning to core {core} (`taskset -cp $$` shows which may be)"),
            source,
        )
    })
}

/// CPU time of this thread so far.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Where in a run we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the measurement.
    WarmUp,
    /// In it.
    Measure,
    /// Behind it.
    Over,
}

/// Divides a run into warm-up and measurement.
#[derive(Debug)]
pub struct Meter {
    phase: Phase,
    measure_at: Instant,
    length: Duration,
    started: Instant,
    cpu_start: Duration,
    /// Filled in at the end.
    measured: Duration,
    cpu: Duration,
}

impl Meter {
    /// Starts the warm-up.
    ///
    /// # Errors
    /// The times are none.
    pub fn start(warmup_s: f64, seconds: f64) -> Result<Self, Error> {
        let duration = |name: &str, s: f64| {
            Duration::try_from_secs_f64(s).map_err(|_| Error::Usage(format!("--{name} must be a number of seconds")))
        };
        let (warmup, length) = (duration("warmup", warmup_s)?, duration("seconds", seconds)?);
        if length.is_zero() {
            return Err(Error::Usage("--seconds must be more than 0".into()));
        }
        let now = Instant::now();
        Ok(Self {
            phase: Phase::WarmUp,
            measure_at: now + warmup,
            length,
            started: now,
            cpu_start: Duration::ZERO,
            measured: Duration::ZERO,
            cpu: Duration::ZERO,
        })
    }

    /// Where the run is at `now`; and whether that has just changed.
    pub fn at(&mut self, now: Instant) -> (Phase, bool) {
        let before = self.phase;
        if before == Phase::WarmUp && now >= self.measure_at {
            self.phase = Phase::Measure;
            (self.started, self.cpu_start) = (now, cpu_time());
        } else if before == Phase::Measure && now >= self.started + self.length {
            self.phase = Phase::Over;
            (self.measured, self.cpu) = (now - self.started, cpu_time() - self.cpu_start);
        }
        (self.phase, self.phase != before)
    }

    /// Is it being measured?
    pub fn measuring(&self) -> bool {
        self.phase == Phase::Measure
    }

    /// Seconds measured.
    pub fn seconds(&self) -> f64 {
        self.measured.as_secs_f64()
    }

    /// Share of these that this thread ran.
    pub fn cpu_pct(&self) -> f64 {
        percent(self.cpu.as_secs_f64(), self.measured.as_secs_f64())
    }
}

/// A share in percent, to two digits.
pub fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        (part * 10_000.0 / whole).round() / 100.0
    } else {
        0.0
    }
}

/// A count as a number to calculate with.
#[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub fn real(count: u64) -> f64 {
    count as f64
}
