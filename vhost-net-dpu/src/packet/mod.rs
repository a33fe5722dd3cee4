//! What a frame is, found from its first bytes alone: Ethernet, then IPv4 or IPv6 with its extension headers, down to
//! where the transport header starts. Nothing a guest claims about its frame (the virtio header) enters here.
//!
//! The parser answers *what* a frame is, or that it contradicts itself; whether the port may send it is policy and
//! decided elsewhere.

mod ipv4;
mod ipv6;

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::HEAD_LEN_MAX;

/// Length of an Ethernet header without tags, in bytes.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// EtherType of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// ICMP for IPv4 (RFC 792).
pub const IP_PROTOCOL_ICMP: u8 = 1;
/// TCP (RFC 9293).
pub const IP_PROTOCOL_TCP: u8 = 6;
/// UDP (RFC 768).
pub const IP_PROTOCOL_UDP: u8 = 17;
/// ICMP for IPv6 (RFC 4443).
pub const IP_PROTOCOL_ICMPV6: u8 = 58;

/// Shortest TCP header, in bytes.
pub const TCP_HEADER_LEN_MIN: usize = 20;
/// UDP's header, in bytes.
pub const UDP_HEADER_LEN: usize = 8;
/// The part that all ICMP messages share, in bytes (RFC 792: with the rest-of-header word).
const ICMP_HEADER_LEN: usize = 8;
/// The part that all ICMPv6 messages share, in bytes (RFC 4443 §2.1).
const ICMPV6_HEADER_LEN: usize = 4;

/// Why a frame's first bytes make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Shorter than an Ethernet header.
    #[error("guest sent {0} bytes, less than an Ethernet header")]
    Runt(usize),
    /// An IPv4 header that contradicts itself or the frame.
    #[error("guest sent a malformed IPv4 packet: {0}")]
    Ipv4(Flaw),
    /// An IPv6 header that contradicts itself or the frame.
    #[error("guest sent a malformed IPv6 packet: {0}")]
    Ipv6(Flaw),
    /// More or longer headers than are looked at.
    #[error("guest sent headers beyond the {HEAD_LEN_MAX} bytes that are inspected")]
    HeadersTooLong,
}

/// What is wrong with an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The frame ends inside a header.
    #[error("it ends inside a header")]
    Truncated,
    /// The version field is not the EtherType's.
    #[error("its version is not the EtherType's")]
    Version,
    /// A header's length field is below the least or beyond the packet.
    #[error("a header length is out of range")]
    HeaderLength,
    /// The packet's length field is beyond the frame or below its headers.
    #[error("its length field does not fit the frame")]
    TotalLength,
    /// A fragment that is too small, misaligned, repeated or ends past 65,535 bytes.
    #[error("its fragmentation is impossible")]
    Fragment,
    /// A header that hosts must not send there.
    #[error("its header chain is not allowed")]
    HeaderChain,
}

/// A frame's addresses and layers. Offsets count from the frame's first byte and lie in the inspected bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Source MAC.
    pub source: [u8; 6],
    /// The network layer.
    pub network: NetworkLayer,
}

/// The network layer of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkLayer {
    /// ARP; its body is not looked into here.
    Arp,
    /// A well-formed IPv4 or IPv6 packet.
    Ip(IpPacket),
    /// Anything else, by EtherType (or 802.3 length).
    Other(u16),
}

/// Source and destination of an IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpAddresses {
    /// IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

/// An IP packet whose lengths agree with each other and with the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpPacket {
    /// Source and destination.
    pub addresses: IpAddresses,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// The transport protocol: what stands after the last header that was walked.
    pub protocol: u8,
    /// Where the transport header starts (in a later fragment: where its data starts).
    pub transport_offset: usize,
    /// Bytes from there to the end of the packet, by the IP header. Padding after it does not count.
    pub transport_len: usize,
    /// Whether this is a fragment.
    pub fragment: Fragment,
    /// The number that all fragments of a datagram have (RFC 791 §3.1, RFC 8200 §4.5); of an IPv6 packet that is no
    /// fragment, 0.
    pub identification: u32,
    /// An IPv4 source route or an IPv6 routing header is there, so that the checksum's destination may not be the
    /// header's.
    pub routed: bool,
}

/// Whether a packet is a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fragment {
    /// A whole packet.
    No,
    /// The first fragment, with the transport header.
    First,
    /// A later fragment, without a transport header.
    Later,
}

/// Parses a frame of `frame_len` bytes of which `head` holds the first ones: all of them, or [`HEAD_LEN_MAX`].
pub fn parse(head: &[u8], frame_len: usize) -> Result<Packet, ParseError> {
    debug_assert_eq!(head.len(), frame_len.min(HEAD_LEN_MAX));
    let Some(([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1], _)) =
        head.split_first_chunk::<ETHERNET_HEADER_LEN>()
    else {
        return Err(ParseError::Runt(frame_len));
    };
    let view = View { head, frame_len };
    let network = match u16::from_be_bytes([*t0, *t1]) {
        ETHERTYPE_ARP => NetworkLayer::Arp,
        ETHERTYPE_IPV4 => NetworkLayer::Ip(ipv4::parse(view)?),
        ETHERTYPE_IPV6 => NetworkLayer::Ip(ipv6::parse(view)?),
        other => NetworkLayer::Other(other),
    };
    Ok(Packet {
        destination: [*d0, *d1, *d2, *d3, *d4, *d5],
        source: [*s0, *s1, *s2, *s3, *s4, *s5],
        network,
    })
}

/// The inspected bytes and the frame's whole length.
#[derive(Clone, Copy)]
struct View<'a> {
    head: &'a [u8],
    frame_len: usize,
}

impl<'a> View<'a> {
    /// `N` bytes at `offset`, if they are in the inspected part.
    fn bytes<const N: usize>(self, offset: usize) -> Option<&'a [u8; N]> {
        self.head.get(offset..)?.first_chunk::<N>()
    }
}

/// Least bytes a packet (or a first fragment) of a protocol must carry, so that what a layer asks about is there.
fn transport_header_len_min(protocol: u8) -> usize {
    match protocol {
        IP_PROTOCOL_TCP => TCP_HEADER_LEN_MIN,
        IP_PROTOCOL_UDP => UDP_HEADER_LEN,
        IP_PROTOCOL_ICMP => ICMP_HEADER_LEN,
        IP_PROTOCOL_ICMPV6 => ICMPV6_HEADER_LEN,
        _ => 0,
    }
}

#[cfg(test)]
#[path = "../packet_tests.rs"]
mod tests;
