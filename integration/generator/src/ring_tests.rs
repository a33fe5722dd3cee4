//! A ring and its other side.

use super::*;

fn ring(negotiated: u64) -> (Ring, DeviceSide) {
    let memory = Memory::new(ring_len(8), false).expect("a page");
    let ring = Ring::new(&mut Space::new(memory), 8, negotiated).expect("eventfds");
    let device = ring.device_side();
    (ring, device)
}

/// Offers and publishes `count` descriptors.
fn offer(ring: &mut Ring, count: u16) {
    for n in 0..count {
        let head = ring.next().wrapping_add(n) % 8;
        ring.describe(
            head,
            Descriptor {
                at: 64 * usize::from(head),
                len: 64,
                flags: 0,
                next: 0,
            },
        );
        ring.offer(n, head);
    }
    ring.publish(count);
}

fn kicked(ring: &Ring) -> bool {
    ring.kick.read().is_ok()
}

#[test]
fn buffers_go_there_and_back_beyond_the_end_of_the_index() {
    let (mut ring, mut device) = ring(0);
    for round in 0..20_000u32 {
        offer(&mut ring, 5);
        assert_eq!((ring.held(), device.waiting()), (5, 5));
        for n in 0..5 {
            let (head, at, len) = device.buffer(n);
            assert_eq!((at, len), (64 * usize::from(head), 64));
            device.stage(n, head, u32::from(n) + round);
        }
        assert_eq!(ring.waiting(), Ok(0), "not published");
        device.publish(5);
        assert_eq!(ring.waiting(), Ok(5));
        for n in 0..5 {
            assert_eq!(ring.used_len(n), u32::from(n) + round);
            assert_eq!(ring.used_id(n), Ok(ring.seen().wrapping_add(n) % 8));
        }
        ring.take(5);
    }
    assert!(ring.next() < 40_000, "it wrapped");
}

#[test]
fn a_device_that_gives_back_what_it_never_had_is_found_out() {
    let (mut ring, mut device) = ring(0);
    offer(&mut ring, 2);
    device.publish(3);
    assert_eq!(ring.waiting(), Err(RingFault::TooMany { used: 3, had: 2 }));
    device.stage(0, 8, 0);
    assert_eq!(
        ring.used_id(device.next),
        Err(RingFault::NoSuchDescriptor { id: 8, size: 8 })
    );
}

#[test]
fn kicks_are_those_the_device_wants() {
    let (mut ring, device) = ring(0);
    offer(&mut ring, 1);
    ring.notify(1);
    assert!(kicked(&ring), "nothing forbids it");
    ring.used_flags.at(0).store(NO_NOTIFICATION.to_le(), Relaxed);
    offer(&mut ring, 1);
    ring.notify(1);
    assert!(!kicked(&ring));
    drop(device);
}

#[test]
fn with_event_idx_a_kick_is_due_when_the_index_is_passed() {
    let (mut ring, _device) = ring(features::EVENT_IDX);
    ring.avail_event.at(0).store(2u16.to_le(), Relaxed);
    for (count, due) in [(2, false), (1, true), (1, false)] {
        offer(&mut ring, count);
        ring.notify(count);
        assert_eq!(kicked(&ring), due, "at {}", ring.next());
    }
}

#[test]
fn calls_are_asked_for_only_while_armed() {
    for negotiated in [0, features::EVENT_IDX] {
        let (mut ring, mut device) = ring(negotiated);
        let flags = |ring: &Ring| u16::from_le(ring.avail_flags.at(0).load(Relaxed));
        assert_eq!(flags(&ring), NO_NOTIFICATION);
        offer(&mut ring, 1);
        assert_eq!(ring.arm(), Ok(true));
        assert_eq!((flags(&ring), ring.used_event.at(0).load(Relaxed)), (0, 0));
        device.stage(0, 0, 0);
        device.publish(1);
        assert_eq!(ring.arm(), Ok(false), "one is waiting");
        ring.disarm();
        assert_eq!(flags(&ring), NO_NOTIFICATION);
    }
}
