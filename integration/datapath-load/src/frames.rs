//! The frames that are sent.

use std::net::Ipv4Addr;

use outboard_generator::net::frames::{TCP_ACK, TCP_PSH, ipv4_header, l4_checksum, pseudo_sum, sum, tcp_header};

/// A virtio header of no offloads, or of a segmentation (virtio 1.3 §5.1.6).
pub const HEADER_LEN: usize = 12;
/// Ethernet and IPv4.
const L4_AT: usize = 34;
const TCP_AT_END: usize = L4_AT + 20;
/// `flags`: the checksum is left to the device.
const NEEDS_CSUM: u8 = 1;
/// `gso_type`: TCP over IPv4.
const GSO_TCPV4: u8 = 1;
/// Payload of a segment that is 1500 bytes as an IP packet.
const SEGMENT_LEN: usize = 1460;
/// Payload of a large frame: as many whole segments as an IP packet has room for.
pub const TSO_PAYLOAD_LEN: usize = 44 * SEGMENT_LEN;

/// What datagrams are for.
pub const UDP_PORT: u16 = 4789;

/// Who sends and who receives.
pub const MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]];
/// Their addresses.
pub const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];

/// Virtio header and frame: UDP, `len` bytes without the frame check sequence.
pub fn udp(len: usize, flow: u16) -> Vec<u8> {
    let mut frame = headers(len, 17);
    frame[L4_AT..L4_AT + 2].copy_from_slice(&(1024 + flow).to_be_bytes());
    frame[L4_AT + 2..L4_AT + 4].copy_from_slice(&UDP_PORT.to_be_bytes());
    frame[L4_AT + 4..L4_AT + 6].copy_from_slice(&short(len - L4_AT).to_be_bytes());
    for (byte, value) in frame[L4_AT + 8..].iter_mut().zip((0..=250u8).cycle()) {
        *byte = value;
    }
    let checksum = l4_checksum(17, pseudo_sum(&frame) + sum(&frame[L4_AT..]));
    frame[L4_AT + 6..L4_AT + 8].copy_from_slice(&checksum.to_be_bytes());
    [vec![0; HEADER_LEN], frame].concat()
}

/// Virtio header and frame: TCP to be cut into segments.
pub fn tcp_segments() -> Vec<u8> {
    let mut frame = headers(TCP_AT_END + TSO_PAYLOAD_LEN, 6);
    frame[L4_AT..L4_AT + 4].copy_from_slice(&[0x10, 0, 0x14, 0x51]);
    tcp_header(&mut frame, 1, 1, TCP_PSH | TCP_ACK);
    for (byte, value) in frame[TCP_AT_END..].iter_mut().zip((0..=250u8).cycle()) {
        *byte = value;
    }
    // The checksum field is left empty: the device writes what it computes itself.
    let [h0, h1] = short(TCP_AT_END).to_le_bytes();
    let [s0, s1] = short(SEGMENT_LEN).to_le_bytes();
    let [c0, c1] = short(L4_AT).to_le_bytes();
    let header = [NEEDS_CSUM, GSO_TCPV4, h0, h1, s0, s1, c0, c1, 16, 0, 0, 0];
    [header.to_vec(), frame].concat()
}

fn headers(len: usize, protocol: u8) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&MACS[1]);
    frame[6..12].copy_from_slice(&MACS[0]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let header = ipv4_header(short(len - 14), protocol, ADDRESSES[0], ADDRESSES[1]);
    frame[14..L4_AT].copy_from_slice(&header);
    frame
}

/// Lengths here are those of IP packets at most.
pub fn short(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}
