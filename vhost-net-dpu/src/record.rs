//! What a frame is, in one small record: written once, in place, for each frame of a burst.
//!
//! A [`Record`] holds what every frame is asked about; addresses, and whatever else only some are asked about, are read
//! from the frame's private first bytes, which are called its head here.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    header::{HEADER_LEN, NEEDS_CSUM, NetHeader},
    offload::{Offload, PartialChecksum, Segmentation},
    packet::{
        ETHERNET_HEADER_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Fragment, IP_PROTOCOL_ICMP,
        IP_PROTOCOL_ICMPV6, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP, IpAddresses, IpPacket, NetworkLayer, Packet, ParseError,
        TCP_HEADER_LEN_MIN, UDP_HEADER_LEN, parse,
    },
    vlan::VLAN_TAG_LEN,
};

/// Where the addresses are, from the start of the frame.
const IPV4_SOURCE: usize = ETHERNET_HEADER_LEN + 12;
const IPV4_DESTINATION: usize = ETHERNET_HEADER_LEN + 16;
const IPV6_SOURCE: usize = ETHERNET_HEADER_LEN + 8;
const IPV6_DESTINATION: usize = ETHERNET_HEADER_LEN + 24;
/// Where the transport header is after a header without options, from the start of the frame.
const IPV4_TRANSPORT: usize = ETHERNET_HEADER_LEN + IPV4_HEADER_LEN as usize;
const IPV6_TRANSPORT: usize = ETHERNET_HEADER_LEN + 40;
/// Length of IPv4's header without options, in bytes.
const IPV4_HEADER_LEN: u16 = 20;
/// The same offsets, as a record has them.
const IPV4_TRANSPORT_OFFSET: u16 = 34;
const IPV6_TRANSPORT_OFFSET: u16 = 54;
const _: () =
    assert!(IPV4_TRANSPORT_OFFSET as usize == IPV4_TRANSPORT && IPV6_TRANSPORT_OFFSET as usize == IPV6_TRANSPORT);
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
    /// TCP's and UDP's source port. Of ICMP and ICMPv6 messages that have an identifier (echo and other queries)
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
    /// The VLAN id of the tag that was taken off, and [`TAGGED`]; else 0.
    pub(crate) tag: u16,
    /// The header for a receiver that takes the frame as it is, but for `num_buffers`. With [`Work::InnerChecksum`] it is
    /// for us alone: it says where the checksum is.
    pub(crate) header: NetHeader,
}

/// Of [`Record::tag`]: there was one.
const TAGGED: u16 = 0x8000;

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
            tag: 0,
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
    #[inline(always)]
    pub(crate) fn fill_plain(&mut self, head: &[u8], frame_len: usize) -> bool {
        // The EtherType and the first byte of what follows.
        match head.get(12..).and_then(|rest| rest.first_chunk()) {
            Some([0x08, 0x00, 0x45]) => self.fill_v4(head, frame_len),
            Some([0x86, 0xdd, first]) if first >> 4 == 6 => self.fill_v6(head, frame_len),
            _ => false,
        }
    }

    /// IPv4 whose header has 20 bytes.
    #[inline]
    fn fill_v4(&mut self, head: &[u8], frame_len: usize) -> bool {
        let Some(start) = head.first_chunk::<{ IPV4_TRANSPORT + UDP_HEADER_LEN }>() else {
            return false;
        };
        let end = ETHERNET_HEADER_LEN + usize::from(be16::<16, _>(start));
        let protocol = start[23];
        let tcp_flags = match protocol {
            IP_PROTOCOL_UDP if end >= IPV4_TRANSPORT + UDP_HEADER_LEN => 0,
            IP_PROTOCOL_TCP if end >= IPV4_TRANSPORT + TCP_HEADER_LEN_MIN => {
                match head.get(IPV4_TRANSPORT + TCP_FLAGS) {
                    Some(flags) => *flags,
                    None => return false,
                }
            }
            _ => return false,
        };
        if be16::<20, _>(start) & IPV4_FRAGMENT_MASK != 0 || end > frame_len {
            return false;
        }
        self.class = Class::Ipv4;
        self.ethertype = ETHERTYPE_IPV4;
        self.hop_limit = start[22];
        self.transport_offset = IPV4_TRANSPORT_OFFSET;
        // `end` was found to be beyond the headers.
        self.transport_len = be16::<16, _>(start).wrapping_sub(IPV4_HEADER_LEN);
        self.source_port = be16::<IPV4_TRANSPORT, _>(start);
        self.destination_port = be16::<{ IPV4_TRANSPORT + 2 }, _>(start);
        self.fill_rest(start, frame_len, protocol, tcp_flags);
        true
    }

    /// IPv6 with no extension header.
    #[inline]
    fn fill_v6(&mut self, head: &[u8], frame_len: usize) -> bool {
        let Some(start) = head.first_chunk::<{ IPV6_TRANSPORT + UDP_HEADER_LEN }>() else {
            return false;
        };
        let transport_len = be16::<18, _>(start);
        let protocol = start[20];
        let tcp_flags = match protocol {
            IP_PROTOCOL_UDP if usize::from(transport_len) >= UDP_HEADER_LEN => 0,
            IP_PROTOCOL_TCP if usize::from(transport_len) >= TCP_HEADER_LEN_MIN => {
                match head.get(IPV6_TRANSPORT + TCP_FLAGS) {
                    Some(flags) => *flags,
                    None => return false,
                }
            }
            _ => return false,
        };
        if IPV6_TRANSPORT + usize::from(transport_len) > frame_len {
            return false;
        }
        self.class = Class::Ipv6;
        self.ethertype = ETHERTYPE_IPV6;
        self.hop_limit = start[21];
        self.transport_offset = IPV6_TRANSPORT_OFFSET;
        self.transport_len = transport_len;
        self.source_port = be16::<IPV6_TRANSPORT, _>(start);
        self.destination_port = be16::<{ IPV6_TRANSPORT + 2 }, _>(start);
        self.fill_rest(start, frame_len, protocol, tcp_flags);
        true
    }

    #[inline]
    fn fill_rest<const N: usize>(&mut self, start: &[u8; N], frame_len: usize, protocol: u8, tcp_flags: u8) {
        self.destination = be64::<0, _>(start) >> 16;
        self.source = be64::<6, _>(start) >> 16;
        // No frame is that long.
        self.len = u32::try_from(frame_len).unwrap_or(u32::MAX);
        self.datagram = 0;
        self.protocol = protocol;
        self.fragment = Fragment::No;
        self.tcp_flags = tcp_flags;
        self.routed = false;
        self.work = Work::None;
        self.tag = 0;
        self.header = NetHeader::default();
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

    /// The VLAN id of the tag that was taken off the frame, which the record does not count as part of it; none if it
    /// had no tag.
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        (self.tag & TAGGED != 0).then_some(self.tag & !TAGGED)
    }

    /// Bytes of the frame's chain to be added to an offset behind its head: the virtio header, and the tag that was taken off.
    #[inline]
    pub fn start(&self) -> usize {
        // 0 or 1 of them, without a branch.
        HEADER_LEN + usize::from(self.tag >> 15) * VLAN_TAG_LEN
    }

    /// Notes that a tag was taken off.
    pub(crate) fn set_vlan(&mut self, vlan: Option<u16>) {
        self.tag = vlan.map_or(0, |vlan| vlan | TAGGED);
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

    /// Is nothing left to do, and nothing to tell a receiver?
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.work == Work::None && self.header.flags | self.header.gso_type == 0
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
    #[inline]
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

    /// Is this packet of the same flow as another one, in the same direction: between the same addresses and ports, by the
    /// same protocol? That is only said of whole TCP and UDP packets without a source route; of all others, no.
    #[inline]
    pub fn continues(&self, head: &[u8], other: &Self, other_head: &[u8]) -> bool {
        // The ports differ most often where the flow does.
        if self.source_port != other.source_port
            || self.destination_port != other.destination_port
            || self.protocol != other.protocol
            || self.class != other.class
            || !(self.is_whole_with_ports() && other.is_whole_with_ports())
        {
            return false;
        }
        match self.class {
            Class::Ipv4 => same_bytes::<8>(head, other_head, IPV4_SOURCE),
            Class::Ipv6 => same_bytes::<32>(head, other_head, IPV6_SOURCE),
            Class::Arp | Class::Other | Class::Refused => false,
        }
    }

    #[inline]
    fn is_whole_with_ports(&self) -> bool {
        let has_ports = matches!(self.protocol, IP_PROTOCOL_TCP | IP_PROTOCOL_UDP);
        has_ports && self.fragment == Fragment::No && !self.routed
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

/// The 16 bits at `AT`.
#[inline]
fn be16<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u16 {
    const { assert!(AT + 2 <= N) };
    u16::from_be_bytes([bytes[AT], bytes[AT + 1]])
}

/// The 64 bits at `AT`.
#[inline]
fn be64<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u64 {
    const { assert!(AT + 8 <= N) };
    let eight = bytes.get(AT..).and_then(|rest| rest.first_chunk().copied());
    u64::from_be_bytes(eight.unwrap_or_default())
}

/// Has an ICMP message of this type an identifier (RFC 792, RFC 4443 §4)? A node information query has the start of
/// its nonce there (RFC 4620 §4).
const fn has_identifier(protocol: u8, kind: u8) -> bool {
    match protocol {
        IP_PROTOCOL_ICMP => matches!(kind, 0 | 8 | 13..=18),
        _ => matches!(kind, 128 | 129 | 139 | 140),
    }
}

/// Have both the same `N` bytes from `at` on?
#[inline]
fn same_bytes<const N: usize>(one: &[u8], other: &[u8], at: usize) -> bool {
    let bytes = |head: &[u8]| head.get(at..).and_then(|rest| rest.first_chunk::<N>().copied());
    bytes(one).is_some_and(|bytes_of_one| Some(bytes_of_one) == bytes(other))
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
