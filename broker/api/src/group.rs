//! Security groups: what a port that has them may receive and send.

use std::{fmt, net::IpAddr, str::FromStr};

use outboard_protocol::{
    desired::{self, Direction, Egress, Ethertype, Matched, Peer, PortRange, RuleAction},
    id::Name,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{address_set::Prefix, schema::text_schema};

/// Priority of a rule that names none.
pub const PRIORITY_DEFAULT: u16 = 1000;

/// What an operator declares. `PUT /v1/groups/{name}` takes it; its name must be the one in the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupSpec {
    /// The group's name.
    #[schema(value_type = String, example = "web")]
    pub name: Name,
    /// What may be sent as long as the group has no egress rule: `allow` (if left out) or `deny`.
    #[serde(default)]
    #[schema(value_type = String, example = "allow")]
    pub egress: Egress,
    /// Its rules.
    #[serde(default, rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleSpec>,
}

/// One rule of a group. The other side is at most one of `from` or `to`, `group` and `address_set`; with none it is everybody.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// `ingress`, what a port receives, or `egress`, what it sends.
    #[schema(value_type = String, example = "ingress")]
    pub direction: Direction,
    /// `any` (if left out), `tcp`, `udp`, `icmp` (ICMPv6 with IPv6), or the number of an IP protocol.
    #[serde(default, skip_serializing_if = "Protocol::is_any")]
    pub protocol: Protocol,
    /// Destination ports, one or a range; only with `tcp` and `udp`. If left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// ICMP type, or type and code; only with `icmp`. If left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// Ingress only: the senders' subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Prefix>,
    /// Egress only: the receivers' subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Prefix>,
    /// The other side is a port that has this group, on the same network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "db")]
    pub group: Option<Name>,
    /// The other side's address is in this address set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "partners")]
    pub address_set: Option<Name>,
    /// `ipv4`, `ipv6` or `both`. If left out: that of `from` or `to`, and else both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "ipv4")]
    pub ethertype: Option<Ethertype>,
    /// `allow` (if left out), `deny`, or `reject`, which tells the sender.
    #[serde(default, skip_serializing_if = "is_allow")]
    #[schema(value_type = String, example = "allow")]
    pub action: RuleAction,
    /// Lower comes first; at one priority reject comes before deny before allow. If left out: 1000.
    #[serde(default = "default_priority", skip_serializing_if = "is_default_priority")]
    #[schema(example = 1000)]
    pub priority: u16,
    /// Whether the connections that it decides are logged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log: bool,
    /// What `explain` and `trace` call it. If left out: its direction and its number among the rules of that direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "http")]
    pub name: Option<Name>,
}

fn default_priority() -> u16 {
    PRIORITY_DEFAULT
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_default_priority(priority: &u16) -> bool {
    *priority == PRIORITY_DEFAULT
}

fn is_allow(action: &RuleAction) -> bool {
    *action == RuleAction::Allow
}

/// A group, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// As declared.
    pub spec: GroupSpec,
    /// What each of its rules is called, in order: `web/http`, or `web/ingress/1` for one without a name.
    pub rule_ids: Vec<String>,
    /// Names of the ports that have it.
    #[schema(value_type = Vec<String>)]
    pub ports: Vec<Name>,
    /// Names of the groups whose rules name it.
    #[schema(value_type = Vec<String>)]
    pub named_by: Vec<Name>,
}

/// Which protocol a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Protocol {
    /// All.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, or ICMPv6.
    Icmp,
    /// Another one, by its IANA number.
    Number(u8),
}

/// Destination ports, first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ports(pub PortRange);

/// ICMP type, and code if only one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Icmp {
    /// The type.
    pub icmp_type: u8,
    /// The code.
    pub icmp_code: Option<u8>,
}

/// A text that is no protocol, ports or ICMP type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleValueError {
    /// No protocol.
    #[error("'{0}' is no protocol; write any, tcp, udp, icmp or a number from 0 to 255, such as \"47\"")]
    Protocol(String),
    /// No ports.
    #[error("'{0}' is no port and no range of ports; write \"80\" or \"80-81\", the lower first")]
    Ports(String),
    /// No ICMP type.
    #[error("'{0}' is no ICMP type; write \"8\" for the type, or \"8/0\" for type and code")]
    Icmp(String),
}

/// A decimal number without sign or leading zeros.
fn number<N: FromStr + ToString>(text: &str) -> Option<N> {
    text.parse::<N>().ok().filter(|n| n.to_string() == text)
}

impl Protocol {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

impl FromStr for Protocol {
    type Err = RuleValueError;
    fn from_str(text: &str) -> Result<Self, RuleValueError> {
        Ok(match text {
            "any" => Self::Any,
            // The numbers of those that have names mean the same, so that ports may go with them.
            "tcp" | "6" => Self::Tcp,
            "udp" | "17" => Self::Udp,
            "icmp" => Self::Icmp,
            _ => Self::Number(number(text).ok_or_else(|| RuleValueError::Protocol(text.to_owned()))?),
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for Ports {
    type Err = RuleValueError;
    fn from_str(text: &str) -> Result<Self, RuleValueError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(PortRange { first, last })),
            _ => Err(RuleValueError::Ports(text.to_owned())),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortRange { first, last } = self.0;
        if first == last {
            first.fmt(f)
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

impl FromStr for Icmp {
    type Err = RuleValueError;
    fn from_str(text: &str) -> Result<Self, RuleValueError> {
        let wrong = || RuleValueError::Icmp(text.to_owned());
        let (icmp_type, icmp_code) = match text.split_once('/') {
            Some((icmp_type, code)) => (icmp_type, Some(number(code).ok_or_else(wrong)?)),
            None => (text, None),
        };
        Ok(Self {
            icmp_type: number(icmp_type).ok_or_else(wrong)?,
            icmp_code,
        })
    }
}

impl fmt::Display for Icmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.icmp_code {
            Some(code) => write!(f, "{}/{code}", self.icmp_type),
            None => self.icmp_type.fmt(f),
        }
    }
}

macro_rules! travels_as_text {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = RuleValueError;
            fn try_from(text: String) -> Result<Self, RuleValueError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}

travels_as_text!(Protocol);
travels_as_text!(Ports);
travels_as_text!(Icmp);
text_schema!(Protocol, "any, tcp, udp, icmp, or the number of an IP protocol.", "tcp");
text_schema!(Ports, "A destination port or a range of them.", "80-81");
text_schema!(Icmp, "An ICMP type, or type and code.", "8/0");

/// What two values of one rule contradict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// `from` is for what comes in.
    #[error("an egress rule has no 'from'")]
    FromOfEgress,
    /// `to` is for what goes out.
    #[error("an ingress rule has no 'to'")]
    ToOfIngress,
    /// The other side is said twice.
    #[error("a rule has one other side: from or to, group, or address_set")]
    TwoPeers,
    /// Ports of a protocol that has none.
    #[error("protocol {0} has no 'ports'; only tcp and udp do")]
    PortsOfOther(Protocol),
    /// ICMP type of a protocol that has none.
    #[error("protocol {0} has no 'icmp'; only icmp does")]
    IcmpOfOther(Protocol),
    /// A subnet of one IP version and another ethertype.
    #[error("{peer} is not {ethertype}", ethertype = ethertype_name(*ethertype))]
    OtherEthertype {
        /// The subnet.
        peer: Prefix,
        /// As declared.
        ethertype: Ethertype,
    },
}

fn ethertype_name(ethertype: Ethertype) -> &'static str {
    match ethertype {
        Ethertype::Ipv4 => "ipv4",
        Ethertype::Ipv6 => "ipv6",
        Ethertype::Both => "both IP versions",
    }
}

impl RuleSpec {
    /// What of it contradicts itself, if anything.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn check(&self) -> Result<(), Contradiction> {
        match self.direction {
            Direction::Egress if self.from.is_some() => return Err(Contradiction::FromOfEgress),
            Direction::Ingress if self.to.is_some() => return Err(Contradiction::ToOfIngress),
            _ => {}
        }
        let subnet = self.from.or(self.to);
        let peers = [subnet.is_some(), self.group.is_some(), self.address_set.is_some()];
        if peers.into_iter().filter(|said| *said).count() > 1 {
            return Err(Contradiction::TwoPeers);
        }
        if self.ports.is_some() && !matches!(self.protocol, Protocol::Tcp | Protocol::Udp) {
            return Err(Contradiction::PortsOfOther(self.protocol));
        }
        if self.icmp.is_some() && self.protocol != Protocol::Icmp {
            return Err(Contradiction::IcmpOfOther(self.protocol));
        }
        match (subnet, self.ethertype) {
            (Some(peer), Some(ethertype)) if ethertype != ethertype_of(peer) => {
                Err(Contradiction::OtherEthertype { peer, ethertype })
            }
            _ => Ok(()),
        }
    }

    /// The rule as a card is told it.
    pub fn desired(&self) -> desired::Rule {
        let subnet = self.from.or(self.to);
        let ports = self.ports.map(|Ports(range)| range);
        let peer = match (subnet, &self.group, &self.address_set) {
            (Some(subnet), ..) => Peer::Cidr { cidr: subnet.into() },
            (None, Some(name), _) => Peer::Group { name: name.clone() },
            (None, None, Some(name)) => Peer::AddressSet { name: name.clone() },
            (None, None, None) => Peer::Any,
        };
        desired::Rule {
            direction: self.direction,
            action: self.action,
            priority: self.priority,
            log: self.log,
            ethertype: subnet.map(ethertype_of).or(self.ethertype).unwrap_or(Ethertype::Both),
            matched: match self.protocol {
                Protocol::Any => Matched::Any,
                Protocol::Tcp => Matched::Tcp { ports },
                Protocol::Udp => Matched::Udp { ports },
                Protocol::Icmp => Matched::Icmp {
                    icmp_type: self.icmp.map(|icmp| icmp.icmp_type),
                    icmp_code: self.icmp.and_then(|icmp| icmp.icmp_code),
                },
                Protocol::Number(protocol) => Matched::Number { protocol },
            },
            peer,
            name: self.name.clone(),
        }
    }

    /// The other side, as people read it: a subnet, `group db`, `address_set partners` or `any`.
    pub fn peer(&self) -> String {
        match (self.from.or(self.to), &self.group, &self.address_set) {
            (Some(subnet), ..) => subnet.to_string(),
            (None, Some(group), _) => format!("group {group}"),
            (None, None, Some(set)) => format!("address_set {set}"),
            (None, None, None) => "any".to_owned(),
        }
    }

    /// Ports or ICMP type, as people read them.
    pub fn what(&self) -> Option<String> {
        let icmp = self.icmp.map(|icmp| icmp.to_string());
        self.ports.map(|ports| ports.to_string()).or(icmp)
    }
}

fn ethertype_of(subnet: Prefix) -> Ethertype {
    match subnet.address() {
        IpAddr::V4(_) => Ethertype::Ipv4,
        IpAddr::V6(_) => Ethertype::Ipv6,
    }
}

/// In one line: `ingress tcp 80-81 from 10.0.0.0/8, allow, priority 1000`.
impl fmt::Display for RuleSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direction, preposition) = match self.direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        write!(f, "{direction} {}", self.protocol)?;
        if let Some(what) = self.what() {
            write!(f, " {what}")?;
        }
        write!(f, " {preposition} {}", self.peer())?;
        if let Some(ethertype) = self.ethertype.filter(|e| *e != Ethertype::Both) {
            write!(f, " {}", ethertype_name(ethertype))?;
        }
        match self.action {
            RuleAction::Allow => {}
            RuleAction::Deny => f.write_str(" deny")?,
            RuleAction::Reject => f.write_str(" reject")?,
        }
        if self.priority != PRIORITY_DEFAULT {
            write!(f, " priority {}", self.priority)?;
        }
        if self.log {
            f.write_str(" log")?;
        }
        if let Some(name) = &self.name {
            write!(f, " name {name}")?;
        }
        Ok(())
    }
}

impl GroupSpec {
    /// What each rule is called within the group: its name, or its direction and its number among the rules of that
    /// direction, from 1.
    pub fn rule_ids(&self) -> Vec<String> {
        let (mut ingress, mut egress) = (0_u32, 0_u32);
        let mut id = |rule: &RuleSpec| {
            let (direction, number) = match rule.direction {
                Direction::Ingress => ("ingress", &mut ingress),
                Direction::Egress => ("egress", &mut egress),
            };
            *number += 1;
            match &rule.name {
                Some(name) => name.to_string(),
                None => format!("{direction}/{number}"),
            }
        };
        self.rules.iter().map(&mut id).collect()
    }

    /// The group as a card is told it.
    pub fn desired(&self) -> desired::Group {
        desired::Group {
            name: self.name.clone(),
            egress: self.egress,
            rules: self.rules.iter().map(RuleSpec::desired).collect(),
        }
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
