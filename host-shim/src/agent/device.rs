//! One device's state.

use std::{path::PathBuf, time::Instant};

use outboard_protocol::id::{ObjectKind, ObjectRef};
use outboard_shim_api::{DeviceKind, DeviceState, DeviceView, Problem, Role};

use super::{
    AWAY_QUIETLY_MAX, Connection, Generation, Incarnation, OperationId, REDEEM_RETRY_FIRST, REDEEM_RETRY_LONGEST,
    SESSION_RETRY_FIRST, SESSION_RETRY_LONGEST, SESSION_STEADY_AFTER, Ticket, VMM_HOLD_MAX, backoff::Backoff, text,
};

/// How a device meets its VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSettings {
    /// The VMM's socket.
    pub socket: PathBuf,
    /// Who listens on it.
    pub role: Role,
    /// The VM's uid, if one is asked for.
    pub uid: Option<u32>,
}

/// A redeemed binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Which binding of the object.
    pub generation: Generation,
    /// Which use of the function.
    pub incarnation: Incarnation,
}

/// Where the binding stands, as far as this connection to the DPU has confirmed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Something is to be asked of the DPU, not before `retry_at`.
    Idle { retry_at: Instant },
    /// A redeem is under way.
    Redeeming { ticket: Ticket },
    /// Redeemed.
    Attached,
    /// A release is under way.
    Releasing { ticket: Ticket },
}

/// A VMM that is connected.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) connection: Connection,
    /// How long it may wait for a DPU's first offer.
    pub(super) until: Instant,
    pub(super) dpu: DpuSide,
    /// The DPU knows all that the session remembers.
    pub(super) ready: bool,
    /// Since when it has not.
    pub(super) away_since: Instant,
    /// Requests that were in flight when the DPU went.
    pub(super) in_flight: Option<u32>,
    /// It waits for them.
    pub(super) held: bool,
    /// It is counted among the sessions.
    pub(super) counted: bool,
    /// Why no DPU serves it.
    pub(super) problem: Option<Problem>,
}

/// The other side of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DpuSide {
    /// To be asked for, not before `retry_at`.
    Away { retry_at: Instant },
    /// Asked for.
    Asked { ticket: Ticket },
    /// The DPU serves the stream of this request.
    Serving { ticket: Ticket, since: Instant },
}

impl Guest {
    pub(super) fn new(connection: Connection, now: Instant) -> Self {
        Self {
            connection,
            until: now + VMM_HOLD_MAX,
            dpu: DpuSide::Away { retry_at: now },
            ready: false,
            away_since: now,
            in_flight: None,
            held: false,
            counted: false,
            problem: None,
        }
    }

    /// The link is down. What was asked for will not come; a stream goes on as long as it lives, unless the DPU is hung.
    pub(super) fn link_lost(&mut self, hung: bool, now: Instant) {
        if hung || matches!(self.dpu, DpuSide::Asked { .. }) {
            self.dpu = DpuSide::Away { retry_at: now };
        }
    }

    fn problem(&self, object: &ObjectRef, known: bool, now: Instant) -> Option<Problem> {
        let away = now.saturating_duration_since(self.away_since);
        if self.ready || !known || (away < AWAY_QUIETLY_MAX && self.problem.is_none()) {
            return None;
        }
        if self.held {
            return Some(text::held(object, away, self.in_flight));
        }
        Some(
            self.problem
                .clone()
                .unwrap_or_else(|| text::away(object, away, self.in_flight)),
        )
    }
}

#[derive(Debug)]
pub(super) struct Device {
    /// None for an object that was detached.
    pub(super) settings: Option<DeviceSettings>,
    /// Of the redeem or release that is asked for and not answered.
    pub(super) operation: Option<OperationId>,
    pub(super) binding: Option<Binding>,
    pub(super) phase: Phase,
    pub(super) guest: Option<Guest>,
    /// A DPU has said what it offers, so that VMMs can be answered without one.
    pub(super) known: bool,
    pub(super) socket_open: bool,
    pub(super) leaving: bool,
    pub(super) revoked: bool,
    pub(super) problem: Option<Problem>,
    pub(super) socket_problem: Option<Problem>,
    pub(super) retry: Backoff,
    /// Generation of the binding that ended last.
    pub(super) ended: Option<Generation>,
    pub(super) session_retry: Backoff,
    pub(super) sessions: u64,
    /// DPUs that took a session over from another one.
    pub(super) replays: u64,
}

impl Device {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            settings: None,
            operation: None,
            binding: None,
            phase: Phase::Idle { retry_at: now },
            guest: None,
            known: false,
            socket_open: false,
            leaving: false,
            revoked: false,
            problem: None,
            socket_problem: None,
            retry: Backoff::new(REDEEM_RETRY_FIRST, REDEEM_RETRY_LONGEST),
            ended: None,
            session_retry: Backoff::new(SESSION_RETRY_FIRST, SESSION_RETRY_LONGEST),
            sessions: 0,
            replays: 0,
        }
    }

    pub(super) fn leaving(binding: Option<Binding>, now: Instant) -> Self {
        Self {
            binding,
            leaving: true,
            ..Self::new(now)
        }
    }

    /// Somebody wants the binding, or wants it gone.
    pub(super) fn is_wanted(&self) -> bool {
        self.settings.is_some() || self.leaving
    }

    /// The DPU may hold a binding for this host: one was redeemed, or was asked for without an answer yet.
    pub(super) fn may_be_bound(&self) -> bool {
        self.binding.is_some() || self.operation.is_some()
    }

    pub(super) fn deadline(&self, link_up: bool) -> Option<Instant> {
        let redeem_at = match self.phase {
            Phase::Idle { retry_at } if link_up && self.is_wanted() => Some(retry_at),
            _ => None,
        };
        let guest_at = self.guest.as_ref().and_then(|guest| match guest.dpu {
            DpuSide::Away { retry_at } => {
                let ask_at = Some(retry_at).filter(|_| link_up && self.phase == Phase::Attached);
                let leave_at = Some(guest.until).filter(|_| !self.known);
                ask_at.into_iter().chain(leave_at).min()
            }
            _ => None,
        });
        redeem_at.into_iter().chain(guest_at).min()
    }

    /// Its socket is open and has to be closed if the link stays down: nobody could answer a VMM.
    pub(super) fn closes_without_link(&self) -> bool {
        self.socket_open && !self.known
    }

    /// A stream of its session has ended.
    pub(super) fn stream_ended(&mut self, ticket: Ticket, problem: Option<Problem>, now: Instant) {
        let Some(guest) = &mut self.guest else { return };
        match guest.dpu {
            DpuSide::Serving { ticket: served, since } if served == ticket => {
                if since + SESSION_STEADY_AFTER <= now {
                    self.session_retry.reset();
                }
                guest.dpu = DpuSide::Away {
                    retry_at: self.session_retry.failed(now),
                };
                if problem.is_some() {
                    guest.problem = problem;
                }
            }
            _ => {}
        }
    }

    fn state(&self) -> DeviceState {
        let in_session = |guest: &Guest| self.known || matches!(guest.dpu, DpuSide::Serving { .. });
        if self.guest.as_ref().is_some_and(in_session) {
            return DeviceState::Connected;
        }
        match (&self.phase, self.revoked) {
            (_, true) => DeviceState::Revoked,
            (Phase::Attached, _) if self.problem.is_some() || self.socket_problem.is_some() => DeviceState::Failed,
            (Phase::Attached, _) => DeviceState::WaitingForVmm,
            _ if self.known && self.socket_open => DeviceState::WaitingForVmm,
            _ => DeviceState::WaitingForGrant,
        }
    }

    pub(super) fn view(&self, object: &ObjectRef, now: Instant) -> Option<DeviceView> {
        let settings = self.settings.as_ref()?;
        let of_guest = self
            .guest
            .as_ref()
            .and_then(|guest| guest.problem(object, self.known, now));
        Some(DeviceView {
            kind: match object.kind {
                ObjectKind::Port => DeviceKind::Port,
                ObjectKind::Volume => DeviceKind::Volume,
            },
            name: object.name.to_string(),
            socket: settings.socket.clone(),
            role: settings.role,
            uid: settings.uid,
            state: self.state(),
            problem: self
                .problem
                .clone()
                .or(of_guest)
                .or_else(|| self.socket_problem.clone()),
            generation: self.binding.map(|binding| binding.generation.0),
            sessions: self.sessions,
            replays: self.replays,
        })
    }
}
