//! What the transmit and the receive queue have in common: a ring, its calls, and its failure.

use outboard_ring::{CallFd, Chain, GuestBytes, Ring, RingError, RingLog, Signals};
use outboard_vhost_user::QueueResources;

use crate::{
    MTU_DEFAULT,
    error::{QueueFailure, StartError},
    features::Accepted,
    frame_len_max,
};

/// Queue pairs a device may have.
pub const QUEUE_PAIRS_MAX: u16 = 16;
/// Queues served: of each pair, one to receive and one to transmit.
pub const QUEUE_COUNT: u16 = 2 * QUEUE_PAIRS_MAX;
/// Largest queue that is offered.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// What a queue is for. Queue 2 N receives and queue 2 N + 1 transmits, N from 0 (virtio 1.3 §5.1.2). There is no control
/// queue among them: that is the VMM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueKind {
    /// Receives.
    Rx {
        /// The pair it is of.
        pair: u16,
    },
    /// Transmits.
    Tx {
        /// The pair it is of.
        pair: u16,
    },
}

impl QueueKind {
    /// Of the queue with this index; `None` if the device has no such queue.
    pub const fn of(index: u16) -> Option<Self> {
        let pair = index / 2;
        match index {
            QUEUE_COUNT.. => None,
            _ if index.is_multiple_of(2) => Some(Self::Rx { pair }),
            _ => Some(Self::Tx { pair }),
        }
    }

    /// The queue's index.
    pub const fn index(self) -> u16 {
        match self {
            Self::Rx { pair } => 2 * pair,
            Self::Tx { pair } => 2 * pair + 1,
        }
    }
}

/// A running virtqueue of a network device.
#[derive(Debug)]
pub struct Queue {
    pub(crate) ring: Ring,
    pub(crate) accepted: Accepted,
    /// Largest frame that is not to be segmented, by the MTU, in bytes without the virtio header.
    pub(crate) frame_len_max: usize,
    /// As the ring logs, for what is written and not used.
    log: Option<RingLog>,
    call: Option<CallFd>,
    /// Used entries were staged since the last flush.
    staged: bool,
    /// The driver is to be called at the next flush.
    call_due: bool,
    /// A failure that was not told yet.
    failure: Option<QueueFailure>,
}

impl Queue {
    pub(crate) fn new(resources: QueueResources) -> Result<Self, StartError> {
        let accepted = Accepted::from_bits(resources.features).ok_or(StartError::Legacy)?;
        let mut ring = resources.ring;
        ring.resume_at_used();
        ring.disable_kicks();
        // Entries of an earlier session may stand unsignalled, so the driver is called once in any case.
        // Its kick is watched by whoever runs the device, by a descriptor of its own.
        let call = resources.call;
        Ok(Self {
            ring,
            accepted,
            log: resources.log,
            frame_len_max: frame_len_max(MTU_DEFAULT),
            call,
            staged: false,
            call_due: true,
            failure: None,
        })
    }

    /// The VMM told an MTU, or none. One that the driver does not know of is not held against it.
    pub fn set_mtu(&mut self, mtu: Option<u16>) {
        let told = mtu.filter(|_| self.accepted.mtu);
        self.frame_len_max = frame_len_max(told.unwrap_or(MTU_DEFAULT));
    }

    #[inline]
    pub(crate) fn pop(&mut self, chain: &mut Chain) -> bool {
        self.ring.pop(chain).unwrap_or_else(|error| {
            self.failure = Some(error.into());
            false
        })
    }

    /// Takes as many chains as there are and `chains` has room for: how many.
    pub(crate) fn pop_burst(&mut self, chains: &mut [Chain]) -> usize {
        let (count, failure) = self.ring.pop_burst(chains);
        if let Some(error) = failure {
            self.failure = Some(error.into());
        }
        count
    }

    /// Gives back chains that were only read.
    pub(crate) fn push_burst(&mut self, chains: &[Chain]) {
        self.staged |= !chains.is_empty();
        if let Err(error) = self.ring.push_used_burst(chains) {
            self.fail(error);
        }
    }

    /// Fills the next chain, as [`Ring::fill_next`] does.
    #[inline]
    pub(crate) fn fill_next(&mut self, len: usize, write: impl FnOnce(GuestBytes<'_>) -> bool) -> bool {
        let filled = self.ring.fill_next(len, write);
        self.staged |= filled;
        filled
    }

    #[inline]
    pub(crate) fn push(&mut self, chain: &Chain, len: u32) {
        self.staged = true;
        if let Err(error) = self.ring.push_used(chain, len) {
            self.fail(error);
        }
    }

    #[cold]
    pub(crate) fn fail(&mut self, error: RingError) {
        if self.ring.broken().is_none() {
            self.ring.fail(error);
            self.failure = self.ring.broken().cloned().map(QueueFailure);
        }
    }

    pub(crate) fn broken(&self) -> bool {
        self.ring.broken().is_some()
    }

    /// Shows the driver what was staged, and calls it if it wants that.
    pub fn flush(&mut self, signals: &mut dyn Signals) {
        if self.staged {
            self.staged = false;
            match self.ring.publish() {
                Ok(wanted) => self.call_due |= wanted,
                Err(error) => self.fail(error),
            }
        }
        if self.call_due {
            self.call_due = false;
            if let Some(call) = &self.call {
                signals.signal(call);
            }
        }
    }

    /// Would [`Queue::flush`] do anything?
    pub fn has_to_flush(&self) -> bool {
        self.staged || self.call_due
    }

    /// Calls the driver by another descriptor from now on, and once at the next flush.
    pub fn set_call(&mut self, call: Option<CallFd>) {
        self.call = call;
        self.call_due = true;
    }

    /// Logs writes in this way from now on, or not at all.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        self.log.clone_from(&log);
        self.ring.set_log(log);
    }

    /// Logs that chains were written to that are given back to be used another time.
    #[cold]
    pub(crate) fn log_writes<'a>(&self, chains: impl Iterator<Item = &'a Chain>) {
        let Some(RingLog { log, .. }) = &self.log else { return };
        for segment in chains.flat_map(Chain::writable) {
            log.mark(segment.addr, segment.len.into());
        }
    }

    /// Asks for kicks; true if chains are waiting already.
    pub(crate) fn before_sleep(&mut self) -> bool {
        self.ring.enable_kicks().unwrap_or_else(|error| {
            self.failure = Some(error.into());
            false
        })
    }

    pub(crate) fn after_sleep(&mut self) {
        self.ring.disable_kicks();
    }

    /// Where another session goes on, as vhost-user tells it.
    pub fn base(&self) -> u32 {
        self.ring.base()
    }

    /// Why it is dead until the guest resets it, if it is.
    pub fn failed(&self) -> Option<&RingError> {
        self.ring.broken()
    }

    /// The failure that happened since the last call, if one did.
    pub fn take_failure(&mut self) -> Option<QueueFailure> {
        self.failure.take()
    }
}
