//! Several workers: what one took and another delivers, step by step, each breath by hand.

use std::{
    collections::{HashMap, HashSet},
    slice::from_ref,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::FEATURES;
use outboard_controls::{Check, Off};
use outboard_firewall::{Action, Direction, EgressDefault, Group, Policy, PortSpec, Protocol};
use outboard_vswitch::{BURST_FRAMES, CaptureSpec, CaptureWay, DropReason, PortPolicy};
use vhost_net_dpu::{
    QueueKind,
    header::{GSO_TCPV4, NEEDS_CSUM, NetHeader},
};
use virtio_bindings::{virtio_config::VIRTIO_F_IN_ORDER, virtio_net::VIRTIO_NET_F_GUEST_TSO4};

use crate::{
    firewall::{compile, datagram, group, rule, v4_packet},
    fleet::{Fleet, Silent},
    frames::{BROADCAST, arp, ping, tcp, udp},
    rig::{Delta, TX_QUEUE, base, got, mac, missed, policy, sent},
};

const IDLE: Delta = Delta {
    tx: (0, 0),
    rx: (0, 0),
    drop: None,
};
/// Without IN_ORDER, used entries could come in any order.
const ANY_ORDER: u64 = FEATURES & !(1 << VIRTIO_F_IN_ORDER);

/// Frame `number` of a flow from guest a to guest b.
fn frame(flow: u16, number: u16) -> Vec<u8> {
    let payload = [flow.to_be_bytes(), number.to_be_bytes()].concat();
    let ports = (40_000 + flow, 53);
    udp((mac(1), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), ports, &payload)
}

fn label(frame: &[u8]) -> (u16, u16) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (word(42), word(44))
}

/// A frame of some length, from a to the guest of a number.
fn long(to: u8, byte: u8, len: usize) -> Vec<u8> {
    udp(
        (mac(1), mac(to)),
        ([10, 0, 0, 1], [10, 0, 0, to]),
        (1, 2),
        &vec![byte; len],
    )
}

#[test]
fn frames_cross_whole_with_all_counters() {
    for features in [FEATURES, ANY_ORDER] {
        let mut fleet = Fleet::new(2, &[(features, &[0]), (features, &[1])]);
        for n in 1..=100u8 {
            let (there, back) = (long(2, n, usize::from(n) * 14), ping(mac(2), mac(1)));
            fleet.offer(0, 0, &there);
            fleet.send(1, 0, &back);
            assert_eq!(fleet.received(1), from_ref(&there));
            assert_eq!(fleet.received(0), from_ref(&back));
            for guest in &mut fleet.guests {
                assert_eq!(guest.given_back(), 1);
                guest.repost();
            }
            fleet.expect(&[
                sent(1, there.len()).and_got(1, back.len()),
                sent(1, back.len()).and_got(1, there.len()),
            ]);
        }
        assert!(fleet.workers.iter().all(|worker| worker.is_quiet()));
    }
}

#[test]
fn what_a_receiver_cannot_take_is_made_fit_for_it_by_its_own_worker() {
    let plain = FEATURES & !(1 << VIRTIO_NET_F_GUEST_TSO4);
    let mut fleet = Fleet::bare(2, &[(FEATURES, &[0]), (FEATURES, &[1]), (plain, &[1])]);
    fleet.guests.iter_mut().for_each(|guest| guest.post(64, 1526));
    let header = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    for (to, count) in [(1, 1), (2, 5)] {
        let large = tcp(false, mac(1), fleet.guests[to].mac, &[7; 5000]);
        fleet.guests[0].queue(header, &large);
        fleet.guests[0].tx.publish();
        fleet.breathe();
        let received = fleet.received(to);
        assert_eq!(received.len(), count, "whole, or in segments");
        let payload: Vec<u8> = received.iter().flat_map(|frame| frame[54..].to_vec()).collect();
        assert_eq!(payload, [7; 5000]);
        let mut expected = vec![sent(1, large.len()), IDLE, IDLE];
        expected[to] = got(count as u64, received.iter().map(Vec::len).sum());
        fleet.expect(&expected);
    }
}

#[test]
fn a_flow_keeps_its_receive_queue_and_its_order_whichever_worker_takes_it() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0, 1]), (FEATURES, &[0, 1, 1, 0])]);
    fleet.guests[1].post(60, 1526);
    let (flows, each) = (24u16, 4u16);
    let mut places: HashMap<u16, HashSet<usize>> = HashMap::new();
    for number in 0..each {
        for flow in 0..flows {
            // Another of the sender's queues, and so another worker, each time.
            let pair = usize::from((flow + number) % 2);
            fleet.offer(0, pair, &frame(flow, number));
        }
        // A guest that moves a flow to another of its queues waits for the first one to be empty.
        fleet.breathe();
    }
    let mut next: HashMap<u16, u16> = HashMap::new();
    for (pair, queues) in fleet.guests[1].pairs.iter_mut().enumerate() {
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
    assert_eq!(used.len(), 4, "over all queues of all workers");
    let (total, len) = (u64::from(flows * each), frame(0, 0).len());
    let bytes = usize::from(flows * each) * len;
    fleet.expect(&[sent(total, bytes), got(total, bytes)]);
}

#[test]
fn chains_go_back_in_the_order_in_which_they_were_taken() {
    for features in [FEATURES, ANY_ORDER] {
        let mut fleet = Fleet::new(2, &[(features, &[0]), (features, &[1]), (features, &[0])]);
        // The first stays at home, the second crosses, and the others wait for it.
        for to in [3, 2, 3, 3] {
            fleet.offer(0, 0, &ping(mac(1), mac(to)));
        }
        fleet.breath_of(0);
        assert_eq!(fleet.received(2).len(), 3, "nobody else waits for it");
        assert_eq!(fleet.guests[0].given_back(), 1);
        // In later bursts as well.
        fleet.offer(0, 0, &ping(mac(1), mac(3)));
        fleet.breath_of(0);
        assert_eq!((fleet.received(2).len(), fleet.guests[0].given_back()), (1, 0));
        fleet.breath_of(1);
        assert_eq!(fleet.received(1).len(), 1);
        assert_eq!(fleet.guests[0].given_back(), 0, "the sender's worker shows them");
        fleet.breath_of(0);
        assert_eq!(fleet.guests[0].given_back(), 4);
    }
}

#[test]
fn nobody_waits_for_a_worker_that_is_behind() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1]), (FEATURES, &[0])]);
    fleet.guests[1].post(60, 1526);
    let (crossing, back) = (frame(1, 1), ping(mac(3), mac(1)));
    // Worker 1 does nothing.
    fleet.offer_many(0, 0, &crossing, 96);
    fleet.breaths_of(0, 3);
    assert_eq!(
        (fleet.workers[0].crossed().sent[1], fleet.guests[0].given_back()),
        (96, 0)
    );
    fleet.offer(2, 0, &back);
    fleet.breath_of(0);
    assert_eq!(fleet.received(0), from_ref(&back));
    fleet.breathe();
    assert_eq!((fleet.received(1).len(), fleet.guests[0].given_back()), (96, 96));
    let bytes = 96 * crossing.len();
    fleet.expect(&[
        sent(96, bytes).and_got(1, back.len()),
        got(96, bytes),
        sent(1, back.len()),
    ]);
}

#[test]
fn what_finds_no_room_on_its_way_is_dropped_at_the_receiver() {
    // Five queues have more frames under way than the ring between two workers takes.
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0; 5]), (FEATURES, &[1]), (FEATURES, &[0])]);
    let crossing = frame(1, 1);
    (0..5).for_each(|pair| fleet.offer_many(0, pair, &crossing, 128));
    // A burst for a port, in a breath.
    fleet.breaths_of(0, 24);
    assert_eq!(fleet.workers[0].crossed().sent[1], 512);
    fleet.expect(&[
        sent(640, 640 * crossing.len()),
        missed(DropReason::RxWorkerBusy, 128),
        IDLE,
    ]);
    fleet.breathe();
    let full = got(64, 64 * crossing.len()).dropped(DropReason::RxFull, 448);
    fleet.expect(&[IDLE, full, IDLE]);
    let given_back: usize = fleet.guests[0].pairs.iter_mut().map(|pair| pair.given_back()).sum();
    assert_eq!(given_back, 640);
    fleet.received(1);
    fleet.guests[1].repost();
    fleet.alive(0, 1);
}

#[test]
fn a_receiver_without_buffers_holds_nobody_up() {
    let mut fleet = Fleet::bare(2, &[(FEATURES, &[0]), (FEATURES, &[1]), (FEATURES, &[1])]);
    fleet.guests[0].post(8, 1526);
    fleet.guests[2].post(8, 1526);
    let (none, some) = (ping(mac(1), mac(2)), ping(mac(1), mac(3)));
    for _ in 0..4 {
        fleet.offer(0, 0, &none);
        fleet.offer(0, 0, &some);
    }
    fleet.breathe();
    assert_eq!(fleet.received(2).len(), 4);
    assert_eq!(fleet.guests[0].given_back(), 8);
    fleet.expect(&[
        sent(8, 4 * (none.len() + some.len())),
        missed(DropReason::RxFull, 4),
        got(4, 4 * some.len()),
    ]);
    fleet.guests[1].post(8, 1526);
    fleet.alive(0, 1);
}

#[test]
fn a_queue_stops_when_its_last_frame_is_back() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1]), (FEATURES, &[0])]);
    let crossing = ping(mac(1), mac(2));
    fleet.offer(0, 0, &ping(mac(1), mac(3)));
    (0..3).for_each(|_| fleet.offer(0, 0, &crossing));
    fleet.breath_of(0);
    let told = Arc::new(AtomicU32::new(u32::MAX));
    let tell = told.clone();
    let done = Box::new(move |next: Option<u32>| tell.store(next.unwrap_or(0), Ordering::Relaxed));
    fleet.offer(0, 0, &crossing);
    fleet.workers[0].stop_queue_then("a", TX_QUEUE, done);
    fleet.breath_of(0);
    assert_eq!(
        told.load(Ordering::Relaxed),
        u32::MAX,
        "three frames are read from its memory yet"
    );
    fleet.breath_of(1);
    assert_eq!(told.load(Ordering::Relaxed), u32::MAX);
    fleet.breath_of(0);
    assert_eq!(
        told.load(Ordering::Relaxed),
        base(4, 2),
        "it goes on at the frame that was not taken"
    );
    assert_eq!(fleet.guests[0].given_back(), 4, "the guest sees what was done");
    assert_eq!(fleet.received(1).len(), 3);
    fleet.settle();
    // It goes on, in another worker even.
    let queue = crate::rig::resources(&fleet.guests[0].pairs[0].tx, fleet.guests[0].ram.memory(), FEATURES);
    fleet.workers[1]
        .start_queue("a", TX_QUEUE, queue)
        .expect("it can be served");
    fleet.breathe();
    assert_eq!(fleet.received(1), from_ref(&crossing));
    fleet.expect(&[sent(1, crossing.len()), got(1, crossing.len()), IDLE]);
}

#[test]
fn p08_what_a_revoked_port_had_under_way_does_not_arrive() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1]), (FEATURES, &[0])]);
    fleet.alive(0, 1);
    let crossing = ping(mac(1), mac(2));
    fleet.offer(0, 0, &crossing);
    fleet.breath_of(0);
    fleet.on_all(|worker, _| worker.shut("a"));
    // From here on it counts as silent.
    fleet.breathe();
    assert_eq!(fleet.received(1), Vec::<Vec<u8>>::new());
    fleet.expect(&[sent(1, crossing.len()).dropped(DropReason::TxPortShut, 1), IDLE, IDLE]);
    assert_eq!(fleet.guests[0].given_back(), 2, "and its chain is back");
    fleet.alive(1, 2);
    // The control: without that check it would have arrived.
    fleet.on_all(|worker, _| worker.open("a"));
    fleet.alive(0, 1);
    fleet.offer(0, 0, &crossing);
    fleet.breath_of(0);
    fleet.on_all(|worker, _| worker.shut("a"));
    let _off = Off::here(Check::SilenceFirst);
    fleet.breathe();
    assert_eq!(fleet.received(1), [crossing]);
}

#[test]
fn p08_nothing_under_way_reaches_a_revoked_port() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let crossing = ping(mac(1), mac(2));
    fleet.offer(0, 0, &crossing);
    fleet.breath_of(0);
    fleet.on_all(|worker, _| worker.shut("b"));
    fleet.breathe();
    assert_eq!(fleet.received(1), Vec::<Vec<u8>>::new());
    fleet.expect(&[sent(1, crossing.len()), missed(DropReason::PortShut, 1)]);
    fleet.on_all(|worker, _| worker.open("b"));
    fleet.alive(0, 1);
}

#[test]
fn h02_memory_cut_short_while_a_frame_is_with_another_worker_is_its_senders_loss() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1]), (FEATURES, &[0])]);
    fleet.alive(0, 1);
    let bytes = long(2, 9, 1358);
    let guest = &mut fleet.guests[0];
    // Ring, header and head stay, the rest of the frame is in pages that go.
    let at = guest.ram.alloc(4096, 4096);
    let far = (64 << 20) - 4096;
    guest.tx.write(at, &[&[0; 12][..], &bytes[..300]].concat());
    guest
        .tx
        .add(&[(at, 312), (outboard_ring::driver::RAM_START + far, 1100)], &[])
        .expect("there is room");
    guest.tx.publish();
    fleet.breath_of(0);
    fleet.guests[0].ram.file().set_len(far).expect("ftruncate");
    fleet.breathe();
    fleet.expect(&[sent(1, 1400).dropped(DropReason::TxMemoryGone, 1), IDLE, IDLE]);
    assert_eq!(fleet.received(1), Vec::<Vec<u8>>::new());
    assert!(fleet.workers.iter().all(|worker| worker.is_quiet()));
    let failed = fleet.workers[0]
        .queue_counters("a")
        .into_iter()
        .filter(|queue| queue.failed.is_some());
    assert_eq!(
        failed.map(|queue| queue.kind).collect::<Vec<_>>(),
        [QueueKind::Tx { pair: 0 }]
    );
    fleet.alive(1, 2);
}

#[test]
fn a_frame_for_a_group_reaches_all_of_its_members_wherever_they_are_served() {
    let mut fleet = Fleet::new(
        3,
        &[
            (FEATURES, &[0]),
            (FEATURES, &[1]),
            (FEATURES, &[1]),
            (FEATURES, &[0]),
            (FEATURES, &[2]),
        ],
    );
    // Twenty more ports, whose guests run nothing: they are nobody's to serve.
    let silent: Vec<PortPolicy> = (10..30).map(|n| policy(&format!("silent{n}"), n)).collect();
    fleet.set_ports(&silent);
    fleet.settle();
    let who_has = arp(1, BROADCAST, (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2]));
    let who_has = [&BROADCAST[..], &mac(1), &who_has[12..]].concat();
    fleet.send(0, 0, &who_has);
    for n in 1..5 {
        assert_eq!(fleet.received(n), from_ref(&who_has), "guest {n}");
    }
    assert_eq!(fleet.guests[0].given_back(), 1, "once");
    let got_it = got(1, who_has.len());
    let mut expected = vec![sent(1, who_has.len()), got_it, got_it, got_it, got_it];
    expected.extend([missed(DropReason::PortShut, 1); 20]);
    fleet.expect(&expected);
}

#[test]
fn a_group_of_more_members_than_a_crossing_names_gets_its_frame() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let others: Vec<PortPolicy> = (10..60).map(|n| policy(&format!("port{n}"), n)).collect();
    fleet.set_ports(&others);
    for other in &others {
        fleet.on_all(|worker, _| worker.open(&other.name));
        // Worker 1 is said to have a queue of each.
        fleet.workers[0].set_elsewhere(&other.name, vec![(0, 1)]);
    }
    fleet.settle();
    let crossed = fleet.workers[0].crossed().sent[1];
    let frame = udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (1, 2), b"all");
    fleet.send(0, 0, &frame);
    assert_eq!(
        fleet.workers[0].crossed().sent[1] - crossed,
        4,
        "51 receivers, 16 in each"
    );
    assert_eq!((fleet.received(1).len(), fleet.guests[0].given_back()), (1, 1));
    let mut expected = vec![sent(1, frame.len()), got(1, frame.len())];
    // Which it has not, as it turns out.
    expected.extend([missed(DropReason::RxNotRunning, 1); 50]);
    fleet.expect(&expected);
    // Of one queue no more than 128 are under way, and a frame counts once for each.
    fleet.offer_many(0, 0, &frame, 40);
    fleet.breaths_of(0, 100);
    assert_eq!(fleet.workers[0].crossed().sent[1] - crossed, 4 + 128);
    let mut expected = vec![sent(40, 40 * frame.len())];
    expected.extend([missed(DropReason::RxWorkerBusy, 8); 51]);
    fleet.expect(&expected);
    fleet.breathe();
    let mut expected = vec![IDLE, got(32, 32 * frame.len())];
    expected.extend([missed(DropReason::RxNotRunning, 32); 50]);
    fleet.expect(&expected);
    assert_eq!(fleet.guests[0].given_back(), 40);
}

#[test]
fn a_port_gets_no_more_of_another_workers_time_than_of_its_own() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0; 4]), (FEATURES, &[1]), (FEATURES, &[1])]);
    fleet.guests[2].post(60, 1526);
    (0..4).for_each(|pair| fleet.offer_many(0, pair, &frame(1, 1), 30));
    fleet.breaths_of(0, 8);
    assert_eq!(fleet.workers[0].crossed().sent[1], 120, "a flood is on its way");
    fleet.offer_many(1, 0, &ping(mac(2), mac(3)), 100);
    fleet.settle();
    fleet.breath_of(1);
    let (burst, len) = (BURST_FRAMES as u64, ping(mac(2), mac(3)).len());
    let bytes = BURST_FRAMES * len;
    let arrived = sent(burst, bytes).and_got(burst, BURST_FRAMES * frame(1, 1).len());
    fleet.expect(&[IDLE, arrived, got(burst, bytes)]);
}

#[test]
fn a_pair_moves_under_traffic_and_nothing_is_lost_or_overtaken() {
    for features in [FEATURES, ANY_ORDER] {
        let mut fleet = Fleet::new(2, &[(features, &[0, 1]), (features, &[1, 0])]);
        fleet.guests[1].post(60, 1526);
        let (flows, rounds) = (8u16, 12u16);
        let mut received: HashMap<u16, Vec<u16>> = HashMap::new();
        let mut sent_in_all = 0u64;
        for number in 0..rounds {
            for flow in 0..flows {
                fleet.offer(0, usize::from(flow % 2), &frame(flow, number));
                sent_in_all += 1;
            }
            // In the middle of it: some were taken, and some of those are under way.
            fleet.breath_of(usize::from(number % 2));
            let (guest, pair) = (usize::from(number / 2 % 2), usize::from(number % 2));
            let to = 1 - fleet.homes[&(guest, pair)];
            fleet.relocate(guest, pair, to);
            fleet.breathe();
            for frame in fleet.received(1) {
                let (flow, number) = label(&frame);
                received.entry(flow).or_default().push(number);
            }
            fleet.guests[1].pairs.iter_mut().for_each(|pair| pair.repost());
            assert_eq!(
                fleet.guests[0]
                    .pairs
                    .iter_mut()
                    .map(|pair| pair.given_back())
                    .sum::<usize>(),
                8
            );
        }
        for (flow, numbers) in &received {
            assert_eq!(*numbers, (0..rounds).collect::<Vec<_>>(), "flow {flow}: all, in order");
        }
        assert_eq!(received.len(), usize::from(flows));
        let bytes = usize::from(flows * rounds) * frame(0, 0).len();
        fleet.expect(&[sent(sent_in_all, bytes), got(sent_in_all, bytes)]);
    }
}

#[test]
fn a_pair_is_not_taken_while_others_have_frames_of_it() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    fleet.offer(0, 0, &ping(mac(1), mac(2)));
    fleet.breath_of(0);
    assert!(!fleet.workers[0].is_quiet());
    assert!(fleet.workers[0].take_pair("a", 0).is_none());
    fleet.breathe();
    assert!(fleet.workers[0].is_quiet());
    assert!(fleet.workers[0].take_pair("b", 0).is_none(), "it is not here");
    assert!(fleet.workers[0].take_pair("a", 0).is_some());
}

/// Both ports have a group that allows these, or nothing does.
fn filter(fleet: &mut Fleet, before: &Policy, groups: Vec<Arc<Group>>, names: &[&str]) -> Arc<Policy> {
    let ports = [policy("a", 1), policy("b", 2)];
    let compiled = compile(before, groups, &[(&ports[0], Some(names)), (&ports[1], Some(names))]);
    fleet.on_all(|worker, _| drop(worker.set_policy(ports.to_vec(), compiled.clone())));
    compiled
}

fn any(action: Action) -> Vec<Arc<Group>> {
    let rules = [Direction::Ingress, Direction::Egress].map(|direction| outboard_firewall::Rule {
        action,
        ..rule(direction, Protocol::Any, PortSpec::Any)
    });
    vec![group("g", EgressDefault::Deny, rules.to_vec())]
}

#[test]
fn a_connection_is_one_whichever_worker_sees_its_packets() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let out = vec![group(
        "g",
        EgressDefault::Deny,
        vec![
            rule(Direction::Egress, Protocol::UDP, PortSpec::Range(53, 53)),
            rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(53, 53)),
        ],
    )];
    filter(&mut fleet, &Policy::default(), out, &["g"]);
    let (question, answer) = (datagram(1, 2, (7000, 53)), datagram(2, 1, (53, 7000)));
    fleet.send(1, 0, &answer);
    fleet.expect(&[IDLE, sent(1, answer.len()).dropped(DropReason::EgressNoRule, 1)]);
    fleet.send(0, 0, &question);
    assert_eq!(fleet.received(1), from_ref(&question));
    fleet.send(1, 0, &answer);
    assert_eq!(fleet.received(0), from_ref(&answer), "its worker knows of it");
    fleet.expect(&[
        sent(1, question.len()).and_got(1, answer.len()),
        sent(1, answer.len()).and_got(1, question.len()),
    ]);
    assert_eq!(fleet.workers[0].connections().list(&Default::default(), 9).len(), 1);
}

#[test]
fn a_packet_keeps_the_policy_under_which_it_was_taken() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let allowed = filter(&mut fleet, &Policy::default(), any(Action::Allow), &["g"]);
    let packet = datagram(1, 2, (1, 2));
    fleet.offer(0, 0, &packet);
    fleet.breath_of(0);
    let before = fleet.workers.iter().map(|worker| worker.crossed()).collect::<Vec<_>>();
    assert_eq!((before[0].sent[1], before[1].taken[0]), (1, 0), "under way");
    filter(&mut fleet, &allowed, any(Action::Deny), &["g"]);
    fleet.breathe();
    assert_eq!(
        fleet.received(1),
        from_ref(&packet),
        "both of its ends were judged under the old one"
    );
    assert_eq!(fleet.workers[1].crossed().taken[0], 1, "whoever waits for that sees it");
    fleet.send(0, 0, &packet);
    fleet.expect(&[
        sent(2, 2 * packet.len()).dropped(DropReason::EgressDenied, 1),
        got(1, packet.len()),
    ]);
}

#[test]
fn fragments_of_a_datagram_may_pass_different_workers() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0, 1]), (FEATURES, &[1])]);
    filter(&mut fleet, &Policy::default(), any(Action::Allow), &["g"]);
    let first = v4_packet(
        1,
        2,
        17,
        0x2000,
        77,
        &[0x1b, 0x58, 0, 53, 0, 40, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8],
    );
    let later = v4_packet(1, 2, 17, 2, 77, &[9; 16]);
    let stray = v4_packet(1, 2, 17, 2, 78, &[9; 16]);
    fleet.send(0, 0, &first);
    fleet.send(0, 1, &later);
    fleet.send(0, 1, &stray);
    assert_eq!(fleet.received(1), [first.clone(), later.clone()]);
    fleet.expect(&[
        sent(3, first.len() + later.len() + stray.len()).dropped(DropReason::FragmentWithoutFirst, 1),
        got(2, first.len() + later.len()),
    ]);
}

#[test]
fn answers_to_rejected_packets_are_as_many_as_with_one_worker() {
    let answers = |workers: usize, pairs: &'static [usize]| {
        let mut fleet = Fleet::new(workers, &[(FEATURES, pairs), (FEATURES, &[0])]);
        filter(&mut fleet, &Policy::default(), any(Action::Reject), &["g"]);
        fleet.settle();
        for n in 0..48 {
            for pair in 0..2 {
                fleet.guests[0].queue_on(pair, NetHeader::default(), &datagram(1, 2, (n, 9)));
            }
        }
        fleet.guests[0].pairs.iter_mut().for_each(|pair| pair.tx.publish());
        // All at one time; who is rejected that often is in debt for some breaths.
        for _ in 0..32 {
            for worker in &mut fleet.workers {
                worker.breathe_at(1_000_000, &mut Silent);
            }
        }
        let counters = fleet.counters();
        assert_eq!(counters[0].drops[DropReason::EgressRejected as usize], 96);
        counters[0].rx_frames
    };
    let alone = answers(1, &[0, 0]);
    assert_eq!((alone, answers(2, &[0, 1])), (32, 32));
}

#[test]
fn a_sleeper_is_woken_by_what_it_is_given_and_nobody_else_is() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let rung = |fleet: &Fleet, worker: usize| {
        let mut count = [0; 8];
        let bell = fleet.workers[worker].bell().expect("there are two workers").fd();
        rustix::io::read(bell, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    };
    let crossing = ping(mac(1), mac(2));
    fleet.offer(0, 0, &crossing);
    fleet.breath_of(0);
    assert_eq!(rung(&fleet, 1), 0, "it is awake");
    assert!(fleet.workers[1].before_sleep(), "there is something: it does not sleep");
    fleet.workers[1].after_sleep();
    fleet.breathe();
    assert!(!fleet.workers[1].before_sleep() && !fleet.workers[0].before_sleep());
    fleet.workers[0].after_sleep();
    for _ in 0..3 {
        fleet.offer(0, 0, &crossing);
        fleet.breath_of(0);
    }
    assert_eq!((rung(&fleet, 1), rung(&fleet, 0)), (1, 0), "once for all of them");
    fleet.workers[1].after_sleep();
    // What is done is told to a sender that sleeps.
    assert!(!fleet.workers[0].before_sleep());
    fleet.breath_of(1);
    assert_eq!(rung(&fleet, 0), 1);
    fleet.workers[0].after_sleep();
    fleet.breathe();
    assert_eq!(fleet.guests[0].given_back(), 4);
}

#[test]
fn one_capture_has_what_all_workers_see() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let hour = Duration::from_secs(3600);
    let spec = CaptureSpec {
        port: "b".into(),
        filter: Box::new(|_| true),
        snaplen: 2000,
        frames_max: u64::MAX,
        time_max: hour,
        unread_max: hour,
        len_max: 1 << 20,
    };
    let id = fleet.workers[0].open_capture(spec).expect("it begins");
    let shared = fleet.workers[0].shared_capture(id).expect("it is there");
    fleet.workers[1].join_capture(shared);
    let (there, back) = (long(2, 5, 900), ping(mac(2), mac(1)));
    fleet.send(0, 0, &there);
    fleet.send(1, 0, &back);
    let read = fleet.workers[0].read_capture(id, 0, 1 << 20).expect("it runs");
    let seen: Vec<_> = read
        .frames
        .iter()
        .map(|frame| (frame.way, frame.bytes.clone(), frame.dropped))
        .collect();
    assert_eq!(
        seen,
        [(CaptureWay::ToGuest, there, None), (CaptureWay::FromGuest, back, None)]
    );
    for worker in &mut fleet.workers {
        assert!(worker.close_capture(id));
    }
}

#[test]
fn a_port_declared_anew_gets_nothing_of_the_former_one() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let crossing = ping(mac(1), mac(2));
    fleet.offer(0, 0, &crossing);
    fleet.breath_of(0);
    // Port b goes and comes again while a frame for it is under way; worker 1 still has its queues.
    fleet.on_all(|worker, _| {
        worker.set_ports(vec![policy("a", 1)]);
        worker.set_ports(vec![policy("a", 1), policy("b", 2)]);
        worker.open("b");
    });
    fleet.settle();
    fleet.breathe();
    assert_eq!(fleet.received(1), Vec::<Vec<u8>>::new());
    // It was a frame for a port that is no more.
    fleet.expect(&[missed(DropReason::UnknownDestination, 1), IDLE]);
    assert_eq!(fleet.guests[0].given_back(), 1);
}

#[test]
fn a_trace_knows_of_queues_elsewhere() {
    let fleet = Fleet::new(2, &[(FEATURES, &[0]), (FEATURES, &[1])]);
    let trace = fleet.workers[0]
        .trace("a", &ping(mac(1), mac(2)))
        .expect("it is declared");
    assert_eq!(trace.ends.iter().map(|end| end.dropped).collect::<Vec<_>>(), [None]);
}
