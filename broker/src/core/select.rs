//! Decides what a command does: from the inventory and the command to actions, or a failure. Changes nothing itself.

use std::collections::BTreeSet;

use outboard_api::{
    card::{SERIAL_LEN_MAX, TOKEN_TTL_MAX_S},
    group::GroupSpec,
    network::NetworkSpec,
    port::PortSpec,
    topology::{Current, Topology, TopologyKind, TopologyObject, diff},
    volume::{Backend, VolumeSpec},
};
use outboard_protocol::{
    binding::State,
    id::{Name, ObjectKind, ObjectRef},
};

use super::{Answer, Command, Failure, Live, allocate::end, policy, trunk};
use crate::{
    identity::TokenRecord,
    inventory::{
        ADDRESS_SETS_MAX, ADDRESSES_PER_PORT_MAX, Action, AddressSetRecord, CARDS_MAX, CardRecord, GROUPS_MAX,
        GroupRecord, Inventory, NETWORKS_MAX, NetworkRecord, OPERATORS_MAX, OperatorRecord, PORTS_MAX, Placement,
        PortRecord, RULES_MAX, Record, RecordKey, SET_ENTRIES_MAX, SUBNETS_PER_NETWORK_MAX, VOLUME_PATH_LEN_MAX,
        VOLUMES_MAX, VolumeRecord,
    },
};

/// What a command does, and how it is answered.
pub type Selected = (Vec<Action>, Answer);

/// What `command` does now.
///
/// # Errors
/// The reason why it is refused, with the remedy.
pub fn select(inventory: &Inventory, live: &Live, command: Command, now_s: u64) -> Result<Selected, Failure> {
    match command {
        Command::PutNetwork(spec) => {
            let name = spec.name.clone();
            declare(
                inventory,
                Topology {
                    networks: vec![spec],
                    ..Topology::default()
                },
                Answer::Network(name),
                now_s,
            )
        }
        Command::PutPort(spec) => {
            let name = spec.name.clone();
            declare(
                inventory,
                Topology {
                    ports: vec![spec],
                    ..Topology::default()
                },
                Answer::Port(name),
                now_s,
            )
        }
        Command::PutVolume(spec) => {
            let name = spec.name.clone();
            declare(
                inventory,
                Topology {
                    volumes: vec![spec],
                    ..Topology::default()
                },
                Answer::Volume(name),
                now_s,
            )
        }
        Command::DeleteNetwork(name) => delete_network(inventory, name),
        Command::PutGroup(spec) => declare_group(inventory, spec, now_s),
        Command::DeleteGroup(name) => policy::delete_group(inventory, name),
        Command::AddRule { group, rule } => match policy::with_rule(inventory, &group, rule)? {
            Some(spec) => declare_group(inventory, spec, now_s),
            None => Ok((vec![], Answer::Group(group))),
        },
        Command::RemoveRule { group, rule } => {
            declare_group(inventory, policy::without_rule(inventory, &group, &rule)?, now_s)
        }
        Command::PutAddressSet(spec) => {
            let name = spec.name.clone();
            declare(
                inventory,
                Topology {
                    address_sets: vec![spec],
                    ..Topology::default()
                },
                Answer::AddressSet(name),
                now_s,
            )
        }
        Command::DeleteAddressSet(name) => policy::delete_address_set(inventory, name),
        Command::Delete(object) => {
            trunk::check_delete(inventory, &object)?;
            Ok((remove(&object), Answer::Done))
        }
        Command::Grant { object, host } => grant(inventory, object, host),
        Command::Revoke(object) => revoke(inventory, object),
        Command::EnrolCard {
            card,
            serial,
            ttl_s,
            secret,
        } => enrol(inventory, card, serial, ttl_s, &secret, now_s),
        Command::DeleteCard(name) => delete_card(inventory, live, name),
        Command::ApplyTopology(topology) => apply_topology(inventory, topology, now_s),
        Command::RecordOperator { operator, certificate } => {
            if inventory.operators.len() >= OPERATORS_MAX && !inventory.operators.contains_key(&operator) {
                return Err(Failure::quota(
                    format!("operator {operator}"),
                    "operators",
                    OPERATORS_MAX,
                ));
            }
            let record = OperatorRecord {
                name: operator,
                certificate,
            };
            Ok((vec![Action::Put(Record::Operator(record))], Answer::Secret))
        }
    }
}

fn declare_group(inventory: &Inventory, spec: GroupSpec, now_s: u64) -> Result<Selected, Failure> {
    let answer = Answer::Group(spec.name.clone());
    let wanted = Topology {
        groups: vec![spec],
        ..Topology::default()
    };
    declare(inventory, wanted, answer, now_s)
}

/// What is declared now, in the API's terms.
pub fn current(inventory: &Inventory) -> Current {
    let mut applied = BTreeSet::new();
    let mut note = |kind, name: &Name, was_applied: bool| {
        if was_applied {
            applied.insert(TopologyObject::new(kind, name));
        }
    };
    inventory
        .networks
        .values()
        .for_each(|n| note(TopologyKind::Network, &n.spec.name, n.applied));
    inventory
        .address_sets
        .values()
        .for_each(|s| note(TopologyKind::AddressSet, &s.spec.name, s.applied));
    inventory
        .groups
        .values()
        .for_each(|g| note(TopologyKind::Group, &g.spec.name, g.applied));
    inventory
        .ports
        .values()
        .for_each(|p| note(TopologyKind::Port, &p.spec.name, p.applied));
    inventory
        .volumes
        .values()
        .for_each(|v| note(TopologyKind::Volume, &v.spec.name, v.applied));
    let topology = Topology {
        networks: inventory.networks.values().map(|n| n.spec.clone()).collect(),
        address_sets: inventory.address_sets.values().map(|s| s.spec.clone()).collect(),
        groups: inventory.groups.values().map(|g| g.spec.clone()).collect(),
        volumes: inventory.volumes.values().map(|v| v.spec.clone()).collect(),
        ports: inventory.ports.values().map(|p| p.spec.clone()).collect(),
    };
    Current { topology, applied }
}

/// The topology with its cards filled in, if it can be applied to what there is.
///
/// # Errors
/// What is wrong with it, by itself or together with what stays.
pub fn placed(inventory: &Inventory, current: &Current, mut wanted: Topology) -> Result<Topology, Failure> {
    let cards: Vec<Name> = inventory.cards.keys().cloned().collect();
    wanted.place(&cards, &current.topology.ports)?;
    check_limits(&wanted)?;
    let after = current.after(&wanted).topology;
    after.check()?;
    check_counts(&after)?;
    wanted.volumes.iter().try_for_each(|v| check_idle(inventory, v))?;
    wanted.ports.iter().try_for_each(|p| policy::check_card(inventory, p))?;
    Ok(wanted)
}

/// Declares objects by hand: nothing else goes, and who made an object first stays noted.
fn declare(inventory: &Inventory, wanted: Topology, answer: Answer, now_s: u64) -> Result<Selected, Failure> {
    let current = Current {
        applied: BTreeSet::new(),
        ..current(inventory)
    };
    let wanted = placed(inventory, &current, wanted)?;
    Ok((put_all(inventory, wanted, false, now_s), answer))
}

fn apply_topology(inventory: &Inventory, wanted: Topology, now_s: u64) -> Result<Selected, Failure> {
    let current = current(inventory);
    let wanted = placed(inventory, &current, wanted)?;
    let changes = diff(&current, &wanted);
    let stays: BTreeSet<TopologyObject> = wanted.objects().collect();
    let mut actions: Vec<Action> = current
        .applied
        .iter()
        .filter(|object| !stays.contains(object))
        .map(removal)
        .collect();
    actions.extend(put_all(inventory, wanted, true, now_s));
    Ok((actions, Answer::Changes(changes)))
}

fn removal(object: &TopologyObject) -> Action {
    let name = object.name.clone();
    Action::Remove(match object.kind {
        TopologyKind::Network => RecordKey::Network(name),
        TopologyKind::AddressSet => RecordKey::AddressSet(name),
        TopologyKind::Group => RecordKey::Group(name),
        TopologyKind::Port => RecordKey::Port(name),
        TopologyKind::Volume => RecordKey::Volume(name),
    })
}

/// Puts every object of a placed topology that is not there yet in exactly this form.
fn put_all(inventory: &Inventory, wanted: Topology, by_apply: bool, now_s: u64) -> Vec<Action> {
    let mut actions = Vec::new();
    for spec in wanted.networks {
        let old = inventory.networks.get(&spec.name);
        let applied = by_apply || old.is_some_and(|o| o.applied);
        let new = NetworkRecord { spec, applied };
        if old != Some(&new) {
            actions.push(Action::Put(Record::Network(new)));
        }
    }
    for spec in wanted.address_sets {
        let old = inventory.address_sets.get(&spec.name);
        let applied = by_apply || old.is_some_and(|o| o.applied);
        let new = AddressSetRecord { spec, applied };
        if old != Some(&new) {
            actions.push(Action::Put(Record::AddressSet(new)));
        }
    }
    for spec in wanted.groups {
        let old = inventory.groups.get(&spec.name);
        let applied = by_apply || old.is_some_and(|o| o.applied);
        let new = GroupRecord { spec, applied };
        if old != Some(&new) {
            actions.push(Action::Put(Record::Group(new)));
        }
    }
    for spec in wanted.volumes {
        let old = inventory.volumes.get(&spec.name);
        let applied = by_apply || old.is_some_and(|o| o.applied);
        let Some(placement) = placement(old.map(|o| &o.placement), spec.card.as_ref()) else {
            continue;
        };
        let new = VolumeRecord {
            spec,
            applied,
            placement,
        };
        if old.is_some_and(|o| o.spec != new.spec && !new.spec.grows_from(&o.spec)) {
            actions.extend(rebind(inventory, ObjectKind::Volume, &new.spec.name, now_s));
        }
        if old != Some(&new) {
            actions.push(Action::Put(Record::Volume(new)));
        }
    }
    for spec in wanted.ports {
        let old = inventory.ports.get(&spec.name);
        let applied = by_apply || old.is_some_and(|o| o.applied);
        let Some(placement) = placement(old.map(|o| &o.placement), spec.card.as_ref()) else {
            continue;
        };
        let new = PortRecord {
            spec,
            applied,
            placement,
        };
        let parent = |port: &PortRecord| port.spec.trunk.as_ref().map(|trunk| trunk.parent.clone());
        if old.is_some_and(|o| parent(o) != parent(&new)) {
            actions.extend(rebind(inventory, ObjectKind::Port, &new.spec.name, now_s));
        }
        if old != Some(&new) {
            actions.push(Action::Put(Record::Port(new)));
        }
    }
    actions
}

/// Ends the binding of a volume that changes, so that no host redeems a grant that was made for other blocks; or of a port
/// that gets another parent, and so is reached through another device.
fn rebind(inventory: &Inventory, kind: ObjectKind, name: &Name, now_s: u64) -> Option<Action> {
    let object = ObjectRef {
        kind,
        name: name.clone(),
    };
    let binding = inventory
        .bindings
        .get(&object)
        .filter(|b| b.state != State::Released && b.ends_at.is_none())?;
    Some(Action::Put(Record::Binding(end(inventory, binding, now_s))))
}

/// A new object is granted to its card's host. One that moves goes along with its card's host, and a revocation stays.
fn placement(old: Option<&Placement>, card: Option<&Name>) -> Option<Placement> {
    let card = card?.clone();
    Some(match old {
        None => Placement {
            host: card.clone(),
            card,
            granted: true,
        },
        Some(old) if old.host == old.card => Placement {
            host: card.clone(),
            card,
            granted: old.granted,
        },
        Some(old) => Placement {
            host: old.host.clone(),
            card,
            granted: old.granted,
        },
    })
}

fn check_limits(wanted: &Topology) -> Result<(), Failure> {
    let quota = |kind: &str, name: &Name, what: &str, max: usize| {
        let object = format!("{kind} {name}");
        let message = format!("{object} has more than {max} {what}");
        Failure::about(
            422,
            "quota",
            object,
            message,
            format!("split it, so that none has more than {max}"),
        )
    };
    let too_wide = |n: &&NetworkSpec| n.subnets.len() > SUBNETS_PER_NETWORK_MAX;
    if let Some(network) = wanted.networks.iter().find(too_wide) {
        return Err(quota("network", &network.name, "subnets", SUBNETS_PER_NETWORK_MAX));
    }
    let too_wide = |p: &&PortSpec| p.addresses.len() > ADDRESSES_PER_PORT_MAX;
    if let Some(port) = wanted.ports.iter().find(too_wide) {
        return Err(quota("port", &port.name, "addresses", ADDRESSES_PER_PORT_MAX));
    }
    for volume in &wanted.volumes {
        if matches!(&volume.backend, Backend::File(path) if path.len() > VOLUME_PATH_LEN_MAX) {
            return Err(quota("volume", &volume.name, "bytes of path", VOLUME_PATH_LEN_MAX));
        }
    }
    Ok(())
}

fn check_counts(after: &Topology) -> Result<(), Failure> {
    let counts = [
        (after.networks.len(), "networks", NETWORKS_MAX),
        (after.groups.len(), "groups", GROUPS_MAX),
        (after.groups.iter().map(|g| g.rules.len()).sum(), "rules", RULES_MAX),
        (after.address_sets.len(), "address sets", ADDRESS_SETS_MAX),
        (
            after.address_sets.iter().map(|s| s.addresses.len()).sum(),
            "addresses in address sets",
            SET_ENTRIES_MAX,
        ),
        (after.ports.len(), "ports", PORTS_MAX),
        (after.volumes.len(), "volumes", VOLUMES_MAX),
    ];
    match counts.into_iter().find(|(count, _, max)| count > max) {
        Some((_, what, max)) => Err(Failure::quota("topology", what, max)),
        None => Ok(()),
    }
}

/// A volume that a guest may be using keeps its blocks and card: changing them under it would corrupt it. It may grow,
/// which its device tells the guest, but not shrink: what is cut off may be in use.
fn check_idle(inventory: &Inventory, wanted: &VolumeSpec) -> Result<(), Failure> {
    let object = ObjectRef {
        kind: ObjectKind::Volume,
        name: wanted.name.clone(),
    };
    let Some(old) = inventory.volumes.get(&wanted.name).map(|v| &v.spec) else {
        return Ok(());
    };
    if old == wanted || wanted.grows_from(old) {
        return Ok(());
    }
    let idle = [State::Reserved, State::Prepared, State::Released];
    let Some(binding) = inventory.bindings.get(&object).filter(|b| !idle.contains(&b.state)) else {
        return Ok(());
    };
    let card = &binding.function.card;
    let message = if wanted.shrinks_from(old) {
        format!(
            "{object} is bound to card {card} and cannot shrink from {} to {} while it is; it may only grow",
            old.size, wanted.size
        )
    } else {
        format!("{object} is bound to card {card} and cannot change while it is, but for growing")
    };
    let remedy = format!(
        "revoke it (`outboard grant revoke volume {0}`), wait until the revocation is done, change it, then grant it again",
        wanted.name
    );
    Err(Failure::about(409, "in_use", &object, message, remedy))
}

fn delete_network(inventory: &Inventory, name: Name) -> Result<Selected, Failure> {
    let users: Vec<&str> = inventory
        .ports
        .values()
        .filter(|p| p.spec.network == name)
        .map(|p| p.spec.name.as_str())
        .collect();
    if users.is_empty() {
        return Ok((vec![Action::Remove(RecordKey::Network(name))], Answer::Done));
    }
    let shown = users[..users.len().min(5)].join(", ");
    Err(Failure::about(
        409,
        "in_use",
        format!("network {name}"),
        format!(
            "network {name} has {} ports: {shown}{}",
            users.len(),
            if users.len() > 5 { ", …" } else { "" }
        ),
        "delete its ports first",
    ))
}

fn remove(object: &ObjectRef) -> Vec<Action> {
    let name = object.name.clone();
    vec![Action::Remove(match object.kind {
        ObjectKind::Port => RecordKey::Port(name),
        ObjectKind::Volume => RecordKey::Volume(name),
    })]
}

fn grant(inventory: &Inventory, object: ObjectRef, host: Option<Name>) -> Result<Selected, Failure> {
    let old = inventory.placement(&object).ok_or_else(|| missing(&object))?;
    let new = Placement {
        card: old.card.clone(),
        host: host.unwrap_or_else(|| trunk::default_host(inventory, &object).unwrap_or(&old.card).clone()),
        granted: true,
    };
    trunk::check_host(inventory, &object, &new.host)?;
    let actions = if *old == new {
        None
    } else {
        inventory.with_placement(&object, new)
    };
    Ok((actions.into_iter().collect(), Answer::Grant(object)))
}

fn revoke(inventory: &Inventory, object: ObjectRef) -> Result<Selected, Failure> {
    let old = inventory.placement(&object).ok_or_else(|| missing(&object))?;
    let new = Placement {
        granted: false,
        ..old.clone()
    };
    let actions = if *old == new {
        None
    } else {
        inventory.with_placement(&object, new)
    };
    Ok((actions.into_iter().collect(), Answer::Grant(object)))
}

fn missing(object: &ObjectRef) -> Failure {
    Failure::not_found(&object.kind.to_string(), &object.name)
}

fn enrol(
    inventory: &Inventory,
    name: Name,
    serial: String,
    ttl_s: u64,
    secret: &[u8],
    now_s: u64,
) -> Result<Selected, Failure> {
    let object = format!("card {name}");
    check_serial(&object, &serial)?;
    if ttl_s == 0 || ttl_s > TOKEN_TTL_MAX_S {
        let message = format!("a token cannot live for {ttl_s} s");
        return Err(Failure::about(
            422,
            "bad_value",
            object,
            message,
            format!("use 1 to {TOKEN_TTL_MAX_S} seconds"),
        ));
    }
    if let Some(other) = inventory.cards.values().find(|c| c.serial == serial && c.name != name) {
        let message = format!("serial {serial} is that of card {} already", other.name);
        let remedy = format!(
            "correct the serial, or delete the other card: outboard card delete {}",
            other.name
        );
        return Err(Failure::about(409, "duplicate_serial", object, message, remedy));
    }
    let token = Some(TokenRecord::new(secret, now_s.saturating_add(ttl_s)));
    let record = match inventory.cards.get(&name) {
        Some(card) if card.serial != serial => {
            let message = format!("card {name} has serial {}, not {serial}", card.serial);
            let remedy = "correct the serial; for another piece of hardware enrol a card of another name".to_owned();
            return Err(Failure::about(409, "other_serial", object, message, remedy));
        }
        Some(card) => CardRecord { token, ..card.clone() },
        None if inventory.cards.len() >= CARDS_MAX => return Err(Failure::quota(object, "cards", CARDS_MAX)),
        None => CardRecord::new(name, serial, token),
    };
    Ok((vec![Action::Put(Record::Card(record))], Answer::Secret))
}

fn check_serial(object: &str, serial: &str) -> Result<(), Failure> {
    if !serial.is_empty() && serial.len() <= SERIAL_LEN_MAX && serial.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    let message = format!("a serial has 1 to {SERIAL_LEN_MAX} printable ASCII characters without blanks");
    Err(Failure::about(
        422,
        "bad_value",
        object,
        message,
        "copy it from the card's PCI VPD",
    ))
}

fn delete_card(inventory: &Inventory, live: &Live, name: Name) -> Result<Selected, Failure> {
    let in_use =
        |message: String, remedy: &str| Err(Failure::about(409, "in_use", format!("card {name}"), message, remedy));
    let on_it: Vec<String> = inventory
        .placements()
        .filter(|(_, p)| p.card == name)
        .map(|(object, _)| object.to_string())
        .collect();
    if let Some(first) = on_it.first() {
        let message = format!("card {name} serves {} objects, such as {first}", on_it.len());
        return in_use(message, "delete them or move them to another card first");
    }
    // A card that is gone for good cannot let go of anything any more: its operator's word has to do.
    let mut held = inventory
        .bindings
        .values()
        .filter(|b| b.function.card == name && b.state != State::Released);
    if let Some(binding) = held.next().filter(|_| live.connections.contains_key(&name)) {
        let message = format!("card {name} is connected and has not let go of {} yet", binding.object);
        return in_use(
            message,
            "wait until its revocations are done; or switch the card off, and then delete it",
        );
    }
    Ok((vec![Action::Remove(RecordKey::Card(name))], Answer::Done))
}
