//! Where frames go, who may take part, and whose turn it is.

use crate::FEATURES;
use outboard_ring::{RingFormat, driver::Driver};
use outboard_vhost_user::DeviceError;
use outboard_vswitch::{BURST_FRAMES, DropReason, PortPolicy};
use vhost_net_dpu::{QUEUE_COUNT, header::NetHeader};
use virtio_bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};

use crate::{
    frames::{BROADCAST, arp, ping, tcp, udp},
    rig::{Delta, RX_QUEUE, Rig, TX_QUEUE, base, got, mac, missed, policy, resources, sent},
};

const IDLE: Delta = Delta {
    tx: (0, 0),
    rx: (0, 0),
    drop: None,
};

#[test]
fn a_ping_goes_there_and_back_and_nowhere_else() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    let there = ping(mac(1), mac(2));
    rig.calls.0 = 0;
    rig.send_plain(0, &there);
    assert_eq!(
        rig.calls.0, 2,
        "the sender's buffer is back, and the receiver has a frame"
    );
    let one = NetHeader {
        num_buffers: 1,
        ..NetHeader::default()
    };
    assert_eq!(rig.guests[1].received(), [(one, there.clone())]);
    assert_eq!(rig.guests[0].given_back(), 1);
    rig.expect(&[sent(1, there.len()), got(1, there.len()), IDLE]);
    let back = ping(mac(2), mac(1));
    rig.send_plain(1, &back);
    assert_eq!(rig.guests[0].received(), [(one, back.clone())]);
    rig.expect(&[got(1, back.len()), sent(1, back.len()), IDLE]);
    assert_eq!(rig.guests[2].received(), []);
}

#[test]
fn a_broadcast_reaches_all_others_of_the_network_once() {
    let mut rig = Rig::new(&[FEATURES; 4]);
    let mut policies: Vec<PortPolicy> = (1..)
        .zip(["a", "b", "c", "d"])
        .map(|(n, name)| policy(name, n))
        .collect();
    policies[3].network = "red".into();
    rig.switch.set_ports(policies);
    let who_has = arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2]));
    rig.send_plain(0, &who_has);
    let len = who_has.len();
    rig.expect(&[sent(1, len), got(1, len), got(1, len), IDLE]);
    for (n, count) in [(0, 0), (1, 1), (2, 1), (3, 0)] {
        assert_eq!(rig.guests[n].received().len(), count, "guest {n}");
    }
    // The same MAC may be known in another network, and is not reached from here.
    let across = udp((mac(1), mac(4)), ([10, 0, 0, 1], [10, 0, 0, 4]), (1, 2), b"x");
    rig.send_plain(0, &across);
    rig.expect(&[
        sent(1, across.len()).dropped(DropReason::UnknownDestination, 1),
        IDLE,
        IDLE,
        IDLE,
    ]);
    // Alone in its network, a guest has nobody to broadcast to.
    let alone = arp(1, mac(4), (mac(4), [10, 0, 0, 4]), ([0; 6], [10, 0, 0, 2]));
    rig.send_plain(3, &alone);
    rig.expect(&[IDLE, IDLE, IDLE, sent(1, len).dropped(DropReason::NoReceiver, 1)]);
    rig.alive(0, 1);
}

#[test]
fn a_shut_port_is_silent_both_ways_from_that_instant() {
    let mut rig = Rig::pair();
    let len = ping(mac(1), mac(2)).len();
    rig.switch.shut("a");
    rig.send_plain(0, &ping(mac(1), mac(2)));
    assert_eq!(rig.guests[0].given_back(), 0, "not even taken");
    rig.expect(&[IDLE, IDLE]);
    rig.send_plain(1, &ping(mac(2), mac(1)));
    rig.expect(&[missed(DropReason::PortShut, 1), sent(1, len)]);
    assert_eq!(rig.guests[0].received(), []);
    assert!(!rig.switch.before_sleep(), "a shut port's frames keep nobody awake");
    rig.switch.open("a");
    rig.breathe();
    rig.expect(&[sent(1, len), got(1, len)]);
    assert_eq!(rig.guests[1].received().len(), 1);
    rig.alive(0, 1);
}

#[test]
fn a_new_port_is_shut_until_it_is_opened() {
    let mut rig = Rig::pair();
    rig.switch.set_ports(vec![policy("b", 2)]);
    for index in [RX_QUEUE, TX_QUEUE] {
        assert!(rig.switch.stop_queue("a", index).is_some());
    }
    rig.switch.set_ports(vec![policy("a", 1), policy("b", 2)]);
    rig.start(0);
    rig.send_plain(0, &ping(mac(1), mac(2)));
    assert_eq!(rig.guests[1].received(), []);
    rig.switch.open("a");
    rig.breathe();
    assert_eq!(rig.guests[1].received().len(), 1);
}

#[test]
fn a_port_that_is_gone_is_shut_and_its_queues_can_still_be_stopped() {
    let mut rig = Rig::pair();
    rig.alive(0, 1);
    rig.switch.set_ports(vec![policy("b", 2)]);
    rig.switch.open("a");
    rig.send_plain(0, &ping(mac(1), mac(2)));
    assert_eq!(rig.guests[1].received(), [], "it cannot be opened any more");
    assert_eq!(rig.switch.counters().len(), 1);
    let spare = Driver::new(&rig.guests[0].ram, 8, FEATURES);
    let queue = resources(&spare, rig.guests[0].ram.memory(), FEATURES);
    assert!(matches!(
        rig.switch.start_queue("a", RX_QUEUE, queue),
        Err(DeviceError::NotGranted { .. })
    ));
    assert_eq!(rig.switch.stop_queue("a", TX_QUEUE), Some(base(1, 2)));
    assert_eq!(rig.switch.stop_queue("a", RX_QUEUE), Some(base(1, 1)));
    assert_eq!(rig.switch.stop_queue("a", RX_QUEUE), None, "stopping is idempotent");
    rig.switch.set_call("b", RX_QUEUE, None).expect("b's queues run on");
}

#[test]
fn a_new_policy_keeps_queues_and_counters_and_holds_at_once() {
    let mut rig = Rig::pair();
    rig.alive(0, 1);
    let before = rig.switch.counters();
    let moved = PortPolicy {
        mac: mac(9),
        ..policy("a", 1)
    };
    rig.switch.set_ports(vec![policy("b", 2), moved]);
    assert_eq!(rig.switch.counters(), [before[1].clone(), before[0].clone()]);
    rig.send_plain(0, &ping(mac(1), mac(2)));
    assert_eq!(rig.guests[1].received(), [], "the old MAC is foreign now");
    let frame = udp((mac(9), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (1, 2), b"x");
    rig.send_plain(0, &frame);
    assert_eq!(rig.guests[1].received().len(), 1);
}

#[test]
fn each_port_has_its_turn_however_much_another_sends() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    rig.guests[1].post(60, 1526);
    for _ in 0..60 {
        rig.guests[0].queue(NetHeader::default(), &ping(mac(1), mac(2)));
    }
    for _ in 0..10 {
        rig.guests[2].queue(NetHeader::default(), &ping(mac(3), mac(2)));
    }
    rig.guests[0].tx.publish();
    rig.guests[2].tx.publish();
    let len = ping(mac(1), mac(2)).len();
    rig.switch.breathe(&mut rig.calls);
    let burst = BURST_FRAMES as u64;
    let all = BURST_FRAMES + 10;
    rig.expect(&[
        sent(burst, BURST_FRAMES * len),
        got(burst + 10, all * len),
        sent(10, 10 * len),
    ]);
    rig.breathe();
    rig.expect(&[
        sent(60 - burst, (60 - BURST_FRAMES) * len),
        got(60 - burst, (60 - BURST_FRAMES) * len),
        IDLE,
    ]);
}

#[test]
fn a_broadcast_costs_the_sender_a_turn_for_each_copy() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    let frame = arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2]));
    for _ in 0..60 {
        rig.guests[0].queue(NetHeader::default(), &frame);
    }
    rig.guests[0].tx.publish();
    rig.switch.breathe(&mut rig.calls);
    // Three ports in the network: three a frame, rounded up.
    let taken = BURST_FRAMES.div_ceil(3);
    let received = got(taken as u64, taken * frame.len());
    rig.expect(&[sent(taken as u64, taken * frame.len()), received, received]);
}

#[test]
fn a_large_frame_costs_the_sender_a_turn_for_each_packet() {
    let mut rig = Rig::pair();
    let header = NetHeader {
        flags: 1,
        gso_type: 1,
        gso_size: 100,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let frame = tcp(false, mac(1), mac(2), &[7; 1500]);
    for _ in 0..10 {
        rig.guests[0].queue(header, &frame);
    }
    rig.guests[0].tx.publish();
    rig.switch.breathe(&mut rig.calls);
    // Fifteen packets each.
    let taken = BURST_FRAMES.div_ceil(15);
    let len = taken * frame.len();
    rig.expect(&[sent(taken as u64, len), got(taken as u64, len)]);
}

#[test]
fn a_full_receiver_loses_frames_and_nobody_waits_for_it() {
    let mut rig = Rig::pair();
    let frame = ping(mac(1), mac(2));
    for _ in 0..64 {
        rig.guests[0].queue(NetHeader::default(), &frame);
    }
    rig.guests[0].tx.publish();
    rig.breathe();
    rig.expect(&[sent(64, 64 * frame.len()), got(64, 64 * frame.len())]);
    rig.send_plain(0, &frame);
    rig.send_plain(0, &frame);
    rig.expect(&[sent(2, 2 * frame.len()), missed(DropReason::RxFull, 2)]);
    assert_eq!(rig.guests[0].given_back(), 66);
    assert_eq!(rig.guests[1].received().len(), 64);
    rig.guests[1].post(2, 1526);
    rig.alive(0, 1);
}

#[test]
fn a_broken_queue_is_latched_and_the_others_go_on() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    rig.guests[0].tx.break_rules();
    rig.breathe();
    rig.expect(&[IDLE, IDLE, IDLE]);
    rig.alive(1, 2);
    rig.send_plain(0, &ping(mac(1), mac(2)));
    assert_eq!(rig.guests[1].received(), [], "it stays dead");
    assert!(!rig.switch.before_sleep());
    // Receiving is another queue.
    rig.send_plain(1, &ping(mac(2), mac(1)));
    assert_eq!(rig.guests[0].received().len(), 1);
    // A reset, as the VMM does it, brings it back.
    assert_eq!(rig.switch.stop_queue("a", TX_QUEUE), Some(base(0, 2)));
    rig.guests[0].renew_tx();
    let queue = resources(&rig.guests[0].tx, rig.guests[0].ram.memory(), FEATURES);
    rig.switch.start_queue("a", TX_QUEUE, queue).expect("a fresh queue");
    rig.alive(0, 1);
}

#[test]
fn a_session_that_comes_back_goes_on_where_the_former_stopped() {
    comes_back(1);
}

/// When the shim dies, the VMM reads the used index at once, and the device may use chains for a moment more.
#[test]
fn a_session_that_comes_back_with_an_old_index_uses_no_chain_twice() {
    // Where a packed ring stands is not in its memory: there only the log tells (see the ring).
    if RingFormat::of(FEATURES) == RingFormat::Split {
        comes_back(0);
    }
}

fn comes_back(index: u16) {
    let mut rig = Rig::pair();
    rig.alive(0, 1);
    let stopped = rig.switch.stop_queue("a", TX_QUEUE);
    assert_eq!(stopped, Some(base(1, 2)));
    rig.send_plain(0, &ping(mac(1), mac(2)));
    rig.expect(&[IDLE, IDLE]);
    let mut queue = resources(&rig.guests[0].tx, rig.guests[0].ram.memory(), FEATURES);
    let mut config = rig.guests[0].tx.config();
    config.base = base(index, 2);
    queue.ring = outboard_ring::Ring::new(config, rig.guests[0].ram.memory().clone()).expect("sound");
    rig.switch.start_queue("a", TX_QUEUE, queue).expect("a fresh session");
    rig.calls.0 = 0;
    rig.breathe();
    assert_eq!(rig.guests[1].received().len(), 1, "what waited is sent without a kick");
    assert!(rig.calls.0 >= 2);
}

#[test]
fn a_new_call_descriptor_is_signalled_once_at_once() {
    let mut rig = Rig::pair();
    rig.calls.0 = 0;
    let queue = resources(&rig.guests[0].rx, rig.guests[0].ram.memory(), FEATURES);
    rig.switch.set_call("a", RX_QUEUE, queue.call).expect("it runs");
    assert!(rig.switch.before_sleep(), "there is a call to make");
    rig.breathe();
    assert_eq!(rig.calls.0, 1);
    assert!(matches!(
        rig.switch.set_call("x", RX_QUEUE, None),
        Err(DeviceError::NotGranted { .. })
    ));
    assert!(matches!(
        rig.switch.set_call("a", QUEUE_COUNT, None),
        Err(DeviceError::NoSuchQueue { .. })
    ));
    rig.switch.stop_queue("a", RX_QUEUE);
    assert!(matches!(
        rig.switch.set_call("a", RX_QUEUE, None),
        Err(DeviceError::QueueStopped { .. })
    ));
}

#[test]
fn kicks_are_asked_for_before_sleep_only_and_none_is_lost() {
    for features in [FEATURES, FEATURES & !(1 << VIRTIO_RING_F_EVENT_IDX)] {
        kicks(features);
    }
}

fn kicks(features: u64) {
    let mut rig = Rig::new(&[features; 2]);
    assert!(!rig.guests[0].tx.needs_kick());
    // With EVENT_IDX a driver kicks at index 0 before it was told anything, and so once in 65,536 buffers.
    let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
    // A packed ring can say at once that no kick is wanted.
    let split = RingFormat::of(FEATURES) == RingFormat::Split;
    assert_eq!(rig.guests[1].rx.needs_kick(), event_idx && split);
    assert!(!rig.switch.before_sleep());
    rig.guests[0].queue(NetHeader::default(), &ping(mac(1), mac(2)));
    rig.guests[0].tx.publish();
    assert!(rig.guests[0].tx.needs_kick(), "asleep: kick");
    assert!(rig.switch.before_sleep(), "not asleep yet: it sees the frame itself");
    rig.switch.after_sleep();
    rig.breathe();
    rig.guests[0].queue(NetHeader::default(), &ping(mac(1), mac(2)));
    rig.guests[0].tx.publish();
    assert!(!rig.guests[0].tx.needs_kick(), "awake: no kick");
    // Receive buffers are looked for when there is a frame for them.
    rig.guests[1].post(1, 1526);
    assert!(!rig.guests[1].rx.needs_kick());
}

#[test]
fn queues_that_cannot_be_served_are_refused() {
    let mut rig = Rig::pair();
    let memory = rig.guests[0].ram.memory().clone();
    let spare = Driver::new(&rig.guests[0].ram, 8, FEATURES);
    let mut start = |name: &str, index: u16, features: u64, kick: bool| {
        let mut queue = resources(&spare, &memory, features);
        queue.kick = queue.kick.filter(|_| kick);
        rig.switch.start_queue(name, index, queue)
    };
    assert!(matches!(
        start("a", 0, FEATURES, true),
        Err(DeviceError::QueueRuns { index: 0 })
    ));
    assert!(matches!(
        start("a", QUEUE_COUNT, FEATURES, true),
        Err(DeviceError::NoSuchQueue {
            index: QUEUE_COUNT,
            queue_count: QUEUE_COUNT
        })
    ));
    assert!(matches!(
        start("x", 0, FEATURES, true),
        Err(DeviceError::NotGranted { .. })
    ));
    rig.switch.stop_queue("a", RX_QUEUE);
    rig.switch.stop_queue("a", TX_QUEUE);
    let mut start = |index: u16, features: u64, kick: bool| {
        let mut queue = resources(&spare, &memory, features);
        queue.kick = queue.kick.filter(|_| kick);
        rig.switch
            .start_queue("a", index, queue)
            .map_err(|error| error.to_string())
    };
    let legacy = FEATURES & !(1 << VIRTIO_F_VERSION_1);
    for index in [RX_QUEUE, TX_QUEUE] {
        let error = start(index, legacy, true).expect_err("a legacy driver");
        assert!(error.contains("VIRTIO_F_VERSION_1"), "{error}");
    }
    assert!(start(TX_QUEUE, FEATURES, false).expect_err("no kick").contains("kick"));
    start(TX_QUEUE, FEATURES, true).expect("a sound queue");
}

#[test]
fn frames_to_nowhere_are_dropped_at_the_sender() {
    let mut rig = Rig::pair();
    let reserved = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
    let cases = [
        (mac(7), DropReason::UnknownDestination),
        (mac(1), DropReason::ToItself),
        (reserved, DropReason::ReservedMulticast),
    ];
    for (destination, reason) in cases {
        let frame = udp((mac(1), destination), ([10, 0, 0, 1], [10, 0, 0, 2]), (1, 2), b"x");
        rig.send_plain(0, &frame);
        rig.expect(&[sent(1, frame.len()).dropped(reason, 1), IDLE]);
    }
    let beyond = [0x01, 0x80, 0xc2, 0, 0, 0x10];
    let frame = udp((mac(1), beyond), ([10, 0, 0, 1], [224, 0, 0, 5]), (1, 2), b"x");
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    let frame = udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (1, 2), b"x");
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
}
