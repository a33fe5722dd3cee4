//! From a packet to the bytes of its frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use outboard_protocol::id::MacAddr;

use crate::packet::{Arp, FragmentKind, Packet, Payload, Transport};

/// Ethernet's least frame without its check sequence, in bytes (IEEE 802.3 §3.2.8).
const FRAME_LEN_MIN: usize = 60;
/// Identification of fragments.
const FRAGMENT_ID: u16 = 0x4f42;
/// Where a later fragment stands, in units of 8 bytes: as if the first had filled an MTU of 1500.
const LATER_OFFSET: u16 = 185;

impl Packet {
    /// The frame, from its Ethernet header on. `source` and `destination` are used where the packet gives none.
    pub fn frame(&self, source: MacAddr, destination: MacAddr) -> Vec<u8> {
        let source = self.link.source.unwrap_or(source);
        let destination = self.link.destination.unwrap_or(destination);
        let mut frame = [destination.0, source.0].concat();
        if let Some(vlan) = self.link.vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(vlan.to_be_bytes());
        }
        match &self.payload {
            Payload::Arp(arp) => frame.extend(arp_bytes(arp, source, destination)),
            Payload::Ip {
                source,
                destination,
                ttl,
                len,
                fragment,
                transport,
            } => {
                let later = *fragment == Some(FragmentKind::Later);
                let body = transport_bytes(transport, (*source, *destination), usize::from(*len), later);
                let protocol = transport.protocol(source.is_ipv6());
                frame.extend(match (source, destination) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        ipv4(*source, *destination, *ttl, *fragment, protocol, &body)
                    }
                    (source, destination) => ipv6(v6(source), v6(destination), *ttl, *fragment, protocol, &body),
                });
            }
        }
        frame.resize(frame.len().max(FRAME_LEN_MIN), 0);
        frame
    }
}

/// The parser lets no two families into one packet.
fn v6(address: &IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => *v6,
    }
}

impl Transport {
    fn protocol(&self, v6: bool) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp(..) => 17,
            Self::Icmp(_) if v6 => 58,
            Self::Icmp(_) => 1,
            Self::Other(number) => *number,
        }
    }
}

/// RFC 826, with its EtherType.
fn arp_bytes(arp: &Arp, source: MacAddr, destination: MacAddr) -> Vec<u8> {
    let target_mac = if arp.reply { destination.0 } else { [0; 6] };
    let mut bytes = vec![8, 6, 0, 1, 8, 0, 6, 4, 0, if arp.reply { 2 } else { 1 }];
    bytes.extend(source.0);
    bytes.extend(arp.sender.octets());
    bytes.extend(target_mac);
    bytes.extend(arp.target.octets());
    bytes
}

/// The bytes of a length field. Lengths are bounded far below where it would not fit.
fn field(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}

/// RFC 791, with its EtherType.
fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    ttl: u8,
    fragment: Option<FragmentKind>,
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    let (id, word) = match fragment {
        None => (0, 0x4000),
        Some(FragmentKind::First) => (FRAGMENT_ID, 0x2000),
        Some(FragmentKind::Later) => (FRAGMENT_ID, LATER_OFFSET),
    };
    let mut header = vec![0x45, 0];
    header.extend(field(20 + body.len()));
    header.extend(id.to_be_bytes());
    header.extend(u16::to_be_bytes(word));
    header.extend([ttl, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum = (!add(0, &header)).to_be_bytes();
    header.splice(10..12, sum);
    [&[8, 0], header.as_slice(), body].concat()
}

/// RFC 8200, with its EtherType.
fn ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    hop_limit: u8,
    fragment: Option<FragmentKind>,
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    let [id0, id1] = FRAGMENT_ID.to_be_bytes();
    let extension = fragment.map(|kind| {
        // RFC 8200 §4.5: offset in the upper 13 bits, "more" in the lowest.
        let word: u16 = match kind {
            FragmentKind::First => 1,
            FragmentKind::Later => LATER_OFFSET << 3,
        };
        let [w0, w1] = word.to_be_bytes();
        [protocol, 0, w0, w1, 0, 0, id0, id1]
    });
    let next = if extension.is_some() { 44 } else { protocol };
    let extension = extension.as_ref().map_or(&[][..], |bytes| bytes.as_slice());
    let mut bytes = vec![0x86, 0xdd, 0x60, 0, 0, 0];
    bytes.extend(field(extension.len() + body.len()));
    bytes.extend([next, hop_limit]);
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend(extension);
    bytes.extend(body);
    bytes
}

/// Transport header and payload. A later fragment has payload only.
fn transport_bytes(transport: &Transport, ends: (IpAddr, IpAddr), len: usize, later: bool) -> Vec<u8> {
    let payload = vec![0; len];
    if later {
        // It must carry something.
        return if payload.is_empty() { vec![0; 8] } else { payload };
    }
    let v6 = ends.0.is_ipv6();
    let (mut bytes, sum_at) = match transport {
        Transport::Tcp(tcp) => {
            let mut bytes = ports(tcp.ports);
            bytes.extend(tcp.seq.to_be_bytes());
            bytes.extend(tcp.ack.to_be_bytes());
            bytes.extend([0x50, tcp.flags]);
            bytes.extend(tcp.window.to_be_bytes());
            bytes.extend([0; 4]);
            (bytes, Some(16))
        }
        Transport::Udp(source, destination) => {
            let mut bytes = ports((*source, *destination));
            bytes.extend(field(8 + len));
            bytes.extend([0; 2]);
            (bytes, Some(6))
        }
        Transport::Icmp(icmp) => {
            let mut bytes = vec![icmp.kind, icmp.code, 0, 0];
            bytes.extend(icmp.id.to_be_bytes());
            bytes.extend(icmp.seq.to_be_bytes());
            (bytes, Some(2))
        }
        Transport::Other(_) => (Vec::new(), None),
    };
    bytes.extend(payload);
    let Some(sum_at) = sum_at else { return bytes };
    // ICMP for IPv4 has no pseudo-header (RFC 792), ICMPv6 has (RFC 4443 §2.3).
    let begin = match transport {
        Transport::Icmp(_) if !v6 => 0,
        _ => pseudo_header(ends, transport.protocol(v6), bytes.len()),
    };
    let sum = match (transport, !add(begin, &bytes)) {
        // Zero says that there is none (RFC 768).
        (Transport::Udp(..), 0) => 0xffff,
        (_, sum) => sum,
    };
    bytes.splice(sum_at..sum_at + 2, sum.to_be_bytes());
    bytes
}

fn ports((source, destination): (u16, u16)) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// The sum of the pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
fn pseudo_header((source, destination): (IpAddr, IpAddr), protocol: u8, len: usize) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let [l0, l1] = field(len);
    let tail = [0, protocol, l0, l1];
    add(add(add(0, &octets(source)), &octets(destination)), &tail)
}

/// The ones' complement sum (RFC 1071) of `sum` and the bytes.
fn add(sum: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(sum, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    })
}
