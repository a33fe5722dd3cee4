//! The transmit path: from a chain to a frame that was looked at.

use outboard_controls::{Check, on};
use outboard_ring::{Chain, GuestMemory, RingError};
use outboard_vhost_user::QueueResources;

use crate::{
    FRAME_LEN_MAX, HEAD_LEN_MAX,
    error::{StartError, TxRefusal},
    header::{HEADER_LEN, NetHeader},
    offload::{self, Offload, Sender},
    packet::{self, Packet},
    queue::Queue,
};

/// A frame whose first bytes are in private memory and whose offloads were checked.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// What it is.
    pub packet: Packet,
    /// What is left to do on it.
    pub offload: Offload,
    /// Its length in bytes, without the virtio header.
    pub len: usize,
}

/// What [`TxQueue::take`] found.
#[derive(Debug, Clone, Copy)]
pub enum Taken {
    /// Nothing, or the queue has failed.
    Nothing,
    /// A frame.
    Frame(Frame),
    /// A buffer of `len` bytes (without the virtio header) that is no frame to forward.
    Refused {
        /// How long it was, in bytes.
        len: u64,
        /// Why it is refused.
        refusal: TxRefusal,
    },
}

/// A guest's transmit queue. At most one chain is held, between [`TxQueue::take`] and [`TxQueue::give_back`].
#[derive(Debug)]
pub struct TxQueue {
    queue: Queue,
    chain: Chain,
    held: bool,
    /// The virtio header and the frame's first bytes.
    private: [u8; HEADER_LEN + HEAD_LEN_MAX],
    head_len: usize,
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
        let queue = Queue::new(resources)?;
        Ok(Self {
            queue,
            chain: Chain::new(),
            held: false,
            private: [0; HEADER_LEN + HEAD_LEN_MAX],
            head_len: 0,
        })
    }

    /// Takes the next buffer. If it is a frame, [`TxQueue::head`] and [`TxQueue::chain`] are its bytes until
    /// [`TxQueue::give_back`], which is due for refused ones too.
    pub fn take(&mut self) -> Taken {
        debug_assert!(!self.held, "the former chain is given back first");
        if !self.queue.pop(&mut self.chain) {
            return Taken::Nothing;
        }
        self.held = true;
        let len = self.chain.readable_len().saturating_sub(HEADER_LEN as u64);
        match self.inspect(len) {
            Ok(frame) => Taken::Frame(frame),
            Err(refusal) => Taken::Refused { len, refusal },
        }
    }

    fn inspect(&mut self, len: u64) -> Result<Frame, TxRefusal> {
        if self.chain.writable_len() != 0 || self.chain.readable_len() < HEADER_LEN as u64 {
            return Err(TxRefusal::Chain);
        }
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= FRAME_LEN_MAX || !on(Check::FrameLength))
            .ok_or(TxRefusal::Oversize)?;
        self.head_len = len.min(HEAD_LEN_MAX);
        // Header and head in one read: each byte is read once, and what was looked at is what is forwarded.
        let wanted = self.private.get_mut(..HEADER_LEN + self.head_len).unwrap_or_default();
        if self.chain.read_at(self.queue.ring.memory(), 0, wanted).is_err() {
            self.fail_memory();
            return Err(TxRefusal::MemoryGone);
        }
        let Some((header, head)) = wanted.split_first_chunk_mut::<HEADER_LEN>() else {
            return Err(TxRefusal::Chain);
        };
        let packet = packet::parse(head, len)?;
        let sender = Sender {
            accepted: self.queue.accepted,
            frame_len_max: self.queue.frame_len_max,
        };
        let offload = offload::check(&NetHeader::parse(header), &packet, head, len, sender)?;
        let len_max = sender.frame_len_max;
        if len > len_max && offload.segmentation.is_none() && on(Check::FrameLength) {
            return Err(TxRefusal::OverMtu { len_max });
        }
        Ok(Frame { packet, offload, len })
    }

    /// The private first bytes of the frame taken last: all of it, or [`HEAD_LEN_MAX`].
    pub fn head(&self) -> &[u8] {
        self.private
            .get(HEADER_LEN..HEADER_LEN + self.head_len)
            .unwrap_or_default()
    }

    /// The chain of the frame taken last: the virtio header, then the frame.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The memory that the chain is in.
    pub fn memory(&self) -> &GuestMemory {
        self.queue.ring.memory()
    }

    /// Stages the buffer taken last to be given back to the guest.
    pub fn give_back(&mut self) {
        if self.held {
            self.held = false;
            self.queue.push(&self.chain, 0);
        }
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
