//! The DPU's side of a session: greeting it, telling it what is remembered, and its answers.

use std::time::{Duration, Instant};

use super::{
    Fault, Message, Note, Offer, Output, Session,
    asked::{Asked, What, plain},
    framing::Descriptor,
    message,
    offer::QUEUES_MAX,
    remembered::{Change, number},
    reply, value_of,
    vhost_user_wire::{Answer, CONFIG_LEN_MAX, Code, FLAG_NEED_REPLY, FLAG_REPLY, protocol_feature, rule},
};

/// Longest wait for the answer to a request that only asks or notes something.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a request that starts or stops rings: it waits for requests in flight, and of a new
/// DPU for those of its predecessor.
pub const DRAIN_WAIT_MAX: Duration = Duration::from_secs(60);

/// How many DPUs may end the stream at the same request, one after the other, before that is taken for their refusal of
/// it: not every request has an answer that can say no.
pub const STREAM_ENDS_MAX: u32 = 5;

/// The request at which the streams of the last DPUs ended, and of how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamEnds {
    code: Code,
    count: u32,
}

/// Whether a DPU is there.
#[derive(Debug)]
pub(super) enum Dpu {
    /// There is none.
    Away(Lost),
    /// It is asked what it offers; the descriptor is its end of the back-end's channel.
    Greeting { draft: Offer, channel: Descriptor },
    /// It is told what is remembered; the VMM hears of another configuration after that.
    Settling { announce: bool },
    /// It serves.
    Ready,
}

/// How the DPU went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// None has come to this session yet.
    Never,
    /// It closed its stream: its process ended, or it stops its rings.
    Closed(Instant),
    /// It did not answer, or not as it should, and may still be serving rings.
    Hung,
}

/// A message for the DPU, and what its answer means.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) message: Message,
    pub(super) then: Then,
}

#[derive(Debug)]
pub(super) enum Then {
    /// It is part of what the DPU offers.
    Learn,
    /// Nothing: it was remembered already.
    Nothing,
    /// It is remembered from now on.
    Commit(Change),
    /// The VMM asked it.
    AnswerVmm,
}

/// The request that the DPU has to answer.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) code: Code,
    pub(super) until: Instant,
    then: Then,
}

impl Outstanding {
    pub(super) fn patience(&self) -> Duration {
        patience(self.code)
    }
}

fn patience(code: Code) -> Duration {
    match code {
        Code::GetFeatures
        | Code::GetProtocolFeatures
        | Code::SetOwner
        | Code::GetQueueNum
        | Code::GetMaxMemSlots
        | Code::GetConfig
        | Code::SetConfig
        | Code::SetBackendReqFd
        | Code::SetVringErr
        | Code::NetSetMtu => ANSWER_WAIT_MAX,
        _ => DRAIN_WAIT_MAX,
    }
}

impl Session {
    /// A stream to a DPU is there. `channel` is the DPU's end of the channel on which it may tell of changes.
    pub fn dpu_connected(&mut self, channel: Descriptor, now: Instant) {
        self.forget_exchange();
        self.dpu = Dpu::Greeting {
            draft: Offer::unknown(self.kind),
            channel,
        };
        self.learn(Code::GetFeatures, Vec::new());
        self.learn(Code::GetProtocolFeatures, Vec::new());
        self.send_next(now);
    }

    /// The stream to the DPU has ended.
    ///
    /// # Errors
    /// A fault of the VMM's; the session must end.
    pub fn dpu_lost(&mut self, now: Instant) -> Result<(), Fault> {
        self.lose(Lost::Closed(now), now)
    }

    /// The DPU is hung: nothing that it may still answer counts.
    ///
    /// # Errors
    /// A fault of the VMM's; the session must end.
    pub fn dpu_hung(&mut self, now: Instant) -> Result<(), Fault> {
        self.lose(Lost::Hung, now)
    }

    /// The session itself has done with a DPU that breaks the rules.
    pub(super) fn drop_dpu(&mut self, fault: Fault, now: Instant) -> Result<(), Fault> {
        self.outputs.push_back(Output::DropDpu(fault));
        self.lose(Lost::Hung, now)
    }

    fn lose(&mut self, lost: Lost, now: Instant) -> Result<(), Fault> {
        if matches!(self.dpu, Dpu::Away(_)) {
            return Ok(());
        }
        let refused = self.counted_as_refusal();
        self.forget_exchange();
        self.dpu = Dpu::Away(lost);
        if let Some(code) = refused {
            return Err(Fault::EndsEveryDpu(code, STREAM_ENDS_MAX));
        }
        self.remembered.refresh_bases();
        let in_flight = self.remembered.in_flight_total();
        self.note(Note::DpuLost(in_flight));
        match self.asked.take() {
            Some(asked) => self.answer_without_dpu(asked, now),
            None => Ok(()),
        }
    }

    /// The request that a DPU was being told when it ended the stream, if so many have that no other will take it either.
    /// What an earlier DPU has served is never held against the VMM.
    fn counted_as_refusal(&mut self) -> Option<Code> {
        let code = self.outstanding.as_ref()?.code;
        if matches!(self.dpu, Dpu::Greeting { .. }) {
            return None;
        }
        let count = match self.stream_ends {
            Some(ends) if ends.code == code => ends.count + 1,
            _ => 1,
        };
        self.stream_ends = Some(StreamEnds { code, count });
        (count >= STREAM_ENDS_MAX && self.unverified).then_some(code)
    }

    /// What was on its way to a DPU is on its way no more.
    fn forget_exchange(&mut self) {
        self.steps.clear();
        self.outstanding = None;
        self.outputs.retain(|output| !matches!(output, Output::ToDpu(_)));
    }

    fn learn(&mut self, code: Code, payload: Vec<u8>) {
        self.steps.push_back(Step {
            message: plain(message(code, payload, [])),
            then: Then::Learn,
        });
    }

    fn tell(&mut self, message: Message) {
        self.steps.push_back(Step {
            message,
            then: Then::Nothing,
        });
    }

    /// Sends the next message, if the one before is answered.
    pub(super) fn send_next(&mut self, now: Instant) {
        while self.outstanding.is_none()
            && let Some(Step { message, then }) = self.steps.pop_front()
        {
            let Some(rule) = rule(message.request) else { continue };
            // The negotiation of acknowledgements is not acknowledged.
            if rule.code != Code::SetProtocolFeatures {
                self.outstanding = Some(Outstanding {
                    code: rule.code,
                    until: now + patience(rule.code),
                    then,
                });
            }
            self.outputs.push_back(Output::ToDpu(message));
        }
    }

    /// The DPU has answered.
    ///
    /// # Errors
    /// It refused what the VMM asked, and the VMM cannot be told; the session must end.
    pub fn dpu_answered(&mut self, answer: Message, now: Instant) -> Result<(), Fault> {
        let Some(Outstanding { code, then, .. }) = self.outstanding.take() else {
            return self.drop_dpu(Fault::UnaskedAnswer(answer.request), now);
        };
        if !fits(code, &answer) {
            let fault = Fault::WrongAnswer {
                code,
                request: answer.request,
                flags: answer.flags,
                len: answer.payload.len(),
                descriptors: answer.descriptors.len(),
            };
            return self.drop_dpu(fault, now);
        }
        match then {
            Then::Learn => {
                if let Err(unfit) = self.learned(code, &answer) {
                    return self.drop_dpu(unfit, now);
                }
            }
            Then::Nothing | Then::Commit(_) if is_refusal(code, &answer) => {
                // The VMM said this to nobody but the shim: it has to hear that it was wrong.
                if self.unverified && !matches!(self.dpu, Dpu::Greeting { .. }) {
                    return Err(Fault::RefusedByDpu(code));
                }
                return self.drop_dpu(Fault::ReplayRefused(code), now);
            }
            Then::Nothing => {}
            Then::Commit(change) => self.apply(change, now),
            Then::AnswerVmm => self.answer_vmm(answer, now)?,
        }
        self.go_on(now)
    }

    /// What comes when all messages are answered.
    fn go_on(&mut self, now: Instant) -> Result<(), Fault> {
        if self.steps.is_empty() && self.outstanding.is_none() {
            match std::mem::replace(&mut self.dpu, Dpu::Ready) {
                Dpu::Greeting { draft, .. } => {
                    if let Err(fault) = self.greeted(draft) {
                        return self.drop_dpu(fault, now);
                    }
                    if self.steps.is_empty() {
                        return self.go_on(now);
                    }
                }
                Dpu::Settling { announce } => self.settled(announce),
                before => self.dpu = before,
            }
        }
        self.send_next(now);
        Ok(())
    }

    /// Takes in a piece of what the DPU offers, and asks for the next.
    fn learned(&mut self, code: Code, answer: &Message) -> Result<(), Fault> {
        let value = value_of(answer);
        let Dpu::Greeting { draft, channel } = &mut self.dpu else {
            return Ok(());
        };
        match code {
            Code::GetFeatures => draft.features = value,
            Code::GetProtocolFeatures => {
                draft.protocol = value & protocol_feature::KNOWN;
                draft.serves().map_err(Fault::Unfit)?;
                let (draft, channel) = (draft.clone(), channel.clone());
                self.greet(&draft, channel);
            }
            Code::GetQueueNum => draft.queues = u16::try_from(value).unwrap_or(u16::MAX).min(QUEUES_MAX),
            Code::GetMaxMemSlots => draft.mem_slots = value,
            Code::GetConfig => draft.config = answer.payload.get(12..).unwrap_or_default().to_vec(),
            _ => {}
        }
        Ok(())
    }

    /// Negotiates all that the DPU offers and the shim knows, whatever the VMM makes use of.
    fn greet(&mut self, draft: &Offer, channel: Descriptor) {
        self.tell(plain(number(Code::SetProtocolFeatures, draft.protocol)));
        self.tell(message(Code::SetOwner, Vec::new(), []));
        if draft.has(protocol_feature::MQ) {
            self.learn(Code::GetQueueNum, Vec::new());
        }
        if draft.has(protocol_feature::CONFIGURE_MEM_SLOTS) {
            self.learn(Code::GetMaxMemSlots, Vec::new());
        }
        if draft.has(protocol_feature::CONFIG) {
            let len = u32::try_from(CONFIG_LEN_MAX).unwrap_or(0);
            let head = [0, len, 0].into_iter().flat_map(u32::to_le_bytes);
            let payload = head.chain(std::iter::repeat_n(0, CONFIG_LEN_MAX)).collect();
            self.learn(Code::GetConfig, payload);
        }
        if draft.has(protocol_feature::BACKEND_REQ) {
            self.tell(message(Code::SetBackendReqFd, Vec::new(), [channel]));
        }
    }

    /// The offer is whole: if it will do, the DPU is told what is remembered.
    fn greeted(&mut self, mut offer: Offer) -> Result<(), Fault> {
        let mut announce = false;
        if let Some(before) = &self.offer {
            offer.replaces(before, self.relied(before)).map_err(Fault::Unfit)?;
            for (&at, &byte) in &self.remembered.config {
                if let Some(place) = offer.config.get_mut(at as usize) {
                    *place = byte;
                }
            }
            announce = offer.config != before.config;
        }
        self.set_offer(offer.clone());
        self.note(Note::Offered(offer));
        self.remembered.refresh_bases();
        self.steps
            .extend(self.remembered.replay().into_iter().map(|message| Step {
                message,
                then: Then::Nothing,
            }));
        self.dpu = Dpu::Settling { announce };
        Ok(())
    }

    /// The DPU knows all that is remembered.
    fn settled(&mut self, announce: bool) {
        (self.unverified, self.stream_ends) = (false, None);
        let replay = std::mem::replace(&mut self.was_served, true);
        self.note(Note::Ready { replay });
        if announce {
            self.announce();
        }
        if let Some(Asked {
            what: What::Base(index),
            ..
        }) = self.asked
        {
            let payload = [index.into(), 0].into_iter().flat_map(u32::to_le_bytes).collect();
            self.steps.push_back(Step {
                message: plain(message(Code::GetVringBase, payload, [])),
                then: Then::AnswerVmm,
            });
        }
    }

    /// The DPU has answered what the VMM asked.
    fn answer_vmm(&mut self, answer: Message, now: Instant) -> Result<(), Fault> {
        let Some(Asked { code, wants_ack, what }) = self.asked.take() else {
            return Ok(());
        };
        match what {
            What::Config { offset, .. } => {
                let bytes = answer.payload.get(12..).unwrap_or_default();
                let begin = usize::try_from(offset).unwrap_or(usize::MAX);
                let config = self.offer.as_mut().map(|offer| &mut offer.config);
                if let Some(place) = config.and_then(|config| config.get_mut(begin..begin.checked_add(bytes.len())?)) {
                    place.copy_from_slice(bytes);
                }
                self.send_to_vmm(answer);
            }
            What::Base(index) => {
                let base = value_of(&answer) >> 32;
                let base = u32::try_from(base).unwrap_or(u32::MAX);
                self.apply(Change::Stopped(index, base), now);
                self.send_to_vmm(answer);
                self.end_hold();
            }
            What::Change(change) if code == Code::SetLogBase => {
                self.apply(change, now);
                self.send_to_vmm(answer);
            }
            What::Change(change) => match value_of(&answer) {
                0 => {
                    self.apply(change, now);
                    self.acknowledge(code, wants_ack);
                }
                refusal if wants_ack => self.send_to_vmm(reply(code, refusal.to_le_bytes().to_vec(), [])),
                _ => return Err(Fault::RefusedByDpu(code)),
            },
        }
        Ok(())
    }
}

/// True if the answer is one that the request has.
fn fits(code: Code, answer: &Message) -> bool {
    let (len_min, len_max, descriptors_max) = match rule(code as u32).map(|rule| rule.answer) {
        Some(Answer::Payload {
            len_min,
            len_max,
            descriptors_max,
        }) => (len_min, len_max, descriptors_max),
        Some(Answer::LogBase) => (0, 16, 0),
        _ => (8, 8, 0),
    };
    answer.request == code as u32
        && answer.flags & FLAG_REPLY != 0
        && answer.flags & FLAG_NEED_REPLY == 0
        && (len_min..=len_max).contains(&answer.payload.len())
        && answer.descriptors.len() <= descriptors_max
}

/// True if an acknowledgement says no.
fn is_refusal(code: Code, answer: &Message) -> bool {
    code != Code::SetLogBase && value_of(answer) != 0
}
