//! What a session remembers, and what each request does. No I/O but what the device does.

use std::{fs::File, ops::Range, sync::Arc};

use outboard_controls::{Check, on};
use outboard_ring::{CallFd, DirtyLog, GuestMemory, InflightRegion, KickFd, REGION_COUNT_MAX, Ring, RingFormat};
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use crate::{
    backend::BackendChannel,
    device::{Device, QueueResources},
    error::SessionError,
    queue::{Queue, ring_config},
    request::Request,
};

/// Bytes of config space that a front-end may ask for (vhost-user, VHOST_USER_MAX_CONFIG_SIZE).
pub(crate) const CONFIG_LEN_MAX: u32 = 256;
/// The virtio feature bit by which protocol features are offered.
pub(crate) const F_PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// The virtio feature bit by which dirty logging is turned on.
pub(crate) const F_LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
/// Flags of GET_CONFIG and SET_CONFIG: a driver's write, or a migration's.
const CONFIG_FLAGS: u32 = 0x3;

/// What is sent back.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Nothing but an acknowledgement, if one was asked for.
    Ack,
    /// The request was refused and the session goes on.
    Refused,
    /// A reply of its own.
    Payload(Vec<u8>),
    /// The same with a descriptor.
    WithFile(Vec<u8>, File),
}

impl Reply {
    fn u64(value: u64) -> Self {
        Self::Payload(value.to_ne_bytes().to_vec())
    }
}

/// One session of a device.
pub(crate) struct Session<'a> {
    device: &'a mut dyn Device,
    owned: bool,
    /// Virtio features, once they are set.
    features: Option<u64>,
    protocol_features: VhostUserProtocolFeatures,
    memory: Option<Arc<GuestMemory>>,
    queues: Vec<Queue>,
    log: Option<Arc<DirtyLog>>,
    /// Queues ran when writes were to be logged, but no log was there yet.
    unlogged: bool,
    inflight: Option<InflightRegion>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(device: &'a mut dyn Device) -> Self {
        let queues = (0..device.queue_count()).map(|_| Queue::default()).collect();
        let protocol_features = VhostUserProtocolFeatures::empty();
        Self {
            device,
            owned: false,
            features: None,
            protocol_features,
            memory: None,
            queues,
            log: None,
            unlogged: false,
            inflight: None,
        }
    }

    /// May the front-end ask for acknowledgements?
    pub(crate) fn reply_ack(&self) -> bool {
        self.protocol_features.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Do what a request asks. An error ends the session.
    pub(crate) fn handle(&mut self, kind: FrontendReq, request: Request) -> Result<Reply, SessionError> {
        self.check_negotiated(kind)?;
        match request {
            Request::GetFeatures => return Ok(Reply::u64(self.offered())),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::SetOwner if self.owned => return Err(SessionError::Owned),
            Request::SetOwner => self.owned = true,
            Request::ResetOwner => self.reset()?,
            Request::SetMemTable(regions) => {
                self.replace_memory(GuestMemory::map(regions)?)?;
                self.start_all()?;
            }
            Request::AddMemReg(region) => {
                self.replace_memory(self.present_memory().with(region)?)?;
                self.start_mapped()?;
            }
            Request::RemMemReg {
                guest_phys_addr,
                len,
                user_addr,
            } => {
                self.replace_memory(self.present_memory().without(guest_phys_addr, len, user_addr)?)?;
                self.start_mapped()?;
            }
            Request::SetVringNum { index, size } => self.set_size(kind, index, size)?,
            Request::SetLogBase { len, offset, file } => return self.set_log_base(&file, offset, len),
            Request::SetVringAddr { index, addr, log_used } => self.set_addr(kind, index, addr, log_used)?,
            Request::SetVringBase { index, base } => self.set_base(kind, index, base)?,
            Request::GetVringBase { index } => return self.get_base(kind, index),
            Request::SetVringKick { index, fd } => {
                let index = self.index(kind, index)?;
                let fd = fd.ok_or(SessionError::NoKick { index })?;
                self.set_kick(
                    index,
                    KickFd::new(fd).map_err(|source| SessionError::Notify { index, source })?,
                )?;
            }
            Request::SetVringCall { index, fd } => {
                let index = self.index(kind, index)?;
                let call = fd.map(CallFd::new).transpose();
                self.set_call(index, call.map_err(|source| SessionError::Notify { index, source })?)?;
            }
            Request::SetVringErr { index, fd } => {
                let index = self.index(kind, index)?;
                // Nothing is signalled by it: a broken queue shows in the DPU's own log and state. Still no pipe.
                fd.map(CallFd::new)
                    .transpose()
                    .map_err(|source| SessionError::Notify { index, source })?;
            }
            Request::SetVringEnable { index, enable } => self.set_enable(kind, index, enable)?,
            Request::GetProtocolFeatures => return Ok(Reply::u64(self.offered_protocol().bits())),
            Request::SetProtocolFeatures(features) => self.set_protocol_features(features)?,
            Request::GetQueueNum => return Ok(Reply::u64(self.queues.len() as u64)),
            Request::SetMtu(mtu) => return self.set_mtu(kind, mtu),
            Request::SetBackendReqFd(fd) => self.device.set_backend_channel(Some(BackendChannel::new(fd)?)),
            Request::GetInflightFd(shape) => return self.get_inflight(kind, shape),
            Request::SetInflightFd {
                len,
                offset,
                shape,
                file,
            } => self.set_inflight(kind, &file, offset, len, shape)?,
            Request::ResetDevice => self.reset_device()?,
            Request::GetMaxMemSlots => return Ok(Reply::u64(REGION_COUNT_MAX as u64)),
            Request::GetConfig { offset, len, flags } => return Ok(self.get_config(offset, len, flags)),
            Request::SetConfig { offset, flags, data } => return Ok(self.set_config(offset, flags, &data)),
        }
        Ok(Reply::Ack)
    }

    /// Stop everything: the session is over.
    pub(crate) fn close(mut self) {
        for index in self.indices() {
            // Also queues that are not known to run: starting one may have failed half way.
            if let Err(error) = self.device.stop_queue(index) {
                tracing::error!(%error, queue = index, "a queue could not be stopped when its session ended");
            }
        }
        (self.memory, self.log, self.inflight) = (None, None, None);
        self.device.set_backend_channel(None);
        self.device.closed();
    }

    fn offered(&self) -> u64 {
        self.device.features() | F_PROTOCOL_FEATURES | F_LOG_ALL
    }

    fn offered_protocol(&self) -> VhostUserProtocolFeatures {
        let mut offered = VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE;
        if self.device.has_config() {
            offered |= VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::BACKEND_REQ;
        }
        // A device that keeps the order has its position in memory, unless its rings are packed.
        if self.device.finishes_out_of_order() || RingFormat::of(self.device.features()) == RingFormat::Packed {
            offered |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        if self.device.takes_mtu() {
            offered |= VhostUserProtocolFeatures::MTU;
        }
        // A virtio-net device of one queue pair has no multiqueue. Others say how many queues they have.
        if self.device.has_config() || self.queues.len() > 2 {
            offered |= VhostUserProtocolFeatures::MQ;
        }
        offered
    }

    fn check_negotiated(&self, kind: FrontendReq) -> Result<(), SessionError> {
        let feature = match kind {
            FrontendReq::GET_QUEUE_NUM => VhostUserProtocolFeatures::MQ,
            FrontendReq::SET_LOG_BASE => VhostUserProtocolFeatures::LOG_SHMFD,
            FrontendReq::NET_SET_MTU => VhostUserProtocolFeatures::MTU,
            FrontendReq::SET_BACKEND_REQ_FD => VhostUserProtocolFeatures::BACKEND_REQ,
            FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD => VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            FrontendReq::RESET_DEVICE => VhostUserProtocolFeatures::RESET_DEVICE,
            FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => VhostUserProtocolFeatures::CONFIG,
            FrontendReq::GET_MAX_MEM_SLOTS | FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => {
                VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            }
            _ => return Ok(()),
        };
        if self.protocol_features.contains(feature) {
            Ok(())
        } else {
            Err(SessionError::NotNegotiated { request: kind, feature })
        }
    }

    fn set_features(&mut self, features: u64) -> Result<(), SessionError> {
        let extra = features & !self.offered();
        if extra != 0 {
            return Err(SessionError::Features {
                what: "virtio features",
                extra,
            });
        }
        let changed = self.features.map_or(u64::MAX, |present| present ^ features);
        if changed & !F_LOG_ALL != 0 && self.any_running() {
            return Err(SessionError::FeaturesInUse);
        }
        self.features = Some(features);
        self.set_logging(changed)?;
        self.start_all()
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), SessionError> {
        let extra = features & !self.offered_protocol().bits();
        if extra != 0 {
            return Err(SessionError::Features {
                what: "protocol features",
                extra,
            });
        }
        self.protocol_features = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn present_memory(&self) -> Arc<GuestMemory> {
        self.memory.clone().unwrap_or_default()
    }

    /// Go on with another memory table. Queues that run are stopped, so that nothing of the old one is in use; they are
    /// to be started again where they were.
    fn replace_memory(&mut self, memory: GuestMemory) -> Result<(), SessionError> {
        self.check_log(&memory)?;
        self.stop_all()?;
        self.memory = (memory.region_count() > 0).then(|| Arc::new(memory));
        Ok(())
    }

    /// Start the queues whose rings are in memory. One region at a time, a table changes by removing first and adding
    /// then, so that a ring may be in no region for a moment.
    fn start_mapped(&mut self) -> Result<(), SessionError> {
        for index in self.indices() {
            match self.start(index) {
                Err(SessionError::RingAddress { user_addr, .. }) => {
                    tracing::warn!(
                        queue = index,
                        user_addr,
                        "the queue rests until its ring is in memory again"
                    );
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Which kind of ring the driver has.
    fn format(&self) -> RingFormat {
        RingFormat::of(self.features.unwrap_or(0))
    }

    fn any_running(&self) -> bool {
        self.queues.iter().any(|queue| queue.running)
    }

    fn indices(&self) -> Range<u16> {
        0..self.queue_count()
    }

    /// As many as the device said when the session began.
    fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// A queue's number, if the device has it.
    fn index(&self, request: FrontendReq, index: u32) -> Result<u16, SessionError> {
        let queue_count = self.queue_count();
        match u16::try_from(index) {
            Ok(index) if index < queue_count => Ok(index),
            _ if !on(Check::QueueIndex) => Ok(0),
            _ => Err(SessionError::QueueIndex {
                request,
                index,
                queue_count,
            }),
        }
    }

    fn queue(&mut self, index: u16) -> &mut Queue {
        &mut self.queues[usize::from(index)]
    }

    /// The same for a request that may not come while the queue runs.
    fn resting(&mut self, request: FrontendReq, index: u32) -> Result<u16, SessionError> {
        let index = self.index(request, index)?;
        if self.queue(index).running && on(Check::QueueAtRest) {
            return Err(SessionError::QueueRuns { request, index });
        }
        Ok(index)
    }

    fn set_size(&mut self, kind: FrontendReq, index: u32, size: u32) -> Result<(), SessionError> {
        let max = self.device.queue_size_max();
        let index = self.resting(kind, index)?;
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= max || !on(Check::QueueSize) => {
                self.queue(index).size = Some(size);
            }
            _ => return Err(SessionError::QueueSize { index, size, max }),
        }
        self.start(index)
    }

    fn set_base(&mut self, kind: FrontendReq, index: u32, base: u32) -> Result<(), SessionError> {
        let index = self.resting(kind, index)?;
        let wrong = SessionError::Value {
            request: kind,
            field: "base",
            value: base.into(),
        };
        // That of a packed ring has two positions (vhost-user, "Vring descriptor indices for packed virtqueues").
        if self.format() == RingFormat::Split && u16::try_from(base).is_err() {
            return Err(wrong);
        }
        self.queue(index).base = base;
        if self.queue(index).told.is_some_and(|told| told != base) {
            self.forget_inflight(index)?;
        }
        self.start(index)
    }

    fn get_base(&mut self, kind: FrontendReq, index: u32) -> Result<Reply, SessionError> {
        let index = self.index(kind, index)?;
        self.stop(index)?;
        self.queue(index).stopped();
        let state = [u32::from(index), self.queue(index).base];
        Ok(Reply::Payload(state.into_iter().flat_map(u32::to_ne_bytes).collect()))
    }

    fn set_kick(&mut self, index: u16, kick: KickFd) -> Result<(), SessionError> {
        if self.memory.is_none() && on(Check::MemoryBeforeStart) {
            return Err(SessionError::NoMemory { index });
        }
        // A queue that runs goes on with the new descriptor.
        self.stop(index)?;
        self.queue(index).kick = Some(kick);
        self.start(index)
    }

    fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), SessionError> {
        self.queue(index).call = call.clone();
        if self.queue(index).running {
            self.device.set_call(index, call)?;
        }
        Ok(())
    }

    fn set_enable(&mut self, kind: FrontendReq, index: u32, enable: u32) -> Result<(), SessionError> {
        let index = self.index(kind, index)?;
        let enable = match enable {
            0 => false,
            1 => true,
            other => {
                return Err(SessionError::Value {
                    request: kind,
                    field: "enable",
                    value: other.into(),
                });
            }
        };
        // QEMU enables a port's queues before it sets features and shares memory: it takes effect later.
        self.queue(index).enabled = Some(enable);
        if enable { self.start(index) } else { self.stop(index) }
    }

    fn get_config(&self, offset: u32, len: u32, flags: u32) -> Reply {
        let header = |len: u32| [offset, len, flags].into_iter().flat_map(u32::to_ne_bytes);
        // An answer of no bytes is how a failure is told (vhost-user, GET_CONFIG).
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= CONFIG_LEN_MAX && flags & !CONFIG_FLAGS == 0);
        let Some(end) = end else {
            return Reply::Payload(header(0).collect());
        };
        // What a driver does not find it must not see: QEMU asks for the fields of all features it knows.
        let mut config = self.device.config();
        config.resize(config.len().max(end as usize), 0);
        let fields = config.get(offset as usize..end as usize).unwrap_or_default();
        Reply::Payload(header(len).chain(fields.iter().copied()).collect())
    }

    fn set_config(&mut self, offset: u32, flags: u32, data: &[u8]) -> Reply {
        let inside = data.len() <= CONFIG_LEN_MAX as usize && offset <= CONFIG_LEN_MAX;
        if !inside || flags & !CONFIG_FLAGS != 0 {
            return Reply::Refused;
        }
        match self.device.write_config(offset, data) {
            Ok(()) => Reply::Ack,
            Err(error) => {
                tracing::debug!(%error, "a write to config space was refused");
                Reply::Refused
            }
        }
    }

    /// Start a queue if all it needs is there.
    fn start(&mut self, index: u16) -> Result<(), SessionError> {
        let Some(features) = self.features else { return Ok(()) };
        let memory = match &self.memory {
            Some(memory) => memory.clone(),
            None if on(Check::MemoryBeforeStart) => return Ok(()),
            None => Arc::default(),
        };
        let start_enabled = features & F_PROTOCOL_FEATURES == 0;
        let queue = &mut self.queues[usize::from(index)];
        let Some((size, addr, kick)) = queue.ready(start_enabled) else {
            return Ok(());
        };
        let config = ring_config(index, (size, addr), queue.base, features, &memory)?;
        let (kick, call) = (Some(kick.clone()), queue.call.clone());
        let mut ring = match &self.inflight {
            None => Ring::new(config, memory),
            Some(region) if self.device.finishes_out_of_order() => {
                Ring::with_inflight(config, memory, region.queue(index)?)
            }
            Some(region) => Ring::with_position(config, memory, region.queue(index)?),
        }
        .map_err(|source| SessionError::Ring { index, source })?;
        if ring.to_replay() > 0 {
            tracing::info!(
                queue = index,
                count = ring.to_replay(),
                "requests that were in flight are done again"
            );
        }
        let log = self.ring_log(index)?;
        if log.is_some() {
            ring.set_log(log.clone());
        }
        self.unlogged |= self.logging() && log.is_none();
        let resources = QueueResources {
            ring,
            kick,
            call,
            features: features & !F_LOG_ALL,
            log,
        };
        self.device.start_queue(index, resources)?;
        (self.queue(index).running, self.queue(index).told) = (true, None);
        tracing::debug!(queue = index, size, "queue started");
        Ok(())
    }

    /// Stop a queue, if it runs, and remember where it goes on.
    fn stop(&mut self, index: u16) -> Result<(), SessionError> {
        if !self.queue(index).running {
            return Ok(());
        }
        let base = self.device.stop_queue(index)?;
        let queue = self.queue(index);
        queue.running = false;
        queue.base = base.unwrap_or(queue.base);
        tracing::debug!(queue = index, base = queue.base, "queue stopped");
        Ok(())
    }

    fn start_all(&mut self) -> Result<(), SessionError> {
        self.indices().try_for_each(|index| self.start(index))
    }

    fn stop_all(&mut self) -> Result<(), SessionError> {
        self.indices().try_for_each(|index| self.stop(index))
    }

    /// RESET_DEVICE: rings, what was in flight and features are forgotten; memory, owner and protocol features stay.
    fn reset_device(&mut self) -> Result<(), SessionError> {
        self.stop_all()?;
        self.indices().try_for_each(|index| self.forget_inflight(index))?;
        self.queues.iter_mut().for_each(|queue| *queue = Queue::default());
        (self.features, self.log, self.inflight, self.unlogged) = (None, None, None, false);
        self.device.reset()?;
        Ok(())
    }

    fn set_mtu(&mut self, kind: FrontendReq, mtu: u64) -> Result<Reply, SessionError> {
        let wrong = SessionError::Value {
            request: kind,
            field: "MTU",
            value: mtu,
        };
        match self.device.set_mtu(u16::try_from(mtu).map_err(|_| wrong)?) {
            Ok(()) => Ok(Reply::Ack),
            Err(error) => {
                tracing::warn!(%error, mtu, "an MTU was refused");
                Ok(Reply::Refused)
            }
        }
    }

    /// RESET_OWNER: all rings are disabled and forgotten.
    fn reset(&mut self) -> Result<(), SessionError> {
        self.stop_all()?;
        self.queues.iter_mut().for_each(|queue| *queue = Queue::default());
        self.owned = false;
        Ok(())
    }
}

mod inflight;
mod logging;
#[cfg(test)]
mod tests;
