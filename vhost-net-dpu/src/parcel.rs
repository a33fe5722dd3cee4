//! A frame that is delivered by another thread than the one that took it.
//!
//! A [`Parcel`] has all that delivering a frame takes: what it is, its private first bytes, the list of its buffers, and a
//! share of the memory they are in, which so stays mapped. The payload stays where it is and is copied once, by whoever
//! delivers it. The chain is the sender's still: its queue gives it back when the parcel has come back
//! ([`crate::tx::TxQueue::returned`]), in the order in which chains were taken.

use std::sync::Arc;

use outboard_ring::{Chain, GuestMemory};

use crate::{
    deliver::{Scratch, Source, forward_from},
    error::RxDrop,
    record::Record,
    rx::RxQueue,
    tx::Head,
};

/// A frame, to be delivered elsewhere. It is filled by [`crate::tx::TxQueue::lend`], again and again.
#[derive(Debug)]
pub struct Parcel {
    pub(crate) record: Record,
    pub(crate) head: Head,
    pub(crate) chain: Chain,
    memory: Arc<GuestMemory>,
    /// Which of its queue's chains it is.
    pub(crate) sequence: u64,
    /// It could not be read any more.
    gone: bool,
}

impl Parcel {
    /// An empty one, for frames of the queue whose chains are in this memory.
    pub(crate) fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            record: Record::default(),
            head: Head::EMPTY,
            chain: Chain::new(),
            memory,
            sequence: 0,
            gone: false,
        }
    }

    /// Takes a frame in.
    #[inline]
    pub(crate) fn fill(&mut self, record: &Record, head: &Head, chain: &Chain, sequence: u64) {
        self.record = *record;
        self.head.copy_from(head);
        self.chain.copy_from(chain);
        (self.sequence, self.gone) = (sequence, false);
    }

    /// What the frame is.
    #[inline]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Its private first bytes.
    #[inline]
    pub fn head(&self) -> &[u8] {
        self.head.bytes()
    }

    /// Its chain: the virtio header, then the frame.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The memory that the chain is in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Could the sender's memory not be read any more when the frame was delivered?
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Gives the frame to `rx`; `record` hears of it as in [`crate::deliver::forward`].
    #[inline]
    pub fn forward(&mut self, rx: &mut RxQueue, scratch: &mut Scratch, record: impl FnMut(Result<usize, RxDrop>)) {
        self.forward_on((rx, None), scratch, record);
    }

    /// The same with a tag of this VLAN id, if there is one: see [`crate::deliver::forward_on`].
    #[inline]
    pub fn forward_on(
        &mut self,
        (rx, vlan): (&mut RxQueue, Option<u16>),
        scratch: &mut Scratch,
        mut record: impl FnMut(Result<usize, RxDrop>),
    ) {
        let source = Source {
            memory: &self.memory,
            chain: &self.chain,
            record: &self.record,
            head: self.head.bytes(),
            len: self.head.frame_len,
        };
        let gone = &mut self.gone;
        forward_from(&self.record, source, (rx, vlan), scratch, |outcome| {
            *gone |= outcome == Err(RxDrop::SourceGone);
            record(outcome);
        });
    }
}
