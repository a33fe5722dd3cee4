//! The DPU's decisions: what the broker desires, what hosts ask, what the datapath reports, as one state without I/O.
//!
//! Give each [`Input`] to [`CardCore::handle`] and perform the effects it returns **in order, each completely, and
//! before the next input**. The order is the safety argument: silence first, then the disk, then everything that
//! somebody could rely on (a device that opens, an answer, a report). If [`Effect::Persist`] fails, perform nothing
//! that follows it: put back a clone of the core made before the input, refuse the request or drop the connection it
//! came from, and what was asked will be asked again.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    binding::{self, Binding, Event, Fence, Now, State, not_granted, unavailable},
    card::BindingReport,
    codec::encode,
    desired::DesiredState,
    id::{BootEpoch, Generation, Incarnation, Name, ObjectRef, OperationId, Revision},
    link::Reply,
    operation::Table,
    refusal::{Code, Refusal},
};

mod desired;
mod high_water;
mod host;
mod outbox;
mod record;
mod resize;
mod trunk;

pub use high_water::HighWater;
use outbox::Outbox;
pub use record::{CardRecord, HIGH_WATER_MAX, OPERATIONS_MAX, RECORD_LEN_MAX};

/// How long to wait before a device that could not be set up is tried again, in milliseconds.
pub const PREPARE_RETRY_MS: u64 = 5_000;

/// A device session: one connection of one device. Never reused while the process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What happens to the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The broker sent a desired state.
    Desired(DesiredState),
    /// The broker's channel is up, and the hello was answered.
    BrokerConnected,
    /// The broker made an inventory durable.
    InventoryAcked {
        /// Its number.
        seq: u64,
    },
    /// First message of a link. The versions were negotiated by the caller.
    HostHello {
        /// The host, by its link.
        host: Name,
        /// Its boot epoch.
        host_epoch: BootEpoch,
        /// The version agreed on.
        version: u16,
    },
    /// A host claims an object.
    Redeem {
        /// The host, by its link.
        host: Name,
        /// Names the mutation.
        operation: OperationId,
        /// What it claims.
        object: ObjectRef,
    },
    /// A host opens a device session.
    Connect {
        /// The host, by its link.
        host: Name,
        /// The object.
        object: ObjectRef,
        /// As told when redeemed.
        generation: Generation,
        /// As told when redeemed.
        incarnation: Incarnation,
    },
    /// A host gives an object back.
    Release {
        /// The host, by its link.
        host: Name,
        /// Names the mutation.
        operation: OperationId,
        /// The object.
        object: ObjectRef,
        /// Which binding of it.
        generation: Generation,
    },
    /// [`Effect::Prepare`] was done: the device and its policy are set up.
    Prepared {
        /// The object.
        object: ObjectRef,
        /// As in the effect.
        generation: Generation,
    },
    /// [`Effect::Prepare`] failed, or the device failed later.
    Fault {
        /// The object.
        object: ObjectRef,
        /// As in the effect.
        generation: Generation,
        /// What is wrong and what to do; for the operator.
        error: Refusal,
    },
    /// [`Effect::Resize`] was done or failed; or [`Effect::Prepare`] gave a volume's device fewer bytes than it was to
    /// have, and is answered by that next.
    Resized {
        /// The volume.
        object: ObjectRef,
        /// As in the effect.
        generation: Generation,
        /// How many bytes its device has now.
        size_bytes: u64,
        /// Why it is not what the volume was to have; for the operator.
        error: Option<Refusal>,
    },
    /// The rings of a session's device run.
    RingsLive {
        /// The session.
        session: SessionId,
    },
    /// They stopped.
    RingsStopped {
        /// The session.
        session: SessionId,
    },
    /// A session is over: every queue is stopped **and nothing of it is in flight any more**. This is what drains a
    /// binding, so it must not come earlier.
    SessionClosed {
        /// The session.
        session: SessionId,
    },
    /// Time passed. Send it about once a second.
    Tick,
}

/// What the daemon has to do. See the module's text for the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Nothing may go in or out of the object's device from now on.
    Shut {
        /// The object.
        object: ObjectRef,
    },
    /// Close a device session; [`Input::SessionClosed`] follows once nothing is in flight.
    CloseSession {
        /// The object.
        object: ObjectRef,
        /// The session.
        session: SessionId,
    },
    /// Make these bytes, a [`CardRecord`], durable in place of the former ones.
    Persist(Vec<u8>),
    /// Put the policy of all ports in force, in one step ([`CardCore::desired`]). Opens nothing.
    Configure,
    /// Take an object's device down: its binding has ended and nothing of it is in use.
    Teardown {
        /// The object.
        object: ObjectRef,
    },
    /// Set the object's device up, shut, as [`CardCore::desired`] describes it; answered by [`Input::Prepared`] or
    /// [`Input::Fault`]. A device that is there is left as it is.
    Prepare {
        /// The object.
        object: ObjectRef,
        /// To be named in the answer.
        generation: Generation,
    },
    /// Give a volume's device, which serves on meanwhile, the size that [`CardCore::desired`] has; answered by
    /// [`Input::Resized`].
    Resize {
        /// The volume.
        object: ObjectRef,
        /// To be named in the answer.
        generation: Generation,
    },
    /// The object's device may exchange data.
    Open {
        /// The object.
        object: ObjectRef,
    },
    /// Serve vhost-user on the socket that came with the request.
    OpenSession {
        /// The object.
        object: ObjectRef,
        /// The new session.
        session: SessionId,
    },
    /// Answer the host's request.
    Reply(Reply),
    /// Tell a host that its binding was revoked, if it is connected.
    SendRevoked {
        /// The host.
        host: Name,
        /// The object.
        object: ObjectRef,
        /// The binding that ended.
        generation: Generation,
    },
    /// The broker's desired state was refused; what was in force stays. Log it.
    RefuseDesired(Refusal),
    /// Tell the broker, if it is connected, that the desired state in force has this version.
    SendApplied {
        /// Its revision.
        revision: Revision,
    },
    /// Send the broker, if it is connected, all bindings.
    SendInventory {
        /// Its number; rises.
        seq: u64,
        /// The bindings.
        bindings: Vec<BindingReport>,
    },
}

/// What is known of a binding only while the process runs.
#[derive(Debug, Clone, Default)]
struct Runtime {
    /// Its device is set up.
    ready: bool,
    session: Option<SessionId>,
    /// Why its device has not the size that it is to have.
    unmet: Option<Refusal>,
    prepare_asked_ms: u64,
    /// The first inventory that told the broker of its end.
    told_released_in: Option<u64>,
}

/// A binding and its device.
#[derive(Debug, Clone)]
struct Held {
    binding: Binding,
    runtime: Runtime,
}

/// The card's state. Cloning it costs little: a clone shares what does not change after it.
#[derive(Debug, Clone)]
pub struct CardCore {
    card: Name,
    dpu_epoch: BootEpoch,
    desired: Arc<DesiredState>,
    held: Arc<BTreeMap<ObjectRef, Held>>,
    high_water: Arc<HighWater>,
    host_epochs: BTreeMap<Name, BootEpoch>,
    operations: Arc<Table>,
    sessions_opened: u64,
    inventories_sent: u64,
}

impl CardCore {
    /// Starts with what was durable when the last process ended (`None`: nothing, or it was damaged), and returns what
    /// to do before anything else.
    ///
    /// A process that starts has nothing in flight: what was draining has ended, what was active is attached. It
    /// takes a boot epoch above the stored one, and not below the clock in seconds. Who lost the record has to pass one
    /// whose epoch is above all it may have held.
    pub fn start(card: Name, record: Option<CardRecord>, now: Now) -> (Self, Vec<Effect>) {
        let record = record.unwrap_or_default();
        let mut core = Self {
            card,
            dpu_epoch: record.dpu_epoch.next().max(BootEpoch(now.unix_s)),
            desired: Arc::new(record.desired),
            held: Arc::default(),
            high_water: Arc::new(record.high_water),
            host_epochs: record.host_epochs.into_iter().collect(),
            operations: Arc::new(Table::load(record.operations, OPERATIONS_MAX)),
            sessions_opened: 0,
            inventories_sent: 0,
        };
        let held = Arc::make_mut(&mut core.held);
        for mut binding in record.bindings {
            binding.since_ms = now.monotonic_ms;
            if binding.state == State::Active {
                binding.state = State::Attached;
            }
            let object = binding.object.clone();
            let runtime = Runtime::default();
            held.insert(object, Held { binding, runtime });
        }
        let mut out = Outbox::default();
        out.persist = true;
        out.configure = true;
        let live = core.held.values().filter(|h| h.binding.state.is_live());
        for object in live.map(|h| h.binding.object.clone()).collect::<Vec<_>>() {
            core.ask_to_prepare(&object, &mut out, now);
        }
        let effects = core.finish(out, now);
        (core, effects)
    }

    /// What happens, and what to do about it.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Effect> {
        let mut out = Outbox::default();
        match input {
            Input::Desired(state) => self.take_desired(state, &mut out, now),
            Input::BrokerConnected => out.report = true,
            Input::InventoryAcked { seq } => self.forget_acknowledged(seq),
            Input::HostHello {
                host,
                host_epoch,
                version,
            } => self.greet(host, host_epoch, version, &mut out),
            Input::Redeem {
                host,
                operation,
                object,
            } => self.redeem(host, operation, object, &mut out, now),
            Input::Connect {
                host,
                object,
                generation,
                incarnation,
            } => {
                self.connect(
                    host,
                    object,
                    Fence {
                        generation,
                        incarnation,
                    },
                    &mut out,
                    now,
                );
            }
            Input::Release {
                host,
                operation,
                object,
                generation,
            } => {
                self.release(host, operation, object, generation, &mut out, now);
            }
            Input::Prepared { object, generation } => self.prepared(&object, generation, &mut out, now),
            Input::Fault {
                object,
                generation,
                error,
            } => self.fault(&object, generation, error, &mut out, now),
            Input::Resized {
                object,
                generation,
                size_bytes,
                error,
            } => self.resized(&object, generation, size_bytes, error, &mut out, now),
            Input::RingsLive { session } => self.rings(session, Event::RingsLive, &mut out, now),
            Input::RingsStopped { session } => self.rings(session, Event::RingsStopped, &mut out, now),
            Input::SessionClosed { session } => self.session_closed(session, &mut out, now),
            Input::Tick => self.tick(&mut out, now),
        }
        self.finish(out, now)
    }

    /// The card's name.
    pub fn card(&self) -> &Name {
        &self.card
    }

    /// This process's boot epoch, for the hello.
    pub fn dpu_epoch(&self) -> BootEpoch {
        self.dpu_epoch
    }

    /// The desired state in force.
    pub fn desired(&self) -> &DesiredState {
        &self.desired
    }

    /// The latest binding of an object, unless it has ended and the broker knows.
    pub fn binding(&self, object: &ObjectRef) -> Option<&Binding> {
        self.held.get(object).map(|h| &h.binding)
    }

    /// All of them.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.held.values().map(|h| &h.binding)
    }

    /// The object that a session serves, while it does.
    pub fn session_object(&self, session: SessionId) -> Option<&ObjectRef> {
        self.held
            .iter()
            .find(|(_, h)| h.runtime.session == Some(session))
            .map(|(object, _)| object)
    }

    /// Ends what can end, binds what can be bound, and puts the effects in order.
    fn finish(&mut self, mut out: Outbox, now: Now) -> Vec<Effect> {
        self.follow_parents(&mut out, now);
        self.drain_idle(&mut out, now);
        self.bind_granted(&mut out, now);
        if out.report {
            let inventory = self.inventory();
            out.inventory = Some(inventory);
        }
        let record = out.persist.then(|| encode(&self.record()));
        out.into_effects(record)
    }

    /// A binding is drained once no session serves it.
    fn drain_idle(&mut self, out: &mut Outbox, now: Now) {
        let idle =
            |h: &&Held| h.runtime.session.is_none() && matches!(h.binding.state, State::Draining | State::Quarantined);
        for binding in self
            .held
            .values()
            .filter(idle)
            .map(|h| h.binding.clone())
            .collect::<Vec<_>>()
        {
            // A refusal is impossible: the fence is the binding's own and the state was just looked at.
            let _ = self.step(&binding.object, &Event::Drained(binding.fence()), out, now);
        }
    }

    /// Runs one event on the binding of `object` and notes what has to be done.
    fn step(&mut self, object: &ObjectRef, event: &Event, out: &mut Outbox, now: Now) -> Result<(), Refusal> {
        let held = self.held.get(object).ok_or_else(|| not_granted(object))?;
        let (next, effects) = binding::step(&held.binding, event, now)?;
        for effect in effects {
            // No host knows of subports.
            if effect != binding::Effect::NotifyHost || self.desired.parent_of(object).is_none() {
                out.note(effect, &next, held.runtime.session);
            }
        }
        if next == held.binding {
            return Ok(());
        }
        if let Some(held) = self.held_mut(object) {
            if next.state == State::Released {
                held.runtime.ready = false;
            }
            held.binding = next;
        }
        Ok(())
    }

    /// A binding that is about to change. Not to be asked for without need: a clone that was made before parts company
    /// with this one here.
    fn held_mut(&mut self, object: &ObjectRef) -> Option<&mut Held> {
        if self.held.contains_key(object) {
            Arc::make_mut(&mut self.held).get_mut(object)
        } else {
            None
        }
    }

    fn ask_to_prepare(&mut self, object: &ObjectRef, out: &mut Outbox, now: Now) {
        if let Some(held) = self.held_mut(object) {
            held.runtime.prepare_asked_ms = now.monotonic_ms;
            held.runtime.unmet = None;
            out.prepare.push(Effect::Prepare {
                object: object.clone(),
                generation: held.binding.generation,
            });
        }
    }

    fn prepared(&mut self, object: &ObjectRef, generation: Generation, out: &mut Outbox, now: Now) {
        let Some(held) = self.held_mut(object).filter(|h| h.binding.generation == generation) else {
            return;
        };
        let event = Event::Prepared(held.binding.fence());
        if held.binding.state.is_live() && !held.runtime.ready {
            held.runtime.ready = true;
            let _ = self.step(object, &event, out, now);
            self.note_size(object, out);
        }
    }

    fn fault(&mut self, object: &ObjectRef, generation: Generation, error: Refusal, out: &mut Outbox, now: Now) {
        let Some(held) = self.held_mut(object).filter(|h| h.binding.generation == generation) else {
            return;
        };
        let repeated = held.binding.error.as_ref() == Some(&error) && !held.runtime.ready;
        let event = Event::Fault(held.binding.fence(), error);
        if held.binding.state.is_live() && !repeated {
            held.runtime.ready = false;
            let _ = self.step(object, &event, out, now);
        }
    }

    fn rings(&mut self, session: SessionId, event: fn(Fence) -> Event, out: &mut Outbox, now: Now) {
        if let Some(object) = self.session_object(session).cloned()
            && let Some(fence) = self.binding(&object).map(Binding::fence)
        {
            // Refused while the binding drains: its rings are of no interest any more.
            let _ = self.step(&object, &event(fence), out, now);
        }
    }

    fn session_closed(&mut self, session: SessionId, out: &mut Outbox, now: Now) {
        self.rings(session, Event::RingsStopped, out, now);
        if let Some(object) = self.session_object(session).cloned()
            && let Some(held) = self.held_mut(&object)
        {
            held.runtime.session = None;
        }
    }

    fn tick(&mut self, out: &mut Outbox, now: Now) {
        if self.operations.has_old(now.unix_s) {
            Arc::make_mut(&mut self.operations).sweep(now.unix_s);
        }
        for object in self.held.keys().cloned().collect::<Vec<_>>() {
            for event in [Event::GrantExpired, Event::DrainTimeout] {
                let _ = self.step(&object, &event, out, now);
            }
            let waits = |h: &&Held| {
                let due = now.monotonic_ms.saturating_sub(h.runtime.prepare_asked_ms) >= PREPARE_RETRY_MS;
                h.binding.state.is_live() && !h.runtime.ready && h.runtime.session.is_none() && due
            };
            if self.held.get(&object).filter(waits).is_some() {
                self.ask_to_prepare(&object, out, now);
            }
            self.retry_resize(&object, out, now);
        }
    }
}

/// Refuses what needs a device while there is none. One that is being set up, or whose file is still locked by a daemon
/// that was killed, is there in a moment: then the code is [`Code::Busy`], on which a host asks again at once.
fn check_ready(held: &Held) -> Result<(), Refusal> {
    let Held { binding, runtime } = held;
    match &binding.error {
        _ if runtime.ready => Ok(()),
        Some(error) if error.code != Code::Busy => Err(unavailable(&binding.object)),
        _ => {
            let text = format!("{} is being set up: try again in a moment", binding.object);
            Err(Refusal::new(Code::Busy, text))
        }
    }
}

fn busy(object: &ObjectRef) -> Refusal {
    Refusal::new(Code::Busy, format!("{object} has a session already: close it first"))
}

#[cfg(test)]
mod tests;
