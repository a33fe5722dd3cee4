//! Bindings: redeemed, taken back, given back.

use std::time::Instant;

use outboard_protocol::{
    id::{Generation, ObjectRef},
    link::{Reply, Request},
    refusal::{Code, Refusal},
};

use super::{
    Action, Agent, Binding, Ticket,
    device::{Device, Phase},
    text,
};

impl Agent {
    pub(super) fn revoked(&mut self, object: &ObjectRef, generation: Generation, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        match device.binding {
            Some(binding) if binding.generation == generation => {}
            // The DPU answered that it is not granted before the notice came that says why.
            None if device.ended == Some(generation) && !device.leaving => return Self::mark_revoked(device, object),
            _ => return,
        }
        Self::unbind(device, object, &mut self.actions);
        if device.leaving {
            // Nothing is left to give back.
            self.forget(object);
            return;
        }
        Self::mark_revoked(device, object);
        // A redeem that is under way will be answered.
        if !matches!(device.phase, Phase::Redeeming { .. }) {
            device.phase = Phase::Idle {
                retry_at: device.retry.failed(now),
            };
        }
    }

    pub(super) fn mark_revoked(device: &mut Device, object: &ObjectRef) {
        device.revoked = true;
        device.problem = Some(text::revoked(object));
    }

    pub(super) fn answer(&mut self, object: &ObjectRef, ticket: Ticket, reply: Reply, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        match (&device.phase, reply) {
            (
                Phase::Redeeming { ticket: asked },
                Reply::Redeemed {
                    generation,
                    incarnation,
                },
            ) if *asked == ticket => {
                self.redeemed(
                    object,
                    Binding {
                        generation,
                        incarnation,
                    },
                    now,
                );
            }
            (Phase::Redeeming { ticket: asked }, Reply::Refused { refusal }) if *asked == ticket => {
                self.redeem_refused(object, &refusal, now);
            }
            (Phase::Redeeming { ticket: asked }, reply) if *asked == ticket => {
                tracing::error!(%object, ?reply, "the DPU answered a redeem with something else");
                device.phase = Phase::Idle {
                    retry_at: device.retry.failed(now),
                };
            }
            (Phase::Releasing { ticket: asked }, Reply::Refused { refusal })
                if *asked == ticket && !ends_binding(refusal.code) =>
            {
                tracing::warn!(%object, %refusal, "the DPU cannot take it back now");
                device.phase = Phase::Idle {
                    retry_at: device.retry.failed(now),
                };
            }
            (Phase::Releasing { ticket: asked }, reply) if *asked == ticket => {
                if reply != Reply::Released {
                    tracing::warn!(%object, ?reply, "the DPU had nothing to take back");
                }
                self.forget(object);
            }
            (_, reply) => self.session_answer(object, ticket, &reply, now),
        }
    }

    pub(super) fn redeemed(&mut self, object: &ObjectRef, binding: Binding, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        if device.binding.is_some_and(|before| before != binding) {
            // Another binding than the one the session belongs to.
            Self::unbind_session(device, object, &mut self.actions);
        }
        if device.binding.is_none() {
            device.problem = None;
        }
        device.binding = Some(binding);
        // Answered: to ask again later is another operation, or the old answer would be all there is to hear.
        device.operation = None;
        device.revoked = false;
        device.retry.reset();
        device.phase = if device.leaving {
            self.actions.push(Action::Remember);
            Phase::Idle { retry_at: now }
        } else {
            Phase::Attached
        };
    }

    pub(super) fn redeem_refused(&mut self, object: &ObjectRef, refusal: &Refusal, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        device.operation = None;
        if ends_binding(refusal.code) {
            Self::unbind(device, object, &mut self.actions);
            if device.leaving {
                self.forget(object);
                return;
            }
        }
        device.phase = Phase::Idle {
            retry_at: device.retry.failed(now),
        };
        if !device.revoked {
            device.problem = Some(match refusal.code {
                // Nobody said why, however often it is asked for again.
                Code::NotGranted if device.ended.is_some() => text::not_granted_any_more(object),
                _ => text::refused(object, refusal),
            });
        }
    }

    /// The binding is over: no session, no socket, and what comes next is another operation.
    pub(super) fn unbind(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        Self::unbind_session(device, object, actions);
        device.operation = None;
    }

    pub(super) fn unbind_session(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        Self::close_vmm(device, object, actions);
        Self::close_socket(device, object, actions);
        if let Some(binding) = device.binding.take() {
            device.ended = Some(binding.generation);
        }
        // Another binding may be to something else.
        device.known = false;
    }

    pub(super) fn close_vmm(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        if let Some(guest) = device.guest.take() {
            actions.push(Action::CloseVmm(object.clone(), guest.connection));
        }
    }

    pub(super) fn close_socket(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        if device.socket_open {
            device.socket_open = false;
            device.socket_problem = None;
            actions.push(Action::CloseSocket(object.clone()));
        }
    }

    pub(super) fn forget(&mut self, object: &ObjectRef) {
        if self.devices.remove(object).is_some_and(|device| device.leaving) {
            self.actions.push(Action::Remember);
        }
    }

    pub(super) fn advance_binding(&mut self, object: &ObjectRef, now: Instant) {
        let Some(device) = self.devices.get(object) else {
            return;
        };
        match device.phase {
            Phase::Idle { retry_at } if retry_at <= now && device.is_wanted() => {}
            _ => return,
        }
        let ticket = self.ticket(object);
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        let object = object.clone();
        // The same operation until it is answered: an answer may have been lost.
        let operation = *device.operation.get_or_insert_with(self.new_operation);
        let request = match device.binding {
            Some(Binding { generation, .. }) if device.leaving => {
                device.phase = Phase::Releasing { ticket };
                Request::Release {
                    operation,
                    object,
                    generation,
                }
            }
            _ => {
                device.phase = Phase::Redeeming { ticket };
                Request::Redeem { operation, object }
            }
        };
        self.actions.push(Action::Send(ticket, request));
    }
}

/// True if a refusal says that the binding is not, or no longer, this host's; others may be different a moment later.
pub(super) fn ends_binding(code: Code) -> bool {
    matches!(
        code,
        Code::NotGranted | Code::Stale | Code::WrongState | Code::OperationConflict
    )
}
