//! Why a specification cannot be compiled. The text names the object and the remedy.

use thiserror::Error;

use crate::{Name, limits};

/// Why a specification or a change was refused. Nothing was changed then.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Two objects of one kind and name.
    #[error("there are two {kind}s named '{name}': rename one")]
    Twice {
        /// What they are.
        kind: &'static str,
        /// Their name.
        name: Name,
    },
    /// Two records of a group's members in one network.
    #[error("the members of group '{group}' in network '{network}' are told twice: put the addresses into one record")]
    MembersTwice {
        /// The group.
        group: Name,
        /// The network.
        network: Name,
    },
    /// A name that is empty or too long.
    #[error(
        "a {kind}'s name '{name}' is empty or longer than {} bytes: shorten it",
        limits::NAME_LEN_MAX
    )]
    BadName {
        /// What has the name.
        kind: &'static str,
        /// The name.
        name: Name,
    },
    /// A port has a group that does not exist.
    #[error("port '{port}' has group '{group}', which does not exist: declare the group or take it from the port")]
    NoSuchGroup {
        /// The port.
        port: Name,
        /// The group.
        group: Name,
    },
    /// A rule names an address set that does not exist.
    #[error("{rule} names the address set '{set}', which does not exist: declare it or change the rule")]
    NoSuchAddressSet {
        /// The rule.
        rule: RuleName,
        /// The set.
        set: Name,
    },
    /// More of something than there may be.
    #[error("{of} {count} {what}, and at most {max} are possible: {remedy}")]
    TooMany {
        /// Whose limit: "group 'web' has".
        of: String,
        /// How many there are.
        count: usize,
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: usize,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A rule that contradicts itself.
    #[error("{rule} {why}")]
    BadRule {
        /// The rule.
        rule: RuleName,
        /// What is wrong with it and what to write instead.
        why: RuleFault,
    },
}

/// A rule, for people.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("rule '{0}'")]
pub struct RuleName(pub String);

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleFault {
    /// The peer is of the other family.
    #[error("is for one address family, but its peer {peer} is of the other: leave the ethertype out")]
    Family {
        /// The peer.
        peer: crate::Cidr,
    },
    /// Ports of a protocol that has none.
    #[error(
        "gives ports, but only TCP, UDP, SCTP, DCCP and UDP-Lite have them: name one of these or leave the ports out"
    )]
    PortsWithoutProtocol,
    /// A range that ends before it begins.
    #[error("gives the ports {first}-{last}, the last before the first: swap them")]
    PortsReversed {
        /// The first.
        first: u16,
        /// The last.
        last: u16,
    },
    /// An ICMP type of something else.
    #[error("gives an ICMP type, but its protocol is not ICMP of its address family: set the protocol to icmp")]
    TypeWithoutIcmp,
}
