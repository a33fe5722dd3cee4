//! The transmit path: from a chain to a frame that was looked at.

use outboard_controls::{Check, on};
use outboard_ring::{Chain, GuestMemory, RingError};
use outboard_vhost_user::QueueResources;

use crate::{
    FRAME_LEN_MAX, HEAD_LEN_MAX,
    deliver::Source,
    error::{StartError, TxRefusal},
    header::{HEADER_LEN, NetHeader},
    offload::{self, Sender},
    queue::Queue,
    record::{Class, Record},
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
}

/// The virtio header and the frame's first bytes.
#[derive(Debug, Clone, Copy)]
struct Head {
    private: [u8; HEADER_LEN + HEAD_LEN_MAX],
    /// Bytes of the frame that are there.
    len: usize,
    /// Bytes of the whole frame.
    frame_len: usize,
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
        if chain.writable_len() != 0 || chain.readable_len() < HEADER_LEN as u64 {
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

    /// Finds out what the frame is, and checks what its sender asks for.
    #[inline]
    fn inspect(&mut self, record: &mut Record, sender: Sender) -> Result<(), TxRefusal> {
        let len = self.frame_len;
        let private = self.private.get_mut(..HEADER_LEN + self.len).unwrap_or_default();
        let Some((header, head)) = private.split_first_chunk_mut::<HEADER_LEN>() else {
            return Err(TxRefusal::Chain);
        };
        record.fill(head, len)?;
        let header = NetHeader::parse(header);
        if header.asks_for_work() {
            let offload = offload::check(&header, &record.packet(head), head, len, sender)?;
            record.set_offload(&offload);
        }
        let len_max = sender.frame_len_max;
        if len > len_max && !record.is_cut() && on(Check::FrameLength) {
            return Err(TxRefusal::OverMtu { len_max });
        }
        Ok(())
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
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
        let head = Head {
            private: [0; HEADER_LEN + HEAD_LEN_MAX],
            len: 0,
            frame_len: 0,
        };
        Ok(Self {
            queue: Queue::new(resources)?,
            held: 0,
            records: Box::new([Record::default(); BURST_MAX]),
            refusals: Box::new([None; BURST_MAX]),
            heads: vec![head; BURST_MAX].into(),
            chains: (0..BURST_MAX).map(|_| Chain::new()).collect(),
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
        for (((chain, head), refusal), record) in slots.zip(&mut *self.records) {
            if gone {
                *refusal = Some(TxRefusal::MemoryGone);
            } else if refusal.is_none()
                && let Err(found) = head.inspect(record, sender)
            {
                *refusal = Some(found);
            }
            if refusal.is_some() {
                *record = Record {
                    // A chain has at most 4 GiB.
                    len: u32::try_from(frame_len(chain)).unwrap_or(u32::MAX),
                    class: Class::Refused,
                    ..Record::default()
                };
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
        self.queue.push_burst(self.chains.get(..done).unwrap_or_default());
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
