use etherparse::{IpFragOffset, IpNumber, Ipv4Header, PacketBuilder};
use proptest::prelude::*;

use super::*;

fn look(frame: &[u8]) -> Result<Packet, ParseError> {
    parse(&frame[..frame.len().min(HEAD_LEN_MAX)], frame.len())
}

fn ip(frame: &[u8]) -> IpPacket {
    match look(frame).expect("it is in order").network {
        NetworkLayer::Ip(ip) => ip,
        other => panic!("not IP but {other:?}"),
    }
}

fn udp4() -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1, 2);
    builder.write(&mut frame, b"payload").expect("it fits");
    frame
}

/// An IPv6 packet whose body, from the first extension header on, is `body`.
fn v6(next: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(u16::try_from(body.len()).expect("short").to_be_bytes());
    frame.extend([next, 255]);
    frame.extend([1; 16]);
    frame.extend([9; 16]);
    frame.extend(body);
    frame
}

#[test]
fn a_plain_packet_is_found_as_it_was_built() {
    let packet = ip(&udp4());
    assert_eq!(
        packet.addresses,
        IpAddresses::V4([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
    );
    assert_eq!(
        (packet.protocol, packet.transport_offset, packet.transport_len),
        (IP_PROTOCOL_UDP, 34, 15)
    );
    assert_eq!((packet.fragment, packet.hop_limit), (Fragment::No, 64));
    let tagged = [&udp4()[..12], &[0x81, 0, 0, 1], &udp4()[12..]].concat();
    assert_eq!(
        look(&tagged).expect("an EtherType").network,
        NetworkLayer::Other(0x8100)
    );
    assert_eq!(look(&udp4()[..13]), Err(ParseError::Runt(13)));
}

#[test]
fn padding_after_the_packet_is_no_part_of_it() {
    let mut frame = udp4();
    frame.resize(60, 0);
    assert_eq!(ip(&frame).transport_len, 15);
}

#[test]
fn ipv4_that_contradicts_itself_is_refused() {
    let cases: [(usize, &[u8], Flaw); 7] = [
        (14, &[0x65], Flaw::Version),
        (14, &[0x44], Flaw::HeaderLength),
        (14, &[0x4f], Flaw::TotalLength),
        (16, &[0, 19], Flaw::TotalLength),
        (16, &[0, 36], Flaw::TotalLength),
        (16, &[0, 27], Flaw::Truncated),
        (20, &[0x20, 0], Flaw::Fragment),
    ];
    for (at, bytes, flaw) in cases {
        let mut frame = udp4();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(look(&frame), Err(ParseError::Ipv4(flaw)), "{bytes:?} at {at}");
    }
    assert_eq!(look(&udp4()[..33]), Err(ParseError::Ipv4(Flaw::Truncated)));
}

fn ipv4_fragment(offset: u16, more: bool, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(data.len()).expect("short");
    let mut header = Ipv4Header::new(len, 64, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).expect("short");
    header.more_fragments = more;
    header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
    let mut frame = [&[4; 6][..], &[2; 6], &[8, 0]].concat();
    header.write(&mut frame).expect("a vector takes all");
    frame.extend(data);
    frame
}

#[test]
fn fragments_are_told_apart_and_impossible_ones_refused() {
    assert_eq!(ip(&ipv4_fragment(0, true, &[0; 16])).fragment, Fragment::First);
    assert_eq!(ip(&ipv4_fragment(2, true, &[0; 16])).fragment, Fragment::Later);
    assert_eq!(ip(&ipv4_fragment(4, false, &[0; 3])).fragment, Fragment::Later);
    let flaw = Err(ParseError::Ipv4(Flaw::Fragment));
    assert_eq!(look(&ipv4_fragment(0, true, &[0; 15])), flaw, "not a multiple of 8");
    assert_eq!(look(&ipv4_fragment(0, true, &[])), flaw, "no transport header");
    assert_eq!(look(&ipv4_fragment(0x1fff, false, &[0; 16])), flaw, "ends past 65,535");
}

#[test]
fn extension_headers_are_walked_to_the_transport_header() {
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    // Hop-by-hop, destination options of 16 bytes, routing, authentication of 12 bytes and 4 of sequence, UDP.
    let body = [
        &[60, 0, 1, 4, 0, 0, 0, 0][..],
        &[43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[51, 0, 2, 0, 0, 0, 0, 0],
        &[17, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &udp,
    ];
    let packet = ip(&v6(0, &body.concat()));
    assert_eq!(
        (packet.protocol, packet.transport_offset, packet.transport_len),
        (17, 54 + 48, 8)
    );
    assert!(packet.routed && packet.fragment == Fragment::No);
    let fragment = [&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp].concat();
    assert_eq!(ip(&v6(44, &fragment)).fragment, Fragment::First);
    let later = [&[58, 0, 0, 8, 0, 0, 0, 9][..], &[1, 2, 3]].concat();
    assert_eq!(ip(&v6(44, &later)).fragment, Fragment::Later);
}

#[test]
fn chains_that_hide_or_never_end_are_refused() {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let udp = [0, 1, 0, 2, 0, 8, 0, 0];
    let many = |count: usize| {
        let mut body: Vec<u8> = std::iter::repeat_n(options(60), count - 1).flatten().collect();
        body.extend(options(17));
        body.extend(udp);
        v6(60, &body)
    };
    assert_eq!(ip(&many(8)).protocol, 17);
    assert_eq!(look(&many(9)), Err(ParseError::HeadersTooLong));
    let long = [&[17, 24, 1, 4][..], &[0; 196], &udp].concat();
    assert_eq!(
        look(&v6(60, &long)),
        Err(ParseError::HeadersTooLong),
        "the UDP header is not inspected"
    );
    let chain = Err(ParseError::Ipv6(Flaw::HeaderChain));
    assert_eq!(
        look(&v6(60, &[options(0), options(17), udp].concat())),
        chain,
        "hop-by-hop is not first"
    );
    let fragment = [17, 0, 0, 1, 0, 0, 0, 9];
    let twice = [[44, 0, 0, 1, 0, 0, 0, 9], fragment, udp].concat();
    assert_eq!(look(&v6(44, &twice)), chain, "a fragment of a fragment");
    assert_eq!(
        look(&v6(44, &fragment)),
        Err(ParseError::Ipv6(Flaw::Fragment)),
        "a first fragment without its header"
    );
    let hidden = [[60, 0, 0, 1, 0, 0, 0, 9], options(58)].concat();
    assert_eq!(
        look(&v6(44, &hidden)),
        Err(ParseError::Ipv6(Flaw::Fragment)),
        "ICMPv6 in the next fragment"
    );
    assert_eq!(
        look(&v6(60, &[17, 1, 0, 0, 0, 0, 0, 0])),
        Err(ParseError::Ipv6(Flaw::HeaderLength))
    );
    assert_eq!(look(&v6(60, &[17])), Err(ParseError::Ipv6(Flaw::Truncated)));
}

#[test]
fn ipv6_that_contradicts_itself_is_refused() {
    let good = v6(17, &[0, 1, 0, 2, 0, 8, 0, 0]);
    assert_eq!(ip(&good).transport_len, 8);
    for (at, byte, flaw) in [
        (14, 0x40, Flaw::Version),
        (19, 9, Flaw::TotalLength),
        (19, 7, Flaw::Truncated),
    ] {
        let mut frame = good.clone();
        frame[at] = byte;
        assert_eq!(look(&frame), Err(ParseError::Ipv6(flaw)), "{byte:#x} at {at}");
    }
    // A jumbogram: no length, and a hop-by-hop option in what is then padding.
    let mut jumbo = v6(0, &[17, 0, 0xc2, 4, 0, 1, 0, 0]);
    jumbo[18..20].fill(0);
    assert_eq!(look(&jumbo), Err(ParseError::Ipv6(Flaw::Truncated)));
}

proptest! {
    /// Whatever the bytes: no panic, and what is said of offsets and lengths holds.
    #[test]
    fn any_bytes_parse_or_fail(mut frame in proptest::collection::vec(any::<u8>(), 0..400), ethertype in prop_oneof![Just(0x0800u16), Just(0x86dd), any::<u16>()], first: u8) {
        if frame.len() > 14 {
            frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
            frame[14] = if ethertype == 0x0800 { 0x45 + first % 4 } else { 0x60 };
        }
        if let Ok(Packet { network: NetworkLayer::Ip(ip), .. }) = look(&frame) {
            prop_assert!(ip.transport_offset + ip.transport_len <= frame.len());
            prop_assert!(ip.transport_offset <= HEAD_LEN_MAX);
            if ip.fragment != Fragment::Later {
                prop_assert!(ip.transport_offset + transport_header_len_min(ip.protocol) <= frame.len().min(HEAD_LEN_MAX));
            }
        }
    }
}
