//! Rules evaluated one by one as they are written: slow and plain, to compare the classifier with.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use outboard_firewall::{
    Action, Addresses, Cidr, Direction, EgressDefault, Ethertype, Flow, Group, Peer, Port, PortSpec, Protocol, Rule,
    Spec,
};

/// What is done with a flow, and the reason as [`outboard_firewall::Policy::reason`] gives it.
pub fn judge(spec: &Spec, port: &Port, direction: Direction, flow: &Flow) -> (Action, String) {
    let Some(groups) = &port.groups else {
        return (Action::Allow, "unfiltered".into());
    };
    let mut matching = Vec::new();
    for (place, name) in groups.iter().enumerate() {
        let group = group(spec, name);
        let of_direction = group.rules.iter().filter(|rule| rule.direction == direction);
        for (number, rule) in of_direction.clone().enumerate() {
            if matches(spec, port, rule, flow) {
                let name = match &rule.name {
                    Some(name) => name.to_string(),
                    None => format!("{}/{direction}/{}", group.name, number + 1),
                };
                matching.push((u32::from(rule.priority), rule.action, place, number, name));
            }
        }
        if direction == Direction::Egress && group.egress == EgressDefault::Allow && of_direction.count() == 0 {
            matching.push((
                65_536,
                Action::Allow,
                place,
                0,
                format!("{}/egress/default", group.name),
            ));
        }
    }
    match matching.into_iter().min() {
        Some((_, action, _, _, name)) => (action, name),
        None => (Action::Deny, "default deny".into()),
    }
}

fn group<'a>(spec: &'a Spec, name: &str) -> &'a Arc<Group> {
    spec.groups
        .iter()
        .find(|group| *group.name == *name)
        .expect("the group is declared")
}

/// The addresses that a peer by name stands for in a network.
fn members(spec: &Spec, network: &str, peer: &Peer) -> Vec<Cidr> {
    match peer {
        Peer::Any | Peer::Cidr(_) => vec![],
        Peer::AddressSet(name) => {
            let set = spec.address_sets.iter().find(|set| set.name == *name);
            set.expect("the set is declared").entries.clone()
        }
        Peer::Group(name) => {
            let ports = spec.ports.iter().filter(|port| *port.network == *network);
            let ports = ports.filter(|port| port.groups.iter().flatten().any(|group| group == name));
            let elsewhere = spec.members.iter();
            let elsewhere = elsewhere.filter(|told| *told.network == *network && told.group == *name);
            let here = ports.flat_map(|port| &port.addresses);
            here.chain(elsewhere.flat_map(|told| &told.addresses))
                .map(|address| Cidr::from(*address))
                .collect()
        }
    }
}

fn within(cidr: &Cidr, address: IpAddr) -> bool {
    Cidr::new(address, cidr.prefix_len())
        .is_ok_and(|same| same == *cidr && address.is_ipv4() == cidr.network().is_ipv4())
}

fn matches(spec: &Spec, port: &Port, rule: &Rule, flow: &Flow) -> bool {
    let (source, destination): (IpAddr, IpAddr) = match flow.addresses {
        Addresses::V4 { source, destination } => (IpAddr::V4(source.into()), IpAddr::V4(destination.into())),
        Addresses::V6 { source, destination } => (IpAddr::V6(source.into()), IpAddr::V6(destination.into())),
    };
    let peer = if rule.direction == Direction::Ingress {
        source
    } else {
        destination
    };
    let icmp = if peer.is_ipv4() { 1 } else { 58 };
    let family = match rule.ethertype {
        Ethertype::Ipv4 => peer.is_ipv4(),
        Ethertype::Ipv6 => peer.is_ipv6(),
        Ethertype::Both => true,
    };
    let protocol = match rule.protocol {
        Protocol::Any => true,
        Protocol::Icmp => flow.protocol == icmp,
        Protocol::Number(number) => flow.protocol == number,
    };
    let ports = match rule.ports {
        PortSpec::Any => true,
        PortSpec::Range(first, last) => (first..=last).contains(&flow.selector),
        PortSpec::Icmp { kind, code } => {
            let [flow_kind, flow_code] = flow.selector.to_be_bytes();
            flow.protocol == icmp && kind == flow_kind && code.is_none_or(|code| code == flow_code)
        }
    };
    let from = match &rule.peer {
        Peer::Any => true,
        Peer::Cidr(cidr) => within(cidr, peer),
        by_name => members(spec, &port.network, by_name)
            .iter()
            .any(|cidr| within(cidr, peer)),
    };
    family && protocol && ports && from
}

/// A group's rules, with the addresses that each one's peer stands for.
type Resolved = (Group, Vec<BTreeSet<String>>);

/// Everything that judgements about a port follow from: while it is the same, so is the port's epoch.
pub fn basis(spec: &Spec, port: &Port) -> (Option<Vec<Resolved>>, Arc<str>) {
    let groups = port.groups.as_ref().map(|groups| {
        let of = |name: &Arc<str>| {
            let group = Group::clone(group(spec, name));
            let peers = group.rules.iter();
            let peers = peers.map(|rule| {
                members(spec, &port.network, &rule.peer)
                    .iter()
                    .map(Cidr::to_string)
                    .collect()
            });
            let peers = peers.collect();
            (group, peers)
        };
        groups.iter().map(of).collect()
    });
    (groups, port.network.clone())
}
