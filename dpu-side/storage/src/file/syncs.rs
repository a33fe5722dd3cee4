//! Who waits for which sync.

use std::collections::VecDeque;

/// Runs one sync at a time. Whoever joins while one runs waits for the next, which covers all that joined by then.
/// Once a sync failed, it is never tried again: the kernel may have dropped the data and forgotten the failure.
pub(super) struct Syncs<T> {
    waiting: VecDeque<T>,
    covered: VecDeque<T>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Running,
    /// The last sync ended; those it covered are being told.
    Over,
    Latched,
}

impl<T> Syncs<T> {
    /// None running; room for `depth` waiting.
    pub(super) fn new(depth: usize) -> Self {
        Self {
            waiting: VecDeque::with_capacity(depth),
            covered: VecDeque::with_capacity(depth),
            state: State::Idle,
        }
    }

    /// A sync failed.
    pub(super) fn latched(&self) -> bool {
        self.state == State::Latched
    }

    /// Wait for a sync that begins from now on.
    pub(super) fn join(&mut self, who: T) {
        self.waiting.push_back(who);
    }

    /// Is a sync to be begun now? It covers all who joined so far.
    pub(super) fn begin(&mut self) -> bool {
        let begin = self.state == State::Idle && !self.waiting.is_empty();
        if begin {
            self.state = State::Running;
            self.covered.append(&mut self.waiting);
        }
        begin
    }

    /// The running sync ended. Take those who are over by [`Syncs::next_over`].
    pub(super) fn ended(&mut self, well: bool) {
        self.state = if well { State::Over } else { State::Latched };
    }

    /// Someone whose waiting is over, and whether the sync that ended covered him. If not, none ever will.
    pub(super) fn next_over(&mut self) -> Option<(T, bool)> {
        match self.state {
            State::Idle | State::Running => None,
            State::Over => {
                let next = self.covered.pop_front();
                if next.is_none() {
                    self.state = State::Idle;
                }
                next.map(|who| (who, true))
            }
            State::Latched => {
                let covered = self.covered.pop_front().map(|who| (who, true));
                covered.or_else(|| self.waiting.pop_front().map(|who| (who, false)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn over(syncs: &mut Syncs<u32>) -> Vec<(u32, bool)> {
        std::iter::from_fn(|| syncs.next_over()).collect()
    }

    #[test]
    fn who_joins_while_a_sync_runs_waits_for_the_next() {
        let mut syncs = Syncs::new(4);
        assert!(!syncs.begin(), "nobody waits");
        syncs.join(1);
        syncs.join(2);
        assert!(syncs.begin());
        syncs.join(3);
        assert!(!syncs.begin(), "one is running");
        syncs.ended(true);
        assert_eq!(over(&mut syncs), [(1, true), (2, true)]);
        assert!(syncs.begin());
        syncs.ended(true);
        assert_eq!(over(&mut syncs), [(3, true)]);
        assert!(!syncs.begin());
    }

    #[test]
    fn after_a_failure_nobody_is_told_that_a_sync_covered_him_and_none_begins() {
        let mut syncs = Syncs::new(4);
        syncs.join(1);
        assert!(syncs.begin());
        syncs.join(2);
        syncs.ended(false);
        assert!(syncs.latched());
        assert_eq!(over(&mut syncs), [(1, true), (2, false)]);
        syncs.join(3);
        assert!(!syncs.begin());
        assert_eq!(over(&mut syncs), [(3, false)]);
    }

    proptest! {
        /// Whoever joins is told exactly once, and only by a sync that began after.
        #[test]
        fn everyone_is_told_once_and_by_a_later_sync(steps in proptest::collection::vec(0u8..3, 1..200)) {
            let mut syncs = Syncs::new(8);
            let (mut clock, mut began) = (0u32, 0u32);
            let mut told = Vec::new();
            for step in steps {
                clock += 1;
                match step {
                    0 => syncs.join(clock),
                    1 if syncs.begin() => began = clock,
                    2 if syncs.state == State::Running => {
                        syncs.ended(true);
                        for (who, covered) in over(&mut syncs) {
                            prop_assert!(covered && who < began);
                            told.push(who);
                        }
                    }
                    _ => {}
                }
            }
            prop_assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
