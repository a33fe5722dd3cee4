use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::*;
use crate::{
    HEAD_LEN_MAX,
    features::{Accepted, FEATURES},
    offload::{Sender, check},
};

fn built(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame);
    frame
}

fn tcp6() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [9; 16], 60)
        .tcp(5000, 80, 7, 1024)
        .syn()
        .ns();
    built(|frame| builder.write(frame, &[5; 600]).expect("it fits"))
}

fn udp4() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 3, 4, 5, 6, 7], [1, 9, 9, 9, 9, 8])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 2);
    built(|frame| builder.write(frame, b"payload").expect("it fits"))
}

fn echo(v6: bool) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    built(|frame| {
        let written = match v6 {
            true => ethernet
                .ipv6([1; 16], [9; 16], 60)
                .icmpv6_echo_request(77, 1)
                .write(frame, b"?"),
            false => ethernet
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .icmpv4_echo_request(77, 1)
                .write(frame, b"?"),
        };
        written.expect("it fits");
    })
}

fn record(frame: &[u8]) -> Record {
    Record::parse(head(frame), frame.len()).expect("it is in order")
}

fn head(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(HEAD_LEN_MAX)]
}

#[test]
fn a_record_says_what_the_packet_says() {
    let mut fragment = udp4();
    fragment[18..22].copy_from_slice(&[0xab, 0xcd, 0x00, 0x02]);
    let mut first = udp4();
    first.resize(14 + 20 + 16, 0);
    first[16..18].copy_from_slice(&36u16.to_be_bytes());
    first[18..22].copy_from_slice(&[0xab, 0xcd, 0x20, 0x00]);
    let mut arp = udp4();
    arp[12..14].copy_from_slice(&[8, 6]);
    let mut tagged = udp4();
    tagged[12..14].copy_from_slice(&[0x81, 0]);
    for frame in [udp4(), tcp6(), echo(false), echo(true), fragment, first, arp, tagged] {
        let packet = parse(head(&frame), frame.len()).expect("it is in order");
        let mut said = record(&frame).packet(head(&frame));
        if let (NetworkLayer::Ip(said), NetworkLayer::Ip(ip)) = (&mut said.network, packet.network)
            && ip.fragment == Fragment::No
        {
            // Of whole packets it is of no use.
            said.identification = ip.identification;
        }
        assert_eq!(said, packet);
    }
}

#[test]
fn ports_flags_and_messages_are_where_a_filter_looks_for_them() {
    let udp = record(&udp4());
    assert_eq!((udp.source_port, udp.destination_port, udp.tcp_flags), (1, 2, 0));
    assert_eq!(udp.class, Class::Ipv4);
    assert!(
        udp.is_group(),
        "the first bit on the wire is the lowest of the first byte"
    );
    assert_eq!(udp.destination, 0x01_09_09_09_09_08);
    assert_eq!(udp.source_mac(), [2, 3, 4, 5, 6, 7]);

    let frame = tcp6();
    let tcp = record(&frame);
    assert_eq!((tcp.source_port, tcp.destination_port, tcp.tcp_flags), (5000, 80, 2));
    assert_eq!(tcp.class, Class::Ipv6);
    assert_eq!(tcp.transport(head(&frame))[4..8], [0, 0, 0, 7]);
    assert!(!tcp.is_group());

    let v4 = record(&echo(false));
    assert_eq!((v4.source_port, v4.destination_port), (77, 8 << 8));
    let v6 = record(&echo(true));
    assert_eq!((v6.source_port, v6.destination_port), (77, 128 << 8));
    let mut unreachable = echo(false);
    unreachable[34..36].copy_from_slice(&[3, 4]);
    let error = record(&unreachable);
    assert_eq!((error.source_port, error.destination_port), (0, 3 << 8 | 4));
}

#[test]
fn fragments_of_a_datagram_have_its_number_and_only_the_first_has_ports() {
    let mut later = udp4();
    later[18..22].copy_from_slice(&[0xab, 0xcd, 0x00, 0x02]);
    let later = record(&later);
    assert_eq!(
        (later.datagram, later.source_port, later.destination_port),
        (0xabcd, 0, 0)
    );
    let mut frame = tcp6();
    let body = [&[6, 0, 0, 1, 1, 2, 3, 4][..], &frame[54..]].concat();
    frame.truncate(54);
    frame[20] = 44;
    frame[18..20].copy_from_slice(&u16::try_from(body.len() - 4).expect("short").to_be_bytes());
    frame.extend(body);
    frame.truncate(frame.len() - 4);
    let first = record(&frame);
    assert_eq!((first.fragment, first.datagram), (Fragment::First, 0x0102_0304));
    assert_eq!((first.source_port, first.destination_port), (5000, 80));
}

#[test]
fn a_record_gives_back_the_offload_that_was_checked() {
    let sender = Sender {
        accepted: Accepted::from_bits(FEATURES).expect("VERSION_1 is there"),
        frame_len_max: 1514,
    };
    let asked = |gso_type, csum_start, csum_offset, gso_size| NetHeader {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: 74,
        gso_size,
        csum_start,
        csum_offset,
        num_buffers: 0,
    };
    let mut tunnel = udp4();
    tunnel.resize(14 + 20 + 8 + 60, 7);
    tunnel[16..18].copy_from_slice(&88u16.to_be_bytes());
    tunnel[38..40].copy_from_slice(&68u16.to_be_bytes());
    let cases = [
        (udp4(), NetHeader::default(), 1),
        (tcp6(), asked(0, 54, 16, 0), 1),
        (tcp6(), asked(4, 54, 16, 100), 6),
        (tunnel, asked(0, 50, 6, 0), 1),
    ];
    for (mut frame, header, packet_count) in cases {
        let len = frame.len();
        let packet = parse(head(&frame), len).expect("it is in order");
        let inspected = len.min(HEAD_LEN_MAX);
        let offload = check(&header, &packet, &mut frame[..inspected], len, sender).expect("it is in order");
        let mut record = Record::of(&packet, head(&frame), len);
        record.set_offload(&offload);
        assert_eq!(record.offload(head(&frame)), offload);
        assert_eq!(record.packet_count(), packet_count);
        assert_eq!(offload.packet_count(len), packet_count);
    }
}

/// Frames of which many are TCP and UDP, whole and cut short, with a few bytes changed where it matters.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let base = prop_oneof![
        Just(udp4()),
        Just(tcp6()),
        Just(tcp4()),
        Just(echo(false)),
        Just(echo(true))
    ];
    let changes = proptest::collection::vec((0usize..60, any::<u8>()), 0..4);
    (base, changes, 0usize..800, any::<bool>()).prop_map(|(mut frame, changes, len, cut)| {
        for (at, byte) in changes {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if cut {
            frame.resize(len.max(14), 0);
        }
        frame
    })
}

fn tcp4() -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(5000, 80, 7, 1024)
        .ack(9);
    built(|frame| builder.write(frame, &[5; 20]).expect("it fits"))
}

proptest! {
    /// The straight way and the general one, over whatever the record held before.
    #[test]
    fn the_short_way_says_what_the_parser_says(frame in frames(), before in frames()) {
        let want = Record::parse(head(&frame), frame.len());
        let mut record = Record::parse(head(&before), before.len()).unwrap_or_default();
        prop_assert_eq!(record.fill(head(&frame), frame.len()).map(|()| record), want);
    }
}

#[test]
fn most_frames_go_the_short_way() {
    for (frame, short) in [(udp4(), true), (tcp4(), true), (tcp6(), true), (echo(false), false)] {
        let mut record = Record::default();
        assert_eq!(record.fill_plain(head(&frame), frame.len()), short);
        // The packet says that it has more than there is.
        for cut in 0..frame.len() {
            assert!(!Record::default().fill_plain(&frame[..cut], cut), "{cut}");
        }
    }
}

proptest! {
    /// What is said to be of one flow has the same name by the parser's account, and the reverse.
    #[test]
    fn what_continues_a_flow_has_its_name(one in frames(), other in frames()) {
        let (Ok(a), Ok(b)) = (Record::parse(head(&one), one.len()), Record::parse(head(&other), other.len())) else {
            return Ok(());
        };
        let name = |record: &Record, frame: &[u8]| {
            let with_ports = matches!(record.protocol, IP_PROTOCOL_TCP | IP_PROTOCOL_UDP);
            let whole = record.fragment == Fragment::No && !record.routed && with_ports;
            let ports = (record.source_port, record.destination_port);
            record.addresses(head(frame)).filter(|_| whole).map(|addresses| (addresses, record.protocol, ports))
        };
        let same = name(&a, &one).is_some() && name(&a, &one) == name(&b, &other);
        prop_assert_eq!(b.continues(head(&other), &a, head(&one)), same);
        prop_assert_eq!(a.continues(head(&one), &a, head(&one)), name(&a, &one).is_some());
    }
}
