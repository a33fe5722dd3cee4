//! The transmit path: from a chain to a frame that was looked at.

use std::collections::VecDeque;

use outboard_controls::{Check, on};
use outboard_ring::{Chain, GuestMemory, RingError};
use outboard_vhost_user::QueueResources;

use crate::{
    FRAME_LEN_MAX, HEAD_LEN_MAX,
    deliver::Source,
    error::{StartError, TxRefusal},
    header::{HEADER_LEN, NetHeader},
    offload::{self, Sender},
    packet::ParseError,
    parcel::Parcel,
    queue::Queue,
    record::{Class, Record},
    vlan::{self, VLAN_TAG_LEN},
};

/// Frames that a burst has at most.
pub const BURST_MAX: usize = 32;

/// A guest's transmit queue. It is served by bursts: [`TxQueue::take_burst`] fills as many slots as buffers are waiting,
/// at most [`BURST_MAX`], and [`TxQueue::give_back_burst`] ends the burst. In between, each slot has a
/// [`Record`] of what it holds, private first bytes, and the chain that the rest of it is in.
///
/// ```no_run
/// # use vhost_net_dpu::{deliver::{Scratch, forward}, rx::RxQueue, tx::TxQueue};
/// # fn burst(tx: &mut TxQueue, rx: &mut RxQueue, scratch: &mut Scratch) {
/// let count = tx.take_burst(32);
/// for (slot, record) in tx.records().iter().enumerate() {
///     match tx.refusal(slot) {
///         Some(refusal) => println!("{} bytes refused: {refusal}", record.len),
///         None => forward(tx, slot, rx, scratch, |outcome| println!("{outcome:?}")),
///     }
/// }
/// tx.give_back_burst(count);
/// # }
/// ```
#[derive(Debug)]
pub struct TxQueue {
    queue: Queue,
    /// Slots that are held, from the first on.
    held: usize,
    records: Box<[Record; BURST_MAX]>,
    refusals: Box<[Option<TxRefusal>; BURST_MAX]>,
    heads: Box<[Head]>,
    chains: Box<[Chain]>,
    /// What others have of it, if its frames may be delivered by others at all.
    lending: Option<Box<Lending>>,
    /// The slots whose frames had a tag, a bit for each.
    tagged: u32,
}

/// Frames of a queue that are with others, to be delivered, and the chains that have to wait for them: all that were taken
/// since the oldest one that is out. Chains are given back in the order in which they were taken (virtio 1.3 §2.7.9 asks for
/// it with IN_ORDER, and the index at which a stopped queue goes on counts on it in any case).
#[derive(Debug)]
struct Lending {
    /// The number of the chain that is taken next.
    next: u64,
    /// Chains that were not given back yet, oldest first: as many as were taken before number `next`.
    owed: VecDeque<Chain>,
    /// How many parcels of each are out.
    out: VecDeque<u16>,
    /// How many parcels of each slot of the burst at hand are out.
    of_burst: [u16; BURST_MAX],
    /// Parcels that are out.
    count: usize,
}

impl Lending {
    fn new(queue_size: u16) -> Self {
        let size = usize::from(queue_size);
        Self {
            next: 0,
            owed: VecDeque::with_capacity(size),
            out: VecDeque::with_capacity(size),
            of_burst: [0; BURST_MAX],
            count: 0,
        }
    }

    /// Has to wait a chain that is done now?
    fn holds(&self) -> bool {
        self.count > 0 || !self.owed.is_empty()
    }

    /// Chains from the oldest on that nobody has a parcel of.
    fn done(&self) -> usize {
        self.out.iter().take_while(|out| **out == 0).count()
    }
}

const _: () = assert!(BURST_MAX <= u32::BITS as usize);

/// The virtio header and the frame's first bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    private: [u8; HEADER_LEN + HEAD_LEN_MAX],
    /// Bytes of the frame that are there.
    len: usize,
    /// Bytes of the whole frame.
    pub(crate) frame_len: usize,
}

/// Length of what a chain holds, in bytes, without the virtio header.
fn frame_len(chain: &Chain) -> u64 {
    chain.readable_len().saturating_sub(HEADER_LEN as u64)
}

impl Head {
    /// Copies header and first bytes of the frame in `chain`.
    #[inline]
    fn fetch(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<(), TxRefusal> {
        (self.len, self.frame_len) = (0, 0);
        if (chain.writable_len() != 0 || chain.readable_len() < HEADER_LEN as u64) && on(Check::TransmitBuffer) {
            return Err(TxRefusal::Chain);
        }
        self.frame_len = usize::try_from(frame_len(chain))
            .ok()
            .filter(|len| *len <= FRAME_LEN_MAX || !on(Check::FrameLength))
            .ok_or(TxRefusal::Oversize)?;
        self.len = self.frame_len.min(HEAD_LEN_MAX);
        // Header and head in one read: each byte is read once, and what was looked at is what is forwarded.
        let wanted = self.private.get_mut(..HEADER_LEN + self.len).unwrap_or_default();
        chain.read_at(memory, 0, wanted).map_err(|_| TxRefusal::MemoryGone)
    }

    /// Finds out what the frame is, and checks what its sender asks for. `tagged` hears of a tag, which was taken off then.
    #[inline(always)]
    fn inspect(
        &mut self,
        record: &mut Record,
        sender: Sender,
        (chain, memory): (&Chain, &GuestMemory),
        tagged: impl FnOnce(),
    ) -> Result<(), TxRefusal> {
        if !record.fill_plain(self.bytes(), self.frame_len) {
            self.fill_other(record, (chain, memory), tagged)?;
        }
        let len = self.frame_len;
        let private = self.private.get_mut(..HEADER_LEN + self.len).unwrap_or_default();
        let Some((header, head)) = private.split_first_chunk_mut::<HEADER_LEN>() else {
            return Err(TxRefusal::Chain);
        };
        let mut header = NetHeader::parse(header);
        if header.asks_for_work() {
            if record.vlan().is_some() {
                header = vlan::without_tag(header);
            }
            let offload = offload::check(&header, &record.packet(head), head, len, sender)?;
            record.set_offload(&offload);
        }
        let len_max = sender.frame_len_max;
        if len > len_max && !record.is_cut() && on(Check::FrameLength) {
            return Err(TxRefusal::OverMtu { len_max });
        }
        Ok(())
    }

    /// Nothing.
    pub(crate) const EMPTY: Self = Self {
        private: [0; HEADER_LEN + HEAD_LEN_MAX],
        len: 0,
        frame_len: 0,
    };

    /// Finds out what a frame is that is not plain, without its tag if it has one.
    #[inline(never)]
    fn fill_other(
        &mut self,
        record: &mut Record,
        (chain, memory): (&Chain, &GuestMemory),
        tagged: impl FnOnce(),
    ) -> Result<(), TxRefusal> {
        if !vlan::is_tagged(self.bytes()) {
            return Ok(record.fill(self.bytes(), self.frame_len)?);
        }
        let private = self.private.get_mut(HEADER_LEN..HEADER_LEN + self.len);
        let Some(vlan) = vlan::strip(private.unwrap_or_default()) else {
            return Err(ParseError::Runt(self.frame_len).into());
        };
        // What was not read yet makes up for the tag.
        let (fetched, read) = (self.len - VLAN_TAG_LEN, self.len);
        self.frame_len -= VLAN_TAG_LEN;
        self.len = self.frame_len.min(HEAD_LEN_MAX);
        if let Some(rest) = self.private.get_mut(HEADER_LEN + fetched..HEADER_LEN + self.len)
            && !rest.is_empty()
        {
            let read = chain.read_at(memory, (HEADER_LEN + read) as u64, rest);
            read.map_err(|_| TxRefusal::MemoryGone)?;
        }
        tagged();
        let filled = record.fill(self.bytes(), self.frame_len);
        record.set_vlan(Some(vlan));
        Ok(filled?)
    }

    /// Makes it a copy of another one, as far as that goes.
    #[inline]
    pub(crate) fn copy_from(&mut self, other: &Self) {
        let end = HEADER_LEN + other.len;
        if let (Some(to), Some(from)) = (self.private.get_mut(..end), other.private.get(..end)) {
            to.copy_from_slice(from);
        }
        (self.len, self.frame_len) = (other.len, other.frame_len);
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.private.get(HEADER_LEN..HEADER_LEN + self.len).unwrap_or_default()
    }
}

impl TxQueue {
    /// Serves a queue.
    ///
    /// # Errors
    /// The driver is a legacy one, or cannot kick.
    pub fn new(resources: QueueResources) -> Result<Self, StartError> {
        if resources.kick.is_none() {
            return Err(StartError::NoKick);
        }
        Ok(Self {
            queue: Queue::new(resources)?,
            held: 0,
            records: Box::new([Record::default(); BURST_MAX]),
            refusals: Box::new([None; BURST_MAX]),
            heads: vec![Head::EMPTY; BURST_MAX].into(),
            chains: (0..BURST_MAX).map(|_| Chain::new()).collect(),
            lending: None,
            tagged: 0,
        })
    }

    /// Takes the buffers that are waiting, at most `max` and [`BURST_MAX`]: how many. Their slots, from 0 on, hold until
    /// [`TxQueue::give_back_burst`]; the former burst must have been given back.
    pub fn take_burst(&mut self, max: usize) -> usize {
        debug_assert!(self.held == 0, "the former burst is given back first");
        let chains = self.chains.get_mut(..max.min(BURST_MAX)).unwrap_or_default();
        self.held = self.queue.pop_burst(chains);
        let memory = self.queue.ring.memory();
        let chains = chains.get(..self.held).unwrap_or_default();
        // All are copied before the first is parsed, so that no load waits for a store that has just been made.
        for ((chain, head), refusal) in chains.iter().zip(&mut *self.heads).zip(&mut *self.refusals) {
            *refusal = head.fetch(chain, memory).err();
        }
        let gone = memory.poisoned();
        let sender = Sender {
            accepted: self.queue.accepted,
            frame_len_max: self.queue.frame_len_max,
        };
        let slots = chains.iter().zip(&mut *self.heads).zip(&mut *self.refusals);
        self.tagged = 0;
        for (slot, (((chain, head), refusal), record)) in slots.zip(&mut *self.records).enumerate() {
            if gone {
                *refusal = Some(TxRefusal::MemoryGone);
            } else if refusal.is_none()
                && let Err(found) = head.inspect(record, sender, (chain, memory), || self.tagged |= 1 << slot)
            {
                *refusal = Some(found);
            }
            if refusal.is_some() {
                let vlan = record.vlan().filter(|_| self.tagged & 1 << slot != 0);
                *record = Record {
                    // A chain has at most 4 GiB.
                    len: u32::try_from(frame_len(chain)).unwrap_or(u32::MAX),
                    class: Class::Refused,
                    ..Record::default()
                };
                record.set_vlan(vlan);
            }
        }
        if gone && self.held > 0 {
            self.fail_memory();
        }
        self.held
    }

    /// What the burst's frames are, by slot.
    #[inline]
    pub fn records(&self) -> &[Record] {
        self.records.get(..self.held).unwrap_or_default()
    }

    /// The slots whose frames had an 802.1Q tag, a bit for each: the tags were taken off, and [`Record::vlan`] tells what
    /// they said.
    #[inline]
    pub fn tagged(&self) -> u32 {
        self.tagged
    }

    /// Why there is no frame to forward in a slot of the burst, if so: then its record is of [`Class::Refused`].
    #[inline]
    pub fn refusal(&self, slot: usize) -> Option<TxRefusal> {
        self.refusals.get(slot).copied().flatten()
    }

    /// The private first bytes of the frame in a slot: all of it, or [`HEAD_LEN_MAX`].
    #[inline]
    pub fn head_of(&self, slot: usize) -> &[u8] {
        self.heads.get(slot).map(Head::bytes).unwrap_or_default()
    }

    /// The chain of the frame in a slot of the burst: the virtio header, then the frame.
    #[inline]
    pub fn chain_of(&self, slot: usize) -> Option<&Chain> {
        self.chains.get(..self.held)?.get(slot)
    }

    /// Ends the burst: the buffers of its first `done` slots are staged to be given back to the guest, in the order in
    /// which they were taken. Any others are left to be taken once more, as though they had not been.
    pub fn give_back_burst(&mut self, done: usize) {
        let held = std::mem::take(&mut self.held);
        let done = done.min(held);
        // At most as many as a burst has.
        self.queue.ring.unpop(u16::try_from(held - done).unwrap_or(0));
        match &mut self.lending {
            Some(lending) if lending.holds() => self.owe(done),
            _ => self.queue.push_burst(self.chains.get(..done).unwrap_or_default()),
        }
    }

    /// Ends the burst where frames of it, or of earlier ones, are with others.
    fn owe(&mut self, done: usize) {
        let Some(lending) = &mut self.lending else { return };
        for (chain, out) in self.chains.iter().zip(&mut lending.of_burst).take(done) {
            lending.owed.push_back(chain.receipt());
            lending.out.push_back(std::mem::take(out));
        }
        lending.next = lending.next.wrapping_add(done as u64);
        self.settle();
    }

    /// Stages the chains that nobody has any more, up to the first that somebody has.
    fn settle(&mut self) {
        let Some(lending) = &mut self.lending else { return };
        let done = lending.done();
        let (first, second) = lending.owed.as_slices();
        let from_first = done.min(first.len());
        for chains in [first.get(..from_first), second.get(..done - from_first)] {
            self.queue.push_burst(chains.unwrap_or_default());
        }
        lending.owed.drain(..done);
        lending.out.drain(..done);
    }

    /// From now on others may deliver its frames. Takes the memory that this needs.
    pub fn prepare_to_lend(&mut self) {
        let size = self.queue.ring.size();
        self.lending.get_or_insert_with(|| Box::new(Lending::new(size)));
    }

    /// An empty parcel for frames of this queue.
    pub fn parcel(&self) -> Parcel {
        Parcel::new(self.queue.ring.memory().clone())
    }

    /// Puts the frame in a slot of the burst into a parcel of this queue. Its chain is given back only once the parcel was
    /// [`TxQueue::returned`]; there may be several of one frame. False if there is no frame to forward in this slot, or
    /// lending was not prepared.
    #[inline]
    pub fn lend(&mut self, slot: usize, parcel: &mut Parcel) -> bool {
        let (Some(lending), Some(record)) = (&mut self.lending, self.records.get(slot)) else {
            return false;
        };
        let (Some(head), Some(chain)) = (self.heads.get(slot), self.chains.get(slot)) else {
            return false;
        };
        if slot >= self.held || record.class == Class::Refused {
            return false;
        }
        parcel.fill(record, head, chain, lending.next.wrapping_add(slot as u64));
        if let Some(out) = lending.of_burst.get_mut(slot) {
            *out += 1;
        }
        lending.count += 1;
        true
    }

    /// A parcel that was lent in the burst at hand goes nowhere after all.
    pub fn keep(&mut self, slot: usize) {
        if let Some(lending) = &mut self.lending
            && let Some(out) = lending.of_burst.get_mut(slot)
        {
            *out -= 1;
            lending.count -= 1;
        }
    }

    /// A parcel came back, between two bursts. Its chain, and those that waited for it, are staged to be given back to the
    /// guest. If its frame could not be read any more, the queue has failed.
    pub fn returned(&mut self, parcel: &Parcel) {
        debug_assert!(self.held == 0, "parcels come back between bursts");
        if parcel.is_gone() {
            self.fail_memory();
        }
        let Some(lending) = &mut self.lending else { return };
        let oldest = lending.next.wrapping_sub(lending.owed.len() as u64);
        let place = usize::try_from(parcel.sequence.wrapping_sub(oldest)).unwrap_or(usize::MAX);
        debug_assert!(place < lending.out.len(), "it was lent by this queue");
        if let Some(out) = lending.out.get_mut(place) {
            *out -= 1;
            lending.count -= 1;
        }
        self.settle();
    }

    /// Parcels that others have.
    #[inline]
    pub fn lent(&self) -> usize {
        self.lending.as_ref().map_or(0, |lending| lending.count)
    }

    /// The frame in a slot, to be delivered.
    #[inline]
    pub(crate) fn source(&self, slot: usize) -> Option<(&Record, Source<'_>)> {
        if slot >= self.held {
            return None;
        }
        let record = self.records.get(slot).filter(|record| record.class != Class::Refused)?;
        let head = self.heads.get(slot)?;
        let source = Source {
            memory: self.memory(),
            chain: self.chains.get(slot)?,
            record,
            head: head.bytes(),
            len: head.frame_len,
        };
        Some((record, source))
    }

    /// The memory that the chains are in.
    #[inline]
    pub fn memory(&self) -> &GuestMemory {
        self.queue.ring.memory()
    }

    /// The host took memory away that a frame was in: the queue has failed.
    pub fn fail_memory(&mut self) {
        self.queue.fail(RingError::MemoryVanished);
    }

    /// Its ring: to show the guest what was given back, and to call it.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The same, to change it.
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Asks the driver for kicks; true if buffers are waiting already.
    pub fn before_sleep(&mut self) -> bool {
        self.queue.before_sleep()
    }

    /// Asks for no more kicks.
    pub fn after_sleep(&mut self) {
        self.queue.after_sleep();
    }
}
