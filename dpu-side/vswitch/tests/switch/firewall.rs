//! Security groups: what passes, what does not, and why.

use std::{net::IpAddr, sync::Arc};

use crate::FEATURES;
use outboard_controls::{Check, Off};
use outboard_firewall::{Action, Direction, EgressDefault, Group, Peer, Policy, Port, PortSpec, Protocol, Rule, Spec};
use outboard_vswitch::{DropReason, PortPolicy};
use vhost_net_dpu::{
    header::NetHeader,
    packet::{IP_PROTOCOL_TCP, IP_PROTOCOL_UDP},
};

use crate::{
    frames::{BROADCAST, arp, icmpv6, link_layer, neighbour, ping, udp, udp6, v6},
    rig::{Rig, got, mac, missed, policy, sent},
};

pub fn rule(direction: Direction, protocol: Protocol, ports: PortSpec) -> Rule {
    Rule {
        protocol,
        ports,
        ..Rule::allow(direction)
    }
}

pub fn group(name: &str, egress: EgressDefault, rules: Vec<Rule>) -> Arc<Group> {
    Arc::new(Group {
        name: name.into(),
        egress,
        rules,
    })
}

/// A policy for the rig's ports, of which some have groups.
pub fn compile(before: &Policy, groups: Vec<Arc<Group>>, ports: &[(&PortPolicy, Option<&[&str]>)]) -> Arc<Policy> {
    let ports = ports.iter().map(|(policy, groups)| {
        Arc::new(Port {
            name: policy.name.as_str().into(),
            network: policy.network.as_str().into(),
            addresses: policy.addresses.clone(),
            groups: groups.map(|groups| groups.iter().map(|name| (*name).into()).collect()),
        })
    });
    let spec = Spec {
        groups,
        ports: ports.collect(),
        ..Spec::default()
    };
    Arc::new(before.follow(&spec).expect("it makes sense"))
}

/// Guests a, b, …, the groups that each has, and the policy in force.
pub struct Filtered {
    pub rig: Rig,
    policy: Arc<Policy>,
    ports: Vec<PortPolicy>,
}

impl Filtered {
    pub fn new(groups: Vec<Arc<Group>>, of: &[Option<&[&str]>]) -> Self {
        let names = ["a", "b", "c", "d"];
        let mut filtered = Self {
            rig: Rig::new(&vec![FEATURES; of.len()]),
            policy: Arc::default(),
            ports: (1..).zip(&names[..of.len()]).map(|(n, name)| policy(name, n)).collect(),
        };
        filtered.set(groups, of);
        filtered
    }

    pub fn set(&mut self, groups: Vec<Arc<Group>>, of: &[Option<&[&str]>]) {
        let ports: Vec<_> = self.ports.iter().zip(of.iter().copied()).collect();
        self.policy = compile(&self.policy, groups, &ports);
        self.rig.switch.set_policy(self.ports.clone(), self.policy.clone());
        self.rig.settle();
    }

    /// Guest `from` sends a frame: who gets it, and why it is dropped.
    pub fn send(&mut self, from: usize, frame: &[u8]) -> Result<Vec<usize>, DropReason> {
        let before = self.rig.switch.counters();
        self.rig.send(from, NetHeader::default(), frame);
        let after = self.rig.switch.counters();
        let receivers: Vec<usize> = (0..self.rig.guests.len())
            .filter(|n| {
                let received = self.rig.guests[*n].received();
                self.rig.guests[*n].repost();
                received.iter().any(|(_, bytes)| bytes == frame)
            })
            .collect();
        for (before, after) in before.iter().zip(&after) {
            for reason in DropReason::ALL {
                if after.drops[reason as usize] > before.drops[reason as usize] {
                    assert!(
                        receivers.is_empty() || reason.at_receiver(),
                        "given and dropped: {reason:?}"
                    );
                    if receivers.is_empty() {
                        return Err(reason);
                    }
                }
            }
        }
        Ok(receivers)
    }
}

pub fn v4_packet(from: u8, to: u8, protocol: u8, word: u16, id: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let (id, word) = (id.to_be_bytes(), word.to_be_bytes());
    let header = [
        0x45, 0, len[0], len[1], id[0], id[1], word[0], word[1], 64, protocol, 0, 0,
    ];
    let addresses = [10, 0, 0, from, 10, 0, 0, to];
    [&mac(to)[..], &mac(from), &[8, 0], &header, &addresses, payload].concat()
}

const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A segment between 10.0.0.`from`:`ports.0` and 10.0.0.`to`:`ports.1`.
pub fn segment(ends: (u8, u8), ports: (u16, u16), flags: u8, (sequence, acknowledged): (u32, u32)) -> Vec<u8> {
    let header: [&[u8]; 6] = [
        &ports.0.to_be_bytes(),
        &ports.1.to_be_bytes(),
        &sequence.to_be_bytes(),
        &acknowledged.to_be_bytes(),
        &[0x50, flags, 0xff, 0xff],
        &[0; 4],
    ];
    v4_packet(ends.0, ends.1, IP_PROTOCOL_TCP, 0, 1, &header.concat())
}

pub fn datagram(from: u8, to: u8, ports: (u16, u16)) -> Vec<u8> {
    let addresses = ([10, 0, 0, from], [10, 0, 0, to]);
    udp((mac(from), mac(to)), addresses, ports, b"sixteen bytes ..")
}

/// What answers a ping of `ping`.
fn pong(from: u8, to: u8) -> Vec<u8> {
    let mut frame = ping(mac(from), mac(to));
    frame[34] = 0;
    frame
}

fn web() -> Vec<Arc<Group>> {
    let port_80 = rule(Direction::Ingress, Protocol::TCP, PortSpec::Range(80, 80));
    vec![group("web", EgressDefault::Allow, vec![port_80])]
}

/// A group that lets nothing out, and UDP to port 53 in.
fn server() -> Vec<Arc<Group>> {
    let port_53 = rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(53, 53));
    vec![group("dns", EgressDefault::Deny, vec![port_53])]
}

#[test]
fn a_port_without_groups_is_unfiltered_and_one_with_none_gets_nothing() {
    let mut guests = Filtered::new(vec![], &[None, None]);
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 6))), Ok(vec![1]));
    guests.set(vec![], &[None, Some(&[])]);
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 6))), Err(DropReason::IngressNoRule));
    assert_eq!(guests.send(1, &datagram(2, 1, (5, 6))), Err(DropReason::EgressNoRule));
    let _off = Off::here(Check::SecurityGroups);
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 6))), Ok(vec![1]), "control");
}

#[test]
fn replies_of_an_allowed_connection_pass_and_nothing_else_of_that_port() {
    let mut guests = Filtered::new(server(), &[None, Some(&["dns"])]);
    assert_eq!(guests.send(1, &datagram(2, 1, (53, 5))), Err(DropReason::EgressNoRule));
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 53))), Ok(vec![1]));
    assert_eq!(guests.send(1, &datagram(2, 1, (53, 5))), Ok(vec![0]));
    assert_eq!(guests.send(1, &datagram(2, 1, (53, 6))), Err(DropReason::EgressNoRule));
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 54))), Err(DropReason::IngressNoRule));
    assert_eq!(guests.send(0, &ping(mac(1), mac(2))), Err(DropReason::IngressNoRule));
}

#[test]
fn each_step_is_counted_once_where_it_belongs() {
    let mut guests = Filtered::new(server(), &[None, Some(&["dns"])]);
    let (good, bad) = (datagram(1, 2, (5, 53)), datagram(1, 2, (5, 54)));
    guests.rig.send_plain(0, &good);
    guests.rig.expect(&[sent(1, good.len()), got(1, good.len())]);
    guests.rig.send_plain(0, &bad);
    guests
        .rig
        .expect(&[sent(1, bad.len()), missed(DropReason::IngressNoRule, 1)]);
    let out = datagram(2, 1, (9, 9));
    guests.rig.send_plain(1, &out);
    guests
        .rig
        .expect(&[got(0, 0), sent(1, out.len()).dropped(DropReason::EgressNoRule, 1)]);
}

#[test]
fn pings_have_answers_and_answers_have_pings() {
    let icmp = rule(
        Direction::Ingress,
        Protocol::Icmp,
        PortSpec::Icmp { kind: 8, code: None },
    );
    let groups = vec![group("ping", EgressDefault::Deny, vec![icmp])];
    let mut guests = Filtered::new(groups, &[None, Some(&["ping"])]);
    assert_eq!(guests.send(0, &pong(1, 2)), Err(DropReason::CtInvalid));
    assert_eq!(guests.send(0, &ping(mac(1), mac(2))), Ok(vec![1]));
    assert_eq!(guests.send(1, &pong(2, 1)), Ok(vec![0]));
    assert_eq!(guests.send(1, &ping(mac(2), mac(1))), Err(DropReason::EgressNoRule));
}

fn handshake(guests: &mut Filtered) {
    let ports = (40_000, 80);
    assert_eq!(guests.send(0, &segment((1, 2), ports, SYN, (100, 0))), Ok(vec![1]));
    let answer = segment((2, 1), (80, 40_000), SYN | ACK, (500, 101));
    assert_eq!(guests.send(1, &answer), Ok(vec![0]));
    assert_eq!(guests.send(0, &segment((1, 2), ports, ACK, (101, 501))), Ok(vec![1]));
}

#[test]
fn h50_p03_a_tcp_connection_begins_with_a_handshake_and_stays_in_its_window() {
    let mut guests = Filtered::new(web(), &[None, Some(&["web"])]);
    let ports = (40_000, 80);
    let middle = segment((1, 2), ports, ACK, (101, 501));
    assert_eq!(guests.send(0, &middle), Err(DropReason::CtInvalid));
    handshake(&mut guests);
    assert_eq!(guests.send(0, &middle), Ok(vec![1]));
    let reset = segment((1, 2), ports, RST, (0x7000_0000, 0));
    assert_eq!(guests.send(0, &reset), Err(DropReason::CtInvalid));
    assert_eq!(guests.send(0, &middle), Ok(vec![1]), "the connection lives");
    {
        let _off = Off::here(Check::ConnectionWindow);
        assert_eq!(guests.send(0, &reset), Ok(vec![1]), "control");
    }
    // Flags that no TCP sends open nothing.
    let odd = segment((1, 2), (40_001, 80), SYN | FIN, (100, 0));
    assert_eq!(guests.send(0, &odd), Err(DropReason::CtInvalid));
}

#[test]
fn a_connection_survives_a_new_policy_only_if_that_would_open_it() {
    let mut guests = Filtered::new(web(), &[None, Some(&["web"])]);
    handshake(&mut guests);
    let (there, back) = (
        segment((1, 2), (40_000, 80), ACK, (101, 501)),
        segment((2, 1), (80, 40_000), ACK, (501, 101)),
    );
    let both = |guests: &mut Filtered| (guests.send(1, &back), guests.send(0, &there));
    // Another rule beside the one that allows it.
    let with = |port: u16| {
        let more = rule(Direction::Ingress, Protocol::TCP, PortSpec::Range(port, port));
        group("more", EgressDefault::Allow, vec![more])
    };
    guests.set([web(), vec![with(81)]].concat(), &[None, Some(&["web", "more"])]);
    assert_eq!(both(&mut guests), (Ok(vec![0]), Ok(vec![1])));
    // The rule goes: replies end with it.
    guests.set(vec![with(81)], &[None, Some(&["more"])]);
    let (back_outcome, there_outcome) = both(&mut guests);
    assert_eq!(back_outcome, Err(DropReason::IngressNoRule));
    assert_eq!(there_outcome, Err(DropReason::CtInvalid), "it has ended");
    // It comes back, but the connection does not.
    guests.set(vec![with(80)], &[None, Some(&["more"])]);
    assert_eq!(guests.send(0, &there), Err(DropReason::CtInvalid));
    handshake(&mut guests);
}

#[test]
fn what_is_rejected_is_answered_at_a_bounded_rate() {
    let reject = |protocol| Rule {
        action: Action::Reject,
        ..rule(Direction::Ingress, protocol, PortSpec::Any)
    };
    let groups = vec![group(
        "no",
        EgressDefault::Allow,
        vec![reject(Protocol::TCP), reject(Protocol::UDP)],
    )];
    let mut guests = Filtered::new(groups, &[None, Some(&["no"])]);
    let syn = segment((1, 2), (40_000, 80), SYN, (100, 0));
    guests.rig.send_plain(0, &syn);
    let answers = guests.rig.guests[0].received();
    assert_eq!(answers.len(), 1);
    let reset = &answers[0].1;
    assert_eq!((&reset[..12], reset[47]), (&[mac(1), mac(2)].concat()[..], RST | ACK));
    let answer_len = reset.len();
    guests.rig.expect(&[
        sent(1, syn.len()).and_got(1, answer_len),
        missed(DropReason::IngressRejected, 1),
    ]);
    // Answers are from the address that the packet was for, and quote it.
    let datagram = datagram(1, 2, (5, 6));
    guests.rig.send_plain(0, &datagram);
    let answers = guests.rig.guests[0].received();
    assert_eq!(answers[0].1[34..36], [3, 13]);
    assert_eq!(answers[0].1[42..], datagram[14..]);
    // A flood is not answered in full, and all of it is counted.
    let before = guests.rig.switch.counters()[0].rx_frames;
    for _ in 0..5 {
        for _ in 0..60 {
            guests.rig.guests[0].queue(NetHeader::default(), &datagram);
        }
        guests.rig.guests[0].tx.publish();
        // All at one moment.
        while guests.rig.switch.breathe_at(1_000_000_000, &mut guests.rig.calls) {}
        guests.rig.guests[0].received();
        guests.rig.guests[0].repost();
    }
    let counters = guests.rig.switch.counters();
    assert_eq!(counters[0].rx_frames - before, 32);
    assert_eq!(counters[1].drops[DropReason::IngressRejected as usize], 302);
}

#[test]
fn arp_and_neighbour_discovery_pass_and_the_source_guard_holds() {
    let mut guests = Filtered::new(vec![], &[Some(&[]), Some(&[])]);
    let ask = arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2]));
    assert_eq!(guests.send(0, &ask), Ok(vec![1]));
    let macs = (mac(1), mac(2));
    let addresses = (v6(mac(1)), v6(mac(2)));
    let solicit = icmpv6(
        macs,
        addresses,
        255,
        &neighbour(135, v6(mac(2)), &link_layer(1, mac(1))),
    );
    assert_eq!(guests.send(0, &solicit), Ok(vec![1]));
    let forged = arp(1, mac(1), (mac(1), [10, 0, 0, 9]), ([0; 6], [10, 0, 0, 2]));
    assert_eq!(guests.send(0, &forged), Err(DropReason::SpoofedArp));
    let packet = udp6(macs, addresses, (5, 6), b"x");
    assert_eq!(guests.send(0, &packet), Err(DropReason::EgressNoRule));
}

/// A UDP datagram's first fragment with 24 bytes, its second with 8.
fn fragments(to_port: u16, id: u16) -> (Vec<u8>, Vec<u8>) {
    let ports = [5u16.to_be_bytes(), to_port.to_be_bytes(), 32u16.to_be_bytes(), [0; 2]].concat();
    let first = [&ports[..], &[7; 16]].concat();
    (
        v4_packet(1, 2, IP_PROTOCOL_UDP, 0x2000, id, &first),
        v4_packet(1, 2, IP_PROTOCOL_UDP, 3, id, &[8; 8]),
    )
}

#[test]
fn h45_p03_fragments_go_where_the_first_one_went() {
    let mut guests = Filtered::new(server(), &[None, Some(&["dns"])]);
    let (first, second) = fragments(53, 1);
    assert_eq!(guests.send(0, &second), Err(DropReason::FragmentWithoutFirst));
    {
        let _off = Off::here(Check::FragmentsOfAllowed);
        assert_eq!(guests.send(0, &second), Ok(vec![1]), "control");
    }
    assert_eq!(guests.send(0, &first), Ok(vec![1]));
    assert_eq!(guests.send(0, &second), Ok(vec![1]));
    // Of another datagram.
    assert_eq!(
        guests.send(0, &fragments(53, 2).1),
        Err(DropReason::FragmentWithoutFirst)
    );
    // It would write over the ports that were judged.
    for offset in 1..3 {
        let overlapping = v4_packet(1, 2, IP_PROTOCOL_UDP, offset, 1, &[0, 5, 0, 22, 0, 32, 0, 0]);
        assert_eq!(guests.send(0, &overlapping), Err(DropReason::FragmentWithoutFirst));
    }
    // The same datagram's first fragment again, to a port that is not allowed: then nothing of it passes any more.
    assert_eq!(guests.send(0, &fragments(22, 1).0), Err(DropReason::IngressNoRule));
    assert_eq!(guests.send(0, &second), Err(DropReason::FragmentWithoutFirst));
    // Under a policy that does not allow it, a later fragment does not pass either.
    assert_eq!(guests.send(0, &first), Ok(vec![1]));
    guests.set(vec![], &[None, Some(&[])]);
    assert_eq!(guests.send(0, &second), Err(DropReason::FragmentWithoutFirst));
}

/// An error "port unreachable" about `packet` (with its Ethernet header).
fn unreachable(from: u8, to: u8, packet: &[u8]) -> Vec<u8> {
    let quoted = &packet[14..packet.len().min(14 + 60)];
    v4_packet(from, to, 1, 0, 9, &[&[3, 3, 0, 0, 0, 0, 0, 0], quoted].concat())
}

#[test]
fn h50_p03_errors_pass_if_they_are_about_a_packet_that_came_from_there() {
    let mut guests = Filtered::new(server(), &[Some(&["dns"]), Some(&["dns"]), Some(&["dns"])]);
    guests.set(
        [server(), vec![group("out", EgressDefault::Allow, vec![])]].concat(),
        &[Some(&["out"]), Some(&["dns"]), Some(&["out"])],
    );
    let packet = datagram(1, 2, (5, 53));
    let error = unreachable(2, 1, &packet);
    assert_eq!(
        guests.send(1, &error),
        Err(DropReason::CtInvalid),
        "nothing was sent yet"
    );
    assert_eq!(guests.send(0, &packet), Ok(vec![1]));
    assert_eq!(guests.send(1, &error), Ok(vec![0]));
    // A third one heard of the connection, and would end it.
    let forged = unreachable(3, 1, &packet);
    assert_eq!(guests.send(2, &forged), Err(DropReason::CtInvalid));
    {
        let _off = Off::here(Check::ErrorFromPeer);
        assert_eq!(guests.send(2, &forged), Ok(vec![0]), "control");
    }
    // About another connection.
    assert_eq!(
        guests.send(1, &unreachable(2, 1, &datagram(1, 2, (6, 53)))),
        Err(DropReason::CtInvalid)
    );
    // Too short to tell.
    assert_eq!(
        guests.send(1, &unreachable(2, 1, &packet[..14 + 22])),
        Err(DropReason::CtInvalid)
    );
}

#[test]
fn h48_p05_a_flood_of_connections_stays_in_its_ports_share() {
    use outboard_conntrack::{Config, Table};
    let mut guests = Filtered::new(server(), &[None, Some(&["dns"]), None]);
    let config = Config {
        entries: 64,
        ports: 16,
        ..Config::default()
    };
    guests
        .rig
        .switch
        .set_connections(Arc::new(Table::new(&config)), config.entries);
    // Answered ones, which do not give way.
    let mut passed = 0;
    for port in 0..64 {
        if guests.send(0, &datagram(1, 2, (1000 + port, 53))) == Ok(vec![1]) {
            passed += 1;
            guests.send(1, &datagram(2, 1, (53, 1000 + port))).expect("a reply");
        }
    }
    // Three ports share 64, rounded to four shares.
    assert_eq!(passed, 16);
    let next = datagram(1, 2, (2000, 53));
    assert_eq!(guests.send(0, &next), Err(DropReason::ConnectionBudget));
    assert_eq!(
        guests.send(2, &datagram(3, 2, (1, 53))),
        Ok(vec![1]),
        "another port has its own"
    );
    {
        let _off = Off::here(Check::ConnectionBudget);
        assert_eq!(guests.send(0, &next), Ok(vec![1]), "control");
    }
}

#[test]
fn what_is_for_a_group_is_judged_at_both_ends_each_time() {
    let mut guests = Filtered::new(server(), &[None, Some(&["dns"]), Some(&[]), None]);
    let call = |port| udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (5, port), b"x");
    assert_eq!(guests.send(0, &call(53)), Ok(vec![1, 3]));
    assert_eq!(guests.send(0, &call(54)), Ok(vec![3]));
    let from_b = udp((mac(2), BROADCAST), ([10, 0, 0, 2], [255; 4]), (5, 53), b"x");
    assert_eq!(guests.send(1, &from_b), Err(DropReason::EgressNoRule));
    guests.rig.settle();
    let frame = call(54);
    guests.rig.send_plain(0, &frame);
    guests.rig.expect(&[
        sent(1, frame.len()),
        missed(DropReason::IngressNoRule, 1),
        missed(DropReason::IngressNoRule, 1),
        got(1, frame.len()),
    ]);
}

#[test]
fn p03_networks_have_connections_of_their_own() {
    let groups = server();
    let mut guests = Filtered::new(groups.clone(), &[None, Some(&["dns"]), None, Some(&["dns"])]);
    // c and d are as a and b are, in another network.
    for (n, place) in [(2, 0), (3, 1)] {
        guests.ports[n].network = "red".into();
        guests.ports[n].addresses = vec![IpAddr::from([10, 0, 0, place + 1])];
    }
    guests.set(groups, &[None, Some(&["dns"]), None, Some(&["dns"])]);
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 53))), Ok(vec![1]));
    let reply = udp((mac(4), mac(3)), ([10, 0, 0, 2], [10, 0, 0, 1]), (53, 5), b"x");
    assert_eq!(guests.send(3, &reply), Err(DropReason::EgressNoRule));
    let ask = udp((mac(3), mac(4)), ([10, 0, 0, 1], [10, 0, 0, 2]), (5, 53), b"x");
    assert_eq!(guests.send(2, &ask), Ok(vec![3]));
    assert_eq!(guests.send(3, &reply), Ok(vec![2]));
}

#[test]
fn a_port_that_the_policy_does_not_know_gets_nothing_through() {
    let mut guests = Filtered::new(vec![], &[None, None]);
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 6))), Ok(vec![1]), "control");
    let other = Spec::default();
    let policy = guests.policy.follow(&other).expect("it makes sense");
    guests.rig.switch.set_firewall(Arc::new(policy));
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 6))), Err(DropReason::EgressNoRule));
}

#[test]
fn peers_are_groups_of_the_same_network() {
    let from_web = Rule {
        peer: Peer::Group("web".into()),
        ..rule(Direction::Ingress, Protocol::UDP, PortSpec::Any)
    };
    let groups = vec![
        group("web", EgressDefault::Allow, vec![]),
        group("db", EgressDefault::Allow, vec![from_web]),
    ];
    let mut guests = Filtered::new(groups, &[Some(&["web"]), Some(&["db"]), None]);
    assert_eq!(guests.send(0, &datagram(1, 2, (5, 6))), Ok(vec![1]));
    assert_eq!(guests.send(2, &datagram(3, 2, (5, 6))), Err(DropReason::IngressNoRule));
}

#[test]
fn a_connection_that_nobody_uses_ends_with_its_time() {
    let mut guests = Filtered::new(server(), &[None, Some(&["dns"])]);
    let (there, back) = (datagram(1, 2, (5, 53)), datagram(2, 1, (53, 5)));
    let mut at = |seconds: u64, from: usize, frame: &[u8]| {
        let rig = &mut guests.rig;
        rig.guests[from].queue(NetHeader::default(), frame);
        rig.guests[from].tx.publish();
        while rig.switch.breathe_at(seconds * 1_000_000_000, &mut rig.calls) {}
        rig.guests[1 - from].received().len()
    };
    assert_eq!(at(1000, 0, &there), 1);
    assert_eq!(at(1029, 1, &back), 1, "UDP is remembered for 30 seconds");
    assert_eq!(at(1200, 1, &back), 0);
    assert_eq!(at(1201, 0, &there), 1, "and may begin again");
    assert_eq!(at(1202, 1, &back), 1);
}

#[test]
fn h50_p03_a_network_that_is_made_knows_no_connection_of_one_that_is_gone() {
    let (groups, of) = (server(), [None, Some(&["dns"][..])]);
    let in_network = |guests: &mut Filtered, network: &str| {
        guests.ports.iter_mut().for_each(|port| port.network = network.into());
        guests.set(groups.clone(), &of);
    };
    let mut guests = Filtered::new(groups.clone(), &of);
    let (question, answer) = (datagram(1, 2, (5, 53)), datagram(2, 1, (53, 5)));
    assert_eq!(guests.send(1, &answer), Err(DropReason::EgressNoRule), "nobody asked");
    assert_eq!(guests.send(0, &question), Ok(vec![1]));
    assert_eq!(guests.send(1, &answer), Ok(vec![0]));
    // The network is deleted, and others are made, one of them by the same name.
    for network in ["red", "blue"] {
        in_network(&mut guests, network);
        assert_eq!(guests.send(1, &answer), Err(DropReason::EgressNoRule), "{network}");
    }
    assert_eq!(guests.send(0, &question), Ok(vec![1]), "legitimate traffic passes");
    // With numbers that are given anew, the answer passes though nobody asked in that network.
    let mut guests = Filtered::new(groups.clone(), &of);
    assert_eq!(guests.send(0, &question), Ok(vec![1]));
    let _off = Off::here(Check::ZoneOnce);
    in_network(&mut guests, "red");
    assert_eq!(guests.send(1, &answer), Ok(vec![0]), "control");
}
