//! IEEE 802.1Q tags: four bytes between the MACs and the EtherType. One is taken off a frame before it is parsed, so that all
//! that comes after it sees the frame within; one is put in where a receiver is reached through a trunk.
//!
//! Of a tag only the VLAN id means anything here. Its priority and drop eligibility (PCP, DEI) are not looked at, and those of
//! tags that are put in are zero: nothing in the switch ranks frames, and a guest's word on its rank is not passed on.

use crate::{
    HEAD_LEN_MAX,
    header::{GSO_NONE, NEEDS_CSUM, NetHeader},
    packet::ETHERNET_HEADER_LEN,
};

/// EtherType of an 802.1Q tag (IEEE 802.1Q-2022 table 9-1: the customer tag).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Length of a tag, in bytes.
pub const VLAN_TAG_LEN: usize = 4;
/// The bits of a tag's control information that are the VLAN id (IEEE 802.1Q-2022 §9.6).
const VLAN_ID_MASK: u16 = 0x0fff;
/// Where a tag is: behind the two MACs.
const TAG_OFFSET: usize = 12;
/// Bytes of a frame up to the control information.
const TPID_END: usize = TAG_OFFSET + 2;

/// Private bytes with room for a tag.
pub(crate) type TaggedHead = [u8; HEAD_LEN_MAX + VLAN_TAG_LEN];

/// Has a frame that begins with these bytes an 802.1Q tag?
#[inline]
pub(crate) fn is_tagged(head: &[u8]) -> bool {
    head.get(TAG_OFFSET..TPID_END) == Some(&ETHERTYPE_VLAN.to_be_bytes())
}

/// Takes the tag off a frame that has one: its VLAN id. What follows the tag moves up, so that the last four bytes of `head`
/// mean nothing afterwards. None if the frame ends before an EtherType follows the tag; then nothing was done.
pub(crate) fn strip(head: &mut [u8]) -> Option<u16> {
    if head.len() < ETHERNET_HEADER_LEN + VLAN_TAG_LEN {
        return None;
    }
    let control = head.get(TPID_END..)?.first_chunk().copied()?;
    head.copy_within(TAG_OFFSET + VLAN_TAG_LEN.., TAG_OFFSET);
    Some(u16::from_be_bytes(control) & VLAN_ID_MASK)
}

/// A frame that has a tag, without it, and the tag's VLAN id; none of other frames.
pub fn split(frame: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut inner = frame.to_vec();
    let vlan = strip(&mut inner).filter(|_| is_tagged(frame))?;
    inner.truncate(frame.len() - VLAN_TAG_LEN);
    Some((vlan, inner))
}

/// Puts a tag in: a frame's first bytes as they are with it. At most [`HEAD_LEN_MAX`] of them are taken.
pub(crate) fn insert<'a>(head: &[u8], vlan: u16, tagged: &'a mut TaggedHead) -> &'a [u8] {
    let head = head.get(..HEAD_LEN_MAX).unwrap_or(head);
    let (macs, rest) = head.split_at(head.len().min(TAG_OFFSET));
    let [t0, t1] = ETHERTYPE_VLAN.to_be_bytes();
    let [c0, c1] = (vlan & VLAN_ID_MASK).to_be_bytes();
    let tag = [t0, t1, c0, c1];
    let bytes = macs.iter().chain(&tag).chain(rest);
    let mut len = 0;
    for (to, from) in tagged.iter_mut().zip(bytes) {
        *to = *from;
        len += 1;
    }
    tagged.get(..len).unwrap_or_default()
}

/// What a sender asks for, whose offsets count from the first byte of its frame with the tag, for the frame without it. An
/// offset that lies before the tag's end fits no frame, and is left to be refused.
pub(crate) fn without_tag(asked: NetHeader) -> NetHeader {
    NetHeader {
        csum_start: asked.csum_start.saturating_sub(TAG_LEN),
        hdr_len: asked.hdr_len.saturating_sub(TAG_LEN),
        ..asked
    }
}

/// What a receiver is told of a frame, for the frame with a tag.
pub(crate) fn with_tag(told: NetHeader) -> NetHeader {
    let start = if told.flags & NEEDS_CSUM != 0 { TAG_LEN } else { 0 };
    let headers = if told.gso_type == GSO_NONE { 0 } else { TAG_LEN };
    NetHeader {
        csum_start: told.csum_start.saturating_add(start),
        hdr_len: told.hdr_len.saturating_add(headers),
        ..told
    }
}

/// [`VLAN_TAG_LEN`], as headers have it.
const TAG_LEN: u16 = 4;
const _: () = assert!(TAG_LEN as usize == VLAN_TAG_LEN);

#[cfg(test)]
mod tests {
    use etherparse::{Ethernet2Header, SingleVlanHeader, SlicedPacket, VlanId, VlanSlice};
    use proptest::prelude::*;

    use super::*;

    /// A frame of `len` bytes behind its EtherType, with and without a tag.
    fn frames(vlan: u16, priority: u8, eligible: bool, len: usize) -> (Vec<u8>, Vec<u8>) {
        let ethernet = |ether_type| Ethernet2Header {
            source: [2, 0, 0, 0, 0, 1],
            destination: [2, 0, 0, 0, 0, 2],
            ether_type,
        };
        let inner = etherparse::EtherType(0x88b5);
        let tag = SingleVlanHeader {
            pcp: priority.try_into().expect("three bits"),
            drop_eligible_indicator: eligible,
            vlan_id: VlanId::try_new(vlan).expect("twelve bits"),
            ether_type: inner,
        };
        let body: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).expect("small")).collect();
        let plain = [&ethernet(inner).to_bytes()[..], &body].concat();
        let outer = ethernet(etherparse::EtherType(ETHERTYPE_VLAN)).to_bytes();
        (plain, [&outer[..], &tag.to_bytes(), &body].concat())
    }

    proptest! {
        #[test]
        fn what_etherparse_tags_is_found_without_its_tag(
            vlan in 0..=0xfffu16, priority in 0..8u8, eligible: bool, len in 0..200usize,
        ) {
            let (plain, mut tagged) = frames(vlan, priority, eligible, len);
            prop_assert!(is_tagged(&tagged) && !is_tagged(&plain));
            prop_assert_eq!(strip(&mut tagged), Some(vlan));
            tagged.truncate(tagged.len() - VLAN_TAG_LEN);
            prop_assert_eq!(tagged, plain);
        }

        #[test]
        fn etherparse_finds_the_tag_that_is_put_in(vlan in 1..=4094u16, len in 0..HEAD_LEN_MAX - ETHERNET_HEADER_LEN) {
            let (plain, expected) = frames(vlan, 0, false, len);
            let mut room = [0; HEAD_LEN_MAX + VLAN_TAG_LEN];
            let tagged = insert(&plain, vlan, &mut room);
            prop_assert_eq!(tagged, &expected);
            let sliced = SlicedPacket::from_ethernet(tagged).expect("a frame");
            match sliced.vlan() {
                Some(VlanSlice::SingleVlan(tag)) => {
                    prop_assert_eq!(tag.vlan_identifier().value(), vlan);
                    prop_assert_eq!((tag.priority_code_point().value(), tag.drop_eligible_indicator()), (0, false));
                }
                other => prop_assert!(false, "{:?}", other),
            }
            let mut back = tagged.to_vec();
            prop_assert_eq!(strip(&mut back), Some(vlan));
            prop_assert_eq!(back.get(..plain.len()), Some(&plain[..]));
        }

        #[test]
        fn headers_move_by_the_tag_and_back(start: u16, headers: u16, flags in 0..2u8, gso in 0..2u8) {
            let told = NetHeader { flags, gso_type: gso, csum_start: start / 2, hdr_len: headers / 2, ..NetHeader::default() };
            let moved = with_tag(told);
            prop_assert_eq!(moved.csum_start - told.csum_start, if flags == NEEDS_CSUM { 4 } else { 0 });
            prop_assert_eq!(moved.hdr_len - told.hdr_len, if gso == GSO_NONE { 0 } else { 4 });
            if flags == NEEDS_CSUM && gso != GSO_NONE {
                prop_assert_eq!(without_tag(moved), told);
            }
        }
    }

    #[test]
    fn a_frame_that_ends_in_its_tag_is_left_alone() {
        let (_, tagged) = frames(7, 0, false, 0);
        for len in 0..tagged.len() {
            let mut short = tagged[..len].to_vec();
            assert_eq!((strip(&mut short), &short[..]), (None, &tagged[..len]));
        }
    }
}
