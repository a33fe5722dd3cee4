//! Security groups: what of them a card has to hold, and what may be done to them.
//!
//! A card is told the groups of its ports, the address sets that their rules name, and, for the groups that their rules
//! name, the addresses of the member ports on the networks where those rules count, whatever card those ports are on.

use std::collections::{BTreeMap, BTreeSet};

use outboard_api::{
    group::{GroupSpec, RuleSpec},
    port::PortSpec,
};
use outboard_controls::{Check, on};
use outboard_protocol::{
    desired::{AddressSet, DesiredState, Group, MEMBER_ADDRESSES_MAX, Members},
    id::Name,
    refusal::{Code, Refusal},
};

use super::{Answer, Draft, Failure, select::Selected, trunk};
use crate::inventory::{Action, CardRecord, Inventory, PortRecord, Record, RecordKey};

/// Why the broker does not tell a port's card of the port: it could not filter, and must not serve it unfiltered.
pub fn withheld(inventory: &Inventory, port: &PortRecord) -> Option<Refusal> {
    if let Some(refusal) = trunk::withheld(inventory, port) {
        return Some(refusal);
    }
    port.spec.groups.as_ref()?;
    let card = inventory.cards.get(&port.placement.card)?;
    (!card.knows_groups() && on(Check::FilteredPlacement)).then(|| {
        let text = format!(
            "port {} has security groups, and {}: {}",
            port.spec.name,
            too_old(card, "groups"),
            newer(card)
        );
        Refusal::new(Code::Unavailable, text)
    })
}

/// That a card does not know what a port needs of it.
pub(super) fn too_old(card: &CardRecord, what: &str) -> String {
    let version = card.version.unwrap_or_default();
    format!(
        "card {} speaks version {version} of the card protocol, which knows no {what}",
        card.name
    )
}

/// What to do about it.
pub(super) fn newer(card: &CardRecord) -> String {
    format!(
        "install the DPU's present version on card {}, or place the port elsewhere",
        card.name
    )
}

/// Refuses to place a filtered port on a card that cannot filter.
pub fn check_card(inventory: &Inventory, wanted: &PortSpec) -> Result<(), Failure> {
    trunk::check_card(inventory, wanted)?;
    let card = wanted.card.as_ref().and_then(|name| inventory.cards.get(name));
    let Some(card) = card.filter(|card| wanted.groups.is_some() && !card.knows_groups()) else {
        return Ok(());
    };
    let unchanged = inventory.ports.get(&wanted.name).is_some_and(|p| p.spec == *wanted);
    // It was placed while the card was of a later version: it is withheld, and says so itself.
    if unchanged {
        return Ok(());
    }
    let object = format!("port {}", wanted.name);
    let message = format!("{object} has security groups, and {}", too_old(card, "groups"));
    Err(Failure::about(409, "card_too_old", object, message, newer(card)))
}

/// What a card that serves `ports` needs to filter them.
pub fn policy_of(inventory: &Inventory, ports: &[&PortRecord]) -> (Vec<Group>, Vec<AddressSet>, Vec<Members>) {
    // Each group with the networks on which it counts here.
    let mut groups: BTreeMap<&Name, BTreeSet<&Name>> = BTreeMap::new();
    for port in ports {
        for group in port.spec.groups.iter().flatten() {
            groups.entry(group).or_default().insert(&port.spec.network);
        }
    }
    let (mut sets, mut peers) = (BTreeSet::new(), BTreeSet::new());
    for (name, networks) in &groups {
        for rule in inventory.groups.get(*name).into_iter().flat_map(|g| &g.spec.rules) {
            sets.extend(&rule.address_set);
            if let Some(peer) = &rule.group {
                peers.extend(networks.iter().map(|network| (peer, *network)));
            }
        }
    }
    let mut members: BTreeMap<(&Name, &Name), Members> = BTreeMap::new();
    for port in inventory.ports.values().filter(|_| !peers.is_empty()) {
        for group in port.spec.groups.iter().flatten() {
            let key = (group, &port.spec.network);
            if port.spec.addresses.is_empty() || !peers.contains(&key) {
                continue;
            }
            let entry = members.entry(key).or_insert_with(|| Members {
                group: group.clone(),
                network: port.spec.network.clone(),
                addresses: Vec::new(),
            });
            entry.addresses.extend(&port.spec.addresses);
        }
    }
    let described = groups.keys().filter_map(|name| inventory.groups.get(*name));
    let listed = sets.into_iter().filter_map(|name| inventory.address_sets.get(name));
    (
        described.map(|g| g.spec.desired()).collect(),
        listed.map(|s| (&s.spec).into()).collect(),
        members.into_values().collect(),
    )
}

/// Refuses what a card could not take.
pub fn check_members(state: &DesiredState) -> Result<(), Failure> {
    let too_many = |m: &&Members| m.addresses.len() > MEMBER_ADDRESSES_MAX;
    match state.members.iter().find(too_many) {
        None => Ok(()),
        Some(Members { group, network, .. }) => Err(Failure::about(
            409,
            "quota",
            format!("group {group}"),
            format!("the ports of group {group} on network {network} have more than {MEMBER_ADDRESSES_MAX} addresses"),
            "split the group, or name subnets instead of the group in rules",
        )),
    }
}

/// The cards whose policy a change may have changed, beside those whose own ports it changed.
pub fn cards_touched(draft: &Draft<'_>) -> BTreeSet<Name> {
    let (mut groups, mut sets, mut members) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (done, undo) in draft.steps() {
        if let (Action::Put(Record::Port(new)), Action::Put(Record::Port(old))) = (done, undo)
            && (&new.spec.groups, &new.spec.addresses, &new.spec.network)
                == (&old.spec.groups, &old.spec.addresses, &old.spec.network)
        {
            continue;
        }
        for action in [done, undo] {
            match action {
                Action::Put(Record::Group(g)) => groups.extend([g.spec.name.clone()]),
                Action::Put(Record::AddressSet(s)) => sets.extend([s.spec.name.clone()]),
                Action::Put(Record::Port(p)) => members.extend(p.spec.groups.iter().flatten().cloned()),
                _ => {}
            }
        }
    }
    if !sets.is_empty() || !members.is_empty() {
        let named = |rule: &RuleSpec| {
            rule.address_set.as_ref().is_some_and(|s| sets.contains(s))
                || rule.group.as_ref().is_some_and(|g| members.contains(g))
        };
        let naming = draft.groups.values().filter(|g| g.spec.rules.iter().any(named));
        groups.extend(naming.map(|g| g.spec.name.clone()));
    }
    if groups.is_empty() {
        return BTreeSet::new();
    }
    let has_one = |p: &&PortRecord| p.spec.groups.iter().flatten().any(|g| groups.contains(g));
    draft
        .ports
        .values()
        .filter(has_one)
        .map(|p| p.placement.card.clone())
        .collect()
}

/// The group with one rule more; none if it has that rule.
pub fn with_rule(inventory: &Inventory, group: &Name, rule: RuleSpec) -> Result<Option<GroupSpec>, Failure> {
    let mut spec = group_named(inventory, group)?.clone();
    if spec.rules.contains(&rule) {
        return Ok(None);
    }
    spec.rules.push(rule);
    Ok(Some(spec))
}

/// The group with one rule less.
pub fn without_rule(inventory: &Inventory, group: &Name, rule: &str) -> Result<GroupSpec, Failure> {
    let mut spec = group_named(inventory, group)?.clone();
    // A rule is also called as `explain` does, with its group before it.
    let id = rule.strip_prefix(&format!("{group}/")).unwrap_or(rule);
    let index = spec.rule_ids().iter().position(|known| known == id).ok_or_else(|| {
        let shown: String = id.chars().take(outboard_protocol::id::NAME_LEN_MAX).collect();
        Failure::about(
            404,
            "not_found",
            format!("group {group}"),
            format!("group {group} has no rule {shown:?}"),
            format!("`outboard group show {group}` shows its rules and what they are called"),
        )
    })?;
    spec.rules.remove(index);
    Ok(spec)
}

fn group_named<'a>(inventory: &'a Inventory, name: &Name) -> Result<&'a GroupSpec, Failure> {
    let group = inventory.groups.get(name);
    group.map(|g| &g.spec).ok_or_else(|| Failure::not_found("group", name))
}

/// Removes a group that no port has and no rule of another group names.
pub fn delete_group(inventory: &Inventory, name: Name) -> Result<Selected, Failure> {
    let has_it = |p: &&PortRecord| p.spec.groups.iter().flatten().any(|g| *g == name);
    let ports = inventory
        .ports
        .values()
        .filter(has_it)
        .map(|p| format!("port {}", p.spec.name));
    let others = inventory.groups.values().filter(|g| g.spec.name != name);
    let naming = others.filter(|g| g.spec.rules.iter().any(|r| r.group.as_ref() == Some(&name)));
    let users: Vec<String> = ports.chain(naming.map(|g| format!("group {}", g.spec.name))).collect();
    let remedy =
        "take it from those ports (`outboard port set NAME --groups …`) and remove the rules that name it first";
    unused(&format!("group {name}"), &users, remedy)?;
    Ok((vec![Action::Remove(RecordKey::Group(name))], Answer::Done))
}

/// Removes an address set that no rule names.
pub fn delete_address_set(inventory: &Inventory, name: Name) -> Result<Selected, Failure> {
    let groups = inventory.groups.values();
    let naming = groups.filter(|g| g.spec.rules.iter().any(|r| r.address_set.as_ref() == Some(&name)));
    let users: Vec<String> = naming.map(|g| format!("group {}", g.spec.name)).collect();
    unused(
        &format!("address set {name}"),
        &users,
        "remove the rules that name it first",
    )?;
    Ok((vec![Action::Remove(RecordKey::AddressSet(name))], Answer::Done))
}

/// Most users that an error names.
const USERS_SHOWN_MAX: usize = 5;

/// Refuses to remove what others use.
pub(super) fn unused(object: &str, users: &[String], remedy: &str) -> Result<(), Failure> {
    if users.is_empty() {
        return Ok(());
    }
    let shown = users
        .iter()
        .take(USERS_SHOWN_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    let more = if users.len() > USERS_SHOWN_MAX { ", …" } else { "" };
    let message = format!("{object} is used by {}: {shown}{more}", users.len());
    Err(Failure::about(409, "in_use", object, message, remedy))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
