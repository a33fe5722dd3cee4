//! The packet that an ICMP error carries, as far as it is there (RFC 792, RFC 4443 §2.4 c): its IP header and, of what
//! follows, at least 8 bytes.

use outboard_conntrack::{Embedded, TCP, Tuple, icmp};

/// The ICMP header before it, in bytes.
const ICMP_HEADER_LEN: usize = 8;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
/// IPv6 extension headers that are walked, as in whole packets.
const EXTENSION_HEADERS_MAX: usize = 8;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// Protocols whose header begins with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

/// What an error with this tuple quotes; `error` are its inspected bytes. None if that is not enough of a packet, or a
/// later fragment, which has no ports.
pub(super) fn quoted(tuple: &Tuple, error: &[u8]) -> Option<Embedded> {
    let packet = error.get(ICMP_HEADER_LEN..)?;
    let (mut quoted, transport) = match tuple.protocol {
        icmp::ICMP => v4(packet)?,
        _ => v6(packet)?,
    };
    quoted.zone = tuple.zone;
    let start: [u8; 8] = *transport.first_chunk()?;
    let [a, b, c, d, e, f, g, h] = start;
    let mut sequence = None;
    if WITH_PORTS.contains(&quoted.protocol) {
        quoted.source_port = u16::from_be_bytes([a, b]);
        quoted.destination_port = u16::from_be_bytes([c, d]);
        sequence = (quoted.protocol == TCP).then(|| u32::from_be_bytes([e, f, g, h]));
    } else if matches!(quoted.protocol, icmp::ICMP | icmp::ICMPV6) {
        quoted.destination_port = u16::from_be_bytes([a, b]);
        if matches!(
            icmp::class(quoted.protocol, a),
            icmp::Class::Request(_) | icmp::Class::Reply(_)
        ) {
            quoted.source_port = u16::from_be_bytes([e, f]);
        }
    }
    Some(Embedded {
        tuple: quoted,
        sequence,
        error_to: tuple.destination,
    })
}

/// Addresses and protocol, and what follows the headers.
fn v4(packet: &[u8]) -> Option<(Tuple, &[u8])> {
    let header: [u8; IPV4_HEADER_LEN] = *packet.first_chunk()?;
    let [first, _, _, _, _, _, f0, f1, _, protocol, _, _, addresses @ ..] = header;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    let header_len = usize::from(first & 0xf) * 4;
    let later = u16::from_be_bytes([f0, f1]) & 0x1fff != 0;
    if first >> 4 != 4 || header_len < IPV4_HEADER_LEN || later {
        return None;
    }
    let tuple = Tuple {
        protocol,
        source: std::net::Ipv4Addr::new(s0, s1, s2, s3).into(),
        destination: std::net::Ipv4Addr::new(d0, d1, d2, d3).into(),
        ..Tuple::default()
    };
    Some((tuple, packet.get(header_len..)?))
}

fn v6(packet: &[u8]) -> Option<(Tuple, &[u8])> {
    let (header, mut rest) = packet.split_first_chunk::<IPV6_HEADER_LEN>()?;
    let [first, _, _, _, _, _, mut protocol, _, addresses @ ..] = *header;
    if first >> 4 != 6 {
        return None;
    }
    for _ in 0..EXTENSION_HEADERS_MAX {
        let [next, len, o0, o1] = rest.first_chunk().copied().unwrap_or_default();
        let header_len = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => (usize::from(len) + 1) * 8,
            AUTHENTICATION => (usize::from(len) + 2) * 4,
            FRAGMENT if u16::from_be_bytes([o0, o1]) & 0xfff8 == 0 => 8,
            FRAGMENT => return None,
            _ => break,
        };
        protocol = next;
        rest = rest.get(header_len..)?;
    }
    let (source, destination) = addresses.split_at(16);
    let address = |bytes: &[u8]| Some(std::net::Ipv6Addr::from_octets(*bytes.first_chunk()?));
    let tuple = Tuple {
        protocol,
        source: address(source)?.into(),
        destination: address(destination)?.into(),
        ..Tuple::default()
    };
    Some((tuple, rest))
}
