//! Frames against another implementation of the same standards, and against themselves.

use clap::Parser;
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

fn frames(l4: &str, more: &[&str]) -> [Frames; 2] {
    let args = [&["net", "--a", "a", "--b", "b", "--l4", l4], more].concat();
    Frames::pair(&NetArgs::parse_from(args))
}

/// Ports of a frame of which all lengths and checksums are right.
fn sound(frame: &[u8]) -> (u16, u16) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        panic!("no IPv4")
    };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    match packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            let header = udp.to_header();
            let right = header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
            assert_eq!(header.checksum, right.expect("short"));
            assert_eq!(usize::from(header.length), 8 + udp.payload().len());
            (header.source_port, header.destination_port)
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let header = tcp.to_header();
            let right = header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload());
            assert_eq!(header.checksum, right.expect("short"));
            (header.source_port, header.destination_port)
        }
        other => panic!("no transport: {other:?}"),
    }
}

proptest! {
    #[test]
    fn frames_are_sound(n: u32, flows in 1u32..1_000_000, len in 72u16..1600, tcp: bool, back: bool) {
        let (flows, len) = (flows.to_string(), len.to_string());
        let pair = frames(if tcp { "tcp" } else { "udp" }, &["--flows", &flows, "--frame", &len]);
        let sends = pair[usize::from(back)];
        let mut frame = Vec::new();
        for kind in [Kind::Data(n), Kind::Prime(n % sends.flows), Kind::Denied(n)] {
            sends.build(kind, &mut frame);
            prop_assert_eq!(frame.len(), sends.len);
            let ports = sound(&frame);
            match kind {
                Kind::Data(n) => prop_assert_eq!(ports, sends.ports(sends.flow_of(n))),
                Kind::Prime(flow) => prop_assert_eq!(ports, sends.ports(flow)),
                Kind::Denied(_) => prop_assert_eq!(ports.1, 7),
            }
        }
    }

    #[test]
    fn connections_are_understood(flow in 1u32..66_000_000, sequence: u32, acknowledged: u32, tcp: bool, back: bool) {
        let sends = frames(if tcp { "tcp" } else { "udp" }, &[])[usize::from(back)];
        let acknowledged = if tcp { acknowledged } else { 0 };
        let mut frame = Vec::new();
        sends.build_connection(flow, (sequence, acknowledged, TCP_SYN), &mut frame);
        prop_assert!(frame.len() >= 60);
        sound(&frame);
        prop_assert_eq!(sends.parse_connection(&frame), Some((flow, (sequence, acknowledged, TCP_SYN))));
        frame.truncate(40);
        prop_assert_eq!(sends.parse_connection(&frame), None);
    }

    #[test]
    fn a_sequence_number_is_told_from_other_bytes(n: u32, other: u64) {
        prop_assert_eq!(sequence(word(n)), Some(n));
        prop_assert_eq!(sequence(mark(n)), None);
        prop_assert_eq!(marked(mark(n)), Some(n));
        prop_assert!(sequence(other).is_none_or(|n| word(n) == other));
    }

    #[test]
    fn another_number_needs_no_other_checksum(n: u32, m: u32, tcp: bool) {
        let sends = frames(if tcp { "tcp" } else { "udp" }, &["--frame", "128"])[0];
        let mut frame = Vec::new();
        sends.build(Kind::Data(n), &mut frame);
        let at = sends.word_at();
        frame[at..at + 8].copy_from_slice(&word(m).to_be_bytes());
        sound(&frame);
    }
}

#[test]
fn every_connection_has_ports_of_its_own() {
    let sends = frames("tcp", &[])[0];
    for flow in [0, 1, 64_511, 64_512, 64_513, 1_000_000, 66_060_287] {
        assert_eq!(sends.flow_of_ports(sends.ports(flow)), Some(flow));
    }
    assert_eq!(CONNECTION_COUNT, 66_060_288);
}

#[test]
fn only_questions_about_oneself_are_answered() {
    let [forward, _] = frames("udp", &[]);
    let (a, b) = (forward.from, forward.to);
    let question = arp([0xff; 6], 1, a, ([0; 6], b.ip));
    let answer = arp_answer(&question, b).expect("an answer");
    assert_eq!((&answer[..6], &answer[6..12]), (&a.mac[..], &b.mac[..]));
    assert_eq!((&answer[20..22], &answer[28..32]), (&[0, 2][..], &b.ip.octets()[..]));
    assert_eq!(arp_answer(&question, a), None);
    assert_eq!(arp_answer(&announcement(b), b), None, "its own announcement");
    assert_eq!(arp_answer(&question[..30], b), None);
}

#[test]
fn a_frame_to_elsewhere_is_a_sound_one() {
    let [frames, _] = frames("udp", &[]);
    let mut frame = Vec::new();
    frames.build_to(([10, 77, 0, 1].into(), 4711), 5, &mut frame);
    assert_eq!((sound(&frame), &frame[30..34]), ((1029, 4711), &[10, 77, 0, 1][..]));
}
