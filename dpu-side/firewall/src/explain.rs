//! Rules and judgements in words, for people.

use std::fmt;

use crate::{
    Action, Direction, Ethertype, Group, Judgement, Name, Peer, Policy, PortId, PortSpec, Protocol, Rule, RuleId,
    group::{Compiled, rule_name},
};

/// A port's effective rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The port.
    pub port: Name,
    /// Its network.
    pub network: Name,
    /// Whether it is filtered; if not, everything is allowed and the rest of this is empty.
    pub filtered: bool,
    /// Its groups.
    pub groups: Vec<Name>,
    /// What is asked of each connection to it, in this order; if nothing matches, it is denied.
    pub ingress: Vec<ExplainedRule>,
    /// The same of each connection from it.
    pub egress: Vec<ExplainedRule>,
    /// The epoch that this is about.
    pub epoch: u64,
}

/// A rule, with what it does in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExplainedRule {
    /// The rule, as judgements name it.
    pub id: RuleId,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: Name,
    /// Its priority; none for what a group without egress rules allows, which comes last.
    pub priority: Option<u16>,
    /// What it does.
    pub action: Action,
    /// Whether connections that it decides are to be logged.
    pub log: bool,
    /// All of it in words: "ingress allow ipv4 tcp 80-81 from 10.0.0.0/8".
    pub text: String,
}

impl Policy {
    /// A port's effective rules, in the order in which they count.
    pub fn explain(&self, port: PortId) -> Option<Explanation> {
        let compiled = self.ports.get(port.0)?;
        let groups = compiled.groups().iter();
        let groups: Vec<_> = groups
            .filter_map(|id| Some((*id, self.groups.get(*id)?.as_ref())))
            .collect();
        Some(Explanation {
            port: compiled.source.name.clone(),
            network: compiled.source.network.clone(),
            filtered: compiled.filter.is_some(),
            groups: groups.iter().map(|(_, group)| group.source.name.clone()).collect(),
            ingress: in_order(&groups, Direction::Ingress),
            egress: in_order(&groups, Direction::Egress),
            epoch: self.epoch(port),
        })
    }

    /// The rule that a judgement named.
    pub fn rule(&self, id: RuleId) -> Option<ExplainedRule> {
        let group = self.groups.get(id.group)?.source.as_ref();
        match group.rules.get(id.place as usize) {
            Some(rule) => Some(explained(id, group, rule, rule_name(group, rule))),
            None if id.place as usize == group.rules.len() => Some(egress_default(id, group)),
            None => None,
        }
    }

    /// Why a judgement is what it is: the rule's name, or what is so without one.
    pub fn reason(&self, judgement: &Judgement) -> String {
        match judgement.rule {
            Some(id) => self.rule(id).map_or_else(|| "a former rule".into(), |rule| rule.name),
            None if judgement.action == Action::Allow => "unfiltered".into(),
            None => "default deny".into(),
        }
    }
}

fn in_order(groups: &[(u32, &Compiled)], direction: Direction) -> Vec<ExplainedRule> {
    let mut rules = Vec::new();
    for (id, group) in groups {
        let source = group.source.as_ref();
        // Rules without a name are numbered; counted once for all of them.
        let mut count = 0;
        let numbers: Vec<usize> = source
            .rules
            .iter()
            .map(|rule| {
                count += usize::from(rule.direction == direction);
                count
            })
            .collect();
        for effective in group.rules(direction) {
            let place = effective.place as usize;
            let id = RuleId {
                group: *id,
                place: effective.place,
            };
            let rule = match (source.rules.get(place), numbers.get(place)) {
                (Some(rule), Some(number)) => {
                    let name = rule.name.as_ref().map(ToString::to_string);
                    let name = name.unwrap_or_else(|| format!("{}/{direction}/{number}", source.name));
                    explained(id, source, rule, name)
                }
                _ => egress_default(id, source),
            };
            rules.push((effective.precedence, rule));
        }
    }
    rules.sort_by_key(|(precedence, _)| *precedence);
    rules.into_iter().map(|(_, rule)| rule).collect()
}

fn explained(id: RuleId, group: &Group, rule: &Rule, name: String) -> ExplainedRule {
    ExplainedRule {
        id,
        name,
        group: group.name.clone(),
        priority: Some(rule.priority),
        action: rule.action,
        log: rule.log,
        text: rule.to_string(),
    }
}

fn egress_default(id: RuleId, group: &Group) -> ExplainedRule {
    ExplainedRule {
        id,
        name: format!("{}/egress/default", group.name),
        group: group.name.clone(),
        priority: None,
        action: Action::Allow,
        log: false,
        text: "egress allow any to any: the group has no egress rule".into(),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.direction, self.action)?;
        let family = match (&self.peer, self.ethertype) {
            (Peer::Cidr(cidr), _) if cidr.network().is_ipv4() => Ethertype::Ipv4,
            (Peer::Cidr(_), _) => Ethertype::Ipv6,
            (_, ethertype) => ethertype,
        };
        match family {
            Ethertype::Ipv4 => f.write_str(" ipv4")?,
            Ethertype::Ipv6 => f.write_str(" ipv6")?,
            Ethertype::Both => {}
        }
        match self.protocol {
            Protocol::Any => f.write_str(" any")?,
            Protocol::Icmp => f.write_str(" icmp")?,
            Protocol::Number(6) => f.write_str(" tcp")?,
            Protocol::Number(17) => f.write_str(" udp")?,
            Protocol::Number(33) => f.write_str(" dccp")?,
            Protocol::Number(132) => f.write_str(" sctp")?,
            Protocol::Number(136) => f.write_str(" udplite")?,
            Protocol::Number(number) => write!(f, " protocol {number}")?,
        }
        match self.ports {
            PortSpec::Any => {}
            PortSpec::Range(first, last) if first == last => write!(f, " {first}")?,
            PortSpec::Range(first, last) => write!(f, " {first}-{last}")?,
            PortSpec::Icmp { kind, code: None } => write!(f, " type {kind}")?,
            PortSpec::Icmp { kind, code: Some(code) } => write!(f, " type {kind}/{code}")?,
        }
        f.write_str(match self.direction {
            Direction::Ingress => " from ",
            Direction::Egress => " to ",
        })?;
        match &self.peer {
            Peer::Any => f.write_str("any"),
            Peer::Cidr(cidr) => write!(f, "{cidr}"),
            Peer::Group(name) => write!(f, "group {name}"),
            Peer::AddressSet(name) => write!(f, "address set {name}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reject => "reject",
            Self::Deny => "deny",
            Self::Allow => "allow",
        })
    }
}
