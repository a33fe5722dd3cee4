//! Latencies, counted in buckets no wider than 1/64 of their value: no allocation per sample.

const SUB_BITS: u32 = 6;
const SUB_COUNT: usize = 1 << SUB_BITS;
const BUCKET_COUNT: usize = SUB_COUNT * (64 - SUB_BITS as usize + 1);

/// A histogram of nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: vec![0; BUCKET_COUNT],
            count: 0,
            max_ns: 0,
        }
    }
}

impl Histogram {
    /// Counts a sample.
    #[inline]
    pub fn add(&mut self, ns: u64) {
        if let Some(bucket) = self.buckets.get_mut(bucket_of(ns)) {
            *bucket += 1;
        }
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// How many samples there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest sample in microseconds.
    pub fn max_us(&self) -> Option<f64> {
        (self.count > 0).then(|| micros(self.max_ns))
    }

    /// The value in microseconds that `per_mille` of the samples do not exceed: the upper end of its bucket.
    pub fn quantile_us(&self, per_mille: u64) -> Option<f64> {
        let rank = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if seen >= rank {
                return Some(micros(upper_end(index).min(self.max_ns)));
            }
        }
        None
    }
}

#[allow(clippy::cast_precision_loss, reason = "microseconds for people")]
fn micros(ns: u64) -> f64 {
    (ns as f64 / 10.0).round() / 100.0
}

fn bucket_of(ns: u64) -> usize {
    if ns < SUB_COUNT as u64 {
        return usize::try_from(ns).unwrap_or(0);
    }
    let shift = ns.ilog2() - SUB_BITS;
    // The leading one of the shifted value is the octave's.
    let within = usize::try_from(ns >> shift).unwrap_or(0);
    shift as usize * SUB_COUNT + within
}

fn upper_end(index: usize) -> u64 {
    if index < 2 * SUB_COUNT {
        return index as u64;
    }
    let shift = index / SUB_COUNT - 1;
    let within = (index % SUB_COUNT + SUB_COUNT) as u64;
    // In 128 bits: the last bucket ends where u64 does.
    let end = (u128::from(within + 1) << shift) - 1;
    u64::try_from(end).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_is_in_a_narrow_bucket(ns: u64) {
            let index = bucket_of(ns);
            prop_assert!(index < BUCKET_COUNT);
            prop_assert!(upper_end(index) >= ns);
            prop_assert!(index == 0 || upper_end(index - 1) < ns);
            prop_assert!(upper_end(index) - ns <= ns / 32);
        }
    }

    #[test]
    fn quantiles_are_those_of_the_samples() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_us(500), None);
        (1..=1000).for_each(|n| histogram.add(n * 1000));
        let near = |per_mille, want: f64| {
            let got = histogram.quantile_us(per_mille).expect("samples");
            assert!((got - want).abs() <= want / 32.0, "{per_mille}: {got} is not {want}");
        };
        near(500, 500.0);
        near(990, 990.0);
        near(999, 999.0);
        assert_eq!(histogram.max_us(), Some(1000.0));
        assert_eq!(histogram.count(), 1000);
    }
}
