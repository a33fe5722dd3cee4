//! When to try again.

use std::time::{Duration, Instant};

/// Doubling delays between a first and a longest one.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Delays from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// When to try again after a failure at `now`.
    pub fn failed(&mut self, now: Instant) -> Instant {
        let at = now + self.next;
        self.next = (self.next * 2).min(self.longest);
        at
    }

    /// It worked: the next failure begins with the first delay again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_begin_again() {
        let now = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let delays: Vec<_> = (0..4).map(|_| (backoff.failed(now) - now).as_millis()).collect();
        assert_eq!(delays, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!((backoff.failed(now) - now).as_millis(), 100);
    }
}
