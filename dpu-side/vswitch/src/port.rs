//! A port: its queues, whether anything may pass, and its counters.

use outboard_controls::{Check, on};
use outboard_ring::{CallFd, RingLog, Signals};
use outboard_vhost_user::{DeviceError, QueueResources};
use vhost_net_dpu::{
    MTU_DEFAULT, QUEUE_COUNT, Queue, QueueKind,
    deliver::{Scratch, forward},
    error::{QueueFailure, RxDrop, StartError},
    frame_len_max,
    header::NetHeader,
    rx::{Payload, RxQueue},
    tx::TxQueue,
};

use crate::{
    counters::{QueueCounters, Tally},
    firewall::{allowance::Allowance, datagrams::Datagrams, reject},
    flow::FlowHash,
    queues::{Queues, Running},
    reason::DropReason,
};

/// Answers to rejected packets that a guest gets in a second; what is rejected beyond them is dropped without a word.
const REPLIES_PER_SECOND: u64 = 1_000;
/// Of those, how many may come at once after a while without.
const REPLY_BURST: u64 = 32;

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
    pub(crate) tx: Queues<TxQueue>,
    rx: Queues<RxQueue>,
    /// Its queues are of a port of that name that is gone. They wait to be stopped, and nothing passes them.
    stale: bool,
    /// What the VMM told, if it did.
    mtu: Option<u16>,
    /// The place of the transmit queue whose turn it is.
    pub(crate) tx_turn: usize,
    /// Frames it was served beyond its share, which later bursts are short of.
    pub(crate) debt: usize,
    /// The burst at hand gave it something.
    pub(crate) touched: bool,
    /// What its guest sends in fragments.
    pub(crate) datagrams: Datagrams,
    /// Answers to rejected packets that its guest may get.
    replies: Allowance<REPLIES_PER_SECOND, REPLY_BURST>,
}

impl Port {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            gate: Gate::Shut,
            tally: Tally::default(),
            tx: Queues::default(),
            rx: Queues::default(),
            stale: false,
            mtu: None,
            tx_turn: 0,
            debt: 0,
            touched: false,
            datagrams: Datagrams::default(),
            replies: Allowance::default(),
        }
    }

    /// The port is no longer declared.
    pub(crate) fn retire(&mut self) {
        self.gate = Gate::Gone;
        self.stale = true;
    }

    /// A port of this name is declared. If the former one was gone, it is a new one: it inherits neither counters nor
    /// MTU, and the former one's queues stay dead.
    pub(crate) fn declare(&mut self) {
        if self.gate == Gate::Gone {
            self.gate = Gate::Shut;
            self.tally = Tally::default();
            self.mtu = None;
        }
    }

    pub(crate) fn has_queues(&self) -> bool {
        !(self.tx.is_empty() && self.rx.is_empty())
    }

    /// May frames pass, and are the queues this port's own?
    pub(crate) fn serves(&self) -> bool {
        self.gate == Gate::Open && !(self.stale && on(Check::StaleQueue))
    }

    /// May a session start queues?
    pub(crate) fn takes_queues(&self) -> bool {
        self.gate != Gate::Gone && !self.stale
    }

    pub(crate) fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        let refused = |error: StartError| DeviceError::Other(Box::new(error));
        let kind = kind(index)?;
        if self.queue(kind).is_some() {
            return Err(DeviceError::QueueRuns { index });
        }
        match kind {
            QueueKind::Rx { pair } => self.rx.start(pair, RxQueue::new(resources).map_err(refused)?),
            QueueKind::Tx { pair } => self.tx.start(pair, TxQueue::new(resources).map_err(refused)?),
        }
        let mtu = self.mtu;
        if let Some(queue) = self.queue(kind) {
            queue.set_mtu(mtu);
        }
        Ok(())
    }

    pub(crate) fn stop_queue(&mut self, index: u16) -> Option<u16> {
        let next_avail = match QueueKind::of(index)? {
            QueueKind::Rx { pair } => self.rx.stop(pair)?.queue().next_avail(),
            QueueKind::Tx { pair } => self.tx.stop(pair)?.queue().next_avail(),
        };
        self.stale &= self.has_queues();
        Some(next_avail)
    }

    pub(crate) fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.running(index)?.set_call(call);
        Ok(())
    }

    pub(crate) fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        self.running(index)?.set_log(log);
        Ok(())
    }

    pub(crate) fn set_mtu(&mut self, mtu: Option<u16>) {
        self.mtu = mtu;
        self.tx.iter_mut().for_each(|tx| tx.queue.queue_mut().set_mtu(mtu));
        self.rx.iter_mut().for_each(|rx| rx.queue.queue_mut().set_mtu(mtu));
    }

    fn running(&mut self, index: u16) -> Result<&mut Queue, DeviceError> {
        self.queue(kind(index)?).ok_or(DeviceError::QueueStopped { index })
    }

    fn queue(&mut self, kind: QueueKind) -> Option<&mut Queue> {
        match kind {
            QueueKind::Rx { pair } => self.rx.of_pair(pair).map(|rx| rx.queue.queue_mut()),
            QueueKind::Tx { pair } => self.tx.of_pair(pair).map(|tx| tx.queue.queue_mut()),
        }
    }

    /// Gives frames of the burst that `source` holds to this port, in the queues of their flows. `gone` hears of each
    /// that could not be read any more: the source's memory is gone.
    pub(crate) fn receive(
        &mut self,
        source: &TxQueue,
        slots: impl ExactSizeIterator<Item = usize>,
        flows: &FlowHash,
        scratch: &mut Scratch,
        mut gone: impl FnMut(),
    ) {
        let shut = match self.gate {
            Gate::Open if self.serves() => None,
            Gate::Open => Some(DropReason::RxNotRunning),
            Gate::Shut | Gate::Gone => Some(DropReason::PortShut),
        };
        let (rx, tally) = (&mut self.rx, &mut self.tally);
        let count = rx.len();
        if let Some(reason) = shut.or((count == 0).then_some(DropReason::RxNotRunning)) {
            return slots.for_each(|_| tally.drop(reason));
        }
        for slot in slots {
            let place = match (count, source.records().get(slot)) {
                (2.., Some(record)) => flows.queue(record, source.head_of(slot), count),
                _ => 0,
            };
            let Some(Running {
                queue, frames, bytes, ..
            }) = rx.at(place)
            else {
                continue;
            };
            forward(source, slot, queue, scratch, |outcome| match outcome {
                Ok(len) => {
                    tally.received(1, len as u64);
                    *frames = frames.wrapping_add(1);
                    *bytes = bytes.wrapping_add(len as u64);
                }
                Err(RxDrop::Full) => tally.drop(DropReason::RxFull),
                Err(RxDrop::BufferTooSmall) => tally.drop(DropReason::RxBufferTooSmall),
                Err(RxDrop::OverMtu) => tally.drop(DropReason::RxOverMtu),
                Err(RxDrop::Broken) => tally.drop(DropReason::RxBroken),
                Err(RxDrop::SourceGone) => gone(),
            });
        }
    }

    /// Answers its guest, one of whose packets was rejected, if an answer is due: as a frame from nobody's queue.
    pub(crate) fn reply(&mut self, place: usize, slot: usize, flows: &FlowHash, now: u64) {
        let Some(tx) = self.tx.at(place) else { return };
        let Some(record) = tx.queue.records().get(slot) else {
            return;
        };
        let head = tx.queue.head_of(slot);
        let Some(reply) = reject::reply(record, head).filter(|_| self.replies.take(now)) else {
            return;
        };
        let place = match self.rx.len() {
            0 | 1 => 0,
            count => flows.queue(record, head, count),
        };
        let Some(rx) = self.rx.at(place) else { return };
        let frame = reply.frame();
        // Without buffers the answer is lost, as any frame would be; it was nobody's.
        if rx
            .queue
            .give(NetHeader::default(), frame, Payload::Private(&[]))
            .is_ok()
        {
            rx.count(1, frame.len() as u64);
            self.tally.received(1, frame.len() as u64);
        }
    }

    /// The MTU that was told and that the driver took.
    pub(crate) fn mtu_in_force(&self) -> Option<u16> {
        let took = |rx: &Running<RxQueue>| rx.queue.accepted().mtu;
        self.mtu.filter(|_| self.rx.iter().next().is_none_or(took))
    }

    /// Why a frame of this length would not get here now, as far as that can be told without giving it.
    pub(crate) fn would_refuse(&self, frame_len: usize) -> Option<DropReason> {
        if self.gate != Gate::Open {
            return Some(DropReason::PortShut);
        }
        if self.rx.is_empty() || !self.serves() {
            return Some(DropReason::RxNotRunning);
        }
        if self.rx.iter().all(|rx| rx.queue.queue().failed().is_some()) {
            return Some(DropReason::RxBroken);
        }
        let len_max = frame_len_max(self.mtu_in_force().unwrap_or(MTU_DEFAULT));
        (frame_len > len_max).then_some(DropReason::RxOverMtu)
    }

    /// Shows the guest what was staged; tells each failure once.
    pub(crate) fn flush(&mut self, signals: &mut dyn Signals) {
        for tx in self.tx.iter_mut() {
            flush(tx.queue.queue_mut(), signals, (&self.name, "transmit", tx.pair));
        }
        for rx in self.rx.iter_mut() {
            flush(rx.queue.queue_mut(), signals, (&self.name, "receive", rx.pair));
        }
    }

    pub(crate) fn has_to_flush(&self) -> bool {
        self.tx.iter().any(|tx| tx.queue.queue().has_to_flush())
            || self.rx.iter().any(|rx| rx.queue.queue().has_to_flush())
    }

    /// Asks an open port's guest for kicks; true if frames are waiting. A shut port's frames wait for better times.
    pub(crate) fn before_sleep(&mut self) -> bool {
        if !self.serves() {
            return false;
        }
        // All of them, whatever the first ones say.
        self.tx
            .iter_mut()
            .fold(false, |waiting, tx| waiting | tx.queue.before_sleep())
    }

    /// Asks for no more kicks. For receive queues they are never asked for: buffers are looked for when there is a frame
    /// for them.
    pub(crate) fn after_sleep(&mut self) {
        self.tx.iter_mut().for_each(|tx| tx.queue.after_sleep());
    }

    /// What its running queues did.
    pub(crate) fn queue_counters(&self) -> Vec<QueueCounters> {
        let rx = self
            .rx
            .iter()
            .map(|rx| counters(QueueKind::Rx { pair: rx.pair }, rx, rx.queue.queue()));
        let tx = self
            .tx
            .iter()
            .map(|tx| counters(QueueKind::Tx { pair: tx.pair }, tx, tx.queue.queue()));
        rx.chain(tx).collect()
    }
}

fn kind(index: u16) -> Result<QueueKind, DeviceError> {
    QueueKind::of(index).ok_or(DeviceError::NoSuchQueue {
        index,
        queue_count: QUEUE_COUNT,
    })
}

fn counters<Q>(kind: QueueKind, running: &Running<Q>, queue: &Queue) -> QueueCounters {
    QueueCounters {
        kind,
        frames: running.frames,
        bytes: running.bytes,
        failed: queue.failed().map(ToString::to_string),
    }
}

fn flush(queue: &mut Queue, signals: &mut dyn Signals, (port, kind, pair): (&str, &str, u16)) {
    queue.flush(signals);
    if let Some(QueueFailure(error)) = queue.take_failure() {
        tracing::warn!(port, queue = kind, pair, %error, "a network queue failed and is dead until the guest resets it");
    }
}
