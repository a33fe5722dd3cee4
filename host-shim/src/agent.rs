//! What the shim decides: when to redeem, which sockets stand open, which VMM gets a session, when to give back.
//!
//! No I/O and no clock: [`Agent::handle`] takes an input and `now` and returns what to do; [`Agent::next_deadline`]
//! says when to call it with [`Input::Tick`] at the latest.
//!
//! A VMM's socket stands open while its device can be served: as long as the DPU is there, and once the DPU has said
//! what it offers, also while it is away, since the session then answers from what it remembers. Before that it is shut:
//! QEMU reads the answer to its first request on its main loop, and a VMM that nobody can answer would not wait, it
//! would freeze.

pub mod backoff;
mod binding;
mod device;
mod sessions;
mod text;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::{Duration, Instant},
};

use outboard_protocol::{
    id::{BootEpoch, Generation, Incarnation, Name, ObjectRef, OperationId},
    link::{Reply, Request},
};
use outboard_shim_api::{DeviceView, LinkView, Problem, Release};

pub use self::device::{Binding, DeviceSettings};
use self::device::{Device, Phase};

/// First delay before a redeem is repeated.
pub const REDEEM_RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest delay before a redeem is repeated.
pub const REDEEM_RETRY_LONGEST: Duration = Duration::from_secs(3);
/// How long a connected VMM is kept waiting for a DPU's first offer before it is sent away.
pub const VMM_HOLD_MAX: Duration = Duration::from_secs(1);
/// Delay before a session is asked for again where the DPU is still ending the one before.
pub const BUSY_RETRY: Duration = Duration::from_millis(20);
/// First delay before a session that the DPU ended is asked for again. A notice of revocation overtakes it.
pub const SESSION_RETRY_FIRST: Duration = Duration::from_millis(5);
/// Longest delay before a session is asked for again.
pub const SESSION_RETRY_LONGEST: Duration = Duration::from_millis(250);
/// A session that lasted this long begins with the first delay again.
pub const SESSION_STEADY_AFTER: Duration = Duration::from_secs(5);
/// How long a session may be without a DPU before that is called a problem.
pub const AWAY_QUIETLY_MAX: Duration = Duration::from_secs(1);
/// How long the sockets of devices that no DPU has served yet stay open after the link was lost.
pub const LINK_GRACE: Duration = Duration::from_secs(1);
/// Most devices of one shim.
pub const DEVICES_MAX: usize = 1024;

/// Names a VMM's connection within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Connection(pub u64);

/// Names a request to the DPU within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// How a VMM's connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmmEnd {
    /// The VMM closed it, or the agent had it closed.
    Closed,
    /// A fault; say so.
    Fault(Problem),
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Time passed.
    Tick,
    /// The link is up.
    LinkUp {
        /// The card's name.
        card: Name,
        /// Its boot epoch.
        dpu_epoch: BootEpoch,
    },
    /// The link is down, or could not be made.
    LinkDown {
        /// Why.
        problem: Problem,
        /// The DPU is there and does not answer: its sessions are to be ended.
        hung: bool,
    },
    /// The DPU answered.
    Answer(Ticket, Reply),
    /// The DPU took a binding back.
    Revoked(ObjectRef, Generation),
    /// A VMM connected to a device's socket (or was connected to).
    VmmConnected(ObjectRef, Connection),
    /// A VMM's connection is over.
    VmmGone(ObjectRef, Connection, VmmEnd),
    /// A DPU has told a session what it offers: from now on VMMs can be answered without one.
    Offered(ObjectRef, Connection),
    /// The DPU has been told all that a session remembers; true if it replaces another one.
    Ready(ObjectRef, Connection, bool),
    /// A session has no DPU any more, and so many requests are in flight, if that can be told.
    DpuLost(ObjectRef, Connection, Option<u32>),
    /// A session's stream to the DPU has ended, for this reason if it was the session that ended it.
    StreamEnded(ObjectRef, Connection, Ticket, Option<Problem>),
    /// The VMM waits for requests in flight, or no more.
    Held(ObjectRef, Connection, bool),
    /// The guest memory of a VMM was accepted: it is a good session.
    MemoryAccepted(ObjectRef, Connection),
    /// A session has a problem that does not end it.
    SessionProblem(ObjectRef, Connection, Problem),
    /// The device's socket stands open.
    SocketOpen(ObjectRef),
    /// The device's socket cannot be opened, or a VMM was turned away at it.
    SocketProblem(ObjectRef, Problem),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send a request to the DPU.
    Send(Ticket, Request),
    /// Ask the DPU for a session for this connection; the request wants a stream.
    Connect(Ticket, Request, ObjectRef, Connection),
    /// The DPU serves the stream that this request brought along: give it to the session.
    Serve(ObjectRef, Connection, Ticket),
    /// The DPU is hung: end the session's stream to it.
    DropDpu(ObjectRef, Connection),
    /// Let VMMs come.
    OpenSocket(ObjectRef),
    /// Let no more VMMs come; a session goes on.
    CloseSocket(ObjectRef),
    /// Close this VMM's connection and its stream to the DPU.
    CloseVmm(ObjectRef, Connection),
    /// The device is gone: let go of its socket and thread.
    Remove(ObjectRef),
    /// Make [`Agent::leaving`] durable before anything that follows.
    Remember,
}

/// What has to outlive the shim's process: an object that was detached and is still to be given back. What is attached
/// needs no memory; the DPU tells a host again what it has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaving {
    /// The object.
    pub object: ObjectRef,
    /// Its binding, unless the DPU's answer to a redeem was still awaited.
    pub binding: Option<Binding>,
}

/// Why a device cannot be attached or detached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The object is attached already, with other settings.
    #[error("{0} is attached already, with other settings")]
    Exists(ObjectRef),
    /// The socket belongs to another device.
    #[error("the socket of {object} is used by {other} already")]
    SocketTaken {
        /// What was to be attached.
        object: ObjectRef,
        /// Whose socket it is.
        other: ObjectRef,
    },
    /// The object is being given back.
    #[error("{0} is being given back to the DPU, which is away")]
    Leaving(ObjectRef),
    /// Too many devices.
    #[error("{DEVICES_MAX} devices are attached already, so {0} cannot be")]
    TooMany(ObjectRef),
    /// No such device.
    #[error("{0} is not attached")]
    Unknown(ObjectRef),
}

#[derive(Debug)]
enum Link {
    Up { card: Name },
    Down { problem: Problem, since: Instant },
}

/// The shim's decisions.
#[derive(Debug)]
pub struct Agent {
    devices: BTreeMap<ObjectRef, Device>,
    tickets: BTreeMap<Ticket, ObjectRef>,
    ticket_next: u64,
    link: Link,
    new_operation: fn() -> OperationId,
    actions: Vec<Action>,
}

impl Agent {
    /// An agent that gives back what an earlier process was to. `new_operation` makes operation ids, each new.
    pub fn new(leaving: Vec<Leaving>, new_operation: fn() -> OperationId, now: Instant) -> Self {
        let problem = Problem {
            error: "the DPU has not been reached yet".to_owned(),
            remedy: "start outboard-dpu, and check link_socket".to_owned(),
        };
        let devices = leaving
            .into_iter()
            .map(|leaving| (leaving.object, Device::leaving(leaving.binding, now)))
            .collect();
        Self {
            devices,
            tickets: BTreeMap::new(),
            ticket_next: 0,
            link: Link::Down { problem, since: now },
            new_operation,
            actions: Vec::new(),
        }
    }

    /// Adds a device; repeating it with the same settings changes nothing.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn attach(
        &mut self,
        object: &ObjectRef,
        settings: DeviceSettings,
        now: Instant,
    ) -> Result<Vec<Action>, AttachError> {
        let others: Vec<_> = self
            .devices
            .iter()
            .filter_map(|(o, d)| Some((o, d.settings.as_ref()?)))
            .filter(|(o, _)| *o != object)
            .collect();
        if let Some((other, _)) = others.iter().find(|(_, s)| s.socket == settings.socket) {
            return Err(AttachError::SocketTaken {
                object: object.clone(),
                other: (*other).clone(),
            });
        }
        if others.len() >= DEVICES_MAX {
            return Err(AttachError::TooMany(object.clone()));
        }
        let device = match self.devices.entry(object.clone()) {
            Entry::Vacant(vacant) => vacant.insert(Device::new(now)),
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        if device.leaving {
            return Err(AttachError::Leaving(object.clone()));
        }
        match &device.settings {
            None => device.settings = Some(settings),
            Some(present) if *present == settings => {}
            Some(_) => return Err(AttachError::Exists(object.clone())),
        }
        self.advance(now);
        Ok(self.take_actions())
    }

    /// Ends a device: its session, its socket, then its binding. See [`Agent::release_of`] for when that is done.
    ///
    /// # Errors
    /// [`AttachError::Unknown`].
    pub fn detach(&mut self, object: &ObjectRef, now: Instant) -> Result<Vec<Action>, AttachError> {
        let known = self.devices.get_mut(object).filter(|d| d.settings.is_some());
        let device = known.ok_or_else(|| AttachError::Unknown(object.clone()))?;
        device.settings = None;
        device.leaving = true;
        device.problem = None;
        device.known = false;
        Self::close_vmm(device, object, &mut self.actions);
        self.actions.push(Action::Remove(object.clone()));
        device.socket_open = false;
        if device.may_be_bound() {
            if matches!(device.phase, Phase::Attached | Phase::Idle { .. }) {
                device.phase = Phase::Idle { retry_at: now };
            }
            if device.binding.is_some() {
                // What comes next is a release, another operation.
                device.operation = None;
            }
            self.actions.push(Action::Remember);
        } else {
            self.forget(object);
        }
        self.advance(now);
        Ok(self.take_actions())
    }

    /// Whether a detached object has been given back.
    pub fn release_of(&self, object: &ObjectRef) -> Release {
        match self.devices.get(object) {
            Some(device) if device.leaving => Release::Pending,
            _ => Release::Done,
        }
    }

    /// The devices as they stand.
    pub fn views(&self, now: Instant) -> Vec<DeviceView> {
        self.devices
            .iter()
            .filter_map(|(object, device)| device.view(object, now))
            .collect()
    }

    /// One device as it stands.
    pub fn view(&self, object: &ObjectRef, now: Instant) -> Option<DeviceView> {
        self.devices.get(object)?.view(object, now)
    }

    /// The link as it stands.
    pub fn link_view(&self) -> LinkView {
        match &self.link {
            Link::Up { card } => LinkView {
                connected: true,
                card: Some(card.to_string()),
                problem: None,
            },
            Link::Down { problem, .. } => LinkView {
                connected: false,
                card: None,
                problem: Some(problem.clone()),
            },
        }
    }

    /// What has to outlive the process.
    pub fn leaving(&self) -> Vec<Leaving> {
        let leaving = self.devices.iter().filter(|(_, device)| device.leaving);
        let of = |(object, device): (&ObjectRef, &Device)| Leaving {
            object: object.clone(),
            binding: device.binding,
        };
        leaving.map(of).collect()
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let up = matches!(self.link, Link::Up { .. });
        let close_at = match self.link {
            Link::Down { since, .. } if self.devices.values().any(Device::closes_without_link) => {
                Some(since + LINK_GRACE)
            }
            _ => None,
        };
        self.devices
            .values()
            .filter_map(|device| device.deadline(up))
            .chain(close_at)
            .min()
    }

    /// Takes in what happened and says what to do.
    pub fn handle(&mut self, input: Input, now: Instant) -> Vec<Action> {
        match input {
            Input::Tick => {}
            Input::LinkUp { card, .. } => {
                self.link = Link::Up { card };
                for device in self.devices.values_mut() {
                    device.retry.reset();
                    device.phase = Phase::Idle { retry_at: now };
                }
            }
            Input::LinkDown { problem, hung } => self.link_down(problem, hung, now),
            Input::Answer(ticket, reply) => {
                if let Some(object) = self.tickets.remove(&ticket) {
                    self.answer(&object, ticket, reply, now);
                }
            }
            Input::Revoked(object, generation) => self.revoked(&object, generation, now),
            input => self.session_input(input, now),
        }
        self.advance(now);
        self.take_actions()
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn link_down(&mut self, problem: Problem, hung: bool, now: Instant) {
        let since = match self.link {
            Link::Up { .. } => now,
            Link::Down { since, .. } => since,
        };
        self.link = Link::Down { problem, since };
        self.tickets.clear();
        for (object, device) in &mut self.devices {
            device.phase = Phase::Idle { retry_at: now };
            if let Some(guest) = &mut device.guest {
                guest.link_lost(hung, now);
                if hung {
                    self.actions.push(Action::DropDpu(object.clone(), guest.connection));
                }
            }
        }
    }

    fn ticket(&mut self, object: &ObjectRef) -> Ticket {
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        self.tickets.insert(ticket, object.clone());
        ticket
    }

    /// Does whatever is due.
    fn advance(&mut self, now: Instant) {
        let up = matches!(self.link, Link::Up { .. });
        let sockets_stay = up || matches!(self.link, Link::Down { since, .. } if now < since + LINK_GRACE);
        let objects: Vec<ObjectRef> = self.devices.keys().cloned().collect();
        for object in &objects {
            if up {
                self.advance_binding(object, now);
            }
            self.advance_guest(object, up, now);
            let Some(device) = self.devices.get_mut(object) else {
                continue;
            };
            if device.phase == Phase::Attached && device.settings.is_some() && !device.socket_open {
                device.socket_open = true;
                self.actions.push(Action::OpenSocket(object.clone()));
            } else if !sockets_stay && device.closes_without_link() {
                Self::close_socket(device, object, &mut self.actions);
            }
        }
    }
}

#[cfg(test)]
mod tests;
