//! The state of a volume's queues, for whoever asks why it does not serve.

use crate::unit::BlkUnit;

/// A queue that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// Its index in the device.
    pub index: u16,
    /// Why it is dead until the guest resets it, if it is.
    pub failed: Option<String>,
}

impl BlkUnit {
    /// The queues that run, by index.
    pub fn queue_states(&self) -> Vec<QueueState> {
        let running = (0..).zip(&self.queues).filter_map(|(index, queue)| {
            let queue = queue.as_ref()?;
            let failed = queue.ring.broken().map(ToString::to_string);
            Some(QueueState { index, failed })
        });
        running.collect()
    }
}
