use std::{net::IpAddr, time::Duration};

use outboard_conntrack::{ACK, Budget, Packet, Ports, Segment, Tuple};
use outboard_firewall::{Action, Direction, Flow};
use outboard_protocol::{
    desired::{AddressSet, Cidr, Egress, Ethertype, Group, Matched, Peer, PortRange, Rule, RuleAction},
    id::MacAddr,
};

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn tracking() -> Tracking {
    Tracking {
        connections: 1 << 10,
        ..Tracking::default()
    }
}

fn port(number: u8, network: &str, groups: Option<&[&str]>) -> Port {
    Port {
        name: name(&format!("vm{number}")),
        network: name(network),
        mac: MacAddr([0x52, 0x54, 0, 0, 0, number]),
        addresses: vec![[10, 0, 0, number].into()],
        groups: groups.map(|groups| groups.iter().map(|g| name(g)).collect()),
        trunk: None,
    }
}

fn rule(matched: Matched, peer: Peer) -> Rule {
    Rule {
        direction: desired::Direction::Ingress,
        action: RuleAction::Allow,
        priority: 1000,
        log: false,
        ethertype: Ethertype::Both,
        matched,
        peer,
        name: None,
    }
}

fn group(text: &str, rules: Vec<Rule>) -> Group {
    Group {
        name: name(text),
        egress: Egress::Allow,
        rules,
    }
}

fn tcp(port: u16) -> Matched {
    Matched::Tcp {
        ports: Some(PortRange {
            first: port,
            last: port,
        }),
    }
}

/// What the policy does with TCP to a port of `vm<number>`.
fn judged(policy: &Policy, number: u8, source: impl Into<IpAddr>, to: u16) -> Action {
    asked(policy, number, Direction::Ingress, source, 6, to)
}

fn asked(policy: &Policy, number: u8, way: Direction, peer: impl Into<IpAddr>, protocol: u8, to: u16) -> Action {
    let id = policy.port(&format!("vm{number}")).expect("it is known");
    let own = IpAddr::from([10, 0, 0, number]);
    let (source, destination) = match way {
        Direction::Ingress => (peer.into(), own),
        Direction::Egress => (own, peer.into()),
    };
    let flow = Flow::between(source, destination, protocol, to).expect("one family");
    policy.judge(id, way, &flow).action
}

#[test]
fn what_is_desired_is_what_is_judged() {
    let subnet = Cidr {
        address: [192, 0, 2, 0].into(),
        prefix_len: 24,
    };
    let rules = vec![
        Rule {
            ethertype: Ethertype::Ipv4,
            ..rule(tcp(80), Peer::Cidr { cidr: subnet })
        },
        rule(tcp(22), Peer::AddressSet { name: name("set") }),
        rule(Matched::Udp { ports: None }, Peer::Any),
        rule(
            Matched::Icmp {
                icmp_type: Some(8),
                icmp_code: Some(0),
            },
            Peer::Any,
        ),
        Rule {
            action: RuleAction::Reject,
            priority: 1,
            ..rule(Matched::Number { protocol: 47 }, Peer::Any)
        },
        Rule {
            direction: desired::Direction::Egress,
            action: RuleAction::Deny,
            ..rule(Matched::Any, Peer::Any)
        },
    ];
    let state = DesiredState {
        ports: vec![
            port(1, "blue", Some(&["web"])),
            port(2, "blue", Some(&[])),
            port(3, "blue", None),
        ],
        groups: vec![group("web", rules)],
        address_sets: vec![AddressSet {
            name: name("set"),
            entries: vec![Cidr {
                address: [198, 51, 100, 7].into(),
                prefix_len: 32,
            }],
        }],
        ..DesiredState::default()
    };
    assert_eq!(state.check(), Ok(()));
    let policy = Filters::new(tracking()).follow(&state);
    let (near, far) = ([192, 0, 2, 9], [198, 51, 100, 7]);
    assert_eq!(judged(&policy, 1, near, 80), Action::Allow);
    assert_eq!(judged(&policy, 1, far, 80), Action::Deny);
    assert_eq!(judged(&policy, 1, far, 22), Action::Allow);
    assert_eq!(judged(&policy, 1, near, 22), Action::Deny);
    let incoming = |protocol, to| asked(&policy, 1, Direction::Ingress, near, protocol, to);
    assert_eq!(
        (incoming(17, 5), incoming(1, 0x800), incoming(1, 0)),
        (Action::Allow, Action::Allow, Action::Deny)
    );
    assert_eq!(incoming(47, 0), Action::Reject);
    assert_eq!(asked(&policy, 1, Direction::Egress, near, 6, 80), Action::Deny);
    let unfiltered = policy.port("vm3").expect("it is known");
    assert!(!policy.filtered(unfiltered) && judged(&policy, 3, far, 1) == Action::Allow);
    assert_eq!(judged(&policy, 2, near, 80), Action::Deny, "groups, but none");
}

#[test]
fn members_on_other_cards_count_on_their_network_and_no_other() {
    let db = || group("db", vec![rule(tcp(5432), Peer::Group { name: name("web") })]);
    let mut state = DesiredState {
        ports: vec![port(1, "blue", Some(&["db"])), port(2, "red", Some(&["db"]))],
        groups: vec![db()],
        ..DesiredState::default()
    };
    let member = [10, 0, 0, 9];
    let mut filters = Filters::new(tracking());
    let nobody = filters.follow(&state);
    assert_eq!(judged(&nobody, 1, member, 5432), Action::Deny, "nobody has the group");
    let hosts = (0..200_u8).map(|n| IpAddr::from([10, 0, 1, n]));
    state.members = vec![Members {
        group: name("web"),
        network: name("blue"),
        addresses: hosts.chain([member.into()]).collect(),
    }];
    let policy = filters.follow(&state);
    assert_eq!(judged(&policy, 1, member, 5432), Action::Allow);
    assert_eq!(judged(&policy, 1, [10, 0, 1, 0], 5432), Action::Allow);
    assert_eq!(
        judged(&policy, 2, member, 5432),
        Action::Deny,
        "the same address on another network"
    );
    let epoch = |policy: &Policy, port: &str| policy.epoch(policy.port(port).expect("known"));
    assert_ne!(epoch(&policy, "vm1"), epoch(&nobody, "vm1"));
    assert_eq!(
        epoch(&policy, "vm2"),
        epoch(&nobody, "vm2"),
        "what did not change is not judged again"
    );
    state.members.clear();
    assert_eq!(judged(&filters.follow(&state), 1, member, 5432), Action::Deny);
}

#[test]
fn a_policy_that_cannot_be_compiled_silences_ports_with_groups_and_leaves_the_others() {
    let good = DesiredState {
        ports: vec![port(1, "blue", Some(&["web"])), port(2, "blue", None)],
        groups: vec![group("web", vec![rule(tcp(80), Peer::Any)])],
        ..DesiredState::default()
    };
    let mut filters = Filters::new(tracking());
    let policy = filters.follow(&good);
    assert_eq!(judged(&policy, 1, [10, 0, 0, 9], 80), Action::Allow);
    // More groups than the firewall takes.
    let mut bad = good.clone();
    let more = (0..outboard_firewall::limits::GROUPS_MAX).map(|n| group(&format!("g{n}"), vec![]));
    bad.groups.extend(more);
    let policy = filters.follow(&bad);
    assert_eq!(
        policy.port("vm1"),
        None,
        "what the policy does not know gets nothing through"
    );
    assert!(policy.version() > 0);
    assert_eq!(judged(&policy, 2, [10, 0, 0, 9], 80), Action::Allow);
    assert_eq!(
        judged(&filters.follow(&good), 1, [10, 0, 0, 9], 80),
        Action::Allow,
        "and it recovers"
    );
}

#[test]
fn connections_are_followed_as_the_operator_says() {
    let state = |groups| DesiredState {
        ports: vec![port(1, "blue", groups)],
        ..DesiredState::default()
    };
    // An acknowledgement of a connection that nobody saw begin, and a datagram.
    let segment = Segment {
        flags: ACK,
        sequence: 1000,
        acknowledgement: 2000,
        window: 500,
        data_len: 0,
        options: &[],
    };
    let tuple = |protocol| Tuple {
        protocol,
        source_port: 1,
        ..Tuple::default()
    };
    let table_of = |tracking: Tracking| {
        let mut filters = Filters::new(tracking);
        assert!(filters.connections(&state(None)).is_none(), "no port is filtered");
        let (table, capacity) = filters.connections(&state(Some(&[]))).expect("one is");
        assert!(filters.connections(&state(Some(&[]))).is_none(), "there is one table");
        assert_eq!(capacity, 1 << 10);
        table.set_budget(0, Budget::of(10));
        table
    };
    let opens = |table: &Table, protocol, packet| {
        let ports = Ports { from: 0, to: 0 };
        let opened = table.open(&table.key(&tuple(protocol)), ports, &packet, [0; 3], SECOND_NS);
        opened.map_err(drop).is_ok()
    };
    let is_there = |table: &Table, now| table.lookup(&table.key(&tuple(17)), now).is_some();
    let exact = table_of(tracking());
    assert!(!opens(&exact, 6, Packet::Tcp(segment)), "it takes a handshake");
    assert!(opens(&exact, 17, Packet::Other) && is_there(&exact, 20 * SECOND_NS));
    let lax = table_of(Tracking {
        tcp: Laxness {
            pick_up: true,
            ..Laxness::default()
        },
        timeouts: Timeouts {
            udp: Duration::from_secs(5),
            ..Timeouts::default()
        },
        ..tracking()
    });
    assert!(opens(&lax, 6, Packet::Tcp(segment)));
    assert!(opens(&lax, 17, Packet::Other) && is_there(&lax, 5 * SECOND_NS));
    assert!(!is_there(&lax, 20 * SECOND_NS), "datagrams are forgotten sooner");
}
