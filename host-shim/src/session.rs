//! A VMM's session: what the VMM has said, remembered as state, so that any DPU can be told.
//!
//! Between VMM and DPU stands not a pipe but a memory. Toward the VMM the shim is a vhost-user back-end: it answers from
//! what it remembers ([`Offer`], [`Remembered`]). Toward the DPU it is a front-end: it greets each DPU, asks what it
//! offers, says all that is remembered, and from then on passes on each request that changes something. A DPU that
//! was killed, upgraded or hung is replaced by another one in the same way, and the VMM sees none of it.
//!
//! [`Session`] does no I/O. It is told what arrived ([`Session::request`], [`Session::dpu_connected`],
//! [`Session::dpu_answered`], [`Session::dpu_lost`], [`Session::tick`]) and says what to do ([`Session::take`]). One
//! request of the VMM's and one to the DPU are outstanding at a time. What the VMM asks is remembered once the DPU has
//! acknowledged it, and acknowledged to the VMM after that; only while there is no DPU to ask is it remembered at once.
//!
//! One answer may have to wait: where requests stand in flight and nobody knows which of them were done, no index is
//! the right answer to `GET_VRING_BASE`, and it is held until a DPU has come back and drained the ring. It is never
//! answered by completing requests in the DPU's place: what a dead process submitted may still land in the guest's
//! memory, and a hung one may yet write the ring, so the shim would answer for what it cannot know.
//!
//! A memory table that is changed while the DPU is away is taken at once. What holds then: a DPU that comes back maps
//! the new table only, and waits for the I/O of its predecessor before it submits any. What does not: I/O that the
//! predecessor had submitted to the kernel may still end in a region that was taken away, since the kernel holds its
//! pages until then. A guest gives no memory back that it has I/O in flight to, so only one that breaks this rule meets it.

mod asked;
mod exchange;
pub mod fault;
pub mod framing;
pub mod guest_memory;
pub mod inflight;
pub mod offer;
pub mod proxy;
pub mod remembered;
pub mod request;
pub mod shared_memory;
pub mod vhost_user_wire;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use outboard_protocol::id::ObjectKind;
use rustix::process::Pid;

use self::{
    asked::{Asked, Held},
    exchange::{Dpu, Lost, Outstanding, Step, StreamEnds},
    fault::Fault,
    framing::{Descriptor, Message},
    offer::{Offer, Relied},
    remembered::{Change, Event, Remembered, Ring, message, set_inflight},
    vhost_user_wire::{Code, FLAG_REPLY, FLAG_VERSION, VIRTIO_F_VERSION_1, protocol_feature},
};

/// How long a ready driver may be without memory before that is reported.
pub const MEMORY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may be held before that is reported.
pub const HELD_QUIETLY_MAX: Duration = Duration::from_secs(1);
/// How long after its stream ended a DPU may still be busy stopping its rings.
pub const STOPPING_MAX: Duration = Duration::from_millis(200);
/// Requests that may wait for a DPU that is being told what is remembered.
const STEPS_MAX: usize = 4096;

/// What the session says about itself, beside messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A DPU has told what it offers.
    Offered(Offer),
    /// A DPU has been told all that is remembered, and serves.
    Ready {
        /// It replaces another one.
        replay: bool,
    },
    /// The DPU accepted guest memory.
    MemoryAccepted,
    /// A driver is ready and there is still no memory: the VM's memory is probably private.
    MemoryMissing,
    /// The VMM waits for `GET_VRING_BASE`, because requests are in flight.
    Held,
    /// What was held is answered.
    HeldOver,
    /// There is no DPU any more, and so many requests are in flight, if that can be told.
    DpuLost(Option<u32>),
}

/// What to do.
#[derive(Debug)]
pub enum Output {
    /// Send this to the DPU.
    ToDpu(Message),
    /// Send this to the VMM.
    ToVmm(Message),
    /// Tell the VMM on this channel of its own that the configuration has changed.
    Announce(Descriptor),
    /// Close the stream to the DPU: the session has done with it.
    DropDpu(Fault),
    /// Tell the agent.
    Note(Note),
}

/// State of one VMM session.
#[derive(Debug)]
pub struct Session {
    kind: ObjectKind,
    vmm: Option<Pid>,
    /// What the DPU offers, or the last one did.
    offer: Option<Offer>,
    /// Protocol features that the VMM accepted.
    protocol: u64,
    remembered: Remembered,
    /// The VMM's end of the back-end's channel.
    vmm_channel: Option<Descriptor>,
    /// Memory has come.
    has_memory: bool,
    /// The guest's driver has begun to set rings up without memory, and when that is to be reported.
    missing_at: Option<Instant>,
    driver_ready: bool,
    dpu: Dpu,
    /// A DPU has served this session.
    was_served: bool,
    /// Something of what is remembered no DPU has acknowledged yet.
    unverified: bool,
    /// Where the streams of DPUs ended since one last served.
    stream_ends: Option<StreamEnds>,
    steps: VecDeque<Step>,
    outstanding: Option<Outstanding>,
    asked: Option<Asked>,
    held: Option<Held>,
    outputs: VecDeque<Output>,
}

impl Session {
    /// A session of the VMM that runs as process `vmm`, if that is known. With the offer of an earlier DPU the VMM is
    /// answered before one has come.
    pub fn new(kind: ObjectKind, vmm: Option<Pid>, offer: Option<Offer>) -> Self {
        let mut session = Self {
            kind,
            vmm,
            offer: None,
            protocol: 0,
            remembered: Remembered::default(),
            vmm_channel: None,
            has_memory: false,
            missing_at: None,
            driver_ready: false,
            dpu: Dpu::Away(Lost::Never),
            was_served: false,
            unverified: false,
            stream_ends: None,
            steps: VecDeque::new(),
            outstanding: None,
            asked: None,
            held: None,
            outputs: VecDeque::new(),
        };
        if let Some(offer) = offer {
            session.set_offer(offer);
        }
        session
    }

    /// What is remembered.
    pub fn remembered(&self) -> &Remembered {
        &self.remembered
    }

    /// True if the VMM may be read: it is known what to answer, and the request before is answered.
    pub fn wants_request(&self) -> bool {
        self.offer.is_some() && self.asked.is_none() && self.steps.len() < STEPS_MAX
    }

    /// What to do next; none if there is nothing.
    pub fn take(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Session::tick`] is due at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        let answer_at = self.outstanding.as_ref().map(|outstanding| outstanding.until);
        let held_at = self.held.as_ref().and_then(Held::deadline);
        answer_at.into_iter().chain(held_at).chain(self.missing_at).min()
    }

    /// Time has passed.
    ///
    /// # Errors
    /// A fault of the VMM's; the session must end.
    pub fn tick(&mut self, now: Instant) -> Result<(), Fault> {
        if self.missing_at.is_some_and(|at| at <= now) {
            self.missing_at = None;
            self.note(Note::MemoryMissing);
        }
        self.look_after_held(now)?;
        if let Some(outstanding) = self.outstanding.as_ref().filter(|o| o.until <= now) {
            let fault = Fault::DpuSilent(outstanding.code, outstanding.patience().as_secs());
            self.drop_dpu(fault, now)?;
        }
        Ok(())
    }

    /// The DPU says on its channel that the device's configuration has changed.
    pub fn config_changed(&mut self) {
        self.announce();
    }

    fn announce(&mut self) {
        if let Some(channel) = &self.vmm_channel {
            self.outputs.push_back(Output::Announce(channel.clone()));
        }
    }

    fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(note));
    }

    fn set_offer(&mut self, offer: Offer) {
        self.remembered.rings.resize_with(offer.queues.into(), Ring::default);
        self.offer = Some(offer);
    }

    /// What the VMM holds fast to: what a driver has acked, or as long as there is none, all that it may still ack.
    fn relied(&self, offer: &Offer) -> Relied {
        let acked = self.remembered.features.filter(|acked| acked & VIRTIO_F_VERSION_1 != 0);
        Relied {
            features: acked.unwrap_or(offer.features),
            protocol: self.protocol,
        }
    }

    /// Takes a change in and says what follows from it.
    fn apply(&mut self, change: Change, now: Instant) {
        match &change {
            Change::Memory(_) | Change::Add(_) => {
                self.has_memory = true;
                self.missing_at = None;
                self.note(Note::MemoryAccepted);
            }
            Change::Features(acked) if acked & VIRTIO_F_VERSION_1 != 0 => self.driver_is_ready(now),
            Change::Enable(_, 1) => self.driver_is_ready(now),
            Change::Config { offset, bytes } => {
                let begin = usize::try_from(*offset).unwrap_or(usize::MAX);
                let config = self.offer.as_mut().map(|offer| &mut offer.config);
                if let Some(place) = config.and_then(|config| config.get_mut(begin..begin.checked_add(bytes.len())?)) {
                    place.copy_from_slice(bytes);
                }
            }
            _ => {}
        }
        self.remembered.apply(change);
    }

    fn driver_is_ready(&mut self, now: Instant) {
        if !self.driver_ready && !self.has_memory {
            self.missing_at = Some(now + MEMORY_WAIT_MAX);
        }
        self.driver_ready = true;
    }

    /// A region of the shim's own for what is in flight, if a ring is about to start and there is none.
    ///
    /// # Errors
    /// It cannot be made.
    fn own_inflight(&mut self) -> Result<Option<Change>, Fault> {
        let Some(offer) = &self.offer else { return Ok(None) };
        if self.remembered.inflight.is_some() || !offer.has(protocol_feature::INFLIGHT_SHMFD) {
            return Ok(None);
        }
        let packed = self.remembered.packed();
        let region = inflight::Inflight::make(packed, offer.queues, inflight::OWN_QUEUE_SIZE, offer.queues)
            .map_err(|source| Fault::Inflight(Code::SetInflightFd, source))?;
        Ok(Some(Change::Inflight(inflight::Inflight { own: true, ..region })))
    }

    fn send_to_vmm(&mut self, message: Message) {
        self.outputs.push_back(Output::ToVmm(message));
    }
}

/// An answer of the shim's own.
fn reply(code: Code, payload: Vec<u8>, descriptors: impl Into<Vec<Descriptor>>) -> Message {
    Message {
        request: code as u32,
        flags: FLAG_VERSION | FLAG_REPLY,
        payload,
        descriptors: descriptors.into(),
    }
}

fn reply_u64(code: Code, value: u64) -> Message {
    reply(code, value.to_le_bytes().to_vec(), [])
}

/// The `u64` that an answer begins with; zero if it is shorter.
fn value_of(answer: &Message) -> u64 {
    answer
        .payload
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "session/session_tests.rs"]
mod tests;
