//! What must hold after every change. A change that breaks one is taken back: it is an error of this program.

use std::collections::BTreeSet;

use outboard_protocol::binding::State;

use crate::inventory::Inventory;

/// What does not hold, if anything.
pub fn broken(inventory: &Inventory) -> Option<String> {
    let mut serials = BTreeSet::new();
    if let Some(card) = inventory.cards.values().find(|c| !serials.insert(&c.serial)) {
        return Some(format!("two cards have serial {}", card.serial));
    }
    let unplaced = inventory
        .placements()
        .find(|(_, p)| !inventory.cards.contains_key(&p.card));
    if let Some((object, placement)) = unplaced {
        return Some(format!("{object} is on card {}, which is not there", placement.card));
    }
    let astray = inventory
        .ports
        .values()
        .find(|p| !inventory.networks.contains_key(&p.spec.network));
    if let Some(port) = astray {
        return Some(format!(
            "port {} is on network {}, which is not there",
            port.spec.name, port.spec.network
        ));
    }
    for port in inventory.ports.values() {
        let name = &port.spec.name;
        if let Some(trunk) = &port.spec.trunk {
            let parent = inventory.ports.get(&trunk.parent).filter(|p| p.spec.trunk.is_none());
            if parent.is_none_or(|parent| parent.placement.card != port.placement.card) {
                return Some(format!(
                    "port {name} is a subport of {}, which has no device on its card",
                    trunk.parent
                ));
            }
        }
        let named = port.spec.groups.iter().flatten();
        if let Some(group) = named.into_iter().find(|name| !inventory.groups.contains_key(*name)) {
            return Some(format!("port {} has group {group}, which is not there", port.spec.name));
        }
    }
    for group in inventory.groups.values() {
        let name = &group.spec.name;
        for rule in &group.spec.rules {
            if let Some(other) = rule.group.as_ref().filter(|g| !inventory.groups.contains_key(*g)) {
                return Some(format!(
                    "a rule of group {name} names group {other}, which is not there"
                ));
            }
            if let Some(set) = rule
                .address_set
                .as_ref()
                .filter(|s| !inventory.address_sets.contains_key(*s))
            {
                return Some(format!(
                    "a rule of group {name} names address set {set}, which is not there"
                ));
            }
        }
    }
    let mut functions = BTreeSet::new();
    for binding in inventory.bindings.values().filter(|b| b.state != State::Released) {
        let function = &binding.function;
        let Some(card) = inventory.cards.get(&function.card) else {
            return Some(format!(
                "{} is bound to card {}, which is not there",
                binding.object, function.card
            ));
        };
        if !functions.insert((&function.card, function.controller, function.pf, function.function)) {
            return Some(format!(
                "function {} of card {} has two bindings",
                function.function, function.card
            ));
        }
        if function.incarnation > card.incarnation {
            return Some(format!(
                "{} has an incarnation that card {} never handed out",
                binding.object, card.name
            ));
        }
        let wanted = inventory
            .placement(&binding.object)
            .is_some_and(|p| p.granted && p.host == binding.host && p.card == function.card);
        if binding.ends_at.is_none() && !wanted {
            return Some(format!("{} stays bound without a grant", binding.object));
        }
    }
    None
}
