//! The one thread that decides: it feeds what happens to the pure core and does what the core says, in its order.
//!
//! What makes the core's own record durable waits here, one thing after the other; silence does not come through here
//! but through the [`Gate`], and volumes are opened elsewhere, by the [`Opener`].

use std::{
    collections::VecDeque,
    os::unix::net::UnixStream,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use outboard_engine::WorkerGone;
use outboard_protocol::{
    binding::{Binding, Now, not_granted},
    card::FromCard,
    card_side::{CardCore, Effect, Input},
    desired::Volume,
    id::{Generation, ObjectKind, ObjectRef},
    inquiry::{BindingState, ObjectReport},
    link::Reply,
    refusal::{Code, Refusal},
};

use crate::{
    broker_channel::Outbox,
    clock,
    gate::Gate,
    history::History,
    inquiry::ObjectInquiry,
    link::Links,
    locked::{self, Found, Locked},
    message::Message,
    opener::{Done, Opener, Outcome},
    policy::{Filters, Tracking, port_policy},
    sessions::Sessions,
    volumes::{Opened, Unavailable},
    workers::Workers,
};

/// How often the core is told the time.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for sessions to end when the daemon stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the core's records go. A trait so that tests can have a slow or broken disk.
pub trait Disk: Send {
    /// Makes `record` durable in place of the former one.
    fn save(&mut self, record: &[u8]) -> std::io::Result<()>;
}

impl Disk for crate::state_file::StateFile {
    fn save(&mut self, record: &[u8]) -> std::io::Result<()> {
        Self::save(self, record)
    }
}

/// What the enforcement works with.
pub struct Parts {
    /// The datapath's workers.
    pub workers: Workers,
    /// Who may be open.
    pub gate: Gate,
    /// The core's memory.
    pub disk: Box<dyn Disk>,
    /// Opens volumes.
    pub opener: Opener,
    /// Device sessions.
    pub sessions: Sessions,
    /// The host's connections.
    pub links: Arc<Links>,
    /// What the broker is to hear.
    pub outbox: Outbox,
    /// How connections of ports with groups are followed.
    pub tracking: Tracking,
}

/// The state of the thread.
pub struct Enforcement {
    core: CardCore,
    parts: Parts,
    /// Inputs that effects gave rise to.
    followed: VecDeque<Input>,
    /// Our own inputs whose consequences could not be made durable; tried again with each tick.
    retried: VecDeque<Input>,
    /// Volumes that are tried again as soon as their file may be free.
    locked: Locked,
    history: History,
    /// What the ports' groups allow.
    filters: Filters,
}

/// Why the effects of an input were not all performed.
enum Stopped {
    /// The record could not be saved.
    Disk(std::io::Error),
    /// The datapath has ended, and with it the daemon.
    Worker,
}

impl From<WorkerGone> for Stopped {
    fn from(_: WorkerGone) -> Self {
        Self::Worker
    }
}

/// What came with an input.
#[derive(Default)]
struct Origin {
    stream: Option<UnixStream>,
    reply: Option<SyncSender<Reply>>,
}

impl Enforcement {
    /// Performs what the core wants at start. Fails only if its record cannot be saved.
    pub fn start(core: CardCore, effects: Vec<Effect>, parts: Parts) -> Result<Self, std::io::Error> {
        let filters = Filters::new(parts.tracking.clone());
        let mut this = Self {
            core,
            parts,
            followed: VecDeque::new(),
            retried: VecDeque::new(),
            locked: Locked::default(),
            history: History::default(),
            filters,
        };
        match this.perform(effects, &mut Origin::default()) {
            Ok(()) => {}
            Err(Stopped::Disk(e)) => return Err(e),
            Err(Stopped::Worker) => return Err(std::io::Error::other(WorkerGone)),
        }
        this.follow(clock::now());
        Ok(this)
    }

    /// Works until [`Message::Stop`].
    pub fn run(mut self, messages: &Receiver<Message>) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let due = self.locked.next().map_or(next_tick, |next| next.min(next_tick));
            match messages.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(message) => self.take(message, clock::now()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // After a message too: a host that always has another one must not hold up the time.
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                self.tick(clock::now());
            }
            self.retry_locked();
        }
        self.stop(messages);
    }

    /// One message.
    pub fn take(&mut self, message: Message, now: Now) {
        match message {
            Message::Broker(input) => self.handle(input, Origin::default(), now),
            Message::Host { input, stream, reply } => self.take_host(input, stream, reply, now),
            Message::Datapath(input) => {
                if let Input::SessionClosed { session } = &input {
                    self.parts.sessions.closed(*session);
                }
                self.handle(input, Origin::default(), now);
            }
            Message::Volume(done) => {
                if let Err(WorkerGone) = self.volume_done(*done) {
                    // The daemon ends.
                    return;
                }
            }
            Message::CallBroken { object, queue } => {
                tracing::error!(
                    "{object}: host made the call eventfd of queue {queue} block and filled it; its session is closed; fix: \
                     restart the VM, or find out what in the host writes to that eventfd"
                );
                self.parts.sessions.close_of(&object);
            }
            Message::Inquiry(asked) => self.inform(*asked),
            Message::Stop => {}
        }
        self.follow(now);
    }

    /// Tells what is known of an object here. The answer is not waited for: its device is asked elsewhere.
    fn inform(&self, asked: ObjectInquiry) {
        let ObjectInquiry { object, reply } = asked;
        let desired = self.core.desired();
        let report = ObjectReport {
            described: desired.describes(&object),
            granted: desired.grant(&object).is_some(),
            binding: self.core.binding(&object).map(|binding| BindingState {
                generation: binding.generation,
                incarnation: binding.incarnation,
                state: binding.state,
                host: binding.host.clone(),
                error: binding.error.clone(),
            }),
            incidents: self.history.of(&object),
            session: self.parts.sessions.has(&object),
            ..ObjectReport::default()
        };
        // Whoever asked may not wait any more.
        let _ = reply.send(report);
    }

    fn take_host(&mut self, input: Input, stream: Option<UnixStream>, reply: SyncSender<Reply>, now: Now) {
        if matches!(input, Input::Connect { .. }) && self.parts.sessions.is_full() {
            let text = "this DPU serves as many devices as it may: raise limits.sessions in its configuration";
            answer(
                &reply,
                Reply::Refused {
                    refusal: Refusal::new(Code::Quota, text),
                },
            );
            return;
        }
        self.handle(
            input,
            Origin {
                stream,
                reply: Some(reply),
            },
            now,
        );
    }

    fn tick(&mut self, now: Now) {
        self.handle(Input::Tick, Origin::default(), now);
        for input in std::mem::take(&mut self.retried) {
            self.handle(input, Origin::default(), now);
        }
        self.follow(now);
    }

    fn follow(&mut self, now: Now) {
        while let Some(input) = self.followed.pop_front() {
            self.handle(input, Origin::default(), now);
        }
    }

    fn handle(&mut self, input: Input, mut origin: Origin, now: Now) {
        let before = self.core.clone();
        let effects = self.core.handle(input.clone(), now);
        match self.perform(effects, &mut origin) {
            Ok(()) => {}
            Err(Stopped::Disk(e)) => {
                self.core = before;
                self.not_durable(input, &e);
            }
            // The daemon ends; whoever watches the worker says why.
            Err(Stopped::Worker) => {}
        }
        if let Some(reply) = origin.reply {
            let text = "the DPU cannot serve this now: try again, or ask the operator to look at its log";
            answer(
                &reply,
                Reply::Refused {
                    refusal: Refusal::new(Code::Unavailable, text),
                },
            );
        }
    }

    /// The core forgot the input. Whoever sent it will ask again; what we know ourselves we must not lose.
    fn not_durable(&mut self, input: Input, error: &std::io::Error) {
        tracing::error!(
            "the state cannot be saved, so nothing new is granted: {error}; fix: free space in state_dir, or repair its disk"
        );
        match input {
            Input::Desired(_) | Input::BrokerConnected | Input::InventoryAcked { .. } => self.parts.outbox.reconnect(),
            Input::Prepared { .. }
            | Input::Fault { .. }
            | Input::Resized { .. }
            | Input::RingsLive { .. }
            | Input::RingsStopped { .. }
            | Input::SessionClosed { .. } => {
                // A device that is set up again and again while the disk is full is told once.
                if !self.retried.contains(&input) {
                    self.retried.push_back(input);
                }
            }
            Input::HostHello { .. } | Input::Redeem { .. } | Input::Connect { .. } | Input::Release { .. } => {}
            Input::Tick => {}
        }
    }

    fn perform(&mut self, effects: Vec<Effect>, origin: &mut Origin) -> Result<(), Stopped> {
        for effect in effects {
            self.perform_one(effect, origin)?;
        }
        Ok(())
    }

    fn perform_one(&mut self, effect: Effect, origin: &mut Origin) -> Result<(), Stopped> {
        match effect {
            Effect::Shut { object } => self.parts.gate.shut(&object)?,
            Effect::CloseSession { session, .. } => self.parts.sessions.close(session),
            Effect::Persist(record) => self.parts.disk.save(&record).map_err(Stopped::Disk)?,
            Effect::Configure => self.configure()?,
            Effect::Teardown { object } => self.tear_down(&object)?,
            Effect::Prepare { object, generation } => self.prepare(object, generation)?,
            Effect::Resize { object, generation } => self.resize(object, generation),
            Effect::Open { object } => self.open(&object)?,
            Effect::OpenSession { object, session } => match origin.stream.take() {
                Some(stream) => {
                    if let Err(e) = self.parts.sessions.open(object.clone(), session, stream) {
                        tracing::error!("{object}: no session: {e}; fix: raise the limit on processes (ulimit -u)");
                        self.followed.push_back(Input::SessionClosed { session });
                    }
                }
                None => self.followed.push_back(Input::SessionClosed { session }),
            },
            Effect::Reply(reply) => {
                if let Some(to) = origin.reply.take() {
                    answer(&to, reply);
                }
            }
            Effect::SendRevoked { object, generation, .. } => {
                tracing::info!("{object}: generation {generation} was revoked");
                self.parts.links.revoked(&object, generation);
            }
            Effect::RefuseDesired(refusal) => tracing::error!("a desired state was refused: {refusal}"),
            Effect::SendApplied { revision } => {
                self.parts.outbox.held(self.core.desired().version());
                self.parts.outbox.applied(revision);
            }
            Effect::SendInventory { seq, bindings } => {
                self.history.note(&bindings, clock::now().unix_s);
                self.parts.outbox.inventory(FromCard::Inventory { seq, bindings });
            }
        }
        Ok(())
    }

    fn configure(&mut self) -> Result<(), WorkerGone> {
        let begun = Instant::now();
        let policies = self.core.desired().ports.iter().map(port_policy).collect();
        let firewall = self.filters.follow(self.core.desired());
        let volumes: Vec<_> = self.core.desired().volumes.iter().map(|v| v.name.clone()).collect();
        let core = &self.core;
        self.history
            .keep(|object| core.desired().describes(object) || core.binding(object).is_some());
        let connections = self.filters.connections(self.core.desired());
        let taken_over = self
            .parts
            .workers
            .set_policy(policies, &firewall, connections, volumes)?;
        let longest = taken_over.iter().map(|taken| taken.spent).max().unwrap_or_default();
        tracing::debug!(
            "version {} of the security groups is in force {:?} after it came; that took workers up to {longest:?}",
            firewall.version(),
            begun.elapsed()
        );
        // Here, and not on the worker: a large policy takes its time to drop.
        drop(taken_over);
        Ok(())
    }

    fn prepare(&mut self, object: ObjectRef, generation: Generation) -> Result<(), WorkerGone> {
        let ready = match object.kind {
            // Its policy was configured just before.
            ObjectKind::Port => true,
            ObjectKind::Volume => {
                let name = object.name.clone();
                let worker = self.parts.workers.of_volume(&object.name)?;
                worker.call(move |datapath, _| datapath.has_volume(&name))?
            }
        };
        if ready {
            self.followed.push_back(Input::Prepared { object, generation });
            return Ok(());
        }
        // Answered by its result. If it takes very long, the operator hears of it meanwhile.
        let begun = match self.core.desired().volume(&object.name) {
            Some(volume) => {
                let served_bytes = self.core.binding(&object).and_then(|b| b.served_bytes);
                self.parts.opener.open(generation, volume, served_bytes, Instant::now())
            }
            None => Err(not_granted(&object)),
        };
        if let Err(error) = begun {
            self.fault(object, generation, error);
        }
        Ok(())
    }

    fn fault(&mut self, object: ObjectRef, generation: Generation, error: Refusal) {
        tracing::error!("{error}");
        self.followed.push_back(Input::Fault {
            object,
            generation,
            error,
        });
    }

    /// What a thread of the opener did.
    fn volume_done(&mut self, done: Done) -> Result<(), WorkerGone> {
        self.parts.opener.finished(&done);
        let object = ObjectRef {
            kind: ObjectKind::Volume,
            name: done.name,
        };
        match done.outcome {
            Outcome::Opened {
                generation,
                volume,
                result,
            } => self.opened(object, generation, &volume, result),
            Outcome::Measured {
                generation,
                volume,
                result,
            } => self.measured(object, generation, &volume, result),
            Outcome::Closed => Ok(()),
        }
    }

    /// Whether this binding still is, and is to be served.
    fn is_live(&self, object: &ObjectRef, generation: Generation) -> bool {
        let is_its = |b: &Binding| b.generation == generation && b.state.is_live();
        self.core.binding(object).is_some_and(is_its)
    }

    fn opened(
        &mut self,
        object: ObjectRef,
        generation: Generation,
        volume: &Volume,
        result: Result<Opened, Unavailable>,
    ) -> Result<(), WorkerGone> {
        let wanted = self.is_live(&object, generation);
        let as_desired = self.core.desired().volume(&object.name) == Some(volume);
        match result {
            Ok(opened) if wanted && as_desired => return self.set_up(object, generation, opened),
            Ok(Opened { unit, .. }) => {
                self.parts.opener.close(&object.name, unit);
                if wanted {
                    return self.prepare(object, generation);
                }
            }
            Err(_) if !wanted => {}
            Err(Unavailable::Locked(error)) => self.note_locked(object, generation, error),
            Err(Unavailable::Failed(error)) => {
                self.locked.forget(&object);
                self.fault(object, generation, error);
            }
        }
        Ok(())
    }

    fn set_up(&mut self, object: ObjectRef, generation: Generation, opened: Opened) -> Result<(), WorkerGone> {
        let Opened { unit, short } = opened;
        self.locked.forget(&object);
        let name = object.name.clone();
        let added = self
            .parts
            .workers
            .for_volume(&object.name)?
            .call(move |datapath, io| datapath.add_volume(name, unit, io))?;
        if let Err((e, unit)) = added {
            self.parts.opener.close(&object.name, unit);
            let text = format!("{object}: {e}: raise the DPU's limit on open files (ulimit -n)");
            self.fault(object, generation, Refusal::new(Code::Unavailable, text));
            return Ok(());
        }
        if let Some((size_bytes, error)) = short {
            tracing::error!("{error}; its guest has the {size_bytes} bytes that it had");
            self.followed.push_back(Input::Resized {
                object: object.clone(),
                generation,
                size_bytes,
                error: Some(error),
            });
        }
        self.followed.push_back(Input::Prepared { object, generation });
        Ok(())
    }

    /// A volume that is being served is to grow: first it is found out, where that may take long, whether it can.
    fn resize(&mut self, object: ObjectRef, generation: Generation) {
        let begun = match self.core.desired().volume(&object.name) {
            Some(volume) => self.parts.opener.measure(generation, volume),
            None => Err(not_granted(&object)),
        };
        if let Err(error) = begun {
            self.not_resized(object, generation, error);
        }
    }

    fn measured(
        &mut self,
        object: ObjectRef,
        generation: Generation,
        volume: &Volume,
        result: Result<(), Refusal>,
    ) -> Result<(), WorkerGone> {
        if !self.is_live(&object, generation) {
            return Ok(());
        }
        if let Err(error) = result {
            self.not_resized(object, generation, error);
            return Ok(());
        }
        let (name, size_bytes) = (object.name.clone(), volume.size_bytes);
        let resized = self
            .parts
            .workers
            .of_volume(&object.name)?
            .call(move |datapath, _| datapath.resize_volume(&name, size_bytes))?;
        match resized {
            // Taken down meanwhile; it is set up again with its new size.
            None => {}
            Some(Err(e)) => {
                let text = format!("{object}: {e}");
                self.not_resized(object, generation, Refusal::new(Code::Unavailable, text));
            }
            Some(Ok(changed)) => {
                if changed {
                    tracing::info!("{object} has {size_bytes} bytes now");
                    self.parts.sessions.config_changed(&object);
                }
                self.followed.push_back(Input::Resized {
                    object,
                    generation,
                    size_bytes,
                    error: None,
                });
            }
        }
        Ok(())
    }

    /// The volume keeps its size; the operator sees why, and it is tried again.
    fn not_resized(&mut self, object: ObjectRef, generation: Generation, error: Refusal) {
        let Some(binding) = self.core.binding(&object) else {
            return;
        };
        let Some(size_bytes) = binding.served_bytes else { return };
        if binding.error.as_ref() != Some(&error) {
            tracing::error!("{error}; its guest goes on with {size_bytes} bytes, and it is tried again");
        }
        self.followed.push_back(Input::Resized {
            object,
            generation,
            size_bytes,
            error: Some(error),
        });
    }

    /// The binding stays as it is, with an error for the operator to see; hosts are told to try again, and at first that
    /// it will be a moment only.
    fn note_locked(&mut self, object: ObjectRef, generation: Generation, mut error: Refusal) {
        let found = self.locked.found(&object, generation, Instant::now());
        let patience_s = locked::PATIENCE.as_secs();
        match found {
            Found::First => tracing::warn!(
                "{error}; trying again for {patience_s} s, in case a daemon that was killed is still writing"
            ),
            Found::Again => {}
            Found::Kept => tracing::error!("{error}; it has been for {patience_s} s"),
        }
        if found != Found::Kept {
            error.code = Code::Busy;
        }
        self.followed.push_back(Input::Fault {
            object,
            generation,
            error,
        });
    }

    fn retry_locked(&mut self) {
        for (object, generation) in self.locked.due(Instant::now()) {
            let wanted = |b: &Binding| b.generation == generation && b.state.is_live();
            if !self.core.binding(&object).is_some_and(wanted) {
                self.locked.forget(&object);
            } else if self.prepare(object, generation).is_err() {
                // The daemon ends.
                return;
            }
        }
        self.follow(clock::now());
    }

    fn open(&mut self, object: &ObjectRef) -> Result<(), WorkerGone> {
        if let Some(binding) = self.core.binding(object) {
            self.parts.gate.open(object, binding.fence(), &binding.host)?;
        }
        Ok(())
    }

    fn tear_down(&mut self, object: &ObjectRef) -> Result<(), WorkerGone> {
        if object.kind == ObjectKind::Volume {
            let name = object.name.clone();
            let unit = self
                .parts
                .workers
                .of_volume(&object.name)?
                .call(move |datapath, io| datapath.remove_volume(&name, io))?;
            match unit {
                Some(unit) => self.parts.opener.close(&object.name, unit),
                None => self.parts.opener.cancel(&object.name),
            }
            self.locked.forget(object);
        }
        Ok(())
    }

    /// Ends all sessions and waits until nothing is in flight, but not for ever: a backend may hang.
    fn stop(mut self, messages: &Receiver<Message>) {
        self.parts.sessions.close_all();
        let end = Instant::now() + STOP_TIMEOUT;
        while !self.parts.sessions.is_empty() {
            match messages.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(message @ Message::Datapath(_)) => self.take(message, clock::now()),
                Ok(_) => {}
                Err(_) => {
                    tracing::warn!(
                        "requests are still in flight after {} s; ending all the same",
                        STOP_TIMEOUT.as_secs()
                    );
                    return;
                }
            }
        }
    }
}

fn answer(to: &SyncSender<Reply>, reply: Reply) {
    // The host may have gone meanwhile.
    let _ = to.try_send(reply);
}
