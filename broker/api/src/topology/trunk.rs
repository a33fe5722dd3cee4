//! Subports: each has a parent with a device, on its own card, and a VLAN id of its own there.

use std::collections::HashMap;

use outboard_protocol::id::Name;

use super::{Problem, check::check_vlan};
use crate::{network::NetworkSpec, port::PortSpec};

/// What subports may refer to, and which VLAN ids are taken.
pub(super) struct Trunks<'a> {
    ports: HashMap<&'a Name, &'a PortSpec>,
    vlans: HashMap<(&'a Name, u16), &'a Name>,
}

impl PortSpec {
    /// The VLAN id that a subport's frames have at its parent's device: its own, or its network's.
    pub fn vlan(&self, network: Option<&NetworkSpec>) -> Option<u16> {
        self.trunk.as_ref()?.vlan.or(network?.vlan)
    }
}

impl<'a> Trunks<'a> {
    pub(super) fn new(ports: &'a [PortSpec]) -> Self {
        Self {
            ports: ports.iter().map(|port| (&port.name, port)).collect(),
            vlans: HashMap::new(),
        }
    }

    /// Checks a port, whose network is this.
    pub(super) fn claim(&mut self, port: &'a PortSpec, network: Option<&NetworkSpec>) -> Result<(), Problem> {
        let Some(trunk) = &port.trunk else { return Ok(()) };
        let name = &trunk.parent;
        let parent = self
            .ports
            .get(name)
            .ok_or_else(|| Problem::UnknownParent(name.clone()))?;
        if parent.trunk.is_some() {
            return Err(Problem::ParentIsSubport(name.clone()));
        }
        if let (Some(own), Some(other)) = (&port.card, &parent.card)
            && own != other
        {
            return Err(Problem::ParentElsewhere {
                parent: name.clone(),
                card: other.clone(),
            });
        }
        let vlan = port
            .vlan(network)
            .ok_or_else(|| Problem::NoVlan(port.network.clone()))?;
        check_vlan(vlan)?;
        match self.vlans.insert((name, vlan), &port.name) {
            None => Ok(()),
            Some(other) => Err(Problem::DuplicateVlan {
                vlan,
                other: other.clone(),
                parent: name.clone(),
            }),
        }
    }
}
