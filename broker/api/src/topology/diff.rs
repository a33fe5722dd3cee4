//! The difference between what is and what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::{self, Display},
    hash::Hash,
};

use outboard_protocol::{desired::Egress, id::Name};

use super::{Action, Change, Topology, TopologyKind, TopologyObject};
use crate::{
    address_set::AddressSetSpec,
    group::{GroupSpec, RuleSpec},
    network::NetworkSpec,
    port::PortSpec,
    volume::VolumeSpec,
};

/// What there is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// Every object, with its card filled in.
    pub topology: Topology,
    /// Those of them that an earlier apply made: only these are deleted when a file no longer has them.
    pub applied: BTreeSet<TopologyObject>,
}

impl Current {
    /// What there is after `wanted` was applied. Whoever applies it checks the whole: an object of the file may clash
    /// with one that was made by hand.
    pub fn after(&self, wanted: &Topology) -> Self {
        let goes = |object: &TopologyObject| self.applied.contains(object);
        let topology = Topology {
            networks: merge::<NetworkSpec>(&self.topology, wanted, goes),
            address_sets: merge::<AddressSetSpec>(&self.topology, wanted, goes),
            groups: merge::<GroupSpec>(&self.topology, wanted, goes),
            volumes: merge::<VolumeSpec>(&self.topology, wanted, goes),
            ports: merge::<PortSpec>(&self.topology, wanted, goes),
        };
        Self {
            topology,
            applied: wanted.objects().collect(),
        }
    }
}

/// What applying `wanted` does to `current`, in the order in which no step is in the way of the next: ports and volumes
/// go before others take their MAC, address or file; networks, address sets and groups come before whoever names them and
/// go after it. Empty when nothing changes. Both must have their cards filled in.
pub fn diff(current: &Current, wanted: &Topology) -> Vec<Change> {
    let (networks_gone, networks) = changes::<NetworkSpec>(current, wanted);
    let (sets_gone, sets) = changes::<AddressSetSpec>(current, wanted);
    let (groups_gone, groups) = changes::<GroupSpec>(current, wanted);
    let (volumes_gone, volumes) = changes::<VolumeSpec>(current, wanted);
    let (ports_gone, ports) = changes::<PortSpec>(current, wanted);
    [
        ports_gone,
        volumes_gone,
        networks,
        sets,
        groups,
        volumes,
        ports,
        groups_gone,
        sets_gone,
        networks_gone,
    ]
    .concat()
}

/// Deletions, and the rest.
fn changes<S: Spec>(current: &Current, wanted: &Topology) -> (Vec<Change>, Vec<Change>) {
    let was: BTreeMap<&Name, &S> = S::all(&current.topology).iter().map(|s| (s.name(), s)).collect();
    let will: BTreeSet<&Name> = S::all(wanted).iter().map(S::name).collect();
    let change = |action, name: &Name, detail| Change {
        action,
        object: TopologyObject::new(S::KIND, name),
        detail,
    };
    let gone = was
        .keys()
        .filter(|name| !will.contains(*name) && current.applied.contains(&TopologyObject::new(S::KIND, name)))
        .map(|name| change(Action::Delete, name, String::new()))
        .collect();
    let made = S::all(wanted)
        .iter()
        .filter_map(|new| match was.get(new.name()) {
            None => Some(change(Action::Create, new.name(), describe(&new.fields()))),
            Some(old) if *old == new => None,
            Some(old) => Some(change(Action::Update, new.name(), new.change_from(old))),
        })
        .collect();
    (gone, made)
}

/// Objects of one kind: those of `wanted`, and of `was` those that neither it replaces nor `goes` names.
fn merge<S: Spec>(was: &Topology, wanted: &Topology, goes: impl Fn(&TopologyObject) -> bool) -> Vec<S> {
    let will: BTreeSet<&Name> = S::all(wanted).iter().map(S::name).collect();
    let stays = |s: &&S| !will.contains(s.name()) && !goes(&TopologyObject::new(S::KIND, s.name()));
    S::all(was)
        .iter()
        .filter(stays)
        .chain(S::all(wanted))
        .cloned()
        .collect()
}

/// What the kinds have in common here.
trait Spec: Clone + PartialEq + 'static {
    const KIND: TopologyKind;
    fn all(topology: &Topology) -> &[Self];
    fn name(&self) -> &Name;
    /// Keys and values beside the name, as people read them.
    fn fields(&self) -> Vec<(&'static str, String)>;
    /// What of `old` is otherwise, as people read it.
    fn change_from(&self, old: &Self) -> String {
        describe_change(&old.fields(), &self.fields())
    }
}

impl Spec for NetworkSpec {
    const KIND: TopologyKind = TopologyKind::Network;
    fn all(topology: &Topology) -> &[Self] {
        &topology.networks
    }
    fn name(&self) -> &Name {
        &self.name
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("subnets", join(&self.subnets)), ("vlan", if_any(self.vlan.as_ref()))]
    }
}

impl Spec for AddressSetSpec {
    const KIND: TopologyKind = TopologyKind::AddressSet;
    fn all(topology: &Topology) -> &[Self] {
        &topology.address_sets
    }
    fn name(&self) -> &Name {
        &self.name
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![("addresses", shorten(&self.addresses, " "))]
    }
    fn change_from(&self, old: &Self) -> String {
        edits(&old.addresses, &self.addresses).unwrap_or_else(|| "another order".to_owned())
    }
}

impl Spec for GroupSpec {
    const KIND: TopologyKind = TopologyKind::Group;
    fn all(topology: &Topology) -> &[Self] {
        &topology.groups
    }
    fn name(&self) -> &Name {
        &self.name
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        let egress = match self.egress {
            Egress::Allow => "allow",
            Egress::Deny => "deny",
        };
        vec![("egress", egress.to_owned()), ("rules", shorten(&self.rules, "; "))]
    }
    fn change_from(&self, old: &Self) -> String {
        let (was, will) = (old.fields(), self.fields());
        let egress = describe_change(&was[..1], &will[..1]);
        let rules = edits::<RuleSpec>(&old.rules, &self.rules);
        match (egress.is_empty(), rules) {
            (true, Some(rules)) => rules,
            (true, None) => "another order of rules".to_owned(),
            (false, Some(rules)) => format!("{egress}, {rules}"),
            (false, None) => egress,
        }
    }
}

impl Spec for VolumeSpec {
    const KIND: TopologyKind = TopologyKind::Volume;
    fn all(topology: &Topology) -> &[Self] {
        &topology.volumes
    }
    fn name(&self) -> &Name {
        &self.name
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("size", self.size.to_string()),
            ("backend", self.backend.to_string()),
            ("read_only", self.read_only.to_string()),
            ("card", join(self.card.as_slice())),
        ]
    }
}

impl Spec for PortSpec {
    const KIND: TopologyKind = TopologyKind::Port;
    fn all(topology: &Topology) -> &[Self] {
        &topology.ports
    }
    fn name(&self) -> &Name {
        &self.name
    }
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("network", self.network.to_string()),
            ("mac", self.mac.to_string()),
            ("addresses", join(&self.addresses)),
            (
                "groups",
                self.groups.as_deref().map_or_else(|| UNFILTERED.to_owned(), join),
            ),
            ("trunk", if_any(self.trunk.as_ref())),
            ("card", join(self.card.as_slice())),
        ]
    }
}

/// What stands for the groups of a port that has no such list.
const UNFILTERED: &str = "unfiltered";

/// Most elements of a list that a line shows.
const SHOWN_MAX: usize = 4;

/// The first few values, and how many more there are.
fn shorten<T: Display>(values: &[T], separator: &str) -> String {
    if values.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = values.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
    let text = shown.join(separator);
    match values.len().saturating_sub(SHOWN_MAX) {
        0 => text,
        more => format!("{text}{separator}… and {more} more"),
    }
}

/// What comes to a list and what leaves it, each marked with its sign; none if only the order changes.
fn edits<T: Display + Eq + Hash>(old: &[T], new: &[T]) -> Option<String> {
    let mut counts: HashMap<&T, usize> = HashMap::with_capacity(old.len());
    old.iter().for_each(|value| *counts.entry(value).or_default() += 1);
    // One fewer of a value that is still there, if any is.
    let mut is_left = |value: &T| {
        counts
            .get_mut(value)
            .filter(|count| **count > 0)
            .map(|count| *count -= 1)
            .is_some()
    };
    let added: Vec<Edit<'_, T>> = new.iter().filter(|value| !is_left(value)).map(Edit::Added).collect();
    let removed = old.iter().filter(|value| is_left(value)).map(Edit::Removed);
    let edits: Vec<Edit<'_, T>> = removed.chain(added).collect();
    (!edits.is_empty()).then(|| shorten(&edits, ", "))
}

/// What became of an element of a list.
enum Edit<'a, T> {
    Removed(&'a T),
    Added(&'a T),
}

impl<T: Display> Display for Edit<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed(value) => write!(f, "- {value}"),
            Self::Added(value) => write!(f, "+ {value}"),
        }
    }
}

fn join<T: Display>(values: &[T]) -> String {
    match values {
        [] => "none".to_owned(),
        _ => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// A value that few objects have: empty where there is none, so that it is not told of those.
fn if_any<T: Display>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn describe(fields: &[(&str, String)]) -> String {
    fields
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key} {value}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn describe_change(old: &[(&str, String)], new: &[(&str, String)]) -> String {
    let changed = old.iter().zip(new).filter(|(o, n)| o != n);
    let shown = |value: &str| if value.is_empty() { "none" } else { value }.to_owned();
    changed
        .map(|((key, o), (_, n))| format!("{key} {} -> {}", shown(o), shown(n)))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
