//! A group, compiled once for all ports that have it.

use std::sync::Arc;

use crate::{
    Action, Direction, EgressDefault, Ethertype, Flow, Group, Name, Peer, PolicyError, PortSpec, Protocol, Rule,
    RuleFault, RuleName, limits,
    members::Members,
    policy::PeerAddress,
    search::Meter,
    table::{Lowered, LoweredPeer, NONE, Question, Table},
};

/// ICMP in IPv4 and in IPv6.
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// The protocols that have ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// A compiled group.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) source: Arc<Group>,
    /// The groups and address sets that its rules name. A rule knows its peer by the place in here.
    pub(crate) peers: Box<[PeerName]>,
    ingress: Side,
    egress: Side,
}

/// A group or address set, by name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PeerName {
    Group(Name),
    AddressSet(Name),
}

/// The rules of one direction.
#[derive(Debug, PartialEq, Eq)]
struct Side {
    /// By rank.
    rules: Box<[Effective]>,
    v4: Table<u32>,
    v6: Table<u128>,
}

/// A rule as it takes part in the choice among those of all groups of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Effective {
    /// The lower, the earlier: priority, then reject before deny before allow.
    pub(crate) precedence: u32,
    /// Its place in the group's list; one past the last for what a group without egress rules allows.
    pub(crate) place: u32,
    pub(crate) action: Action,
    pub(crate) log: bool,
}

impl Compiled {
    pub(crate) fn new(source: &Arc<Group>) -> Result<Self, PolicyError> {
        if source.rules.len() > limits::RULES_PER_GROUP_MAX {
            return Err(PolicyError::TooMany {
                of: format!("group '{}' has", source.name),
                count: source.rules.len(),
                what: "rules",
                max: limits::RULES_PER_GROUP_MAX,
                remedy: "merge rules by port ranges, address ranges and address sets, or divide the group",
            });
        }
        let mut peers = Peers::default();
        let ingress = Side::new(source, Direction::Ingress, &mut peers)?;
        let egress = Side::new(source, Direction::Egress, &mut peers)?;
        if peers.0.len() > limits::PEERS_PER_GROUP_MAX {
            return Err(PolicyError::TooMany {
                of: format!("the rules of group '{}' name", source.name),
                count: peers.0.len(),
                what: "groups and address sets",
                max: limits::PEERS_PER_GROUP_MAX,
                remedy: "put the addresses of several into one address set",
            });
        }
        Ok(Self {
            source: source.clone(),
            peers: peers.0.into(),
            ingress,
            egress,
        })
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The rules of a direction, in the order in which they count.
    pub(crate) fn rules(&self, direction: Direction) -> &[Effective] {
        &self.side(direction).rules
    }

    /// The first rule that matches, of those that go before the precedence `below`. `members` are what
    /// [`Compiled::peers`] stand for.
    pub(crate) fn first(
        &self,
        direction: Direction,
        flow: &Flow,
        members: &[Arc<Members>],
        below: u32,
        meter: &mut impl Meter,
    ) -> Option<&Effective> {
        let side = self.side(direction);
        if side.rules.first()?.precedence >= below {
            return None;
        }
        let (protocol, selector) = (flow.protocol, flow.selector);
        let rank = match flow.peer(direction) {
            PeerAddress::V4(peer) => {
                let question = Question {
                    peer,
                    protocol,
                    selector,
                };
                side.v4.first(question, |peer| Some(&members.get(peer)?.v4), meter)
            }
            PeerAddress::V6(peer) => {
                let question = Question {
                    peer,
                    protocol,
                    selector,
                };
                side.v6.first(question, |peer| Some(&members.get(peer)?.v6), meter)
            }
        };
        side.rules.get(rank as usize).filter(|rule| rule.precedence < below)
    }

    /// Whether both give the same judgements with the same numbers of rules.
    pub(crate) fn same_result(&self, other: &Self) -> bool {
        self.peers == other.peers && self.ingress == other.ingress && self.egress == other.egress
    }
}

/// The peers that a group's rules name, each once.
#[derive(Default)]
struct Peers(Vec<PeerName>);

impl Peers {
    /// The place of a peer. Past 255 it is not told truly: such a group is refused.
    fn place(&mut self, group: bool, name: &Name) -> u8 {
        let is_it = |peer: &PeerName| match peer {
            PeerName::Group(other) => group && other == name,
            PeerName::AddressSet(other) => !group && other == name,
        };
        let place = self.0.iter().position(is_it).unwrap_or_else(|| {
            // One past the limit is enough to refuse the group.
            if self.0.len() <= limits::PEERS_PER_GROUP_MAX {
                let name = name.clone();
                self.0.push(if group {
                    PeerName::Group(name)
                } else {
                    PeerName::AddressSet(name)
                });
            }
            self.0.len() - 1
        });
        u8::try_from(place).unwrap_or(u8::MAX)
    }
}

impl Side {
    fn new(group: &Group, direction: Direction, peers: &mut Peers) -> Result<Self, PolicyError> {
        let mut order = Vec::with_capacity(group.rules.len());
        for (place, rule) in (0..).zip(&group.rules) {
            if rule.direction == direction {
                order.push(effective(rule, place));
            }
        }
        // Rules often have one priority only and then are in order already, which this sort is fast on.
        order.sort_by_key(|rule| (rule.precedence, rule.place));
        let (mut v4, mut v6) = (Vec::with_capacity(order.len()), Vec::new());
        for (rank, rule) in (0..).zip(&order) {
            if let Some(rule) = group.rules.get(rule.place as usize) {
                lower(rule, rank, peers, &mut v4, &mut v6).map_err(|why| PolicyError::BadRule {
                    rule: RuleName(rule_name(group, rule)),
                    why,
                })?;
            }
        }
        if direction == Direction::Egress && order.is_empty() && group.egress == EgressDefault::Allow {
            order.push(Effective {
                precedence: precedence(u32::from(u16::MAX) + 1, Action::Allow),
                place: u32::try_from(group.rules.len()).unwrap_or(NONE),
                action: Action::Allow,
                log: false,
            });
            v4.push(everything());
            v6.push(everything());
        }
        Ok(Self {
            rules: order.into(),
            v4: Table::new(&v4),
            v6: Table::new(&v6),
        })
    }
}

fn everything<T>() -> Lowered<T> {
    Lowered {
        rank: 0,
        protocol: None,
        selectors: (0, u16::MAX),
        peer: LoweredPeer::Any,
    }
}

fn effective(rule: &Rule, place: u32) -> Effective {
    Effective {
        precedence: precedence(u32::from(rule.priority), rule.action),
        place,
        action: rule.action,
        log: rule.log,
    }
}

fn precedence(priority: u32, action: Action) -> u32 {
    priority << 2
        | match action {
            Action::Reject => 0,
            Action::Deny => 1,
            Action::Allow => 2,
        }
}

/// Adds the rule to the tables of the families that it is about.
fn lower(
    rule: &Rule,
    rank: u32,
    peers: &mut Peers,
    v4: &mut Vec<Lowered<u32>>,
    v6: &mut Vec<Lowered<u128>>,
) -> Result<(), RuleFault> {
    let (mut in_v4, mut in_v6) = match rule.ethertype {
        Ethertype::Ipv4 => (true, false),
        Ethertype::Ipv6 => (false, true),
        Ethertype::Both => (true, true),
    };
    let (mut range_v4, mut range_v6, mut named) = (LoweredPeer::Any, LoweredPeer::Any, None);
    match &rule.peer {
        Peer::Any => {}
        Peer::Cidr(cidr) => {
            in_v4 &= cidr.v4().is_some_and(|range| set_range(&mut range_v4, &range));
            in_v6 &= cidr.v6().is_some_and(|range| set_range(&mut range_v6, &range));
            if !in_v4 && !in_v6 {
                return Err(RuleFault::Family { peer: *cidr });
            }
        }
        Peer::Group(name) => named = Some(peers.place(true, name)),
        Peer::AddressSet(name) => named = Some(peers.place(false, name)),
    }
    if let Some(place) = named {
        (range_v4, range_v6) = (LoweredPeer::Named(place), LoweredPeer::Named(place));
    }
    let selectors = match rule.ports {
        PortSpec::Any => (0, u16::MAX),
        PortSpec::Range(first, last) => {
            if !matches!(rule.protocol, Protocol::Number(number) if WITH_PORTS.contains(&number)) {
                return Err(RuleFault::PortsWithoutProtocol);
            }
            if first > last {
                return Err(RuleFault::PortsReversed { first, last });
            }
            (first, last)
        }
        PortSpec::Icmp { kind, code } => {
            in_v4 &= matches!(rule.protocol, Protocol::Icmp | Protocol::Number(ICMP));
            in_v6 &= matches!(rule.protocol, Protocol::Icmp | Protocol::Number(ICMP_V6));
            if !in_v4 && !in_v6 {
                return Err(RuleFault::TypeWithoutIcmp);
            }
            let of = |code| u16::from_be_bytes([kind, code]);
            code.map_or((of(0), of(u8::MAX)), |code| (of(code), of(code)))
        }
    };
    let number = |icmp| match rule.protocol {
        Protocol::Any => None,
        Protocol::Icmp => Some(icmp),
        Protocol::Number(number) => Some(number),
    };
    if in_v4 {
        v4.push(Lowered {
            rank,
            protocol: number(ICMP),
            selectors,
            peer: range_v4,
        });
    }
    if in_v6 {
        v6.push(Lowered {
            rank,
            protocol: number(ICMP_V6),
            selectors,
            peer: range_v6,
        });
    }
    Ok(())
}

/// Always true: there is a range.
fn set_range<T: Copy>(peer: &mut LoweredPeer<T>, range: &std::ops::RangeInclusive<T>) -> bool {
    *peer = LoweredPeer::Range(*range.start(), *range.end());
    true
}

/// The name of a rule that is in `group`'s list.
pub(crate) fn rule_name(group: &Group, rule: &Rule) -> String {
    if let Some(name) = &rule.name {
        return name.to_string();
    }
    let same_direction = group.rules.iter().filter(|other| other.direction == rule.direction);
    let before = same_direction.take_while(|other| !std::ptr::eq(*other, rule)).count();
    format!("{}/{}/{}", group.name, rule.direction, before + 1)
}
