//! Puts effects into the one safe order, whatever order they arose in.

use outboard_controls::{Check, on};

use super::{Effect, SessionId};
use crate::{
    binding::{self, Binding},
    card::BindingReport,
    link::Reply,
    refusal::Refusal,
};

/// Effects of one input, by kind.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    shut: Vec<Effect>,
    close: Vec<Effect>,
    /// Something durable changed.
    pub persist: bool,
    /// The policy of ports may have changed.
    pub configure: bool,
    teardown: Vec<Effect>,
    pub prepare: Vec<Effect>,
    open: Vec<Effect>,
    pub open_session: Option<Effect>,
    pub reply: Option<Reply>,
    notices: Vec<Effect>,
    pub refused: Option<Refusal>,
    pub applied: Option<Effect>,
    /// The broker has to hear of it.
    pub report: bool,
    pub inventory: Option<(u64, Vec<BindingReport>)>,
}

impl Outbox {
    /// Notes an effect of a step that ended in `binding`, whose device `session` serves.
    pub fn note(&mut self, effect: binding::Effect, binding: &Binding, session: Option<SessionId>) {
        let object = || binding.object.clone();
        match effect {
            binding::Effect::Shut => {
                // What is shut in the end is not opened, whatever came before.
                self.open.retain(|open| *open != Effect::Open { object: object() });
                self.shut.push(Effect::Shut { object: object() });
            }
            binding::Effect::CloseSession => {
                self.close.extend(session.map(|session| Effect::CloseSession {
                    object: object(),
                    session,
                }));
            }
            binding::Effect::Persist => self.persist = true,
            binding::Effect::Open => self.open.push(Effect::Open { object: object() }),
            // The caller makes the session, because it needs a number.
            binding::Effect::OpenSession => {}
            binding::Effect::Teardown => self.teardown.push(Effect::Teardown { object: object() }),
            binding::Effect::NotifyHost => self.notices.push(Effect::SendRevoked {
                host: binding.host.clone(),
                object: object(),
                generation: binding.generation,
            }),
            binding::Effect::Report => self.report = true,
        }
    }

    /// Closes a session for another reason than its binding's state.
    pub fn close(&mut self, binding: &Binding, session: SessionId) {
        self.note(binding::Effect::CloseSession, binding, Some(session));
    }

    /// All effects: silence, then the disk, then what others see. `record` is what to persist, if anything.
    pub fn into_effects(self, record: Option<Vec<u8>>) -> Vec<Effect> {
        let mut effects = self.shut;
        effects.extend(self.close);
        let persist = record.map(Effect::Persist);
        let (first, last) = if on(Check::PersistFirst) {
            (persist, None)
        } else {
            (None, persist)
        };
        effects.extend(first);
        effects.extend(self.configure.then_some(Effect::Configure));
        effects.extend(self.teardown);
        effects.extend(self.prepare);
        effects.extend(self.open);
        effects.extend(self.open_session);
        effects.extend(self.reply.map(Effect::Reply));
        effects.extend(self.notices);
        effects.extend(self.refused.map(Effect::RefuseDesired));
        effects.extend(self.applied);
        effects.extend(
            self.inventory
                .map(|(seq, bindings)| Effect::SendInventory { seq, bindings }),
        );
        effects.extend(last);
        effects
    }
}
