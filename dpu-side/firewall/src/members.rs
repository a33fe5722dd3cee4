//! Sets of addresses that rules name as peers: the members of a group in one network, or an address set.

use std::{net::IpAddr, ops::RangeInclusive};

use crate::{
    Cidr,
    search::{Meter, at_or_before},
};

/// An address as a number.
pub(crate) trait Number: Copy + Ord {
    /// What [`Number::order`] sorts by.
    type Order: Ord;
    /// The next one, if there is one.
    fn next(self) -> Option<Self>;
    /// Sorts ranges by where they begin, the longer of two first.
    fn order(first: Self, last: Self) -> Self::Order;
}

impl Number for u32 {
    type Order = u64;
    fn order(first: Self, last: Self) -> u64 {
        u64::from(first) << 32 | u64::from(!last)
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

impl Number for u128 {
    type Order = (Self, Self);
    fn order(first: Self, last: Self) -> (Self, Self) {
        (first, !last)
    }
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }
}

/// A set of addresses of both families.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) v4: Ranges<u32>,
    pub(crate) v6: Ranges<u128>,
}

impl Members {
    pub(crate) fn of_ranges<'a>(entries: impl Iterator<Item = &'a Cidr> + Clone) -> Self {
        Self {
            v4: Ranges::new(entries.clone().filter_map(Cidr::v4).collect()),
            v6: Ranges::new(entries.filter_map(Cidr::v6).collect()),
        }
    }

    pub(crate) fn of_addresses<'a>(addresses: impl Iterator<Item = &'a IpAddr> + Clone) -> Self {
        let v4 = addresses.clone().filter_map(|address| match address {
            IpAddr::V4(a) => Some(a.to_bits()..=a.to_bits()),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(a) => Some(a.to_bits()..=a.to_bits()),
        });
        Self {
            v4: Ranges::new(v4.collect()),
            v6: Ranges::new(v6.collect()),
        }
    }
}

/// Disjoint ranges of numbers that do not touch, in order: one set has one form.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges<T> {
    firsts: Box<[T]>,
    lasts: Box<[T]>,
}

impl<T: Number> Ranges<T> {
    fn new(mut ranges: Vec<RangeInclusive<T>>) -> Self {
        ranges.sort_unstable_by_key(|range| *range.start());
        let (mut firsts, mut lasts) = (Vec::with_capacity(ranges.len()), Vec::<T>::with_capacity(ranges.len()));
        for range in ranges {
            match lasts.last_mut() {
                Some(last) if last.next().is_none_or(|after| *range.start() <= after) => {
                    *last = (*last).max(*range.end());
                }
                _ => {
                    firsts.push(*range.start());
                    lasts.push(*range.end());
                }
            }
        }
        Self {
            firsts: firsts.into(),
            lasts: lasts.into(),
        }
    }

    pub(crate) fn contains(&self, value: T, meter: &mut impl Meter) -> bool {
        let before = at_or_before(&self.firsts, value, meter);
        before
            .checked_sub(1)
            .and_then(|index| self.lasts.get(index))
            .is_some_and(|last| value <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_one_form_however_it_is_written() {
        let of = |entries: &[&str]| {
            let entries: Vec<Cidr> = entries.iter().map(|e| e.parse().expect(e)).collect();
            Members::of_ranges(entries.iter())
        };
        let halves = of(&["10.0.0.128/25", "10.0.0.0/25", "10.0.0.7", "fd00::/16", "fd00:1::/32"]);
        assert_eq!(halves, of(&["10.0.0.0/24", "fd00::/16"]));
        assert_eq!(of(&["0.0.0.0/0", "255.255.255.255"]), of(&["0.0.0.0/1", "128.0.0.0/1"]));
        let set = of(&["10.0.0.1", "10.0.0.4/30", "::/0"]);
        let within = |a: u32| set.v4.contains(0x0a00_0000 + a, &mut ());
        assert_eq!(
            [0, 1, 2, 3, 4, 7, 8].map(within),
            [false, true, false, false, true, true, false]
        );
        assert!(set.v6.contains(0, &mut ()) && set.v6.contains(u128::MAX, &mut ()));
        assert!(!of(&[]).v4.contains(0, &mut ()));
    }
}
