//! Making the next policy out of a policy and what changed.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    AddressSet, Change, Group, GroupMembers, Name, Peer, Policy, PolicyError, Port, Rule, RuleName,
    group::{Compiled, PeerName, rule_name},
    limits,
    members::Members,
    policy::{Bound, CompiledPort, CompiledSet, Filter, GroupId, NetworkId, PeerId},
};

/// A policy in the making.
pub(crate) struct Draft {
    next: Policy,
    /// Groups whose rules mean something else now, and removed ones.
    changed_groups: HashSet<GroupId>,
    removed_groups: HashSet<GroupId>,
    removed_sets: bool,
    /// Addresses that are others now.
    changed_peers: HashSet<PeerId>,
    /// Groups in networks in which ports came, went or changed their addresses.
    touched: HashSet<(NetworkId, Name)>,
    /// Ports were removed, or have other groups or another network now.
    regrouped: bool,
}

impl Draft {
    pub(crate) fn of(policy: &Policy) -> Self {
        let mut next = policy.clone();
        next.version += 1;
        Self {
            next,
            changed_groups: HashSet::new(),
            removed_groups: HashSet::new(),
            removed_sets: false,
            changed_peers: HashSet::new(),
            touched: HashSet::new(),
            regrouped: false,
        }
    }

    /// One change of each object at most.
    pub(crate) fn apply<'a>(
        mut self,
        changes: impl Iterator<Item = &'a Change> + Clone,
    ) -> Result<Policy, PolicyError> {
        // What ports refer to comes first; and numbers of what goes are not given to what comes.
        let (mut puts, mut members, mut removals) = (Vec::new(), Vec::new(), Vec::new());
        for change in changes {
            match change {
                Change::PutGroup(group) => self.put_group(group)?,
                Change::PutAddressSet(set) => self.put_set(set)?,
                Change::PutPort(port) => puts.push(port),
                Change::PutMembers(record) => members.push(record),
                _ => removals.push(change),
            }
        }
        for port in puts {
            self.put_port(port)?;
        }
        for removal in removals {
            self.remove(removal);
        }
        for record in members {
            self.put_members(record)?;
        }
        self.check_references()?;
        self.check_sizes()?;
        self.bind();
        self.find_members();
        self.bring_peers();
        self.check_peers()?;
        self.raise_epochs();
        Ok(self.next)
    }

    fn put_group(&mut self, group: &Arc<Group>) -> Result<(), PolicyError> {
        check_name("group", &group.name)?;
        let compiled = Arc::new(Compiled::new(group)?);
        let former = self.next.groups.by_key(&group.name);
        // With equal results the former numbers, addresses and epochs hold; only what people are shown is new.
        let same = former.is_some_and(|(_, former)| former.same_result(&compiled));
        let id = self.next.groups.put(group.name.clone(), compiled);
        if !same {
            self.changed_groups.insert(id);
        }
        Ok(())
    }

    fn put_set(&mut self, set: &Arc<AddressSet>) -> Result<(), PolicyError> {
        check_name("address set", &set.name)?;
        if set.entries.len() > limits::ADDRESS_SET_ENTRIES_MAX {
            return Err(PolicyError::TooMany {
                of: format!("address set '{}' has", set.name),
                count: set.entries.len(),
                what: "entries",
                max: limits::ADDRESS_SET_ENTRIES_MAX,
                remedy: "write neighbouring addresses as ranges, or divide the set",
            });
        }
        let mut members = Arc::new(Members::of_ranges(set.entries.iter()));
        let former = self.next.sets.by_key(&set.name);
        let unchanged = former.filter(|(_, former)| former.members == members);
        if let Some((_, former)) = unchanged {
            members = former.members.clone();
        }
        let same = unchanged.is_some();
        let source = set.clone();
        self.next
            .sets
            .put(set.name.clone(), Arc::new(CompiledSet { source, members }));
        if !same {
            self.changed_peers.insert(PeerId::AddressSet(set.name.clone()));
        }
        Ok(())
    }

    fn put_port(&mut self, port: &Arc<Port>) -> Result<(), PolicyError> {
        check_name("port", &port.name)?;
        check_name("network", &port.network)?;
        if port.addresses.len() > limits::ADDRESSES_PER_PORT_MAX {
            return Err(PolicyError::TooMany {
                of: format!("port '{}' has", port.name),
                count: port.addresses.len(),
                what: "addresses",
                max: limits::ADDRESSES_PER_PORT_MAX,
                remedy: "take some away",
            });
        }
        let network = match self.next.networks.id(&port.network) {
            Some(network) => network,
            None => self.next.networks.put(port.network.clone(), port.network.clone()),
        };
        let groups = port
            .groups
            .as_ref()
            .map(|names| self.groups_of(port, names))
            .transpose()?;
        let former = self.next.ports.by_key(&port.name).map(|(_, former)| former.clone());
        let same_groups = former.as_ref().is_some_and(|former| {
            former.network == network && former.filter.as_ref().map(|filter| &filter.groups) == groups.as_ref()
        });
        let same_addresses = former.as_ref().is_some_and(|f| f.source.addresses == port.addresses);
        if !(same_groups && same_addresses) {
            if let Some(former) = &former {
                self.touch(former);
            }
            let groups = port.groups.iter().flatten();
            self.touched.extend(groups.map(|group| (network, group.clone())));
        }
        self.regrouped |= !same_groups;
        let epoch = match &former {
            Some(former) if same_groups => former.epoch,
            _ => self.next.version,
        };
        let filter = groups.map(|groups| Filter {
            bound: groups.iter().map(|group| self.bound(network, *group)).collect(),
            groups,
        });
        let source = port.clone();
        let compiled = CompiledPort {
            source,
            network,
            filter,
            epoch,
        };
        self.next.ports.put(port.name.clone(), Arc::new(compiled));
        Ok(())
    }

    fn groups_of(&self, port: &Port, names: &[Name]) -> Result<Box<[GroupId]>, PolicyError> {
        if names.len() > limits::GROUPS_PER_PORT_MAX {
            return Err(PolicyError::TooMany {
                of: format!("port '{}' has", port.name),
                count: names.len(),
                what: "groups",
                max: limits::GROUPS_PER_PORT_MAX,
                remedy: "merge groups",
            });
        }
        let mut groups = Vec::with_capacity(names.len());
        for name in names {
            let id = self.next.groups.id(name).ok_or_else(|| PolicyError::NoSuchGroup {
                port: port.name.clone(),
                group: name.clone(),
            })?;
            if !groups.contains(&id) {
                groups.push(id);
            }
        }
        Ok(groups.into())
    }

    /// The number of a group in a network.
    fn bound(&mut self, network: NetworkId, group: GroupId) -> u32 {
        let known = self.next.bound.id(&(network, group));
        match (known, self.next.groups.get(group)) {
            (None, Some(compiled)) => {
                let bound = Bound {
                    network,
                    group,
                    compiled: compiled.clone(),
                    peers: Box::default(),
                    members: Box::default(),
                    epoch: 0,
                };
                self.next.bound.put((network, group), Arc::new(bound))
            }
            (known, _) => known.unwrap_or(u32::MAX),
        }
    }

    fn touch(&mut self, port: &CompiledPort) {
        let groups = port.source.groups.iter().flatten();
        self.touched.extend(groups.map(|group| (port.network, group.clone())));
    }

    fn put_members(&mut self, record: &Arc<GroupMembers>) -> Result<(), PolicyError> {
        if record.addresses.len() > limits::MEMBER_ADDRESSES_MAX {
            return Err(PolicyError::TooMany {
                of: format!("group '{}' has in network '{}'", record.group, record.network),
                count: record.addresses.len(),
                what: "members' addresses",
                max: limits::MEMBER_ADDRESSES_MAX,
                remedy: "give its ports another group, or write the rules with address ranges",
            });
        }
        let key = (record.network.clone(), record.group.clone());
        Arc::make_mut(&mut self.next.elsewhere).insert(key, record.clone());
        self.touch_members(&record.network, &record.group);
        Ok(())
    }

    fn touch_members(&mut self, network: &Name, group: &Name) {
        if let Some(network) = self.next.networks.id(network) {
            self.touched.insert((network, group.clone()));
        }
    }

    fn remove(&mut self, change: &Change) {
        match change {
            Change::RemoveGroup(name) => {
                if let Some((id, _)) = self.next.groups.remove(name) {
                    self.removed_groups.insert(id);
                }
            }
            Change::RemoveAddressSet(name) => self.removed_sets |= self.next.sets.remove(name).is_some(),
            Change::RemovePort(name) => {
                if let Some((_, port)) = self.next.ports.remove(name) {
                    self.touch(&port);
                    self.regrouped = true;
                }
            }
            Change::RemoveMembers { group, network } => {
                let key = (network.clone(), group.clone());
                if self.next.elsewhere.contains_key(&key) {
                    Arc::make_mut(&mut self.next.elsewhere).remove(&key);
                    self.touch_members(network, group);
                }
            }
            Change::PutGroup(_) | Change::PutAddressSet(_) | Change::PutPort(_) | Change::PutMembers(_) => {}
        }
    }

    /// Whatever is named must be there.
    fn check_references(&self) -> Result<(), PolicyError> {
        let next = &self.next;
        if !self.removed_groups.is_empty() {
            for (_, port) in next.ports.iter() {
                if let Some(place) = port.groups().iter().position(|id| self.removed_groups.contains(id)) {
                    let mut named = Vec::<&Name>::new();
                    for name in port.source.groups.iter().flatten() {
                        if !named.contains(&name) {
                            named.push(name);
                        }
                    }
                    return Err(PolicyError::NoSuchGroup {
                        port: port.source.name.clone(),
                        group: named.get(place).copied().cloned().unwrap_or_else(|| Name::from("")),
                    });
                }
            }
        }
        for (id, group) in next.groups.iter() {
            if !self.removed_sets && !self.changed_groups.contains(&id) {
                continue;
            }
            for peer in &group.peers {
                if let PeerName::AddressSet(name) = peer
                    && next.sets.id(name).is_none()
                {
                    return Err(PolicyError::NoSuchAddressSet {
                        rule: RuleName(naming(&group.source, name)),
                        set: name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), PolicyError> {
        let next = &self.next;
        let rules = next.groups.iter().map(|(_, group)| group.source.rules.len()).sum();
        for (count, what, max) in [
            (next.groups.len(), "groups", limits::GROUPS_MAX),
            (next.sets.len(), "address sets", limits::ADDRESS_SETS_MAX),
            (next.ports.len(), "ports", limits::PORTS_MAX),
            (rules, "rules in all groups", limits::RULES_MAX),
            (next.elsewhere.len(), "records of members", limits::MEMBER_RECORDS_MAX),
        ] {
            if count > max {
                return Err(PolicyError::TooMany {
                    of: "there are".into(),
                    count,
                    what,
                    max,
                    remedy: "remove those that are not used, or place ports on another card",
                });
            }
        }
        Ok(())
    }

    /// Forgets groups in networks, and networks, that no port has any more.
    fn bind(&mut self) {
        if !self.regrouped {
            return;
        }
        let next = &mut self.next;
        let mut used = vec![false; next.bound.end()];
        let mut inhabited = vec![false; next.networks.end()];
        for (_, port) in next.ports.iter() {
            mark(&mut inhabited, port.network);
            for id in port.filter.iter().flat_map(|filter| &filter.bound) {
                mark(&mut used, *id);
            }
        }
        let unused = next.bound.iter().filter(|(id, _)| !marked(&used, *id));
        let unused: Vec<_> = unused.map(|(_, bound)| (bound.network, bound.group)).collect();
        for key in unused {
            next.bound.remove(&key);
        }
        let empty = next.networks.keys();
        let empty: Vec<_> = empty
            .filter(|name| next.networks.id(&**name).is_some_and(|id| !marked(&inhabited, id)))
            .cloned()
            .collect();
        for name in empty {
            next.networks.remove(&name);
        }
    }

    /// Brings the addresses of groups that rules name up to date.
    fn find_members(&mut self) {
        let next = &mut self.next;
        let wanted: Vec<(NetworkId, Name)> = if self.regrouped || !self.changed_groups.is_empty() {
            let mut named = HashSet::new();
            for (_, bound) in next.bound.iter() {
                let peers = next.groups.get(bound.group).into_iter().flat_map(|group| &group.peers);
                named.extend(peers.filter_map(|peer| match peer {
                    PeerName::Group(name) => Some((bound.network, name.clone())),
                    PeerName::AddressSet(_) => None,
                }));
            }
            if next.remote.keys().any(|key| !named.contains(key)) {
                Arc::make_mut(&mut next.remote).retain(|key, _| named.contains(key));
            }
            let stale = |key: &(_, _)| self.touched.contains(key) || !next.remote.contains_key(key);
            named.into_iter().filter(stale).collect()
        } else {
            self.touched
                .iter()
                .filter(|key| next.remote.contains_key(key))
                .cloned()
                .collect()
        };
        let addresses = addresses(next, &wanted).into_iter();
        let members: Vec<Members> = addresses.map(|all| Members::of_addresses(all.into_iter())).collect();
        for (key, members) in wanted.into_iter().zip(members) {
            if next.remote.get(&key).is_none_or(|former| **former != members) {
                Arc::make_mut(&mut next.remote).insert(key.clone(), Arc::new(members));
                self.changed_peers.insert(PeerId::Group(key.0, key.1));
            }
        }
    }

    /// Gives the groups in networks what changed of their rules and of the addresses that these name.
    fn bring_peers(&mut self) {
        let next = &mut self.next;
        let stale = next.bound.iter().filter(|(_, bound)| {
            bound.epoch == 0
                || self.changed_groups.contains(&bound.group)
                || bound.peers.iter().any(|peer| self.changed_peers.contains(peer))
        });
        let stale: Vec<u32> = stale.map(|(id, _)| id).collect();
        for id in stale {
            let Some(bound) = next.bound.get(id) else { continue };
            let Some(compiled) = next.groups.get(bound.group) else {
                continue;
            };
            let (mut peers, mut members) = (Vec::new(), Vec::new());
            for peer in &compiled.peers {
                let (id, addresses) = match peer {
                    PeerName::Group(name) => {
                        let key = (bound.network, name.clone());
                        let addresses = next.remote.get(&key).cloned();
                        (PeerId::Group(key.0, key.1), addresses)
                    }
                    PeerName::AddressSet(name) => {
                        let addresses = next.sets.by_key(name).map(|(_, set)| set.members.clone());
                        (PeerId::AddressSet(name.clone()), addresses)
                    }
                };
                peers.push(id);
                members.push(addresses.unwrap_or_default());
            }
            let fresh = Bound {
                network: bound.network,
                group: bound.group,
                compiled: compiled.clone(),
                peers: peers.into(),
                members: members.into(),
                epoch: next.version,
            };
            if let Some(place) = next.bound.get_mut(id) {
                *place = Arc::new(fresh);
            }
        }
    }

    fn check_peers(&self) -> Result<(), PolicyError> {
        if !self.regrouped && self.changed_groups.is_empty() {
            return Ok(());
        }
        for (_, port) in self.next.ports.iter() {
            let groups = port.groups().iter().filter_map(|id| self.next.groups.get(*id));
            let count = groups.map(|group| group.peers.len()).sum();
            if count > limits::PEERS_PER_PORT_MAX {
                return Err(PolicyError::TooMany {
                    of: format!("the rules of port '{}' name", port.source.name),
                    count,
                    what: "groups and address sets",
                    max: limits::PEERS_PER_PORT_MAX,
                    remedy: "take groups from the port, or put the addresses of several sets into one",
                });
            }
        }
        Ok(())
    }

    fn raise_epochs(&mut self) {
        let next = &mut self.next;
        let mut epochs = vec![0; next.ports.end()];
        for (id, port) in next.ports.iter() {
            let groups = port.filter.iter().flat_map(|filter| &filter.bound);
            let groups = groups.filter_map(|id| next.bound.get(*id)).map(|bound| bound.epoch);
            if let Some(epoch) = epochs.get_mut(id as usize) {
                *epoch = groups.fold(port.epoch, u64::max);
            }
        }
        next.epochs = epochs;
    }
}

fn mark(marks: &mut [bool], id: u32) {
    if let Some(mark) = marks.get_mut(id as usize) {
        *mark = true;
    }
}

fn marked(marks: &[bool], id: u32) -> bool {
    marks.get(id as usize) == Some(&true)
}

fn check_name(kind: &'static str, name: &Name) -> Result<(), PolicyError> {
    if name.is_empty() || name.len() > limits::NAME_LEN_MAX {
        return Err(PolicyError::BadName {
            kind,
            name: name.clone(),
        });
    }
    Ok(())
}

/// The addresses of the members of groups in networks, in the same order, from here and elsewhere.
fn addresses<'a>(policy: &'a Policy, wanted: &[(NetworkId, Name)]) -> Vec<Vec<&'a IpAddr>> {
    let told = wanted.iter().map(|(network, group)| {
        let network = policy.networks.get(*network)?;
        policy.elsewhere.get(&(network.clone(), group.clone()))
    });
    let mut found: Vec<Vec<&IpAddr>> = told
        .map(|told| told.iter().flat_map(|told| &told.addresses).collect())
        .collect();
    let mut is_wanted = vec![false; policy.groups.end()];
    let mut places = HashMap::new();
    for (place, (network, name)) in wanted.iter().enumerate() {
        if let Some(group) = policy.groups.id(name) {
            mark(&mut is_wanted, group);
            places.insert((*network, group), place);
        }
    }
    if places.is_empty() {
        return found;
    }
    for (_, port) in policy.ports.iter() {
        for group in port.groups().iter().filter(|group| marked(&is_wanted, **group)) {
            let place = places.get(&(port.network, *group));
            if let Some(found) = place.and_then(|place| found.get_mut(*place)) {
                found.extend(&port.source.addresses);
            }
        }
    }
    found
}

/// The first rule of a group that names the address set.
fn naming(group: &Group, set: &Name) -> String {
    let names_it = |rule: &&Rule| matches!(&rule.peer, Peer::AddressSet(name) if name == set);
    let rule = group.rules.iter().find(names_it);
    rule.map_or_else(|| group.name.to_string(), |rule| rule_name(group, rule))
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
