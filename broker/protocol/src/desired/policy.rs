//! Security groups, as a card is told them: rules, sets of addresses, and where a group's members are.
//!
//! A port names its groups in [`super::Port::groups`]. A rule that names a group as its peer means the addresses of that
//! group's member ports on the port's own network, wherever those ports are placed: the card learns them from
//! [`Members`], since it knows only its own ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use super::DesiredState;
use crate::id::Name;

/// Most rules of one group.
pub const RULES_PER_GROUP_MAX: usize = 16_384;
/// Most groups of one port.
pub const GROUPS_PER_PORT_MAX: usize = 16;
/// Most different groups and address sets that the rules of one group name as peers.
pub const PEERS_PER_GROUP_MAX: usize = 32;
/// The same, added up over the groups of one port.
pub const PEERS_PER_PORT_MAX: usize = 64;
/// Most prefixes of one address set.
pub const ENTRIES_PER_SET_MAX: usize = 16_384;
/// Most addresses of one group's members on one network.
pub const MEMBER_ADDRESSES_MAX: usize = 65_536;
/// First version of the card protocol that knows what is in this module.
pub const GROUPS_CARD_VERSION: u16 = 2;

/// A security group: what a port that has it may receive and send. Groups only add to each other: the rules of all
/// groups of a port are taken together.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Group {
    /// The group's name.
    #[n(0)]
    pub name: Name,
    /// What may be sent as long as the group has no egress rule.
    #[n(1)]
    pub egress: Egress,
    /// Its rules.
    #[n(2)]
    pub rules: Vec<Rule>,
}

/// What a group without any egress rule lets its ports send. With one or more, only those rules count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Egress {
    /// Everything, as a new group of Neutron does.
    #[n(0)]
    #[default]
    Allow,
    /// Nothing but replies.
    #[n(1)]
    Deny,
}

/// One rule of a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Rule {
    /// Whether it is about what the port receives or sends.
    #[n(0)]
    pub direction: Direction,
    /// What it does.
    #[n(1)]
    pub action: RuleAction,
    /// Lower comes first; at one priority reject comes before deny before allow.
    #[n(2)]
    pub priority: u16,
    /// Whether its first packets are logged.
    #[n(3)]
    pub log: bool,
    /// Which IP version it is about.
    #[n(4)]
    pub ethertype: Ethertype,
    /// Which protocol, and what of it.
    #[n(5)]
    pub matched: Matched,
    /// Who is on the other side: the sender of what a port receives, the receiver of what it sends.
    #[n(6)]
    pub peer: Peer,
    /// What `explain` and `trace` call it; without a name its group, direction and number do.
    #[n(7)]
    pub name: Option<Name>,
}

/// Which way a rule looks, from the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Direction {
    /// To the port.
    #[n(0)]
    Ingress,
    /// From the port.
    #[n(1)]
    Egress,
}

/// What a rule does with a new connection; replies and what is related follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum RuleAction {
    /// Lets it pass.
    #[n(0)]
    #[default]
    Allow,
    /// Drops it without a word.
    #[n(1)]
    Deny,
    /// Drops it and tells the sender.
    #[n(2)]
    Reject,
}

/// Which IP versions a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "lowercase")]
#[cbor(index_only)]
pub enum Ethertype {
    /// IPv4.
    #[n(0)]
    Ipv4,
    /// IPv6.
    #[n(1)]
    Ipv6,
    /// Either.
    #[n(2)]
    Both,
}

/// Which packets a rule is about, beside IP version and peer. A number of an IP protocol matches exactly that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Matched {
    /// Every protocol.
    #[n(0)]
    Any,
    /// TCP.
    #[n(1)]
    Tcp {
        /// Destination ports; none for all.
        #[n(0)]
        ports: Option<PortRange>,
    },
    /// UDP.
    #[n(2)]
    Udp {
        /// Destination ports; none for all.
        #[n(0)]
        ports: Option<PortRange>,
    },
    /// ICMP of the packet's IP version: protocol 1 for IPv4, 58 for IPv6.
    #[n(3)]
    Icmp {
        /// ICMP type; none for all.
        #[n(0)]
        icmp_type: Option<u8>,
        /// ICMP code; none for all. Only with a type.
        #[n(1)]
        icmp_code: Option<u8>,
    },
    /// Any other protocol, by its IANA number.
    #[n(4)]
    Number {
        /// As in the IPv4 protocol field, or the IPv6 header before the payload.
        #[n(0)]
        protocol: u8,
    },
}

/// Destination ports from first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct PortRange {
    /// The lowest.
    #[n(0)]
    pub first: u16,
    /// The highest; not below the lowest.
    #[n(1)]
    pub last: u16,
}

/// Who a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Peer {
    /// Everybody.
    #[n(0)]
    Any,
    /// The addresses of a subnet.
    #[n(1)]
    Cidr {
        /// The subnet.
        #[n(0)]
        cidr: Cidr,
    },
    /// The addresses of a group's members on the port's network: see [`Members`].
    #[n(2)]
    Group {
        /// The group.
        #[n(0)]
        name: Name,
    },
    /// What an address set lists.
    #[n(3)]
    AddressSet {
        /// The set.
        #[n(0)]
        name: Name,
    },
}

/// A subnet: an address whose bits beyond the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Cidr {
    /// Its lowest address.
    #[n(0)]
    pub address: IpAddr,
    /// Bits that all its addresses have in common.
    #[n(1)]
    pub prefix_len: u8,
}

/// A named list of subnets, shared by rules.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AddressSet {
    /// The set's name.
    #[n(0)]
    pub name: Name,
    /// Its subnets; single addresses have the full prefix length.
    #[n(1)]
    pub entries: Vec<Cidr>,
}

/// The addresses of a group's member ports on one network, of all cards. A group and network that no record names has no
/// members there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Members {
    /// The group.
    #[n(0)]
    pub group: Name,
    /// The network.
    #[n(1)]
    pub network: Name,
    /// The members' addresses.
    #[n(2)]
    pub addresses: Vec<IpAddr>,
}

impl Group {
    /// The groups and address sets that its rules name, each once.
    pub fn peers(&self) -> BTreeSet<&Peer> {
        self.rules
            .iter()
            .map(|rule| &rule.peer)
            .filter(|peer| peer.is_named())
            .collect()
    }
}

impl Peer {
    /// Whether it is a group or an address set.
    pub fn is_named(&self) -> bool {
        matches!(self, Self::Group { .. } | Self::AddressSet { .. })
    }
}

impl Cidr {
    /// Whether the prefix fits the address and nothing is set beyond it.
    pub fn is_canonical(&self) -> bool {
        let tail_is_zero = |bits: u128, width: u8| match width.checked_sub(self.prefix_len) {
            None => false,
            Some(128) => bits == 0,
            Some(host_len) => bits & ((1_u128 << host_len) - 1) == 0,
        };
        match self.address {
            IpAddr::V4(v4) => tail_is_zero(v4.to_bits().into(), 32),
            IpAddr::V6(v6) => tail_is_zero(v6.to_bits(), 128),
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl DesiredState {
    /// Whether groups, sets and members make sense together and with the ports. The text names the culprit.
    pub(super) fn check_policy(&self) -> Result<(), String> {
        let mut groups = BTreeMap::new();
        for group in &self.groups {
            if groups.insert(&group.name, group.peers().len()).is_some() {
                return Err(format!("group {} twice", group.name));
            }
        }
        let mut sets = BTreeSet::new();
        for set in &self.address_sets {
            if !sets.insert(&set.name) {
                return Err(format!("address set {} twice", set.name));
            }
            check_set(set)?;
        }
        for group in &self.groups {
            check_group(group, &sets)?;
        }
        let mut members = BTreeSet::new();
        for Members {
            group,
            network,
            addresses,
        } in &self.members
        {
            if !members.insert((group, network)) {
                return Err(format!("the members of group {group} on network {network} twice"));
            }
            if addresses.len() > MEMBER_ADDRESSES_MAX {
                return Err(format!("{} addresses of members of group {group}", addresses.len()));
            }
        }
        for port in &self.ports {
            let named = port.groups.as_deref().unwrap_or_default();
            if named.len() > GROUPS_PER_PORT_MAX {
                return Err(format!("port {} with {} groups", port.name, named.len()));
            }
            let (mut seen, mut peers) = (BTreeSet::new(), 0);
            for group in named {
                let Some(count) = groups.get(group) else {
                    return Err(format!(
                        "port {} with group {group}, which it does not describe",
                        port.name
                    ));
                };
                if !seen.insert(group) {
                    return Err(format!("port {} with group {group} twice", port.name));
                }
                peers += count;
            }
            if peers > PEERS_PER_PORT_MAX {
                return Err(format!("port {} with groups that name {peers} peers", port.name));
            }
        }
        Ok(())
    }
}

fn check_set(set: &AddressSet) -> Result<(), String> {
    if set.entries.len() > ENTRIES_PER_SET_MAX {
        return Err(format!("address set {} with {} entries", set.name, set.entries.len()));
    }
    match set.entries.iter().find(|cidr| !cidr.is_canonical()) {
        Some(cidr) => Err(format!("address set {} with {cidr}, which is no subnet", set.name)),
        None => Ok(()),
    }
}

fn check_group(group: &Group, sets: &BTreeSet<&Name>) -> Result<(), String> {
    if group.peers().len() > PEERS_PER_GROUP_MAX {
        return Err(format!(
            "group {} with rules that name {} peers",
            group.name,
            group.peers().len()
        ));
    }
    if group.rules.len() > RULES_PER_GROUP_MAX {
        return Err(format!("group {} with {} rules", group.name, group.rules.len()));
    }
    let mut names = BTreeSet::new();
    for (index, rule) in group.rules.iter().enumerate() {
        let fault = match rule_fault(rule, sets) {
            None if rule.name.as_ref().is_some_and(|name| !names.insert(name)) => {
                Some("the name of another of its rules".to_owned())
            }
            fault => fault,
        };
        if let Some(fault) = fault {
            return Err(format!("rule {} of group {} with {fault}", index + 1, group.name));
        }
    }
    Ok(())
}

fn rule_fault(rule: &Rule, sets: &BTreeSet<&Name>) -> Option<String> {
    match rule.matched {
        Matched::Tcp { ports: Some(range) } | Matched::Udp { ports: Some(range) } if range.first > range.last => {
            return Some(format!("ports {} to {}", range.first, range.last));
        }
        Matched::Icmp {
            icmp_type: None,
            icmp_code: Some(code),
        } => return Some(format!("ICMP code {code} of no type")),
        _ => {}
    }
    match &rule.peer {
        Peer::Cidr { cidr } => {
            let version = match cidr.address {
                IpAddr::V4(_) => Ethertype::Ipv4,
                IpAddr::V6(_) => Ethertype::Ipv6,
            };
            if !cidr.is_canonical() {
                Some(format!("{cidr}, which is no subnet"))
            } else if rule.ethertype != version {
                Some(format!("{cidr} and another IP version"))
            } else {
                None
            }
        }
        Peer::AddressSet { name } if !sets.contains(name) => {
            Some(format!("address set {name}, which it does not describe"))
        }
        Peer::Any | Peer::Group { .. } | Peer::AddressSet { .. } => None,
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
