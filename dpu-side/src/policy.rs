//! What the broker desires of ports, as the switch and its firewall want it.
//!
//! The firewall is compiled here, on the thread that decides; a worker only takes over what is finished.

use std::{collections::BTreeMap, sync::Arc};

use outboard_conntrack::{Config, Laxness, Table, Timeouts};
use outboard_firewall as firewall;
use outboard_firewall::{Policy, PolicyError, Spec};
use outboard_protocol::{
    desired::{self, DesiredState, Members, Port},
    id::Name,
};
use outboard_vswitch::{PortPolicy, TrunkPolicy};

/// How connections of ports with groups are followed.
#[derive(Debug, Clone, Default)]
pub struct Tracking {
    /// How many they may have together, at a time.
    pub connections: u32,
    /// How exact the table of them is about TCP.
    pub tcp: Laxness,
    /// How long they live without a packet.
    pub timeouts: Timeouts,
}

/// The firewall of this card's ports, compiled.
pub struct Filters {
    compiled: Arc<Policy>,
    /// How connections are followed, and how many at a time.
    tracking: Tracking,
    /// The table of them was made.
    follows: bool,
    /// What it was compiled from, by name: what has not changed is handed over as it is.
    groups: BTreeMap<Name, (desired::Group, Arc<firewall::Group>)>,
    sets: BTreeMap<Name, (desired::AddressSet, Arc<firewall::AddressSet>)>,
}

impl Filters {
    /// No firewall yet; once there is one, it follows connections so.
    pub fn new(tracking: Tracking) -> Self {
        Self {
            compiled: Arc::default(),
            tracking,
            follows: false,
            groups: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }

    /// Compiles what a desired state says of groups. If that cannot be, no port with groups gets anything through, and the
    /// log tells why.
    pub fn follow(&mut self, state: &DesiredState) -> Arc<Policy> {
        let spec = self.spec(state);
        self.compiled = match self.compiled.follow(&spec) {
            Ok(policy) => Arc::new(policy),
            Err(error) => {
                tracing::error!(
                    "the security groups that the broker sent cannot be put in force: {error}; ports that have groups are \
                     silent until it sends others; fix: correct those groups"
                );
                closed(&self.compiled, state)
            }
        };
        self.compiled.clone()
    }

    /// The table of connections and how many it holds, once: when the first port has groups. It is made here because that
    /// takes its time.
    pub fn connections(&mut self, state: &DesiredState) -> Option<(Arc<Table>, u32)> {
        if self.follows || state.ports.iter().all(|port| port.groups.is_none()) {
            return None;
        }
        self.follows = true;
        let table = Table::new(&Config {
            entries: self.tracking.connections,
            ports: u32::try_from(firewall::limits::PORTS_MAX).unwrap_or(u32::MAX),
            timeouts: self.tracking.timeouts.clone(),
            tcp: self.tracking.tcp,
        });
        Some((Arc::new(table), self.tracking.connections))
    }

    fn spec(&mut self, state: &DesiredState) -> Spec {
        let mut former = std::mem::take(&mut self.groups);
        for group in &state.groups {
            let kept = former.remove(&group.name).filter(|(source, _)| source == group);
            let kept = kept.unwrap_or_else(|| (group.clone(), Arc::new(converted(group))));
            self.groups.insert(group.name.clone(), kept);
        }
        let mut former = std::mem::take(&mut self.sets);
        for set in &state.address_sets {
            let kept = former.remove(&set.name).filter(|(source, _)| source == set);
            let kept = kept.unwrap_or_else(|| (set.clone(), Arc::new(converted_set(set))));
            self.sets.insert(set.name.clone(), kept);
        }
        Spec {
            groups: self.groups.values().map(|(_, group)| group.clone()).collect(),
            address_sets: self.sets.values().map(|(_, set)| set.clone()).collect(),
            ports: state.ports.iter().map(|port| Arc::new(converted_port(port))).collect(),
            members: state.members.iter().map(|m| Arc::new(converted_members(m))).collect(),
        }
    }
}

/// A policy that knows no port with groups, so that nothing of theirs passes.
fn closed(former: &Policy, state: &DesiredState) -> Arc<Policy> {
    let open = state.ports.iter().filter(|port| port.groups.is_none());
    let spec = Spec {
        ports: open.map(|port| Arc::new(converted_port(port))).collect(),
        ..Spec::default()
    };
    let silent = |error: PolicyError| {
        tracing::error!("the ports without groups cannot be put in force either: {error}; all ports are silent");
        // Nothing is left that could be refused.
        former.follow(&Spec::default()).unwrap_or_else(|_| former.clone())
    };
    Arc::new(former.follow(&spec).unwrap_or_else(silent))
}

/// A port as the switch wants it.
pub fn port_policy(port: &Port) -> PortPolicy {
    PortPolicy {
        name: port.name.to_string(),
        network: port.network.to_string(),
        mac: port.mac.0,
        addresses: port.addresses.clone(),
        trunk: port.trunk.as_ref().map(|trunk| TrunkPolicy {
            parent: trunk.parent.to_string(),
            vlan: trunk.vlan,
        }),
    }
}

fn text(name: &Name) -> firewall::Name {
    name.as_str().into()
}

fn converted_port(port: &Port) -> firewall::Port {
    firewall::Port {
        name: text(&port.name),
        network: text(&port.network),
        addresses: port.addresses.clone(),
        groups: port.groups.as_ref().map(|groups| groups.iter().map(text).collect()),
    }
}

fn converted_members(members: &Members) -> firewall::GroupMembers {
    firewall::GroupMembers {
        group: text(&members.group),
        network: text(&members.network),
        addresses: members.addresses.clone(),
    }
}

fn converted(group: &desired::Group) -> firewall::Group {
    firewall::Group {
        name: text(&group.name),
        egress: match group.egress {
            desired::Egress::Allow => firewall::EgressDefault::Allow,
            desired::Egress::Deny => firewall::EgressDefault::Deny,
        },
        rules: group
            .rules
            .iter()
            .map(|rule| converted_rule(&group.name, rule))
            .collect(),
    }
}

fn converted_rule(group: &Name, rule: &desired::Rule) -> firewall::Rule {
    let range = |ports: Option<desired::PortRange>| {
        ports.map_or(firewall::PortSpec::Any, |range| {
            firewall::PortSpec::Range(range.first, range.last)
        })
    };
    let (protocol, ports) = match rule.matched {
        desired::Matched::Any => (firewall::Protocol::Any, firewall::PortSpec::Any),
        desired::Matched::Tcp { ports } => (firewall::Protocol::TCP, range(ports)),
        desired::Matched::Udp { ports } => (firewall::Protocol::UDP, range(ports)),
        desired::Matched::Icmp { icmp_type, icmp_code } => (
            firewall::Protocol::Icmp,
            icmp_type.map_or(firewall::PortSpec::Any, |kind| firewall::PortSpec::Icmp {
                kind,
                code: icmp_code,
            }),
        ),
        desired::Matched::Number { protocol } => (firewall::Protocol::Number(protocol), firewall::PortSpec::Any),
    };
    firewall::Rule {
        // As the broker calls it: what traces and logs say can be looked up there.
        name: rule.name.as_ref().map(|name| format!("{group}/{name}").as_str().into()),
        direction: match rule.direction {
            desired::Direction::Ingress => firewall::Direction::Ingress,
            desired::Direction::Egress => firewall::Direction::Egress,
        },
        ethertype: match rule.ethertype {
            desired::Ethertype::Ipv4 => firewall::Ethertype::Ipv4,
            desired::Ethertype::Ipv6 => firewall::Ethertype::Ipv6,
            desired::Ethertype::Both => firewall::Ethertype::Both,
        },
        protocol,
        ports,
        peer: match &rule.peer {
            desired::Peer::Any => firewall::Peer::Any,
            desired::Peer::Cidr { cidr } => match range_of(cidr) {
                Some(cidr) => firewall::Peer::Cidr(cidr),
                // A desired state with such a subnet is refused before it comes here; this name refuses it once more.
                None => firewall::Peer::AddressSet("/".into()),
            },
            desired::Peer::Group { name } => firewall::Peer::Group(text(name)),
            desired::Peer::AddressSet { name } => firewall::Peer::AddressSet(text(name)),
        },
        action: match rule.action {
            desired::RuleAction::Allow => firewall::Action::Allow,
            desired::RuleAction::Deny => firewall::Action::Deny,
            desired::RuleAction::Reject => firewall::Action::Reject,
        },
        priority: rule.priority,
        log: rule.log,
    }
}

fn converted_set(set: &desired::AddressSet) -> firewall::AddressSet {
    firewall::AddressSet {
        name: text(&set.name),
        entries: set.entries.iter().filter_map(range_of).collect(),
    }
}

fn range_of(cidr: &desired::Cidr) -> Option<firewall::Cidr> {
    firewall::Cidr::new(cidr.address, cidr.prefix_len).ok()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
