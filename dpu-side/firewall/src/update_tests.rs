//! What is refused, in which words, and what an update leaves alone.

use std::{net::IpAddr, sync::Arc};

use crate::{
    AddressSet, Change, Cidr, Direction, EgressDefault, Ethertype, Flow, Group, GroupMembers, Name, Peer, Policy,
    PolicyError, Port, PortSpec, Protocol, Rule, Spec, limits,
};

fn ingress() -> Rule {
    Rule::allow(Direction::Ingress)
}

fn from(peer: Peer) -> Rule {
    Rule { peer, ..ingress() }
}

fn group(name: &str, rules: Vec<Rule>) -> Arc<Group> {
    Arc::new(Group {
        name: name.into(),
        egress: EgressDefault::Allow,
        rules,
    })
}

fn port(name: &str, address: [u8; 4], groups: &[&str]) -> Arc<Port> {
    Arc::new(Port {
        name: name.into(),
        network: "blue".into(),
        addresses: vec![address.into()],
        groups: Some(groups.iter().map(|name| Name::from(*name)).collect()),
    })
}

fn set(name: &str, entries: &[&str]) -> Arc<AddressSet> {
    Arc::new(AddressSet {
        name: name.into(),
        entries: entries.iter().map(|entry| entry.parse().expect("a range")).collect(),
    })
}

fn members(group: &str, network: &str, addresses: &[[u8; 4]]) -> Arc<GroupMembers> {
    Arc::new(GroupMembers {
        group: group.into(),
        network: network.into(),
        addresses: addresses.iter().map(|address| IpAddr::from(*address)).collect(),
    })
}

/// `p` has `web`, which lets `db` and the office in; `q` has `db`, `r` has `other`.
fn spec() -> Spec {
    Spec {
        groups: vec![
            group(
                "web",
                vec![from(Peer::Group("db".into())), from(Peer::AddressSet("office".into()))],
            ),
            group("db", vec![ingress()]),
            group("other", vec![]),
        ],
        address_sets: vec![set("office", &["192.0.2.0/24"]), set("unused", &[])],
        ports: vec![
            port("p", [10, 0, 0, 1], &["web"]),
            port("q", [10, 0, 0, 2], &["db"]),
            port("r", [10, 0, 0, 3], &["other"]),
        ],
        members: vec![members("db", "blue", &[[10, 0, 1, 1]])],
    }
}

fn compiled() -> Policy {
    Policy::compile(&spec()).expect("a policy")
}

/// The ports whose epoch is another one after the changes.
fn risen(policy: &Policy, changes: &[Change]) -> Vec<&'static str> {
    let next = policy.update(changes).expect("a policy");
    let epochs = |policy: &Policy, name| policy.port(name).map(|port| policy.epoch(port));
    ["p", "q", "r"]
        .into_iter()
        .filter(|name| epochs(&next, name) != epochs(policy, name))
        .collect()
}

fn put_group(name: &str, rules: Vec<Rule>) -> Change {
    Change::PutGroup(group(name, rules))
}

#[test]
fn an_epoch_rises_for_the_ports_that_a_change_is_about_and_for_no_others() {
    let policy = compiled();
    let tcp = Rule {
        protocol: Protocol::TCP,
        ..ingress()
    };
    assert_eq!(risen(&policy, &[]), [""; 0]);
    assert_eq!(risen(&policy, &[put_group("other", vec![tcp.clone()])]), ["r"]);
    assert_eq!(risen(&policy, &[put_group("db", vec![tcp])]), ["q"]);
    let joins = port("r", [10, 0, 0, 3], &["other", "db"]);
    assert_eq!(risen(&policy, &[Change::PutPort(joins)]), ["p", "r"]);
    assert_eq!(risen(&policy, &[Change::RemovePort("q".into())]), ["p", "q"]);
    // Its own judgements do not depend on its address, those of who lets its group in do.
    assert_eq!(
        risen(&policy, &[Change::PutPort(port("q", [10, 0, 0, 9], &["db"]))]),
        ["p"]
    );
    assert_eq!(risen(&policy, &[Change::PutAddressSet(set("office", &[]))]), ["p"]);
    assert_eq!(
        risen(&policy, &[Change::PutAddressSet(set("unused", &["::/0"]))]),
        [""; 0]
    );
    assert_eq!(risen(&policy, &[Change::PutMembers(members("db", "blue", &[]))]), ["p"]);
    assert_eq!(
        risen(&policy, &[Change::PutMembers(members("db", "red", &[[1, 2, 3, 4]]))]),
        [""; 0]
    );
    let forgotten = Change::RemoveMembers {
        group: "db".into(),
        network: "blue".into(),
    };
    assert_eq!(risen(&policy, &[forgotten]), ["p"]);
}

#[test]
fn what_means_the_same_in_other_words_raises_no_epoch() {
    let policy = compiled();
    let halves = set("office", &["192.0.2.128/25", "192.0.2.0/25", "192.0.2.9"]);
    assert_eq!(risen(&policy, &[Change::PutAddressSet(halves)]), [""; 0]);
    let named = Rule {
        name: Some("all".into()),
        ..ingress()
    };
    let renamed = policy.update(&[put_group("db", vec![named])]).expect("a policy");
    let q = policy.port("q").expect("the port");
    assert_eq!(renamed.epoch(q), policy.epoch(q));
    // Judgements give the new name all the same.
    let judgement = renamed.judge(q, Direction::Ingress, &Flow::v4(1, 2, 6, 80));
    assert_eq!(renamed.reason(&judgement), "all");
    // A member that is one already, by another record.
    let again = members("db", "blue", &[[10, 0, 1, 1], [10, 0, 0, 2]]);
    assert_eq!(risen(&policy, &[Change::PutMembers(again)]), [""; 0]);
}

#[test]
fn members_elsewhere_are_members_though_their_group_is_not_known_here() {
    let policy = compiled();
    let let_in = put_group("other", vec![from(Peer::Group("far".into()))]);
    let alone = policy.update(&[let_in]).expect("a policy");
    let told = alone
        .update(&[Change::PutMembers(members("far", "blue", &[[10, 0, 9, 9]]))])
        .expect("a policy");
    let r = policy.port("r").expect("the port");
    let asked = Flow::v4(0x0a00_0909, 2, 6, 80);
    let said = |policy: &Policy| policy.reason(&policy.judge(r, Direction::Ingress, &asked));
    assert_eq!(
        (said(&alone), said(&told)),
        ("default deny".into(), "other/ingress/1".into())
    );
}

#[test]
fn changes_take_effect_together_and_the_last_one_of_an_object_counts() {
    let policy = compiled();
    let swap = [
        Change::RemoveGroup("db".into()),
        put_group("web", vec![]),
        Change::PutPort(port("q", [10, 0, 0, 2], &["web"])),
        Change::RemovePort("r".into()),
        Change::PutPort(port("r", [10, 0, 0, 3], &["web"])),
    ];
    let next = policy.update(&swap).expect("a policy");
    let groups = |name| {
        next.explain(next.port(name).expect("the port"))
            .expect("the port")
            .groups
    };
    assert_eq!([groups("q"), groups("r")], [[Name::from("web")], [Name::from("web")]]);
    // What is gone is gone already.
    assert!(
        next.update(&[Change::RemoveGroup("db".into()), Change::RemovePort("x".into())])
            .is_ok()
    );
    // The former policy is as it was.
    let q = policy.port("q").expect("the port");
    assert_eq!(policy.explain(q).expect("the port").groups, [Name::from("db")]);
}

fn refused(spoil: impl FnOnce(&mut Spec)) -> String {
    let mut spec = spec();
    spoil(&mut spec);
    Policy::compile(&spec).expect_err("it is refused").to_string()
}

#[test]
fn what_is_refused_is_named_with_its_remedy() {
    let rules = |rule: Rule| move |spec: &mut Spec| spec.groups[2] = group("other", vec![ingress(), rule]);
    let cidr: Cidr = "10.0.0.0/8".parse().expect("a range");
    let family = Rule {
        ethertype: Ethertype::Ipv6,
        ..from(Peer::Cidr(cidr))
    };
    let ports = |protocol, ports| Rule {
        protocol,
        ports,
        ..ingress()
    };
    let ping = PortSpec::Icmp { kind: 8, code: None };
    for (text, told) in [
        (
            refused(rules(family)),
            "'other/ingress/2' is for one address family, but its peer 10.0.0.0/8",
        ),
        (
            refused(rules(ports(Protocol::Any, PortSpec::Range(1, 2)))),
            "'other/ingress/2' gives ports, but only TCP",
        ),
        (
            refused(rules(ports(Protocol::Icmp, PortSpec::Range(1, 2)))),
            "leave the ports out",
        ),
        (
            refused(rules(ports(Protocol::TCP, PortSpec::Range(2, 1)))),
            "gives the ports 2-1, the last before the first",
        ),
        (refused(rules(ports(Protocol::UDP, ping))), "set the protocol to icmp"),
        (
            refused(rules(from(Peer::AddressSet("x".into())))),
            "names the address set 'x', which does not exist",
        ),
        (
            refused(|spec| spec.ports[0] = port("p", [0; 4], &["x"])),
            "port 'p' has group 'x', which does not exist",
        ),
        (
            refused(|spec| spec.ports[0] = port("q", [0; 4], &[])),
            "two ports named 'q'",
        ),
        (
            refused(|spec| spec.members.push(members("db", "blue", &[]))),
            "the members of group 'db' in network 'blue' are told twice",
        ),
        (
            refused(|spec| spec.groups.push(group("", vec![]))),
            "a group's name '' is empty",
        ),
    ] {
        assert!(text.contains(told), "{text}");
    }
}

#[test]
fn every_limit_is_held() {
    let many = |count: usize| -> Vec<Name> { (0..count).map(|n| format!("g{n}").into()).collect() };
    for (text, told) in [
        (
            refused(|spec| spec.groups[2] = group("other", vec![ingress(); limits::RULES_PER_GROUP_MAX + 1])),
            "group 'other' has 16385 rules, and at most 16384",
        ),
        (
            refused(|spec| {
                let full = vec![ingress(); limits::RULES_PER_GROUP_MAX];
                spec.groups.extend(many(9).iter().map(|name| group(name, full.clone())));
            }),
            "rules in all groups, and at most 131072",
        ),
        (
            refused(|spec| {
                let peers = many(limits::PEERS_PER_GROUP_MAX + 1);
                let rules = peers.into_iter().map(|name| from(Peer::Group(name))).collect();
                spec.groups[2] = group("other", rules);
            }),
            "the rules of group 'other' name 33 groups and address sets",
        ),
        (
            refused(|spec| {
                let names = ["x", "y", "z"];
                for name in names {
                    let peers = many(limits::PEERS_PER_GROUP_MAX);
                    let rules = peers.into_iter().map(|name| from(Peer::Group(name))).collect();
                    spec.groups.push(group(name, rules));
                }
                spec.ports[0] = port("p", [0; 4], &names);
            }),
            "the rules of port 'p' name 96 groups and address sets, and at most 64",
        ),
        (
            refused(|spec| {
                let names = many(limits::GROUPS_PER_PORT_MAX + 1);
                spec.groups.extend(names.iter().map(|name| group(name, vec![])));
                let names: Vec<&str> = names.iter().map(|name| &**name).collect();
                spec.ports[0] = port("p", [0; 4], &names);
            }),
            "port 'p' has 33 groups, and at most 32",
        ),
        (
            refused(|spec| {
                let entries = vec![IpAddr::from([1, 2, 3, 4]).into(); limits::ADDRESS_SET_ENTRIES_MAX + 1];
                let name = "office".into();
                spec.address_sets[0] = Arc::new(AddressSet { name, entries });
            }),
            "address set 'office' has 65537 entries",
        ),
        (
            refused(|spec| {
                spec.members = vec![members("db", "blue", &vec![[1; 4]; limits::MEMBER_ADDRESSES_MAX + 1])];
            }),
            "group 'db' has in network 'blue' 65537 members' addresses",
        ),
    ] {
        assert!(text.contains(told), "{text}");
    }
}

#[test]
fn what_is_still_named_cannot_be_removed() {
    let refused = |change| compiled().update(&[change]).expect_err("it is refused");
    let group = refused(Change::RemoveGroup("db".into()));
    assert_eq!(
        group,
        PolicyError::NoSuchGroup {
            port: "q".into(),
            group: "db".into()
        }
    );
    let set = refused(Change::RemoveAddressSet("office".into())).to_string();
    assert!(
        set.contains("rule 'web/ingress/2' names the address set 'office'"),
        "{set}"
    );
    assert!(compiled().update(&[Change::RemoveAddressSet("unused".into())]).is_ok());
}

#[test]
fn a_port_is_explained_in_the_order_in_which_its_rules_count() {
    let deny = Rule {
        name: Some("no-smtp".into()),
        protocol: Protocol::TCP,
        ports: PortSpec::Range(25, 25),
        action: crate::Action::Reject,
        priority: 10,
        log: true,
        ..ingress()
    };
    let ping = Rule {
        protocol: Protocol::Icmp,
        ports: PortSpec::Icmp { kind: 8, code: Some(0) },
        ethertype: Ethertype::Ipv6,
        ..from(Peer::Cidr("fd00::/8".parse().expect("a range")))
    };
    let change = [
        put_group("other", vec![ping, deny]),
        Change::PutPort(port("r", [10, 0, 0, 3], &["other", "web"])),
    ];
    let policy = compiled().update(&change).expect("a policy");
    let explained = policy.explain(policy.port("r").expect("the port")).expect("the port");
    let lines: Vec<_> = explained
        .ingress
        .iter()
        .map(|r| (r.name.as_str(), r.priority, r.text.as_str()))
        .collect();
    assert_eq!(
        lines,
        [
            ("no-smtp", Some(10), "ingress reject tcp 25 from any"),
            (
                "other/ingress/1",
                Some(1000),
                "ingress allow ipv6 icmp type 8/0 from fd00::/8"
            ),
            ("web/ingress/1", Some(1000), "ingress allow any from group db"),
            ("web/ingress/2", Some(1000), "ingress allow any from address set office"),
        ]
    );
    let egress: Vec<_> = explained
        .egress
        .iter()
        .map(|rule| (rule.name.as_str(), rule.priority))
        .collect();
    assert_eq!(egress, [("other/egress/default", None), ("web/egress/default", None)]);
    assert_eq!((explained.filtered, explained.epoch), (true, policy.version()));
    // Each is found by its number as well.
    for rule in explained.ingress.iter().chain(&explained.egress) {
        assert_eq!(policy.rule(rule.id).as_ref(), Some(rule));
        assert_eq!(crate::RuleId::from_bits(rule.id.to_bits()), rule.id);
    }
}
