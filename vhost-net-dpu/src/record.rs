//! What a frame is, in one small record: written once, in place, for each frame of a burst.
//!
//! A [`Record`] holds what every frame is asked about; addresses, and whatever else only some are asked about, are read
//! from the frame's private first bytes, which are called its head here.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    header::{NEEDS_CSUM, NetHeader},
    offload::{Offload, PartialChecksum, Segmentation},
    packet::{
        ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, IP_PROTOCOL_ICMP,
        IP_PROTOCOL_ICMPV6, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP, IpAddresses, IpPacket, NetworkLayer, Packet, ParseError,
        TCP_HEADER_LEN_MIN, UDP_HEADER_LEN, parse,
    },
};

/// Where the addresses are, from the start of the frame.
const IPV4_SOURCE: usize = ETHERNET_HEADER_LEN + 12;
const IPV4_DESTINATION: usize = ETHERNET_HEADER_LEN + 16;
const IPV6_SOURCE: usize = ETHERNET_HEADER_LEN + 8;
const IPV6_DESTINATION: usize = ETHERNET_HEADER_LEN + 24;
/// Where the transport header is after a header without options, from the start of the frame.
const IPV4_TRANSPORT: usize = ETHERNET_HEADER_LEN + 20;
const IPV6_TRANSPORT: usize = ETHERNET_HEADER_LEN + 40;
/// Of IPv4's flags and offset, what only fragments have: more to come, or an offset.
const IPV4_FRAGMENT_MASK: u16 = 0x3fff;
/// Where TCP has its flags, from the start of its header.
const TCP_FLAGS: usize = 13;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// No frame to forward: see [`crate::tx::TxQueue::refusal`]. Of the record, only the length means anything.
    #[default]
    Refused,
    /// ARP; its body is not looked into here.
    Arp,
    /// A well-formed IPv4 packet.
    Ipv4,
    /// A well-formed IPv6 packet.
    Ipv6,
    /// Anything else, by EtherType (or 802.3 length).
    Other,
}

/// A frame's addresses and layers in short. Offsets count from the frame's first byte and lie in its head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Destination MAC: its six bytes as a big-endian number.
    pub destination: u64,
    /// Source MAC, likewise.
    pub source: u64,
    /// The frame's length in bytes, without the virtio header.
    pub len: u32,
    /// Of a fragment, the number that all fragments of its datagram have; else 0.
    pub datagram: u32,
    /// EtherType, or 802.3 length.
    pub ethertype: u16,
    /// Where the transport header starts (in a later fragment: where its data starts); 0 where there is no IP.
    pub transport_offset: u16,
    /// Bytes from there to the end of the packet, by the IP header. Padding after it does not count.
    pub transport_len: u16,
    /// TCP's and UDP's source port. Of ICMP and ICMPv6 messages that have an identifier (echo and IPv4's other queries)
    /// that; else 0, as in later fragments.
    pub source_port: u16,
    /// TCP's and UDP's destination port. Of ICMP and ICMPv6 the type (high byte) and code; else 0, as in later
    /// fragments.
    pub destination_port: u16,
    /// What kind of frame it is.
    pub class: Class,
    /// The transport protocol: what stands after the last IP header that was walked.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Whether it is a fragment.
    pub fragment: Fragment,
    /// TCP's flags (RFC 9293 §3.1, from CWR to FIN); else 0, as in later fragments.
    pub tcp_flags: u8,
    /// An IPv4 source route or an IPv6 routing header is there, so that the checksum's destination may not be the
    /// header's.
    pub routed: bool,
    /// What is left to do.
    pub(crate) work: Work,
    /// The header for a receiver that takes the frame as it is, but for `num_buffers`. With [`Work::InnerChecksum`] it is
    /// for us alone: it says where the checksum is.
    pub(crate) header: NetHeader,
}

const _: () = assert!(size_of::<Record>() <= 64, "a record is one cache line");

/// What is left to do on a frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Work {
    /// Nothing.
    #[default]
    None,
    /// The checksum of the packet.
    Checksum,
    /// That of a packet inside it.
    InnerChecksum,
    /// Checksum, and segments to cut.
    Segments,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            destination: 0,
            source: 0,
            len: 0,
            datagram: 0,
            ethertype: 0,
            transport_offset: 0,
            transport_len: 0,
            source_port: 0,
            destination_port: 0,
            class: Class::Refused,
            protocol: 0,
            hop_limit: 0,
            fragment: Fragment::No,
            tcp_flags: 0,
            routed: false,
            work: Work::None,
            header: NetHeader::default(),
        }
    }
}

impl Record {
    /// Parses a frame of `frame_len` bytes of which `head` holds the first ones: all of them, or
    /// [`crate::HEAD_LEN_MAX`]. Nothing is left to do on it.
    ///
    /// # Errors
    /// It contradicts itself.
    pub fn parse(head: &[u8], frame_len: usize) -> Result<Self, ParseError> {
        Ok(Self::of(&parse(head, frame_len)?, head, frame_len))
    }

    /// The same in place. It is not as it was afterwards, whether or not the frame is in order.
    ///
    /// # Errors
    /// As for [`Record::parse`].
    #[inline]
    pub(crate) fn fill(&mut self, head: &[u8], frame_len: usize) -> Result<(), ParseError> {
        if self.fill_plain(head, frame_len) {
            return Ok(());
        }
        *self = Self::parse(head, frame_len)?;
        Ok(())
    }

    /// The same for what most frames are: TCP or UDP, straight after an IPv4 header without options or IPv6's, and whole.
    /// False if the frame is anything else, or not in order.
    #[inline]
    fn fill_plain(&mut self, head: &[u8], frame_len: usize) -> bool {
        // Ethernet, IPv4 and UDP at least.
        let Some(start) = head.first_chunk::<42>() else {
            return false;
        };
        let destination = be64(start, 0) >> 16;
        // The EtherType follows.
        let source = be64(start, 6);
        let [.., t0, t1] = source.to_be_bytes();
        let (class, protocol, hop_limit, transport_offset, end) = match u16::from_be_bytes([t0, t1]) {
            ETHERTYPE_IPV4 if start[14] == 0x45 && be16(start, 20) & IPV4_FRAGMENT_MASK == 0 => {
                let end = ETHERNET_HEADER_LEN + usize::from(be16(start, 16));
                (Class::Ipv4, start[23], start[22], IPV4_TRANSPORT, end)
            }
            ETHERTYPE_IPV6 if start[14] >> 4 == 6 => {
                let end = IPV6_TRANSPORT + usize::from(be16(start, 18));
                (Class::Ipv6, start[20], start[21], IPV6_TRANSPORT, end)
            }
            _ => return false,
        };
        let header_len = match protocol {
            IP_PROTOCOL_TCP => TCP_HEADER_LEN_MIN,
            IP_PROTOCOL_UDP => UDP_HEADER_LEN,
            _ => return false,
        };
        let (Some(transport), true) = (
            head.get(transport_offset..)
                .and_then(|rest| rest.first_chunk::<UDP_HEADER_LEN>()),
            end >= transport_offset + header_len && end <= frame_len,
        ) else {
            return false;
        };
        let [s0, s1, d0, d1, ..] = *transport;
        let tcp_flags = match protocol {
            IP_PROTOCOL_TCP => head.get(transport_offset + TCP_FLAGS).copied().unwrap_or(0),
            _ => 0,
        };
        *self = Self {
            destination,
            source: source >> 16,
            len: u32::try_from(frame_len).unwrap_or(u32::MAX),
            datagram: 0,
            ethertype: u16::from_be_bytes([t0, t1]),
            // Both are below 2^16, as the lengths they come from are.
            transport_offset: u16::try_from(transport_offset).unwrap_or(u16::MAX),
            transport_len: u16::try_from(end - transport_offset).unwrap_or(u16::MAX),
            source_port: u16::from_be_bytes([s0, s1]),
            destination_port: u16::from_be_bytes([d0, d1]),
            class,
            protocol,
            hop_limit,
            fragment: Fragment::No,
            tcp_flags,
            routed: false,
            work: Work::None,
            header: NetHeader::default(),
        };
        true
    }

    /// Of a frame that parsed as `packet`.
    pub(crate) fn of(packet: &Packet, head: &[u8], frame_len: usize) -> Self {
        let mut record = Self {
            destination: mac_number(packet.destination),
            source: mac_number(packet.source),
            len: u32::try_from(frame_len).unwrap_or(u32::MAX),
            ..Self::default()
        };
        match packet.network {
            NetworkLayer::Arp => (record.class, record.ethertype) = (Class::Arp, ETHERTYPE_ARP),
            NetworkLayer::Other(ethertype) => (record.class, record.ethertype) = (Class::Other, ethertype),
            NetworkLayer::Ip(ip) => record.set_ip(&ip, head),
        }
        record
    }

    fn set_ip(&mut self, ip: &IpPacket, head: &[u8]) {
        (self.class, self.ethertype) = match ip.addresses {
            IpAddresses::V4(..) => (Class::Ipv4, ETHERTYPE_IPV4),
            IpAddresses::V6(..) => (Class::Ipv6, ETHERTYPE_IPV6),
        };
        // Both are lengths of IP packets.
        self.transport_offset = u16::try_from(ip.transport_offset).unwrap_or(u16::MAX);
        self.transport_len = u16::try_from(ip.transport_len).unwrap_or(u16::MAX);
        self.protocol = ip.protocol;
        self.hop_limit = ip.hop_limit;
        self.fragment = ip.fragment;
        self.routed = ip.routed;
        if ip.fragment != Fragment::No {
            self.datagram = ip.identification;
        }
        if ip.fragment != Fragment::Later {
            self.set_transport(head);
        }
    }

    fn set_transport(&mut self, head: &[u8]) {
        let transport = self.transport(head);
        let Some([a, b, c, d]) = transport.first_chunk().copied() else {
            return;
        };
        match self.protocol {
            IP_PROTOCOL_TCP | IP_PROTOCOL_UDP => {
                self.source_port = u16::from_be_bytes([a, b]);
                self.destination_port = u16::from_be_bytes([c, d]);
                if self.protocol == IP_PROTOCOL_TCP {
                    self.tcp_flags = transport.get(TCP_FLAGS).copied().unwrap_or(0);
                }
            }
            IP_PROTOCOL_ICMP | IP_PROTOCOL_ICMPV6 => {
                self.destination_port = u16::from_be_bytes([a, b]);
                if has_identifier(self.protocol, a) {
                    let identifier = transport.get(4..).and_then(|rest| rest.first_chunk().copied());
                    self.source_port = u16::from_be_bytes(identifier.unwrap_or_default());
                }
            }
            _ => {}
        }
    }

    /// Notes what is left to do.
    pub(crate) fn set_offload(&mut self, offload: &Offload) {
        self.header = offload.header;
        self.work = match (offload.checksum, offload.segmentation) {
            (_, Some(_)) => Work::Segments,
            (Some(PartialChecksum { inner: false, .. }), None) => Work::Checksum,
            (Some(PartialChecksum { start, offset, .. }), None) => {
                // Both were checked to lie in the head.
                self.header.csum_start = u16::try_from(start).unwrap_or(u16::MAX);
                self.header.csum_offset = u16::try_from(offset).unwrap_or(u16::MAX);
                Work::InnerChecksum
            }
            (None, None) => Work::None,
        };
    }

    /// What is left to do on the frame.
    pub fn offload(&self, head: &[u8]) -> Offload {
        let (start, offset) = (self.header.csum_start.into(), self.header.csum_offset.into());
        let inner = self.work == Work::InnerChecksum;
        let end = usize::from(self.transport_offset) + usize::from(self.transport_len);
        let checksum = PartialChecksum {
            start,
            offset,
            len: end.saturating_sub(start),
            protocol: if inner { IP_PROTOCOL_UDP } else { self.protocol },
            inner,
        };
        Offload {
            checksum: (self.work != Work::None).then_some(checksum),
            segmentation: self.segmentation(head),
            header: if inner { NetHeader::default() } else { self.header },
        }
    }

    fn segmentation(&self, head: &[u8]) -> Option<Segmentation> {
        if self.work != Work::Segments {
            return None;
        }
        Some(Segmentation {
            protocol: self.protocol,
            cwr: self.header.gso_type & crate::header::GSO_ECN != 0,
            headers_len: self.header.hdr_len.into(),
            payload_len: self.header.gso_size.into(),
            addresses: self.addresses(head)?,
        })
    }

    /// Is it one large segment or datagram, to be cut?
    #[inline]
    pub fn is_cut(&self) -> bool {
        self.work == Work::Segments
    }

    /// Packets it is cut into for a receiver that takes none larger than its MTU.
    #[inline]
    pub fn packet_count(&self) -> usize {
        if !self.is_cut() {
            return 1;
        }
        let payload_len = (self.len as usize).saturating_sub(self.header.hdr_len.into());
        payload_len.div_ceil(usize::from(self.header.gso_size).max(1))
    }

    /// Is the transport checksum to be completed by the receiver, so that it need not be looked at?
    pub fn checksum_is_partial(&self) -> bool {
        self.work != Work::None && self.work != Work::InnerChecksum && self.header.flags & NEEDS_CSUM != 0
    }

    /// The destination MAC's bytes.
    pub fn destination_mac(&self) -> [u8; 6] {
        mac_bytes(self.destination)
    }

    /// The source MAC's bytes.
    pub fn source_mac(&self) -> [u8; 6] {
        mac_bytes(self.source)
    }

    /// Is it for more than one station: broadcast or multicast?
    #[inline]
    pub const fn is_group(&self) -> bool {
        self.destination & 1 << 40 != 0
    }

    /// Source and destination of an IPv4 packet, whose `head` this is; `None` of anything else.
    #[inline]
    pub fn v4(&self, head: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
        if self.class != Class::Ipv4 {
            return None;
        }
        let source: [u8; 4] = *head.get(IPV4_SOURCE..)?.first_chunk()?;
        let destination: [u8; 4] = *head.get(IPV4_DESTINATION..)?.first_chunk()?;
        Some((source.into(), destination.into()))
    }

    /// Source and destination of an IPv6 packet, whose `head` this is; `None` of anything else.
    #[inline]
    pub fn v6(&self, head: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
        if self.class != Class::Ipv6 {
            return None;
        }
        let source: [u8; 16] = *head.get(IPV6_SOURCE..)?.first_chunk()?;
        let destination: [u8; 16] = *head.get(IPV6_DESTINATION..)?.first_chunk()?;
        Some((source.into(), destination.into()))
    }

    /// Source and destination of an IP packet, whose `head` this is; `None` of anything else.
    pub fn addresses(&self, head: &[u8]) -> Option<IpAddresses> {
        match self.class {
            Class::Ipv4 => self
                .v4(head)
                .map(|(source, destination)| IpAddresses::V4(source, destination)),
            Class::Ipv6 => self
                .v6(head)
                .map(|(source, destination)| IpAddresses::V6(source, destination)),
            _ => None,
        }
    }

    /// The head from the transport header on; empty where there is no IP.
    #[inline]
    pub fn transport<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        match self.class {
            Class::Ipv4 | Class::Ipv6 => head.get(usize::from(self.transport_offset)..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The same at length.
    pub fn packet(&self, head: &[u8]) -> Packet {
        let network = match (self.class, self.addresses(head)) {
            (Class::Arp, _) => NetworkLayer::Arp,
            (_, Some(addresses)) => NetworkLayer::Ip(IpPacket {
                addresses,
                hop_limit: self.hop_limit,
                protocol: self.protocol,
                transport_offset: self.transport_offset.into(),
                transport_len: self.transport_len.into(),
                fragment: self.fragment,
                identification: self.datagram,
                routed: self.routed,
            }),
            _ => NetworkLayer::Other(self.ethertype),
        };
        Packet {
            destination: self.destination_mac(),
            source: self.source_mac(),
            network,
        }
    }
}

/// A MAC as a number: its bytes, big-endian.
#[inline]
pub const fn mac_number([a, b, c, d, e, f]: [u8; 6]) -> u64 {
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// A number as a MAC.
#[inline]
pub const fn mac_bytes(number: u64) -> [u8; 6] {
    let [_, _, a, b, c, d, e, f] = number.to_be_bytes();
    [a, b, c, d, e, f]
}

#[inline]
fn be16<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn be64<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|n| bytes[at + n]))
}

/// Has an ICMP message of this type an identifier (RFC 792, RFC 4443 §4)?
const fn has_identifier(protocol: u8, kind: u8) -> bool {
    match protocol {
        IP_PROTOCOL_ICMP => matches!(kind, 0 | 8 | 13..=18),
        _ => matches!(kind, 128 | 129),
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
