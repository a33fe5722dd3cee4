//! What is wrong with a topology, where, and what to do.

use std::{fmt, net::IpAddr};

use outboard_protocol::{
    desired::VLAN_IDS,
    id::{MacAddr, Name},
};

use super::{TOPOLOGY_LEN_MAX, TopologyObject};
use crate::{group::Contradiction, subnet::Subnet, volume::SECTOR_LEN_BYTES};

/// A topology that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopologyError {
    /// The object at fault, such as `port vm1`, where there is one.
    pub object: Option<String>,
    /// Line of the file, from 1, where the topology came from one.
    pub line: Option<usize>,
    /// What is wrong.
    pub problem: Problem,
}

/// What can be wrong with a topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Longer than [`TOPOLOGY_LEN_MAX`].
    #[error("the file has {0} bytes, more than the {TOPOLOGY_LEN_MAX} allowed")]
    TooLong(usize),
    /// Not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that no version knows.
    #[error("unknown key '{key}'")]
    UnknownKey {
        /// The key.
        key: String,
        /// The keys allowed there.
        known: &'static [&'static str],
    },
    /// A key of the format that this version does not implement.
    #[error("{feature} is not in this version ({})", env!("CARGO_PKG_VERSION"))]
    Later {
        /// The key.
        key: &'static str,
        /// What it would ask for, in words.
        feature: &'static str,
    },
    /// A value of the wrong type or form.
    #[error("{0}")]
    Value(String),
    /// Two objects of one kind and name.
    #[error("declared twice")]
    DuplicateName,
    /// Two ports of a network with one MAC.
    #[error("MAC {mac} is that of port {other} too, on network {network}")]
    DuplicateMac {
        /// The MAC.
        mac: MacAddr,
        /// The port that has it first.
        other: Name,
        /// The network of both.
        network: Name,
    },
    /// A MAC that no station may send from.
    #[error("MAC {0} is a group or null address, which no station may send from")]
    UnusableMac(MacAddr),
    /// A port on a network that is not declared.
    #[error("network {0} is not declared")]
    UnknownNetwork(Name),
    /// An address in none of the network's subnets, or the network or broadcast address of one.
    #[error("address {address} is no host address of network {network} ({})", list(subnets))]
    AddressOutside {
        /// The address.
        address: IpAddr,
        /// The port's network.
        network: Name,
        /// Its subnets.
        subnets: Vec<Subnet>,
    },
    /// Two ports of a network with one address, or one port with it twice.
    #[error("address {address} is that of port {other} too, on network {network}")]
    DuplicateAddress {
        /// The address.
        address: IpAddr,
        /// The port that has it first.
        other: Name,
        /// The network of both.
        network: Name,
    },
    /// A VLAN id that no frame has.
    #[error("{0} is no VLAN id")]
    UnusableVlan(u16),
    /// A subport of a port that is not declared.
    #[error("its parent, port {0}, is not declared")]
    UnknownParent(Name),
    /// A subport of a subport, or of itself.
    #[error("its parent, port {0}, is a subport itself and has no device")]
    ParentIsSubport(Name),
    /// A subport on another card than its parent.
    #[error("its parent, port {parent}, is on card {card}")]
    ParentElsewhere {
        /// The parent.
        parent: Name,
        /// The parent's card.
        card: Name,
    },
    /// A subport without a VLAN id, on a network without one.
    #[error("its trunk names no VLAN id, and network {0} has none to inherit")]
    NoVlan(Name),
    /// Two subports of one parent with one VLAN id.
    #[error("VLAN id {vlan} is that of port {other} too, at their parent {parent}")]
    DuplicateVlan {
        /// The VLAN id.
        vlan: u16,
        /// The subport that has it first.
        other: Name,
        /// The parent of both.
        parent: Name,
    },
    /// Two subnets of one network have addresses in common.
    #[error("subnets {0} and {1} overlap")]
    OverlappingSubnets(Subnet, Subnet),
    /// A size that is no positive multiple of the sector.
    #[error("a size of {0} bytes is not a positive multiple of {SECTOR_LEN_BYTES}")]
    UnusableSize(u64),
    /// A backend file that another volume of the card uses, one of the two for writing.
    #[error("file {path} is that of volume {other} too, and one of them writes")]
    SharedFile {
        /// The path, as declared.
        path: String,
        /// The volume that has it first.
        other: Name,
    },
    /// A rule of a group; the text after the number says what is wrong with it.
    #[error("rule {}: {fault}", index + 1)]
    Rule {
        /// Which of the group's rules, from 0.
        index: usize,
        /// What is wrong.
        fault: RuleFault,
    },
    /// A port with a group that is not declared.
    #[error("group {0} is not declared")]
    UnknownGroup(Name),
    /// A port that names a group twice.
    #[error("names group {0} twice")]
    RepeatedGroup(Name),
    /// More of something than a card can take.
    #[error("has {count} {what}; at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many it has.
        count: usize,
        /// How many it may have.
        max: usize,
    },
    /// No card named, and none follows from the rest.
    #[error("names no card, and {cards} cards could serve it")]
    NoCard {
        /// How many there are.
        cards: usize,
    },
    /// A card that is not enrolled.
    #[error("card {0} is not known")]
    UnknownCard(Name),
}

/// What can be wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    /// Its keys contradict each other.
    #[error(transparent)]
    Contradiction(#[from] Contradiction),
    /// Its other side is a group that is not declared.
    #[error("group {0} is not declared")]
    UnknownGroup(Name),
    /// Its other side is an address set that is not declared.
    #[error("address set {0} is not declared")]
    UnknownAddressSet(Name),
    /// Another rule of the group has its name.
    #[error("another rule of the group is called {0} too")]
    DuplicateName(Name),
}

fn list(subnets: &[Subnet]) -> String {
    match subnets {
        [] => "it has no subnets".to_owned(),
        _ => subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

impl TopologyError {
    pub(super) fn about(object: TopologyObject, problem: Problem) -> Self {
        Self {
            object: Some(object.to_string()),
            line: None,
            problem,
        }
    }

    /// Stable `snake_case` code, for programs.
    pub fn code(&self) -> &'static str {
        match self.problem {
            Problem::TooLong(_) => "topology_too_long",
            Problem::Syntax(_) => "topology_syntax",
            Problem::UnknownKey { .. } => "unknown_key",
            Problem::Later { .. } => "not_in_this_version",
            Problem::Value(_) => "bad_value",
            Problem::DuplicateName => "duplicate_name",
            Problem::DuplicateMac { .. } => "duplicate_mac",
            Problem::UnusableMac(_) => "unusable_mac",
            Problem::UnknownNetwork(_) => "unknown_network",
            Problem::AddressOutside { .. } => "address_outside_network",
            Problem::DuplicateAddress { .. } => "duplicate_address",
            Problem::OverlappingSubnets(..) => "overlapping_subnets",
            Problem::UnusableVlan(_) => "unusable_vlan",
            Problem::UnknownParent(_) => "unknown_parent",
            Problem::ParentIsSubport(_) => "parent_is_subport",
            Problem::ParentElsewhere { .. } => "parent_elsewhere",
            Problem::NoVlan(_) => "no_vlan",
            Problem::DuplicateVlan { .. } => "duplicate_vlan",
            Problem::UnusableSize(_) => "unusable_size",
            Problem::SharedFile { .. } => "shared_file",
            Problem::Rule {
                fault: RuleFault::UnknownGroup(_),
                ..
            }
            | Problem::UnknownGroup(_) => "unknown_group",
            Problem::Rule {
                fault: RuleFault::UnknownAddressSet(_),
                ..
            } => "unknown_address_set",
            Problem::Rule {
                fault: RuleFault::DuplicateName(_),
                ..
            } => "duplicate_rule_name",
            Problem::Rule {
                fault: RuleFault::Contradiction(_),
                ..
            } => "contradictory_rule",
            Problem::RepeatedGroup(_) => "repeated_group",
            Problem::TooMany { .. } => "quota",
            Problem::NoCard { .. } => "no_card",
            Problem::UnknownCard(_) => "unknown_card",
        }
    }

    /// What to do about it, for people.
    pub fn remedy(&self) -> String {
        match &self.problem {
            Problem::TooLong(_) => "split it, and apply the parts to brokers of their own".to_owned(),
            Problem::Syntax(_) => "correct the line; https://toml.io describes the format".to_owned(),
            Problem::UnknownKey { known, .. } => format!("remove or correct it; known here: {}", known.join(", ")),
            Problem::Later { key: "encryption", .. } => {
                "remove 'encryption ='; what is not encrypted must not look as if it were".to_owned()
            }
            Problem::Later { .. } => {
                "use backend = { file = \"…\" }, { memory = true } or { null = true } instead".to_owned()
            }
            Problem::Value(_) => "correct the value".to_owned(),
            Problem::DuplicateName => "rename or remove one of the two".to_owned(),
            Problem::DuplicateMac { .. } => "give each port of a network a MAC of its own".to_owned(),
            Problem::UnusableMac(_) => "use a unicast MAC, such as one that begins with 52:54:00".to_owned(),
            Problem::UnknownNetwork(name) => format!("add [[network]] with name = \"{name}\", or correct the name"),
            Problem::AddressOutside { .. } => {
                "correct the address, or add its subnet to the network's subnets".to_owned()
            }
            Problem::DuplicateAddress { .. } => "give each port of a network addresses of its own".to_owned(),
            Problem::UnusableVlan(_) => format!(
                "use {} to {}; frames without a VLAN are those of the parent",
                VLAN_IDS.start(),
                VLAN_IDS.end()
            ),
            Problem::UnknownParent(name) => format!("add [[port]] with name = \"{name}\", or correct the name"),
            Problem::ParentIsSubport(_) => "name the port whose device the guest has".to_owned(),
            Problem::ParentElsewhere { card, .. } => format!("write card = \"{card}\", or leave it out"),
            Problem::NoVlan(name) => {
                format!("add vlan = … to the port's trunk, or to [[network]] with name = \"{name}\"")
            }
            Problem::DuplicateVlan { .. } => "give each subport of a port a VLAN id of its own".to_owned(),
            Problem::OverlappingSubnets(..) => "keep the wider one, or correct the prefixes".to_owned(),
            Problem::UnusableSize(bytes) => {
                let below = bytes / SECTOR_LEN_BYTES * SECTOR_LEN_BYTES;
                format!("use a multiple of {SECTOR_LEN_BYTES}, such as {}", below.max(1 << 20))
            }
            Problem::SharedFile { .. } => {
                "give each volume a file of its own, or set read_only = true on all that share it".to_owned()
            }
            Problem::Rule { fault, .. } => fault.remedy(),
            Problem::UnknownGroup(name) => format!("add [[group]] with name = \"{name}\", or correct the name"),
            Problem::RepeatedGroup(_) => "name each group once".to_owned(),
            Problem::TooMany { max, .. } => format!("split it, so that none has more than {max}"),
            Problem::NoCard { cards: 0 } => "enrol a card first: outboard card enrol NAME --serial SERIAL".to_owned(),
            Problem::NoCard { .. } => "add card = \"NAME\"; 'outboard card list' shows the names".to_owned(),
            Problem::UnknownCard(name) => {
                format!("correct the name, or enrol the card first: outboard card enrol {name} --serial SERIAL")
            }
        }
    }
}

impl RuleFault {
    fn remedy(&self) -> String {
        match self {
            Self::Contradiction(Contradiction::FromOfEgress) => {
                "write to = \"…\", or direction = \"ingress\"".to_owned()
            }
            Self::Contradiction(Contradiction::ToOfIngress) => {
                "write from = \"…\", or direction = \"egress\"".to_owned()
            }
            Self::Contradiction(Contradiction::TwoPeers) => {
                "keep one of them, and make another rule for the other".to_owned()
            }
            Self::Contradiction(Contradiction::PortsOfOther(_)) => {
                "remove 'ports', or write protocol = \"tcp\" or \"udp\"".to_owned()
            }
            Self::Contradiction(Contradiction::IcmpOfOther(_)) => {
                "remove 'icmp', or write protocol = \"icmp\"".to_owned()
            }
            Self::Contradiction(Contradiction::OtherEthertype { .. }) => {
                "remove 'ethertype', which follows from the subnet".to_owned()
            }
            Self::UnknownGroup(name) => format!("add [[group]] with name = \"{name}\", or correct the name"),
            Self::UnknownAddressSet(name) => {
                format!("add [[address_set]] with name = \"{name}\", or correct the name")
            }
            Self::DuplicateName(_) => "give each rule of a group a name of its own, or none".to_owned(),
        }
    }
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.object, self.line) {
            (Some(object), Some(line)) => write!(f, "{object} (line {line}): {}", self.problem),
            (Some(object), None) => write!(f, "{object}: {}", self.problem),
            (None, Some(line)) => write!(f, "line {line}: {}", self.problem),
            (None, None) => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for TopologyError {}
