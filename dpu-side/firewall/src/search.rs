//! Searching in sorted arrays, with every step counted where a test asks for it.

use std::hint::select_unpredictable;

/// Counts the steps of a lookup, for who has to bound or to charge them.
pub(crate) trait Meter {
    /// One comparison, or one thing looked at.
    fn step(&mut self);
}

impl Meter for () {
    #[inline(always)]
    fn step(&mut self) {}
}

/// So many; there are never more than [`crate::limits::LOOKUP_STEPS_MAX`] of one lookup.
impl Meter for u32 {
    #[inline(always)]
    fn step(&mut self) {
        *self = self.wrapping_add(1);
    }
}

/// How many of the sorted `starts` are at or before `value`: one step for each halving.
///
/// Where it goes on is chosen without a branch, since a guess about a random address is wrong every other time.
#[inline]
pub(crate) fn at_or_before<T: Copy + Ord>(starts: &[T], value: T, meter: &mut impl Meter) -> usize {
    let is_before = |place: usize| starts.get(place).is_some_and(|start| *start <= value);
    let (mut base, mut left) = (0, starts.len());
    while left > 1 {
        meter.step();
        let half = left / 2;
        base = select_unpredictable(is_before(base + half), base + half, base);
        left -= half;
    }
    meter.step();
    base + usize::from(is_before(base))
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
                assert!(steps.0 <= 1 + len.next_power_of_two().ilog2(), "{len}: {}", steps.0);
            }
        }
    }
}
