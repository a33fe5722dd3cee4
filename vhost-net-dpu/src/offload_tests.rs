use etherparse::PacketBuilder;
use outboard_controls::Off;
use proptest::prelude::*;

use super::*;
use crate::{HEAD_LEN_MAX, MTU_DEFAULT, features::FEATURES, frame_len_max, header::GSO_TCPV4, packet};

fn accepted() -> Accepted {
    Accepted::from_bits(FEATURES).expect("VERSION_1 is offered")
}

fn ask(asked: NetHeader, frame: &[u8], accepted: Accepted) -> Result<(Offload, Vec<u8>), OffloadError> {
    let sender = Sender {
        accepted,
        frame_len_max: frame_len_max(MTU_DEFAULT),
    };
    let mut head = frame[..frame.len().min(HEAD_LEN_MAX)].to_vec();
    let packet = packet::parse(&head, frame.len()).expect("it is in order");
    check(&asked, &packet, &mut head, frame.len(), sender).map(|offload| (offload, head))
}

fn tcp4(payload_len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder
        .tcp(1, 2, 3, 4)
        .write(&mut frame, &vec![7; payload_len])
        .expect("it fits");
    frame
}

fn udp4(payload_len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
    builder
        .udp(1, 2)
        .write(&mut frame, &vec![7; payload_len])
        .expect("it fits");
    frame
}

const CHECKSUM: NetHeader = NetHeader {
    flags: NEEDS_CSUM,
    gso_type: GSO_NONE,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34,
    csum_offset: 16,
    num_buffers: 0,
};

const TSO: NetHeader = NetHeader {
    gso_type: GSO_TCPV4,
    gso_size: 1000,
    hdr_len: 54,
    ..CHECKSUM
};

const USO: NetHeader = NetHeader {
    gso_type: GSO_UDP_L4,
    gso_size: 1000,
    hdr_len: 42,
    csum_offset: 6,
    ..CHECKSUM
};

#[test]
fn the_receivers_header_is_ours() {
    let frame = tcp4(5000);
    // Hints, forged or not, and unknown flags do not come through.
    let asked = NetHeader {
        flags: NEEDS_CSUM | 2 | 0x80,
        hdr_len: 5,
        num_buffers: 999,
        ..TSO
    };
    let (offload, head) = ask(asked, &frame, accepted()).expect("it is honest in what counts");
    assert_eq!(
        offload.header,
        NetHeader {
            hdr_len: 54,
            num_buffers: 0,
            flags: NEEDS_CSUM,
            ..TSO
        }
    );
    let addresses = IpAddresses::V4([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    assert_eq!(
        offload.segmentation,
        Some(Segmentation {
            protocol: IP_PROTOCOL_TCP,
            cwr: false,
            headers_len: 54,
            payload_len: 1000,
            addresses
        })
    );
    let sum = pseudo_header(addresses, 6, 5020);
    assert_eq!(
        head[50..52],
        sum.to_be_bytes(),
        "the partial sum is ours, not the sender's"
    );
}

#[test]
fn a_frame_without_offloads_has_an_empty_header() {
    let asked = NetHeader {
        flags: 2,
        csum_start: 3,
        csum_offset: 9,
        hdr_len: 77,
        gso_size: 5,
        ..NetHeader::default()
    };
    let (offload, head) = ask(asked, &tcp4(10), accepted()).expect("DATA_VALID is ignored");
    assert_eq!(offload, Offload::default());
    assert_eq!(head, tcp4(10));
}

#[test]
fn one_segments_worth_is_no_segmentation() {
    let (offload, _) = ask(TSO, &tcp4(1000), accepted()).expect("the type may be left set");
    assert_eq!(offload.header, CHECKSUM);
    assert_eq!(offload.segmentation, None);
}

#[test]
fn what_the_frame_does_not_bear_out_is_refused() {
    use OffloadError as E;
    let (tcp, udp) = (tcp4(3000), udp4(100));
    let cases = [
        (
            "start in the addresses",
            NetHeader { csum_start: 26, ..TSO },
            &tcp,
            E::ChecksumPlace,
        ),
        (
            "start past the end",
            NetHeader {
                csum_start: 60_000,
                ..TSO
            },
            &tcp,
            E::ChecksumPlace,
        ),
        (
            "offset past the end",
            NetHeader {
                csum_offset: u16::MAX,
                ..TSO
            },
            &tcp,
            E::ChecksumPlace,
        ),
        (
            "UDP's offset in TCP",
            NetHeader { csum_offset: 6, ..TSO },
            &tcp,
            E::ChecksumPlace,
        ),
        ("TCP's offset in UDP", CHECKSUM, &udp, E::ChecksumPlace),
        (
            "segmenting UDP",
            NetHeader { csum_offset: 6, ..TSO },
            &udp,
            E::SegmentationType,
        ),
        (
            "IPv6 type on IPv4",
            NetHeader {
                gso_type: GSO_TCPV6,
                ..TSO
            },
            &tcp,
            E::SegmentationType,
        ),
        (
            "UDP's type on TCP",
            NetHeader {
                gso_type: GSO_UDP_L4,
                ..TSO
            },
            &tcp,
            E::SegmentationType,
        ),
        (
            "ECN on UDP",
            NetHeader {
                gso_type: GSO_UDP_L4 | GSO_ECN,
                csum_offset: 6,
                ..TSO
            },
            &udp,
            E::SegmentationType,
        ),
        (
            "ECN alone",
            NetHeader {
                gso_type: GSO_ECN,
                ..TSO
            },
            &tcp,
            E::SegmentationType,
        ),
        ("UFO", NetHeader { gso_type: 3, ..TSO }, &tcp, E::SegmentationType),
        (
            "segmentation without checksum",
            NetHeader { flags: 0, ..TSO },
            &tcp,
            E::SegmentationType,
        ),
        (
            "segments of 0",
            NetHeader { gso_size: 0, ..TSO },
            &tcp,
            E::SegmentationSize,
        ),
        (
            "segments of 65535",
            NetHeader {
                gso_size: u16::MAX,
                ..TSO
            },
            &tcp,
            E::SegmentationSize,
        ),
        (
            "segments just beyond the MTU",
            NetHeader { gso_size: 1461, ..TSO },
            &tcp,
            E::SegmentationSize,
        ),
        (
            "headers longer than the frame",
            NetHeader { hdr_len: 3055, ..TSO },
            &tcp,
            E::SegmentationSize,
        ),
    ];
    for (what, asked, frame, error) in cases {
        assert_eq!(
            ask(asked, frame, accepted()).map(|(offload, _)| offload),
            Err(error),
            "{what}"
        );
    }
    assert!(
        ask(NetHeader { gso_size: 1460, ..TSO }, &tcp, accepted()).is_ok(),
        "just at the MTU"
    );
    assert!(
        ask(
            NetHeader {
                csum_offset: 6,
                ..CHECKSUM
            },
            &udp,
            accepted()
        )
        .is_ok()
    );
}

#[test]
fn malformed_tcp_and_padding_are_not_cut() {
    for data_offset in [0x40, 0xf0] {
        let mut frame = tcp4(if data_offset == 0xf0 { 30 } else { 3000 });
        frame[46] = data_offset;
        assert_eq!(ask(TSO, &frame, accepted()), Err(OffloadError::SegmentationSize));
    }
    let mut padded = tcp4(3000);
    padded.push(0);
    assert_eq!(ask(TSO, &padded, accepted()), Err(OffloadError::SegmentationSize));
}

#[test]
fn protocols_without_a_sum_to_complete_are_refused() {
    let mut sctp = tcp4(100);
    sctp[23] = 132;
    assert_eq!(ask(CHECKSUM, &sctp, accepted()), Err(OffloadError::NoChecksumField));
    let mut fragment = tcp4(100);
    fragment[20] = 0x20;
    assert_eq!(ask(CHECKSUM, &fragment, accepted()), Err(OffloadError::NoChecksumField));
    let mut short_udp = udp4(100);
    short_udp[39] = 20;
    let asked = NetHeader {
        csum_offset: 6,
        ..CHECKSUM
    };
    assert_eq!(ask(asked, &short_udp, accepted()), Err(OffloadError::NoChecksumField));
    let arp = [&[4; 6][..], &[2; 6], &[8, 6], &[0; 28]].concat();
    assert_eq!(ask(CHECKSUM, &arp, accepted()), Err(OffloadError::NoChecksumField));
}

#[test]
fn offloads_that_were_not_negotiated_are_refused() {
    let frame = tcp4(3000);
    let no_tso = Accepted {
        host_tso4: false,
        ..accepted()
    };
    assert_eq!(ask(TSO, &frame, no_tso), Err(OffloadError::NotNegotiated));
    assert!(ask(CHECKSUM, &tcp4(100), no_tso).is_ok());
    let ecn = NetHeader {
        gso_type: GSO_TCPV4 | GSO_ECN,
        ..TSO
    };
    let no_ecn = Accepted {
        host_ecn: false,
        ..accepted()
    };
    assert_eq!(ask(ecn, &frame, no_ecn), Err(OffloadError::NotNegotiated));
    assert!(ask(ecn, &frame, accepted()).is_ok());
    let no_uso = Accepted {
        host_uso: false,
        ..accepted()
    };
    assert_eq!(ask(USO, &udp4(3000), no_uso), Err(OffloadError::NotNegotiated));
    assert!(ask(USO, &udp4(3000), accepted()).is_ok());
    let no_checksum = Accepted {
        host_csum: false,
        ..accepted()
    };
    assert_eq!(ask(CHECKSUM, &tcp4(100), no_checksum), Err(OffloadError::NotNegotiated));
}

/// The attack that the check stops: a checksum that a receiver stores over the source address.
#[test]
fn without_the_check_a_forged_checksum_place_reaches_the_receiver() {
    let forged = NetHeader {
        csum_start: 14,
        csum_offset: 14,
        ..CHECKSUM
    };
    assert_eq!(ask(forged, &tcp4(100), accepted()), Err(OffloadError::ChecksumPlace));
    {
        let _off = Off::here(Check::OffloadFromParse);
        let (offload, _) = ask(forged, &tcp4(100), accepted()).expect("the check is off");
        assert_eq!(offload.header, forged);
    }
    assert!(ask(CHECKSUM, &tcp4(100), accepted()).is_ok());
}

proptest! {
    /// Whatever a sender asks for, a receiver is told only of the transport header's own checksum field.
    #[test]
    fn any_header_gives_our_place_or_none(bytes: [u8; 12], payload_len in 0usize..3000, udp: bool, place: bool) {
        let mut asked = NetHeader::parse(&bytes);
        if place {
            (asked.csum_start, asked.csum_offset) = (34, if udp { 6 } else { 16 });
        }
        let frame = if udp { udp4(payload_len) } else { tcp4(payload_len) };
        if let Ok((offload, _)) = ask(asked, &frame, accepted()) {
            match offload.checksum {
                None => prop_assert_eq!(offload.header, NetHeader::default()),
                Some(_) => {
                    let want = (NEEDS_CSUM, 34, if udp { 6 } else { 16 }, 0);
                    let got = offload.header;
                    prop_assert_eq!((got.flags, got.csum_start, got.csum_offset, got.num_buffers), want);
                }
            }
            prop_assert_eq!(offload.segmentation.is_some(), offload.header.gso_type != GSO_NONE);
        }
    }
}

#[test]
fn one_frame_is_not_cut_into_more_packets_than_a_limit() {
    let most = NetHeader { gso_size: 10, ..TSO };
    let (offload, _) = ask(most, &tcp4(10 * SEGMENT_COUNT_MAX), accepted()).expect("as many as may be");
    assert_eq!(offload.packet_count(54 + 10 * SEGMENT_COUNT_MAX), SEGMENT_COUNT_MAX);
    let refused = ask(most, &tcp4(10 * SEGMENT_COUNT_MAX + 1), accepted());
    assert_eq!(refused.map(|(offload, _)| offload), Err(OffloadError::SegmentationSize));
    let (offload, _) = ask(TSO, &tcp4(1000), accepted()).expect("one");
    assert_eq!(offload.packet_count(1054), 1);
}

#[test]
fn cwr_is_found_in_the_frame_and_not_believed() {
    let mut frame = tcp4(3000);
    let ecn = NetHeader {
        gso_type: GSO_TCPV4 | GSO_ECN,
        ..TSO
    };
    let without = Accepted {
        guest_ecn: false,
        ..accepted()
    };
    for asked in [TSO, ecn] {
        let (offload, _) = ask(asked, &frame, accepted()).expect("honest enough");
        assert_eq!(offload.header.gso_type, GSO_TCPV4);
        assert!(offload.suits(without));
    }
    frame[47] |= 0x80;
    for asked in [TSO, ecn] {
        let (offload, _) = ask(asked, &frame, accepted()).expect("honest enough");
        assert_eq!(offload.header.gso_type, GSO_TCPV4 | GSO_ECN);
        assert!(offload.suits(accepted()) && !offload.suits(without));
    }
}

#[test]
fn udp_is_segmented_for_receivers_that_say_so() {
    let (offload, _) = ask(USO, &udp4(2500), accepted()).expect("honest");
    assert_eq!(offload.header, USO);
    assert_eq!(offload.packet_count(2542), 3);
    assert!(offload.suits(accepted()));
    assert!(!offload.suits(Accepted {
        guest_uso4: false,
        ..accepted()
    }));
    assert!(offload.suits(Accepted {
        guest_uso6: false,
        guest_tso4: false,
        guest_ecn: false,
        ..accepted()
    }));
}

#[test]
fn a_datagram_for_a_group_is_cut_into_fewer() {
    let asked = NetHeader { gso_size: 10, ..USO };
    let most = 10 * GROUP_SEGMENT_COUNT_MAX;
    assert!(ask(asked, &udp4(most + 1), accepted()).is_ok());
    for (len, want) in [(most, Ok(())), (most + 1, Err(OffloadError::SegmentationSize))] {
        let mut frame = udp4(len);
        frame[0] |= 1;
        assert_eq!(ask(asked, &frame, accepted()).map(|_| ()), want);
    }
}

#[test]
fn tcp_for_a_group_is_not_segmented() {
    let mut frame = tcp4(3000);
    assert!(ask(TSO, &frame, accepted()).is_ok());
    frame[0] |= 1;
    let refused = ask(TSO, &frame, accepted());
    assert_eq!(refused.map(|(offload, _)| offload), Err(OffloadError::SegmentationType));
    assert!(ask(CHECKSUM, &frame, accepted()).is_ok());
}
