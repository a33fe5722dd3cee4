//! Several queue pairs: flows keep to a queue, queues share their port's turn, and each fails alone.

use std::collections::{HashMap, HashSet};

use crate::FEATURES;
use outboard_vhost_user::DeviceError;
use outboard_vswitch::{BURST_FRAMES, DropReason, QueueCounters};
use vhost_net_dpu::{QUEUE_COUNT, QueueKind, header::NetHeader};

use crate::{
    frames::{BROADCAST, arp, ping, udp},
    rig::{Delta, Rig, base, got, mac, missed, sent},
};

const IDLE: Delta = Delta {
    tx: (0, 0),
    rx: (0, 0),
    drop: None,
};

/// Frame `number` of a flow from guest a to guest b, in either direction.
fn frame(flow: u16, number: u16, back: bool) -> Vec<u8> {
    let payload = [flow.to_be_bytes(), number.to_be_bytes()].concat();
    let (here, there, ports) = match back {
        false => (1, 2, (40_000 + flow, 53)),
        true => (2, 1, (53, 40_000 + flow)),
    };
    udp(
        (mac(here), mac(there)),
        ([10, 0, 0, here], [10, 0, 0, there]),
        ports,
        &payload,
    )
}

fn label(frame: &[u8]) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (word(42), word(44))
}

fn counters_of(rig: &Rig, port: usize, kind: QueueKind) -> QueueCounters {
    let counters = rig.switch.queue_counters(rig.guests[port].name);
    counters.into_iter().find(|queue| queue.kind == kind).expect("it runs")
}

/// Sends one frame of each flow to guest b, and says in which pair each arrived.
fn places(rig: &mut Rig, flows: u16) -> HashMap<u16, usize> {
    let mut places = HashMap::new();
    for flow in 0..flows {
        rig.send_plain(0, &frame(flow, 0, false));
        let (ram, pairs) = rig.guests[1].split();
        for (pair, queues) in pairs.iter_mut().enumerate() {
            for (_, frame) in queues.received_here() {
                assert_eq!(places.insert(label(&frame).0, pair), None);
                queues.post_from(ram, 1, 1526);
            }
        }
    }
    rig.settle();
    places
}

#[test]
fn a_flow_keeps_to_one_receive_queue_both_ways_and_stays_in_order() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 4);
    let (flows, each) = (24u16, 5u16);
    // Room for all of them in one queue, should they all meet there.
    rig.guests.iter_mut().for_each(|guest| guest.post(60, 1526));
    for number in 0..each {
        for flow in 0..flows {
            for (guest, back) in [(0, false), (1, true)] {
                // A guest keeps a flow to one of its queues as well.
                rig.guests[guest].queue_on(usize::from(flow % 4), NetHeader::default(), &frame(flow, number, back));
            }
        }
        for guest in &mut rig.guests {
            guest.pairs.iter_mut().for_each(|pair| pair.tx.publish());
        }
        rig.breathe();
    }
    let mut seen = Vec::new();
    for guest in &mut rig.guests {
        let mut next: HashMap<u16, u16> = HashMap::new();
        let mut places: HashMap<u16, HashSet<usize>> = HashMap::new();
        for (pair, queues) in guest.pairs.iter_mut().enumerate() {
            for (_, frame) in queues.received_here() {
                let (flow, number) = label(&frame);
                places.entry(flow).or_default().insert(pair);
                let next = next.entry(flow).or_default();
                assert_eq!(*next, number, "flow {flow} is in order");
                *next += 1;
            }
        }
        assert_eq!(next.len(), usize::from(flows));
        assert!(next.values().all(|count| *count == each), "all frames arrive");
        assert!(places.values().all(|pairs| pairs.len() == 1), "one queue a flow");
        let used: HashSet<_> = places.values().flatten().copied().collect();
        assert!(used.len() > 1, "flows spread");
        seen.push(places);
    }
    assert_eq!(seen[0], seen[1], "answers come in the queue of the same pair");
    let len = frame(0, 0, false).len();
    let total = u64::from(flows * each);
    let all = Delta {
        tx: (total, total * len as u64),
        rx: (total, total * len as u64),
        drop: None,
    };
    rig.expect(&[all, all]);
    let received: u64 = (0..4)
        .map(|pair| counters_of(&rig, 1, QueueKind::Rx { pair }).frames)
        .sum();
    assert_eq!(received, total, "the queues' counters add up to the port's");
}

#[test]
fn sixteen_queues_get_no_more_than_one() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 16);
    // Guest b uses one pair of its sixteen.
    for index in 2..QUEUE_COUNT {
        rig.switch.stop_queue("b", index);
    }
    for _ in 0..8 {
        for pair in 0..16 {
            rig.guests[0].queue_on(pair, NetHeader::default(), &ping(mac(1), mac(2)));
        }
    }
    for _ in 0..60 {
        rig.guests[1].queue(NetHeader::default(), &ping(mac(2), mac(1)));
    }
    for guest in &mut rig.guests {
        guest.pairs.iter_mut().for_each(|pair| pair.tx.publish());
    }
    rig.switch.breathe(&mut rig.calls);
    let len = ping(mac(1), mac(2)).len();
    let burst = (BURST_FRAMES as u64, (BURST_FRAMES * len) as u64);
    let share = Delta {
        tx: burst,
        rx: burst,
        drop: None,
    };
    rig.expect(&[share, share]);
    for pair in 0..16 {
        let counters = counters_of(&rig, 0, QueueKind::Tx { pair });
        assert_eq!(counters.frames, BURST_FRAMES as u64 / 16, "pair {pair} has its part");
    }
    rig.breathe();
    assert_eq!(
        rig.guests[0]
            .pairs
            .iter_mut()
            .map(|pair| pair.given_back())
            .sum::<usize>(),
        128
    );
}

#[test]
fn one_busy_queue_among_many_has_its_ports_whole_share() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 16);
    for _ in 0..60 {
        rig.guests[0].queue_on(11, NetHeader::default(), &ping(mac(1), mac(2)));
    }
    rig.guests[0].pairs[11].tx.publish();
    rig.switch.breathe(&mut rig.calls);
    let counters = counters_of(&rig, 0, QueueKind::Tx { pair: 11 });
    assert_eq!(counters.frames, BURST_FRAMES as u64);
}

#[test]
fn what_a_port_was_served_beyond_its_share_it_waits_for() {
    let mut rig = Rig::new(&[FEATURES; 4]);
    let broadcast = arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2]));
    for _ in 0..20 {
        rig.guests[0].queue(NetHeader::default(), &broadcast);
    }
    rig.guests[0].tx.publish();
    let mut taken = Vec::new();
    for _ in 0..5 {
        let before = rig.switch.counters()[0].tx_frames;
        rig.switch.breathe(&mut rig.calls);
        taken.push(rig.switch.counters()[0].tx_frames - before);
    }
    // Four ports in the network: four a frame, and eight frames are the share to the dot.
    assert_eq!(taken, [8, 8, 4, 0, 0]);
    // Three a frame: 33 of 32, then 33 of 31 and so on; in three turns no more than 96 and the last frame's excess.
    assert_eq!(taken_of_broadcasts(true), [11, 11, 10]);
    assert_eq!(
        taken_of_broadcasts(false),
        [11, 11, 11],
        "beyond its share, but nobody else's"
    );
}

/// How many broadcasts are taken from a guest in each of three breaths, while another one sends something or not.
fn taken_of_broadcasts(beside: bool) -> Vec<u64> {
    let mut rig = Rig::new(&[FEATURES; 3]);
    let to_all = udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (1, 2), b"x");
    for _ in 0..40 {
        rig.guests[0].queue(NetHeader::default(), &to_all);
    }
    rig.guests[0].tx.publish();
    let mut taken = Vec::new();
    for _ in 0..3 {
        if beside {
            let other = udp((mac(2), mac(3)), ([10, 0, 0, 2], [10, 0, 0, 3]), (1, 2), b"x");
            rig.guests[1].queue(NetHeader::default(), &other);
            rig.guests[1].tx.publish();
        }
        let before = rig.switch.counters()[0].tx_frames;
        rig.switch.breathe(&mut rig.calls);
        taken.push(rig.switch.counters()[0].tx_frames - before);
    }
    taken
}

#[test]
fn queues_start_and_stop_one_by_one() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 4);
    // Enough that none of four queues is left out.
    let flows = 64;
    let all = places(&mut rig, flows);
    assert_eq!(all.values().collect::<HashSet<_>>().len(), 4);
    let one = QueueKind::Rx { pair: 1 };
    assert!(rig.switch.stop_queue("b", one.index()).is_some());
    let without = places(&mut rig, flows);
    assert_eq!(without.len(), usize::from(flows), "every flow has another queue");
    assert_eq!(without.values().collect::<HashSet<_>>(), HashSet::from([&0, &2, &3]));
    // Where the ring stood, it goes on.
    let mut queue = rig.queue_resources(1, one);
    let mut config = rig.guests[1].pairs[1].rx.config();
    config.base = base(
        u16::try_from(all.values().filter(|pair| **pair == 1).count()).expect("few"),
        1,
    );
    queue.ring = outboard_ring::Ring::new(config, rig.guests[1].ram.memory().clone()).expect("sound");
    rig.switch.start_queue("b", one.index(), queue).expect("it was stopped");
    assert_eq!(places(&mut rig, flows), all);
    for pair in 0..4 {
        rig.switch.stop_queue("b", QueueKind::Rx { pair }.index());
    }
    let lost = frame(0, 0, false);
    rig.send_plain(0, &lost);
    rig.expect(&[sent(1, lost.len()), missed(DropReason::RxNotRunning, 1)]);
    // Sending is another matter.
    rig.guests[1].queue_on(2, NetHeader::default(), &frame(0, 0, true));
    rig.guests[1].pairs[2].tx.publish();
    rig.breathe();
    assert_eq!(rig.guests[0].received().len(), 1);
}

#[test]
fn a_broken_transmit_queue_fails_alone() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 4);
    rig.guests[0].pairs[2].tx.break_rules();
    rig.breathe();
    rig.expect(&[IDLE, IDLE]);
    let len = ping(mac(1), mac(2)).len();
    for round in 1..=3u64 {
        for pair in [0, 1, 3] {
            rig.guests[0].queue_on(pair, NetHeader::default(), &ping(mac(1), mac(2)));
            rig.guests[0].pairs[pair].tx.publish();
        }
        rig.breathe();
        rig.expect(&[sent(3, 3 * len), got(3, 3 * len)]);
        for pair in 0..4u16 {
            let counters = counters_of(&rig, 0, QueueKind::Tx { pair });
            let want = if pair == 2 { 0 } else { round };
            assert_eq!((counters.frames, counters.bytes), (want, want * len as u64));
            let failed = counters.failed.unwrap_or_default();
            assert_eq!(failed.starts_with("guest m"), pair == 2, "{failed}");
        }
    }
    assert!(!rig.switch.before_sleep(), "a dead queue keeps nobody awake");
    rig.guests[1].received();
    rig.alive(0, 1);
}

#[test]
fn a_broken_receive_queue_loses_its_own_flows_only() {
    let mut rig = Rig::with_pairs(&[FEATURES; 3], 4);
    let flows = 64;
    let places = places(&mut rig, flows);
    let dead = places[&0];
    let theirs = places.values().filter(|pair| **pair == dead).count();
    rig.guests[1].pairs[dead].rx.break_rules();
    let len = frame(0, 0, false).len();
    // Buffers that were taken before stay good: what breaks the queue is the next look at its index.
    let mut broken = 0;
    for _ in 0..64 {
        for flow in 0..flows {
            rig.send_plain(0, &frame(flow, 0, false));
            let alive = places[&flow] != dead;
            let counters = rig.switch.counters();
            let lost = counters[1].drops[DropReason::RxBroken as usize];
            assert!(!alive || lost == broken, "flow {flow} is not the dead queue's");
            broken = lost;
        }
        let pairs = rig.guests[1].pairs.iter_mut().enumerate().filter(|(n, _)| *n != dead);
        let received: usize = pairs.map(|(_, pair)| pair.received_here().len()).sum();
        assert_eq!(received, usize::from(flows) - theirs);
        for n in (0..4).filter(|n| *n != dead) {
            let (ram, pairs) = rig.guests[1].split();
            pairs[n].post_from(ram, places.values().filter(|pair| **pair == n).count(), 1526);
        }
    }
    assert!(broken >= theirs as u64, "it broke");
    let failed = |n: usize| {
        let pair = u16::try_from(n).expect("few");
        counters_of(&rig, 1, QueueKind::Rx { pair }).failed.is_some()
    };
    assert_eq!((0..4).filter(|n| failed(*n)).collect::<Vec<_>>(), [dead]);
    rig.settle();
    // From now on to the frame: the dead queue's flows are lost, each once, the others arrive.
    for flow in 0..flows {
        rig.send_plain(0, &frame(flow, 0, false));
        let want = if places[&flow] == dead {
            missed(DropReason::RxBroken, 1)
        } else {
            got(1, len)
        };
        rig.expect(&[sent(1, len), want, IDLE]);
    }
    rig.alive(0, 2);
}

#[test]
fn a_ring_that_is_given_for_two_queues_harms_its_guest_only() {
    let mut rig = Rig::with_pairs(&[FEATURES; 3], 2);
    // The host sets pair 1 of guest a up over the rings of pair 0.
    for kind in [QueueKind::Rx { pair: 1 }, QueueKind::Tx { pair: 1 }] {
        let twin = match kind {
            QueueKind::Rx { .. } => QueueKind::Rx { pair: 0 },
            QueueKind::Tx { .. } => QueueKind::Tx { pair: 0 },
        };
        rig.switch.stop_queue("a", kind.index());
        let queue = rig.queue_resources(0, twin);
        rig.switch.start_queue("a", kind.index(), queue).expect("a sound ring");
    }
    for flow in 0..30 {
        rig.guests[0].queue(NetHeader::default(), &frame(flow, 0, false));
        rig.guests[1].queue(NetHeader::default(), &frame(flow, 0, true));
    }
    rig.guests[0].tx.publish();
    rig.guests[1].tx.publish();
    rig.breathe();
    let twice = rig.guests[1].received().len();
    assert_eq!(twice, 60, "its frames are sent twice, which it could do anyway");
    rig.alive(1, 2);
}

#[test]
fn h31_h38_a_queue_beyond_the_last_pair_is_refused() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 16);
    for index in [QUEUE_COUNT, QUEUE_COUNT + 1, u16::MAX] {
        let queue = rig.queue_resources(0, QueueKind::Rx { pair: 0 });
        assert!(matches!(
            rig.switch.start_queue("a", index, queue),
            Err(DeviceError::NoSuchQueue { .. })
        ));
        assert_eq!(rig.switch.stop_queue("a", index), None);
        assert!(matches!(
            rig.switch.set_call("a", index, None),
            Err(DeviceError::NoSuchQueue { .. })
        ));
    }
    let queue = rig.queue_resources(0, QueueKind::Tx { pair: 15 });
    assert!(matches!(
        rig.switch.start_queue("a", QUEUE_COUNT - 1, queue),
        Err(DeviceError::QueueRuns { .. })
    ));
    rig.alive(0, 1);
}
