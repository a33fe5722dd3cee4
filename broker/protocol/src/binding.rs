//! The binding state machine: one port or volume, bound to one function of a card, for one host.
//!
//! [`step`] is the only place where a binding changes state. The card runs it for its own bindings; the broker runs it
//! for its picture of them, fed by the card's reports. Reading clocks, disks and sockets is left to the caller.

use minicbor::{Decode, Encode};
use outboard_controls::{Check, on};
use serde::{Deserialize, Serialize};

use crate::{
    id::{Generation, Incarnation, Name, ObjectRef},
    refusal::{Code, Refusal},
};

/// How long a binding may drain before it is quarantined, in milliseconds. Longer than any request of a healthy
/// backend; a backend that hangs must not hide behind "draining" for ever.
pub const DRAIN_TIMEOUT_MS: u64 = 30_000;

/// State of a binding (a port or volume bound to a function of a card for a host).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum State {
    /// The broker has decided; the card has not confirmed.
    #[n(0)]
    Reserved,
    /// The card holds policy and grant durably; the host may redeem.
    #[n(1)]
    Prepared,
    /// The host has redeemed; its device may open sessions.
    #[n(2)]
    Attached,
    /// Rings are live and policy is loaded.
    #[n(3)]
    Active,
    /// Shut; waiting for what is in flight.
    #[n(4)]
    Draining,
    /// Ended; the function may be used again, under a higher incarnation.
    #[n(5)]
    Released,
    /// Could not be drained in time: shut, not reusable until the card knows that nothing is in flight.
    #[n(6)]
    Quarantined,
}

impl State {
    /// Every state, in the order a binding passes them.
    pub const ALL: [Self; 7] = [
        Self::Reserved,
        Self::Prepared,
        Self::Attached,
        Self::Active,
        Self::Draining,
        Self::Released,
        Self::Quarantined,
    ];

    /// Granted and on its way to, or in, use: not yet draining, ended or quarantined.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Reserved | Self::Prepared | Self::Attached | Self::Active)
    }

    /// Redeemed by its host.
    pub fn is_attached(self) -> bool {
        matches!(self, Self::Attached | Self::Active)
    }
}

/// The time, as both clocks have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Milliseconds of a clock that never steps; comparable within one process only. Timeouts use this one.
    pub monotonic_ms: u64,
    /// Seconds since the Unix epoch. Only for instants that were agreed with another machine, and for people.
    pub unix_s: u64,
}

/// A binding.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Binding {
    /// The port or volume.
    #[n(0)]
    pub object: ObjectRef,
    /// The host it is for.
    #[n(1)]
    pub host: Name,
    /// Which binding of the object.
    #[n(2)]
    pub generation: Generation,
    /// Which use of the function.
    #[n(3)]
    pub incarnation: Incarnation,
    /// Its state.
    #[n(4)]
    pub state: State,
    /// When it entered the state, in seconds since the Unix epoch; for people.
    #[n(5)]
    pub since_unix_s: u64,
    /// After this second it may no longer be redeemed.
    #[n(6)]
    pub expires_unix_s: Option<u64>,
    /// What stands in the way now.
    #[n(7)]
    pub error: Option<Refusal>,
    /// Of a volume: how many bytes its device has had, so that a card that starts again can give its guest those back
    /// where the volume was to grow and its file has not yet. Only the card knows.
    #[n(8)]
    pub served_bytes: Option<u64>,
    /// When it entered the state, by the monotonic clock of this process; not stored.
    #[cbor(skip)]
    pub since_ms: u64,
}

impl Binding {
    /// A new binding, `Reserved`.
    pub fn reserve(object: ObjectRef, host: Name, fence: Fence, expires_unix_s: Option<u64>, now: Now) -> Self {
        Self {
            object,
            host,
            generation: fence.generation,
            incarnation: fence.incarnation,
            state: State::Reserved,
            since_unix_s: now.unix_s,
            expires_unix_s,
            error: None,
            served_bytes: None,
            since_ms: now.monotonic_ms,
        }
    }

    /// The counters that an event about this binding has to name.
    pub fn fence(&self) -> Fence {
        Fence {
            generation: self.generation,
            incarnation: self.incarnation,
        }
    }

    /// Whether the time to redeem it is over.
    pub fn is_expired(&self, now: Now) -> bool {
        self.expires_unix_s.is_some_and(|expires| now.unix_s >= expires)
    }

    fn moved(&self, state: State, now: Now) -> Self {
        Self {
            state,
            since_unix_s: now.unix_s,
            since_ms: now.monotonic_ms,
            error: None,
            ..self.clone()
        }
    }
}

/// The counters by which a binding is told from earlier and later ones of the same object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// Which binding of the object.
    pub generation: Generation,
    /// Which use of the function.
    pub incarnation: Incarnation,
}

/// Who makes an event happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Initiator {
    /// The broker, by a desired state.
    Broker,
    /// The DPU's datapath, or its reports.
    Card,
    /// The host, over its link.
    Host,
    /// A person, through the broker.
    Operator,
    /// The clock.
    Timer,
}

/// Something that happens to a binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The card has set the device and its policy up.
    Prepared(Fence),
    /// The card cannot serve the object now.
    Fault(Fence, Refusal),
    /// The host claims what it was granted.
    Redeem {
        /// Who asks, by its link.
        host: Name,
    },
    /// The host opens a device session.
    Connect {
        /// Who asks, by its link.
        host: Name,
        /// As told when it redeemed.
        fence: Fence,
    },
    /// The rings of the device run.
    RingsLive(Fence),
    /// They stopped.
    RingsStopped(Fence),
    /// The host gives the object back.
    Release {
        /// Who asks, by its link.
        host: Name,
        /// Which binding it means.
        generation: Generation,
    },
    /// The grant is no longer desired.
    Revoke,
    /// Nothing of the binding is in flight any more.
    Drained(Fence),
    /// The time to redeem may be over.
    GrantExpired,
    /// The time to drain may be over.
    DrainTimeout,
    /// What the card says about the binding (the broker's picture follows).
    Reported {
        /// Which binding the card means.
        fence: Fence,
        /// Its state there.
        state: State,
        /// What stands in the way there.
        error: Option<Refusal>,
    },
    /// The card's whole inventory does not have the binding.
    Missing,
    /// An operator removed the card: what was bound to it has ended by decree.
    CardRemoved,
}

impl Event {
    /// Who makes it happen.
    pub fn initiator(&self) -> Initiator {
        match self {
            Self::Redeem { .. } | Self::Connect { .. } | Self::Release { .. } => Initiator::Host,
            Self::Revoke => Initiator::Broker,
            Self::GrantExpired | Self::DrainTimeout => Initiator::Timer,
            Self::CardRemoved => Initiator::Operator,
            _ => Initiator::Card,
        }
    }

    fn fence(&self) -> Option<Fence> {
        match self {
            Self::Prepared(fence) | Self::Fault(fence, _) | Self::RingsLive(fence) => Some(*fence),
            Self::RingsStopped(fence) | Self::Drained(fence) => Some(*fence),
            Self::Connect { fence, .. } | Self::Reported { fence, .. } => Some(*fence),
            _ => None,
        }
    }

    fn host(&self) -> Option<&Name> {
        match self {
            Self::Redeem { host } | Self::Connect { host, .. } | Self::Release { host, .. } => Some(host),
            _ => None,
        }
    }
}

/// What has to be done because a binding changed, in this order. The card does all of it; the broker, which has no
/// datapath, persists and lets the rest be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing goes in or out from now on. Before everything else: silence does not wait for a disk.
    Shut,
    /// Close the device session, if there is one.
    CloseSession,
    /// Make the binding durable, before anything that follows and before any answer.
    Persist,
    /// Let the device exchange data.
    Open,
    /// Start the session that the host asked for.
    OpenSession,
    /// Take the device down: nothing of it is in use.
    Teardown,
    /// Tell the host that it was revoked.
    NotifyHost,
    /// Tell the broker.
    Report,
}

/// The one answer to a host that asks for what it may not have, whatever the reason: it learns nothing about what exists.
pub fn not_granted(object: &ObjectRef) -> Refusal {
    Refusal::new(
        Code::NotGranted,
        format!("{object} is not granted to this host: ask the operator to grant it"),
    )
}

/// What `event` does to `binding`: the binding after it and what has to be done, or why it is refused.
///
/// An event that asks for what is so already changes nothing and succeeds.
///
/// # Errors
/// [`Code::Stale`] if the event is about another generation or incarnation, [`Code::NotGranted`] to a host that may
/// not have the object, [`Code::Unavailable`] and [`Code::WrongState`] as the table in `PROTOCOL.md` says.
pub fn step(binding: &Binding, event: &Event, now: Now) -> Result<(Binding, Vec<Effect>), Refusal> {
    if event.host().is_some_and(|host| *host != binding.host) && on(Check::GrantRequired) {
        return Err(not_granted(&binding.object));
    }
    if event.fence().is_some_and(|fence| fence != binding.fence()) && on(Check::GenerationFence) {
        return Err(stale(binding));
    }
    match event {
        Event::Redeem { .. } | Event::Connect { .. } | Event::Release { .. } => step_host(binding, event, now),
        Event::Reported { state, error, .. } => step_report(binding, *state, error, now),
        _ => step_own(binding, event, now),
    }
}

fn stale(binding: &Binding) -> Refusal {
    let Binding { object, generation, .. } = binding;
    Refusal::new(
        Code::Stale,
        format!("{object} is bound as generation {generation} now; what was said is about another"),
    )
}

fn wrong_state(binding: &Binding, remedy: &str) -> Refusal {
    let text = format!("{} is {:?}: {remedy}", binding.object, binding.state);
    Refusal::new(Code::WrongState, text)
}

/// Events of the host.
fn step_host(binding: &Binding, event: &Event, now: Now) -> Result<(Binding, Vec<Effect>), Refusal> {
    use State::{Active, Attached, Draining, Prepared, Quarantined, Released, Reserved};
    let stay = |effects: &[Effect]| Ok((binding.clone(), effects.to_vec()));
    let go = |state, effects: &[Effect]| Ok((binding.moved(state, now), effects.to_vec()));
    match (event, binding.state) {
        (Event::Redeem { .. }, Reserved | Prepared) if binding.is_expired(now) && on(Check::GrantRequired) => {
            Err(not_granted(&binding.object))
        }
        (Event::Redeem { .. }, Reserved) => Err(unavailable(&binding.object)),
        (Event::Redeem { .. }, Prepared) => go(Attached, &[Effect::Persist, Effect::Open, Effect::Report]),
        // A shim that lost its memory asks again and is told again.
        (Event::Redeem { .. }, Attached | Active) => stay(&[]),
        (Event::Connect { .. }, Reserved | Prepared) => Err(wrong_state(binding, "redeem it first")),
        (Event::Connect { .. }, Attached | Active) => stay(&[Effect::OpenSession]),
        (Event::Redeem { .. } | Event::Connect { .. }, Draining | Released | Quarantined) => {
            Err(not_granted(&binding.object))
        }
        (Event::Release { generation, .. }, _) if *generation < binding.generation => stay(&[]),
        (Event::Release { generation, .. }, _) if *generation > binding.generation => Err(stale(binding)),
        (Event::Release { .. }, Attached | Active) => go(
            Draining,
            &[Effect::Shut, Effect::CloseSession, Effect::Persist, Effect::Report],
        ),
        (Event::Release { .. }, Draining | Released) => stay(&[]),
        (Event::Release { .. }, Quarantined) => Err(wrong_state(
            binding,
            "its requests have not ended, which takes the card's operator",
        )),
        (_, _) => Err(wrong_state(
            binding,
            "there is nothing to give back before it is redeemed",
        )),
    }
}

/// The answer to the entitled host while the card cannot serve the object. Details are for the operator.
pub fn unavailable(object: &ObjectRef) -> Refusal {
    let text =
        format!("{object} is granted but cannot be served yet: try again, or ask the operator what its error is");
    Refusal::new(Code::Unavailable, text)
}

/// Events of the card, the broker, the clock and the operator.
fn step_own(binding: &Binding, event: &Event, now: Now) -> Result<(Binding, Vec<Effect>), Refusal> {
    use State::{Active, Attached, Draining, Prepared, Quarantined, Released, Reserved};
    let stay = |effects: &[Effect]| Ok((binding.clone(), effects.to_vec()));
    let go = |state, effects: &[Effect]| Ok((binding.moved(state, now), effects.to_vec()));
    let with_error = |error, effects: &[Effect]| {
        Ok((
            Binding {
                error,
                ..binding.clone()
            },
            effects.to_vec(),
        ))
    };
    match (event, binding.state) {
        (Event::Prepared(_), Reserved) => go(Prepared, &[Effect::Persist, Effect::Report]),
        (Event::Prepared(_), Prepared) => with_error(None, &[Effect::Report]),
        // The card started again and has its device back.
        (Event::Prepared(_), Attached | Active) => with_error(None, &[Effect::Open, Effect::Report]),
        (Event::Fault(_, error), Reserved | Prepared) => with_error(Some(error.clone()), &[Effect::Report]),
        (Event::Fault(_, error), Attached | Active) => with_error(
            Some(error.clone()),
            &[Effect::Shut, Effect::CloseSession, Effect::Report],
        ),
        (Event::RingsLive(_), Attached) => go(Active, &[Effect::Report]),
        (Event::RingsLive(_), Active) | (Event::RingsStopped(_), Attached) => stay(&[]),
        (Event::RingsStopped(_), Active) => go(Attached, &[Effect::Report]),
        (Event::Revoke, Reserved | Prepared) => go(Draining, &[Effect::Shut, Effect::Persist, Effect::Report]),
        (Event::Revoke, Attached | Active) => {
            let effects = [
                Effect::Shut,
                Effect::CloseSession,
                Effect::Persist,
                Effect::NotifyHost,
                Effect::Report,
            ];
            go(Draining, &effects)
        }
        (Event::Revoke, Draining | Released | Quarantined) => stay(&[]),
        (Event::Drained(_), Draining | Quarantined) => {
            go(Released, &[Effect::Persist, Effect::Teardown, Effect::Report])
        }
        (Event::Drained(_), Released) => stay(&[]),
        (Event::GrantExpired, Reserved | Prepared) if binding.is_expired(now) => {
            go(Draining, &[Effect::Shut, Effect::Persist, Effect::Report])
        }
        (Event::DrainTimeout, Draining) if now.monotonic_ms.saturating_sub(binding.since_ms) >= DRAIN_TIMEOUT_MS => {
            let mut next = binding.moved(Quarantined, now);
            next.error = Some(not_drained(&binding.object));
            Ok((next, vec![Effect::Persist, Effect::Report]))
        }
        (Event::GrantExpired | Event::DrainTimeout, _) => stay(&[]),
        // The card lost its records; it gets the same binding again and has to prepare it again.
        (Event::Missing, Prepared | Attached | Active) => go(Reserved, &[Effect::Persist]),
        (Event::Missing, Reserved | Released) | (Event::CardRemoved, Released) => stay(&[]),
        (Event::Missing, Draining | Quarantined) | (Event::CardRemoved, _) => go(Released, &[Effect::Persist]),
        (_, _) => Err(wrong_state(binding, "that cannot happen to it now")),
    }
}

fn not_drained(object: &ObjectRef) -> Refusal {
    let text = format!(
        "{object}: requests were still in flight {} s after it was shut: its backend hangs; repair the backend or restart the DPU",
        DRAIN_TIMEOUT_MS / 1000
    );
    Refusal::new(Code::Unavailable, text)
}

/// The broker's picture after a report. A binding that the broker ended stays ended, whatever an older report says.
fn step_report(
    binding: &Binding,
    reported: State,
    error: &Option<Refusal>,
    now: Now,
) -> Result<(Binding, Vec<Effect>), Refusal> {
    use State::{Draining, Quarantined, Released};
    let state = match (binding.state, reported) {
        (Released, Released) => Released,
        (Released, _) => return Err(stale(binding)),
        (Quarantined, Released) => Released,
        (Quarantined, _) => Quarantined,
        (Draining, Released | Quarantined) => reported,
        (Draining, _) => Draining,
        (_, _) => reported,
    };
    let unchanged = state == binding.state;
    let mut next = if unchanged {
        binding.clone()
    } else {
        binding.moved(state, now)
    };
    next.error.clone_from(error);
    let effects = if next == *binding {
        vec![]
    } else {
        vec![Effect::Persist]
    };
    Ok((next, effects))
}

#[cfg(test)]
mod tests;
