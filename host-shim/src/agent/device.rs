//! One device's state.

use std::{path::PathBuf, time::Instant};

use outboard_protocol::id::{ObjectKind, ObjectRef};
use outboard_shim_api::{DeviceKind, DeviceState, DeviceView, Problem, Role};

use super::{
    Connection, Generation, Incarnation, OperationId, REDEEM_RETRY_FIRST, REDEEM_RETRY_LONGEST, Ticket,
    backoff::Backoff,
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

/// The VMM's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vmm {
    /// There is none.
    None,
    /// Connected, and not asked for at the DPU yet.
    Waiting {
        connection: Connection,
        until: Instant,
        retry_at: Instant,
    },
    /// Asked for at the DPU.
    Opening {
        ticket: Ticket,
        connection: Connection,
        until: Instant,
    },
    /// In session.
    Served { connection: Connection },
}

impl Vmm {
    pub(super) fn connection(&self) -> Option<Connection> {
        match *self {
            Self::None => None,
            Self::Waiting { connection, .. } | Self::Opening { connection, .. } | Self::Served { connection } => {
                Some(connection)
            }
        }
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
    pub(super) vmm: Vmm,
    pub(super) socket_open: bool,
    pub(super) leaving: bool,
    pub(super) revoked: bool,
    pub(super) problem: Option<Problem>,
    pub(super) socket_problem: Option<Problem>,
    pub(super) retry: Backoff,
    pub(super) sessions: u64,
}

impl Device {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            settings: None,
            operation: None,
            binding: None,
            phase: Phase::Idle { retry_at: now },
            vmm: Vmm::None,
            socket_open: false,
            leaving: false,
            revoked: false,
            problem: None,
            socket_problem: None,
            retry: Backoff::new(REDEEM_RETRY_FIRST, REDEEM_RETRY_LONGEST),
            sessions: 0,
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
        let vmm_at = match self.vmm {
            Vmm::Waiting { until, retry_at, .. } if link_up && self.phase == Phase::Attached => {
                Some(until.min(retry_at))
            }
            Vmm::Waiting { until, .. } => Some(until),
            _ => None,
        };
        redeem_at.into_iter().chain(vmm_at).min()
    }

    fn state(&self) -> DeviceState {
        if matches!(self.vmm, Vmm::Served { .. }) {
            return DeviceState::Connected;
        }
        match (&self.phase, self.revoked) {
            (_, true) => DeviceState::Revoked,
            (Phase::Attached, _) if self.problem.is_some() || self.socket_problem.is_some() => DeviceState::Failed,
            (Phase::Attached, _) => DeviceState::WaitingForVmm,
            _ => DeviceState::WaitingForGrant,
        }
    }

    pub(super) fn view(&self, object: &ObjectRef) -> Option<DeviceView> {
        let settings = self.settings.as_ref()?;
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
            problem: self.problem.clone().or_else(|| self.socket_problem.clone()),
            generation: self.binding.map(|binding| binding.generation.0),
            sessions: self.sessions,
        })
    }
}
