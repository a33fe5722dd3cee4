//! A port: its queues, whether anything may pass, and its counters.

use std::sync::Arc;

use outboard_controls::{Check, on};
use outboard_ring::{CallFd, RingLog, Signals};
use outboard_vhost_user::{DeviceError, QueueResources};
use vhost_net_dpu::{
    MTU_DEFAULT, QUEUE_COUNT, Queue, QueueKind,
    deliver::{Scratch, forward},
    error::{QueueFailure, RxDrop, StartError},
    frame_len_max,
    header::NetHeader,
    parcel::Parcel,
    record::Record,
    rx::{Payload, RxQueue},
    tx::TxQueue,
};

use crate::{
    commons::PortCommons,
    counters::{QueueCounters, Tally},
    crossing::{CROSSINGS_PER_QUEUE, Crossing, PortRef},
    firewall::reject,
    flow::FlowHash,
    queues::{Queues, Running},
    reason::DropReason,
    stopping::{Done, Stopping},
};

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

/// A receive queue of a port that has some in other workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane {
    pub(crate) pair: u16,
    pub(crate) at: LaneAt,
}

/// Where a receive queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneAt {
    /// Here, at this place.
    Here(usize),
    /// In this worker.
    There(usize),
}

/// A port of the switch.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    /// No other port has this number, or had it; all workers know the port by it.
    pub(crate) number: u64,
    pub(crate) gate: Gate,
    pub(crate) tally: Tally,
    pub(crate) tx: Queues<TxQueue>,
    pub(crate) rx: Queues<RxQueue>,
    /// It is a subport: another port's device carries it.
    carried: bool,
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
    /// What it has in common with itself in other workers.
    pub(crate) commons: Arc<PortCommons>,
    /// Its receive queues in other workers, by pair.
    elsewhere: Vec<(u16, usize)>,
    /// All of its receive queues, by pair, if some are in other workers; else nothing.
    lanes: Vec<Lane>,
    /// Transmit queues that were stopped while other workers had frames of theirs.
    stopping: Vec<Stopping>,
    /// In which breath its frames from other workers were last delivered, and what those cost that breath, in frames.
    arrived: (u64, usize),
}

impl Port {
    pub(crate) fn new(name: String, number: u64, commons: Arc<PortCommons>) -> Self {
        Self {
            name,
            number,
            gate: Gate::Shut,
            tally: Tally::default(),
            tx: Queues::default(),
            rx: Queues::default(),
            carried: false,
            stale: false,
            mtu: None,
            tx_turn: 0,
            debt: 0,
            touched: false,
            commons,
            elsewhere: Vec::new(),
            lanes: Vec::new(),
            stopping: Vec::new(),
            arrived: (0, 0),
        }
    }

    /// As others know it that is at this index.
    pub(crate) fn reference(&self, index: usize) -> PortRef {
        PortRef {
            index,
            number: self.number,
        }
    }

    /// The port is no longer declared.
    pub(crate) fn retire(&mut self) {
        self.gate = Gate::Gone;
        self.stale = true;
    }

    /// A port of this name is declared. If the former one was gone, it is a new one: it inherits neither counters nor
    /// MTU, and the former one's queues stay dead.
    pub(crate) fn declare(&mut self, number: u64, commons: Arc<PortCommons>) {
        if self.gate == Gate::Gone {
            self.gate = Gate::Shut;
            self.tally = Tally::default();
            self.mtu = None;
            (self.number, self.commons) = (number, commons);
            self.set_elsewhere(Vec::new());
        }
    }

    /// Whether another port's device carries it. Queues that it has had till then are nobody's.
    pub(crate) fn set_carried(&mut self, carried: bool) {
        self.stale |= carried && self.has_queues();
        self.carried = carried;
    }

    pub(crate) fn has_queues(&self) -> bool {
        !(self.tx.is_empty() && self.rx.is_empty() && self.stopping.is_empty())
    }

    /// May frames pass, and are the queues this port's own?
    pub(crate) fn serves(&self) -> bool {
        self.gate == Gate::Open && !(self.stale && on(Check::StaleQueue))
    }

    /// May a session start queues?
    pub(crate) fn takes_queues(&self) -> bool {
        self.gate != Gate::Gone && !self.stale && !self.carried
    }

    /// Starts a queue, which gets this number. `shared`: other workers may deliver its frames.
    pub(crate) fn start_queue(
        &mut self,
        index: u16,
        resources: QueueResources,
        (number, shared): (u64, bool),
    ) -> Result<(), DeviceError> {
        let refused = |error: StartError| DeviceError::Other(Box::new(error));
        let kind = kind(index)?;
        if self.queue(kind).is_some() {
            return Err(DeviceError::QueueRuns { index });
        }
        match kind {
            QueueKind::Rx { pair } => {
                let queue = RxQueue::new(resources).map_err(refused)?;
                self.rx.start(Running::new(pair, number, queue));
            }
            QueueKind::Tx { pair } => {
                let mut queue = TxQueue::new(resources).map_err(refused)?;
                let mut spare = Vec::new();
                if shared {
                    queue.prepare_to_lend();
                    spare.extend((0..CROSSINGS_PER_QUEUE).map(|_| Box::new(Crossing::new(&queue))));
                }
                self.tx.start(Running {
                    spare,
                    ..Running::new(pair, number, queue)
                });
            }
        }
        self.find_lanes();
        let mtu = self.mtu;
        if let Some(queue) = self.queue(kind) {
            queue.set_mtu(mtu);
        }
        Ok(())
    }

    /// Stops a queue; `done` hears where its ring goes on, once nobody has a frame of it any more.
    pub(crate) fn stop_queue(&mut self, index: u16, done: Done) {
        match QueueKind::of(index) {
            None => return done(None),
            Some(QueueKind::Rx { pair }) => {
                let stopped = self.rx.stop(pair);
                self.find_lanes();
                done(stopped.map(|rx| rx.queue.queue().base()));
            }
            Some(QueueKind::Tx { pair }) => match self.tx.stop(pair) {
                Some(tx) if tx.queue.lent() > 0 => self.stopping.push(Stopping { tx, done }),
                stopped => done(stopped.map(|tx| tx.queue.queue().base())),
            },
        }
        self.stale &= self.has_queues();
    }

    /// A frame of one of its transmit queues has come back. Shows the guest what that queue gives back, if it was stopped
    /// meanwhile, and then lets the queue go.
    pub(crate) fn take_back(&mut self, crossing: Box<Crossing>, signals: &mut dyn Signals) {
        let is_it = |tx: &Running<TxQueue>| tx.number == crossing.queue;
        if let Some(tx) = self.tx.of_pair(crossing.pair).filter(|tx| is_it(tx)) {
            tx.queue.returned(&crossing.parcel);
            return tx.spare.push(crossing);
        }
        let Some(at) = self.stopping.iter().position(|stopping| is_it(&stopping.tx)) else {
            debug_assert!(false, "a queue is there until its frames are back");
            return;
        };
        if let Some(stopping) = self.stopping.get_mut(at) {
            stopping.tx.queue.returned(&crossing.parcel);
            flush(
                stopping.tx.queue.queue_mut(),
                signals,
                (&self.name, "transmit", crossing.pair),
            );
            if stopping.tx.queue.lent() == 0 {
                self.stopping.swap_remove(at).end();
                self.stale &= self.has_queues();
            }
        }
    }

    /// Frames of its transmit queues that other workers have.
    pub(crate) fn lent(&self) -> usize {
        let stopping = self.stopping.iter().map(|stopping| &stopping.tx);
        self.tx.iter().chain(stopping).map(|tx| tx.queue.lent()).sum()
    }

    /// Takes the queues of a pair out, as they are; nothing of them is with other workers.
    pub(crate) fn take_pair(&mut self, pair: u16) -> (Option<Running<RxQueue>>, Option<Running<TxQueue>>) {
        let taken = (self.rx.stop(pair), self.tx.stop(pair));
        self.find_lanes();
        taken
    }

    /// Puts queues in that were another worker's.
    pub(crate) fn put_pair(&mut self, rx: Option<Running<RxQueue>>, tx: Option<Running<TxQueue>>) {
        rx.into_iter().for_each(|rx| self.rx.start(rx));
        tx.into_iter().for_each(|tx| self.tx.start(tx));
        self.find_lanes();
    }

    /// Other workers have these of its receive queues: their pairs, and where each is.
    pub(crate) fn set_elsewhere(&mut self, elsewhere: Vec<(u16, usize)>) {
        self.elsewhere = elsewhere;
        self.find_lanes();
    }

    /// Puts together where its receive queues are.
    fn find_lanes(&mut self) {
        self.lanes.clear();
        if self.elsewhere.is_empty() {
            return;
        }
        let here = self
            .rx
            .iter()
            .enumerate()
            .map(|(place, rx)| (rx.pair, LaneAt::Here(place)));
        let there = self
            .elsewhere
            .iter()
            .map(|(pair, worker)| (*pair, LaneAt::There(*worker)));
        self.lanes.extend(here.chain(there).map(|(pair, at)| Lane { pair, at }));
        self.lanes.sort_unstable_by_key(|lane| lane.pair);
        // One that moves may be told of before it is gone: what is here is known.
        self.lanes.dedup_by_key(|lane| lane.pair);
    }

    /// Are all its receive queues here?
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Where a frame goes, of a port that has receive queues elsewhere.
    pub(crate) fn lane(&self, record: &Record, head: &[u8], flows: &FlowHash) -> Option<Lane> {
        let place = match self.lanes.len() {
            0 | 1 => 0,
            count => flows.queue(record, head, count),
        };
        self.lanes.get(place).copied()
    }

    /// Why it gets nothing now, if so.
    pub(crate) fn closed(&self) -> Option<DropReason> {
        match self.gate {
            Gate::Open if self.serves() => None,
            Gate::Open => Some(DropReason::RxNotRunning),
            Gate::Shut | Gate::Gone => Some(DropReason::PortShut),
        }
    }

    /// May more of its frames that came from other workers be delivered in this breath?
    pub(crate) fn may_arrive(&mut self, breath: u64, share: usize) -> bool {
        let (last, spent) = self.arrived;
        if last != breath {
            // What went beyond its share is taken off the next ones.
            let breaths = usize::try_from(breath.wrapping_sub(last)).unwrap_or(usize::MAX);
            self.arrived = (breath, spent.saturating_sub(share.saturating_mul(breaths)));
        }
        self.arrived.1 < share
    }

    /// So much was delivered of its frames that came from other workers.
    pub(crate) fn count_arrived(&mut self, cost: usize) {
        self.arrived.1 += cost;
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
        let closed = self.closed();
        let (rx, tally) = (&mut self.rx, &mut self.tally);
        let count = rx.len();
        if let Some(reason) = closed.or((count == 0).then_some(DropReason::RxNotRunning)) {
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
                Ok(len) => tally.received_by((frames, bytes), len as u64),
                Err(RxDrop::SourceGone) => gone(),
                Err(drop) => tally.missed(drop),
            });
        }
    }

    /// Gives the frame in a slot of the burst that `source` holds to a receive queue here. False if it could not be read any
    /// more.
    pub(crate) fn receive_at(
        &mut self,
        place: usize,
        (source, slot): (&TxQueue, usize),
        scratch: &mut Scratch,
    ) -> bool {
        let mut lives = true;
        if let Some(running) = self.rx.at(place) {
            let Running {
                queue, frames, bytes, ..
            } = running;
            let tally = &mut self.tally;
            forward(source, slot, queue, scratch, |outcome| match outcome {
                Ok(len) => tally.received_by((frames, bytes), len as u64),
                Err(RxDrop::SourceGone) => lives = false,
                Err(drop) => tally.missed(drop),
            });
        }
        lives
    }

    /// Gives a frame that another worker took to the receive queue of a pair, with a tag if there is a VLAN id. Counts in
    /// `tally`, which is its own or that of a subport. False if it could not be read any more.
    pub(crate) fn receive_parcel(
        &mut self,
        (pair, vlan): (u16, Option<u16>),
        parcel: &mut Parcel,
        scratch: &mut Scratch,
        tally: &mut Tally,
    ) -> bool {
        if let Some(reason) = self.closed() {
            tally.drop(reason);
            return true;
        }
        let Some(running) = self.rx.of_pair(pair) else {
            // It was stopped while the frame was on its way.
            tally.drop(DropReason::RxNotRunning);
            return true;
        };
        let Running {
            queue, frames, bytes, ..
        } = running;
        let mut lives = true;
        parcel.forward_on((queue, vlan), scratch, |outcome| match outcome {
            Ok(len) => tally.received_by((frames, bytes), len as u64),
            Err(RxDrop::SourceGone) => lives = false,
            Err(drop) => tally.missed(drop),
        });
        lives
    }

    /// Answers its guest, one of whose packets was rejected, if an answer is due: as a frame from nobody's queue.
    pub(crate) fn reply(&mut self, place: usize, slot: usize, flows: &FlowHash, now: u64) {
        let commons = self.commons.clone();
        if let Some(len) = self.answer((place, slot), None, flows, (&commons, now)) {
            self.tally.received(1, len);
        }
    }

    /// Answers the guest, with a tag if there is a VLAN id, if an answer is due. `commons` are those of the port that sent the
    /// packet. The answer's length, if the guest got it.
    pub(crate) fn answer(
        &mut self,
        (place, slot): (usize, usize),
        vlan: Option<u16>,
        flows: &FlowHash,
        (commons, now): (&PortCommons, u64),
    ) -> Option<u64> {
        let tx = self.tx.at(place)?;
        let record = tx.queue.records().get(slot)?;
        let head = tx.queue.head_of(slot);
        // What is rejected beyond what may be answered costs no answer.
        if !commons.replies.may(now) {
            return None;
        }
        let reply = reject::reply(record, head).filter(|_| commons.replies.take(now))?;
        let place = match self.rx.len() {
            0 | 1 => 0,
            count => flows.queue(record, head, count),
        };
        let rx = self.rx.at(place)?;
        let frame = reply.frame();
        let len = frame.len() as u64;
        // Without buffers the answer is lost, as any frame would be; it was nobody's.
        let given = rx
            .queue
            .give_on(vlan, NetHeader::default(), frame, Payload::Private(&[]));
        given.ok()?;
        rx.count(1, len);
        Some(len)
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
        if (self.rx.is_empty() && self.is_here()) || !self.serves() {
            return Some(DropReason::RxNotRunning);
        }
        if self.is_here() && self.rx.iter().all(|rx| rx.queue.queue().failed().is_some()) {
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
