//! Median, least and most of a few runs.

/// What a few runs of the same thing gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The middle one; of an even number of runs the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

impl Summary {
    /// Of `values`; none if there are none, or one of them is not a number.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        if sorted.iter().any(|value| value.is_nan()) {
            return None;
        }
        sorted.sort_by(f64::total_cmp);
        let runs = sorted.len();
        let middle = runs / 2;
        let upper = *sorted.get(middle)?;
        let median = if runs % 2 == 1 {
            upper
        } else {
            f64::midpoint(sorted[middle - 1], upper)
        };
        Some(Self {
            median,
            min: sorted[0],
            max: sorted[runs - 1],
            runs,
        })
    }
}

/// Digits that mean something: three figures, without an exponent.
pub fn readable(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = if magnitude >= 100.0 {
        0
    } else if magnitude >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

/// Rounded so that JSON shows no digits that were not measured.
pub fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        let summary = Summary::of([3.0, 1.0, 100.0, 2.0, 2.5]);
        let expected = Summary {
            median: 2.5,
            min: 1.0,
            max: 100.0,
            runs: 5,
        };
        assert_eq!(summary, Some(expected));
    }

    #[test]
    fn of_an_even_number_it_is_the_mean_of_the_middle_two() {
        assert_eq!(Summary::of([4.0, 1.0, 2.0, 9.0]).map(|s| s.median), Some(3.0));
        assert_eq!(
            Summary::of([4.0]).map(|s| (s.median, s.min, s.max, s.runs)),
            Some((4.0, 4.0, 4.0, 1))
        );
    }

    #[test]
    fn nothing_and_what_is_no_number_have_none() {
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([1.0, f64::NAN]), None);
    }

    #[test]
    fn three_figures_are_shown() {
        let shown: Vec<String> = [0.123, 1.434, 16.84, 652.4, 3208.0].map(readable).into();
        assert_eq!(shown, ["0.12", "1.43", "16.8", "652", "3208"]);
        assert_eq!(rounded(1.234_567_8).to_string(), "1.2346");
    }
}
