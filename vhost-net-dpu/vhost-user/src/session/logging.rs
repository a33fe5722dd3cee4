//! Dirty logging, for live migration (vhost-user, "Migration").

use std::{fs::File, sync::Arc};

use outboard_controls::{Check, on};
use outboard_ring::{DirtyLog, GuestMemory, LogError, RingFormat, RingLog};
use vhost::vhost_user::message::FrontendReq;

use super::{F_LOG_ALL, Reply, Session};
use crate::{error::SessionError, request::VringAddr};

/// Bytes of a used ring apart from its entries, and of each entry (virtio 1.3 §2.7.8).
const USED_FIXED_LEN: u64 = 6;
const USED_ENTRY_LEN: u64 = 8;

impl Session<'_> {
    /// Are writes to guest memory to be logged?
    pub(super) fn logging(&self) -> bool {
        self.features.is_some_and(|features| features & F_LOG_ALL != 0)
    }

    /// SET_LOG_BASE. Comes again when the guest's memory grows; nothing is marked in the former log after the reply,
    /// since the front-end has taken it away then.
    pub(super) fn set_log_base(&mut self, file: &File, offset: u64, len: u64) -> Result<Reply, SessionError> {
        let log = Arc::new(DirtyLog::map(file, offset, len)?);
        if let Some(memory) = &self.memory {
            check_covers(&log, memory.end())?;
        }
        self.log = Some(log.clone());
        if self.logging() {
            self.tell_queues()?;
        }
        if std::mem::take(&mut self.unlogged)
            && let Some(memory) = &self.memory
        {
            // Nobody knows what was written since logging was turned on.
            memory.mark_all(&log);
        }
        // QEMU takes any reply; the vhost crate wants the message back.
        let body = [len, offset].into_iter().flat_map(u64::to_ne_bytes);
        Ok(Reply::Payload(body.collect()))
    }

    /// The features have changed in these bits.
    pub(super) fn set_logging(&mut self, changed: u64) -> Result<(), SessionError> {
        if changed & F_LOG_ALL == 0 {
            return Ok(());
        }
        if !self.logging() {
            (self.log, self.unlogged) = (None, false);
        } else if let (Some(log), Some(memory)) = (&self.log, &self.memory) {
            check_covers(log, memory.end())?;
        } else {
            self.unlogged = self.any_running();
        }
        self.tell_queues()
    }

    /// May the memory be changed to this? A log must be enlarged before memory is added.
    pub(super) fn check_log(&self, memory: &GuestMemory) -> Result<(), SessionError> {
        match &self.log {
            Some(log) if self.logging() => check_covers(log, memory.end()),
            _ => Ok(()),
        }
    }

    /// How a queue logs.
    pub(super) fn ring_log(&self, index: u16) -> Result<Option<RingLog>, SessionError> {
        let (Some(log), Some(queue)) = (&self.log, self.queues.get(usize::from(index))) else {
            return Ok(None);
        };
        if !self.logging() {
            return Ok(None);
        }
        // A packed ring is logged where it lies, and so in memory that the log covers.
        if self.format() == RingFormat::Split
            && let (Some(start), Some(size)) = (queue.log_used, queue.size)
        {
            let len = USED_FIXED_LEN + USED_ENTRY_LEN * u64::from(size);
            check_covers(log, start.saturating_add(len))?;
        }
        Ok(Some(RingLog {
            log: log.clone(),
            used_addr: queue.log_used,
        }))
    }

    /// SET_VRING_ADDR. For a ring that runs it turns the logging of its used ring on and off, and that alone.
    pub(super) fn set_addr(
        &mut self,
        kind: FrontendReq,
        index: u32,
        addr: VringAddr,
        log_used: Option<u64>,
    ) -> Result<(), SessionError> {
        let known = self.index(kind, index)?;
        let queue = self.queue(known);
        if queue.running && queue.addr == Some(addr) {
            queue.log_used = log_used;
            return if self.logging() { self.tell(known) } else { Ok(()) };
        }
        let index = self.resting(kind, index)?;
        let queue = self.queue(index);
        (queue.addr, queue.log_used) = (Some(addr), log_used);
        self.start(index)
    }

    /// Let all queues that run log as is due now.
    fn tell_queues(&mut self) -> Result<(), SessionError> {
        self.indices().try_for_each(|index| self.tell(index))
    }

    fn tell(&mut self, index: u16) -> Result<(), SessionError> {
        if self.queue(index).running {
            let log = self.ring_log(index)?;
            self.device.set_log(index, log)?;
        }
        Ok(())
    }
}

fn check_covers(log: &DirtyLog, end: u64) -> Result<(), SessionError> {
    match log.check_covers(end) {
        Err(LogError::TooSmall { .. }) if !on(Check::LogCoversMemory) => Ok(()),
        result => Ok(result?),
    }
}
