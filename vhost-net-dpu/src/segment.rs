//! Cutting one large TCP segment or UDP datagram into packets for a receiver that takes none larger than its MTU.
//!
//! Each packet gets the large one's headers with: its own IP length, IPv4 identification counted up (RFC 6864 wants it
//! unique only where fragments may be made) and header checksum, and the pseudo-header's sum in the checksum field,
//! for whoever completes it. TCP gets its own sequence number (RFC 9293 §3.4), FIN and PSH on the last packet only, CWR
//! on the first only (RFC 3168 §6.1.2); UDP its own length (RFC 768).

use crate::{
    HEAD_LEN_MAX,
    checksum::{ipv4_header, pseudo_header},
    offload::{PartialChecksum, Segmentation},
    packet::{ETHERNET_HEADER_LEN, IP_PROTOCOL_UDP, IpAddresses},
};

/// Offsets in IPv4's and IPv6's header, from the start of the frame.
const IPV4_TOTAL_LEN: usize = ETHERNET_HEADER_LEN + 2;
const IPV4_IDENTIFICATION: usize = ETHERNET_HEADER_LEN + 4;
const IPV4_CHECKSUM: usize = ETHERNET_HEADER_LEN + 10;
const IPV6_PAYLOAD_LEN: usize = ETHERNET_HEADER_LEN + 4;
const IPV6_HEADER_LEN: usize = 40;
/// Offsets in TCP's header.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
/// Offset in UDP's header.
const UDP_LEN: usize = 4;
/// TCP flags.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The headers of one packet, and which part of the large frame's payload it carries.
#[derive(Debug, Clone)]
pub struct Segment {
    headers: [u8; HEAD_LEN_MAX],
    headers_len: usize,
    /// Where its payload starts in the large frame.
    pub payload_offset: usize,
    /// How much of it there is, in bytes.
    pub payload_len: usize,
    /// Its checksum, still partial.
    pub checksum: PartialChecksum,
}

impl Segment {
    /// Ethernet, IP and transport headers.
    pub fn headers(&self) -> &[u8] {
        self.headers.get(..self.headers_len).unwrap_or_default()
    }

    /// The same, to complete the checksum in.
    pub fn headers_mut(&mut self) -> &mut [u8] {
        self.headers.get_mut(..self.headers_len).unwrap_or_default()
    }
}

/// The packets of one large frame, in order.
#[derive(Debug)]
pub struct Segments<'a> {
    head: &'a [u8],
    frame_len: usize,
    checksum: PartialChecksum,
    segmentation: Segmentation,
    next_offset: usize,
    index: u16,
}

impl<'a> Segments<'a> {
    /// Of a frame of `frame_len` bytes with the inspected bytes `head`, whose offloads were checked.
    pub fn new(head: &'a [u8], frame_len: usize, checksum: PartialChecksum, segmentation: Segmentation) -> Self {
        Self {
            head,
            frame_len,
            checksum,
            segmentation,
            next_offset: segmentation.headers_len,
            index: 0,
        }
    }

    fn cut(&self, payload_len: usize) -> Option<Segment> {
        let headers_len = self.segmentation.headers_len;
        let mut headers = [0; HEAD_LEN_MAX];
        headers
            .get_mut(..headers_len)?
            .copy_from_slice(self.head.get(..headers_len)?);
        let last = self.next_offset + payload_len == self.frame_len;
        let transport_len = headers_len - self.checksum.start + payload_len;
        if let IpAddresses::V6(..) = self.segmentation.addresses {
            let len = self.checksum.start - ETHERNET_HEADER_LEN - IPV6_HEADER_LEN + transport_len;
            put(&mut headers, IPV6_PAYLOAD_LEN, u16::try_from(len).ok()?.to_be_bytes())?;
        } else {
            self.set_ipv4(&mut headers, transport_len)?;
        }
        let transport = headers.get_mut(self.checksum.start..)?;
        if self.segmentation.protocol == IP_PROTOCOL_UDP {
            put(transport, UDP_LEN, u16::try_from(transport_len).ok()?.to_be_bytes())?;
        } else {
            self.set_tcp(transport, last)?;
        }
        let sum = pseudo_header(
            self.segmentation.addresses,
            self.segmentation.protocol,
            u32::try_from(transport_len).ok()?,
        );
        put(transport, self.checksum.offset, sum.to_be_bytes())?;
        let checksum = PartialChecksum {
            len: transport_len,
            ..self.checksum
        };
        Some(Segment {
            headers,
            headers_len,
            payload_offset: self.next_offset,
            payload_len,
            checksum,
        })
    }

    fn set_tcp(&self, tcp: &mut [u8], last: bool) -> Option<()> {
        let sent = u32::try_from(self.next_offset - self.segmentation.headers_len).ok()?;
        let sequence = u32::from_be_bytes(*tcp.get(TCP_SEQUENCE..)?.first_chunk()?).wrapping_add(sent);
        put(tcp, TCP_SEQUENCE, sequence.to_be_bytes())?;
        let flags = tcp.get_mut(TCP_FLAGS)?;
        if !last {
            *flags &= !(FIN | PSH);
        }
        if self.index != 0 {
            *flags &= !CWR;
        }
        Some(())
    }

    fn set_ipv4(&self, headers: &mut [u8], transport_len: usize) -> Option<()> {
        let total_len = self.checksum.start - ETHERNET_HEADER_LEN + transport_len;
        put(headers, IPV4_TOTAL_LEN, u16::try_from(total_len).ok()?.to_be_bytes())?;
        let identification = u16::from_be_bytes(*headers.get(IPV4_IDENTIFICATION..)?.first_chunk()?);
        put(
            headers,
            IPV4_IDENTIFICATION,
            identification.wrapping_add(self.index).to_be_bytes(),
        )?;
        put(headers, IPV4_CHECKSUM, [0, 0])?;
        let sum = ipv4_header(headers.get(ETHERNET_HEADER_LEN..self.checksum.start)?);
        put(headers, IPV4_CHECKSUM, sum.to_be_bytes())
    }
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let left = self.frame_len.checked_sub(self.next_offset).filter(|left| *left > 0)?;
        let payload_len = left.min(self.segmentation.payload_len);
        let segment = self.cut(payload_len)?;
        self.next_offset += payload_len;
        self.index = self.index.wrapping_add(1);
        Some(segment)
    }
}

fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) -> Option<()> {
    *bytes.get_mut(offset..)?.first_chunk_mut::<N>()? = value;
    Some(())
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
