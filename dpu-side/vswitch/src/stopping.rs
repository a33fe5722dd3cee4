//! A transmit queue that was stopped while other workers had frames of it.

use vhost_net_dpu::tx::TxQueue;

use crate::queues::Running;

/// Hears of a queue that has stopped: where its ring goes on; none if it did not run.
pub(crate) type Done = Box<dyn FnOnce(Option<u32>) + Send>;

/// It takes no more frames, and ends when all of them are back: until then others read the guest's memory.
pub(crate) struct Stopping {
    pub(crate) tx: Running<TxQueue>,
    pub(crate) done: Done,
}

impl std::fmt::Debug for Stopping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopping").field("tx", &self.tx).finish_non_exhaustive()
    }
}

impl Stopping {
    /// All are back.
    pub(crate) fn end(self) {
        (self.done)(Some(self.tx.queue.queue().base()));
    }
}
