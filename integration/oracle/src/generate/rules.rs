//! Random security groups over few addresses, protocols and ports, so that traffic meets them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use outboard_integration::random::Random;

use super::{chance, pick};
use crate::{
    PORT_COUNT,
    rules::{Action, Cidr, Direction, Family, Group, PRIORITY_DEFAULT, Peer, Protocol, Rule, Rules},
};

/// Destination ports of connections.
pub(super) const SERVICES: [u16; 6] = [0, 80, 81, 443, 5000, 65535];
/// Protocols without ports: IP in IP, ESP, AH's neighbour OSPF, and one for experiments (RFC 3692).
pub(super) const PORTLESS: [u8; 4] = [4, 50, 89, 253];

const GROUPS_MAX: usize = 3;
const RULES_MAX: usize = 6;

pub(super) fn rules(random: &mut Random) -> Rules {
    let group_count = 1 + random.below(GROUPS_MAX);
    let sets: Vec<Vec<Cidr>> = (0..2)
        .map(|_| (0..1 + random.below(3)).map(|_| cidr(random)).collect())
        .collect();
    let groups = (0..group_count).map(|_| group(random, group_count)).collect();
    let ports = std::array::from_fn(|_| match random.below(20) {
        0 | 1 => None,
        2 => Some(Vec::new()),
        _ => {
            let mut members: Vec<usize> = (0..1 + random.below(2)).map(|_| random.below(group_count)).collect();
            members.sort_unstable();
            members.dedup();
            Some(members)
        }
    });
    Rules { groups, sets, ports }
}

/// The same with something changed, as operators do. Ports that are not filtered stay so, and no others become so:
/// what passed unseen before cannot be judged as part of a connection.
pub(super) fn changed(random: &mut Random, rules: &Rules) -> Rules {
    let mut changed = rules.clone();
    match random.below(4) {
        0 => {
            let group = random.below(changed.groups.len());
            changed.groups[group] = self::group(random, rules.groups.len());
        }
        1 => {
            let group = random.below(changed.groups.len());
            let rule = rule(random, rules.groups.len());
            changed.groups[group].rules.push(rule);
        }
        2 => {
            let group = &mut changed.groups[random.below(rules.groups.len())].rules;
            if !group.is_empty() {
                group.remove(random.below(group.len()));
            }
        }
        _ => {
            let group = random.below(changed.groups.len());
            if let Some(Some(groups)) = changed.ports.get_mut(random.below(PORT_COUNT)) {
                *groups = vec![group];
            }
        }
    }
    changed
}

fn group(random: &mut Random, group_count: usize) -> Group {
    let mut rules: Vec<Rule> = (0..random.below(RULES_MAX + 1))
        .map(|_| rule(random, group_count))
        .collect();
    // Something has to pass.
    for direction in [Direction::Ingress, Direction::Egress] {
        if chance(random, 75) {
            rules.push(Rule {
                direction,
                family: None,
                protocol: pick(
                    random,
                    &[Protocol::Any, Protocol::Any, Protocol::Tcp(None), Protocol::Udp(None)],
                ),
                peer: Peer::Any,
                action: Action::Allow,
                priority: PRIORITY_DEFAULT,
            });
        }
    }
    Group {
        rules,
        egress_deny: chance(random, 10),
    }
}

fn rule(random: &mut Random, group_count: usize) -> Rule {
    let peer = match random.below(6) {
        0 | 1 => Peer::Any,
        2 | 3 => Peer::Cidr(cidr(random)),
        4 => Peer::Group(random.below(group_count)),
        _ => Peer::Set(random.below(2)),
    };
    let either = pick(random, &[None, Some(Family::V4), Some(Family::V6)]);
    let family = match peer {
        Peer::Cidr(cidr) => Some(cidr.family()),
        _ => either,
    };
    let protocol = match random.below(8) {
        0 => Protocol::Any,
        1..=3 => Protocol::Tcp(ports(random)),
        4 => Protocol::Udp(ports(random)),
        5 => Protocol::Icmp(None),
        // types mean something in one family only
        6 => match family {
            None => Protocol::Icmp(None),
            Some(Family::V4) => {
                Protocol::Icmp(Some(pick(random, &[(8, None), (8, Some(0)), (13, None), (8, Some(1))])))
            }
            Some(Family::V6) => Protocol::Icmp(Some(pick(random, &[(128, None), (128, Some(0)), (129, None)]))),
        },
        _ => Protocol::Number(pick(random, &[PORTLESS[0], PORTLESS[1], PORTLESS[2], 6, 17])),
    };
    Rule {
        direction: pick(random, &[Direction::Ingress, Direction::Ingress, Direction::Egress]),
        family,
        protocol,
        peer,
        action: pick(
            random,
            &[
                Action::Allow,
                Action::Allow,
                Action::Allow,
                Action::Deny,
                Action::Reject,
            ],
        ),
        priority: pick(random, &[PRIORITY_DEFAULT, PRIORITY_DEFAULT, 0, 999, 1001, 65_535]),
    }
}

fn ports(random: &mut Random) -> Option<(u16, u16)> {
    let one = pick(random, &SERVICES);
    let other = pick(random, &SERVICES);
    pick(
        random,
        &[
            None,
            Some((one, one)),
            Some((one, one)),
            Some((one.min(other), one.max(other))),
            Some((one.saturating_add(1), u16::MAX)),
        ],
    )
}

fn cidr(random: &mut Random) -> Cidr {
    let v4 = |last: u8, len: u8| Cidr(IpAddr::from(Ipv4Addr::new(10, 0, 0, last)), len);
    let v6 = |last: u16, len: u8| Cidr(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, last).into(), len);
    let everyone4 = Cidr(Ipv4Addr::UNSPECIFIED.into(), 0);
    let everyone6 = Cidr(Ipv6Addr::UNSPECIFIED.into(), 0);
    let stranger = Cidr(Ipv4Addr::new(198, 51, 100, 0).into(), 24);
    pick(
        random,
        &[
            v4(1, 32),
            v4(2, 32),
            v4(3, 32),
            v4(2, 31),
            v4(0, 24),
            v4(0, 30),
            everyone4,
            stranger,
            v6(1, 128),
            v6(2, 128),
            v6(2, 127),
            v6(0, 64),
            everyone6,
        ],
    )
}
