//! A queue, while it runs.

use outboard_controls::{Check, on};
use outboard_ring::{CallFd, KickFd, Ring, RingError};
use outboard_vhost_user::QueueResources;
use virtio_bindings::{virtio_blk::VIRTIO_BLK_F_SEG_MAX, virtio_config::VIRTIO_F_VERSION_1};

use crate::config_space::SEG_MAX;

/// Bytes that a queue may begin before the others have their turn.
const TURN_BYTES: u64 = 256 << 10;
/// What a request counts at least, so that small ones take turns too.
pub(crate) const REQUEST_COST_MIN: u64 = 4096;
/// A queue that began a lot at once waits for no more than this.
const DEBT_BYTES_MAX: i64 = 4 << 20;

/// Called when a queue has stopped, with where its ring goes on; `None` if it did not run.
pub type Stopped = Box<dyn FnOnce(Option<u32>) + Send>;

/// Why a queue is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The driver did not accept VERSION_1: its requests would be framed differently.
    #[error("guest's block driver did not accept VIRTIO_F_VERSION_1: use a driver for virtio 1.0 or later")]
    Legacy,
    /// There is no way for the driver to kick, and a worker that had to poll would never sleep.
    #[error("host gave the queue no kick descriptor, and it is not polled: pass an eventfd")]
    NoKick,
}

/// A queue that was started.
pub(crate) struct Queue {
    pub(crate) ring: Ring,
    pub(crate) kick: KickFd,
    pub(crate) call: Option<CallFd>,
    /// It is to be called whatever the driver wants: entries may stand in the used ring that nobody told it of.
    pub(crate) call_due: bool,
    /// What was negotiated.
    pub(crate) features: u64,
    /// Bytes that it may begin in this turn; below 0, it had more than its share.
    credit_bytes: i64,
    /// Requests taken from it and not finished.
    pub(crate) in_flight: usize,
    /// Who waits for it to stop. Nothing is taken from it any more if somebody does.
    pub(crate) stopping: Vec<Stopped>,
}

impl Queue {
    pub(crate) fn new(resources: QueueResources) -> Result<Self, StartError> {
        let QueueResources {
            mut ring,
            kick,
            call,
            features,
            log: _,
        } = resources;
        if features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(StartError::Legacy);
        }
        let kick = kick.ok_or(StartError::NoKick)?;
        // A worker polls until it sleeps.
        ring.disable_kicks();
        Ok(Self {
            ring,
            kick,
            call,
            call_due: true,
            features,
            credit_bytes: 0,
            in_flight: 0,
            stopping: Vec::new(),
        })
    }

    /// May a driver give requests with more segments than the queue has descriptors, though it keeps to what it was told?
    /// It learns SEG_MAX before the queue has a size, and some make indirect tables that long (virtio 1.3 §2.7.5.3.1
    /// forbids it); the ring refuses them.
    pub(crate) fn is_small(&self) -> bool {
        self.features & 1 << VIRTIO_BLK_F_SEG_MAX != 0 && u32::from(self.ring.size()) < SEG_MAX + 2
    }

    /// Are requests taken from it? Of one that is to stop, only those that were in flight already when it started: its
    /// index alone does not tell of them.
    pub(crate) fn is_open(&self) -> bool {
        (self.stopping.is_empty() || self.ring.to_replay() > 0) && self.ring.broken().is_none()
    }

    /// Is it to stop, and nothing left to be done for it?
    pub(crate) fn is_over(&self, shut: bool) -> bool {
        let drained = self.in_flight == 0 && (shut || !self.is_open());
        !self.stopping.is_empty() && (drained || !on(Check::StopDrains))
    }

    /// Its turn comes.
    pub(crate) fn begin_turn(&mut self) {
        let turn = TURN_BYTES.cast_signed();
        self.credit_bytes = (self.credit_bytes + turn).min(turn);
    }

    /// May it begin a request in this turn?
    pub(crate) fn has_credit(&self) -> bool {
        self.credit_bytes > 0
    }

    /// It begins something that costs so much.
    pub(crate) fn charge(&mut self, cost_bytes: u64) {
        let cost = i64::try_from(cost_bytes).unwrap_or(i64::MAX);
        self.credit_bytes = self.credit_bytes.saturating_sub(cost).max(-DEBT_BYTES_MAX);
    }

    /// Break it, unless it is broken already. True if it was not.
    pub(crate) fn fail(&mut self, error: RingError) -> bool {
        let whole = self.ring.broken().is_none();
        if whole {
            self.ring.fail(error);
        }
        whole
    }
}
