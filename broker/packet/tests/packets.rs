//! What is written is what the frame says, read by another parser; and what cannot be read is pointed at.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use outboard_packet::{EXPRESSION_LEN_MAX, Packet};
use outboard_protocol::id::MacAddr;
use proptest::prelude::*;

const OWN: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 1]);
const PEER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 2]);

fn frame(text: &str) -> Vec<u8> {
    let packet: Packet = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
    packet.frame(OWN, packet.destination_mac().unwrap_or(PEER))
}

/// Addresses, ports and protocol as etherparse reads them, its checks of lengths and IPv4's checksum included.
fn read(frame: &[u8]) -> (String, u8) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
    let (source, destination, protocol) = match packet.net.expect("a network layer") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            (
                header.source_addr().to_string(),
                header.destination_addr().to_string(),
                ip.payload().ip_number.0,
            )
        }
        NetSlice::Ipv6(ip) => {
            let (source, destination) = (ip.header().source_addr(), ip.header().destination_addr());
            (
                format!("[{source}]"),
                format!("[{destination}]"),
                ip.payload().ip_number.0,
            )
        }
        NetSlice::Arp(_) => panic!("ARP has no addresses of IP"),
    };
    let ends = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            format!(
                "tcp {source}:{} > {destination}:{}",
                tcp.source_port(),
                tcp.destination_port()
            )
        }
        Some(TransportSlice::Udp(udp)) => {
            format!(
                "udp {source}:{} > {destination}:{}",
                udp.source_port(),
                udp.destination_port()
            )
        }
        _ => format!("{source} > {destination}"),
    };
    (ends, protocol)
}

/// The ones' complement sum of the transport part with its pseudo-header: 0xffff if its checksum holds.
fn verifies(frame: &[u8]) -> bool {
    let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
    let (mut words, payload): (Vec<u8>, Vec<u8>) = match packet.net.expect("IP") {
        NetSlice::Ipv4(ip) => {
            let payload = ip.payload();
            let head = match payload.ip_number.0 {
                1 => vec![],
                number => [
                    &ip.header().source()[..],
                    &ip.header().destination(),
                    &[0, number],
                    &u16::try_from(payload.payload.len()).unwrap().to_be_bytes(),
                ]
                .concat(),
            };
            (head, payload.payload.to_vec())
        }
        NetSlice::Ipv6(ip) => {
            let payload = ip.payload();
            let head = [
                &ip.header().source()[..],
                &ip.header().destination(),
                &[0, payload.ip_number.0],
                &u16::try_from(payload.payload.len()).unwrap().to_be_bytes(),
            ]
            .concat();
            (head, payload.payload.to_vec())
        }
        NetSlice::Arp(_) => return true,
    };
    words.extend(payload);
    let sum: u32 = words
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16) == 0xffff
}

#[test]
fn each_kind_is_the_frame_it_says() {
    for (text, protocol) in [
        ("tcp 10.0.0.1:1234 > 10.0.0.2:80", 6),
        ("tcp [fd00::1]:1234 > [fd00::2]:80", 6),
        ("udp 10.0.0.1:53 > 224.0.0.251:5353", 17),
    ] {
        let frame = frame(text);
        assert_eq!(read(&frame), (text.to_owned(), protocol));
        assert!(verifies(&frame), "{text}");
    }
    for (text, ends, protocol) in [
        ("icmp 10.0.0.1 > 10.0.0.2", "10.0.0.1 > 10.0.0.2", 1),
        ("icmp6 fd00::1 > fd00::2 type 1 code 4", "[fd00::1] > [fd00::2]", 58),
        ("ip 10.0.0.1 > 10.0.0.2 protocol 47", "10.0.0.1 > 10.0.0.2", 47),
    ] {
        assert_eq!(read(&frame(text)), (ends.to_owned(), protocol), "{text}");
    }
    assert!(verifies(&frame("icmp6 fd00::1 > fd00::2")) && verifies(&frame("icmp 10.0.0.1 > 10.0.0.2 len 3")));
}

#[test]
fn options_reach_the_frame() {
    let syn_ack = frame("tcp 10.0.0.1:1 > 10.0.0.2:2 flags SA seq 7 ack 9 window 100 ttl 3 len 10");
    let packet = SlicedPacket::from_ethernet(&syn_ack).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
        panic!()
    };
    assert!(tcp.syn() && tcp.ack() && !tcp.fin());
    assert_eq!(
        (
            tcp.sequence_number(),
            tcp.acknowledgment_number(),
            tcp.window_size(),
            tcp.payload().len()
        ),
        (7, 9, 100, 10)
    );
    assert_eq!(syn_ack[22], 3, "the TTL");
    let tagged = frame("tcp 10.0.0.1 > 10.0.0.2 vlan 12 from 02:00:00:00:00:09 to 02:00:00:00:00:08");
    assert_eq!(tagged[..18], [2, 0, 0, 0, 0, 8, 2, 0, 0, 0, 0, 9, 0x81, 0, 0, 12, 8, 0]);
    let first = frame("udp 10.0.0.1:1 > 10.0.0.2:2 fragment first len 16");
    let later = frame("udp [fd00::1]:1 > [fd00::2]:2 fragment later");
    for frame in [first, later] {
        assert!(SlicedPacket::from_ethernet(&frame).unwrap().is_ip_payload_fragmented());
    }
}

#[test]
fn arp_goes_to_everybody_or_to_whom_it_answers() {
    let request = frame("arp 10.0.0.1 > 10.0.0.2");
    assert_eq!(request[..6], [0xff; 6]);
    assert_eq!(request[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    assert_eq!((&request[22..28], &request[28..32]), (&OWN.0[..], &[10, 0, 0, 1][..]));
    let reply = frame("arp reply 10.0.0.1 > 10.0.0.2");
    assert_eq!((&reply[..6], reply[21], &reply[32..38]), (&PEER.0[..], 2, &PEER.0[..]));
}

#[test]
fn groups_have_the_macs_that_the_rfcs_say() {
    let mac = |text: &str| {
        text.parse::<Packet>()
            .unwrap()
            .destination_mac()
            .map(|mac| mac.to_string())
    };
    assert_eq!(mac("udp 10.0.0.1:1 > 224.128.1.2:3").unwrap(), "01:00:5e:00:01:02");
    assert_eq!(
        mac("udp [fd00::1]:1 > [ff02::1:ff00:2]:3").unwrap(),
        "33:33:ff:00:00:02"
    );
    assert_eq!(mac("udp 10.0.0.1:1 > 255.255.255.255:3").unwrap(), "ff:ff:ff:ff:ff:ff");
    assert_eq!(mac("udp 10.0.0.1:1 > 10.0.0.2:3"), None);
}

/// The text, the part that is marked, and a word of the message.
#[test]
fn an_error_points_at_the_place() {
    for (text, marked, said) in [
        ("", "", "missing"),
        ("sctp 10.0.0.1 > 10.0.0.2", "sctp", "tcp, udp, icmp"),
        ("tcp 10.0.0.1:99999 > 10.0.0.2:80", "99999", "65535"),
        ("tcp 10.0.0.1:1 10.0.0.2:80", "10.0.0.2:80", "'>'"),
        ("tcp 10.0.0.1:1 > 10.0.0.300:80", "10.0.0.300", "IP address"),
        ("tcp 10.0.0.1:1 >", "", "destination is missing"),
        ("tcp 10.0.0.1:1 > [fd00::1]:2", "[fd00::1]:2", "families"),
        ("tcp [fd00::1:2 > [fd00::1]:2", "[fd00::1:2", "bracket"),
        ("tcp [fd00::1]x > [fd00::1]:2", "x", "bracket"),
        ("icmp fd00::1 > fd00::2", "fd00::1", "icmp6"),
        ("icmp 10.0.0.1:1 > 10.0.0.2", "1", "ports"),
        ("tcp 10.0.0.1:1 > 10.0.0.2:2 flags SX", "SX", "FSRPAUEC"),
        ("udp 10.0.0.1:1 > 10.0.0.2:2 flags S", "flags", "no such option"),
        ("udp 10.0.0.1:1 > 10.0.0.2:2 len 17000", "17000", "16000"),
        ("udp 10.0.0.1:1 > 10.0.0.2:2 ttl", "", "missing"),
        ("udp 10.0.0.1:1 > 10.0.0.2:2 vlan 4096", "4096", "4095"),
        ("arp 10.0.0.1 > 10.0.0.2 ttl 3", "ttl", "no such option"),
        ("arp fd00::1 > 10.0.0.2", "fd00::1", "IPv4"),
        (
            "udp 10.0.0.1:1 > 10.0.0.2:2 fragment middle",
            "middle",
            "'first' or 'later'",
        ),
        ("udp 10.0.0.1:1 > 10.0.0.2:2 to 1:2", "1:2", "MAC"),
    ] {
        let error = text.parse::<Packet>().expect_err(text);
        assert_eq!(&text[error.place.clone()], marked, "{text}: {error}");
        assert!(error.message.contains(said), "{text}: {error}");
    }
    let text = "tcp 10.0.0.1:99999 > 10.0.0.2:80";
    let shown = text.parse::<Packet>().unwrap_err().point(text);
    assert_eq!(shown, format!("{text}\n             ^^^^^"));
    let long = "x".repeat(EXPRESSION_LEN_MAX + 1);
    assert!(long.parse::<Packet>().unwrap_err().message.contains("1024"));
}

fn number() -> impl Strategy<Value = u16> {
    any::<u16>()
}

proptest! {
    #[test]
    fn whatever_is_written_is_read_again_by_another_parser(
        tcp: bool, v6: bool, source: u128, destination: u128, from in number(), to in number(), len in 0u16..1400, ttl: u8,
    ) {
        let address = |bits: u128| if v6 {
            format!("[{}]", std::net::Ipv6Addr::from_bits(bits))
        } else {
            std::net::Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap()).to_string()
        };
        let kind = if tcp { "tcp" } else { "udp" };
        let ends = format!("{kind} {}:{from} > {}:{to}", address(source), address(destination));
        let frame = frame(&format!("{ends} len {len} ttl {ttl}"));
        prop_assert_eq!(read(&frame), (ends, if tcp { 6 } else { 17 }));
        prop_assert!(verifies(&frame));
    }

    #[test]
    fn no_text_makes_it_panic_and_every_place_is_in_the_text(text in "\\PC{0,80}") {
        if let Err(error) = text.parse::<Packet>() {
            prop_assert!(text.get(error.place.clone()).is_some(), "{error:?}");
            error.point(&text);
        }
    }

    #[test]
    fn neither_does_one_made_of_its_own_words(
        words in proptest::collection::vec(
            prop_oneof!["tcp", "udp", "icmp", "icmp6", "arp", ">", "10.0.0.1", "10.0.0.1:80", "\\[fd00::1\\]:80", "\\[", "\\]:", ":",
                "fd00::1", "flags", "SA", "len", "16000", "ttl", "fragment", "first", "to", "vlan", "4095", "é"], 0..12)
    ) {
        let text = words.join(" ");
        match text.parse::<Packet>() {
            Ok(packet) => prop_assert!(packet.frame(OWN, PEER).len() >= 60),
            Err(error) => prop_assert!(text.get(error.place.clone()).is_some(), "{error:?}"),
        }
    }
}
