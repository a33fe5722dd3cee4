//! From a checked frame to a receiver: as it is where the receiver can take it, else with its checksum completed or cut
//! into segments.
//!
//! Where the payload has to be summed, it is copied to private memory first: the sum is of the bytes that are sent,
//! whatever the sender does to its memory in the meantime.

use outboard_ring::{Chain, GuestMemory};

use crate::{
    FRAME_LEN_MAX, HEAD_LEN_MAX,
    checksum::complete,
    error::RxDrop,
    header::{NEEDS_CSUM, NetHeader},
    offload::{Offload, PartialChecksum, Segmentation},
    record::Record,
    rx::{Payload, RxQueue},
    segment::Segments,
    tx::TxQueue,
};

/// Private memory for one payload, taken once.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; FRAME_LEN_MAX].into())
    }
}

/// Gives the frame in a slot of the burst that `tx` holds to `rx`. `record` hears of each packet that the receiver got
/// (its length in bytes, without the virtio header) or did not get: one, or one for each segment. A slot that is
/// refused, or not of the burst, is passed over.
#[inline]
pub fn forward(
    tx: &TxQueue,
    slot: usize,
    rx: &mut RxQueue,
    scratch: &mut Scratch,
    record: impl FnMut(Result<usize, RxDrop>),
) {
    let Some((frame, source)) = tx.source(slot) else { return };
    forward_from(frame, source, (rx, None), scratch, record);
}

/// The same with a tag, if there is a VLAN id: then each packet is given with that. Lengths are told without the tag.
pub fn forward_on(
    tx: &TxQueue,
    slot: usize,
    (rx, vlan): (&mut RxQueue, Option<u16>),
    scratch: &mut Scratch,
    record: impl FnMut(Result<usize, RxDrop>),
) {
    if let Some((frame, source)) = tx.source(slot) {
        forward_from(frame, source, (rx, vlan), scratch, record);
    }
}

/// The same for a frame, wherever it was kept.
#[inline]
pub(crate) fn forward_from(
    frame: &Record,
    source: Source<'_>,
    (rx, vlan): (&mut RxQueue, Option<u16>),
    scratch: &mut Scratch,
    mut record: impl FnMut(Result<usize, RxDrop>),
) {
    if vlan.is_none() && frame.is_plain() && rx.give_plain(source) {
        return record(Ok(source.len));
    }
    hand_over(source, &frame.offload(source.head), (rx, vlan), scratch, record);
}

/// A frame in its sender's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) memory: &'a GuestMemory,
    /// The virtio header, then the frame.
    pub(crate) chain: &'a Chain,
    /// What it is: it tells where in the chain what follows the head is.
    pub(crate) record: &'a Record,
    /// Its private first bytes.
    pub(crate) head: &'a [u8],
    /// Its length in bytes, without the virtio header; no less than the head's.
    pub(crate) len: usize,
}

impl<'a> Source<'a> {
    /// A part of the frame in the sender's memory.
    fn guest(self, offset: usize, len: usize) -> Payload<'a> {
        Payload::Guest {
            memory: self.memory,
            chain: self.chain,
            offset: self.record.start() + offset,
            len,
        }
    }

    /// Copies the frame from `offset` to its end into private memory.
    fn fetch(self, offset: usize, scratch: &mut Scratch) -> Result<&[u8], RxDrop> {
        let bytes = scratch
            .0
            .get_mut(..self.len.saturating_sub(offset))
            .ok_or(RxDrop::SourceGone)?;
        match self
            .chain
            .read_at(self.memory, (self.record.start() + offset) as u64, bytes)
        {
            Ok(()) => Ok(bytes),
            Err(_) => Err(RxDrop::SourceGone),
        }
    }
}

#[inline(never)]
fn hand_over(
    source: Source<'_>,
    offload: &Offload,
    (rx, vlan): (&mut RxQueue, Option<u16>),
    scratch: &mut Scratch,
    mut record: impl FnMut(Result<usize, RxDrop>),
) {
    if let (Some(checksum), false) = (offload.checksum, offload.suits(rx.accepted())) {
        return match offload.segmentation {
            Some(segmentation) => segments(source, offload, (checksum, segmentation), (rx, vlan), scratch, record),
            None => record(summed(source, checksum, (rx, vlan), scratch)),
        };
    }
    // Without a checksum to complete, a frame suits every receiver.
    let payload = source.guest(source.head.len(), source.len - source.head.len());
    record(
        rx.give_on(vlan, offload.header, source.head, payload)
            .map(|()| source.len),
    );
}

/// One packet, its checksum completed.
fn summed(
    source: Source<'_>,
    checksum: PartialChecksum,
    (rx, vlan): (&mut RxQueue, Option<u16>),
    scratch: &mut Scratch,
) -> Result<usize, RxDrop> {
    let mut copy = [0; HEAD_LEN_MAX];
    let head = copy.get_mut(..source.head.len()).unwrap_or_default();
    head.copy_from_slice(source.head);
    let rest = source.fetch(head.len(), scratch)?;
    // Padding after the IP packet is sent, but not summed.
    let end = checksum.start + checksum.len;
    let summed = rest.get(..end.saturating_sub(head.len())).unwrap_or(rest);
    let in_head = head.len().min(end);
    complete(
        head.get_mut(..in_head).unwrap_or_default(),
        checksum.start,
        checksum.offset,
        summed,
        checksum.protocol,
    );
    rx.give_on(vlan, NetHeader::default(), head, Payload::Private(rest))
        .map(|()| source.len)
}

/// The segments of a large frame; their checksums stay partial if the receiver takes that, and then their payload is
/// copied from guest to guest as ever.
fn segments(
    source: Source<'_>,
    offload: &Offload,
    (checksum, segmentation): (PartialChecksum, Segmentation),
    (rx, vlan): (&mut RxQueue, Option<u16>),
    scratch: &mut Scratch,
    mut record: impl FnMut(Result<usize, RxDrop>),
) {
    let partial = rx.accepted().guest_csum;
    let base = segmentation.headers_len;
    let private = match partial {
        true => &[],
        false => match source.fetch(base, scratch) {
            Ok(bytes) => bytes,
            Err(gone) => return record(Err(gone)),
        },
    };
    for mut segment in Segments::new(source.head, source.len, checksum, segmentation) {
        let len = segment.headers().len() + segment.payload_len;
        let outcome = if partial {
            let header = NetHeader {
                flags: NEEDS_CSUM,
                csum_start: offload.header.csum_start,
                csum_offset: offload.header.csum_offset,
                ..NetHeader::default()
            };
            let payload = source.guest(segment.payload_offset, segment.payload_len);
            rx.give_on(vlan, header, segment.headers(), payload)
        } else {
            let start = segment.payload_offset - base;
            let payload = private.get(start..start + segment.payload_len).unwrap_or_default();
            let PartialChecksum {
                start,
                offset,
                protocol,
                ..
            } = segment.checksum;
            complete(segment.headers_mut(), start, offset, payload, protocol);
            rx.give_on(vlan, NetHeader::default(), segment.headers(), Payload::Private(payload))
        };
        let gone = outcome == Err(RxDrop::SourceGone);
        record(outcome.map(|()| len));
        if gone {
            return;
        }
    }
}
