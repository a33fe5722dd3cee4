//! From a checked frame to a receiver: as it is where the receiver can take it, else with its checksum completed or cut
//! into segments.
//!
//! Where the payload has to be summed, it is copied to private memory first: the sum is of the bytes that are sent,
//! whatever the sender does to its memory in the meantime.

use crate::{
    FRAME_LEN_MAX, HEAD_LEN_MAX,
    checksum::complete,
    error::RxDrop,
    header::{HEADER_LEN, NEEDS_CSUM, NetHeader},
    offload::{PartialChecksum, Segmentation},
    rx::{Payload, RxQueue},
    segment::Segments,
    tx::{Frame, TxQueue},
};

/// Private memory for one payload, taken once.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; FRAME_LEN_MAX].into())
    }
}

/// Gives the frame that `tx` holds to `rx`. `record` hears of each packet that the receiver got (its length in bytes,
/// without the virtio header) or did not get: one, or one for each segment.
pub fn deliver(
    tx: &TxQueue,
    frame: &Frame,
    rx: &mut RxQueue,
    scratch: &mut Scratch,
    mut record: impl FnMut(Result<usize, RxDrop>),
) {
    let head = tx.head();
    if let (Some(checksum), false) = (frame.offload.checksum, frame.offload.suits(rx.accepted())) {
        return match frame.offload.segmentation {
            Some(segmentation) => deliver_segments(tx, frame, (checksum, segmentation), rx, scratch, record),
            None => record(deliver_summed(tx, frame, checksum, rx, scratch)),
        };
    }
    // Without a checksum to complete, a frame suits every receiver.
    let payload = guest(tx, head.len(), frame.len - head.len());
    record(rx.give(frame.offload.header, head, payload).map(|()| frame.len));
}

/// A part of the frame in the sender's memory.
fn guest(tx: &TxQueue, offset: usize, len: usize) -> Payload<'_> {
    Payload::Guest {
        memory: tx.memory(),
        chain: tx.chain(),
        offset: HEADER_LEN + offset,
        len,
    }
}

/// Copies the frame from `offset` to its end into private memory.
fn fetch<'a>(tx: &TxQueue, frame: &Frame, offset: usize, scratch: &'a mut Scratch) -> Result<&'a [u8], RxDrop> {
    let bytes = scratch
        .0
        .get_mut(..frame.len.saturating_sub(offset))
        .ok_or(RxDrop::SourceGone)?;
    match tx.chain().read_at(tx.memory(), (HEADER_LEN + offset) as u64, bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(RxDrop::SourceGone),
    }
}

/// One packet, its checksum completed.
fn deliver_summed(
    tx: &TxQueue,
    frame: &Frame,
    checksum: PartialChecksum,
    rx: &mut RxQueue,
    scratch: &mut Scratch,
) -> Result<usize, RxDrop> {
    let mut copy = [0; HEAD_LEN_MAX];
    let head = copy.get_mut(..tx.head().len()).unwrap_or_default();
    head.copy_from_slice(tx.head());
    let rest = fetch(tx, frame, head.len(), scratch)?;
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
    rx.give(NetHeader::default(), head, Payload::Private(rest))
        .map(|()| frame.len)
}

/// The segments of a large frame; their checksums stay partial if the receiver takes that, and then their payload is
/// copied from guest to guest as ever.
fn deliver_segments(
    tx: &TxQueue,
    frame: &Frame,
    (checksum, segmentation): (PartialChecksum, Segmentation),
    rx: &mut RxQueue,
    scratch: &mut Scratch,
    mut record: impl FnMut(Result<usize, RxDrop>),
) {
    let partial = rx.accepted().guest_csum;
    let base = segmentation.headers_len;
    let private = match partial {
        true => &[],
        false => match fetch(tx, frame, base, scratch) {
            Ok(bytes) => bytes,
            Err(gone) => return record(Err(gone)),
        },
    };
    for mut segment in Segments::new(tx.head(), frame.len, checksum, segmentation) {
        let len = segment.headers().len() + segment.payload_len;
        let outcome = if partial {
            let header = NetHeader {
                flags: NEEDS_CSUM,
                csum_start: frame.offload.header.csum_start,
                csum_offset: frame.offload.header.csum_offset,
                ..NetHeader::default()
            };
            let payload = guest(tx, segment.payload_offset, segment.payload_len);
            rx.give(header, segment.headers(), payload)
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
            rx.give(NetHeader::default(), segment.headers(), Payload::Private(payload))
        };
        let gone = outcome == Err(RxDrop::SourceGone);
        record(outcome.map(|()| len));
        if gone {
            return;
        }
    }
}
