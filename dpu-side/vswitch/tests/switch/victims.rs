//! P5: what an attacker makes the worker do beyond passing frames on comes out of the attacker's own share.
//!
//! A victim sends its full share, a burst in each breath; the attacker sends as much as it can. The victim must be served
//! all of it whatever the attacker sends, and the attacker so much less as its frames cost more: what is charged for them
//! must not add up to more than its share. That the charges are what the work costs is shown by counting instructions
//! (`victim-*` of `cargo bench-instructions`); here the accounting is tested, on a clock of the test's own.

use std::sync::Arc;

use outboard_controls::{Check, Off};
use outboard_firewall::{Action, Direction, EgressDefault, Group, PortSpec, Protocol, Rule};
use outboard_vswitch::{BURST_FRAMES, DropReason};
use vhost_net_dpu::header::NetHeader;

use crate::{
    firewall::{Filtered, datagram, group, rule, v4_packet},
    frames::{BROADCAST, udp},
    rig::mac,
};

const BREATHS: usize = 200;
const BREATH_NS: u64 = 10_000;
/// Frames that the attacker has waiting.
const AHEAD: usize = 64;
const SHARE: u64 = (BREATHS * BURST_FRAMES) as u64;
const OPEN_PORT: u16 = 53;
/// The source port of the attacker's one connection that goes on.
const OWN_FLOW: u16 = 9;

/// The attacker, who takes its frames, the victim and its peer. All take UDP to one port.
fn contest(rejects: bool) -> Filtered {
    let open = rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(OPEN_PORT, OPEN_PORT));
    let reject = Rule {
        action: Action::Reject,
        priority: u16::MAX,
        ..rule(Direction::Ingress, Protocol::UDP, PortSpec::Any)
    };
    let mut groups: Vec<Arc<Group>> = vec![group("open", EgressDefault::Allow, vec![open])];
    groups.push(group("reject", EgressDefault::Allow, vec![reject]));
    let attacked: &[&str] = if rejects { &["open", "reject"] } else { &["open"] };
    let plain: &[&str] = &["open"];
    Filtered::new(groups, &[Some(plain), Some(attacked), Some(plain), Some(plain)])
}

fn victims(flow: usize) -> Vec<u8> {
    let source = 1000 + u16::try_from(flow).expect("few");
    datagram(3, 4, (source, OPEN_PORT))
}

/// Frames of the attacker that are served while the victim is served all of its own.
fn served(guests: &mut Filtered, attack: &mut dyn FnMut(u16) -> Vec<u8>) -> u64 {
    let rig = &mut guests.rig;
    // The connections that go on are open before it counts.
    rig.guests[0].queue(NetHeader::default(), &datagram(1, 2, (OWN_FLOW, OPEN_PORT)));
    for flow in 0..BURST_FRAMES {
        rig.guests[2].queue(NetHeader::default(), &victims(flow));
    }
    for n in [0, 2] {
        rig.guests[n].tx.publish();
    }
    while rig.switch.breathe_at(1, &mut rig.calls) {}
    for n in [0, 2] {
        rig.guests[n].given_back();
    }
    for guest in &mut rig.guests {
        guest.received();
        guest.repost();
    }
    let before = rig.switch.counters();
    let (mut waiting, mut number) = (0, 0u16);
    for breath in 0..BREATHS {
        while waiting < AHEAD {
            let frame = attack(number);
            rig.guests[0].queue(NetHeader::default(), &frame);
            number = number.wrapping_add(1);
            waiting += 1;
        }
        rig.guests[0].tx.publish();
        for flow in 0..BURST_FRAMES {
            rig.guests[2].queue(NetHeader::default(), &victims(flow));
        }
        rig.guests[2].tx.publish();
        rig.switch.breathe_at((breath as u64 + 1) * BREATH_NS, &mut rig.calls);
        waiting -= rig.guests[0].given_back();
        assert_eq!(
            rig.guests[2].given_back(),
            BURST_FRAMES,
            "the victim has its whole share"
        );
        for guest in &mut rig.guests {
            guest.received();
            guest.repost();
        }
    }
    let after = rig.switch.counters();
    let sent = |n: usize| after[n].tx_frames - before[n].tx_frames;
    assert_eq!(sent(2), SHARE);
    for n in [2, 3] {
        assert_eq!(after[n].drops, before[n].drops, "nothing of the victim's is lost");
    }
    sent(0)
}

/// The attacker gets no more than what its frames cost leaves it of its share: each `cost` and no less than that, but for
/// the burst that runs into debt. Without the charge it is served as if they cost nothing.
fn charged(rejects: bool, cost: u64, mut attack: impl FnMut(u16) -> Vec<u8>) {
    let mut legal = |_| datagram(1, 2, (OWN_FLOW, OPEN_PORT));
    assert_eq!(
        served(&mut contest(rejects), &mut legal),
        SHARE,
        "legal traffic has its whole share"
    );
    let got = served(&mut contest(rejects), &mut attack);
    let most = SHARE / cost + BURST_FRAMES as u64;
    assert!(got <= most, "{got} frames that cost {cost} each, of a share of {SHARE}");
    assert!(got >= most / 3, "it is not shut out: {got} frames");
    let _off = Off::here(Check::WorkCharged);
    let free = served(&mut contest(rejects), &mut attack);
    assert!(free > most, "control: {free} frames if nothing is charged");
}

#[test]
fn p05_h48_a_flood_of_connections_pays_for_opening_them() {
    charged(false, 6, |number| datagram(1, 2, (number, OPEN_PORT)));
}

#[test]
fn p05_random_tuples_that_are_denied_pay_for_being_judged() {
    charged(false, 2, |number| datagram(1, 2, (number, number | 0x8000)));
}

#[test]
fn p05_segments_of_no_connection_pay_for_being_looked_for() {
    charged(false, 2, |number| {
        let [high, low] = number.to_be_bytes();
        let header = [
            high, low, 0, 53, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0,
        ];
        v4_packet(1, 2, 6, 0, number, &header)
    });
}

#[test]
fn p05_a_flood_of_rejected_packets_pays_and_is_not_answered_in_full() {
    charged(true, 2, |number| datagram(1, 2, (number, number | 0x8000)));
    let mut guests = contest(true);
    let before = guests.rig.switch.counters()[0].rx_frames;
    let got = served(&mut guests, &mut |number| datagram(1, 2, (number, number | 0x8000)));
    let answers = guests.rig.switch.counters()[0].rx_frames - before;
    assert!(
        got > 200 && (32..=34).contains(&answers),
        "{answers} answers to {got} packets"
    );
}

#[test]
fn p05_h45_a_flood_of_fragments_pays_for_what_is_remembered_of_them() {
    charged(false, 2, |number: u16| {
        let ports = datagram(1, 2, (OWN_FLOW, OPEN_PORT))[34..42].to_vec();
        // First ones of ever new datagrams, and later ones that have no first.
        let (word, id) = if number.is_multiple_of(2) {
            (0x2000, number)
        } else {
            (0x20, number)
        };
        v4_packet(1, 2, 17, word, id, &[&ports[..], &[0; 16]].concat())
    });
}

#[test]
fn p05_a_flood_of_broadcasts_pays_for_each_copy_and_each_receivers_rules() {
    let mut attack = |number| {
        udp(
            (mac(1), BROADCAST),
            ([10, 0, 0, 1], [255; 4]),
            (number, OPEN_PORT),
            b"x",
        )
    };
    let got = served(&mut contest(false), &mut attack);
    let _off = Off::here(Check::WorkCharged);
    // Four members of the network, one of them itself: a copy each, and then what their rules are asked.
    assert_eq!(served(&mut contest(false), &mut attack), SHARE / 4);
    assert!((SHARE / 16..SHARE / 6).contains(&got), "{got} frames");
}

#[test]
fn p05_h49_frames_of_ever_new_macs_cost_no_more_than_others() {
    let mut guests = contest(false);
    let got = served(&mut guests, &mut |number| {
        let [high, low] = number.to_be_bytes();
        let macs = ([0x52, 0x54, 0, 1, high, low], [0x52, 0x54, 0, 2, low, high]);
        udp(macs, ([10, 0, 0, 1], [10, 0, 0, 2]), (9, OPEN_PORT), b"x")
    });
    // Each is dropped where it comes in, and counts as one.
    assert_eq!(got, SHARE);
    let drops = guests.rig.switch.counters()[0].drops;
    assert_eq!(drops[DropReason::SpoofedMac as usize], SHARE);
    assert_eq!(drops.iter().sum::<u64>(), SHARE);
}

/// Rules of as many shapes as a port may have: each judgement takes hundreds of steps.
#[test]
fn p05_h47_tuple_space_explosion_pays_by_the_step() {
    let shapes = |n: u16| {
        let rules = (0..300).map(|m| Rule {
            action: Action::Deny,
            priority: 2000 - m,
            ..rule(
                Direction::Ingress,
                Protocol::UDP,
                PortSpec::Range(0x8000 + m, u16::MAX - m - n),
            )
        });
        group(&format!("g{n}"), EgressDefault::Allow, rules.collect())
    };
    let names: Vec<String> = (0..32).map(|n| format!("g{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut groups: Vec<_> = (0..32).map(shapes).collect();
    let open = rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(OPEN_PORT, OPEN_PORT));
    groups.push(group("open", EgressDefault::Allow, vec![open]));
    let plain: &[&str] = &["open"];
    let dear = || Filtered::new(groups.clone(), &[Some(plain), Some(&names), Some(plain), Some(plain)]);
    let mut attack = |number: u16| datagram(1, 2, (number, number | 0x8000));
    let many = served(&mut dear(), &mut attack);
    let few = served(&mut contest(false), &mut attack);
    // Each judgement asks 32 groups, where the other asks one.
    assert!(2 * many < few, "{many} frames under many groups, {few} under one");
    let _off = Off::here(Check::WorkCharged);
    assert_eq!(served(&mut dear(), &mut attack), SHARE, "control: nothing is charged");
}
