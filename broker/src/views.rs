//! What the API shows: views made from the inventory and from what is known of cards now.

use jiff::Timestamp;
use outboard_api::{
    address_set::AddressSetView,
    binding::{BindingView, FunctionView},
    card::{Attestation, CardState, CardView},
    grant::{GrantView, Revocation},
    group::{GroupView, RuleSpec},
    health::Health,
    network::NetworkView,
    port::PortView,
    volume::VolumeView,
};
use outboard_protocol::{
    binding::State,
    id::{Name, ObjectKind, ObjectRef},
};

use crate::{
    core::{Answer, Failure, Live, Outcome, subports, vlan, withheld},
    inventory::{AddressSetRecord, BindingRecord, CardRecord, GroupRecord, Inventory, PortRecord, VolumeRecord},
};

/// An instant, if it can be one.
pub(crate) fn time(unix_s: u64) -> Option<Timestamp> {
    i64::try_from(unix_s).ok().and_then(|s| Timestamp::from_second(s).ok())
}

/// The broker's own state.
pub fn health(inventory: &Inventory, live: &Live) -> Health {
    Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        broker_epoch: inventory.broker.epoch,
        cards_connected: live.connections.len() as u64,
    }
}

/// A card.
pub fn card(live: &Live, card: &CardRecord) -> CardView {
    let state = match &card.certificate {
        None => CardState::Pending,
        Some(_) if live.connections.contains_key(&card.name) => CardState::Connected,
        Some(_) => CardState::Disconnected,
    };
    CardView {
        name: card.name.clone(),
        serial: card.serial.clone(),
        state,
        isolation: card.isolation,
        attestation: Attestation::None,
        dpu_epoch: card.dpu_epoch,
        revision_wanted: card.revision,
        revision_applied: card.applied,
        certificate_expires: card.certificate.as_ref().and_then(|c| time(c.not_after_s)),
        last_seen: card.last_seen_s.and_then(time),
    }
}

/// A network.
pub fn network(inventory: &Inventory, name: &Name) -> Option<NetworkView> {
    let spec = inventory.networks.get(name)?.spec.clone();
    let on_it = inventory.ports.values().filter(|p| p.spec.network == *name);
    Some(NetworkView {
        spec,
        ports: on_it.map(|p| p.spec.name.clone()).collect(),
    })
}

/// A security group.
pub fn group(inventory: &Inventory, group: &GroupRecord) -> GroupView {
    let name = &group.spec.name;
    let has_it = |p: &&PortRecord| p.spec.groups.iter().flatten().any(|g| g == name);
    let ids = group.spec.rule_ids();
    GroupView {
        rule_ids: ids.into_iter().map(|id| format!("{name}/{id}")).collect(),
        ports: inventory
            .ports
            .values()
            .filter(has_it)
            .map(|p| p.spec.name.clone())
            .collect(),
        named_by: naming(inventory, |rule| rule.group.as_ref() == Some(name)),
        spec: group.spec.clone(),
    }
}

/// An address set.
pub fn address_set(inventory: &Inventory, set: &AddressSetRecord) -> AddressSetView {
    AddressSetView {
        named_by: naming(inventory, |rule| rule.address_set.as_ref() == Some(&set.spec.name)),
        spec: set.spec.clone(),
    }
}

/// The groups with a rule like that.
fn naming(inventory: &Inventory, rule: impl Fn(&RuleSpec) -> bool) -> Vec<Name> {
    let groups = inventory.groups.values().filter(|g| g.spec.rules.iter().any(&rule));
    groups.map(|g| g.spec.name.clone()).collect()
}

/// A port.
pub fn port(inventory: &Inventory, live: &Live, port: &PortRecord) -> PortView {
    let object = ObjectRef {
        kind: ObjectKind::Port,
        name: port.spec.name.clone(),
    };
    let told = live.telemetry.get(&port.placement.card);
    PortView {
        vlan: vlan(inventory, &port.spec),
        subports: subports(inventory, &port.spec.name)
            .map(|p| p.spec.name.clone())
            .collect(),
        spec: port.spec.clone(),
        grant: grant(inventory, &object),
        binding: inventory.bindings.get(&object).map(|b| binding(inventory, b)),
        counters: told.and_then(|t| t.ports.get(&port.spec.name)).map(Into::into),
    }
}

/// A volume.
pub fn volume(inventory: &Inventory, live: &Live, volume: &VolumeRecord) -> VolumeView {
    let object = ObjectRef {
        kind: ObjectKind::Volume,
        name: volume.spec.name.clone(),
    };
    let told = live.telemetry.get(&volume.placement.card);
    VolumeView {
        spec: volume.spec.clone(),
        size_bytes: volume.spec.size.bytes(),
        grant: grant(inventory, &object),
        binding: inventory.bindings.get(&object).map(|b| binding(inventory, b)),
        counters: told.and_then(|t| t.volumes.get(&volume.spec.name)).map(Into::into),
    }
}

/// A binding. Where the broker withholds the object from its card, that is its error.
pub fn binding(inventory: &Inventory, binding: &BindingRecord) -> BindingView {
    let function = &binding.function;
    let port = inventory.ports.get(&binding.object.name);
    let port = port.filter(|_| binding.object.kind == ObjectKind::Port && binding.state != State::Released);
    let withheld = port.and_then(|port| withheld(inventory, port));
    BindingView {
        kind: binding.object.kind,
        name: binding.object.name.clone(),
        host: binding.host.clone(),
        function: FunctionView {
            card: function.card.clone(),
            controller: function.controller,
            pf: function.pf,
            function: function.function,
            kind: function.kind,
            incarnation: function.incarnation,
        },
        generation: binding.generation,
        state: binding.state,
        error: withheld.as_ref().or(binding.error.as_ref()).map(Into::into),
        since: time(binding.since_s),
    }
}

/// The grant of an object, or of one that is gone but still bound; none if there is neither.
pub fn grant(inventory: &Inventory, object: &ObjectRef) -> Option<GrantView> {
    let bound = inventory.bindings.get(object);
    let live = bound.is_some_and(|b| b.state != State::Released);
    let done = || if live { Revocation::Pending } else { Revocation::Done };
    let (host, card, revocation) = match (inventory.placement(object), bound) {
        (Some(p), _) => (&p.host, &p.card, if p.granted { None } else { Some(done()) }),
        (None, Some(b)) => (&b.host, &b.function.card, Some(done())),
        (None, None) => return None,
    };
    Some(GrantView {
        kind: object.kind,
        name: object.name.clone(),
        host: host.clone(),
        card: card.clone(),
        generation: bound.map(|b| b.generation),
        revocation,
    })
}

/// All grants, in force or revoked.
pub fn grants(inventory: &Inventory) -> Vec<GrantView> {
    let mut objects: Vec<ObjectRef> = inventory.placements().map(|(object, _)| object).collect();
    objects.extend(inventory.bindings.keys().cloned());
    objects.sort();
    objects.dedup();
    objects.iter().filter_map(|object| grant(inventory, object)).collect()
}

/// The answer to a command, from the state after it.
///
/// # Errors
/// If a view cannot be JSON, which is an error of this program.
pub fn render(inventory: &Inventory, live: &Live, answer: &Answer) -> Result<Outcome, Failure> {
    let body = match answer {
        Answer::Network(name) => json(&network(inventory, name))?,
        Answer::Group(name) => json(&inventory.groups.get(name).map(|g| group(inventory, g)))?,
        Answer::AddressSet(name) => json(&inventory.address_sets.get(name).map(|s| address_set(inventory, s)))?,
        Answer::Port(name) => json(&inventory.ports.get(name).map(|p| port(inventory, live, p)))?,
        Answer::Volume(name) => json(&inventory.volumes.get(name).map(|v| volume(inventory, live, v)))?,
        Answer::Grant(object) => json(&grant(inventory, object))?,
        Answer::Changes(changes) => json(changes)?,
        Answer::Done | Answer::Secret => String::new(),
    };
    let status = if *answer == Answer::Done { 204 } else { 200 };
    Ok(Outcome {
        status,
        body,
        secret: *answer == Answer::Secret,
    })
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| {
        Failure::general(
            500,
            "internal",
            format!("the answer cannot be written: {e}"),
            "report this",
        )
    })
}
