//! When a daemon that ended is started again, and when that is given up. Pure: what it decides on is told.

use std::time::Duration;

/// A daemon that lived shorter than this died quickly: whatever ended it is likely to end the next one too.
pub const QUICK: Duration = Duration::from_secs(10);

/// Pauses before a daemon is started again, after its first, second, … quick death in a row. At the next it is given up.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// What to do about a daemon that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Start it again after this long.
    After(Duration),
    /// It died quickly this many times in a row.
    GiveUp(usize),
}

/// One daemon's deaths.
#[derive(Debug, Default)]
pub struct Restarts {
    quick: usize,
}

impl Restarts {
    /// It ended, and had lived for this long. One that lived long enough is started again at once, since its guests wait.
    pub fn died(&mut self, lived: Duration) -> Decision {
        if lived >= QUICK {
            self.quick = 0;
        }
        let pause = PAUSES.get(self.quick);
        self.quick += 1;
        pause.map_or(Decision::GiveUp(self.quick), |pause| Decision::After(*pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_deaths_are_followed_by_growing_pauses_and_then_by_none() {
        let mut restarts = Restarts::default();
        let decisions: Vec<Decision> = (0..6).map(|_| restarts.died(QUICK / 2)).collect();
        let pauses: Vec<Duration> = decisions
            .iter()
            .map_while(|decision| match decision {
                Decision::After(pause) => Some(*pause),
                Decision::GiveUp(_) => None,
            })
            .collect();
        assert_eq!((pauses.len(), pauses[0]), (5, Duration::ZERO));
        assert!(pauses.is_sorted_by(|a, b| a < b), "{pauses:?}");
        assert_eq!(decisions[5], Decision::GiveUp(6));
    }

    #[test]
    fn a_daemon_that_lived_for_a_while_begins_anew() {
        let mut restarts = Restarts::default();
        for _ in 0..100 {
            assert_eq!(restarts.died(QUICK), Decision::After(Duration::ZERO));
        }
        for _ in 0..4 {
            assert!(matches!(restarts.died(Duration::ZERO), Decision::After(_)));
        }
        assert_eq!(restarts.died(QUICK), Decision::After(Duration::ZERO), "forgiven");
    }
}
