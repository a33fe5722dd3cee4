//! Searching in sorted arrays, with every step counted where a test asks for it.

/// Counts the steps of a lookup. Traffic counts none of them.
pub(crate) trait Meter {
    /// One comparison, or one thing looked at.
    fn step(&mut self);
}

impl Meter for () {
    #[inline(always)]
    fn step(&mut self) {}
}

/// How many of the sorted `starts` are at or before `value`: one step for each halving.
#[inline]
pub(crate) fn at_or_before<T: Copy + Ord>(starts: &[T], value: T, meter: &mut impl Meter) -> usize {
    let (mut base, mut left) = (0, starts.len());
    while left > 0 {
        meter.step();
        let half = left.div_ceil(2);
        let here = starts.get(base + half - 1).is_some_and(|start| *start <= value);
        // Both arms are plain moves, so that a random address costs no misprediction.
        base = if here { base + half } else { base };
        left = if here { left - half } else { half - 1 };
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_finds_what_counting_finds_within_its_steps() {
        struct Steps(u32);
        impl Meter for Steps {
            fn step(&mut self) {
                self.0 += 1;
            }
        }
        for len in 0..70_u32 {
            let starts: Vec<u32> = (0..len).map(|n| n * 3 + 1).collect();
            for value in 0..len * 3 + 3 {
                let mut steps = Steps(0);
                let counted = starts.iter().filter(|start| **start <= value).count();
                assert_eq!(at_or_before(&starts, value, &mut steps), counted);
                assert!(steps.0 <= u32::BITS - len.leading_zeros(), "{len}: {}", steps.0);
            }
        }
    }
}
