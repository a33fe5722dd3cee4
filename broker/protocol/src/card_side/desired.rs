//! What the broker desires, and what the card tells it.

use std::sync::Arc;

use outboard_controls::{Check, on};

use super::{CardCore, Effect, Held, Outbox, Runtime, trunk::parents};
use crate::{
    binding::{Binding, Event, Fence, Now, State},
    card::BindingReport,
    desired::{DesiredState, Grant},
    id::{ObjectKind, ObjectRef},
    refusal::{Code, Refusal},
};

impl CardCore {
    /// Takes a desired state up, unless it is older than the one in force or contradicts itself.
    pub(super) fn take_desired(&mut self, state: DesiredState, out: &mut Outbox, now: Now) {
        let revision = state.revision;
        if state != *self.desired {
            if let Err(refusal) = self.check_successor(&state) {
                out.refused = Some(refusal);
                return;
            }
            self.end_unwanted(&state, out, now);
            self.note_changed_volumes(&state, out, now);
            self.desired = Arc::new(state);
            out.persist = true;
            out.configure = true;
        }
        out.applied = Some(Effect::SendApplied { revision });
        out.report = true;
    }

    fn check_successor(&self, state: &DesiredState) -> Result<(), Refusal> {
        if state.version() <= self.desired.version() && on(Check::HighWater) {
            let ((epoch, revision), (held_epoch, held)) = (state.version(), self.desired.version());
            let text = format!(
                "the broker sent desired state {revision} of its epoch {epoch}, this card holds another {held} of epoch {held_epoch}"
            );
            return Err(Refusal::new(Code::Stale, text));
        }
        state.check()
    }

    /// Revokes the bindings that the state no longer grants, and those of ports that get another parent: a binding is for
    /// one device.
    fn end_unwanted(&mut self, state: &DesiredState, out: &mut Outbox, now: Now) {
        let (were, are) = (parents(&self.desired), parents(state));
        let stays =
            |object: &ObjectRef| object.kind != ObjectKind::Port || were.get(&object.name) == are.get(&object.name);
        let live = Arc::make_mut(&mut self.held).values_mut();
        let live = live.filter(|h| h.binding.state.is_live());
        let mut ended = Vec::new();
        for Held { binding, .. } in live {
            let grant = state.grant(&binding.object).filter(|grant| is_for(grant, binding));
            match grant.filter(|_| stays(&binding.object)) {
                Some(grant) => binding.expires_unix_s = grant.expires_unix_s,
                None => ended.push(binding.object.clone()),
            }
        }
        for object in ended {
            // Cannot be refused: a live binding can always be revoked.
            let _ = self.step(&object, &Event::Revoke, out, now);
        }
    }

    /// Binds what is granted and not bound: once the former binding has ended, and never a generation seen before.
    pub(super) fn bind_granted(&mut self, out: &mut Outbox, now: Now) {
        let missing: Vec<Grant> = self
            .desired
            .grants
            .iter()
            .filter(|g| self.is_to_bind(g, now))
            .cloned()
            .collect();
        for Grant {
            object,
            host,
            generation,
            incarnation,
            expires_unix_s,
        } in missing
        {
            Arc::make_mut(&mut self.high_water).raise(&object, generation);
            let fence = Fence {
                generation,
                incarnation,
            };
            let binding = Binding::reserve(object.clone(), host, fence, expires_unix_s, now);
            let runtime = Runtime::default();
            Arc::make_mut(&mut self.held).insert(object.clone(), Held { binding, runtime });
            out.persist = true;
            out.report = true;
            self.ask_to_prepare(&object, out, now);
        }
    }

    fn is_to_bind(&self, grant: &Grant, now: Now) -> bool {
        let expired = grant.expires_unix_s.is_some_and(|expires| now.unix_s >= expires);
        let former_ended = match self.binding(&grant.object) {
            Some(former) if former.state == State::Released => former.generation != grant.generation,
            Some(former) => former.generation != grant.generation && !on(Check::OneBinding),
            None => true,
        };
        former_ended && !expired && self.high_water.is_new(&grant.object, grant.generation)
    }

    /// The next inventory: its number, and all bindings. A grant of a generation that is over is answered by the highest
    /// generation seen, so that a broker that was set back learns how far to go.
    pub(super) fn inventory(&mut self) -> (u64, Vec<BindingReport>) {
        self.inventories_sent += 1;
        let seq = self.inventories_sent;
        let untold = |h: &Held| h.binding.state == State::Released && h.runtime.told_released_in.is_none();
        if self.held.values().any(untold) {
            for held in Arc::make_mut(&mut self.held).values_mut().filter(|h| untold(h)) {
                held.runtime.told_released_in = Some(seq);
            }
        }
        let report = |Held { binding, .. }: &Held| BindingReport {
            object: binding.object.clone(),
            generation: binding.generation,
            incarnation: binding.incarnation,
            state: binding.state,
            error: binding.error.clone(),
        };
        let mut reports: Vec<_> = self.held.values().map(report).collect();
        let over = self
            .desired
            .grants
            .iter()
            .filter(|grant| !self.held.contains_key(&grant.object));
        reports.extend(over.map(|grant| BindingReport {
            object: grant.object.clone(),
            generation: self.high_water.of(&grant.object).max(grant.generation),
            incarnation: grant.incarnation,
            state: State::Released,
            error: None,
        }));
        (seq, reports)
    }

    /// Drops ended bindings whose end the broker has made durable.
    pub(super) fn forget_acknowledged(&mut self, seq: u64) {
        let known = |h: &Held| h.runtime.told_released_in.is_some_and(|told| told <= seq);
        if self.held.values().any(known) {
            Arc::make_mut(&mut self.held).retain(|_, h| !known(h));
        }
    }
}

fn is_for(grant: &Grant, binding: &Binding) -> bool {
    (grant.generation, grant.incarnation) == (binding.generation, binding.incarnation) && grant.host == binding.host
}
