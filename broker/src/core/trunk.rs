//! Subports: ports without a device, which the device of their parent carries.
//!
//! A subport is where its parent is and granted to the same host; whether it is granted is its own affair. Its binding is
//! for one parent: with another one it is a new binding.

use std::collections::{BTreeMap, BTreeSet};

use outboard_api::port::PortSpec;
use outboard_controls::{Check, on};
use outboard_protocol::{
    desired::Trunk,
    id::{FunctionKind, Name, ObjectKind, ObjectRef},
    refusal::{Code, Refusal},
};

use super::{Draft, Failure, policy};
use crate::inventory::{Action, Inventory, PortRecord, Record};

/// What a card is told of a subport; none of a port that has a device.
pub fn desired_trunk(inventory: &Inventory, spec: &PortSpec) -> Option<Trunk> {
    let parent = spec.trunk.as_ref()?.parent.clone();
    Some(Trunk {
        parent,
        vlan: vlan(inventory, spec)?,
    })
}

/// The VLAN id that a subport has at its parent.
pub fn vlan(inventory: &Inventory, spec: &PortSpec) -> Option<u16> {
    spec.vlan(inventory.networks.get(&spec.network).map(|n| &n.spec))
}

/// The subports of a port.
pub fn subports<'a>(inventory: &'a Inventory, parent: &'a Name) -> impl Iterator<Item = &'a PortRecord> {
    let is_its = |port: &&PortRecord| port.spec.trunk.as_ref().is_some_and(|trunk| trunk.parent == *parent);
    inventory.ports.values().filter(is_its)
}

/// Why the broker does not tell a subport's card of it: it does not know trunks, and would take the subport for a port
/// with a device.
pub fn withheld(inventory: &Inventory, port: &PortRecord) -> Option<Refusal> {
    port.spec.trunk.as_ref()?;
    let card = inventory.cards.get(&port.placement.card)?;
    (!card.knows_trunks() && on(Check::FilteredPlacement)).then(|| {
        let text = format!(
            "port {} is a subport, and {}: {}",
            port.spec.name,
            policy::too_old(card, "trunks"),
            policy::newer(card)
        );
        Refusal::new(Code::Unavailable, text)
    })
}

/// Refuses to place a subport on a card that does not know trunks.
pub fn check_card(inventory: &Inventory, wanted: &PortSpec) -> Result<(), Failure> {
    let card = wanted.card.as_ref().and_then(|name| inventory.cards.get(name));
    let Some(card) = card.filter(|card| wanted.trunk.is_some() && !card.knows_trunks()) else {
        return Ok(());
    };
    if inventory.ports.get(&wanted.name).is_some_and(|p| p.spec == *wanted) {
        return Ok(());
    }
    let object = format!("port {}", wanted.name);
    let message = format!("{object} is a subport, and {}", policy::too_old(card, "trunks"));
    Err(Failure::about(
        409,
        "card_too_old",
        object,
        message,
        policy::newer(card),
    ))
}

/// Puts subports where their parents are, for their hosts.
pub fn follow_parents(draft: &mut Draft<'_>) {
    let moved: Vec<PortRecord> = draft
        .ports
        .values()
        .filter_map(|port| {
            let parent = &draft.ports.get(&port.spec.trunk.as_ref()?.parent)?.placement;
            let differs = port.placement.host != parent.host || port.placement.card != parent.card;
            differs.then(|| {
                let mut port = port.clone();
                (port.placement.host, port.placement.card) = (parent.host.clone(), parent.card.clone());
                port
            })
        })
        .collect();
    for port in moved {
        draft.apply(Action::Put(Record::Port(port)));
    }
}

/// Which kind of function an object takes.
pub fn function_kind(inventory: &Inventory, object: &ObjectRef) -> FunctionKind {
    let port = inventory.ports.get(&object.name);
    let port = port.filter(|port| object.kind == ObjectKind::Port && port.spec.trunk.is_some());
    port.map_or(FunctionKind::VhostUser, |_| FunctionKind::Subport)
}

/// The parent of an object, if that is a subport.
fn parent<'a>(inventory: &'a Inventory, object: &ObjectRef) -> Option<&'a PortRecord> {
    let port = inventory
        .ports
        .get(&object.name)
        .filter(|_| object.kind == ObjectKind::Port)?;
    inventory.ports.get(&port.spec.trunk.as_ref()?.parent)
}

/// The host that a subport is granted to: its parent's.
pub fn default_host<'a>(inventory: &'a Inventory, object: &ObjectRef) -> Option<&'a Name> {
    parent(inventory, object).map(|parent| &parent.placement.host)
}

/// Refuses to grant a subport to another host than its parent's.
pub fn check_host(inventory: &Inventory, object: &ObjectRef, host: &Name) -> Result<(), Failure> {
    let parent = parent(inventory, object);
    match parent.map(|parent| (&parent.spec.name, &parent.placement.host)) {
        Some((parent, other)) if other != host => Err(Failure::about(
            409,
            "parent_elsewhere",
            object,
            format!("{object} is a subport of port {parent}, which is host {other}'s, not {host}'s"),
            format!("leave the host out, or grant port {parent} to host {host}: its subports go with it"),
        )),
        _ => Ok(()),
    }
}

/// Refuses to delete a port that has subports.
pub fn check_delete(inventory: &Inventory, object: &ObjectRef) -> Result<(), Failure> {
    if object.kind != ObjectKind::Port {
        return Ok(());
    }
    let users: Vec<String> = subports(inventory, &object.name)
        .map(|port| format!("port {}", port.spec.name))
        .collect();
    policy::unused(&object.to_string(), &users, "delete its subports first")
}

/// The cards of subports whose VLAN id a change of their network may have changed.
pub fn cards_touched(draft: &Draft<'_>) -> BTreeSet<Name> {
    let mut networks: BTreeMap<&Name, BTreeSet<Option<u16>>> = BTreeMap::new();
    for (done, undo) in draft.steps() {
        for action in [done, undo] {
            if let Action::Put(Record::Network(network)) = action {
                networks
                    .entry(&network.spec.name)
                    .or_default()
                    .insert(network.spec.vlan);
            }
        }
    }
    networks.retain(|_, vlans| vlans.len() > 1);
    let inherits = |port: &&PortRecord| {
        port.spec.trunk.as_ref().is_some_and(|trunk| trunk.vlan.is_none()) && networks.contains_key(&port.spec.network)
    };
    let ports = draft.ports.values().filter(|_| !networks.is_empty()).filter(inherits);
    ports.map(|port| port.placement.card.clone()).collect()
}

#[cfg(test)]
#[path = "trunk_tests.rs"]
mod tests;
