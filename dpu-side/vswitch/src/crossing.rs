//! Frames for receive queues that other workers have: how they get there and come back.
//!
//! Each virtqueue has one owner. A worker that took a frame decides about it, whole, under the policy that it has then; where
//! a receiver's queue is another worker's, it puts what that one needs into a [`Crossing`] and into a bounded ring of one
//! writer and one reader, one for each ordered pair of workers. The owner of the receive queue copies the payload, straight
//! from guest to guest as ever, and sends the crossing back by a ring of the other kind; the sender's queue then gives the
//! chain back. Nobody waits: where there is no crossing left, or no room, the frame is dropped as `rx_worker_busy`.
//!
//! A worker delivers from each sending port no more than one burst in a breath, wherever the port's frames come from, so
//! that nobody's breath becomes long and ports share it alike. Workers that sleep are woken by a [`Bell`], once a breath.

use std::{io, sync::Arc};

use rtrb::{Consumer, Producer, PushError, RingBuffer};
use vhost_net_dpu::{parcel::Parcel, tx::TxQueue};

use crate::{bell::Bell, commons::Commons, port::Port, queues::Running, reason::DropReason, switch::Switch};

/// Workers that a switch may have.
pub const WORKERS_MAX: usize = 16;
/// Frames that may be under way from one worker to another, and as many back.
const CROSSINGS_MAX: usize = 512;
/// Frames of one transmit queue that may be with other workers.
pub(crate) const CROSSINGS_PER_QUEUE: usize = 128;
/// Receivers that a frame for a group has in one crossing.
const TARGETS_MAX: usize = 16;

/// A port, as workers tell each other: where it is in the order of declared ports, as a guess, and its number, which no
/// other port has or had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PortRef {
    pub(crate) index: usize,
    pub(crate) number: u64,
}

/// Where a frame comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The port whose transmit queue it was taken from.
    pub(crate) device: PortRef,
    /// The port that sent it: the same, or one of its subports.
    pub(crate) sender: PortRef,
}

impl Origin {
    /// Of a port with a device, in frames of its own.
    pub(crate) fn of(port: PortRef) -> Self {
        Self {
            device: port,
            sender: port,
        }
    }

    /// Is it of a subport?
    pub(crate) fn is_subport(&self) -> bool {
        self.device != self.sender
    }
}

/// A receive queue of a port, or of the device that carries it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Target {
    pub(crate) port: PortRef,
    pub(crate) pair: u16,
}

/// A frame on its way to another worker, or back.
#[derive(Debug)]
pub(crate) struct Crossing {
    pub(crate) parcel: Parcel,
    /// Whose it is: a transmit queue of this port's device and this pair, and which of those that there were.
    pub(crate) from: Origin,
    pub(crate) pair: u16,
    pub(crate) queue: u64,
    targets: [Target; TARGETS_MAX],
    count: usize,
}

impl Crossing {
    /// An empty one, for frames of this queue.
    pub(crate) fn new(queue: &TxQueue) -> Self {
        Self {
            parcel: queue.parcel(),
            from: Origin::default(),
            pair: 0,
            queue: 0,
            targets: [Target::default(); TARGETS_MAX],
            count: 0,
        }
    }

    /// Who is to get the frame.
    #[inline]
    pub(crate) fn targets(&self) -> &[Target] {
        self.targets.get(..self.count).unwrap_or_default()
    }

    /// The parcel, to be delivered, and to whom.
    #[inline]
    pub(crate) fn parts(&mut self) -> (&mut Parcel, &[Target]) {
        (&mut self.parcel, self.targets.get(..self.count).unwrap_or_default())
    }

    /// One more receiver. False if there is no room.
    #[inline]
    fn add(&mut self, target: Target) -> bool {
        match self.targets.get_mut(self.count) {
            Some(room) => {
                *room = target;
                self.count += 1;
                true
            }
            None => false,
        }
    }
}

/// What a worker has of another one.
pub(crate) struct Peer {
    bell: Arc<Bell>,
    there: Producer<Box<Crossing>>,
    home: Producer<Box<Crossing>>,
    pub(crate) arrivals: Consumer<Box<Crossing>>,
    pub(crate) returns: Consumer<Box<Crossing>>,
    /// It was given something since its bell was last rung.
    touched: bool,
    /// Crossings that were sent to it, and taken from it, ever.
    sent: u64,
    taken: u64,
    /// Of the frame for a group that is being handed over: what is not sent yet.
    open: Option<Box<Crossing>>,
}

impl Peer {
    /// Sends a crossing off; it comes back at once if there is no room.
    fn send(&mut self, crossing: Box<Crossing>) -> Result<(), Box<Crossing>> {
        match self.there.push(crossing) {
            Ok(()) => {
                self.touched = true;
                self.sent += 1;
                Ok(())
            }
            Err(PushError::Full(crossing)) => Err(crossing),
        }
    }

    /// Can a crossing go back?
    pub(crate) fn takes_back(&self) -> bool {
        !self.home.is_full()
    }

    /// The next one that arrived.
    pub(crate) fn take(&mut self) -> Option<Box<Crossing>> {
        let crossing = self.arrivals.pop().ok()?;
        self.taken += 1;
        Some(crossing)
    }

    /// Sends one back that was delivered.
    pub(crate) fn give_back(&mut self, crossing: Box<Crossing>) {
        let sent = self.home.push(crossing);
        debug_assert!(sent.is_ok(), "whoever takes one looks for room first");
        self.touched = true;
    }
}

/// What a worker has of all the others.
pub(crate) struct Exchange {
    /// Which worker it is.
    pub(crate) me: usize,
    bell: Arc<Bell>,
    /// The others, by number; none in its own place.
    pub(crate) peers: Vec<Option<Peer>>,
    /// Whose arrivals come first in the next breath.
    pub(crate) turn: usize,
    /// Breaths, to tell one from the next.
    pub(crate) breath: u64,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Exchange {
    /// Hands the frame in a slot over to the worker of its receive queue.
    ///
    /// # Errors
    /// Why it is dropped.
    pub(crate) fn send(
        &mut self,
        (from, running): (Origin, &mut Running<TxQueue>),
        slot: usize,
        (worker, target): (usize, Target),
    ) -> Result<(), DropReason> {
        let Some(Some(peer)) = self.peers.get_mut(worker) else {
            return Err(DropReason::RxWorkerBusy);
        };
        let crossing = fill((from, running), slot, target).ok_or(DropReason::RxWorkerBusy)?;
        peer.send(crossing).map_err(|crossing| {
            running.queue.keep(slot);
            running.spare.push(crossing);
            DropReason::RxWorkerBusy
        })
    }

    /// The same for one receiver of a frame for a group, which goes to those of one worker together. Whether it is dropped
    /// for them may be known only when [`Exchange::close`] says so.
    pub(crate) fn gather(
        &mut self,
        (from, running): (Origin, &mut Running<TxQueue>),
        slot: usize,
        (worker, target): (usize, Target),
    ) -> Result<(), DropReason> {
        let Some(Some(peer)) = self.peers.get_mut(worker) else {
            return Err(DropReason::RxWorkerBusy);
        };
        if let Some(open) = &mut peer.open {
            if open.add(target) {
                return Ok(());
            }
            if peer.there.is_full() {
                return Err(DropReason::RxWorkerBusy);
            }
        }
        let crossing = fill((from, running), slot, target).ok_or(DropReason::RxWorkerBusy)?;
        if let Some(full) = peer.open.replace(crossing)
            && let Err(back) = peer.send(full)
        {
            // There was room a moment ago, and nobody else takes it.
            running.queue.keep(slot);
            running.spare.push(back);
        }
        Ok(())
    }

    /// Sends off what was gathered of the frame in a slot. `lost` hears of each receiver that does not get it after all.
    pub(crate) fn close(&mut self, running: &mut Running<TxQueue>, slot: usize, mut lost: impl FnMut(Target)) {
        for peer in self.peers.iter_mut().flatten() {
            let Some(open) = peer.open.take() else { continue };
            if let Err(crossing) = peer.send(open) {
                crossing.targets().iter().for_each(|target| lost(*target));
                running.queue.keep(slot);
                running.spare.push(crossing);
            }
        }
    }

    /// Wakes those that were given something and sleep.
    pub(crate) fn ring(&mut self) {
        for peer in self.peers.iter_mut().flatten() {
            if std::mem::take(&mut peer.touched) {
                peer.bell.ring();
            }
        }
    }

    /// Before sleeping: asks to be woken. True if something is there already.
    pub(crate) fn lie_down(&self) -> bool {
        self.bell.lie_down();
        let waits = |peer: &Peer| !peer.arrivals.is_empty() || !peer.returns.is_empty();
        self.peers.iter().flatten().any(waits)
    }

    pub(crate) fn get_up(&self) {
        self.bell.get_up();
    }
}

/// A crossing with the frame in a slot, if the queue has one left.
#[inline]
fn fill((from, running): (Origin, &mut Running<TxQueue>), slot: usize, target: Target) -> Option<Box<Crossing>> {
    let mut crossing = running.spare.pop()?;
    if !running.queue.lend(slot, &mut crossing.parcel) {
        running.spare.push(crossing);
        return None;
    }
    (crossing.from, crossing.pair, crossing.queue) = (from, running.pair, running.number);
    crossing.count = 0;
    crossing.add(target);
    Some(crossing)
}

/// What a worker handed over to each worker, and took from each, ever; by the workers' numbers. What was handed over before
/// some moment has arrived once the others took that many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossed {
    /// To each.
    pub sent: Vec<u64>,
    /// From each.
    pub taken: Vec<u64>,
}

impl Switch {
    /// One switch of so many workers: for each of them the part that it runs, which is a [`Switch`] with the policy of all
    /// ports, and those queues that are started in it. All of them are told the same of ports and policies, in the same order,
    /// and of each other's receive queues ([`Switch::set_elsewhere`]).
    ///
    /// # Errors
    /// There are no descriptors left.
    ///
    /// # Panics
    /// There are none, or more than [`WORKERS_MAX`].
    pub fn fleet(count: usize) -> io::Result<Vec<Self>> {
        assert!((1..=WORKERS_MAX).contains(&count), "{count} workers");
        let commons = Arc::new(Commons::default());
        if count == 1 {
            return Ok(vec![Self::member(commons, None)]);
        }
        let bells = (0..count)
            .map(|_| Bell::new().map(Arc::new))
            .collect::<io::Result<Vec<_>>>()?;
        let mut exchanges: Vec<_> = bells
            .iter()
            .enumerate()
            .map(|(me, bell)| Exchange {
                me,
                bell: bell.clone(),
                peers: (0..count).map(|_| None).collect(),
                turn: 0,
                breath: 0,
            })
            .collect();
        for one in 0..count {
            for other in one + 1..count {
                let (here, there) = connect(&bells[one], &bells[other]);
                exchanges[one].peers[other] = Some(here);
                exchanges[other].peers[one] = Some(there);
            }
        }
        let member = |exchange| Self::member(commons.clone(), Some(Box::new(exchange)));
        Ok(exchanges.into_iter().map(member).collect())
    }

    /// What wakes this worker, to be watched while it sleeps; none if it is the only one.
    pub fn bell(&self) -> Option<&Bell> {
        self.exchange.as_ref().map(|exchange| &*exchange.bell)
    }

    /// What it handed over, and took from others.
    pub fn crossed(&self) -> Crossed {
        let peers = || self.exchange.iter().flat_map(|exchange| &exchange.peers);
        Crossed {
            sent: peers().map(|peer| peer.as_ref().map_or(0, |peer| peer.sent)).collect(),
            taken: peers().map(|peer| peer.as_ref().map_or(0, |peer| peer.taken)).collect(),
        }
    }

    /// Has no other worker any frame that was taken here?
    pub fn is_quiet(&self) -> bool {
        self.ports.iter().all(|port| port.lent() == 0)
    }

    /// Takes frames from guests, or leaves them where they are for the time being.
    pub fn hold(&mut self, hold: bool) {
        self.held = hold;
    }

    /// Where a port is that another worker speaks of.
    pub(crate) fn locate(&self, port: PortRef) -> Option<usize> {
        let is_it = |found: &Port| found.number == port.number;
        match self.ports.get(port.index) {
            Some(found) if is_it(found) => Some(port.index),
            _ => self.ports.iter().position(is_it),
        }
    }
}

/// The ends of what connects two workers.
fn connect(one: &Arc<Bell>, other: &Arc<Bell>) -> (Peer, Peer) {
    let (there, arrivals) = RingBuffer::new(CROSSINGS_MAX);
    let (home, returns) = RingBuffer::new(CROSSINGS_MAX);
    let (there_too, arrivals_too) = RingBuffer::new(CROSSINGS_MAX);
    let (home_too, returns_too) = RingBuffer::new(CROSSINGS_MAX);
    let peer = |bell: &Arc<Bell>, there, home, arrivals, returns| Peer {
        bell: bell.clone(),
        there,
        home,
        arrivals,
        returns,
        touched: false,
        sent: 0,
        taken: 0,
        open: None,
    };
    // Each one's arrivals are what the other sends there, and its returns what the other sends home.
    let first = peer(other, there, home, arrivals_too, returns_too);
    (first, peer(one, there_too, home_too, arrivals, returns))
}
