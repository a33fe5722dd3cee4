use super::*;
use crate::{
    codec::{decode, encode},
    desired::Port,
    id::MacAddr,
    refusal::Code,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn cidr(address: &str, prefix_len: u8) -> Cidr {
    Cidr {
        address: address.parse().unwrap(),
        prefix_len,
    }
}

fn rule() -> Rule {
    Rule {
        direction: Direction::Ingress,
        action: RuleAction::Allow,
        priority: 1000,
        log: false,
        ethertype: Ethertype::Ipv4,
        matched: Matched::Tcp {
            ports: Some(PortRange { first: 80, last: 81 }),
        },
        peer: Peer::Cidr {
            cidr: cidr("10.0.0.0", 8),
        },
        name: Some(name("in")),
    }
}

fn state() -> DesiredState {
    let to_set = Rule {
        ethertype: Ethertype::Both,
        peer: Peer::AddressSet { name: name("set") },
        name: None,
        ..rule()
    };
    DesiredState {
        ports: vec![Port {
            name: name("p"),
            network: name("n"),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            addresses: vec![],
            groups: Some(vec![name("web")]),
            trunk: None,
        }],
        groups: vec![Group {
            name: name("web"),
            egress: Egress::Allow,
            rules: vec![rule(), to_set],
        }],
        address_sets: vec![AddressSet {
            name: name("set"),
            entries: vec![
                cidr("fd00::", 8),
                cidr("0.0.0.0", 0),
                cidr("::", 0),
                cidr("10.0.0.1", 32),
            ],
        }],
        members: vec![Members {
            group: name("db"),
            network: name("n"),
            addresses: vec!["10.0.0.9".parse().unwrap()],
        }],
        ..DesiredState::default()
    }
}

/// Rules that name this many groups, twice each.
fn naming(peers: u8) -> Vec<Rule> {
    let to = |n| Rule {
        ethertype: Ethertype::Both,
        peer: Peer::Group {
            name: name(&format!("peer{n}")),
        },
        name: None,
        ..rule()
    };
    (0..peers).chain(0..peers).map(to).collect()
}

#[test]
fn a_policy_that_contradicts_itself_is_refused_and_named() {
    assert_eq!(state().check(), Ok(()), "the control is good");
    type Spoil = fn(&mut DesiredState);
    let spoilt: [(Spoil, &str); 20] = [
        (
            |s| s.groups[0].rules = naming(33),
            "group web with rules that name 33 peers",
        ),
        (
            |s| {
                let more = |n: u8| Group {
                    name: name(&format!("g{n}")),
                    egress: Egress::Deny,
                    rules: naming(32),
                };
                s.groups.extend([more(1), more(2)]);
                s.ports[0].groups = Some(vec![name("web"), name("g1"), name("g2")]);
            },
            "port p with groups that name 65 peers",
        ),
        (|s| s.groups.push(s.groups[0].clone()), "group web twice"),
        (
            |s| s.groups.clear(),
            "port p with group web, which it does not describe",
        ),
        (
            |s| s.address_sets.push(s.address_sets[0].clone()),
            "address set set twice",
        ),
        (
            |s| s.address_sets.clear(),
            "rule 2 of group web with address set set, which it does not describe",
        ),
        (
            |s| s.address_sets[0].entries[0].prefix_len = 0,
            "address set set with fd00::/0, which is no subnet",
        ),
        (
            |s| s.address_sets[0].entries[3].prefix_len = 33,
            "address set set with 10.0.0.1/33",
        ),
        (
            |s| s.address_sets[0].entries = vec![cidr("::", 0); ENTRIES_PER_SET_MAX + 1],
            "address set set with 16385 entries",
        ),
        (
            |s| s.members.push(s.members[0].clone()),
            "members of group db on network n twice",
        ),
        (
            |s| s.members[0].addresses = vec![[10, 0, 0, 1].into(); MEMBER_ADDRESSES_MAX + 1],
            "65537 addresses of members of group db",
        ),
        (
            |s| s.ports[0].groups = Some(vec![name("web"); 2]),
            "port p with group web twice",
        ),
        (
            |s| s.ports[0].groups = Some(vec![name("web"); GROUPS_PER_PORT_MAX + 1]),
            "port p with 17 groups",
        ),
        (
            |s| s.groups[0].rules = vec![rule(); RULES_PER_GROUP_MAX + 1],
            "group web with 16385 rules",
        ),
        (
            |s| s.groups[0].rules[1].name = Some(name("in")),
            "rule 2 of group web with the name of another",
        ),
        (
            |s| s.groups[0].rules[0].ethertype = Ethertype::Ipv6,
            "rule 1 of group web with 10.0.0.0/8 and another IP version",
        ),
        (
            |s| s.groups[0].rules[0].ethertype = Ethertype::Both,
            "rule 1 of group web with 10.0.0.0/8 and another IP version",
        ),
        (
            |s| {
                s.groups[0].rules[0].peer = Peer::Cidr {
                    cidr: cidr("10.0.0.1", 8),
                }
            },
            "rule 1 of group web with 10.0.0.1/8, which is no subnet",
        ),
        (
            |s| {
                s.groups[0].rules[0].matched = Matched::Udp {
                    ports: Some(PortRange { first: 81, last: 80 }),
                }
            },
            "ports 81 to 80",
        ),
        (
            |s| {
                s.groups[0].rules[0].matched = Matched::Icmp {
                    icmp_type: None,
                    icmp_code: Some(0),
                }
            },
            "ICMP code 0 of no type",
        ),
    ];
    for (spoil, said) in spoilt {
        let mut state = state();
        spoil(&mut state);
        let refusal = state.check().unwrap_err();
        assert!(
            refusal.code == Code::Malformed && refusal.text.contains(said),
            "{said}: {refusal}"
        );
    }
}

#[test]
fn a_full_group_and_a_full_port_are_accepted() {
    let mut full = state();
    full.groups[0].rules = vec![Rule { name: None, ..rule() }; RULES_PER_GROUP_MAX];
    let more = (1..GROUPS_PER_PORT_MAX).map(|n| Group {
        name: name(&format!("g{n}")),
        egress: Egress::Deny,
        rules: vec![],
    });
    full.groups.extend(more);
    full.ports[0].groups = Some(full.groups.iter().map(|g| g.name.clone()).collect());
    assert_eq!(full.check(), Ok(()));
}

/// What version 1 of the card protocol had, as its code would have written it.
#[derive(Encode)]
struct StateOfVersion1 {
    #[n(0)]
    broker_epoch: u64,
    #[n(1)]
    revision: u64,
    #[n(2)]
    ports: Vec<PortOfVersion1>,
    #[n(3)]
    volumes: Vec<u8>,
    #[n(4)]
    grants: Vec<u8>,
}

#[derive(Encode)]
struct PortOfVersion1 {
    #[n(0)]
    name: Name,
    #[n(1)]
    network: Name,
    #[n(2)]
    mac: MacAddr,
    #[n(3)]
    addresses: Vec<IpAddr>,
}

#[test]
fn a_state_of_version_1_is_unfiltered_and_an_unfiltered_state_is_one_of_version_1() {
    let old = encode(&StateOfVersion1 {
        broker_epoch: 0,
        revision: 0,
        ports: vec![PortOfVersion1 {
            name: name("p"),
            network: name("n"),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, 1]),
            addresses: vec![],
        }],
        volumes: vec![],
        grants: vec![],
    });
    let mut unfiltered = DesiredState {
        ports: state().ports,
        ..DesiredState::default()
    };
    unfiltered.ports[0].groups = None;
    assert_eq!(encode(&unfiltered), old);
    assert_eq!(decode(&old, old.len()), Ok(unfiltered));
}

#[test]
fn lists_in_the_middle_may_be_empty() {
    for keep in 0..8_u8 {
        let mut state = state();
        if keep & 1 == 0 {
            state.groups.clear();
        }
        if keep & 2 == 0 {
            state.address_sets.clear();
        }
        if keep & 4 == 0 {
            state.members.clear();
        }
        let bytes = encode(&state);
        assert_eq!(decode(&bytes, bytes.len()), Ok(state));
    }
}
