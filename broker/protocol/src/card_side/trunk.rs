//! Subports: their bindings follow their parents'.
//!
//! A subport has a grant and a binding of its own, so that it can be revoked alone, but no device: no host redeems it or
//! opens a session for it, and none hears of it. It is attached when its parent is, by the same host, and active while its
//! parent is. When its parent's binding ends, for whatever reason, the subport's ends too; the broker reserves the next one.

use std::collections::BTreeMap;

use outboard_controls::{Check, on};

use super::{CardCore, Held, Outbox};
use crate::{
    binding::{Event, Now, State, not_granted},
    desired::DesiredState,
    id::{Name, ObjectKind, ObjectRef},
    refusal::Refusal,
};

/// The parents of all subports.
pub(super) fn parents(state: &DesiredState) -> BTreeMap<&Name, &Name> {
    let subports = state.ports.iter();
    subports
        .filter_map(|port| Some((&port.name, &port.trunk.as_ref()?.parent)))
        .collect()
}

impl CardCore {
    /// What no host has, whatever is granted: a subport, which its parent's device carries.
    pub(super) fn check_has_device(&self, object: &ObjectRef) -> Result<(), Refusal> {
        match self.desired.parent_of(object) {
            Some(_) if on(Check::SubportDevice) => Err(not_granted(object)),
            _ => Ok(()),
        }
    }

    /// Brings the bindings of subports in line with those of their parents.
    pub(super) fn follow_parents(&mut self, out: &mut Outbox, now: Now) {
        let port = |name: &Name| ObjectRef {
            kind: ObjectKind::Port,
            name: name.clone(),
        };
        let mut events = Vec::new();
        for (subport, parent) in parents(&self.desired) {
            let subport = port(subport);
            let Some(held) = self.held.get(&subport) else { continue };
            let parent = self.held.get(&port(parent));
            if let Some(event) = follow(held, parent).filter(|_| on(Check::SubportFollows)) {
                events.push((subport, event));
            }
        }
        for (subport, event) in events {
            // One that has expired meanwhile is not attached any more, and ends with the next tick.
            let _ = self.step(&subport, &event, out, now);
            // Its parent may be active already.
            let parent = self.desired.parent_of(&subport);
            let parent = parent.and_then(|parent| self.held.get(&parent));
            if let Some(next) = self.held.get(&subport).and_then(|held| follow(held, parent))
                && next != event
            {
                let _ = self.step(&subport, &next, out, now);
            }
        }
    }
}

/// What a subport's binding has to be told because of its parent's, if anything.
fn follow(subport: &Held, parent: Option<&Held>) -> Option<Event> {
    let Held { binding, runtime } = subport;
    let parent = parent.map(|held| &held.binding);
    let carrier = parent.filter(|parent| parent.state.is_attached() && parent.host == binding.host);
    let host = binding.host.clone();
    match (binding.state, carrier.map(|parent| parent.state)) {
        (State::Prepared, Some(_)) if runtime.ready => Some(Event::Redeem { host }),
        (State::Attached, Some(State::Active)) => Some(Event::RingsLive(binding.fence())),
        (State::Active, Some(State::Attached)) => Some(Event::RingsStopped(binding.fence())),
        (State::Attached | State::Active, None) => Some(Event::Release {
            host,
            generation: binding.generation,
        }),
        _ => None,
    }
}
