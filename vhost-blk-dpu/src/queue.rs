//! The device's one queue, while it runs.

use outboard_ring::{CallFd, KickFd, RingError, SplitRing};
use outboard_vhost_user::QueueResources;

use crate::features::is_write_through;

/// Called when a queue has stopped, with the index at which its available ring goes on; `None` if it did not run.
pub type Stopped = Box<dyn FnOnce(Option<u16>) + Send>;

/// A queue that was started.
pub(crate) struct Queue {
    pub(crate) ring: SplitRing,
    pub(crate) kick: Option<KickFd>,
    pub(crate) call: Option<CallFd>,
    pub(crate) write_through: bool,
    /// Requests taken from it and not finished.
    pub(crate) in_flight: usize,
    /// Who waits for it to stop. Nothing is taken from it any more if somebody does.
    pub(crate) stopping: Vec<Stopped>,
}

impl Queue {
    pub(crate) fn new(resources: QueueResources) -> Self {
        let QueueResources {
            mut ring,
            kick,
            call,
            features,
        } = resources;
        // A worker polls until it sleeps.
        ring.disable_kicks();
        Self {
            ring,
            kick,
            call,
            write_through: is_write_through(features),
            in_flight: 0,
            stopping: Vec::new(),
        }
    }

    /// Are requests taken from it?
    pub(crate) fn is_open(&self) -> bool {
        self.stopping.is_empty() && self.ring.broken().is_none()
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
