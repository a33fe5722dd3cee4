//! Every question there is, for small rings.

use super::*;

const SIZES: [u16; 5] = [1, 2, 4, 8, 16];

/// A slot and a wrap counter, counted as the specification says (virtio 1.3 §2.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    slot: u16,
    wrap: bool,
}

impl Counted {
    fn next(self, size: u16) -> Self {
        match self.slot + 1 == size {
            true => Self {
                slot: 0,
                wrap: !self.wrap,
            },
            false => Self {
                slot: self.slot + 1,
                ..self
            },
        }
    }
}

/// All positions of a ring as they are counted from its start, through 16 bits and on into the next round.
fn all(size: u16) -> impl Iterator<Item = (u16, Counted)> {
    let start = Counted { slot: 0, wrap: true };
    let counted = std::iter::successors(Some(start), move |at| Some(at.next(size)));
    (0..=u16::MAX).chain(0..=u16::MAX).zip(counted)
}

#[test]
fn slots_and_wrap_counters_are_those_that_are_counted() {
    for size in SIZES.into_iter().chain([1024, 32_768]) {
        let laps = Laps::new(size);
        for (position, Counted { slot, wrap }) in all(size) {
            assert_eq!(
                (laps.slot(position), laps.wrap(position)),
                (slot, wrap),
                "{size} {position}"
            );
        }
    }
}

#[test]
fn flags_tell_available_from_used_and_both_from_the_lap_before() {
    for size in SIZES {
        let laps = Laps::new(size);
        for (position, Counted { wrap, .. }) in all(size) {
            let bits = |avail: bool, used: bool| if avail { AVAIL } else { 0 } | if used { USED } else { 0 };
            for rest in [0, !(AVAIL | USED)] {
                for (avail, used) in [(false, false), (false, true), (true, false), (true, true)] {
                    let flags = bits(avail, used) | rest;
                    // virtio 1.3 §2.8.1: available if AVAIL is the wrap counter and USED is its inverse.
                    assert_eq!(laps.is_available(position, flags), avail == wrap && used != wrap);
                    assert_eq!(laps.is_used(position, flags), avail == wrap && used == wrap);
                }
            }
            // What was written a lap ago is neither: the driver's and the device's marks of a lap are new to it.
            let before = position.wrapping_sub(size);
            assert!(!laps.is_available(position, laps.used(before)));
            assert!(!laps.is_available(position, laps.available(before)));
            assert!(!laps.is_used(position, laps.used(before)));
            assert!(!laps.is_used(position, laps.available(position)));
        }
    }
}

#[test]
fn a_ring_of_zeros_has_nothing_available_or_used() {
    for size in SIZES {
        let laps = Laps::new(size);
        for position in 0..size {
            assert!(!laps.is_available(position, 0) && !laps.is_used(position, 0));
        }
    }
}

#[test]
fn positions_are_told_and_understood() {
    for size in SIZES {
        let laps = Laps::new(size);
        for (position, Counted { slot, wrap }) in all(size) {
            let told = slot | u16::from(wrap) << 15;
            assert_eq!(laps.told(position), told);
            let understood = laps.position(told).unwrap();
            assert_eq!(understood, laps.canonical(position));
            assert_eq!((laps.slot(understood), laps.wrap(understood)), (slot, wrap));
        }
        for told in 0..=u16::MAX {
            let slot = told & 0x7fff;
            assert_eq!(laps.position(told).is_some(), slot < size);
            assert!(laps.position(told).is_none_or(|position| laps.told(position) == told));
        }
    }
    let laps = Laps::new(32_768);
    assert!((0..=u16::MAX).all(|told| laps.position(told).is_some_and(|position| laps.told(position) == told)));
}

#[test]
fn distances_are_what_is_counted() {
    for size in SIZES.into_iter().chain([32_768]) {
        let laps = Laps::new(size);
        for from in (0..=u16::MAX).step_by(if size > 16 { 4_099 } else { 7 }) {
            for steps in 0..2 * u32::from(size).min(32) {
                let steps = u16::try_from(steps).unwrap();
                assert_eq!(laps.distance(from, from.wrapping_add(steps)), steps);
            }
        }
    }
}

/// vring_need_event as it is printed (virtio 1.3 §2.7.10), with the positions of a packed ring brought onto one line as
/// drivers do: what lies in the other lap is a ring's length before.
fn as_drivers_do(size: u16, event: Counted, old: Counted, new: Counted) -> bool {
    let size = i32::from(size);
    let mut was = i32::from(old.slot);
    let is = i32::from(new.slot);
    if is <= was {
        was -= size;
    }
    let mut at = i32::from(event.slot);
    if event.wrap != new.wrap {
        at -= size;
    }
    let wrapping = |value: i32| u16::try_from(value.rem_euclid(1 << 16)).unwrap();
    wrapping(is - at - 1) < wrapping(is - was)
}

#[test]
fn an_event_is_passed_where_drivers_and_devices_of_others_say_so() {
    for size in SIZES {
        let laps = Laps::new(size);
        let counted: Vec<(u16, Counted)> = all(size).take(4 * usize::from(size)).collect();
        for &(old, was) in counted.iter().take(2 * usize::from(size)) {
            // One to all of the ring was used.
            for &(new, is) in counted.iter().skip(usize::from(old) + 1).take(size.into()) {
                for &(_, event) in counted.iter().take(2 * usize::from(size)) {
                    let told = event.slot | u16::from(event.wrap) << 15;
                    let expected = as_drivers_do(size, event, was, is);
                    assert_eq!(
                        laps.passes(told, old, new),
                        expected,
                        "{size}: {told:#x} from {old} to {new}"
                    );
                }
            }
            assert!(!laps.passes(laps.told(old), old, old), "nothing was used");
            assert!(laps.passes(size, old, old.wrapping_add(1)), "an event that is no slot");
        }
    }
}
