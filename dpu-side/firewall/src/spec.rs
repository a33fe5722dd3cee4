//! What an operator declares: groups, rules, address sets, and the ports that have them.
//!
//! Objects are behind [`Arc`], so that one that has not changed can be handed over again without a copy.

use std::{fmt, net::IpAddr, sync::Arc};

use crate::Cidr;

/// A name of a port, network, group, address set or rule; 1 to [`NAME_LEN_MAX`](crate::limits::NAME_LEN_MAX) bytes.
pub type Name = Arc<str>;

/// The priority of a rule that names none.
pub const DEFAULT_PRIORITY: u16 = 1000;

/// Everything that the filters of one card depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// The groups, by name unique.
    pub groups: Vec<Arc<Group>>,
    /// The address sets, by name unique.
    pub address_sets: Vec<Arc<AddressSet>>,
    /// The ports, by name unique.
    pub ports: Vec<Arc<Port>>,
    /// Where members of groups are that are not among these ports; by group and network unique.
    pub members: Vec<Arc<GroupMembers>>,
}

/// A port, as far as filtering is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: Name,
    /// Its network: a group that is named as a peer means that group's ports in the same network.
    pub network: Name,
    /// Its addresses, by which it is a member of its groups when rules name them as peers.
    pub addresses: Vec<IpAddr>,
    /// None: the port is not filtered. Else only what a rule of one of the groups allows passes; with no group, nothing.
    /// A group named twice counts once.
    pub groups: Option<Vec<Name>>,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: Name,
    /// What leaves a port if the group has no egress rule.
    pub egress: EgressDefault,
    /// Its rules. Their order matters only to which of several equal ones is named.
    pub rules: Vec<Rule>,
}

/// What a group that has no egress rule says about egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EgressDefault {
    /// All of it is allowed, after all other rules of the port.
    #[default]
    Allow,
    /// Nothing: what no other group allows is denied.
    Deny,
}

/// A rule of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique in the group; without one it is `<group>/<direction>/<n>`, the n-th of the group's rules of that direction.
    pub name: Option<Name>,
    /// Whether it is about what comes to the port or what leaves it.
    pub direction: Direction,
    /// The family of packets. An address range as peer narrows it to its own.
    pub ethertype: Ethertype,
    /// The protocol of the packets.
    pub protocol: Protocol,
    /// Destination ports, or an ICMP type.
    pub ports: PortSpec,
    /// The other end: where an incoming packet is from, where a leaving one goes to.
    pub peer: Peer,
    /// What is done.
    pub action: Action,
    /// The lower, the earlier. At one priority reject goes before deny, and deny before allow.
    pub priority: u16,
    /// Whether connections that it decides are to be logged.
    pub log: bool,
}

impl Rule {
    /// A rule that allows everything in `direction`, to be narrowed.
    pub fn allow(direction: Direction) -> Self {
        Self {
            name: None,
            direction,
            ethertype: Ethertype::Both,
            protocol: Protocol::Any,
            ports: PortSpec::Any,
            peer: Peer::Any,
            action: Action::Allow,
            priority: DEFAULT_PRIORITY,
            log: false,
        }
    }
}

/// Seen from the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// To the port.
    Ingress,
    /// From the port.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// Which packets a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ethertype {
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
    /// Either.
    #[default]
    Both,
}

/// The protocol of a packet: of IPv6, the one behind all extension headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Any.
    #[default]
    Any,
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
    /// This number of IANA's registry, in either family; TCP is 6, UDP 17.
    Number(u8),
}

impl Protocol {
    /// Transmission Control Protocol.
    pub const TCP: Self = Self::Number(6);
    /// User Datagram Protocol.
    pub const UDP: Self = Self::Number(17);
}

/// What follows the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PortSpec {
    /// Whatever it is.
    #[default]
    Any,
    /// Destination ports, first and last, for TCP (6), UDP (17), DCCP (33), SCTP (132) and UDP-Lite (136).
    Range(u16, u16),
    /// An ICMP type, with one code or all of them.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: Option<u8>,
    },
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Peer {
    /// Whoever it is.
    #[default]
    Any,
    /// An address in this range.
    Cidr(Cidr),
    /// An address of a port that has this group, in the network of the port that is judged. A group that no port has,
    /// or that does not exist, is nobody.
    Group(Name),
    /// An address in this set.
    AddressSet(Name),
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Drop, and tell the sender (TCP reset, or ICMP administratively prohibited).
    Reject,
    /// Drop.
    Deny,
    /// Let the connection and its replies pass.
    Allow,
}

/// A named list of address ranges that rules may name as peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSet {
    /// Its name.
    pub name: Name,
    /// The ranges, in any order; they may overlap.
    pub entries: Vec<Cidr>,
}

/// Addresses of ports that have a group, in one network. The ports of the [`Spec`] itself are members without being told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMembers {
    /// The group, which need not be in the [`Spec`].
    pub group: Name,
    /// The network.
    pub network: Name,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}
