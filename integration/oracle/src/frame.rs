//! Packets as bytes.

use std::net::IpAddr;

use crate::{
    packet::{Body, Packet, Tcp},
    rules::{Family, address},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const HOP_LIMIT: u8 = 64;

/// Its frames in the order in which they are sent; several, if it is in fragments. `number` tells datagrams apart.
pub fn frames(packet: &Packet, number: u16, source: [u8; 6], destination: [u8; 6]) -> Vec<Vec<u8>> {
    let ethertype: [u8; 2] = match packet.family {
        Family::V4 => [0x08, 0x00],
        Family::V6 => [0x86, 0xdd],
    };
    let head = [&destination[..], &source, &ethertype].concat();
    let datagrams = datagrams(packet, number).into_iter();
    datagrams.map(|datagram| [&head[..], &datagram].concat()).collect()
}

/// The IP packet, or its fragments.
fn datagrams(packet: &Packet, number: u16) -> Vec<Vec<u8>> {
    let (protocol, payload) = payload(packet, number);
    let (first_protocol, payload) = if packet.extension && packet.family == Family::V6 {
        // One option of four bytes, of nothing but padding (RFC 8200 section 4.2).
        (
            DESTINATION_OPTIONS,
            [&[protocol, 0, 1, 4, 0, 0, 0, 0], &payload[..]].concat(),
        )
    } else {
        (protocol, payload)
    };
    // Later fragments begin at multiples of 8; the first one holds all headers.
    let piece_len = match packet.fragments {
        0 | 1 => payload.len(),
        count => (payload.len() / usize::from(count)).next_multiple_of(8).max(72),
    };
    if piece_len >= payload.len() {
        return vec![datagram(packet, number, first_protocol, &payload, None)];
    }
    let count = payload.len().div_ceil(piece_len);
    let pieces = payload.chunks(piece_len).enumerate();
    pieces
        .map(|(index, piece)| {
            let place = Some((index * piece_len, index + 1 < count));
            datagram(packet, number, first_protocol, piece, place)
        })
        .collect()
}

/// An IP header and its payload, which is a fragment at an offset that others follow, or not.
fn datagram(packet: &Packet, number: u16, protocol: u8, payload: &[u8], place: Option<(usize, bool)>) -> Vec<u8> {
    let addresses = (address(packet.from, packet.family), address(packet.to, packet.family));
    match packet.family {
        Family::V4 => {
            let (offset, more) = place.unwrap_or_default();
            let mut header = vec![0x45, 0];
            header.extend(u16_of(20 + payload.len()).to_be_bytes());
            header.extend(number.to_be_bytes());
            header.extend((u16_of(offset / 8) | u16::from(more) << 13).to_be_bytes());
            header.extend([HOP_LIMIT, protocol, 0, 0]);
            header.extend(bytes(addresses.0));
            header.extend(bytes(addresses.1));
            let sum = checksum(&[&header]);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [&header[..], payload].concat()
        }
        Family::V6 => {
            let extension = place.map(|(offset, more)| {
                let mut header = vec![protocol, 0];
                header.extend((u16_of(offset) | u16::from(more)).to_be_bytes());
                header.extend(u32::from(number).to_be_bytes());
                header
            });
            let next = if extension.is_some() { FRAGMENT } else { protocol };
            let extension = extension.unwrap_or_default();
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(u16_of(extension.len() + payload.len()).to_be_bytes());
            header.extend([next, HOP_LIMIT]);
            header.extend(bytes(addresses.0));
            header.extend(bytes(addresses.1));
            [&header[..], &extension, payload].concat()
        }
    }
}

/// What the packet carries: protocol number and bytes.
fn payload(packet: &Packet, number: u16) -> (u8, Vec<u8>) {
    let icmp = if packet.family == Family::V4 { ICMP } else { ICMPV6 };
    let (protocol, mut bytes, sum_at) = match &packet.body {
        Body::Tcp(tcp) => (TCP, tcp_bytes(tcp), Some(16)),
        Body::Udp {
            source_port,
            destination_port,
            len,
        } => {
            let mut bytes = [source_port.to_be_bytes(), destination_port.to_be_bytes()].concat();
            bytes.extend((8 + len).to_be_bytes());
            bytes.extend([0, 0]);
            bytes.extend(data(*len));
            (UDP, bytes, Some(6))
        }
        Body::Icmp { kind, code, id, len } => {
            let mut bytes = vec![*kind, *code, 0, 0];
            bytes.extend(id.to_be_bytes());
            bytes.extend(number.to_be_bytes());
            bytes.extend(data(*len));
            (icmp, bytes, Some(2))
        }
        Body::Error {
            kind,
            code,
            about,
            quoted_len,
        } => {
            let mut bytes = vec![*kind, *code, 0, 0, 0, 0, 0, 0];
            bytes.extend(quoted(about, *quoted_len));
            (icmp, bytes, Some(2))
        }
        Body::Other { protocol, len } => (*protocol, data(*len), None),
    };
    if let Some(at) = sum_at {
        let sum = transport_checksum(packet, protocol, &bytes);
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    (protocol, bytes)
}

/// IP header and the first bytes of the payload, as an ICMP error has them.
fn quoted(about: &Packet, len: u16) -> Vec<u8> {
    let whole = Packet {
        fragments: 1,
        ..about.clone()
    };
    let mut bytes = datagrams(&whole, 0).concat();
    let header_len = match (about.family, about.extension) {
        (Family::V4, _) => 20,
        (Family::V6, false) => 40,
        (Family::V6, true) => 48,
    };
    bytes.truncate(header_len + usize::from(len));
    bytes
}

fn tcp_bytes(tcp: &Tcp) -> Vec<u8> {
    // RFC 9293 section 3.2, RFC 7323 section 2.2, RFC 2018 sections 2 and 3
    let mut options = Vec::new();
    if let Some(scale) = tcp.window_scale {
        options.extend([1, 3, 3, scale]);
    }
    if tcp.sack_permitted {
        options.extend([1, 1, 4, 2]);
    }
    if let Some((left, right)) = tcp.sack {
        options.extend([1, 1, 5, 10]);
        options.extend(left.to_be_bytes());
        options.extend(right.to_be_bytes());
    }
    let header_len = u8::try_from(20 + options.len()).unwrap_or(u8::MAX);
    let mut bytes = [tcp.source_port.to_be_bytes(), tcp.destination_port.to_be_bytes()].concat();
    bytes.extend(tcp.seq.to_be_bytes());
    bytes.extend(tcp.ack.to_be_bytes());
    bytes.extend([(header_len / 4) << 4, tcp.flags]);
    bytes.extend(tcp.window.to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(options);
    bytes.extend(data(tcp.len));
    bytes
}

fn data(len: u16) -> Vec<u8> {
    (0..len).map(|at| at.to_be_bytes()[1]).collect()
}

fn transport_checksum(packet: &Packet, protocol: u8, bytes: &[u8]) -> u16 {
    if protocol == ICMP {
        return checksum(&[bytes]);
    }
    // RFC 9293 section 3.1, RFC 8200 section 8.1
    let mut pseudo = self::bytes(address(packet.from, packet.family));
    pseudo.extend(self::bytes(address(packet.to, packet.family)));
    pseudo.extend([0, protocol]);
    pseudo.extend(u16_of(bytes.len()).to_be_bytes());
    match checksum(&[&pseudo, bytes]) {
        // RFC 768: 0 would say that there is none
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    }
}

/// RFC 1071; all parts but the last have an even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words
        .map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    // what is left after the remainder is 0 only where all words are
    let folded = if sum == 0 { 0 } else { (sum - 1) % 0xffff + 1 };
    !u16::try_from(folded).unwrap_or(u16::MAX)
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn u16_of(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Source and destination of a frame's IP header; `None` if it has none.
pub fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let at = |from: usize| frame.get(from..);
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let (source, rest) = at(26)?.split_first_chunk::<4>()?;
            Some((IpAddr::from(*source), IpAddr::from(*rest.first_chunk::<4>()?)))
        }
        [0x86, 0xdd] => {
            let (source, rest) = at(22)?.split_first_chunk::<16>()?;
            Some((IpAddr::from(*source), IpAddr::from(*rest.first_chunk::<16>()?)))
        }
        _ => None,
    }
}
