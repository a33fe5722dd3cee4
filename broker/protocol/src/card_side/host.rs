//! What hosts ask over their link.

use std::sync::Arc;

use super::{CardCore, Effect, Outbox, SessionId, busy, check_ready};
use crate::{
    binding::{Event, Fence, Now, State, not_granted},
    codec::{decode, encode},
    id::{BootEpoch, Generation, Name, ObjectRef, OperationId},
    link::{LINK_MESSAGE_LEN_MAX, Reply, Request},
    operation::{RequestHash, Standing},
    refusal::{Code, Refusal},
};

impl CardCore {
    /// Greets a host. One that booted again has lost its sessions; one from before that is refused.
    pub(super) fn greet(&mut self, host: Name, host_epoch: BootEpoch, version: u16, out: &mut Outbox) {
        let seen = self.host_epochs.get(&host).copied().unwrap_or_default();
        if host_epoch < seen {
            let text = format!(
                "host {host} has boot epoch {seen} by now, this link is from {host_epoch}: reconnect; if the host can not \
                 reach {seen} again, stop the DPU's daemon and run `outboard-dpu forget-host-epoch` there"
            );
            out.reply = Some(Reply::Refused {
                refusal: Refusal::new(Code::Stale, text),
            });
            return;
        }
        if host_epoch > seen {
            for held in self.held.values().filter(|h| h.binding.host == host) {
                if let Some(session) = held.runtime.session {
                    out.close(&held.binding, session);
                }
            }
            self.host_epochs.insert(host, host_epoch);
            out.persist = true;
        }
        out.reply = Some(Reply::Welcome {
            version,
            card: self.card.clone(),
            dpu_epoch: self.dpu_epoch,
        });
    }

    /// `Prepared → Attached`, or the same answer again if the host has the object already.
    pub(super) fn redeem(&mut self, host: Name, operation: OperationId, object: ObjectRef, out: &mut Outbox, now: Now) {
        let request = Request::Redeem {
            operation,
            object: object.clone(),
        };
        self.answer_once(&host.clone(), operation, &request, out, now, |core, out| {
            core.check_has_device(&object)?;
            let event = Event::Redeem { host };
            if let Some(held) = core.held.get(&object)
                && held.binding.state == State::Prepared
            {
                // Who may not have it is told so before anything about its device.
                crate::binding::step(&held.binding, &event, now)?;
                check_ready(held)?;
            }
            core.step(&object, &event, out, now)?;
            let Fence {
                generation,
                incarnation,
            } = core.binding(&object).ok_or_else(|| not_granted(&object))?.fence();
            Ok(Reply::Redeemed {
                generation,
                incarnation,
            })
        });
    }

    /// Opens the one session that an attached object may have.
    pub(super) fn connect(&mut self, host: Name, object: ObjectRef, fence: Fence, out: &mut Outbox, now: Now) {
        let opened = self
            .check_has_device(&object)
            .and_then(|()| self.step(&object, &Event::Connect { host, fence }, out, now))
            .and_then(|()| {
                let session = SessionId(self.sessions_opened + 1);
                let held = self.held.get(&object).ok_or_else(|| not_granted(&object))?;
                check_ready(held)?;
                if held.runtime.session.is_some() {
                    return Err(busy(&object));
                }
                let held = self.held_mut(&object).ok_or_else(|| not_granted(&object))?;
                held.runtime.session = Some(session);
                self.sessions_opened = session.0;
                Ok(session)
            });
        out.reply = Some(match opened {
            Ok(session) => {
                out.open_session = Some(Effect::OpenSession { object, session });
                Reply::Connected
            }
            Err(refusal) => Reply::Refused { refusal },
        });
    }

    /// `Attached, Active → Draining`; an older binding than the present one is released already.
    pub(super) fn release(
        &mut self,
        host: Name,
        operation: OperationId,
        object: ObjectRef,
        generation: Generation,
        out: &mut Outbox,
        now: Now,
    ) {
        let request = Request::Release {
            operation,
            object: object.clone(),
            generation,
        };
        self.answer_once(&host.clone(), operation, &request, out, now, |core, out| {
            core.check_has_device(&object)?;
            core.step(&object, &Event::Release { host, generation }, out, now)?;
            Ok(Reply::Released)
        });
    }

    /// Decides on a mutation the first time it is asked for, and gives the same answer from then on. A refusal is not
    /// kept: it changed nothing, and the next attempt may succeed.
    ///
    /// The result rides along with the next record that is written. If the process ends before that, nothing that
    /// followed from the mutation was durable either, or it had changed nothing.
    fn answer_once(
        &mut self,
        host: &Name,
        operation: OperationId,
        request: &Request,
        out: &mut Outbox,
        now: Now,
        decide: impl FnOnce(&mut Self, &mut Outbox) -> Result<Reply, Refusal>,
    ) {
        let hash = RequestHash::of(host.as_str(), request);
        let known = match self.operations.find(operation, hash, now.unix_s) {
            Ok(Standing::New) => Ok(None),
            Ok(Standing::Done(bytes)) => Ok(Some(bytes.to_vec())),
            Err(refusal) => Err(refusal),
        };
        let answer = known.and_then(|known| match known {
            Some(bytes) => Ok(decode(&bytes, LINK_MESSAGE_LEN_MAX)?),
            None => {
                let reply = decide(self, out)?;
                Arc::make_mut(&mut self.operations).record(operation, hash, encode(&reply), now.unix_s);
                Ok(reply)
            }
        });
        out.reply = Some(answer.unwrap_or_else(|refusal| Reply::Refused { refusal }));
    }
}
