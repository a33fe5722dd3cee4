//! What the shim decides: when to redeem, which sockets stand open, which VMM gets a session, when to give back.
//!
//! No I/O and no clock: [`Agent::handle`] takes an input and `now` and returns what to do; [`Agent::next_deadline`]
//! says when to call it with [`Input::Tick`] at the latest.
//!
//! A VMM's socket stands open only while its device can be served. QEMU reads the answer to its first request on its
//! main loop: a VMM that connects while the DPU is away would not wait, it would freeze.

pub mod backoff;
mod device;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::{Duration, Instant},
};

use outboard_protocol::{
    id::{BootEpoch, Generation, Incarnation, Name, ObjectRef, OperationId},
    link::{Reply, Request},
    refusal::{Code, Refusal},
};
use outboard_shim_api::{DeviceView, LinkView, Problem, Release};

pub use self::device::{Binding, DeviceSettings};
use self::device::{Device, Phase, Vmm};

/// First delay before a redeem is repeated.
pub const REDEEM_RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest delay before a redeem is repeated.
pub const REDEEM_RETRY_LONGEST: Duration = Duration::from_secs(3);
/// How long a connected VMM is kept waiting for the DPU before it is sent away.
pub const VMM_HOLD_MAX: Duration = Duration::from_secs(1);
/// Delay before a session is asked for again where the DPU is still ending the one before.
pub const BUSY_RETRY: Duration = Duration::from_millis(20);
/// How long sockets stay open after the link was lost.
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
    /// The DPU closed its stream.
    DpuClosed,
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
    LinkDown(Problem),
    /// The DPU answered.
    Answer(Ticket, Reply),
    /// The DPU took a binding back.
    Revoked(ObjectRef, Generation),
    /// A VMM connected to a device's socket (or was connected to).
    VmmConnected(ObjectRef, Connection),
    /// A VMM's connection is over.
    VmmGone(ObjectRef, Connection, VmmEnd),
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
    /// The DPU serves the stream: carry the session.
    Serve(ObjectRef, Connection),
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
    pub fn views(&self) -> Vec<DeviceView> {
        self.devices
            .iter()
            .filter_map(|(object, device)| device.view(object))
            .collect()
    }

    /// One device as it stands.
    pub fn view(&self, object: &ObjectRef) -> Option<DeviceView> {
        self.devices.get(object)?.view(object)
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
            Link::Down { since, .. } if self.devices.values().any(|d| d.socket_open) => Some(since + LINK_GRACE),
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
            Input::LinkDown(problem) => self.link_down(problem, now),
            Input::Answer(ticket, reply) => {
                if let Some(object) = self.tickets.remove(&ticket) {
                    self.answer(&object, ticket, reply, now);
                }
            }
            Input::Revoked(object, generation) => self.revoked(&object, generation, now),
            input => self.socket_input(input, now),
        }
        self.advance(now);
        self.take_actions()
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    fn link_down(&mut self, problem: Problem, now: Instant) {
        let since = match self.link {
            Link::Up { .. } => now,
            Link::Down { since, .. } => since,
        };
        self.link = Link::Down { problem, since };
        self.tickets.clear();
        for device in self.devices.values_mut() {
            device.phase = Phase::Idle { retry_at: now };
            if let Vmm::Opening { connection, until, .. } = device.vmm {
                device.vmm = Vmm::Waiting {
                    connection,
                    until,
                    retry_at: now,
                };
            }
        }
    }

    fn revoked(&mut self, object: &ObjectRef, generation: Generation, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        if device.binding.is_none_or(|binding| binding.generation != generation) {
            return;
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

    fn mark_revoked(device: &mut Device, object: &ObjectRef) {
        device.revoked = true;
        device.problem = Some(Problem {
            error: format!("the grant of {object} was revoked"),
            remedy: format!("grant it again (`outboard grant create {object}`) or detach it here"),
        });
    }

    fn socket_input(&mut self, input: Input, now: Instant) {
        match input {
            Input::VmmConnected(object, connection) => match self.devices.get_mut(&object) {
                Some(device) if matches!(device.vmm, Vmm::None) && device.settings.is_some() => {
                    device.vmm = Vmm::Waiting {
                        connection,
                        until: now + VMM_HOLD_MAX,
                        retry_at: now,
                    };
                }
                _ => self.actions.push(Action::CloseVmm(object, connection)),
            },
            Input::VmmGone(object, connection, end) => {
                let Some(device) = self.devices.get_mut(&object) else {
                    return;
                };
                if device.vmm.connection() == Some(connection) {
                    device.vmm = Vmm::None;
                    if let VmmEnd::Fault(problem) = end {
                        device.problem = Some(problem);
                    }
                }
            }
            Input::MemoryAccepted(object, connection) => {
                if let Some(device) = self.serving(&object, connection) {
                    device.problem = None;
                }
            }
            Input::SessionProblem(object, connection, problem) => {
                if let Some(device) = self.serving(&object, connection) {
                    device.problem = Some(problem);
                }
            }
            Input::SocketOpen(object) => {
                if let Some(device) = self.devices.get_mut(&object) {
                    device.socket_problem = None;
                }
            }
            Input::SocketProblem(object, problem) => {
                if let Some(device) = self.devices.get_mut(&object) {
                    device.socket_problem = Some(problem);
                }
            }
            _ => {}
        }
    }

    fn serving(&mut self, object: &ObjectRef, connection: Connection) -> Option<&mut Device> {
        self.devices
            .get_mut(object)
            .filter(|device| device.vmm == Vmm::Served { connection })
    }

    fn answer(&mut self, object: &ObjectRef, ticket: Ticket, reply: Reply, now: Instant) {
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
            (_, reply) => self.session_answer(object, ticket, reply, now),
        }
    }

    fn redeemed(&mut self, object: &ObjectRef, binding: Binding, now: Instant) {
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

    fn redeem_refused(&mut self, object: &ObjectRef, refusal: &Refusal, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        let was_bound = device.binding.is_some();
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
        if was_bound && refusal.code == Code::NotGranted {
            // Revoked while the link was down.
            Self::mark_revoked(device, object);
        } else if !device.revoked {
            device.problem = Some(refused(object, refusal));
        }
    }

    fn session_answer(&mut self, object: &ObjectRef, ticket: Ticket, reply: Reply, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        let Vmm::Opening {
            ticket: asked,
            connection,
            until,
        } = device.vmm
        else {
            return;
        };
        if asked != ticket {
            return;
        }
        match reply {
            Reply::Connected => {
                device.vmm = Vmm::Served { connection };
                device.sessions += 1;
                self.actions.push(Action::Serve(object.clone(), connection));
            }
            Reply::Refused { refusal } if refusal.code == Code::Busy && now < until => {
                device.vmm = Vmm::Waiting {
                    connection,
                    until,
                    retry_at: now + BUSY_RETRY,
                };
            }
            Reply::Refused { refusal } => {
                device.problem = Some(refused(object, &refusal));
                if ends_binding(refusal.code) {
                    Self::unbind(device, object, &mut self.actions);
                    device.phase = Phase::Idle {
                        retry_at: device.retry.failed(now),
                    };
                    if refusal.code == Code::NotGranted {
                        Self::mark_revoked(device, object);
                    }
                } else {
                    Self::close_vmm(device, object, &mut self.actions);
                }
            }
            _ => Self::close_vmm(device, object, &mut self.actions),
        }
    }

    /// The binding is over: no session, no socket, and what comes next is another operation.
    fn unbind(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        Self::unbind_session(device, object, actions);
        device.operation = None;
    }

    fn unbind_session(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        Self::close_vmm(device, object, actions);
        Self::close_socket(device, object, actions);
        device.binding = None;
    }

    fn close_vmm(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        if let Some(connection) = device.vmm.connection() {
            actions.push(Action::CloseVmm(object.clone(), connection));
            device.vmm = Vmm::None;
        }
    }

    fn close_socket(device: &mut Device, object: &ObjectRef, actions: &mut Vec<Action>) {
        if device.socket_open {
            device.socket_open = false;
            device.socket_problem = None;
            actions.push(Action::CloseSocket(object.clone()));
        }
    }

    fn forget(&mut self, object: &ObjectRef) {
        if self.devices.remove(object).is_some_and(|device| device.leaving) {
            self.actions.push(Action::Remember);
        }
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
            self.advance_vmm(object, up, now);
            let Some(device) = self.devices.get_mut(object) else {
                continue;
            };
            if device.phase == Phase::Attached && device.settings.is_some() && !device.socket_open {
                device.socket_open = true;
                self.actions.push(Action::OpenSocket(object.clone()));
            } else if !sockets_stay {
                Self::close_socket(device, object, &mut self.actions);
            }
        }
    }

    fn advance_binding(&mut self, object: &ObjectRef, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        match device.phase {
            Phase::Idle { retry_at } if retry_at <= now && device.is_wanted() => {}
            _ => return,
        }
        let ticket = Ticket(self.ticket_next);
        self.ticket_next += 1;
        self.tickets.insert(ticket, object.clone());
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

    fn advance_vmm(&mut self, object: &ObjectRef, up: bool, now: Instant) {
        let Some(device) = self.devices.get_mut(object) else {
            return;
        };
        let Vmm::Waiting {
            connection,
            until,
            retry_at,
        } = device.vmm
        else {
            return;
        };
        match (device.binding, &device.phase) {
            (Some(binding), Phase::Attached) if up && retry_at <= now => {
                let ticket = Ticket(self.ticket_next);
                self.ticket_next += 1;
                self.tickets.insert(ticket, object.clone());
                device.vmm = Vmm::Opening {
                    ticket,
                    connection,
                    until,
                };
                let Binding {
                    generation,
                    incarnation,
                } = binding;
                let request = Request::Connect {
                    object: object.clone(),
                    generation,
                    incarnation,
                };
                self.actions
                    .push(Action::Connect(ticket, request, object.clone(), connection));
            }
            _ if until <= now => {
                tracing::warn!(%object, "a VMM was sent away: the DPU is not ready to serve it");
                Self::close_vmm(device, object, &mut self.actions);
            }
            _ => {}
        }
    }
}

/// True if a refusal says that the binding is not, or no longer, this host's; others may be different a moment later.
fn ends_binding(code: Code) -> bool {
    matches!(
        code,
        Code::NotGranted | Code::Stale | Code::WrongState | Code::OperationConflict
    )
}

/// A refusal of the DPU's, for people.
fn refused(object: &ObjectRef, refusal: &Refusal) -> Problem {
    let remedy = match refusal.code {
        Code::NotGranted => format!("grant it to this host: `outboard grant create {object}`; the shim keeps asking"),
        Code::WrongState => {
            format!(
                "see `outboard {} show {}`; if another shim of this host holds it, detach it there",
                object.kind, object.name
            )
        }
        Code::Version => "run the same version of shim and DPU".to_owned(),
        Code::Quota => "detach what is not used, or raise the DPU's [limits]".to_owned(),
        Code::Busy => "close the VMM that holds it; a device serves one VMM at a time".to_owned(),
        Code::Unavailable => "see the DPU's log for what its backing lacks; the shim keeps asking".to_owned(),
        _ => "see the DPU's log; the shim keeps asking".to_owned(),
    };
    Problem {
        error: format!("the DPU refused {object}: {refusal}"),
        remedy,
    }
}

#[cfg(test)]
mod tests;
