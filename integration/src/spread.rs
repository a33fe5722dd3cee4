//! Several measurements of one thing.

use std::{fmt, time::Duration};

/// Durations, printed as least / median / most.
#[derive(Debug, Clone, Default)]
pub struct Spread(Vec<Duration>);

impl Spread {
    /// One more.
    pub fn add(&mut self, measured: Duration) {
        let place = self.0.partition_point(|other| *other <= measured);
        self.0.insert(place, measured);
    }

    /// The longest; zero if there is none.
    pub fn max(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    /// The one in the middle; zero if there is none.
    pub fn median(&self) -> Duration {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let least = self.0.first().copied().unwrap_or_default();
        write!(
            f,
            "{:.1} / {:.1} / {:.1} ms (least / median / most)",
            ms(least),
            ms(self.median()),
            ms(self.max())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        let mut spread = Spread::default();
        for ms in [5, 1, 9, 3, 7] {
            spread.add(Duration::from_millis(ms));
        }
        assert_eq!(spread.median(), Duration::from_millis(5));
        assert_eq!(spread.max(), Duration::from_millis(9));
        assert_eq!(spread.to_string(), "1.0 / 5.0 / 9.0 ms (least / median / most)");
    }
}
