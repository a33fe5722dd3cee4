//! What the VMM asks: checked, answered from memory, or passed on.

use std::{os::fd::AsFd, time::Instant};

use outboard_controls::{Check, on};
use outboard_protocol::id::ObjectKind;

use super::{
    Change, Dpu, Event, Fault, HELD_QUIETLY_MAX, Lost, Message, Note, Offer, STOPPING_MAX, Session, Step,
    exchange::Then,
    guest_memory::MappedRegion,
    inflight::Inflight,
    message,
    remembered::{Log, RingAddress},
    reply, reply_u64,
    request::{CONFIG_HEAD_LEN, Payload, Request},
    set_inflight, shared_memory,
    vhost_user_wire::{Code, Descriptors, QUEUE_SIZE_MAX, protocol_feature},
};

/// A request of the VMM's that is not answered yet.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) code: Code,
    /// The VMM wants an acknowledgement.
    pub(super) wants_ack: bool,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// Something changes.
    Change(Change),
    /// `GET_CONFIG`.
    Config { offset: u32, len: u32, flags: u32 },
    /// `GET_VRING_BASE`.
    Base(u16),
}

/// A request that is not answered because no answer is certain.
#[derive(Debug)]
pub(super) struct Held {
    since: Instant,
    told: bool,
    retry_at: Option<Instant>,
}

impl Held {
    fn report_at(&self) -> Option<Instant> {
        (!self.told).then(|| self.since + HELD_QUIETLY_MAX)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.report_at().into_iter().chain(self.retry_at).min()
    }
}

/// The protocol feature without which a request must not come.
fn needs(code: Code) -> u64 {
    match code {
        Code::GetQueueNum => protocol_feature::MQ,
        Code::GetConfig | Code::SetConfig => protocol_feature::CONFIG,
        Code::GetInflightFd | Code::SetInflightFd => protocol_feature::INFLIGHT_SHMFD,
        Code::GetMaxMemSlots | Code::AddMemReg | Code::RemMemReg => protocol_feature::CONFIGURE_MEM_SLOTS,
        Code::SetLogBase => protocol_feature::LOG_SHMFD,
        Code::NetSetMtu => protocol_feature::MTU,
        Code::SetBackendReqFd => protocol_feature::BACKEND_REQ,
        Code::ResetDevice => protocol_feature::RESET_DEVICE,
        _ => 0,
    }
}

impl Session {
    /// The VMM asks something.
    ///
    /// # Errors
    /// A fault of the VMM's; the session must end.
    pub fn request(&mut self, message: Message, now: Instant) -> Result<(), Fault> {
        let request = Request::parse(message)?;
        let Some(offer) = self.offer.clone() else {
            return Err(Fault::NotNegotiated(request.code()));
        };
        self.check(&request, &offer)?;
        let code = request.code();
        let wants_ack = request.need_reply && self.protocol & protocol_feature::REPLY_ACK != 0;
        match (code, &request.payload) {
            (Code::GetFeatures, _) => self.send_to_vmm(reply_u64(code, offer.features)),
            (Code::GetProtocolFeatures, _) => self.send_to_vmm(reply_u64(code, offer.protocol_told())),
            (Code::GetQueueNum, _) => self.send_to_vmm(reply_u64(code, offer.queues.into())),
            (Code::GetMaxMemSlots, _) => self.send_to_vmm(reply_u64(code, offer.mem_slots)),
            // The session owns the device from its beginning.
            (Code::SetOwner, _) => self.acknowledge(code, wants_ack),
            (Code::SetProtocolFeatures, &Payload::U64(accepted)) => {
                self.protocol = accepted;
                let wants_ack = request.need_reply && accepted & protocol_feature::REPLY_ACK != 0;
                self.acknowledge(code, wants_ack);
            }
            (Code::SetBackendReqFd, _) => {
                self.vmm_channel = request.descriptors.into_iter().next();
                self.acknowledge(code, wants_ack);
            }
            (
                Code::GetInflightFd,
                &Payload::Inflight {
                    queue_count,
                    queue_size,
                    ..
                },
            ) => {
                let made = Inflight::make(self.remembered.packed(), queue_count, queue_size, offer.queues);
                let region = made.map_err(|source| Fault::Inflight(code, source))?;
                self.send_to_vmm(reply(code, region.payload(), [region.file]));
            }
            _ => {
                let what = what(&request, &offer, self.remembered.packed())?;
                if let What::Change(Change::Base(index, _)) = what {
                    self.remembered.forget_position(index);
                }
                let asked = Asked { code, wants_ack, what };
                self.take_in(asked, request, now)?;
            }
        }
        Ok(())
    }

    fn check(&self, request: &Request, offer: &Offer) -> Result<(), Fault> {
        let code = request.code();
        if needs(code) & !self.protocol != 0 && on(Check::KnownRequestsOnly) {
            return Err(Fault::NotNegotiated(code));
        }
        match (code, &request.payload) {
            (Code::SetProtocolFeatures, &Payload::U64(accepted)) => {
                let excess = accepted & !offer.protocol_told();
                if excess != 0 && on(Check::KnownRequestsOnly) {
                    return Err(Fault::NotOffered("protocol features", excess));
                }
            }
            (Code::SetFeatures, &Payload::U64(acked)) => {
                let excess = acked & !offer.features;
                if excess != 0 && on(Check::KnownRequestsOnly) {
                    return Err(Fault::NotOffered("virtio features", excess));
                }
            }
            (Code::SetVringAddr | Code::SetVringKick, _) if !self.has_memory && on(Check::SharedMemory) => {
                return Err(Fault::RingBeforeMemory(code));
            }
            (Code::AddMemReg, _)
                if self.remembered.memory.regions().len() as u64 >= offer.mem_slots && on(Check::SessionBounds) =>
            {
                return Err(Fault::TooManyRegions(offer.mem_slots));
            }
            (Code::RemMemReg, Payload::Regions(regions)) => {
                if let Some(region) = regions.iter().find(|region| !self.remembered.memory.has(region)) {
                    return Err(Fault::NoSuchRegion(region.guest_phys_addr));
                }
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

    /// Passes a request on to the DPU, or does with it what can be done without one.
    fn take_in(&mut self, asked: Asked, request: Request, now: Instant) -> Result<(), Fault> {
        if let (Dpu::Ready, _) | (Dpu::Settling { .. }, What::Change(_)) = (&self.dpu, &asked.what) {
            if matches!(asked.what, What::Change(Change::Kick(..)))
                && let Some(change) = self.own_inflight()?
            {
                self.tell_inflight(change);
            }
            let passed_on = match asked.code {
                Code::GetConfig | Code::GetVringBase => plain(message(asked.code, request.bytes, request.descriptors)),
                code => message(code, request.bytes, request.descriptors),
            };
            if matches!(self.dpu, Dpu::Ready) {
                self.asked = Some(asked);
                self.steps.push_back(Step {
                    message: passed_on,
                    then: Then::AnswerVmm,
                });
                self.send_next(now);
                return Ok(());
            }
            self.steps.push_back(Step {
                message: passed_on,
                then: Then::Nothing,
            });
        }
        self.answer_without_dpu(asked, now)
    }

    /// The DPU hears of the shim's own in-flight region before the first ring starts.
    fn tell_inflight(&mut self, change: Change) {
        let Change::Inflight(region) = &change else { return };
        let message = set_inflight(region);
        let then = match self.dpu {
            Dpu::Ready => Then::Commit(change),
            _ => {
                self.remembered.apply(change);
                Then::Nothing
            }
        };
        self.steps.push_back(Step { message, then });
    }

    /// Does with a request what can be done while no DPU serves.
    pub(super) fn answer_without_dpu(&mut self, asked: Asked, now: Instant) -> Result<(), Fault> {
        match asked.what {
            What::Change(change) => {
                if matches!(change, Change::Kick(..))
                    && let Some(own) = self.own_inflight()?
                {
                    self.remembered.apply(own);
                }
                self.unverified = true;
                let log = match &change {
                    // Answered by itself, with what it said.
                    Change::Log(log) => Some([log.mmap_size.to_le_bytes(), log.mmap_offset.to_le_bytes()].concat()),
                    _ => None,
                };
                self.apply(change, now);
                match log {
                    Some(payload) => self.send_to_vmm(reply(asked.code, payload, [])),
                    None => self.acknowledge(asked.code, asked.wants_ack),
                }
            }
            What::Config { offset, len, flags } => {
                let config = self.offer.as_ref().map_or(&[][..], |offer| &offer.config);
                let payload = config_answer(config, offset, len, flags);
                self.send_to_vmm(reply(asked.code, payload, []));
            }
            What::Base(index) => match self.base_without_dpu(index, now) {
                Some(base) => self.answer_base(index, base),
                None => {
                    let held = self.held.get_or_insert(Held {
                        since: now,
                        told: false,
                        retry_at: None,
                    });
                    held.retry_at = match self.dpu {
                        Dpu::Away(Lost::Closed(at)) => Some(at + STOPPING_MAX).filter(|at| now < *at),
                        _ => None,
                    };
                    self.asked = Some(asked);
                }
            },
        }
        Ok(())
    }

    /// Acknowledges what the DPU has done, or what is remembered in its place.
    pub(super) fn acknowledge(&mut self, code: Code, wants_ack: bool) {
        if wants_ack {
            self.send_to_vmm(reply_u64(code, 0));
        }
    }

    fn answer_base(&mut self, index: u16, base: u32) {
        let payload = [u32::from(index), base]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect();
        self.remembered.apply(Change::Stopped(index, base));
        self.send_to_vmm(reply(Code::GetVringBase, payload, []));
        self.end_hold();
    }

    pub(super) fn end_hold(&mut self) {
        if self.held.take().is_some_and(|held| held.told) {
            self.note(Note::HeldOver);
        }
    }

    /// Where a ring stands, if that is certain without a DPU.
    fn base_without_dpu(&self, index: u16, now: Instant) -> Option<u32> {
        let ring = self.remembered.rings.get(usize::from(index))?;
        if !ring.is_live() {
            return Some(ring.base);
        }
        match self.dpu {
            // It may still be stopping its rings.
            Dpu::Away(Lost::Closed(at)) if now < at + STOPPING_MAX => return None,
            Dpu::Away(Lost::Closed(_) | Lost::Never) => {}
            _ => return None,
        }
        let state = self.remembered.packed_state(index);
        let is_whole = state.is_none_or(|state| !state.unfinished);
        let Some(base) = self.remembered.stands(index) else {
            // Nobody can serve a ring that is nowhere, and nobody has begun with it.
            return Some(ring.base);
        };
        let is_quiet = match self.kind {
            // In order: what is used is all that was done.
            ObjectKind::Port => true,
            ObjectKind::Volume => self.remembered.in_flight(index) == Some(0),
        };
        (is_quiet && is_whole).then_some(base)
    }

    /// Tries again to answer what is held, and reports it if it takes long.
    pub(super) fn look_after_held(&mut self, now: Instant) -> Result<(), Fault> {
        let Some(held) = &mut self.held else { return Ok(()) };
        if held.retry_at.is_some_and(|at| at <= now) {
            held.retry_at = None;
            if let Some(asked) = self.asked.take() {
                self.answer_without_dpu(asked, now)?;
            }
        }
        if let Some(held) = &mut self.held
            && held.report_at().is_some_and(|at| at <= now)
        {
            held.told = true;
            self.note(Note::Held);
        }
        Ok(())
    }
}

/// The same without asking for an acknowledgement: it is answered by itself.
pub(super) fn plain(message: Message) -> Message {
    Message {
        flags: super::vhost_user_wire::FLAG_VERSION,
        ..message
    }
}

/// `GET_CONFIG`'s answer; one of no bytes says that it failed (vhost-user, `VHOST_USER_GET_CONFIG`).
fn config_answer(config: &[u8], offset: u32, len: u32, flags: u32) -> Vec<u8> {
    let begin = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = begin.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
    let found = config.get(begin..end);
    let head = [offset, found.map_or(0, |_| len), flags];
    let mut payload: Vec<u8> = head.into_iter().flat_map(u32::to_le_bytes).collect();
    payload.extend_from_slice(found.unwrap_or_default());
    payload
}

/// What a request means.
fn what(request: &Request, offer: &Offer, packed: bool) -> Result<What, Fault> {
    let code = request.code();
    let file = || request.descriptors.first().cloned();
    let missing = || Fault::Descriptors { code, want: 1, got: 0 };
    let wrong = |value: u64| Fault::Value { code, value };
    let ring = |index: u32| match u16::try_from(index) {
        Ok(index) if index < offer.queues => Ok(index),
        _ if !on(Check::QueueIndex) => Ok(0),
        _ => Err(Fault::NoSuchRing {
            code,
            index,
            queues: offer.queues,
        }),
    };
    let change = match (code, &request.payload) {
        (Code::GetConfig, &Payload::Config { offset, len, flags }) => {
            return Ok(What::Config { offset, len, flags });
        }
        (Code::GetVringBase, &Payload::VringState { index, .. }) => return Ok(What::Base(ring(index)?)),
        (Code::SetConfig, &Payload::Config { offset, len, .. }) => {
            let end = offset.checked_add(len);
            if end.is_none_or(|end| end as usize > offer.config.len()) {
                return Err(wrong(offset.into()));
            }
            let bytes = request.bytes.get(CONFIG_HEAD_LEN..).unwrap_or_default().to_vec();
            Change::Config { offset, bytes }
        }
        (Code::SetFeatures, &Payload::U64(acked)) => Change::Features(acked),
        (Code::NetSetMtu, &Payload::U64(mtu)) => Change::Mtu(mtu),
        (Code::SetInflightFd, payload) => {
            let passed = Inflight::passed(packed, payload, file().ok_or_else(missing)?, offer.queues);
            Change::Inflight(passed.map_err(|source| Fault::Inflight(code, source))?)
        }
        (Code::SetMemTable, Payload::Regions(regions)) => Change::Memory(
            regions
                .iter()
                .zip(&request.descriptors)
                .map(|(region, file)| MappedRegion {
                    region: *region,
                    file: file.clone(),
                })
                .collect(),
        ),
        (Code::AddMemReg, Payload::Regions(regions)) => Change::Add(MappedRegion {
            region: *regions.first().ok_or_else(|| wrong(0))?,
            file: file().ok_or_else(missing)?,
        }),
        (Code::RemMemReg, Payload::Regions(regions)) => Change::Remove(*regions.first().ok_or_else(|| wrong(0))?),
        (Code::SetLogBase, &Payload::Log { mmap_size, mmap_offset }) => Change::Log(Log {
            file: file().ok_or_else(missing)?,
            mmap_size,
            mmap_offset: mmap_offset.unwrap_or(0),
        }),
        (Code::SetVringNum, &Payload::VringState { index, num }) => match num.is_power_of_two() {
            true if num <= QUEUE_SIZE_MAX => Change::Num(ring(index)?, num),
            _ => return Err(wrong(num.into())),
        },
        (Code::SetVringBase, &Payload::VringState { index, num }) => match u16::try_from(num) {
            // Of a packed ring it is two positions.
            _ if packed => Change::Base(ring(index)?, num),
            Ok(_) => Change::Base(ring(index)?, num),
            Err(_) => return Err(wrong(num.into())),
        },
        (Code::SetVringEnable, &Payload::VringState { index, num }) => match num {
            0 | 1 => Change::Enable(ring(index)?, num),
            _ => return Err(wrong(num.into())),
        },
        (
            Code::SetVringAddr,
            &Payload::VringAddress {
                index,
                flags,
                descriptor,
                used,
                available,
                log,
            },
        ) => {
            let addr = RingAddress {
                flags,
                descriptor,
                used,
                available,
                log,
            };
            Change::Addr(ring(index)?, addr)
        }
        (_, &Payload::VringDescriptor { index, present }) => {
            let index = ring(index.into())?;
            let event = match (present, file()) {
                (true, Some(fd)) => Event::Some(fd),
                _ => Event::None,
            };
            match code {
                Code::SetVringKick => Change::Kick(index, event),
                Code::SetVringCall => Change::Call(index, event),
                _ => Change::Err(index, event),
            }
        }
        (Code::ResetDevice, _) => Change::Reset,
        (Code::ResetOwner, _) => Change::ResetRings,
        // All others were answered before.
        _ => return Err(Fault::NotNegotiated(code)),
    };
    Ok(What::Change(change))
}
