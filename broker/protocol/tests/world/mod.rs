//! A card with a disk, a datapath, hosts and a broker, all scripted: performs what `CardCore` decides, lets the process
//! die between any two effects, and says when something happened that must never happen.

use std::collections::{BTreeMap, BTreeSet};

use outboard_protocol::{
    binding::{Now, State},
    card::BindingReport,
    card_side::{CardCore, CardRecord, Effect, Input, SessionId},
    desired::{DesiredState, Grant, Port, Trunk},
    id::{
        BootEpoch, BrokerEpoch, Generation, Incarnation, MacAddr, Name, ObjectKind, ObjectRef, OperationId, Revision,
    },
    link::Reply,
    refusal::{Code, Refusal},
};

mod action;

pub use action::{Action, actions};

/// What must never happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A device exchanges data that no grant in force allows.
    OpenWithoutGrant,
    /// A host got what was granted to another, or to nobody.
    GivenToWrongHost,
    /// A device is set up anew while a session of its former binding is still running.
    TwoBindings,
    /// A live binding has a lower generation than one before it.
    GenerationFell,
    /// The desired state in force is older than one that was in force.
    DesiredFell,
    /// A session was opened for a binding that the host did not name.
    StaleConnect,
    /// A repeated mutation changed something or got another answer.
    RepeatHadEffect,
    /// Something that was acknowledged was lost by a crash.
    AcknowledgedLost,
    /// A device was taken down under a session.
    TornDownInUse,
    /// A subport is attached without its parent, or is not although it could be.
    SubportAstray,
    /// After all sessions closed and all grants went, something is left.
    NotReleased,
}

type Outcome = Result<(), Violation>;

fn check(holds: bool, violation: Violation) -> Outcome {
    if holds { Ok(()) } else { Err(violation) }
}

/// A mutation that a host sent, and what it was told.
struct Told {
    input: Input,
    reply: Reply,
    was_durable: bool,
    boot: u64,
}

struct Session {
    object: ObjectRef,
    generation: Generation,
}

/// Everything around the core.
pub struct World {
    core: CardCore,
    now: Now,
    boot: u64,
    disk: Option<Vec<u8>>,
    open: BTreeSet<ObjectRef>,
    devices: BTreeMap<ObjectRef, Generation>,
    sessions: BTreeMap<SessionId, Session>,
    setup_fails: bool,
    crash_after: Option<usize>,
    // The broker.
    epoch: BrokerEpoch,
    revision: Revision,
    generations: BTreeMap<ObjectRef, Generation>,
    grants: BTreeMap<ObjectRef, Grant>,
    sent: Vec<DesiredState>,
    last_inventory: u64,
    // What was seen.
    told: Vec<Told>,
    operations: u128,
    highest_live: BTreeMap<ObjectRef, Generation>,
    applied: (BrokerEpoch, Revision),
    released: BTreeSet<(ObjectRef, Generation)>,
}

pub fn object(n: u8) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: format!("port{n}").parse().unwrap(),
    }
}

pub fn host(n: u8) -> Name {
    format!("host{n}").parse().unwrap()
}

fn card() -> Name {
    "card".parse().unwrap()
}

impl World {
    pub fn new() -> Self {
        let now = Now {
            monotonic_ms: 1_000,
            unix_s: 1_000_000,
        };
        let (core, effects) = CardCore::start(card(), None, now);
        let mut world = Self {
            core,
            now,
            boot: 0,
            disk: None,
            open: BTreeSet::new(),
            devices: BTreeMap::new(),
            sessions: BTreeMap::new(),
            setup_fails: false,
            crash_after: None,
            epoch: BrokerEpoch(1),
            revision: Revision(0),
            generations: BTreeMap::new(),
            grants: BTreeMap::new(),
            sent: Vec::new(),
            last_inventory: 0,
            told: Vec::new(),
            operations: 0,
            highest_live: BTreeMap::new(),
            applied: (BrokerEpoch(0), Revision(0)),
            released: BTreeSet::new(),
        };
        world.perform(effects).expect("an empty card has nothing to get wrong");
        world
    }

    /// Plays a script, then takes everything away and sees whether it all ends.
    pub fn play(script: &[Action]) -> Outcome {
        let mut world = Self::new();
        for action in script {
            world.act(action)?;
            world.check()?;
        }
        world.wind_up()
    }

    /// Gives the core an input and performs the effects; returns the answer, if one went out.
    fn input(&mut self, input: Input) -> Result<Option<Reply>, Violation> {
        let effects = self.core.handle(input, self.now);
        self.perform(effects)
    }

    fn perform(&mut self, mut effects: Vec<Effect>) -> Result<Option<Reply>, Violation> {
        let crashes = self.crash_after.take();
        if let Some(after) = crashes {
            effects.truncate(after);
        }
        let mut reply = None;
        let mut answers = Vec::new();
        for effect in effects {
            match effect {
                Effect::Reply(told) => reply = Some(told),
                Effect::Prepare { object, generation } => answers.push(self.set_up(object, generation)?),
                other => self.perform_one(other)?,
            }
        }
        if crashes.is_some() {
            self.crash()?;
        } else {
            for answer in answers {
                self.input(answer)?;
            }
        }
        Ok(reply)
    }

    fn set_up(&mut self, object: ObjectRef, generation: Generation) -> Result<Input, Violation> {
        let in_use = self
            .sessions
            .values()
            .any(|s| s.object == object && s.generation != generation);
        check(!in_use, Violation::TwoBindings)?;
        if self.setup_fails {
            let error = Refusal::new(Code::Unavailable, "the file is missing");
            return Ok(Input::Fault {
                object,
                generation,
                error,
            });
        }
        self.devices.insert(object.clone(), generation);
        Ok(Input::Prepared { object, generation })
    }

    fn perform_one(&mut self, effect: Effect) -> Outcome {
        match effect {
            Effect::Shut { object } => drop(self.open.remove(&object)),
            Effect::Persist(record) => self.disk = Some(record),
            Effect::Teardown { object } => {
                check(
                    !self.sessions.values().any(|s| s.object == object),
                    Violation::TornDownInUse,
                )?;
                self.devices.remove(&object);
            }
            Effect::Open { object } => {
                assert!(
                    self.devices.contains_key(&object),
                    "{object} is opened but has no device"
                );
                self.open.insert(object);
            }
            Effect::OpenSession { object, session } => {
                assert!(self.open.contains(&object), "{object} gets a session but is shut");
                let generation = self.core.binding(&object).expect("it has a session").generation;
                self.sessions.insert(session, Session { object, generation });
            }
            Effect::SendApplied { revision } => {
                let applied = (self.core.desired().broker_epoch, revision);
                check(applied >= self.applied, Violation::DesiredFell)?;
                self.applied = applied;
                // From here on the broker's API says that revocations are done.
                let granted = |o: &ObjectRef| self.core.desired().grant(o).is_some();
                check(self.open.iter().all(granted), Violation::OpenWithoutGrant)?;
            }
            Effect::SendInventory { seq, bindings } => {
                self.last_inventory = seq;
                bindings.iter().try_for_each(|report| self.heard(report))?;
            }
            // Sessions end when the script says so, not when they are asked to.
            Effect::CloseSession { .. } | Effect::Configure => {}
            Effect::SendRevoked { object, .. } => {
                check(object != self::object(action::SUBPORT), Violation::GivenToWrongHost)?;
            }
            Effect::RefuseDesired(_) => {}
            Effect::Reply(_) | Effect::Prepare { .. } => unreachable!("performed by the caller"),
            Effect::Resize { .. } => unreachable!("there are ports only"),
        }
        Ok(())
    }

    fn heard(&mut self, report: &BindingReport) -> Outcome {
        // The broker goes above every generation it hears of.
        let known = self.generations.entry(report.object.clone()).or_default();
        *known = report.generation.max(*known);
        if report.state.is_live() {
            let highest = self.highest_live.entry(report.object.clone()).or_default();
            check(report.generation >= *highest, Violation::GenerationFell)?;
            *highest = report.generation;
        }
        Ok(())
    }

    /// The process dies and another starts with what was durable.
    fn crash(&mut self) -> Outcome {
        self.open.clear();
        self.devices.clear();
        self.sessions.clear();
        self.boot += 1;
        // A clock of another process begins anywhere.
        self.now.monotonic_ms = 10;
        let record = self
            .disk
            .as_ref()
            .map(|bytes| CardRecord::decode(bytes).expect("what was written can be read"));
        let before = self.core.dpu_epoch();
        let (core, effects) = CardCore::start(card(), record, self.now);
        self.core = core;
        check(self.core.dpu_epoch() > before, Violation::AcknowledgedLost)?;
        check(
            self.core.desired().version() >= self.applied,
            Violation::AcknowledgedLost,
        )?;
        for (object, generation) in &self.released {
            let attached = |b: &&outboard_protocol::binding::Binding| b.state.is_attached();
            let back = self
                .core
                .binding(object)
                .filter(attached)
                .is_some_and(|b| b.generation == *generation);
            check(!back, Violation::AcknowledgedLost)?;
        }
        self.perform(effects).map(drop)
    }

    fn check(&self) -> Outcome {
        for object in &self.open {
            let binding = self.core.binding(object).ok_or(Violation::OpenWithoutGrant)?;
            let grant = self.core.desired().grant(object).ok_or(Violation::OpenWithoutGrant)?;
            let allowed = grant.generation == binding.generation && grant.host == binding.host;
            check(allowed && binding.state.is_attached(), Violation::OpenWithoutGrant)?;
        }
        self.check_subport()
    }

    /// The subport is attached and active with its parent, and when its parent is.
    fn check_subport(&self) -> Outcome {
        let Some(binding) = self.core.binding(&object(action::SUBPORT)) else {
            return Ok(());
        };
        let parent = self.core.binding(&object(action::PARENT));
        let carrier = parent.filter(|parent| parent.state.is_attached() && parent.host == binding.host);
        let holds = match (binding.state, carrier.map(|parent| parent.state)) {
            (State::Attached | State::Active, state) => state == Some(binding.state),
            (State::Prepared, Some(_)) => binding.is_expired(self.now) || !self.devices.contains_key(&binding.object),
            _ => true,
        };
        check(holds, Violation::SubportAstray)
    }

    fn desired(&self) -> DesiredState {
        let port = |n| Port {
            name: object(n).name,
            network: "net".parse().unwrap(),
            mac: MacAddr([0x52, 0x54, 0, 0, 0, n]),
            addresses: vec![],
            groups: None,
            trunk: (n == action::SUBPORT).then(|| Trunk {
                parent: object(action::PARENT).name,
                vlan: 100,
            }),
        };
        DesiredState {
            broker_epoch: self.epoch,
            revision: self.revision,
            ports: (0..action::OBJECTS).map(port).collect(),
            volumes: vec![],
            grants: self.grants.values().cloned().collect(),
            ..DesiredState::default()
        }
    }

    fn send_desired(&mut self) -> Outcome {
        self.revision = self.revision.next();
        let state = self.desired();
        self.sent.push(state.clone());
        self.input(Input::Desired(state)).map(drop)
    }

    /// A host's mutation: who gets it must be entitled, and a repeat must find nothing to do.
    fn mutate(&mut self, input: Input) -> Outcome {
        let before = self.core.record();
        let boot = self.boot;
        let Some(reply) = self.input(input.clone())? else {
            return Ok(());
        };
        match (&input, &reply) {
            (Input::Redeem { host, object, .. }, Reply::Redeemed { generation, .. }) => {
                let first = !self.told.iter().any(|t| t.input == input && t.reply == reply);
                let grant = self.core.desired().grant(object);
                let entitled = grant.is_some_and(|g| g.host == *host && g.generation == *generation)
                    && *object != self::object(action::SUBPORT);
                check(entitled || !first, Violation::GivenToWrongHost)?;
            }
            (Input::Release { object, generation, .. }, Reply::Released) => {
                self.released.insert((object.clone(), *generation));
            }
            _ => {}
        }
        let is_refusal = matches!(reply, Reply::Refused { .. });
        let durable_still = |t: &&Told| t.was_durable || t.boot == boot;
        if let Some(earlier) = self.told.iter().filter(durable_still).find(|t| t.input == input) {
            let after = self.core.record();
            let same = earlier.reply == reply && before.bindings == after.bindings;
            check(same || self.boot != boot, Violation::RepeatHadEffect)?;
        } else if !is_refusal && self.boot == boot {
            let was_durable = self.disk.as_ref() == Some(&outboard_protocol::codec::encode(&self.core.record()));
            self.told.push(Told {
                input,
                reply,
                was_durable,
                boot,
            });
        }
        Ok(())
    }

    fn connect(&mut self, host: Name, object: ObjectRef, generation: Generation) -> Outcome {
        let input = Input::Connect {
            host: host.clone(),
            object: object.clone(),
            generation,
            incarnation: incarnation(generation),
        };
        let before = self.sessions.len();
        self.input(input)?;
        if self.sessions.len() > before {
            let grant = self.core.desired().grant(&object);
            check(
                grant.is_some_and(|g| g.generation == generation),
                Violation::StaleConnect,
            )?;
            let has_device = object != self::object(action::SUBPORT);
            check(
                has_device && grant.is_some_and(|g| g.host == host),
                Violation::GivenToWrongHost,
            )?;
        }
        Ok(())
    }

    fn wind_up(mut self) -> Outcome {
        self.setup_fails = false;
        self.crash_after = None;
        self.grants.clear();
        self.epoch = self.epoch.max(self.applied.0);
        self.send_desired()?;
        check(self.open.is_empty(), Violation::OpenWithoutGrant)?;
        for session in self.sessions.keys().copied().collect::<Vec<_>>() {
            self.sessions.remove(&session);
            self.input(Input::SessionClosed { session })?;
        }
        check(
            self.core.bindings().all(|b| b.state == State::Released),
            Violation::NotReleased,
        )?;
        self.input(Input::InventoryAcked {
            seq: self.last_inventory,
        })?;
        check(
            self.core.bindings().count() == 0 && self.devices.is_empty(),
            Violation::NotReleased,
        )
    }
}

/// Each generation of an object uses another incarnation of a function.
fn incarnation(generation: Generation) -> Incarnation {
    Incarnation(generation.0 + 100)
}

fn operation(n: u128) -> OperationId {
    OperationId(uuid::Uuid::from_u128(n))
}

fn grant(object: ObjectRef, host: Name, generation: Generation, expires_unix_s: Option<u64>) -> Grant {
    Grant {
        object,
        host,
        generation,
        incarnation: incarnation(generation),
        expires_unix_s,
    }
}

fn epoch_of_host(n: u64) -> BootEpoch {
    BootEpoch(n)
}
