//! Trunks: subports in frames that carry a VLAN tag, isolated from all that they are not part of.
//!
//! Guests a and d are parents on network blue, with subports on green and red; b is on green and c on red, without tags.

use crate::FEATURES;
use outboard_controls::{Check, Off};
use outboard_firewall::{Action, Direction, EgressDefault, Policy, Rule};
use outboard_vswitch::{DropReason, PortPolicy, TraceVerdict, TrunkPolicy};

use crate::{
    firewall::{compile, group},
    frames::{BROADCAST, arp, udp},
    rig::{Delta, RX_QUEUE, Rig, TX_QUEUE, got, mac, missed, policy, resources, sent},
};

/// The ports' places in the counters.
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;
const D: usize = 3;
const A_GREEN: usize = 4;
const A_RED: usize = 5;
const D_GREEN: usize = 6;
const PORTS: usize = 7;

pub const GREEN_AT_A: u16 = 100;
const RED_AT_A: u16 = 200;
pub const GREEN_AT_D: u16 = 300;
/// Of a's subport on red; that on green has its parent's MAC and address.
const RED: u8 = 5;

pub fn port(name: &str, network: &str, number: u8, trunk: Option<(&str, u16)>) -> PortPolicy {
    PortPolicy {
        network: network.into(),
        trunk: trunk.map(|(parent, vlan)| TrunkPolicy {
            parent: parent.into(),
            vlan,
        }),
        ..policy(name, number)
    }
}

fn ports() -> Vec<PortPolicy> {
    vec![
        port("a", "blue", 1, None),
        port("b", "green", 2, None),
        port("c", "red", 3, None),
        port("d", "blue", 4, None),
        port("a-green", "green", 1, Some(("a", GREEN_AT_A))),
        port("a-red", "red", RED, Some(("a", RED_AT_A))),
        port("d-green", "green", 4, Some(("d", GREEN_AT_D))),
    ]
}

pub fn trunks_of(features: &[u64; 4]) -> Rig {
    let mut rig = Rig::new(features);
    rig.switch.set_ports(ports());
    for name in ["a-green", "a-red", "d-green"] {
        rig.switch.open(name);
    }
    rig.breathe();
    rig.settle();
    rig
}

fn trunks() -> Rig {
    trunks_of(&[FEATURES; 4])
}

/// The frame with an 802.1Q tag; `control` is its control information.
pub fn tag(frame: &[u8], control: u16) -> Vec<u8> {
    let [high, low] = control.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

/// A datagram from one station to another, by their numbers.
fn datagram(from: u8, to: u8) -> Vec<u8> {
    udp(
        (mac(from), mac(to)),
        ([10, 0, 0, from], [10, 0, 0, to]),
        (7, 8),
        b"a datagram",
    )
}

/// What changed at the ports that are named, and nothing at all others.
fn only(changed: &[(usize, Delta)]) -> [Delta; PORTS] {
    let mut all = [Delta::default(); PORTS];
    changed.iter().for_each(|(port, delta)| all[*port] = *delta);
    all
}

/// What guests a to d received.
fn received(rig: &mut Rig) -> Vec<Vec<Vec<u8>>> {
    let frames = |n: usize| {
        let frames = rig.guests[n].received().into_iter().map(|(_, frame)| frame).collect();
        rig.guests[n].repost();
        frames
    };
    (0..4).map(frames).collect()
}

/// Guest `from` sends a frame; guest `to` and nobody else gets it as `want`, and what it counts is told in frames without
/// tags.
#[track_caller]
fn passes(rig: &mut Rig, (from, sender): (usize, usize), frame: &[u8], (to, receiver): (usize, usize), want: &[u8]) {
    rig.send_plain(from, frame);
    let mut wanted = vec![Vec::new(); 4];
    wanted[to].push(want.to_vec());
    assert_eq!(received(rig), wanted);
    let len = frame.len() - if sender == from { 0 } else { 4 };
    rig.expect(&only(&[(sender, sent(1, len)), (receiver, got(1, len))]));
}

/// Honest traffic of all kinds passes.
#[track_caller]
fn alive(rig: &mut Rig) {
    let there = datagram(1, 2);
    passes(rig, (0, A_GREEN), &tag(&there, GREEN_AT_A), (1, B), &there);
    let back = datagram(2, 1);
    passes(rig, (1, B), &back, (0, A_GREEN), &tag(&back, GREEN_AT_A));
    let red = datagram(RED, 3);
    passes(rig, (0, A_RED), &tag(&red, RED_AT_A), (2, C), &red);
    let blue = datagram(1, 4);
    passes(rig, (0, A), &blue, (3, D), &blue);
}

#[test]
fn subports_exchange_frames_with_their_networks_and_parents_with_theirs() {
    let mut rig = trunks();
    alive(&mut rig);
    // From one trunk to another, each with its own id; a priority that the sender gave is not passed on.
    let frame = datagram(1, 4);
    let (there, here) = (tag(&frame, GREEN_AT_D), tag(&frame, GREEN_AT_A | 5 << 13 | 1 << 12));
    passes(&mut rig, (0, A_GREEN), &here, (3, D_GREEN), &there);
    alive(&mut rig);
}

#[test]
fn p02_networks_of_one_trunk_do_not_meet() {
    let mut rig = trunks();
    // To stations of other networks: from each of a's three ports.
    for (frame, sender) in [
        (tag(&datagram(RED, 2), RED_AT_A), A_RED),
        (tag(&datagram(1, 3), GREEN_AT_A), A_GREEN),
        (datagram(1, 2), A),
        (datagram(1, 3), A),
    ] {
        rig.send_plain(0, &frame);
        let len = frame.len() - if sender == A { 0 } else { 4 };
        let dropped = sent(1, len).dropped(DropReason::UnknownDestination, 1);
        rig.expect(&only(&[(sender, dropped)]));
        assert_eq!(received(&mut rig), vec![Vec::<Vec<u8>>::new(); 4]);
    }
    alive(&mut rig);
}

#[test]
fn a_broadcast_reaches_all_of_its_network_tagged_where_they_are() {
    let mut rig = trunks();
    let query = |number: u8| {
        let own = (mac(number), [10, 0, 0, number]);
        arp(1, mac(number), own, ([0; 6], [10, 0, 0, 9]))
    };
    let len = query(1).len();
    rig.send_plain(1, &query(2));
    let want = |vlan| vec![tag(&query(2), vlan)];
    assert_eq!(
        received(&mut rig),
        [want(GREEN_AT_A), vec![], vec![], want(GREEN_AT_D)],
        "green is b, a-green and d-green"
    );
    rig.expect(&only(&[
        (B, sent(1, len)),
        (A_GREEN, got(1, len)),
        (D_GREEN, got(1, len)),
    ]));
    rig.send_plain(0, &tag(&query(1), GREEN_AT_A));
    let want = [vec![], vec![query(1)], vec![], vec![tag(&query(1), GREEN_AT_D)]];
    assert_eq!(received(&mut rig), want);
    rig.expect(&only(&[
        (A_GREEN, sent(1, len)),
        (B, got(1, len)),
        (D_GREEN, got(1, len)),
    ]));
    rig.send_plain(0, &query(1));
    assert_eq!(received(&mut rig), [vec![], vec![], vec![], vec![query(1)]], "blue");
    rig.expect(&only(&[(A, sent(1, len)), (D, got(1, len))]));
}

#[test]
fn subports_of_one_parent_reach_each_other_and_their_parent_through_one_device() {
    let mut rig = trunks();
    let mut all = ports();
    all[A_RED] = port("a-red", "green", RED, Some(("a", RED_AT_A)));
    all[D_GREEN] = port("d-green", "blue", 6, Some(("a", GREEN_AT_D)));
    rig.switch.set_ports(all);
    rig.settle();
    let frame = datagram(1, RED);
    let (sent_as, wanted) = (tag(&frame, GREEN_AT_A), tag(&frame, RED_AT_A));
    passes(&mut rig, (0, A_GREEN), &sent_as, (0, A_RED), &wanted);
    // The parent's network, and a subport on it.
    let frame = datagram(6, 1);
    passes(&mut rig, (0, D_GREEN), &tag(&frame, GREEN_AT_D), (0, A), &frame);
    let frame = datagram(1, 6);
    passes(&mut rig, (0, A), &frame, (0, D_GREEN), &tag(&frame, GREEN_AT_D));
    // A group that two members of one parent are in: each gets its copy, but not the sender.
    let own = (mac(2), [10, 0, 0, 2]);
    let query = arp(1, mac(2), own, ([0; 6], [10, 0, 0, 9]));
    rig.send_plain(1, &query);
    let mut here = received(&mut rig).swap_remove(0);
    here.sort();
    assert_eq!(here, [tag(&query, GREEN_AT_A), tag(&query, RED_AT_A)]);
    rig.settle();
    let own = (mac(1), [10, 0, 0, 1]);
    let query = arp(1, mac(1), own, ([0; 6], [10, 0, 0, 9]));
    rig.send_plain(0, &tag(&query, GREEN_AT_A));
    assert_eq!(
        received(&mut rig),
        [vec![tag(&query, RED_AT_A)], vec![query.clone()], vec![], vec![]]
    );
    let len = query.len();
    rig.expect(&only(&[
        (A_GREEN, sent(1, len)),
        (A_RED, got(1, len)),
        (B, got(1, len)),
    ]));
}

/// A frame from guest `from` is dropped, once, at a port, and nobody gets anything.
#[track_caller]
fn dropped(rig: &mut Rig, from: usize, frame: &[u8], (at, len): (usize, usize), reason: DropReason) {
    rig.send_plain(from, frame);
    assert_eq!(received(rig), vec![Vec::<Vec<u8>>::new(); 4], "{}", reason.name());
    rig.expect(&only(&[(at, sent(1, len).dropped(reason, 1))]));
}

#[test]
fn p02_tags_that_are_no_subports_go_nowhere() {
    let mut rig = trunks();
    let plain = datagram(1, 2);
    for (control, reason) in [
        (GREEN_AT_D, DropReason::UnknownVlan),
        (4095, DropReason::UnknownVlan),
        (1, DropReason::UnknownVlan),
        (0, DropReason::PriorityTagged),
        (7 << 13, DropReason::PriorityTagged),
    ] {
        alive(&mut rig);
        dropped(&mut rig, 0, &tag(&plain, control), (A, plain.len()), reason);
    }
    // A second tag, of whatever kind, behind one that is a subport's; and an outer tag of another kind.
    for inner in [[0x81, 0], [0x88, 0xa8], [0x91, 0]] {
        let inner = [&plain[..12], &inner, &[0, 100], &plain[12..]].concat();
        let double = tag(&inner, GREEN_AT_A);
        alive(&mut rig);
        dropped(&mut rig, 0, &double, (A_GREEN, inner.len()), DropReason::VlanTagged);
        if inner[12..14] != [0x81, 0] {
            dropped(&mut rig, 0, &inner, (A, inner.len()), DropReason::VlanTagged);
        }
        // Without the guard what is within the tag would go on as it is.
        let _off = Off::here(Check::SourceGuard);
        passes(&mut rig, (0, A_GREEN), &double, (1, B), &inner);
    }
    // A frame that ends within its tag, or right behind it.
    for len in [14, 15, 17] {
        let short = &tag(&plain, GREEN_AT_A)[..len];
        dropped(&mut rig, 0, short, (A, len), DropReason::Runt);
    }
    alive(&mut rig);
}

#[test]
fn p02_a_vlan_tag_gives_a_port_without_subports_nothing() {
    let mut rig = trunks();
    // Guest b, on green without a tag, plays a's subport on red.
    let forged = datagram(RED, 3);
    let attack = tag(&forged, RED_AT_A);
    alive(&mut rig);
    dropped(&mut rig, 1, &attack, (B, forged.len()), DropReason::VlanTagged);
    // Not even as itself, on the VLAN that its network has elsewhere.
    let own = tag(&datagram(2, 1), GREEN_AT_A);
    dropped(&mut rig, 1, &own, (B, own.len() - 4), DropReason::VlanTagged);
    {
        let _off = Off::here(Check::TrunkTag);
        passes(&mut rig, (1, A_RED), &attack, (2, C), &forged);
    }
    alive(&mut rig);
}

#[test]
fn p02_a_vlan_id_of_another_trunk_gives_nothing() {
    let mut rig = trunks();
    let forged = datagram(RED, 3);
    let attack = tag(&forged, RED_AT_A);
    alive(&mut rig);
    // Guest d is a trunk, but has no subport with that id.
    dropped(&mut rig, 3, &attack, (D, forged.len()), DropReason::UnknownVlan);
    {
        let _off = Off::here(Check::TrunkTag);
        passes(&mut rig, (3, A_RED), &attack, (2, C), &forged);
    }
    alive(&mut rig);
}

#[test]
fn p02_each_vlan_of_a_trunk_has_its_own_source_guard() {
    let mut rig = trunks();
    let forged_mac = udp((mac(RED), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (7, 8), b"x");
    let forged_address = udp((mac(1), mac(2)), ([10, 0, 0, RED], [10, 0, 0, 2]), (7, 8), b"x");
    let own = (mac(1), [10, 0, 0, RED]);
    let forged_arp = arp(2, mac(1), own, (mac(2), [10, 0, 0, 2]));
    let forged_arp = [&mac(2)[..], &forged_arp[6..]].concat();
    for (forged, reason) in [
        (forged_mac, DropReason::SpoofedMac),
        (forged_address, DropReason::SpoofedIpv4),
        (forged_arp, DropReason::SpoofedArp),
    ] {
        let attack = tag(&forged, GREEN_AT_A);
        alive(&mut rig);
        dropped(&mut rig, 0, &attack, (A_GREEN, forged.len()), reason);
        let _off = Off::here(Check::SourceGuard);
        passes(&mut rig, (0, A_GREEN), &attack, (1, B), &forged);
    }
    // What its subport on red may, the parent may not.
    let forged = datagram(RED, 4);
    dropped(&mut rig, 0, &forged, (A, forged.len()), DropReason::SpoofedMac);
    alive(&mut rig);
}

#[test]
fn a_subport_that_is_shut_is_silent_alone() {
    let mut rig = trunks();
    let (there, back) = (datagram(1, 2), datagram(2, 1));
    rig.switch.shut("a-green");
    assert_eq!(
        (rig.switch.is_open("a-green"), rig.switch.is_open("a")),
        (Some(false), Some(true))
    );
    let shut = (A_GREEN, there.len());
    dropped(&mut rig, 0, &tag(&there, GREEN_AT_A), shut, DropReason::SubportShut);
    rig.send_plain(1, &back);
    rig.expect(&only(&[
        (B, sent(1, back.len())),
        (A_GREEN, missed(DropReason::PortShut, 1)),
    ]));
    let red = datagram(RED, 3);
    passes(&mut rig, (0, A_RED), &tag(&red, RED_AT_A), (2, C), &red);
    let blue = datagram(1, 4);
    passes(&mut rig, (0, A), &blue, (3, D), &blue);
    rig.switch.open("a-green");
    alive(&mut rig);
}

#[test]
fn p08_a_parent_that_is_shut_silences_its_subports_at_once() {
    let mut rig = trunks();
    alive(&mut rig);
    rig.switch.shut("a");
    let open = |rig: &Rig| ["a", "a-green", "a-red", "d-green"].map(|name| rig.switch.is_open(name));
    assert_eq!(open(&rig), [Some(false), Some(false), Some(false), Some(true)]);
    let there = datagram(1, 2);
    rig.send_plain(0, &tag(&there, GREEN_AT_A));
    rig.expect(&only(&[]));
    let (green, red) = (datagram(2, 1), datagram(3, RED));
    rig.send_plain(1, &green);
    rig.send_plain(2, &red);
    assert_eq!(received(&mut rig), vec![Vec::<Vec<u8>>::new(); 4]);
    rig.expect(&only(&[
        (B, sent(1, green.len())),
        (C, sent(1, red.len())),
        (A_GREEN, missed(DropReason::PortShut, 1)),
        (A_RED, missed(DropReason::PortShut, 1)),
    ]));
    // Control: what waited in its queue goes out as soon as it is open again.
    rig.switch.open("a");
    rig.breathe();
    assert_eq!(received(&mut rig)[1], [there]);
    rig.settle();
    alive(&mut rig);
}

#[test]
fn groups_are_those_of_each_subport() {
    let mut rig = trunks();
    let deny = Rule {
        action: Action::Reject,
        ..Rule::allow(Direction::Egress)
    };
    let groups = vec![
        group("shut", EgressDefault::Deny, vec![]),
        group("reject", EgressDefault::Allow, vec![deny]),
    ];
    let all = ports();
    let of = |filtered: usize, name: &'static [&'static str]| -> Vec<(&PortPolicy, Option<&[&str]>)> {
        let with = |(n, port)| (port, (n == filtered).then_some(name));
        all.iter().enumerate().map(with).collect()
    };
    let policy = compile(&Policy::default(), groups.clone(), &of(A_GREEN, &["shut"]));
    rig.switch.set_policy(all.clone(), policy.clone());
    rig.settle();
    let (there, back) = (datagram(1, 2), datagram(2, 1));
    let len = there.len();
    dropped(
        &mut rig,
        0,
        &tag(&there, GREEN_AT_A),
        (A_GREEN, len),
        DropReason::EgressNoRule,
    );
    rig.send_plain(1, &back);
    rig.expect(&only(&[
        (B, sent(1, len)),
        (A_GREEN, missed(DropReason::IngressNoRule, 1)),
    ]));
    let red = datagram(RED, 3);
    passes(&mut rig, (0, A_RED), &tag(&red, RED_AT_A), (2, C), &red);
    // What is rejected is answered on the VLAN that it came from.
    let policy = compile(&policy, groups.clone(), &of(A_GREEN, &["reject"]));
    rig.switch.set_policy(all.clone(), policy);
    rig.settle();
    rig.send_plain(0, &tag(&there, GREEN_AT_A));
    let answers = received(&mut rig).swap_remove(0);
    let [answer] = &answers[..] else {
        panic!("one answer: {answers:?}")
    };
    assert_eq!(answer[..6], mac(1));
    assert_eq!(answer[12..18], [0x81, 0, 0, 100, 8, 0], "tagged, and IPv4");
    let rejected = sent(1, len).dropped(DropReason::EgressRejected, 1);
    rig.expect(&only(&[(A_GREEN, rejected.and_got(1, answer.len() - 4))]));
    // Control: without groups it passes.
    rig.switch
        .set_policy(all.clone(), compile(&Policy::default(), vec![], &of(PORTS, &[])));
    rig.settle();
    alive(&mut rig);
}

#[test]
fn a_trace_knows_subports_by_name_and_by_tag() {
    let rig = trunks();
    let frame = datagram(1, 2);
    let of = |port: &str, frame: &[u8]| rig.switch.trace(port, frame).expect("declared");
    let ends = |trace: &outboard_vswitch::Trace| -> Vec<(String, Option<DropReason>)> {
        trace.ends.iter().map(|end| (end.port.clone(), end.dropped)).collect()
    };
    // By its name, with the frame as the guest's VLAN device has it.
    let named = of("a-green", &frame);
    assert_eq!(ends(&named), [("b".to_owned(), None)]);
    let tagged = of("a", &tag(&frame, GREEN_AT_A));
    assert_eq!(ends(&tagged), ends(&named));
    let layers: Vec<_> = tagged.steps.iter().map(|step| step.layer).collect();
    assert_eq!(layers, ["port", "trunk", "parser", "source guard", "L2"]);
    assert!(tagged.steps[1].detail.contains("a-green"), "{tagged:?}");
    for (port, frame, end) in [
        ("a", tag(&frame, 7), ("a", DropReason::UnknownVlan)),
        ("b", tag(&frame, 7), ("b", DropReason::VlanTagged)),
        ("a", tag(&frame, 0), ("a", DropReason::PriorityTagged)),
        ("a-green", tag(&frame, 7), ("a-green", DropReason::VlanTagged)),
    ] {
        assert_eq!(ends(&of(port, &frame)), [(end.0.to_owned(), Some(end.1))]);
    }
    let mut rig = rig;
    rig.switch.shut("a-green");
    let shut = rig.switch.trace("a", &tag(&frame, GREEN_AT_A)).expect("declared");
    assert_eq!(ends(&shut), [("a-green".to_owned(), Some(DropReason::SubportShut))]);
    let to = rig.switch.trace("b", &datagram(2, 1)).expect("declared");
    assert_eq!(ends(&to), [("a-green".to_owned(), Some(DropReason::PortShut))]);
    rig.switch.open("a-green");
    rig.switch.shut("a");
    let held = rig.switch.trace("a-green", &frame).expect("declared");
    assert_eq!(held.steps[0].verdict, TraceVerdict::Hold);
}

#[test]
fn a_new_vlan_id_holds_at_once_and_a_subport_that_goes_leaves_its_parent() {
    let mut rig = trunks();
    let mut all = ports();
    all[A_GREEN] = port("a-green", "green", 1, Some(("a", 101)));
    rig.switch.set_ports(all.clone());
    rig.settle();
    let frame = datagram(1, 2);
    let len = frame.len();
    dropped(&mut rig, 0, &tag(&frame, GREEN_AT_A), (A, len), DropReason::UnknownVlan);
    passes(&mut rig, (0, A_GREEN), &tag(&frame, 101), (1, B), &frame);
    // Under another parent it goes out there; a parent that is not there carries nobody.
    all[A_GREEN] = port("a-green", "green", 1, Some(("nobody", 101)));
    rig.switch.set_ports(all.clone());
    rig.settle();
    dropped(&mut rig, 0, &tag(&frame, 101), (A, len), DropReason::UnknownVlan);
    let back = datagram(2, 1);
    rig.send_plain(1, &back);
    rig.expect(&only(&[
        (B, sent(1, len)),
        (A_GREEN, missed(DropReason::RxNotRunning, 1)),
    ]));
    assert_eq!(rig.switch.is_open("a-green"), Some(false));
    rig.switch.set_ports(ports());
    rig.settle();
    alive(&mut rig);
}

#[test]
fn a_subport_has_no_queues_of_its_own() {
    let mut rig = trunks();
    let guest = &rig.guests[2];
    let queue = resources(&guest.tx, guest.ram.memory(), guest.features);
    assert!(rig.switch.start_queue("a-red", TX_QUEUE, queue).is_err());
    // A port that becomes one loses the use of those that it has.
    let mut all = ports();
    all[C] = port("c", "red", 3, Some(("a", 9)));
    rig.switch.set_ports(all);
    rig.settle();
    let own = datagram(3, RED);
    rig.send_plain(2, &own);
    rig.expect(&only(&[]));
    let as_subport = tag(&own, 9);
    passes(&mut rig, (0, C), &as_subport, (0, A_RED), &tag(&own, RED_AT_A));
    // They stay dead until they were stopped, also if it becomes a port with a device again.
    rig.switch.set_ports(ports());
    rig.breathe();
    rig.settle();
    assert!(received(&mut rig).concat().is_empty());
    for index in [RX_QUEUE, TX_QUEUE] {
        assert!(rig.switch.stop_queue("c", index).is_some());
    }
    rig.guests[2].renew_tx();
    rig.start(2);
    rig.breathe();
    rig.settle();
    alive(&mut rig);
}

#[test]
fn memory_that_goes_away_is_the_senders_drop_and_fails_the_trunks_queue() {
    let mut rig = trunks();
    let far = (64 << 20) - 4096;
    let guest = &mut rig.guests[0];
    // The head is there, and the rest of the frame is not.
    let frame = tag(
        &udp((mac(1), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (7, 8), &[0; 600]),
        GREEN_AT_A,
    );
    let at = outboard_ring::driver::RAM_START + far - 500;
    guest.tx.write(at, &[&[0; 12], &frame[..400]].concat());
    guest
        .tx
        .add(&[(at, u32::try_from(12 + frame.len()).expect("short"))], &[])
        .expect("there is room");
    guest.tx.publish();
    guest.ram.file().set_len(far).expect("ftruncate");
    rig.breathe();
    let gone = sent(1, frame.len() - 4).dropped(DropReason::TxMemoryGone, 1);
    rig.expect(&only(&[(A_GREEN, gone)]));
    let blue = datagram(2, 4);
    passes(&mut rig, (1, B), &blue, (3, D_GREEN), &tag(&blue, GREEN_AT_D));
}

#[test]
fn broadcasts_are_dropped_where_a_subport_is_alone() {
    let mut rig = trunks();
    let mut all = ports();
    all[A_RED] = port("a-red", "grey", RED, Some(("a", RED_AT_A)));
    rig.switch.set_ports(all);
    rig.settle();
    let frame = udp((mac(RED), BROADCAST), ([10, 0, 0, RED], [255; 4]), (7, 8), b"x");
    dropped(
        &mut rig,
        0,
        &tag(&frame, RED_AT_A),
        (A_RED, frame.len()),
        DropReason::NoReceiver,
    );
}
