//! Rules as records of groups, address sets and ports.

use std::sync::Arc;

use outboard_firewall::{
    Action, AddressSet, Cidr, CidrError, Direction, EgressDefault, Ethertype, Group, Name, Peer, Port, PortSpec,
    Protocol, Rule, Spec,
};

use crate::{
    PORT_COUNT,
    rules::{self, Family, Rules, address, port_name},
};

/// The one network that all ports are in.
pub const NETWORK: &str = "blue";

/// What the classifier is made of.
///
/// # Errors
/// A range of addresses is none.
pub fn spec(rules: &Rules) -> Result<Spec, CidrError> {
    let groups = rules.groups.iter().enumerate().map(|(index, group)| {
        Ok(Arc::new(Group {
            name: group_name(index),
            egress: if group.egress_deny {
                EgressDefault::Deny
            } else {
                EgressDefault::Allow
            },
            rules: group.rules.iter().map(rule).collect::<Result<_, _>>()?,
        }))
    });
    let address_sets = rules.sets.iter().enumerate().map(|(index, entries)| {
        Ok(Arc::new(AddressSet {
            name: set_name(index),
            entries: entries.iter().map(cidr).collect::<Result<_, _>>()?,
        }))
    });
    let ports = (0..PORT_COUNT).map(|port| {
        let groups = rules.ports[port].as_ref();
        Arc::new(Port {
            name: port_name(port).into(),
            network: NETWORK.into(),
            addresses: [Family::V4, Family::V6].map(|family| address(port, family)).into(),
            groups: groups.map(|groups| groups.iter().copied().map(group_name).collect()),
        })
    });
    Ok(Spec {
        groups: groups.collect::<Result<_, _>>()?,
        address_sets: address_sets.collect::<Result<_, _>>()?,
        ports: ports.collect(),
        members: Vec::new(),
    })
}

fn group_name(index: usize) -> Name {
    format!("g{index}").into()
}

fn set_name(index: usize) -> Name {
    format!("s{index}").into()
}

fn cidr(cidr: &rules::Cidr) -> Result<Cidr, CidrError> {
    Cidr::new(cidr.0, cidr.1)
}

fn rule(rule: &rules::Rule) -> Result<Rule, CidrError> {
    let (protocol, ports) = match rule.protocol {
        rules::Protocol::Any => (Protocol::Any, PortSpec::Any),
        rules::Protocol::Tcp(ports) => (Protocol::TCP, range(ports)),
        rules::Protocol::Udp(ports) => (Protocol::UDP, range(ports)),
        rules::Protocol::Icmp(None) => (Protocol::Icmp, PortSpec::Any),
        rules::Protocol::Icmp(Some((kind, code))) => (Protocol::Icmp, PortSpec::Icmp { kind, code }),
        rules::Protocol::Number(number) => (Protocol::Number(number), PortSpec::Any),
    };
    Ok(Rule {
        name: None,
        direction: match rule.direction {
            rules::Direction::Ingress => Direction::Ingress,
            rules::Direction::Egress => Direction::Egress,
        },
        ethertype: match rule.family {
            None => Ethertype::Both,
            Some(Family::V4) => Ethertype::Ipv4,
            Some(Family::V6) => Ethertype::Ipv6,
        },
        protocol,
        ports,
        peer: match rule.peer {
            rules::Peer::Any => Peer::Any,
            rules::Peer::Cidr(range) => Peer::Cidr(cidr(&range)?),
            rules::Peer::Group(group) => Peer::Group(group_name(group)),
            rules::Peer::Set(set) => Peer::AddressSet(set_name(set)),
        },
        action: match rule.action {
            rules::Action::Allow => Action::Allow,
            rules::Action::Deny => Action::Deny,
            rules::Action::Reject => Action::Reject,
        },
        priority: rule.priority,
        log: false,
    })
}

fn range(ports: Option<(u16, u16)>) -> PortSpec {
    ports.map_or(PortSpec::Any, |(first, last)| PortSpec::Range(first, last))
}
