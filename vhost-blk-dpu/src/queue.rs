//! The device's one queue, while it runs.

use outboard_ring::{CallFd, KickFd, RingError, SplitRing};
use outboard_vhost_user::QueueResources;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use crate::features::is_write_through;

/// Called when a queue has stopped, with the index at which its available ring goes on; `None` if it did not run.
pub type Stopped = Box<dyn FnOnce(Option<u16>) + Send>;

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
    pub(crate) ring: SplitRing,
    pub(crate) kick: KickFd,
    pub(crate) call: Option<CallFd>,
    pub(crate) write_through: bool,
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
        let write_through = is_write_through(features);
        Ok(Self {
            ring,
            kick,
            call,
            write_through,
            in_flight: 0,
            stopping: Vec::new(),
        })
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
