//! What must hold within one topology, whatever the cards are.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use outboard_protocol::id::{MacAddr, Name};

use super::{Problem, Topology, TopologyError, TopologyKind, TopologyObject};
use crate::{
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
        let networks = self.networks.iter().map(|n| (&n.name, n)).collect();
        let mut claims = Claims::default();
        for port in &self.ports {
            check_port(port, &networks)
                .and_then(|()| claims.claim(port))
                .map_err(about(TopologyKind::Port, &port.name))?;
        }
        Ok(())
    }
}

fn check_network(network: &NetworkSpec) -> Result<(), Problem> {
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
