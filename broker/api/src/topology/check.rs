//! What must hold within one topology, whatever the cards are.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use outboard_protocol::{
    desired::{
        ENTRIES_PER_SET_MAX, GROUPS_PER_PORT_MAX, PEERS_PER_GROUP_MAX, PEERS_PER_PORT_MAX, RULES_PER_GROUP_MAX,
        VLAN_IDS,
    },
    id::{MacAddr, Name},
};

use super::{Problem, RuleFault, Topology, TopologyError, TopologyKind, TopologyObject, trunk::Trunks};
use crate::{
    group::GroupSpec,
    network::NetworkSpec,
    port::PortSpec,
    volume::{Backend, SECTOR_LEN_BYTES, VolumeSpec},
};

impl Topology {
    /// Checks what types cannot: names, MACs and addresses are unique where they must be, references resolve, sizes
    /// and addresses are usable.
    ///
    /// # Errors
    /// The first problem found, naming its object.
    pub fn check(&self) -> Result<(), TopologyError> {
        let mut seen = HashSet::new();
        if let Some(twice) = self.objects().find(|object| !seen.insert(object.clone())) {
            return Err(TopologyError::about(twice, Problem::DuplicateName));
        }
        let about = |kind, name: &Name| {
            let object = TopologyObject::new(kind, name);
            |problem| TopologyError::about(object, problem)
        };
        for network in &self.networks {
            check_network(network).map_err(about(TopologyKind::Network, &network.name))?;
        }
        let mut files = Files::default();
        for volume in &self.volumes {
            check_volume(volume)
                .and_then(|()| files.claim(volume))
                .map_err(about(TopologyKind::Volume, &volume.name))?;
        }
        for set in &self.address_sets {
            at_most("addresses", set.addresses.len(), ENTRIES_PER_SET_MAX)
                .map_err(about(TopologyKind::AddressSet, &set.name))?;
        }
        let sets: HashSet<&Name> = self.address_sets.iter().map(|s| &s.name).collect();
        let groups: HashMap<&Name, usize> = self.groups.iter().map(|g| (&g.name, peers(g))).collect();
        for group in &self.groups {
            check_group(group, &groups, &sets).map_err(about(TopologyKind::Group, &group.name))?;
        }
        let networks: HashMap<&Name, &NetworkSpec> = self.networks.iter().map(|n| (&n.name, n)).collect();
        let mut claims = Claims::default();
        let mut trunks = Trunks::new(&self.ports);
        for port in &self.ports {
            check_port(port, &networks)
                .and_then(|()| check_groups(port, &groups))
                .and_then(|()| claims.claim(port))
                .and_then(|()| trunks.claim(port, networks.get(&port.network).copied()))
                .map_err(about(TopologyKind::Port, &port.name))?;
        }
        Ok(())
    }
}

fn check_network(network: &NetworkSpec) -> Result<(), Problem> {
    network.vlan.map_or(Ok(()), check_vlan)?;
    for (i, subnet) in network.subnets.iter().enumerate() {
        if let Some(other) = network.subnets[..i].iter().find(|other| other.overlaps(subnet)) {
            return Err(Problem::OverlappingSubnets(*other, *subnet));
        }
    }
    Ok(())
}

fn check_volume(volume: &VolumeSpec) -> Result<(), Problem> {
    let bytes = volume.size.bytes();
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_LEN_BYTES) {
        return Err(Problem::UnusableSize(bytes));
    }
    Ok(())
}

fn check_port(port: &PortSpec, networks: &HashMap<&Name, &NetworkSpec>) -> Result<(), Problem> {
    if port.mac.is_multicast() || port.mac == MacAddr([0; 6]) {
        return Err(Problem::UnusableMac(port.mac));
    }
    let network = networks
        .get(&port.network)
        .ok_or_else(|| Problem::UnknownNetwork(port.network.clone()))?;
    let usable = |address: IpAddr| network.subnets.iter().any(|s| s.usable(address)) && !address.is_multicast();
    match port.addresses.iter().find(|address| !usable(**address)) {
        None => Ok(()),
        Some(address) => Err(Problem::AddressOutside {
            address: *address,
            network: network.name.clone(),
            subnets: network.subnets.clone(),
        }),
    }
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), Problem> {
    if count > max {
        return Err(Problem::TooMany { what, count, max });
    }
    Ok(())
}

/// How many different groups and address sets a group's rules name.
fn peers(group: &GroupSpec) -> usize {
    let rules = || group.rules.iter();
    let groups: HashSet<&Name> = rules().filter_map(|r| r.group.as_ref()).collect();
    let sets: HashSet<&Name> = rules().filter_map(|r| r.address_set.as_ref()).collect();
    groups.len() + sets.len()
}

fn check_group(group: &GroupSpec, groups: &HashMap<&Name, usize>, sets: &HashSet<&Name>) -> Result<(), Problem> {
    at_most("rules", group.rules.len(), RULES_PER_GROUP_MAX)?;
    let mut names = HashSet::new();
    for (index, rule) in group.rules.iter().enumerate() {
        let wrong = |fault| Problem::Rule { index, fault };
        rule.check().map_err(|contradiction| wrong(contradiction.into()))?;
        if let Some(name) = rule.group.as_ref().filter(|name| !groups.contains_key(name)) {
            return Err(wrong(RuleFault::UnknownGroup(name.clone())));
        }
        if let Some(name) = rule.address_set.as_ref().filter(|name| !sets.contains(name)) {
            return Err(wrong(RuleFault::UnknownAddressSet(name.clone())));
        }
        if let Some(name) = rule.name.as_ref().filter(|name| !names.insert(*name)) {
            return Err(wrong(RuleFault::DuplicateName(name.clone())));
        }
    }
    at_most(
        "groups and address sets that its rules name",
        peers(group),
        PEERS_PER_GROUP_MAX,
    )
}

fn check_groups(port: &PortSpec, groups: &HashMap<&Name, usize>) -> Result<(), Problem> {
    let named = port.groups.as_deref().unwrap_or_default();
    at_most("groups", named.len(), GROUPS_PER_PORT_MAX)?;
    let (mut seen, mut peers) = (HashSet::new(), 0);
    for name in named {
        peers += groups.get(name).ok_or_else(|| Problem::UnknownGroup(name.clone()))?;
        if !seen.insert(name) {
            return Err(Problem::RepeatedGroup(name.clone()));
        }
    }
    at_most(
        "groups and address sets that its groups' rules name",
        peers,
        PEERS_PER_PORT_MAX,
    )
}

/// A VLAN id that frames can have.
pub(super) fn check_vlan(vlan: u16) -> Result<(), Problem> {
    if VLAN_IDS.contains(&vlan) {
        return Ok(());
    }
    Err(Problem::UnusableVlan(vlan))
}

/// Which port of a network has which MAC and address.
#[derive(Default)]
struct Claims<'a> {
    macs: HashMap<(&'a Name, MacAddr), &'a Name>,
    addresses: HashMap<(&'a Name, IpAddr), &'a Name>,
}

impl<'a> Claims<'a> {
    fn claim(&mut self, port: &'a PortSpec) -> Result<(), Problem> {
        let network = &port.network;
        if let Some(other) = self.macs.insert((network, port.mac), &port.name) {
            return Err(Problem::DuplicateMac {
                mac: port.mac,
                other: other.clone(),
                network: network.clone(),
            });
        }
        for address in &port.addresses {
            if let Some(other) = self.addresses.insert((network, *address), &port.name) {
                let (address, other, network) = (*address, other.clone(), network.clone());
                return Err(Problem::DuplicateAddress {
                    address,
                    other,
                    network,
                });
            }
        }
        Ok(())
    }
}

/// Which volume of a card has which file, and whether one of them writes. The paths are compared as written: the
/// files are on the card, which finds two names of one file by its lock.
#[derive(Default)]
struct Files<'a> {
    files: HashMap<(Option<&'a Name>, &'a str), (&'a Name, bool)>,
}

impl<'a> Files<'a> {
    fn claim(&mut self, volume: &'a VolumeSpec) -> Result<(), Problem> {
        let Backend::File(path) = &volume.backend else {
            return Ok(());
        };
        let key = (volume.card.as_ref(), path.as_str());
        match self.files.get(&key) {
            Some((other, other_writes)) if *other_writes || !volume.read_only => Err(Problem::SharedFile {
                path: path.clone(),
                other: (*other).clone(),
            }),
            _ => {
                self.files.insert(key, (&volume.name, !volume.read_only));
                Ok(())
            }
        }
    }
}
