//! What changes from one policy to the next, told or found out.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{AddressSet, Group, GroupMembers, Name, Policy, PolicyError, Port, Spec, update::Draft};

/// One object added, replaced or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A group, new or in place of the one of its name.
    PutGroup(Arc<Group>),
    /// The group of that name is gone. Nothing may refer to it then.
    RemoveGroup(Name),
    /// An address set, new or in place of the one of its name.
    PutAddressSet(Arc<AddressSet>),
    /// The address set of that name is gone. Nothing may refer to it then.
    RemoveAddressSet(Name),
    /// A port, new or in place of the one of its name.
    PutPort(Arc<Port>),
    /// The port of that name is gone.
    RemovePort(Name),
    /// Members of a group in a network, in place of what was told of them.
    PutMembers(Arc<GroupMembers>),
    /// Nothing is told any more of the members of a group in a network.
    RemoveMembers {
        /// The group.
        group: Name,
        /// The network.
        network: Name,
    },
}

impl Policy {
    /// Compiles a specification. A port's number is its place in it.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn compile(spec: &Spec) -> Result<Self, PolicyError> {
        Self::default().follow(spec)
    }

    /// The policy after `changes`, which take effect together: only what they lead to has to make sense. Of several
    /// changes of one object the last one counts, and removing what is not there changes nothing.
    ///
    /// # Errors
    /// See [`PolicyError`]; this policy stays as it is in any case.
    pub fn update(&self, changes: &[Change]) -> Result<Self, PolicyError> {
        let mut last = HashMap::new();
        for (place, change) in changes.iter().enumerate() {
            last.insert(change.object(), place);
        }
        let effective = changes.iter().enumerate();
        let effective = effective.filter(|(place, change)| last.get(&change.object()) == Some(place));
        Draft::of(self).apply(effective.map(|(_, change)| change))
    }

    /// The policy of `spec`, made out of this one: what is the same is not compiled again.
    ///
    /// # Errors
    /// See [`PolicyError`]; this policy stays as it is in any case.
    pub fn follow(&self, spec: &Spec) -> Result<Self, PolicyError> {
        let groups = names("group", spec.groups.iter().map(|group| &group.name))?;
        let sets = names("address set", spec.address_sets.iter().map(|set| &set.name))?;
        let ports = names("port", spec.ports.iter().map(|port| &port.name))?;
        let mut members = HashSet::new();
        for record in &spec.members {
            if !members.insert((&record.network, &record.group)) {
                return Err(PolicyError::MembersTwice {
                    group: record.group.clone(),
                    network: record.network.clone(),
                });
            }
        }
        let mut changes = Vec::new();
        for group in &spec.groups {
            if !self
                .groups
                .by_key(&group.name)
                .is_some_and(|(_, old)| same(&old.source, group))
            {
                changes.push(Change::PutGroup(group.clone()));
            }
        }
        for set in &spec.address_sets {
            if !self
                .sets
                .by_key(&set.name)
                .is_some_and(|(_, old)| same(&old.source, set))
            {
                changes.push(Change::PutAddressSet(set.clone()));
            }
        }
        for port in &spec.ports {
            if !self
                .ports
                .by_key(&port.name)
                .is_some_and(|(_, old)| same(&old.source, port))
            {
                changes.push(Change::PutPort(port.clone()));
            }
        }
        for record in &spec.members {
            let former = self.elsewhere.get(&(record.network.clone(), record.group.clone()));
            if !former.is_some_and(|former| same(former, record)) {
                changes.push(Change::PutMembers(record.clone()));
            }
        }
        let removed = self.elsewhere.keys();
        let removed = removed
            .filter(|(network, group)| !members.contains(&(network, group)))
            .cloned();
        changes.extend(removed.map(|(network, group)| Change::RemoveMembers { group, network }));
        let gone = |name: &&Name, kept: &HashSet<&Name>| !kept.contains(name);
        let removed = self.groups.keys().filter(|name| gone(name, &groups)).cloned();
        changes.extend(removed.map(Change::RemoveGroup));
        let removed = self.sets.keys().filter(|name| gone(name, &sets)).cloned();
        changes.extend(removed.map(Change::RemoveAddressSet));
        let removed = self.ports.keys().filter(|name| gone(name, &ports)).cloned();
        changes.extend(removed.map(Change::RemovePort));
        Draft::of(self).apply(changes.iter())
    }
}

/// Equal: looked at only where they are not one and the same.
fn same<T: PartialEq>(one: &Arc<T>, other: &Arc<T>) -> bool {
    Arc::ptr_eq(one, other) || one == other
}

fn names<'a>(kind: &'static str, names: impl Iterator<Item = &'a Name>) -> Result<HashSet<&'a Name>, PolicyError> {
    let mut all = HashSet::new();
    for name in names {
        if !all.insert(name) {
            return Err(PolicyError::Twice {
                kind,
                name: name.clone(),
            });
        }
    }
    Ok(all)
}

impl Change {
    /// Its kind and name, and of members the network.
    fn object(&self) -> (&'static str, &str, &str) {
        match self {
            Self::PutGroup(group) => ("group", &group.name, ""),
            Self::RemoveGroup(name) => ("group", name, ""),
            Self::PutAddressSet(set) => ("address set", &set.name, ""),
            Self::RemoveAddressSet(name) => ("address set", name, ""),
            Self::PutPort(port) => ("port", &port.name, ""),
            Self::RemovePort(name) => ("port", name, ""),
            Self::PutMembers(members) => ("members", &members.group, &members.network),
            Self::RemoveMembers { group, network } => ("members", group, network),
        }
    }
}
