use std::sync::Arc;

use super::*;
use crate::driver::{GuestRam, RAM_START};

#[test]
fn copies_of_every_length_are_whole_and_no_longer() {
    let ram = GuestRam::new(8192);
    let all = ram.memory().bytes(RAM_START, 4096, 0).expect("it is mapped");
    let pattern: Vec<u8> = (0..600u16).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
    for len in (0..=300).chain([511, 512, 600]) {
        for offset in [0, 1, 13] {
            all.copy_from(&[0xee; 700]);
            let there = all.part(offset, len).expect("it is inside");
            there.copy_from(&pattern);
            let mut back = [0x11; 700];
            all.part(0, 700).expect("it is inside").copy_to(&mut back);
            assert_eq!(back[offset..offset + len], pattern[..len]);
            assert!(
                back[..offset]
                    .iter()
                    .chain(&back[offset + len..])
                    .all(|byte| *byte == 0xee)
            );
            let mut private = vec![0x22; 700];
            there.copy_to(&mut private[3..]);
            assert_eq!(private[3..3 + len], pattern[..len]);
            assert!(private[..3].iter().chain(&private[3 + len..]).all(|byte| *byte == 0x22));
            let other = ram.memory().bytes(RAM_START + 4096, 4096, 0).expect("it is mapped");
            there.copy_to_guest(other);
            let mut copied = vec![0; len];
            other.copy_to(&mut copied);
            assert_eq!(copied, pattern[..len]);
        }
    }
}

#[test]
fn copies_over_themselves_are_as_if_read_first() {
    let ram = GuestRam::new(8192);
    let all = ram.memory().bytes(RAM_START, 2048, 0).expect("it is mapped");
    let pattern: Vec<u8> = (0..2048u16).map(|n| n.to_le_bytes()[0].wrapping_mul(7)).collect();
    for len in [1, 3, 7, 15, 31, 40, 64, 100, 200, 256, 700] {
        for (from, to) in [(0, 5), (5, 0), (0, 64)] {
            all.copy_from(&pattern);
            let source = all.part(from, len).expect("it is inside");
            source.copy_to_guest(all.part(to, len).expect("it is inside"));
            let mut there = vec![0; len];
            all.part(to, len).expect("it is inside").copy_to(&mut there);
            assert_eq!(there, pattern[from..from + len], "{len} bytes from {from} to {to}");
        }
    }
}

#[test]
fn parts_lie_inside() {
    let ram = GuestRam::new(4096);
    let all = ram.memory().bytes(RAM_START, 100, 0).expect("it is mapped");
    assert_eq!(all.part(100, 0).map(GuestBytes::len), Some(0));
    assert!(all.part(99, 2).is_none());
    assert!(all.part(101, 0).is_none());
    assert!(all.part(1, usize::MAX).is_none());
    assert!(all.descriptor(5).is_some());
    assert!(all.descriptor(6).is_none());
}

#[test]
fn a_ring_view_is_of_areas_that_are_large_enough_and_aligned() {
    let ram = GuestRam::new(4096);
    let area = |at: u64, len: usize| ram.memory().area(RAM_START + at, len).expect("it is mapped");
    let view = |desc, avail, used, events| RingView::new(8, events, desc, avail, used).is_some();
    assert!(view(area(0, 128), area(128, 20), area(256, 68), false));
    assert!(view(area(0, 128), area(128, 22), area(256, 70), true));
    assert!(!view(area(0, 127), area(128, 22), area(256, 70), true));
    assert!(!view(area(0, 128), area(128, 21), area(256, 70), true));
    assert!(!view(area(0, 128), area(128, 22), area(256, 69), true));
    assert!(!view(area(8, 128), area(256, 22), area(512, 70), true));
    assert!(!view(area(0, 128), area(129, 22), area(256, 70), true));
    assert!(!view(area(0, 128), area(128, 22), area(258, 70), true));
    assert!(RingView::new(6, false, area(0, 128), area(128, 20), area(256, 68)).is_none());
}

#[test]
fn every_running_index_is_inside_the_ring() {
    let ram = Arc::new(GuestRam::new(4096));
    let area = |at: u64, len: usize| ram.memory().area(RAM_START + at, len).expect("it is mapped");
    let view = RingView::new(8, true, area(0, 128), area(128, 22), area(256, 70)).expect("it is in order");
    let mut bytes = [0; 2];
    for index in [0, 7, 8, 15, 0x7fff, 0xffff] {
        ram.memory()
            .write(RAM_START + 128 + 4 + 2 * u64::from(index & 7), &[0x34, 0x12])
            .expect("it is mapped");
        assert_eq!(view.avail_entry(index), 0x1234);
        view.set_used_entry(index, index & 7, 0xabcd);
        ram.memory()
            .read(RAM_START + 256 + 4 + 8 * u64::from(index & 7) + 4, &mut bytes)
            .expect("it is mapped");
        assert_eq!(bytes, [0xcd, 0xab]);
        assert_eq!(view.descriptor(index), Descriptor::default());
    }
    assert_eq!(view.set_avail_event(0x0102), Some(68));
    ram.memory()
        .read(RAM_START + 256 + 68, &mut bytes)
        .expect("it is mapped");
    assert_eq!(bytes, [2, 1]);
}
