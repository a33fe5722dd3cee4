//! What rules mean, one by one.

use std::sync::Arc;

use crate::{
    Action, AddressSet, Direction, EgressDefault, Ethertype, Flow, Group, Name, Peer, Policy, Port, PortSpec, Protocol,
    Rule, Spec,
};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn group(name: &str, rules: Vec<Rule>) -> Arc<Group> {
    Arc::new(Group {
        name: name.into(),
        egress: EgressDefault::Allow,
        rules,
    })
}

fn port(name: &str, network: &str, addresses: &[&str], groups: Option<&[&str]>) -> Arc<Port> {
    Arc::new(Port {
        name: name.into(),
        network: network.into(),
        addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
        groups: groups.map(|groups| groups.iter().map(|name| Name::from(*name)).collect()),
    })
}

fn ingress() -> Rule {
    Rule::allow(Direction::Ingress)
}

fn tcp(first: u16, last: u16) -> Rule {
    Rule {
        protocol: Protocol::TCP,
        ports: PortSpec::Range(first, last),
        ..ingress()
    }
}

fn flow(source: &str, destination: &str, protocol: u8, selector: u16) -> Flow {
    let (source, destination) = (source.parse().expect(source), destination.parse().expect(destination));
    Flow::between(source, destination, protocol, selector).expect("one family")
}

fn one_port(rules: Vec<Rule>) -> Policy {
    Policy::compile(&Spec {
        groups: vec![group("web", rules)],
        address_sets: vec![],
        ports: vec![port("p", "blue", &["10.0.0.1"], Some(&["web"]))],
        members: vec![],
    })
    .expect("a policy")
}

/// What is done with it, and by which rule.
fn judged(policy: &Policy, port: &str, direction: Direction, flow: &Flow) -> (Action, String) {
    let port = policy.port(port).expect("the port");
    let judgement = policy.judge(port, direction, flow);
    (judgement.action, policy.reason(&judgement))
}

fn said(policy: &Policy, flow: &Flow) -> (Action, String) {
    judged(policy, "p", Direction::Ingress, flow)
}

fn by(action: Action, name: &str) -> (Action, String) {
    (action, name.into())
}

fn default_deny() -> (Action, String) {
    by(Action::Deny, "default deny")
}

#[test]
fn only_what_a_rule_allows_passes() {
    let named = Rule {
        name: Some("ping".into()),
        protocol: Protocol::Icmp,
        ports: PortSpec::Icmp { kind: 8, code: None },
        ..ingress()
    };
    let policy = one_port(vec![tcp(80, 81), named]);
    let v4 = |protocol, selector| flow("10.9.9.9", "10.0.0.1", protocol, selector);
    assert_eq!(said(&policy, &v4(TCP, 80)), by(Action::Allow, "web/ingress/1"));
    assert_eq!(said(&policy, &v4(TCP, 81)), by(Action::Allow, "web/ingress/1"));
    for denied in [
        v4(TCP, 79),
        v4(TCP, 82),
        v4(UDP, 80),
        v4(1, 0x0000),
        v4(1, 0x0900),
        v4(58, 0x0800),
    ] {
        assert_eq!(said(&policy, &denied), default_deny(), "{denied:?}");
    }
    assert_eq!(said(&policy, &v4(1, 0x08ff)), by(Action::Allow, "ping"));
    let v6 = |protocol, selector| flow("fd00::9", "fd00::1", protocol, selector);
    assert_eq!(said(&policy, &v6(58, 0x0800)), by(Action::Allow, "ping"));
    assert_eq!(said(&policy, &v6(1, 0x0800)), default_deny());
    assert_eq!(said(&policy, &v6(TCP, 80)), by(Action::Allow, "web/ingress/1"));
}

#[test]
fn the_lower_priority_counts_and_at_one_reject_before_deny_before_allow() {
    let with = |action, priority| Rule {
        action,
        priority,
        ..tcp(80, 80)
    };
    let asked = flow("10.9.9.9", "10.0.0.1", TCP, 80);
    let first = |rules| said(&one_port(rules), &asked);
    let (allow, deny, reject) = (Action::Allow, Action::Deny, Action::Reject);
    assert_eq!(
        first(vec![with(allow, 5), with(deny, 5), with(reject, 5)]),
        by(reject, "web/ingress/3")
    );
    assert_eq!(first(vec![with(allow, 5), with(deny, 5)]), by(deny, "web/ingress/2"));
    assert_eq!(
        first(vec![with(reject, 6), with(allow, 5), with(deny, 6)]),
        by(allow, "web/ingress/2")
    );
    assert_eq!(first(vec![with(allow, 5), with(allow, 5)]), by(allow, "web/ingress/1"));
    assert_eq!(
        first(vec![with(allow, 65_535), with(deny, 0)]),
        by(deny, "web/ingress/2")
    );
}

#[test]
fn egress_is_open_until_a_group_has_a_rule_for_it_or_says_otherwise() {
    let out = flow("10.0.0.1", "10.9.9.9", TCP, 443);
    let judged_out = |policy: &Policy| judged(policy, "p", Direction::Egress, &out);
    assert_eq!(
        judged_out(&one_port(vec![tcp(80, 80)])),
        by(Action::Allow, "web/egress/default")
    );
    let dns = Rule {
        protocol: Protocol::UDP,
        ports: PortSpec::Range(53, 53),
        ..Rule::allow(Direction::Egress)
    };
    let policy = one_port(vec![tcp(80, 80), dns]);
    assert_eq!(judged_out(&policy), default_deny());
    let asked = flow("10.0.0.1", "10.9.9.9", UDP, 53);
    assert_eq!(
        judged(&policy, "p", Direction::Egress, &asked),
        by(Action::Allow, "web/egress/1")
    );
    let closed = Arc::new(Group {
        name: "web".into(),
        egress: EgressDefault::Deny,
        rules: vec![],
    });
    let change = crate::Change::PutGroup(closed);
    assert_eq!(judged_out(&policy.update(&[change]).expect("a policy")), default_deny());
}

#[test]
fn what_a_group_without_egress_rules_allows_comes_after_every_other_rule() {
    let deny = Rule {
        action: Action::Deny,
        priority: 65_535,
        peer: Peer::Cidr("10.9.0.0/16".parse().expect("a range")),
        ..Rule::allow(Direction::Egress)
    };
    let policy = Policy::compile(&Spec {
        groups: vec![group("open", vec![]), group("strict", vec![deny])],
        address_sets: vec![],
        ports: vec![port("p", "blue", &[], Some(&["open", "strict"]))],
        members: vec![],
    })
    .expect("a policy");
    let to = |address| judged(&policy, "p", Direction::Egress, &flow("10.0.0.1", address, TCP, 1));
    assert_eq!(to("10.9.0.1"), by(Action::Deny, "strict/egress/1"));
    assert_eq!(to("10.8.0.1"), by(Action::Allow, "open/egress/default"));
}

#[test]
fn a_port_without_groups_is_not_filtered_and_one_with_none_of_them_is_shut() {
    let policy = Policy::compile(&Spec {
        groups: vec![],
        address_sets: vec![],
        ports: vec![port("free", "blue", &[], None), port("shut", "blue", &[], Some(&[]))],
        members: vec![],
    })
    .expect("a policy");
    let asked = flow("10.0.0.1", "10.9.9.9", TCP, 1);
    for direction in [Direction::Ingress, Direction::Egress] {
        assert_eq!(
            judged(&policy, "free", direction, &asked),
            by(Action::Allow, "unfiltered")
        );
        assert_eq!(judged(&policy, "shut", direction, &asked), default_deny());
    }
    let id = |name| policy.port(name).expect("the port");
    assert_eq!(
        (policy.filtered(id("free")), policy.filtered(id("shut"))),
        (false, true)
    );
    assert_eq!(policy.port("nobody"), None);
}

#[test]
fn a_group_as_peer_means_its_ports_in_the_same_network_its_own_included() {
    let from = |peer| Rule { peer, ..ingress() };
    let policy = Policy::compile(&Spec {
        groups: vec![
            group(
                "web",
                vec![from(Peer::Group("web".into())), from(Peer::Group("db".into()))],
            ),
            group("db", vec![]),
        ],
        address_sets: vec![],
        ports: vec![
            port("p", "blue", &["10.0.0.1", "fd00::1"], Some(&["web"])),
            port("q", "blue", &["10.0.0.2"], Some(&["web"])),
            port("db", "blue", &["10.0.0.3"], Some(&["db"])),
            port("elsewhere", "red", &["10.0.0.4"], Some(&["db", "web"])),
            port("free", "blue", &["10.0.0.5"], None),
        ],
        members: vec![],
    })
    .expect("a policy");
    let from = |source| said(&policy, &flow(source, "10.0.0.1", UDP, 9));
    assert_eq!(from("10.0.0.1"), by(Action::Allow, "web/ingress/1"));
    assert_eq!(from("10.0.0.2"), by(Action::Allow, "web/ingress/1"));
    assert_eq!(from("10.0.0.3"), by(Action::Allow, "web/ingress/2"));
    assert_eq!(from("10.0.0.4"), default_deny());
    assert_eq!(from("10.0.0.5"), default_deny());
    assert_eq!(
        said(&policy, &flow("fd00::1", "fd00::2", UDP, 9)),
        by(Action::Allow, "web/ingress/1")
    );
    let elsewhere = |source| {
        judged(
            &policy,
            "elsewhere",
            Direction::Ingress,
            &flow(source, "10.0.0.4", UDP, 9),
        )
    };
    assert_eq!(elsewhere("10.0.0.4"), by(Action::Allow, "web/ingress/1"));
    assert_eq!(elsewhere("10.0.0.3"), default_deny());
}

#[test]
fn an_address_set_is_the_same_in_every_network_and_an_empty_one_matches_nothing() {
    let set = |name: &str, entries: &[&str]| {
        Arc::new(AddressSet {
            name: name.into(),
            entries: entries.iter().map(|e| e.parse().expect("a range")).collect(),
        })
    };
    let from = |name: &str| Rule {
        peer: Peer::AddressSet(name.into()),
        ..ingress()
    };
    let policy = Policy::compile(&Spec {
        groups: vec![group("web", vec![from("none"), from("office")])],
        address_sets: vec![set("office", &["192.0.2.0/24", "2001:db8::/32"]), set("none", &[])],
        ports: vec![
            port("p", "blue", &[], Some(&["web"])),
            port("q", "red", &[], Some(&["web"])),
        ],
        members: vec![],
    })
    .expect("a policy");
    for port in ["p", "q"] {
        let from = |source, destination| judged(&policy, port, Direction::Ingress, &flow(source, destination, TCP, 1));
        assert_eq!(from("192.0.2.7", "10.0.0.1"), by(Action::Allow, "web/ingress/2"));
        assert_eq!(from("2001:db8::7", "fd00::1"), by(Action::Allow, "web/ingress/2"));
        assert_eq!(from("192.0.3.7", "10.0.0.1"), default_deny());
    }
}

#[test]
fn a_rule_is_about_its_family_only() {
    let only = |ethertype, peer| Rule {
        ethertype,
        peer,
        ..ingress()
    };
    let asked = [flow("10.0.0.9", "10.0.0.1", TCP, 1), flow("fd00::9", "fd00::1", TCP, 1)];
    let allowed = |rule: Rule| asked.map(|asked| said(&one_port(vec![rule.clone()]), &asked).0 == Action::Allow);
    let cidr = |text: &str| Peer::Cidr(text.parse().expect("a range"));
    assert_eq!(allowed(only(Ethertype::Ipv4, Peer::Any)), [true, false]);
    assert_eq!(allowed(only(Ethertype::Ipv6, Peer::Any)), [false, true]);
    assert_eq!(allowed(only(Ethertype::Both, Peer::Any)), [true, true]);
    assert_eq!(allowed(only(Ethertype::Both, cidr("0.0.0.0/0"))), [true, false]);
    assert_eq!(allowed(only(Ethertype::Both, cidr("::/0"))), [false, true]);
}
