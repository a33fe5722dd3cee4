//! A VMM's session: what it has negotiated so far, and what each of its requests turns into.
//!
//! [`Session`] does no I/O. Each request goes through [`Session::request`], which checks it and says what to send to
//! the DPU; the DPU's answer goes through [`Session::answer`], which says what to send to the VMM. State changes only
//! there, after the DPU has answered. One request is outstanding at a time.
//!
//! Toward the DPU every request asks for an acknowledgement once the DPU can give one, whether or not the VMM
//! wants it: the VMM goes on only when the DPU has done what it asked.

pub mod fault;
pub mod framing;
pub mod proxy;
pub mod request;
pub mod shared_memory;
pub mod vhost_user_wire;

use std::os::fd::AsFd;

use outboard_controls::{Check, on};
use rustix::process::Pid;

use self::{
    fault::Fault,
    framing::Message,
    request::{Payload, Request},
    vhost_user_wire::{
        Answer, Code, Descriptors, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, VIRTIO_F_PROTOCOL_FEATURES,
        VIRTIO_F_VERSION_1, protocol_feature,
    },
};

/// What the session says about itself, beside messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note {
    /// The DPU accepted guest memory.
    MemoryAccepted,
    /// A driver is ready and there is still no memory: the VM's memory is probably private.
    MemoryMissing,
}

/// What is awaited from the DPU.
#[derive(Debug)]
struct Pending {
    code: Code,
    /// What the VMM asked to be told.
    vmm_wants_ack: bool,
    /// The lengths and descriptors of an answer, or none for an acknowledgement.
    payload: Option<(usize, usize, usize)>,
    /// What to remember once the DPU has agreed.
    commit: Commit,
}

#[derive(Debug)]
enum Commit {
    Nothing,
    ProtocolFeatures(u64),
    Memory,
    DriverReady,
}

/// What to do with a request.
#[derive(Debug)]
pub struct Forward {
    /// For the DPU.
    pub message: Message,
    /// The DPU will answer, and [`Session::answer`] must be told; otherwise call [`Session::unanswered`].
    pub answered: bool,
}

/// State of one VMM session.
#[derive(Debug, Default)]
pub struct Session {
    vmm: Option<Pid>,
    /// Virtio features that the DPU offered.
    features_offered: u64,
    /// Protocol features that the VMM was offered.
    protocol_offered: u64,
    /// The VMM may ask for acknowledgements.
    vmm_reply_ack: bool,
    /// The DPU gives acknowledgements.
    dpu_reply_ack: bool,
    /// The dirty log comes as a descriptor.
    log_by_descriptor: bool,
    /// The DPU has accepted guest memory.
    has_memory: bool,
    /// The guest's driver has begun to set rings up.
    driver_ready: bool,
    pending: Option<Pending>,
}

impl Session {
    /// A session of the VMM that runs as process `vmm`, if that is known.
    pub fn new(vmm: Option<Pid>) -> Self {
        Self { vmm, ..Self::default() }
    }

    /// True while a driver is ready and no memory has come.
    pub fn lacks_memory(&self) -> bool {
        self.driver_ready && !self.has_memory
    }

    /// The request that the DPU has to answer, if one is outstanding.
    pub fn outstanding(&self) -> Option<Code> {
        self.pending.as_ref().map(|pending| pending.code)
    }

    /// Checks a request and makes the DPU's message of it.
    ///
    /// # Errors
    /// A fault of the VMM's; the session must end.
    pub fn request(&mut self, message: Message) -> Result<Forward, Fault> {
        let mut request = Request::parse(message)?;
        self.check(&request)?;
        let rule = request.rule;
        let mut vmm_reply_ack = self.vmm_reply_ack;
        let mut commit = Commit::Nothing;
        match (rule.code, &request.payload) {
            (Code::SetProtocolFeatures, &Payload::U64(accepted)) => {
                vmm_reply_ack = accepted & protocol_feature::REPLY_ACK != 0;
                let toward_dpu = accepted | self.protocol_offered & protocol_feature::REPLY_ACK;
                request.bytes = toward_dpu.to_le_bytes().to_vec();
                commit = Commit::ProtocolFeatures(accepted);
            }
            (Code::SetMemTable | Code::AddMemReg, _) => commit = Commit::Memory,
            (Code::SetFeatures, &Payload::U64(acked)) if acked & VIRTIO_F_VERSION_1 != 0 => {
                commit = Commit::DriverReady
            }
            (Code::SetVringEnable, &Payload::VringState { num: 1, .. }) => commit = Commit::DriverReady,
            _ => {}
        }
        let payload = match rule.answer {
            Answer::Payload {
                len_min,
                len_max,
                descriptors_max,
            } => Some((len_min, len_max, descriptors_max)),
            Answer::LogBase if self.log_by_descriptor => Some((0, 16, 0)),
            Answer::LogBase | Answer::Ack => None,
        };
        let asks_ack = payload.is_none() && self.dpu_reply_ack;
        let vmm_wants_ack = payload.is_none() && request.need_reply && vmm_reply_ack;
        self.pending = Some(Pending {
            code: rule.code,
            vmm_wants_ack,
            payload,
            commit,
        });
        let flags = FLAG_VERSION | if asks_ack { FLAG_NEED_REPLY } else { 0 };
        let message = Message {
            request: rule.code as u32,
            flags,
            payload: request.bytes,
            descriptors: request.descriptors,
        };
        Ok(Forward {
            message,
            answered: payload.is_some() || asks_ack,
        })
    }

    fn check(&self, request: &Request) -> Result<(), Fault> {
        match (request.code(), &request.payload) {
            (Code::SetProtocolFeatures, &Payload::U64(accepted)) => {
                // Acknowledgements work only after GET_FEATURES has shown that the DPU has protocol features at all.
                let offered = self.features_offered & VIRTIO_F_PROTOCOL_FEATURES != 0;
                let excess = accepted & !self.protocol_offered;
                if (excess != 0 || !offered) && on(Check::KnownRequestsOnly) {
                    return Err(Fault::NotOffered(if offered { excess } else { accepted }));
                }
            }
            (code @ (Code::SetVringAddr | Code::SetVringKick), _) if !self.has_memory && on(Check::SharedMemory) => {
                return Err(Fault::RingBeforeMemory(code));
            }
            (code, Payload::Regions(regions))
                if request.rule.descriptors == Descriptors::PerRegion && on(Check::SharedMemory) =>
            {
                for (index, (region, descriptor)) in regions.iter().zip(&request.descriptors).enumerate() {
                    let what = match shared_memory::unshareable(descriptor) {
                        None if shared_memory::mapped_privately(self.vmm, region, descriptor.as_fd()) => {
                            Some("mapped privately by the VMM (share=off)")
                        }
                        what => what,
                    };
                    if let Some(what) = what {
                        return Err(Fault::MemoryNotShareable { code, index, what });
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The request was sent and the DPU does not answer it: what to send to the VMM, if anything, and what to say.
    ///
    /// # Errors
    /// None that a request which [`Session::request`] accepted can cause.
    pub fn unanswered(&mut self) -> Result<(Option<Message>, Option<Note>), Fault> {
        let Some(pending) = self.pending.take() else {
            return Ok((None, None));
        };
        let note = self.commit(&pending.commit);
        Ok((pending.vmm_wants_ack.then(|| acknowledgement(pending.code, 0)), note))
    }

    /// Checks the DPU's answer: what to send to the VMM, if anything, and what to say.
    ///
    /// # Errors
    /// An answer that does not fit, or a refusal that the VMM did not ask to hear of; the session must end.
    pub fn answer(&mut self, answer: Message) -> Result<(Option<Message>, Option<Note>), Fault> {
        let Some(pending) = self.pending.take() else {
            return Err(Fault::UnaskedAnswer(answer.request));
        };
        let (len_min, len_max, descriptors_max) = pending.payload.unwrap_or((8, 8, 0));
        let fits = answer.request == pending.code as u32
            && answer.flags & FLAG_REPLY != 0
            && (len_min..=len_max).contains(&answer.payload.len())
            && answer.descriptors.len() <= descriptors_max;
        if !fits {
            return Err(Fault::WrongAnswer {
                code: pending.code,
                request: answer.request,
                flags: answer.flags,
                len: answer.payload.len(),
                descriptors: answer.descriptors.len(),
            });
        }
        if pending.payload.is_some() {
            return Ok((Some(self.own_answer(pending.code, answer)), None));
        }
        let value = value_of(&answer);
        let note = match (value, pending.vmm_wants_ack) {
            (0, _) => self.commit(&pending.commit),
            (_, true) => None,
            (_, false) => return Err(Fault::RefusedByDpu(pending.code)),
        };
        Ok((
            pending.vmm_wants_ack.then(|| acknowledgement(pending.code, value)),
            note,
        ))
    }

    /// Remembers what the DPU offers, and passes on what the shim can carry of it.
    fn own_answer(&mut self, code: Code, answer: Message) -> Message {
        let mut value = value_of(&answer);
        match code {
            Code::GetFeatures => self.features_offered = value,
            Code::GetProtocolFeatures => {
                value &= protocol_feature::KNOWN;
                self.protocol_offered = value;
                return Message {
                    payload: value.to_le_bytes().to_vec(),
                    ..answer
                };
            }
            _ => {}
        }
        answer
    }

    fn commit(&mut self, commit: &Commit) -> Option<Note> {
        match commit {
            Commit::Nothing => None,
            Commit::ProtocolFeatures(accepted) => {
                self.vmm_reply_ack = accepted & protocol_feature::REPLY_ACK != 0;
                self.log_by_descriptor = accepted & protocol_feature::LOG_SHMFD != 0;
                self.dpu_reply_ack = self.protocol_offered & protocol_feature::REPLY_ACK != 0;
                None
            }
            Commit::Memory => {
                self.has_memory = true;
                Some(Note::MemoryAccepted)
            }
            Commit::DriverReady => {
                self.driver_ready = true;
                None
            }
        }
    }
}

fn acknowledgement(code: Code, value: u64) -> Message {
    Message {
        request: code as u32,
        flags: FLAG_VERSION | FLAG_REPLY,
        payload: value.to_le_bytes().to_vec(),
        descriptors: Vec::new(),
    }
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
