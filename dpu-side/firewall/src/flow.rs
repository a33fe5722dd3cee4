//! What is judged, and the judgement.

use std::net::IpAddr;

use crate::Action;

/// A port, within a [`Policy`](crate::Policy). It stays the same in later policies made by updates, for as long as the
/// port is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub(crate) u32);

impl PortId {
    /// As an index, below the number of ports that there ever were at a time.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A rule, within the [`Policy`](crate::Policy) that named it. [`Policy::rule`](crate::Policy::rule) tells its name; a later policy does
/// as well, for as long as the epoch of the port that was judged is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    pub(crate) group: u32,
    /// The rule's place in its group's list; one past the last for what a group without egress rules allows.
    pub(crate) place: u32,
}

impl RuleId {
    /// As a number that [`RuleId::from_bits`] takes, to be kept where there is room for a word.
    pub fn to_bits(self) -> u64 {
        u64::from(self.group) << 32 | u64::from(self.place)
    }

    /// The rule of that number.
    pub fn from_bits(bits: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart")]
        let (group, place) = ((bits >> 32) as u32, bits as u32);
        Self { group, place }
    }
}

/// The source and destination address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// Of IPv4, in host order.
    V4 {
        /// The source.
        source: u32,
        /// The destination.
        destination: u32,
    },
    /// Of IPv6, in host order.
    V6 {
        /// The source.
        source: u128,
        /// The destination.
        destination: u128,
    },
}

/// A connection's first packet, as far as rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// From where to where.
    pub addresses: Addresses,
    /// The protocol number: of IPv6, the one behind all extension headers.
    pub protocol: u8,
    /// The destination port; of ICMP the type in the upper byte and the code in the lower one; else 0.
    pub selector: u16,
}

impl Flow {
    /// A flow of IPv4.
    pub fn v4(source: u32, destination: u32, protocol: u8, selector: u16) -> Self {
        Self {
            addresses: Addresses::V4 { source, destination },
            protocol,
            selector,
        }
    }

    /// A flow of IPv6.
    pub fn v6(source: u128, destination: u128, protocol: u8, selector: u16) -> Self {
        Self {
            addresses: Addresses::V6 { source, destination },
            protocol,
            selector,
        }
    }

    /// A flow between two addresses of one family; none if they are not.
    pub fn between(source: IpAddr, destination: IpAddr, protocol: u8, selector: u16) -> Option<Self> {
        match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => Some(Self::v4(s.to_bits(), d.to_bits(), protocol, selector)),
            (IpAddr::V6(s), IpAddr::V6(d)) => Some(Self::v6(s.to_bits(), d.to_bits(), protocol, selector)),
            _ => None,
        }
    }
}

/// What is done with a connection, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// What is done.
    pub action: Action,
    /// The rule that says so. None: the port is not filtered (allow), or no rule matched (deny).
    pub rule: Option<RuleId>,
    /// Whether the rule asks for it to be logged.
    pub log: bool,
}

impl Judgement {
    /// What is said where no rule matches.
    pub const DEFAULT: Self = Self {
        action: Action::Deny,
        rule: None,
        log: false,
    };
    /// What is said of a port that is not filtered.
    pub const UNFILTERED: Self = Self {
        action: Action::Allow,
        rule: None,
        log: false,
    };
}
