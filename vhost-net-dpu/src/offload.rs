//! Checksum and segmentation offload: what a sender asks for is checked against our own parse of its frame, and what
//! a receiver is told is made from that parse alone.
//!
//! A virtio header is a licence to write: `csum_start` and `csum_offset` say where the receiver (or its NIC) stores two
//! bytes. Passed on unchecked, they would rewrite addresses or ports after the source guard looked at them. So only
//! the one place that the frame's protocol has is accepted (virtio 1.3 §5.1.6.2, §5.1.6.4), everything else is refused.
//!
//! One exception: a guest that tunnels (VXLAN, Geneve, GRE, IP in IP) leaves the checksum of the *inner* packet, which
//! is not parsed here. Its place is payload, which the guest may fill as it likes, behind all that the source guard looks
//! at; so the sum is completed here, in private bytes, and no receiver is told a place.

use outboard_controls::{Check, on};

use crate::{
    checksum::pseudo_header,
    features::Accepted,
    header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader},
    packet::{
        Fragment, IP_PROTOCOL_TCP, IP_PROTOCOL_UDP, IpAddresses, IpPacket, NetworkLayer, Packet, TCP_HEADER_LEN_MIN,
        UDP_HEADER_LEN,
    },
};

/// Protocols whose payload is another packet: IP in IP (RFC 2003), IPv6 in either (RFC 4213, RFC 2473), GRE (RFC 2784).
const TUNNEL_PROTOCOLS: [u8; 3] = [4, 41, 47];

/// Offset of the checksum field in TCP's header (RFC 9293 §3.1).
const TCP_CHECKSUM_OFFSET: u16 = 16;
/// Offsets of TCP's data offset and flags, and one of the flags (RFC 9293 §3.1).
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const CWR: u8 = 0x80;
/// Offset of the checksum field in UDP's header (RFC 768).
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// Packets one frame may be cut into: 64 KiB by segments of 32 bytes. Linux' smallest TCP segment leaves 36
/// (`tcp_min_snd_mss` 48, less timestamps); without a limit, segments of one byte would make one frame hold up every
/// other port for as long as 65,000 frames.
pub const SEGMENT_COUNT_MAX: usize = 2_048;

/// Datagrams that one frame for a group may be cut into. Every member of the group is given each of them; Linux' own
/// limit for any frame is 128 (`UDP_MAX_SEGMENTS`).
pub const GROUP_SEGMENT_COUNT_MAX: usize = 128;

/// Why a sender's virtio header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OffloadError {
    /// An offload whose feature the driver did not take.
    #[error("guest asked for an offload that it did not negotiate")]
    NotNegotiated,
    /// A checksum for a frame that is not whole TCP or UDP over IP.
    #[error("guest asked for a checksum in a frame that has none to complete")]
    NoChecksumField,
    /// `csum_start` or `csum_offset` is not the protocol's.
    #[error("guest pointed the checksum at another place than the protocol's field")]
    ChecksumPlace,
    /// `gso_type` is not the frame's protocol, came without a checksum, or is TCP's in a frame for a group.
    #[error("guest asked for a segmentation that is not its frame's protocol")]
    SegmentationType,
    /// `gso_size` is zero, gives packets beyond the MTU or too many of them, or `hdr_len` is beyond the frame.
    #[error("guest gave an impossible segment or header length")]
    SegmentationSize,
}

/// The frame's checksum is not complete: the field holds the pseudo-header's sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where the transport header starts.
    pub start: usize,
    /// Where the field is, from `start`.
    pub offset: usize,
    /// Transport header and payload, in bytes.
    pub len: usize,
    /// TCP or UDP; of a tunnelled packet it is not known, and UDP's rule serves both: 0xffff is 0 to whoever verifies.
    pub protocol: u8,
    /// It is that of a packet inside this one: the field holds the sender's partial sum, and it is completed before the
    /// frame is given to anybody.
    pub inner: bool,
}

/// The frame is one large TCP segment or UDP datagram, to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// TCP or UDP.
    pub protocol: u8,
    /// TCP with CWR set: a receiver has to know that it is on the first packet only (RFC 3168 §6.1.2).
    pub cwr: bool,
    /// Ethernet, IP and transport headers, in bytes.
    pub headers_len: usize,
    /// Payload of each packet but the last, in bytes.
    pub payload_len: usize,
    /// Source and destination of each packet.
    pub addresses: IpAddresses,
}

/// What is left to do on a frame. Made by [`check`] only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to complete, if any.
    pub checksum: Option<PartialChecksum>,
    /// The segments to cut, if any; then there is a checksum too.
    pub segmentation: Option<Segmentation>,
    /// The header for a receiver that takes the frame as it is, but for `num_buffers`.
    pub header: NetHeader,
}

impl Offload {
    /// Packets it is cut into for a receiver that takes none larger than its MTU, of a frame of `frame_len` bytes.
    pub fn packet_count(&self, frame_len: usize) -> usize {
        self.segmentation.map_or(1, |segmentation| {
            frame_len
                .saturating_sub(segmentation.headers_len)
                .div_ceil(segmentation.payload_len)
        })
    }

    /// Can a receiver with these features take the frame as it is?
    pub fn suits(&self, receiver: Accepted) -> bool {
        self.segmentation
            .is_none_or(|segmentation| segmentation.suits(receiver))
            && self
                .checksum
                .is_none_or(|checksum| receiver.guest_csum && !checksum.inner)
    }
}

impl Segmentation {
    fn suits(&self, receiver: Accepted) -> bool {
        let v6 = matches!(self.addresses, IpAddresses::V6(..));
        match (self.protocol, v6) {
            (IP_PROTOCOL_UDP, false) => receiver.guest_uso4,
            (IP_PROTOCOL_UDP, true) => receiver.guest_uso6,
            (_, false) => receiver.guest_tso4 && (receiver.guest_ecn || !self.cwr),
            (_, true) => receiver.guest_tso6 && (receiver.guest_ecn || !self.cwr),
        }
    }

    /// The `gso_type` that says so.
    fn gso_type(&self) -> u8 {
        match (self.protocol, self.addresses) {
            (IP_PROTOCOL_UDP, _) => GSO_UDP_L4,
            (_, IpAddresses::V4(..)) => GSO_TCPV4 | if self.cwr { GSO_ECN } else { 0 },
            (_, IpAddresses::V6(..)) => GSO_TCPV6 | if self.cwr { GSO_ECN } else { 0 },
        }
    }
}

/// Who sends: what its driver took, and the largest frame it may send unsegmented, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sender {
    /// The features its driver took.
    pub accepted: Accepted,
    /// The largest frame by its MTU, in bytes without the virtio header.
    pub frame_len_max: usize,
}

/// Checks what the sender asks for, and writes the pseudo-header's sum, as we compute it, into the private bytes.
///
/// `head` are the inspected bytes of a frame of `frame_len` bytes that parsed as `packet`.
pub fn check(
    asked: &NetHeader,
    packet: &Packet,
    head: &mut [u8],
    frame_len: usize,
    sender: Sender,
) -> Result<Offload, OffloadError> {
    let checked = check_inner(asked, packet, head, frame_len, sender);
    if checked.is_err() && !on(Check::OffloadFromParse) {
        return Ok(Offload {
            header: *asked,
            ..Offload::default()
        });
    }
    let offload = checked?;
    if let (Some(checksum), NetworkLayer::Ip(ip)) = (offload.checksum, packet.network)
        && !checksum.inner
    {
        let len = u32::try_from(checksum.len).unwrap_or(u32::MAX);
        let sum = pseudo_header(ip.addresses, checksum.protocol, len);
        if let Some(field) = head
            .get_mut(checksum.start + checksum.offset..)
            .and_then(|b| b.first_chunk_mut::<2>())
        {
            *field = sum.to_be_bytes();
        }
    }
    Ok(offload)
}

fn check_inner(
    asked: &NetHeader,
    packet: &Packet,
    head: &[u8],
    frame_len: usize,
    sender: Sender,
) -> Result<Offload, OffloadError> {
    // Flags the device does not know are ignored (virtio 1.3 §5.1.6.2.2); DATA_VALID is a receiver's flag.
    if asked.flags & NEEDS_CSUM == 0 {
        return match asked.gso_type {
            GSO_NONE => Ok(Offload::default()),
            _ => Err(OffloadError::SegmentationType),
        };
    }
    if !sender.accepted.host_csum {
        return Err(OffloadError::NotNegotiated);
    }
    let NetworkLayer::Ip(ip) = packet.network else {
        return Err(OffloadError::NoChecksumField);
    };
    if let Some(checksum) = inner_checksum(asked, &ip, head) {
        return Ok(Offload {
            checksum: Some(checksum),
            ..Offload::default()
        });
    }
    let offset = checksum_offset(&ip, head)?;
    if usize::from(asked.csum_start) != ip.transport_offset || asked.csum_offset != offset {
        return Err(OffloadError::ChecksumPlace);
    }
    let segmentation = match asked.gso_type {
        GSO_NONE => None,
        _ => segmentation(asked, (packet, &ip), head, frame_len, sender)?,
    };
    let checksum = PartialChecksum {
        start: ip.transport_offset,
        offset: usize::from(offset),
        len: ip.transport_len,
        protocol: ip.protocol,
        inner: false,
    };
    let mut header = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: asked.csum_start, // equal to our transport offset
        csum_offset: offset,
        ..NetHeader::default()
    };
    if let Some(segmentation) = &segmentation {
        header.gso_type = segmentation.gso_type();
        header.gso_size = asked.gso_size;
        header.hdr_len = u16::try_from(segmentation.headers_len).map_err(|_| OffloadError::SegmentationSize)?;
    }
    Ok(Offload {
        checksum: Some(checksum),
        segmentation,
        header,
    })
}

/// The checksum of a tunnelled packet, if that is what is asked for: its field lies in the tunnel's payload and in the
/// inspected bytes.
fn inner_checksum(asked: &NetHeader, ip: &IpPacket, head: &[u8]) -> Option<PartialChecksum> {
    let payload = match ip.protocol {
        IP_PROTOCOL_UDP => ip.transport_offset + UDP_HEADER_LEN,
        protocol if TUNNEL_PROTOCOLS.contains(&protocol) => ip.transport_offset,
        _ => return None,
    };
    let (start, offset) = (usize::from(asked.csum_start), usize::from(asked.csum_offset));
    let end = ip.transport_offset + ip.transport_len;
    let asked_for = asked.gso_type == GSO_NONE && ip.fragment == Fragment::No && !ip.routed;
    let inside = start >= payload && start + offset + 2 <= end.min(head.len());
    (asked_for && inside).then(|| PartialChecksum {
        start,
        offset,
        len: end - start,
        protocol: IP_PROTOCOL_UDP,
        inner: true,
    })
}

/// Where the protocol has its checksum field. UDP sums over its own length field: one that differs from IP's leaves no
/// sum that both sides agree on.
fn checksum_offset(ip: &IpPacket, head: &[u8]) -> Result<u16, OffloadError> {
    if ip.fragment != Fragment::No || ip.routed {
        return Err(OffloadError::NoChecksumField);
    }
    match ip.protocol {
        IP_PROTOCOL_TCP => Ok(TCP_CHECKSUM_OFFSET),
        IP_PROTOCOL_UDP if udp_len(head, ip) == Some(ip.transport_len) => Ok(UDP_CHECKSUM_OFFSET),
        _ => Err(OffloadError::NoChecksumField),
    }
}

fn udp_len(head: &[u8], ip: &IpPacket) -> Option<usize> {
    head.get(ip.transport_offset + 4..)?
        .first_chunk()
        .map(|len| usize::from(u16::from_be_bytes(*len)))
}

/// The segmentation asked for; none if one segment holds all (senders may leave the type set on such frames).
fn segmentation(
    asked: &NetHeader,
    (packet, ip): (&Packet, &IpPacket),
    head: &[u8],
    frame_len: usize,
    sender: Sender,
) -> Result<Option<Segmentation>, OffloadError> {
    let group = packet.destination[0] & 1 != 0;
    let count_max = match ip.protocol {
        IP_PROTOCOL_UDP if group => GROUP_SEGMENT_COUNT_MAX,
        IP_PROTOCOL_TCP if group => return Err(OffloadError::SegmentationType),
        _ => SEGMENT_COUNT_MAX,
    };
    segmentation_type(asked, ip, sender.accepted)?;
    // Padding would become payload of the last segment.
    if ip.transport_offset + ip.transport_len != frame_len || usize::from(asked.hdr_len) > frame_len {
        return Err(OffloadError::SegmentationSize);
    }
    let (header_len, cwr) = transport_header(ip, head).ok_or(OffloadError::SegmentationSize)?;
    let headers_len = ip.transport_offset + header_len;
    let payload_len = usize::from(asked.gso_size);
    if header_len > ip.transport_len
        || headers_len > head.len()
        || payload_len == 0
        || headers_len + payload_len > sender.frame_len_max
    {
        return Err(OffloadError::SegmentationSize);
    }
    let payload_total = frame_len - headers_len;
    if payload_total <= payload_len {
        return Ok(None);
    }
    if payload_total.div_ceil(payload_len) > count_max {
        return Err(OffloadError::SegmentationSize);
    }
    Ok(Some(Segmentation {
        protocol: ip.protocol,
        cwr,
        headers_len,
        payload_len,
        addresses: ip.addresses,
    }))
}

/// Is `gso_type` that of the frame's protocol, and was it negotiated? The ECN bit is a claim about CWR, and leave to
/// make it is all that is looked at here.
fn segmentation_type(asked: &NetHeader, ip: &IpPacket, sender: Accepted) -> Result<(), OffloadError> {
    let v6 = matches!(ip.addresses, IpAddresses::V6(..));
    let ecn = asked.gso_type & GSO_ECN != 0;
    let negotiated = match (ip.protocol, asked.gso_type & !GSO_ECN) {
        (IP_PROTOCOL_TCP, GSO_TCPV4) if !v6 => sender.host_tso4,
        (IP_PROTOCOL_TCP, GSO_TCPV6) if v6 => sender.host_tso6,
        (IP_PROTOCOL_UDP, GSO_UDP_L4) if !ecn => sender.host_uso,
        _ => return Err(OffloadError::SegmentationType),
    };
    if !negotiated || ecn && !sender.host_ecn {
        return Err(OffloadError::NotNegotiated);
    }
    Ok(())
}

/// Length of the TCP or UDP header, and whether it is TCP with CWR set. `None` if it is impossible.
fn transport_header(ip: &IpPacket, head: &[u8]) -> Option<(usize, bool)> {
    if ip.protocol == IP_PROTOCOL_UDP {
        return Some((UDP_HEADER_LEN, false));
    }
    let transport = head.get(ip.transport_offset..)?;
    let len = usize::from(transport.get(TCP_DATA_OFFSET)? >> 4) * 4;
    let cwr = transport.get(TCP_FLAGS)? & CWR != 0;
    (len >= TCP_HEADER_LEN_MIN).then_some((len, cwr))
}

#[cfg(test)]
#[path = "offload_tests.rs"]
mod tests;
