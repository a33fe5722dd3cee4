//! The allocator: brings bindings and card revisions in line with what is declared and granted.
//!
//! Runs after every change, within the same transaction. An object that is granted has one live binding, on its card and
//! for its host; a binding whose grant went is to end, and the object is bound again only once the card has let go.

use std::collections::{BTreeMap, BTreeSet};

use outboard_protocol::{
    binding::{Event, State},
    card::CARD_MESSAGE_LEN_MAX,
    id::{FunctionId, Generation, Name, ObjectRef, Revision},
};

use super::{
    Draft, Failure,
    desired::{content, desired_state},
    policy, trunk,
};
use crate::inventory::{
    Action, BindingRecord, BrokerRecord, CardRecord, FUNCTIONS_PER_CARD_MAX, Inventory, Placement, Record, RecordKey,
};

/// Part of a message that is not the desired state's content: the largest encoding of its envelope and revision.
const ENVELOPE_LEN_MAX: usize = 64;

/// Brings everything in line.
///
/// # Errors
/// If a card would need more functions, or hold more, than the protocol allows.
pub fn settle(draft: &mut Draft<'_>, now_s: u64) -> Result<(), Failure> {
    trunk::follow_parents(draft);
    end_unwanted(draft, now_s);
    forget_released(draft);
    reserve_missing(draft, now_s)?;
    raise_revisions(draft)
}

/// Marks each live binding that is not wanted any more as one to end.
fn end_unwanted(draft: &mut Draft<'_>, now_s: u64) {
    let unwanted = |b: &&BindingRecord| {
        let wanted = draft.placement(&b.object).is_some_and(|p| serves(b, p));
        // Of a card that is gone nobody waits for an answer.
        let orphan = !draft.cards.contains_key(&b.function.card);
        b.state != State::Released && (orphan || b.ends_at.is_none() && !wanted)
    };
    let ending: Vec<BindingRecord> = draft.bindings.values().filter(unwanted).cloned().collect();
    for binding in ending {
        let ended = end(draft, &binding, now_s);
        draft.apply(Action::Put(Record::Binding(ended)));
    }
}

/// Whether the binding is what the placement asks for.
fn serves(binding: &BindingRecord, placement: &Placement) -> bool {
    placement.granted && placement.host == binding.host && placement.card == binding.function.card
}

/// The binding, to end with the next revision of its card's desired state; at once where no card can hold it.
pub fn end(inventory: &Inventory, binding: &BindingRecord, now_s: u64) -> BindingRecord {
    match inventory.cards.get(&binding.function.card) {
        // Without a certificate no card has ever been told.
        Some(CardRecord {
            certificate: Some(_),
            revision,
            ..
        }) => BindingRecord {
            ends_at: Some(revision.next()),
            ..binding.after(&Event::Revoke, now_s)
        },
        _ => binding.after(&Event::CardRemoved, now_s),
    }
}

/// Drops released bindings of objects that are gone, and keeps their generation as the floor for new objects.
fn forget_released(draft: &mut Draft<'_>) {
    let over = |b: &&BindingRecord| b.state == State::Released && draft.placement(&b.object).is_none();
    let gone: Vec<(ObjectRef, Generation)> = draft
        .bindings
        .values()
        .filter(over)
        .map(|b| (b.object.clone(), b.generation))
        .collect();
    for (object, generation) in gone {
        raise_floor(draft, generation);
        draft.apply(Action::Remove(RecordKey::Binding(object)));
    }
}

/// Objects that have no record begin above `generation` from here on.
pub fn raise_floor(draft: &mut Draft<'_>, generation: Generation) {
    if generation > draft.broker.generation_floor {
        let broker = BrokerRecord {
            generation_floor: generation,
            ..draft.broker.clone()
        };
        draft.apply(Action::Put(Record::Broker(broker)));
    }
}

/// Reserves a function for each granted object that has no live binding.
fn reserve_missing(draft: &mut Draft<'_>, now_s: u64) -> Result<(), Failure> {
    let bound = |object: &ObjectRef| draft.bindings.get(object).is_some_and(|b| b.state != State::Released);
    let missing: Vec<(ObjectRef, Placement)> = draft
        .placements()
        .filter(|(object, p)| p.granted && !bound(object))
        .map(|(object, p)| (object, p.clone()))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut used: BTreeMap<Name, BTreeSet<u16>> = BTreeMap::new();
    for binding in draft.bindings.values().filter(|b| b.state != State::Released) {
        used.entry(binding.function.card.clone())
            .or_default()
            .insert(binding.function.function);
    }
    for (object, placement) in missing {
        let Some(card) = draft.cards.get(&placement.card).cloned() else {
            continue;
        };
        let slots = used.entry(card.name.clone()).or_default();
        let function = free_slot(slots).ok_or_else(|| {
            Failure::quota(
                format!("card {}", card.name),
                "functions on one card",
                FUNCTIONS_PER_CARD_MAX,
            )
        })?;
        slots.insert(function);
        let card = CardRecord {
            incarnation: card.incarnation.next(),
            ..card
        };
        let last = draft
            .bindings
            .get(&object)
            .map_or(draft.broker.generation_floor, |b| b.generation);
        let kind = trunk::function_kind(draft, &object);
        let binding = BindingRecord {
            object,
            host: placement.host,
            function: FunctionId {
                card: card.name.clone(),
                controller: 0,
                pf: 0,
                function,
                kind,
                incarnation: card.incarnation,
            },
            generation: last.next(),
            state: State::Reserved,
            error: None,
            ends_at: None,
            since_s: now_s,
        };
        draft.apply(Action::Put(Record::Card(card)));
        draft.apply(Action::Put(Record::Binding(binding)));
    }
    Ok(())
}

fn free_slot(used: &BTreeSet<u16>) -> Option<u16> {
    (0..u16::MAX)
        .take(FUNCTIONS_PER_CARD_MAX)
        .find(|slot| !used.contains(slot))
}

/// Gives each card whose desired state changed its next revision.
fn raise_revisions(draft: &mut Draft<'_>) -> Result<(), Failure> {
    let mut touched = BTreeSet::new();
    for (done, undo) in draft.steps() {
        touched.extend(card_of(done));
        touched.extend(card_of(undo));
        if let (Action::Put(Record::Broker(new)), Action::Put(Record::Broker(old))) = (done, undo)
            && new.epoch != old.epoch
        {
            touched.extend(draft.cards.keys().cloned());
        }
    }
    touched.extend(policy::cards_touched(draft));
    touched.extend(trunk::cards_touched(draft));
    for name in touched {
        let Some(card) = draft.cards.get(&name).cloned() else {
            continue;
        };
        let state = desired_state(draft, &name);
        policy::check_members(&state)?;
        let (desired_sha256, len) = content(&state);
        if len > CARD_MESSAGE_LEN_MAX - ENVELOPE_LEN_MAX {
            return Err(Failure::quota(
                format!("card {name}"),
                "bytes of policy for one card",
                CARD_MESSAGE_LEN_MAX,
            ));
        }
        if desired_sha256 != card.desired_sha256 {
            let revision: Revision = card.revision.next();
            draft.apply(Action::Put(Record::Card(CardRecord {
                revision,
                desired_sha256,
                ..card
            })));
        }
    }
    Ok(())
}

/// The card whose desired state an action may change.
fn card_of(action: &Action) -> Option<Name> {
    match action {
        Action::Put(Record::Port(p)) => Some(p.placement.card.clone()),
        Action::Put(Record::Volume(v)) => Some(v.placement.card.clone()),
        Action::Put(Record::Binding(b)) => Some(b.function.card.clone()),
        Action::Put(Record::Card(c)) => Some(c.name.clone()),
        _ => None,
    }
}
