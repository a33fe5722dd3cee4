//! Linux says what its documentation says: without this, the comparison would be worth nothing.

use outboard_oracle::{
    Case, Side, Step, Verdict,
    linux::Linux,
    namespace,
    packet::{Body, Packet, Tcp, flag},
    rules::{Action, Cidr, Direction, Family, Group, PRIORITY_DEFAULT, Peer, Protocol, Rule, Rules, address},
};

use Verdict::{Drop, Pass, Reject};

pub fn rule(direction: Direction, protocol: Protocol, action: Action) -> Rule {
    Rule {
        direction,
        family: None,
        protocol,
        peer: Peer::Any,
        action,
        priority: PRIORITY_DEFAULT,
    }
}

/// Port b takes what these rules say; a and c let out everything and take nothing.
fn rules_of_b(rules: &[Rule]) -> Rules {
    let of_b = Group {
        rules: rules.to_vec(),
        egress_deny: false,
    };
    Rules {
        groups: vec![Group::default(), of_b],
        sets: vec![],
        ports: [Some(vec![0]), Some(vec![1]), Some(vec![0])],
    }
}

pub fn packet(from: usize, to: usize, body: Body) -> Packet {
    Packet {
        from,
        to,
        family: Family::V4,
        body,
        extension: false,
        fragments: 1,
    }
}

pub fn tcp(flags: u8, seq: u32, ack: u32, len: u16) -> Tcp {
    Tcp {
        source_port: 40_000,
        destination_port: 80,
        flags,
        seq,
        ack,
        window: 10_000,
        window_scale: None,
        sack_permitted: false,
        sack: None,
        len,
    }
}

fn answer(flags: u8, seq: u32, ack: u32, len: u16) -> Tcp {
    Tcp {
        source_port: 80,
        destination_port: 40_000,
        ..tcp(flags, seq, ack, len)
    }
}

fn udp(from: usize, to: usize, source_port: u16, destination_port: u16) -> Packet {
    let body = Body::Udp {
        source_port,
        destination_port,
        len: 400,
    };
    packet(from, to, body)
}

fn check(linux: &mut dyn Side, rules: &Rules, sent: &[(Packet, Verdict)]) {
    for family in [Family::V4, Family::V6] {
        let in_family = |packet: &Packet| {
            let mut packet = Packet {
                family,
                ..packet.clone()
            };
            if let Body::Error { about, kind, code, .. } = &mut packet.body {
                about.family = family;
                (*kind, *code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
            }
            packet
        };
        let case = Case {
            rules: rules.clone(),
            steps: sent.iter().map(|(packet, _)| Step::Send(in_family(packet))).collect(),
        };
        let told = case.run(linux).expect("Linux can be asked");
        let told: Vec<_> = told.into_iter().map(|(_, verdict, _)| verdict).collect();
        let want: Vec<_> = sent.iter().map(|(_, verdict)| *verdict).collect();
        assert_eq!(told, want, "{family:?}\n{case}");
    }
}

const IN: Direction = Direction::Ingress;
const WEB: Protocol = Protocol::Tcp(Some((80, 81)));

#[test]
fn linux_is_what_we_take_it_for() {
    if !namespace::enter("linux::linux_is_what_we_take_it_for") {
        return;
    }
    let linux = &mut Linux::new().expect("interfaces can be made");
    rules_and_priorities(linux);
    connections(linux);
    windows(linux);
    related(linux);
    changes(linux);
}

fn rules_and_priorities(linux: &mut Linux) {
    let other = |port| {
        packet(
            0,
            1,
            Body::Tcp(Tcp {
                destination_port: port,
                ..tcp(flag::SYN, 1, 0, 0)
            }),
        )
    };
    let allow = rules_of_b(&[rule(IN, WEB, Action::Allow)]);
    check(
        linux,
        &allow,
        &[
            (other(79), Drop),
            (other(80), Pass),
            (other(81), Pass),
            (other(82), Drop),
        ],
    );
    // nobody lets it in, and what lets it in is not for its direction
    check(linux, &allow, &[(udp(0, 1, 80, 80), Drop), (udp(1, 0, 80, 80), Drop)]);
    // at one priority: reject, deny, allow; else the lower number
    let all = |action| rule(IN, Protocol::Any, action);
    let first = |rule| Rule { priority: 1, ..rule };
    check(
        linux,
        &rules_of_b(&[all(Action::Allow), all(Action::Deny)]),
        &[(other(80), Drop)],
    );
    let reject = rules_of_b(&[all(Action::Allow), all(Action::Deny), all(Action::Reject)]);
    check(linux, &reject, &[(other(80), Reject), (udp(0, 1, 5, 5), Reject)]);
    check(
        linux,
        &rules_of_b(&[first(all(Action::Allow)), all(Action::Reject)]),
        &[(other(80), Pass)],
    );
    // by peer
    for (peer, from_a, from_c) in [
        (Peer::Cidr(Cidr(address(0, Family::V4), 32)), Pass, Drop),
        (Peer::Group(0), Pass, Pass),
        (Peer::Group(1), Drop, Drop),
        (Peer::Set(0), Drop, Pass),
        (Peer::Set(1), Drop, Drop),
    ] {
        let allow = Rule {
            peer,
            ..all(Action::Allow)
        };
        let mut rules = rules_of_b(&[allow]);
        rules.sets = vec![vec![Cidr(address(2, Family::V4), 32)], vec![]];
        let case = Case {
            rules,
            steps: [0, 2].map(|from| Step::Send(udp(from, 1, 9, 9))).into(),
        };
        let told: Vec<_> = case
            .run(linux)
            .expect("asked")
            .into_iter()
            .map(|(_, told, _)| told)
            .collect();
        assert_eq!(told, [from_a, from_c], "{peer:?}");
    }
    // ports without groups
    let mut rules = rules_of_b(&[]);
    rules.ports = [None, Some(vec![1]), None];
    let forged = || Body::Tcp(tcp(flag::ACK, 5, 5, 5));
    check(
        linux,
        &rules,
        &[
            (packet(0, 2, forged()), Pass),
            (packet(0, 1, forged()), Drop),
            (packet(1, 0, forged()), Drop),
            (udp(1, 0, 6, 6), Pass),
            (udp(0, 1, 6, 6), Pass),
            (udp(0, 1, 7, 7), Drop),
        ],
    );
}

fn connections(linux: &mut Linux) {
    let web = rules_of_b(&[
        rule(IN, WEB, Action::Allow),
        rule(IN, Protocol::Udp(None), Action::Allow),
    ]);
    let a = |tcp| packet(0, 1, Body::Tcp(tcp));
    let b = |tcp| packet(1, 0, Body::Tcp(tcp));
    let close = &[
        (a(tcp(flag::ACK, 101, 1, 0)), Drop),
        (b(answer(flag::SYN | flag::ACK, 500, 101, 0)), Drop),
        (a(tcp(flag::SYN, 100, 0, 0)), Pass),
        (b(answer(flag::SYN | flag::ACK, 500, 101, 0)), Pass),
        (a(tcp(flag::ACK, 101, 501, 0)), Pass),
        (a(tcp(flag::ACK | flag::PSH, 101, 501, 600)), Pass),
        (b(answer(flag::ACK | flag::FIN, 501, 701, 0)), Pass),
        (a(tcp(flag::ACK | flag::FIN, 701, 502, 0)), Pass),
        (b(answer(flag::ACK, 502, 702, 0)), Pass),
    ];
    check(linux, &web, close);
    check(
        linux,
        &web,
        &[
            (udp(1, 0, 53, 99), Drop),
            (udp(0, 1, 99, 53), Pass),
            (udp(1, 0, 53, 99), Pass),
        ],
    );
    let in_pieces = |packet: Packet| Packet { fragments: 3, ..packet };
    let after_options = |packet: Packet| Packet {
        extension: true,
        ..packet
    };
    check(
        linux,
        &web,
        &[
            (in_pieces(udp(1, 0, 53, 99)), Drop),
            (in_pieces(udp(0, 1, 99, 53)), Pass),
            (after_options(in_pieces(udp(1, 0, 53, 99))), Pass),
            (after_options(udp(0, 1, 99, 53)), Pass),
            (after_options(udp(1, 0, 54, 99)), Drop),
        ],
    );
}

fn windows(linux: &mut Linux) {
    let web = rules_of_b(&[rule(IN, WEB, Action::Allow)]);
    let a = |tcp| packet(0, 1, Body::Tcp(tcp));
    let b = |tcp| packet(1, 0, Body::Tcp(tcp));
    let sent = &[
        (a(tcp(flag::SYN, 100, 0, 0)), Pass),
        (b(answer(flag::SYN | flag::ACK, 500, 101, 0)), Pass),
        (a(tcp(flag::ACK, 101, 501, 0)), Pass),
        (a(tcp(flag::ACK, 1_000_000, 501, 10)), Drop),
        (a(tcp(flag::RST, 1_000_000, 0, 0)), Drop),
        (b(answer(flag::RST, 501, 0, 0)), Pass),
    ];
    check(linux, &web, sent);
}

fn related(linux: &mut Linux) {
    let rules = rules_of_b(&[rule(IN, Protocol::Udp(None), Action::Allow)]);
    let error = |from, to, about: Packet| {
        let body = Body::Error {
            kind: 3,
            code: 3,
            about: Box::new(about),
            quoted_len: 8,
        };
        packet(from, to, body)
    };
    check(
        linux,
        &rules,
        &[
            (error(1, 0, udp(0, 1, 7, 8)), Drop),
            (udp(0, 1, 7, 8), Pass),
            (error(1, 0, udp(0, 1, 7, 8)), Pass),
            // by a router between them; and about what nobody sent
            (error(2, 0, udp(0, 1, 7, 8)), Pass),
            (error(1, 0, udp(0, 1, 7, 9)), Drop),
        ],
    );
}

fn changes(linux: &mut Linux) {
    let open = rules_of_b(&[rule(IN, Protocol::Any, Action::Allow)]);
    for (protocol, later) in [(Protocol::Udp(Some((8, 8))), Pass), (Protocol::Udp(Some((7, 7))), Drop)] {
        let case = Case {
            rules: open.clone(),
            steps: vec![
                Step::Send(udp(0, 1, 7, 8)),
                Step::Change(rules_of_b(&[rule(IN, protocol, Action::Allow)])),
                Step::Send(udp(1, 0, 8, 7)),
                Step::Send(udp(0, 1, 7, 8)),
            ],
        };
        let told: Vec<_> = case
            .run(linux)
            .expect("asked")
            .into_iter()
            .map(|(_, told, _)| told)
            .collect();
        assert_eq!(told, [Pass, later, later], "{case}");
    }
    // of an echo too, whose type stands where others have a port
    let echo = |from, kind| {
        let body = Body::Icmp {
            kind,
            code: 0,
            id: 1,
            len: 8,
        };
        packet(from, 1 - from, body)
    };
    for (kind, later) in [(8, Pass), (13, Drop)] {
        let only = rule(IN, Protocol::Icmp(Some((kind, None))), Action::Allow);
        let only = Rule {
            family: Some(Family::V4),
            ..only
        };
        let case = Case {
            rules: open.clone(),
            steps: vec![
                Step::Send(echo(0, 8)),
                Step::Change(rules_of_b(&[only])),
                Step::Send(echo(1, 0)),
                Step::Send(echo(0, 8)),
            ],
        };
        let told: Vec<_> = case
            .run(linux)
            .expect("asked")
            .into_iter()
            .map(|(_, told, _)| told)
            .collect();
        assert_eq!(told, [Pass, later, later], "{case}");
    }
}

#[test]
fn random_cases_reach_all_verdicts() {
    if !namespace::enter("linux::random_cases_reach_all_verdicts") {
        return;
    }
    let linux = &mut Linux::new().expect("interfaces can be made");
    let mut counts = [0usize; 3];
    for seed in 0..40 {
        for (_, verdict, _) in outboard_oracle::generate::case(seed).run(linux).expect("asked") {
            counts[verdict as usize] += 1;
        }
    }
    let all: usize = counts.iter().sum();
    assert!(counts[0] * 4 > all, "a quarter passes, at least: {counts:?}");
    assert!(counts[1] * 6 > all && counts[2] >= 5, "{counts:?}");
}
