//! Segments against etherparse, which knows nothing of how they were made.

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TcpHeader, TransportHeader};
use proptest::prelude::*;

use super::*;
use crate::{
    MTU_DEFAULT,
    checksum::complete,
    features::{Accepted, FEATURES},
    frame_len_max,
    header::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader},
    offload, packet,
};

/// A large TCP segment as a guest sends it: its checksum is wrong, as that is left to the device.
fn large(v6: bool, tcp: TcpHeader, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = if v6 {
        ethernet.ipv6([1; 16], [9; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut frame = Vec::new();
    let checksum_at = if v6 { 54 } else { 34 } + 16;
    ip.tcp_header(tcp).write(&mut frame, payload).expect("it fits IP");
    frame[checksum_at..checksum_at + 2].fill(0xee);
    frame
}

/// The same of UDP.
fn large_udp(v6: bool, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = if v6 {
        ethernet.ipv6([1; 16], [9; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let mut frame = Vec::new();
    let checksum_at = if v6 { 54 } else { 34 } + 6;
    ip.udp(50_000, 443).write(&mut frame, payload).expect("it fits IP");
    frame[checksum_at..checksum_at + 2].fill(0xee);
    frame
}

/// All segments of TCP, checksums completed.
fn segments(frame: &[u8], v6: bool, mss: u16) -> Vec<Vec<u8>> {
    cut(
        frame,
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type: if v6 { GSO_TCPV6 } else { GSO_TCPV4 },
            gso_size: mss,
            csum_start: if v6 { 54 } else { 34 },
            csum_offset: 16,
            ..NetHeader::default()
        },
    )
}

/// All datagrams of UDP, checksums completed.
fn datagrams(frame: &[u8], v6: bool, each_len: u16) -> Vec<Vec<u8>> {
    cut(
        frame,
        NetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            gso_size: each_len,
            csum_start: if v6 { 54 } else { 34 },
            csum_offset: 6,
            ..NetHeader::default()
        },
    )
}

fn cut(frame: &[u8], asked: NetHeader) -> Vec<Vec<u8>> {
    let mut head = frame[..frame.len().min(HEAD_LEN_MAX)].to_vec();
    let packet = packet::parse(&head, frame.len()).expect("it is in order");
    let sender = offload::Sender {
        accepted: Accepted::from_bits(FEATURES).expect("VERSION_1 is offered"),
        frame_len_max: frame_len_max(MTU_DEFAULT),
    };
    let offload = offload::check(&asked, &packet, &mut head, frame.len(), sender).expect("it is honest");
    let (checksum, segmentation) = (offload.checksum.expect("asked"), offload.segmentation.expect("asked"));
    Segments::new(&head, frame.len(), checksum, segmentation)
        .map(|mut segment| {
            let payload = &frame[segment.payload_offset..segment.payload_offset + segment.payload_len];
            let PartialChecksum {
                start,
                offset,
                protocol,
                len,
                ..
            } = segment.checksum;
            assert_eq!(start + len, segment.headers().len() + payload.len());
            complete(segment.headers_mut(), start, offset, payload, protocol);
            [segment.headers(), payload].concat()
        })
        .collect()
}

/// The TCP header and payload, after etherparse found all checksums and lengths right; with the IPv4 identification.
fn verified(packet: &[u8]) -> (TcpHeader, Vec<u8>, Option<u16>) {
    let headers = PacketHeaders::from_ethernet_slice(packet).expect("a well-formed packet");
    let payload = headers.payload.slice();
    let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
        panic!("TCP was cut")
    };
    let identification = match headers.net.expect("IP was cut") {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len) + 14, packet.len());
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, payload).expect("short"));
            Some(ip.identification)
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(usize::from(ip.payload_length) + 54, packet.len());
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, payload).expect("short"));
            None
        }
        other => panic!("IP was cut, not {other:?}"),
    };
    (tcp, payload.to_vec(), identification)
}

fn tcp_header(sequence: u32) -> TcpHeader {
    let mut tcp = TcpHeader::new(40_000, 80, sequence, 500);
    (tcp.ack, tcp.acknowledgment_number, tcp.psh, tcp.fin, tcp.cwr) = (true, 77, true, true, true);
    tcp.set_options_raw(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .expect("a timestamp is 12 bytes");
    tcp
}

#[test]
fn flags_go_where_they_belong_and_sequence_numbers_wrap() {
    let payload: Vec<u8> = (0..3500u32).map(|n| n.to_le_bytes()[0]).collect();
    let sequence = u32::MAX - 1000;
    let packets: Vec<_> = segments(&large(false, tcp_header(sequence), &payload), false, 1448)
        .iter()
        .map(|p| verified(p))
        .collect();
    let lens: Vec<_> = packets.iter().map(|(_, payload, _)| payload.len()).collect();
    assert_eq!(lens, [1448, 1448, 604]);
    let flags: Vec<_> = packets
        .iter()
        .map(|(tcp, ..)| (tcp.cwr, tcp.psh, tcp.fin, tcp.ack))
        .collect();
    assert_eq!(
        flags,
        [
            (true, false, false, true),
            (false, false, false, true),
            (false, true, true, true)
        ]
    );
    let sequences: Vec<_> = packets.iter().map(|(tcp, ..)| tcp.sequence_number).collect();
    assert_eq!(
        sequences,
        [sequence, sequence.wrapping_add(1448), sequence.wrapping_add(2896)]
    );
    let first = packets[0].2.expect("IPv4");
    assert_eq!(
        packets
            .iter()
            .map(|p| p.2.expect("IPv4").wrapping_sub(first))
            .collect::<Vec<_>>(),
        [0, 1, 2]
    );
}

/// The payload, after etherparse found UDP's and IP's lengths and checksums right; with the IPv4 identification.
fn verified_udp(packet: &[u8]) -> (Vec<u8>, Option<u16>) {
    let headers = PacketHeaders::from_ethernet_slice(packet).expect("a well-formed packet");
    let payload = headers.payload.slice();
    let Some(TransportHeader::Udp(udp)) = headers.transport else {
        panic!("UDP was cut")
    };
    assert_eq!((udp.source_port, udp.destination_port), (50_000, 443));
    assert_eq!(usize::from(udp.length), 8 + payload.len());
    let identification = match headers.net.expect("IP was cut") {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len) + 14, packet.len());
            assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, payload).expect("short"));
            Some(ip.identification)
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!(usize::from(ip.payload_length) + 54, packet.len());
            assert_eq!(udp.checksum, udp.calc_checksum_ipv6(&ip, payload).expect("short"));
            None
        }
        other => panic!("IP was cut, not {other:?}"),
    };
    (payload.to_vec(), identification)
}

proptest! {
    #[test]
    fn datagrams_are_sound_packets_that_hold_the_payload_in_order(
        v6: bool, each_len in 32u16..=1452, len in 1usize..20_000, seed: u8,
    ) {
        let len = len + usize::from(each_len);
        let payload: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1] ^ seed).collect();
        let packets: Vec<_> =
            datagrams(&large_udp(v6, &payload), v6, each_len).iter().map(|p| verified_udp(p)).collect();
        prop_assert_eq!(packets.len(), len.div_ceil(usize::from(each_len)));
        let first = packets[0].1;
        for (n, (payload, identification)) in (0u16..).zip(&packets) {
            prop_assert_eq!(*identification, first.map(|id| id.wrapping_add(n)));
            prop_assert!(payload.len() == usize::from(each_len) || usize::from(n) + 1 == packets.len());
        }
        let joined: Vec<u8> = packets.into_iter().flat_map(|(payload, _)| payload).collect();
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn segments_are_sound_packets_that_hold_the_payload_in_order(
        v6: bool, sequence: u32, mss in 16u16..=1428, len in 1usize..5000, seed: u8,
    ) {
        // Above one segment; with IPv6's header and a timestamp, 1428 bytes are the MTU's most.
        let len = len + usize::from(mss);
        let payload: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1] ^ seed).collect();
        let packets: Vec<_> = segments(&large(v6, tcp_header(sequence), &payload), v6, mss).iter().map(|p| verified(p)).collect();
        prop_assert_eq!(packets.len(), len.div_ceil(usize::from(mss)));
        let mut expected = sequence;
        let mut joined = Vec::new();
        for (tcp, payload, _) in &packets {
            prop_assert_eq!(tcp.sequence_number, expected);
            prop_assert_eq!(&tcp.options, &tcp_header(0).options);
            expected = expected.wrapping_add(u32::try_from(payload.len()).expect("short"));
            joined.extend_from_slice(payload);
        }
        prop_assert_eq!(joined, payload);
    }
}
