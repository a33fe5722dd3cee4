use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::packet::IP_PROTOCOL_TCP;

/// RFC 1071 §3, the numerical example.
#[test]
fn the_rfc_example_sums_to_what_the_rfc_says() {
    let mut sum = Sum::default();
    sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
    assert_eq!(sum.folded(), 0xddf2);
    assert_eq!(sum.checksum(), 0x220d);
}

/// An IPv4 header seen on the wire.
#[test]
fn a_known_ipv4_header_checks() {
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
        0x00, 0xc7,
    ];
    assert_eq!(ipv4_header(&header), 0);
    let mut blank = header;
    blank[10..12].fill(0);
    assert_eq!(ipv4_header(&blank), 0xb861);
}

#[test]
fn a_udp_sum_of_zero_is_sent_as_ones() {
    let mut sum = Sum::default();
    sum.add(&[0xff, 0xff]);
    assert_eq!(for_field(sum, IP_PROTOCOL_UDP), 0xffff);
    assert_eq!(for_field(sum, IP_PROTOCOL_TCP), 0);
}

/// Puts the pseudo-header's sum in the field and completes it: the frame must be as etherparse made it.
fn recompleted(
    frame: &[u8],
    start: usize,
    offset: usize,
    protocol: u8,
    addresses: IpAddresses,
    split: usize,
) -> Vec<u8> {
    let len = u32::try_from(frame.len() - start).expect("short");
    let mut frame = frame.to_vec();
    frame[start + offset..start + offset + 2].copy_from_slice(&pseudo_header(addresses, protocol, len).to_be_bytes());
    let (head, payload) = frame.split_at_mut(split);
    complete(head, start, offset, payload, protocol);
    frame
}

proptest! {
    #[test]
    fn pieces_of_any_length_sum_like_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..300), cuts in proptest::collection::vec(0usize..300, 0..5)) {
        let mut whole = Sum::default();
        whole.add(&bytes);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let mut pieces = Sum::default();
        for pair in cuts.windows(2) {
            pieces.add(&bytes[pair[0]..pair[1]]);
        }
        prop_assert_eq!(pieces.folded(), whole.folded());
    }

    #[test]
    fn completed_sums_are_those_of_an_independent_implementation(
        payload in proptest::collection::vec(any::<u8>(), 0..2000), source: [u8; 4], destination: [u8; 4], v6: ([u8; 16], [u8; 16]), ports: (u16, u16), seq: u32, in_head in 0usize..40,
    ) {
        let ethernet = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut udp = Vec::new();
        ethernet().ipv4(source, destination, 64).udp(ports.0, ports.1).write(&mut udp, &payload).expect("fits");
        let addresses = IpAddresses::V4(source.into(), destination.into());
        prop_assert_eq!(&recompleted(&udp, 34, 6, IP_PROTOCOL_UDP, addresses, (42 + in_head).min(udp.len())), &udp);
        let mut tcp = Vec::new();
        ethernet().ipv6(v6.0, v6.1, 64).tcp(ports.0, ports.1, seq, 1000).write(&mut tcp, &payload).expect("fits");
        let addresses = IpAddresses::V6(v6.0.into(), v6.1.into());
        prop_assert_eq!(&recompleted(&tcp, 54, 16, IP_PROTOCOL_TCP, addresses, (74 + in_head).min(tcp.len())), &tcp);
    }
}
