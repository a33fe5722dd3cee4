//! What a sender is told whose packet is rejected: a TCP reset (RFC 9293 §3.10.7.1), or that communication is
//! administratively prohibited (RFC 1812 §5.2.7.1 code 13, RFC 4443 §3.1 code 1). The answer comes, as Linux' does, from
//! the address that the packet was for, and is made of the packet's private first bytes.
//!
//! Nothing is answered to a reset, to an ICMP error (RFC 1122 §3.2.2, RFC 4443 §2.4 e), to a later fragment, and to what
//! is for a group.

use outboard_conntrack::icmp::{Class as IcmpClass, class as icmp_class};
use vhost_net_dpu::{
    checksum::{Sum, for_field, ipv4_header, pseudo_header},
    packet::{
        ETHERNET_HEADER_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6,
        IP_PROTOCOL_TCP, IpAddresses, TCP_HEADER_LEN_MIN,
    },
    record::Record,
};

/// Of the rejected packet, an ICMP error carries its IP header and what follows, up to these bytes: no less than RFC 1812
/// §4.3.2.3 and RFC 4443 §2.4 c ask for where the headers are of usual length.
const QUOTED_LEN_MAX: usize = 128;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const ICMP_HEADER_LEN: usize = 8;
const REPLY_LEN_MAX: usize = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN + ICMP_HEADER_LEN + QUOTED_LEN_MAX;
const HOP_LIMIT: u8 = 64;
const UNREACHABLE_V4: [u8; 2] = [3, 13];
const UNREACHABLE_V6: [u8; 2] = [1, 1];
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    bytes: [u8; REPLY_LEN_MAX],
    len: usize,
}

impl Reply {
    /// The frame.
    pub(crate) fn frame(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn new() -> Self {
        Self {
            bytes: [0; REPLY_LEN_MAX],
            len: 0,
        }
    }

    /// Adds bytes. What is added has room by the lengths above.
    fn add(&mut self, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    /// Writes over what was added.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    }
}

/// The answer to a rejected packet, if it gets one. `head` are its frame's first bytes.
pub(crate) fn reply(record: &Record, head: &[u8]) -> Option<Reply> {
    if record.is_group() || record.fragment == Fragment::Later {
        return None;
    }
    let back = match record.addresses(head)? {
        IpAddresses::V4(source, destination) if !destination.is_multicast() && !source.is_unspecified() => {
            IpAddresses::V4(destination, source)
        }
        IpAddresses::V6(source, destination) if !destination.is_multicast() && !source.is_unspecified() => {
            IpAddresses::V6(destination, source)
        }
        _ => return None,
    };
    match record.protocol {
        IP_PROTOCOL_TCP => reset(record, head, back),
        protocol @ (IP_PROTOCOL_ICMP | IP_PROTOCOL_ICMPV6)
            if icmp_class(protocol, record.destination_port.to_be_bytes()[0]) == IcmpClass::Error =>
        {
            None
        }
        _ => Some(prohibited(record, head, back)),
    }
}

/// A reset: at the sequence number that the packet acknowledges, or acknowledging all of it.
fn reset(record: &Record, head: &[u8], back: IpAddresses) -> Option<Reply> {
    let tcp: [u8; TCP_HEADER_LEN_MIN] = *record.transport(head).first_chunk()?;
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, offset, flags, ..] = tcp;
    if flags & RST != 0 {
        return None;
    }
    let (sequence, acknowledged, flags) = if flags & ACK != 0 {
        ([a0, a1, a2, a3], [0; 4], RST)
    } else {
        let header_len = u32::from(offset >> 4) * 4;
        let len = u32::from(record.transport_len).saturating_sub(header_len);
        let len = len + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        let end = u32::from_be_bytes([q0, q1, q2, q3]).wrapping_add(len);
        ([0; 4], end.to_be_bytes(), RST | ACK)
    };
    let mut reply = Reply::new();
    start(&mut reply, record, back, IP_PROTOCOL_TCP, TCP_HEADER_LEN_MIN);
    let transport = reply.len;
    reply.add(&[d0, d1, s0, s1]);
    reply.add(&sequence);
    reply.add(&acknowledged);
    reply.add(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    finish(&mut reply, transport, 16, Some((back, IP_PROTOCOL_TCP)));
    Some(reply)
}

/// An ICMP error that carries the packet's beginning.
fn prohibited(record: &Record, head: &[u8], back: IpAddresses) -> Reply {
    let packet = head.get(ETHERNET_HEADER_LEN..).unwrap_or_default();
    // Padding behind the packet is not of it.
    let packet_len = usize::from(record.transport_offset) + usize::from(record.transport_len) - ETHERNET_HEADER_LEN;
    let quoted = packet.get(..QUOTED_LEN_MAX.min(packet_len)).unwrap_or(packet);
    let (protocol, kind, pseudo) = match back {
        IpAddresses::V4(..) => (IP_PROTOCOL_ICMP, UNREACHABLE_V4, None),
        IpAddresses::V6(..) => (IP_PROTOCOL_ICMPV6, UNREACHABLE_V6, Some((back, IP_PROTOCOL_ICMPV6))),
    };
    let mut reply = Reply::new();
    start(&mut reply, record, back, protocol, ICMP_HEADER_LEN + quoted.len());
    let transport = reply.len;
    reply.add(&kind);
    reply.add(&[0; 6]);
    reply.add(quoted);
    finish(&mut reply, transport, 2, pseudo);
    reply
}

/// Ethernet and IP headers of an answer with a payload of `len` bytes.
fn start(reply: &mut Reply, record: &Record, back: IpAddresses, protocol: u8, len: usize) {
    reply.add(&record.source_mac());
    reply.add(&record.destination_mac());
    // At most what a reply has room for.
    let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    match back {
        IpAddresses::V4(source, destination) => {
            reply.add(&ETHERTYPE_IPV4.to_be_bytes());
            let at = reply.len;
            reply.add(&[0x45, 0]);
            reply.add(&short(IPV4_HEADER_LEN + len));
            reply.add(&[0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            reply.add(&source.octets());
            reply.add(&destination.octets());
            let checksum = ipv4_header(reply.bytes.get(at..reply.len).unwrap_or_default());
            reply.put(at + 10, &checksum.to_be_bytes());
        }
        IpAddresses::V6(source, destination) => {
            reply.add(&ETHERTYPE_IPV6.to_be_bytes());
            reply.add(&[0x60, 0, 0, 0]);
            reply.add(&short(len));
            reply.add(&[protocol, HOP_LIMIT]);
            reply.add(&source.octets());
            reply.add(&destination.octets());
        }
    }
}

/// Writes the checksum of what lies from `transport` on, `offset` bytes from there.
fn finish(reply: &mut Reply, transport: usize, offset: usize, pseudo: Option<(IpAddresses, u8)>) {
    let body = reply.bytes.get(transport..reply.len).unwrap_or_default();
    let mut sum = Sum::default();
    sum.add(body);
    if let Some((addresses, protocol)) = pseudo {
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut with = Sum::default();
        with.add_word(pseudo_header(addresses, protocol, len));
        with.add(body);
        sum = with;
    }
    let checksum = for_field(sum, 0);
    reply.put(transport + offset, &checksum.to_be_bytes());
}

#[cfg(test)]
#[path = "reject_tests.rs"]
mod tests;
