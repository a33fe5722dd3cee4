//! Security groups, as far as both sides know them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::PORT_COUNT;

/// Priority of a rule that names none.
pub const PRIORITY_DEFAULT: u16 = 1000;

/// Of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// As the port sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To the port.
    Ingress,
    /// From the port.
    Egress,
}

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    // in the order in which they are taken at one priority
    /// No, and the sender is told.
    Reject,
    /// No.
    Deny,
    /// Yes.
    Allow,
}

/// Of which protocol a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Any.
    Any,
    /// TCP, with a range of destination ports.
    Tcp(Option<(u16, u16)>),
    /// UDP, with a range of destination ports.
    Udp(Option<(u16, u16)>),
    /// ICMP, or ICMPv6 for IPv6, with type and code.
    Icmp(Option<(u8, Option<u8>)>),
    /// By number.
    Number(u8),
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr(pub IpAddr, pub u8);

impl Cidr {
    /// Of which family it is.
    pub fn family(self) -> Family {
        if self.0.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Whoever it is.
    Any,
    /// An address of the range.
    Cidr(Cidr),
    /// An address of a port that is in the group of this index.
    Group(usize),
    /// An address of the set of this index.
    Set(usize),
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// As the port sees it.
    pub direction: Direction,
    /// `None` for both, or as the peer has it.
    pub family: Option<Family>,
    /// Of which protocol.
    pub protocol: Protocol,
    /// The other end.
    pub peer: Peer,
    /// What it says.
    pub action: Action,
    /// Lower ones first.
    pub priority: u16,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Group {
    /// Its rules.
    pub rules: Vec<Rule>,
    /// Where it has no rule for egress: nothing goes out by it, instead of everything.
    pub egress_deny: bool,
}

impl Group {
    /// Does it let out everything, by having no rule for that?
    pub fn lets_out(&self) -> bool {
        !self.egress_deny && self.rules.iter().all(|rule| rule.direction == Direction::Ingress)
    }
}

/// All that the firewall is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Groups; named `g0`, `g1`, …
    pub groups: Vec<Group>,
    /// Address sets; named `s0`, `s1`, …
    pub sets: Vec<Vec<Cidr>>,
    /// The groups of each port; without any, it is not filtered.
    pub ports: [Option<Vec<usize>>; PORT_COUNT],
}

impl Rules {
    /// Rules of a port in the order in which they are taken, those that let everything out left out.
    pub fn of_port(&self, port: usize, direction: Direction) -> Vec<Rule> {
        let groups = self.ports.get(port).and_then(Option::as_ref);
        let mut rules: Vec<Rule> = groups
            .into_iter()
            .flatten()
            .filter_map(|group| self.groups.get(*group))
            .flat_map(|group| &group.rules)
            .filter(|rule| rule.direction == direction)
            .copied()
            .collect();
        rules.sort_by_key(|rule| (rule.priority, rule.action));
        rules
    }

    /// Does one of the port's groups let everything out?
    pub fn lets_out(&self, port: usize) -> bool {
        let groups = self.ports.get(port).and_then(Option::as_ref);
        let mut groups = groups.into_iter().flatten().filter_map(|group| self.groups.get(*group));
        groups.any(Group::lets_out)
    }

    /// Does any rule name this peer?
    fn names(&self, peer: Peer) -> bool {
        self.groups
            .iter()
            .flat_map(|group| &group.rules)
            .any(|rule| rule.peer == peer)
    }

    /// Is the port filtered?
    pub fn filtered(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(Option::is_some)
    }

    /// Addresses that a peer stands for in a family; `None` for all.
    pub fn addresses(&self, peer: Peer, family: Family) -> Option<Vec<Cidr>> {
        let of_family = |cidrs: &[Cidr]| cidrs.iter().copied().filter(|cidr| cidr.family() == family).collect();
        match peer {
            Peer::Any => None,
            Peer::Cidr(cidr) => Some(of_family(&[cidr])),
            Peer::Set(set) => Some(of_family(self.sets.get(set).map_or(&[], Vec::as_slice))),
            Peer::Group(group) => {
                let members =
                    (0..PORT_COUNT).filter(|port| self.ports[*port].as_ref().is_some_and(|g| g.contains(&group)));
                Some(members.map(|port| host(port, family)).collect())
            }
        }
    }
}

/// The address of a port.
pub fn address(port: usize, family: Family) -> IpAddr {
    let number = u8::try_from(port + 1).unwrap_or(u8::MAX);
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 0, number).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn host(port: usize, family: Family) -> Cidr {
    Cidr(address(port, family), if family == Family::V4 { 32 } else { 128 })
}

/// A port's name.
pub fn port_name(port: usize) -> &'static str {
    ["a", "b", "c"].get(port).unwrap_or(&"?")
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direction, peer) = match self.direction {
            Direction::Ingress => ("ingress", "from"),
            Direction::Egress => ("egress", "to"),
        };
        let family = match self.family {
            None => "",
            Some(Family::V4) => " ipv4",
            Some(Family::V6) => " ipv6",
        };
        write!(f, "{direction}{family}")?;
        match self.protocol {
            Protocol::Any => write!(f, " any")?,
            Protocol::Tcp(ports) => write!(f, " tcp{}", range(ports))?,
            Protocol::Udp(ports) => write!(f, " udp{}", range(ports))?,
            Protocol::Icmp(None) => write!(f, " icmp")?,
            Protocol::Icmp(Some((kind, None))) => write!(f, " icmp type {kind}")?,
            Protocol::Icmp(Some((kind, Some(code)))) => write!(f, " icmp type {kind} code {code}")?,
            Protocol::Number(number) => write!(f, " protocol {number}")?,
        }
        match self.peer {
            Peer::Any => {}
            Peer::Cidr(cidr) => write!(f, " {peer} {cidr}")?,
            Peer::Group(group) => write!(f, " {peer} group g{group}")?,
            Peer::Set(set) => write!(f, " {peer} set s{set}")?,
        }
        let action = match self.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Reject => "reject",
        };
        write!(f, ": {action}")?;
        if self.priority != PRIORITY_DEFAULT {
            write!(f, " (priority {})", self.priority)?;
        }
        Ok(())
    }
}

fn range(ports: Option<(u16, u16)>) -> String {
    match ports {
        None => String::new(),
        Some((from, to)) if from == to => format!(" {from}"),
        Some((from, to)) => format!(" {from}-{to}"),
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (port, groups) in self.ports.iter().enumerate() {
            let (v4, v6) = (address(port, Family::V4), address(port, Family::V6));
            let groups = match groups {
                None => "unfiltered".to_owned(),
                Some(groups) => format!(
                    "groups {:?}",
                    groups.iter().map(|g| format!("g{g}")).collect::<Vec<_>>()
                ),
            };
            writeln!(f, "  port {} ({v4}, {v6}): {groups}", port_name(port))?;
        }
        for (number, set) in self
            .sets
            .iter()
            .enumerate()
            .filter(|(set, _)| self.names(Peer::Set(*set)))
        {
            let set: Vec<String> = set.iter().map(Cidr::to_string).collect();
            writeln!(f, "  set s{number}: {}", set.join(", "))?;
        }
        for (number, group) in self.groups.iter().enumerate() {
            let member = self.ports.iter().flatten().any(|groups| groups.contains(&number));
            if !member && group.rules.is_empty() && !self.names(Peer::Group(number)) {
                continue;
            }
            let deny = if group.egress_deny { " (egress = deny)" } else { "" };
            writeln!(
                f,
                "  group g{number}{deny}:{}",
                if group.rules.is_empty() { " no rules" } else { "" }
            )?;
            for rule in &group.rules {
                writeln!(f, "    {rule}")?;
            }
        }
        Ok(())
    }
}
