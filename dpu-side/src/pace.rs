//! Holding a host to a rate by waiting: one that floods slows down only itself.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What may come at once: this much time's worth.
const BURST: Duration = Duration::from_millis(100);

/// The pace of one stream of requests.
pub struct Pace {
    interval: Duration,
    /// When the next request is due; never more than [`BURST`] behind the clock.
    due: Instant,
}

impl Pace {
    /// So many a second; 0 is taken as 1.
    pub fn new(per_s: u32) -> Self {
        let start = Instant::now();
        Self {
            interval: Duration::from_secs(1) / per_s.max(1),
            due: start.checked_sub(BURST).unwrap_or(start),
        }
    }

    /// Returns when the next one may be taken.
    pub fn wait(&mut self) {
        std::thread::sleep(self.next(Instant::now()));
    }

    /// How long from `now` to the next one.
    fn next(&mut self, now: Instant) -> Duration {
        self.due = self.due.max(now.checked_sub(BURST).unwrap_or(now)) + self.interval;
        self.due.saturating_duration_since(now)
    }
}

/// The pace of several streams of requests together.
pub struct SharedPace(Mutex<Pace>);

impl SharedPace {
    /// So many a second of all of them.
    pub fn new(per_s: u32) -> Self {
        Self(Mutex::new(Pace::new(per_s)))
    }

    /// Returns when the next one may be taken. Others may ask meanwhile; their turns come after it.
    pub fn wait(&self) {
        let pause = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .next(Instant::now());
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut pace = Pace::new(100);
        let start = Instant::now();
        let at_once = (0..100).filter(|_| pace.next(start).is_zero()).count();
        assert!((9..=10).contains(&at_once), "{at_once}");
        assert!(pace.next(start) >= Duration::from_millis(900));
        let later = start + Duration::from_secs(60);
        let at_once = (0..100).filter(|_| pace.next(later).is_zero()).count();
        assert!(
            (9..=10).contains(&at_once),
            "an idle minute saves up no more: {at_once}"
        );
    }

    #[test]
    fn what_many_streams_take_together_keeps_to_the_rate() {
        let pace = SharedPace::new(200);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10).for_each(|_| pace.wait()));
            }
        });
        // 20 at once, and 60 at 200 a second.
        let taken = start.elapsed();
        assert!(taken >= Duration::from_millis(280), "{taken:?}");
    }
}
