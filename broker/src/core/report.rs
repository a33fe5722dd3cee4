//! What a card says it holds, taken up into the inventory.
//!
//! A report can only be about objects bound to the card that sends it: nothing it says touches another card's.

use std::collections::BTreeMap;

use outboard_protocol::{
    binding::{Event, Fence, State},
    card::BindingReport,
    id::{Name, ObjectRef, Revision},
};

use super::{
    Draft,
    allocate::{end, raise_floor},
};
use crate::inventory::{Action, BindingRecord, CardRecord, Inventory, Record};

/// A card's whole inventory, by object: the report of the highest generation of each.
pub type Reports = BTreeMap<ObjectRef, BindingReport>;

/// The reports by object; where a card reports two generations of one object the higher counts.
pub fn by_object(bindings: Vec<BindingReport>) -> Reports {
    let mut reports = Reports::new();
    for report in bindings {
        let newer = reports
            .get(&report.object)
            .is_none_or(|other| other.generation < report.generation);
        if newer {
            reports.insert(report.object.clone(), report);
        }
    }
    reports
}

/// Takes up a card's inventory. `applied` is the revision that the card said is in force.
pub fn take_up(draft: &mut Draft<'_>, card: &Name, reports: &Reports, applied: Option<Revision>, now_s: u64) {
    adopt_high_water(draft, card, reports);
    let bound: Vec<BindingRecord> = draft
        .bindings
        .values()
        .filter(|b| b.function.card == *card && b.state != State::Released)
        .cloned()
        .collect();
    for binding in bound {
        let next = match reports.get(&binding.object) {
            Some(report) if report.generation > binding.generation => overtaken(draft, &binding, report, now_s),
            Some(report) if report.generation == binding.generation => {
                let fence = Fence {
                    generation: report.generation,
                    incarnation: report.incarnation,
                };
                let (state, error) = (report.state, report.error.clone());
                binding.after(&Event::Reported { fence, state, error }, now_s)
            }
            // Before the card applied the revision that ends a binding, one that grants it may still be on its way there.
            _ if binding.ends_at.is_some_and(|ends_at| applied < Some(ends_at)) => continue,
            _ => binding.after(&Event::Missing, now_s),
        };
        if next != binding {
            draft.apply(Action::Put(Record::Binding(next)));
        }
    }
}

/// The card has a later binding than this broker knows of: the broker's store is older than the card's. The card's is to
/// end, and the next one comes after it.
fn overtaken(inventory: &Inventory, binding: &BindingRecord, report: &BindingReport, now_s: u64) -> BindingRecord {
    let mut function = binding.function.clone();
    function.incarnation = report.incarnation;
    let adopted = BindingRecord {
        function,
        generation: report.generation,
        ..binding.clone()
    };
    match report.state {
        State::Released => {
            let fence = Fence {
                generation: report.generation,
                incarnation: report.incarnation,
            };
            let (state, error) = (State::Released, report.error.clone());
            adopted.after(&Event::Reported { fence, state, error }, now_s)
        }
        _ => end(inventory, &adopted, now_s),
    }
}

/// No generation or incarnation that a card has seen is handed out again.
fn adopt_high_water(draft: &mut Draft<'_>, card: &Name, reports: &Reports) {
    for report in reports.values() {
        let known = draft.bindings.get(&report.object).map(|b| b.generation);
        if known.is_none_or(|known| known < report.generation) {
            raise_floor(draft, report.generation);
        }
    }
    let highest = reports.values().map(|r| r.incarnation).max();
    if let (Some(record), Some(incarnation)) = (draft.cards.get(card), highest)
        && incarnation > record.incarnation
    {
        let record = CardRecord {
            incarnation,
            ..record.clone()
        };
        draft.apply(Action::Put(Record::Card(record)));
    }
}
