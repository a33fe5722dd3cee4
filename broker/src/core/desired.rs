//! A card's desired state, as the inventory gives it.

use outboard_protocol::{
    binding::State,
    codec::encode,
    desired::{DesiredState, Grant, Port, Volume},
    id::{Name, ObjectKind, ObjectRef},
};

use super::{
    policy::{policy_of, withheld},
    trunk::desired_trunk,
};
use crate::{
    identity::sha256_hex,
    inventory::{BindingRecord, Inventory, PortRecord},
};

/// Everything that `card` has to hold, at its present revision.
pub fn desired_state(inventory: &Inventory, card: &Name) -> DesiredState {
    let held: Vec<&PortRecord> = inventory
        .ports
        .values()
        .filter(|p| p.placement.card == *card && withheld(inventory, p).is_none())
        .collect();
    let ports = held.iter().map(|p| Port {
        name: p.spec.name.clone(),
        network: p.spec.network.clone(),
        mac: p.spec.mac,
        addresses: p.spec.addresses.clone(),
        groups: p.spec.groups.clone(),
        trunk: desired_trunk(inventory, &p.spec),
    });
    let volumes = inventory
        .volumes
        .values()
        .filter(|v| v.placement.card == *card)
        .map(|v| Volume {
            name: v.spec.name.clone(),
            size_bytes: v.spec.size.bytes(),
            backend: (&v.spec.backend).into(),
            read_only: v.spec.read_only,
        });
    let bindings = inventory
        .bindings
        .values()
        .filter(|b| b.function.card == *card && is_wanted(b) && !is_withheld(inventory, &b.object));
    let grants = bindings.map(|b| Grant {
        object: b.object.clone(),
        host: b.host.clone(),
        generation: b.generation,
        incarnation: b.function.incarnation,
        expires_unix_s: None,
    });
    let (groups, address_sets, members) = policy_of(inventory, &held);
    DesiredState {
        broker_epoch: inventory.broker.epoch,
        revision: inventory.cards.get(card).map(|c| c.revision).unwrap_or_default(),
        ports: ports.collect(),
        volumes: volumes.collect(),
        grants: grants.collect(),
        groups,
        address_sets,
        members,
    }
}

fn is_withheld(inventory: &Inventory, object: &ObjectRef) -> bool {
    let port = inventory
        .ports
        .get(&object.name)
        .filter(|_| object.kind == ObjectKind::Port);
    port.is_some_and(|port| withheld(inventory, port).is_some())
}

/// Whether the card is to hold the binding.
pub fn is_wanted(binding: &BindingRecord) -> bool {
    let live = matches!(
        binding.state,
        State::Reserved | State::Prepared | State::Attached | State::Active
    );
    live && binding.ends_at.is_none()
}

/// What a desired state says apart from its revision: its hash, and its length in bytes on the wire.
pub fn content(state: &DesiredState) -> (String, usize) {
    let bytes = encode(&DesiredState {
        revision: Default::default(),
        ..state.clone()
    });
    (sha256_hex(&bytes), bytes.len())
}
