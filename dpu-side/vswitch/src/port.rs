//! A port: its queues, whether anything may pass, and its counters.

use outboard_ring::{CallFd, RingLog, Signals};
use outboard_vhost_user::{DeviceError, QueueResources};
use vhost_net_dpu::{
    QUEUE_COUNT, Queue, RX_QUEUE, TX_QUEUE,
    deliver::{Scratch, deliver},
    error::{QueueFailure, RxDrop},
    rx::RxQueue,
    tx::{Frame, TxQueue},
};

use crate::{counters::Tally, reason::DropReason};

/// May anything pass?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Nothing in or out: not granted, or revoked.
    Shut,
    /// As policy says.
    Open,
    /// The port is no longer declared; it is kept, shut, until its queues were stopped.
    Gone,
}

/// A port of the switch.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) gate: Gate,
    pub(crate) tally: Tally,
    pub(crate) tx: Option<TxQueue>,
    rx: Option<RxQueue>,
}

impl Port {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            gate: Gate::Shut,
            tally: Tally::default(),
            tx: None,
            rx: None,
        }
    }

    pub(crate) fn has_queues(&self) -> bool {
        self.tx.is_some() || self.rx.is_some()
    }

    pub(crate) fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let refused = |error: vhost_net_dpu::error::StartError| DeviceError::Other(Box::new(error));
        match index {
            RX_QUEUE if self.rx.is_none() => self.rx = Some(RxQueue::new(resources).map_err(refused)?),
            TX_QUEUE if self.tx.is_none() => self.tx = Some(TxQueue::new(resources).map_err(refused)?),
            RX_QUEUE | TX_QUEUE => return Err(DeviceError::QueueRuns { index }),
            _ => {
                return Err(DeviceError::NoSuchQueue {
                    index,
                    queue_count: QUEUE_COUNT,
                });
            }
        }
        Ok(())
    }

    pub(crate) fn stop_queue(&mut self, index: u16) -> Option<u16> {
        match index {
            RX_QUEUE => self.rx.take().map(|rx| rx.queue().next_avail()),
            TX_QUEUE => self.tx.take().map(|tx| tx.queue().next_avail()),
            _ => None,
        }
    }

    pub(crate) fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.queue_mut(index)?.set_call(call);
        Ok(())
    }

    pub(crate) fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        self.queue_mut(index)?.set_log(log);
        Ok(())
    }

    fn queue_mut(&mut self, index: u16) -> Result<&mut Queue, DeviceError> {
        match (index, &mut self.rx, &mut self.tx) {
            (RX_QUEUE, Some(rx), _) => Ok(rx.queue_mut()),
            (TX_QUEUE, _, Some(tx)) => Ok(tx.queue_mut()),
            (RX_QUEUE | TX_QUEUE, ..) => Err(DeviceError::QueueStopped { index }),
            _ => Err(DeviceError::NoSuchQueue {
                index,
                queue_count: QUEUE_COUNT,
            }),
        }
    }

    /// Gives the frame that `source` holds to this port. False if the source's memory is gone.
    pub(crate) fn receive(&mut self, source: &TxQueue, frame: &Frame, scratch: &mut Scratch) -> bool {
        let tally = &mut self.tally;
        if self.gate != Gate::Open {
            tally.drop(DropReason::PortShut);
            return true;
        }
        let Some(rx) = &mut self.rx else {
            tally.drop(DropReason::RxNotRunning);
            return true;
        };
        let mut source_lives = true;
        deliver(source, frame, rx, scratch, |outcome| match outcome {
            Ok(len) => tally.traffic.received(len),
            Err(RxDrop::Full) => tally.drop(DropReason::RxFull),
            Err(RxDrop::BufferTooSmall) => tally.drop(DropReason::RxBufferTooSmall),
            Err(RxDrop::Broken) => tally.drop(DropReason::RxBroken),
            Err(RxDrop::SourceGone) => source_lives = false,
        });
        source_lives
    }

    /// Shows the guest what was staged; tells each failure once.
    pub(crate) fn flush(&mut self, signals: &mut dyn Signals) {
        let queues = [
            ("transmit", self.tx.as_mut().map(TxQueue::queue_mut)),
            ("receive", self.rx.as_mut().map(RxQueue::queue_mut)),
        ];
        for (kind, queue) in queues {
            let Some(queue) = queue else { continue };
            queue.flush(signals);
            tell(&self.name, kind, queue.take_failure());
        }
    }

    pub(crate) fn has_to_flush(&self) -> bool {
        self.tx.as_ref().is_some_and(|tx| tx.queue().has_to_flush())
            || self.rx.as_ref().is_some_and(|rx| rx.queue().has_to_flush())
    }

    /// Asks an open port's guest for kicks; true if frames are waiting. A shut port's frames wait for better times.
    pub(crate) fn before_sleep(&mut self) -> bool {
        match &mut self.tx {
            Some(tx) if self.gate == Gate::Open => tx.before_sleep(),
            _ => false,
        }
    }

    /// Takes kicks off, of shut and failed queues too: left there, they would keep the worker awake.
    pub(crate) fn after_sleep(&mut self) {
        if let Some(tx) = &mut self.tx {
            tx.after_sleep();
        }
        if let Some(rx) = &self.rx {
            rx.drain_kicks();
        }
    }
}

fn tell(port: &str, queue: &str, failure: Option<QueueFailure>) {
    if let Some(failure) = failure {
        tracing::warn!(port, queue, error = %failure, "a network queue failed and is dead until the guest resets it");
    }
}
