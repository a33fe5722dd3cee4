//! How often something that costs more than a frame may happen.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bucket of tokens, kept as a time: `RATE` in a second, and `BURST` at once after a quiet while. All workers take from
/// the same one.
#[derive(Debug, Default)]
pub(crate) struct Allowance<const RATE: u64, const BURST: u64> {
    /// When all that happened would have been done at that rate, in nanoseconds.
    until: AtomicU64,
}

impl<const RATE: u64, const BURST: u64> Allowance<RATE, BURST> {
    const APART_NS: u64 = 1_000_000_000 / RATE;

    /// May there be one more, at this time in nanoseconds?
    #[inline]
    pub(crate) fn may(&self, now: u64) -> bool {
        Self::next(self.until.load(Ordering::Relaxed), now).is_some()
    }

    /// One more, if there may be.
    pub(crate) fn take(&self, now: u64) -> bool {
        // A number on its own: nothing else is ordered by it.
        self.until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| Self::next(until, now))
            .is_ok()
    }

    fn next(until: u64, now: u64) -> Option<u64> {
        let until = until.max(now);
        (until - now <= (BURST - 1) * Self::APART_NS).then(|| until + Self::APART_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let allowance = Allowance::<10, 3>::default();
        let at = |now: u64| {
            let taken = |_: &_| {
                let may = allowance.may(now);
                assert_eq!(allowance.take(now), may);
                may
            };
            (0..5).filter(taken).count()
        };
        assert_eq!(at(0), 3, "from the beginning on");
        assert_eq!(at(5_000_000_000), 3);
        assert_eq!(at(5_050_000_000), 0);
        assert_eq!(at(5_100_000_000), 1);
        assert_eq!(at(5_300_000_000), 2);
        assert_eq!(at(60_000_000_000), 3);
    }
}
