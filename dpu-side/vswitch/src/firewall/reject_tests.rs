use vhost_net_dpu::record::Record;

use super::*;

const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).expect("short").to_be_bytes();
    let header = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    [&ETHERNET[..], &[8, 0], &header, &[10, 0, 0, 1], &[10, 0, 0, 2], payload].concat()
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("short").to_be_bytes();
    let header = [0x60, 0, 0, 0, len[0], len[1], next, 64];
    [&ETHERNET[..], &[0x86, 0xdd], &header, &[0xfd; 16], &[0xfe; 16], payload].concat()
}

fn tcp(flags: u8, data: &[u8]) -> Vec<u8> {
    let ports = [0x9c, 0x40, 0, 80];
    let rest = [0x50, flags, 1, 0, 0, 0, 0, 0];
    [&ports[..], &1000u32.to_be_bytes(), &77u32.to_be_bytes(), &rest, data].concat()
}

fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let record = Record::parse(frame, frame.len()).expect("well formed");
    let reply = reply(&record, frame)?.frame().to_vec();
    let parsed = Record::parse(&reply, reply.len()).expect("an answer is well formed");
    assert_eq!((parsed.source, parsed.destination), (record.destination, record.source));
    // What it carries for checksums is right: summed up, nothing is left.
    let transport = parsed.transport(&reply);
    let mut sum = Sum::default();
    if parsed.protocol != IP_PROTOCOL_ICMP {
        let len = u32::try_from(transport.len()).expect("short");
        sum.add_word(pseudo_header(parsed.addresses(&reply)?, parsed.protocol, len));
    }
    sum.add(transport);
    assert_eq!(sum.checksum(), 0, "{reply:?}");
    if let Some((source, destination)) = parsed.v4(&reply) {
        assert_eq!(ipv4_header(&reply[14..34]), 0);
        assert_eq!((source.octets(), destination.octets()), ([10, 0, 0, 2], [10, 0, 0, 1]));
    }
    Some(reply)
}

fn numbers(transport: &[u8]) -> (u32, u32, u8) {
    let word = |at: usize| u32::from_be_bytes([transport[at], transport[at + 1], transport[at + 2], transport[at + 3]]);
    (word(4), word(8), transport[13])
}

#[test]
fn a_segment_is_answered_by_a_reset_that_its_sender_believes() {
    for (frame, offset) in [(v4(6, &tcp(SYN, b"abc")), 34), (v6(6, &tcp(SYN, b"abc")), 54)] {
        let reply = answer(&frame).expect("an answer");
        // All of the segment is acknowledged, the SYN too.
        assert_eq!(numbers(&reply[offset..]), (0, 1004, RST | ACK));
        assert_eq!(reply[offset..offset + 4], [0, 80, 0x9c, 0x40]);
    }
    let reply = answer(&v4(6, &tcp(ACK, b"abc"))).expect("an answer");
    assert_eq!(numbers(&reply[34..]), (77, 0, RST));
    assert!(answer(&v4(6, &tcp(RST, b""))).is_none(), "a reset is not answered");
}

#[test]
fn a_datagram_is_answered_by_an_error_that_quotes_it() {
    let udp = [&[0, 1, 0, 2, 0, 158, 0, 0][..], &[7; 150]].concat();
    let frame = v4(17, &udp);
    let reply = answer(&frame).expect("an answer");
    assert_eq!(reply[34..36], [3, 13]);
    assert_eq!(reply[42..], frame[14..14 + QUOTED_LEN_MAX]);
    let frame = v6(17, &udp);
    let reply = answer(&frame).expect("an answer");
    assert_eq!(reply[54..56], [1, 1]);
    assert_eq!(reply[62..], frame[14..14 + QUOTED_LEN_MAX]);
    // Padding is not of the packet.
    let padded = [v4(17, &[0, 1, 0, 2, 0, 8, 0, 0]), vec![0; 18]].concat();
    assert_eq!(answer(&padded).expect("an answer").len(), 42 + 28);
}

#[test]
fn errors_groups_and_later_fragments_are_not_answered() {
    assert!(
        answer(&v4(1, &[8, 0, 0, 0, 0, 1, 0, 1])).is_some(),
        "control: a ping is"
    );
    assert!(answer(&v4(1, &[3, 1, 0, 0, 0, 0, 0, 0])).is_none());
    assert!(answer(&v6(58, &[2, 0, 0, 0, 0, 0, 0, 0])).is_none());
    let mut later = v4(17, &[0; 16]);
    later[21] = 8;
    assert!(answer(&later).is_none());
    let mut group = v4(17, &[0, 1, 0, 2, 0, 8, 0, 0]);
    group[0] |= 1;
    assert!(answer(&group).is_none());
}
