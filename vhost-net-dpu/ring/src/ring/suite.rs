// What holds for rings of both kinds: part of a module for each, which says of which `FORMAT` the rings are.

use outboard_controls::{Check, Off};
use proptest::prelude::*;
use virtio_bindings::bindings::{
    virtio_config::VIRTIO_F_IN_ORDER,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use crate::{
    Chain, Ring, RingConfig, RingError, Segment,
    driver::{Driver, GuestRam, chain_of},
};

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const SIZE: u16 = 8;

fn pair(features: u64) -> (GuestRam, Driver, Ring) {
    let ram = GuestRam::new(1 << 20);
    let driver = Driver::new(&ram, SIZE, features | FORMAT);
    let ring = Ring::new(driver.config(), ram.memory().clone()).unwrap();
    (ram, driver, ring)
}

/// Which descriptor, or entry, is taken next.
fn slot(ring: &Ring) -> u32 {
    ring.base() & 0x7fff
}

/// One chain there and back.
fn round(driver: &mut Driver, ring: &mut Ring) {
    let added = driver.add_bytes(&[b"request"], &[6]).expect("there is room");
    driver.publish();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(true));
    assert_eq!(driver.read_segments(chain.readable()), b"request");
    chain.write_at(ring.memory(), 0, b"answer").unwrap();
    ring.push_used(&chain, 6).unwrap();
    assert_eq!(ring.publish(), Ok(true));
    assert_eq!(driver.used(), Some((added.head, 6)));
    assert_eq!(driver.read(added.writable[0].0, 6), b"answer");
    assert_eq!(driver.used(), None);
}

#[test]
fn chains_go_there_and_back_direct_and_indirect() {
    let (_ram, mut driver, mut ring) = pair(INDIRECT);
    for _ in 0..3 * SIZE {
        round(&mut driver, &mut ring);
    }
    let buffers = [(driver.buffer(0), 5), (driver.buffer(1), 7)];
    let head = driver.add_indirect(&buffers[..1], &buffers[1..]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(true));
    assert_eq!(chain.head(), head);
    assert_eq!(
        chain.readable(),
        [Segment {
            addr: buffers[0].0,
            len: 5
        }]
    );
    assert_eq!(
        chain.writable(),
        [Segment {
            addr: buffers[1].0,
            len: 7
        }]
    );
    assert_eq!(ring.pop(&mut chain), Ok(false));
}

#[test]
fn indices_wrap() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, SIZE, FORMAT).starting_at(u16::MAX - 2);
    let mut ring = Ring::new(driver.config(), ram.memory().clone()).unwrap();
    for _ in 0..5 {
        round(&mut driver, &mut ring);
    }
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn used_entries_show_only_when_published_and_out_of_order_is_fine() {
    let (_ram, mut driver, mut ring) = pair(0);
    let heads: Vec<u16> = (0..4).map(|_| driver.add_bytes(&[b"x"], &[]).unwrap().head).collect();
    driver.publish();
    let mut chain = Chain::new();
    for head in &heads {
        assert_eq!(ring.pop(&mut chain), Ok(true));
        assert_eq!(chain.head(), *head);
    }
    assert_eq!(ring.in_flight(), 4);
    for &head in heads.iter().rev() {
        ring.push_used(&chain_of(head), 0).unwrap();
    }
    assert_eq!((ring.in_flight(), driver.used()), (0, None));
    assert_eq!(ring.publish(), Ok(true));
    assert_eq!(ring.publish(), Ok(false), "nothing new, no call");
    let used: Vec<u16> = std::iter::from_fn(|| driver.used()).map(|(head, _)| head).collect();
    assert!(used.iter().eq(heads.iter().rev()));
}

#[test]
fn what_is_given_back_unused_is_popped_again() {
    let (_ram, mut driver, mut ring) = pair(0);
    let heads: Vec<u16> = (0..4).map(|_| driver.add_bytes(&[b"x"], &[]).unwrap().head).collect();
    driver.publish();
    let mut chain = Chain::new();
    while ring.pop(&mut chain).unwrap() {}
    ring.unpop(3);
    assert_eq!((slot(&ring), ring.in_flight()), (1, 1));
    assert_eq!(
        ring.push_used(&chain_of(heads[3]), 0),
        Err(RingError::NotInFlight { head: heads[3] })
    );
    let again: Vec<u16> = std::iter::from_fn(|| ring.pop(&mut chain).unwrap().then(|| chain.head())).collect();
    assert_eq!(again, heads[1..]);
}

#[test]
fn calls_are_wanted_unless_the_driver_says_otherwise() {
    let (_ram, mut driver, mut ring) = pair(0);
    driver.set_no_interrupt(true);
    let use_one = |driver: &mut Driver, ring: &mut Ring| {
        driver.add_bytes(&[b"x"], &[]).unwrap();
        driver.publish();
        let mut chain = Chain::new();
        assert!(ring.pop(&mut chain).unwrap());
        ring.push_used(&chain, 0).unwrap();
        ring.publish().unwrap()
    };
    assert!(!use_one(&mut driver, &mut ring));
    driver.set_no_interrupt(false);
    assert!(use_one(&mut driver, &mut ring));
}

#[test]
fn with_event_idx_calls_and_kicks_come_when_the_index_is_passed() {
    let (_ram, mut driver, mut ring) = pair(EVENT_IDX);
    driver.set_used_event(2);
    let mut wanted = Vec::new();
    for _ in 0..4 {
        driver.add_bytes(&[b"x"], &[]).unwrap();
        driver.publish();
        let mut chain = Chain::new();
        assert!(ring.pop(&mut chain).unwrap());
        ring.push_used(&chain, 0).unwrap();
        wanted.push(ring.publish().unwrap());
    }
    assert_eq!(wanted, [false, false, true, false]);

    assert!(driver.needs_kick(), "kicks were wanted from the start");
    assert_eq!(ring.enable_kicks(), Ok(false));
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    assert!(driver.needs_kick());
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    assert!(!driver.needs_kick(), "once is enough");
    assert_eq!(ring.enable_kicks(), Ok(true), "two are waiting");
}

#[test]
fn kicks_are_asked_for_only_before_sleep() {
    let (_ram, mut driver, mut ring) = pair(0);
    ring.disable_kicks();
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    assert!(!driver.needs_kick());
    assert_eq!(ring.enable_kicks(), Ok(true), "it came before the wish was seen");
    let mut chain = Chain::new();
    assert!(ring.pop(&mut chain).unwrap());
    assert_eq!(ring.enable_kicks(), Ok(false));
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    assert!(driver.needs_kick());
}

#[test]
fn another_ring_over_the_same_memory_goes_on() {
    let (ram, mut driver, mut ring) = pair(0);
    for _ in 0..5 {
        round(&mut driver, &mut ring);
    }
    let config = RingConfig {
        base: ring.base(),
        ..driver.config()
    };
    drop(ring);
    let mut ring = Ring::new(config, ram.memory().clone()).unwrap();
    round(&mut driver, &mut ring);
}

#[test]
#[cfg_attr(miri, ignore = "miri maps no files")]
fn h02_a_ring_in_memory_that_vanished_breaks_and_its_neighbour_goes_on() {
    let (ram, mut driver, mut ring) = pair(0);
    let (_ram, mut other_driver, mut other) = pair(0);
    round(&mut driver, &mut ring);
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    ram.file().set_len(0).unwrap();
    assert_eq!(ring.pop(&mut Chain::new()), Err(RingError::MemoryVanished));
    assert_eq!(ring.pop(&mut Chain::new()), Ok(false));
    assert_eq!(ring.enable_kicks(), Ok(false));
    assert_eq!(ring.broken(), Some(&RingError::MemoryVanished));
    round(&mut other_driver, &mut other);
}

#[test]
fn a_ring_that_the_device_failed_still_takes_back_what_is_in_flight() {
    let (_ram, mut driver, mut ring) = pair(0);
    let head = driver.add_bytes(&[b"x"], &[]).unwrap().head;
    driver.add_bytes(&[b"y"], &[]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert!(ring.pop(&mut chain).unwrap());
    let error = RingError::Request {
        head,
        reason: "it is too short",
    };
    ring.fail(error.clone());
    ring.fail(RingError::Access);
    assert_eq!((ring.pop(&mut chain), ring.broken()), (Ok(false), Some(&error)));
    ring.push_used(&chain_of(head), 0).unwrap();
    assert_eq!(ring.publish(), Ok(true));
    assert_eq!(driver.used(), Some((head, 0)));
}

proptest! {
    #[test]
    fn any_good_chains_arrive_as_they_were_made(
        start in any::<u16>(),
        shapes in prop::collection::vec((0usize..4, 0usize..4, any::<bool>()), 1..40),
    ) {
        let ram = GuestRam::new(1 << 20);
        let mut driver = Driver::new(&ram, SIZE, INDIRECT | FORMAT).starting_at(start);
        let mut ring = Ring::new(driver.config(), ram.memory().clone()).unwrap();
        let mut chain = Chain::new();
        for (readable, writable, indirect) in shapes {
            prop_assume!(readable + writable > 0);
            let buffers: Vec<(u64, u32)> =
                (0..).zip(0..readable + writable).map(|(n, _)| (driver.buffer(n), u32::from(n) + 1)).collect();
            let (from, to) = buffers.split_at(readable);
            let head = if indirect { driver.add_indirect(from, to) } else { driver.add(from, to) }.unwrap();
            driver.publish();
            prop_assert_eq!(ring.pop(&mut chain), Ok(true));
            prop_assert_eq!(chain.head(), head);
            let seen = |segments: &[Segment]| segments.iter().map(|s| (s.addr, s.len)).collect::<Vec<_>>();
            prop_assert_eq!(seen(chain.readable()), from.to_vec());
            prop_assert_eq!(seen(chain.writable()), to.to_vec());
            ring.push_used(&chain, u32::from(writable > 0)).unwrap();
            ring.publish().unwrap();
            prop_assert_eq!(driver.used(), Some((head, u32::from(writable > 0))));
        }
    }
}

/// Pops `count` chains of one writable buffer of 8 bytes each.
fn popped(driver: &mut Driver, ring: &mut Ring, count: usize) -> Vec<Chain> {
    let mut chains: Vec<Chain> = (0..count).map(|_| Chain::new()).collect();
    for chain in &mut chains {
        driver.add_bytes(&[], &[8]).unwrap();
        driver.publish();
        assert_eq!(ring.pop(chain), Ok(true));
    }
    chains
}

#[test]
fn chains_of_an_in_order_driver_go_back_in_order() {
    let (_ram, mut driver, mut ring) = pair(1 << VIRTIO_F_IN_ORDER);
    for _ in 0..3 * SIZE {
        round(&mut driver, &mut ring);
    }
    let chains = popped(&mut driver, &mut ring, 3);
    let (head, due) = (chains[1].head(), chains[0].head());
    assert_eq!(ring.push_used(&chains[1], 0), Err(RingError::OutOfOrder { head, due }));
    ring.unpop(1);
    for chain in &chains[..2] {
        ring.push_used(chain, 0).unwrap();
    }
    assert_eq!(
        ring.push_used(&chains[2], 0),
        Err(RingError::NotInFlight { head: chains[2].head() })
    );
    assert_eq!(ring.publish(), Ok(true));

    // Without the feature, and without the check, any order goes.
    let (_ram, mut driver, mut ring) = pair(0);
    let chains = popped(&mut driver, &mut ring, 2);
    ring.push_used(&chains[1], 0).unwrap();
    let (_ram, mut driver, mut ring) = pair(1 << VIRTIO_F_IN_ORDER);
    let chains = popped(&mut driver, &mut ring, 2);
    let _off = Off::here(Check::InOrder);
    ring.push_used(&chains[1], 0).unwrap();
}

/// A burst that a device reads only.
fn transmit(driver: &mut Driver, ring: &mut Ring, count: usize) -> (Vec<u16>, Vec<Chain>) {
    let mut chains: Vec<_> = (0..count).map(|_| Chain::new()).collect();
    let added = (0..count).map(|n| driver.add_bytes(&[&[n.to_le_bytes()[0]; 9]], &[]).unwrap().head);
    let heads: Vec<_> = added.collect();
    driver.publish();
    assert_eq!(ring.pop_burst(&mut chains), (count, None));
    assert_eq!(chains.iter().map(Chain::head).collect::<Vec<_>>(), heads);
    (heads, chains)
}

#[test]
fn an_in_order_driver_gets_one_entry_for_a_burst() {
    for features in [0, 1 << VIRTIO_F_IN_ORDER] {
        let (_ram, mut driver, mut ring) = pair(features);
        for count in [1, 3, 8, 2, 5, 8, 7].into_iter().cycle().take(50) {
            let (heads, chains) = transmit(&mut driver, &mut ring, count);
            // In two parts, of one publication.
            let (first, second) = chains.split_at(count / 2);
            ring.push_used_burst(first).unwrap();
            ring.push_used_burst(second).unwrap();
            assert_eq!(driver.used(), None);
            assert_eq!(ring.publish(), Ok(true));
            let mut back = Vec::new();
            while let Some((head, len)) = driver.used() {
                assert_eq!(len, 0);
                back.push(head);
            }
            assert_eq!(back, heads);
            assert_eq!(ring.in_flight(), 0);
        }
        round(&mut driver, &mut ring);
    }
}

#[test]
fn a_burst_goes_back_in_order_and_once() {
    let (_ram, mut driver, mut ring) = pair(1 << VIRTIO_F_IN_ORDER);
    let (heads, mut chains) = transmit(&mut driver, &mut ring, 4);
    chains.swap(1, 2);
    let error = RingError::OutOfOrder {
        head: heads[2],
        due: heads[1],
    };
    assert_eq!(ring.push_used_burst(&chains), Err(error));
    assert_eq!(ring.in_flight(), 3, "the one before is staged");
    chains.swap(1, 2);
    ring.push_used_burst(&chains[1..]).unwrap();
    assert_eq!(
        ring.push_used_burst(&chains[..1]),
        Err(RingError::NotInFlight { head: heads[0] })
    );
    ring.publish().unwrap();
    assert_eq!(std::iter::from_fn(|| driver.used()).count(), 4);
    round(&mut driver, &mut ring);
}

#[test]
fn what_a_burst_leaves_is_taken_again() {
    let (_ram, mut driver, mut ring) = pair(0);
    for left in [0, 1, 5, 8] {
        let (heads, mut chains) = transmit(&mut driver, &mut ring, 8);
        let base = ring.base() & 0xffff;
        ring.unpop(left);
        let done = 8 - usize::from(left);
        ring.push_used_burst(&chains[..done]).unwrap();
        assert_eq!(ring.pop_burst(&mut chains), (left.into(), None));
        assert_eq!(ring.base() & 0xffff, base);
        assert_eq!(
            chains[..left.into()].iter().map(Chain::head).collect::<Vec<_>>(),
            heads[done..]
        );
        ring.push_used_burst(&chains[..left.into()]).unwrap();
        ring.publish().unwrap();
        assert_eq!(std::iter::from_fn(|| driver.used()).count(), 8);
    }
}

#[test]
fn chains_before_a_malformed_one_are_taken() {
    let (_ram, mut driver, mut ring) = pair(0);
    let heads: Vec<_> = (0..3).map(|_| driver.add_bytes(&[b"x"], &[]).unwrap().head).collect();
    driver.offer(SIZE);
    driver.publish();
    let mut chains: Vec<_> = (0..8).map(|_| Chain::new()).collect();
    let error = RingError::HeadOutOfRange { head: SIZE, size: SIZE };
    assert_eq!(ring.pop_burst(&mut chains), (3, Some(error.clone())));
    assert_eq!(ring.broken(), Some(&error));
    assert_eq!(ring.pop_burst(&mut chains), (0, None), "it is told once");
    ring.push_used_burst(&chains[..3]).unwrap();
    ring.publish().unwrap();
    assert_eq!(
        std::iter::from_fn(|| driver.used())
            .map(|(head, _)| head)
            .collect::<Vec<_>>(),
        heads
    );
}

#[test]
fn h30_no_more_is_told_than_there_is_room_for() {
    let (_ram, mut driver, mut ring) = pair(0);
    round(&mut driver, &mut ring);
    let chains = popped(&mut driver, &mut ring, 1);
    let head = chains[0].head();
    let error = RingError::UsedLen { head, len: 9, room: 8 };
    assert_eq!(ring.push_used(&chains[0], 9), Err(error));
    ring.push_used(&chains[0], 8).unwrap();
    ring.publish().unwrap();
    assert_eq!(driver.used(), Some((head, 8)));
    round(&mut driver, &mut ring);

    let chains = popped(&mut driver, &mut ring, 1);
    let head = chains[0].head();
    let _off = Off::here(Check::UsedLen);
    ring.push_used(&chains[0], 9).unwrap();
    ring.publish().unwrap();
    assert_eq!(
        driver.used(),
        Some((head, 9)),
        "the driver would read a byte that nobody wrote"
    );
}
