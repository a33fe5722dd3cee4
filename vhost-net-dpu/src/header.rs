//! `struct virtio_net_hdr` (virtio 1.3 §5.1.6): 12 bytes, little-endian, always with `num_buffers` under VERSION_1.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Size of the header, in bytes, whatever else was negotiated (virtio 1.3 §5.1.6.1).
pub const HEADER_LEN: usize = 12;

/// `flags`: the checksum from `csum_start` on is left to the receiver of the header.
pub const NEEDS_CSUM: u8 = narrow(VIRTIO_NET_HDR_F_NEEDS_CSUM);
/// `gso_type`: one packet as it is.
pub const GSO_NONE: u8 = narrow(VIRTIO_NET_HDR_GSO_NONE);
/// `gso_type`: TCP over IPv4, to be cut into packets with `gso_size` bytes of payload.
pub const GSO_TCPV4: u8 = narrow(VIRTIO_NET_HDR_GSO_TCPV4);
/// `gso_type`: TCP over IPv6, to be cut into packets with `gso_size` bytes of payload.
pub const GSO_TCPV6: u8 = narrow(VIRTIO_NET_HDR_GSO_TCPV6);
/// `gso_type`: UDP over either IP, to be cut into datagrams with `gso_size` bytes of payload.
pub const GSO_UDP_L4: u8 = narrow(VIRTIO_NET_HDR_GSO_UDP_L4);
/// A bit of `gso_type`: the TCP segment has CWR set.
pub const GSO_ECN: u8 = narrow(VIRTIO_NET_HDR_GSO_ECN);

const fn narrow(constant: u32) -> u8 {
    assert!(constant <= 0xff);
    constant.to_le_bytes()[0]
}

/// The header's fields, in host order. From a guest they are claims, nothing more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_*` bits.
    pub flags: u8,
    /// One of `VIRTIO_NET_HDR_GSO_*`, possibly with the ECN bit.
    pub gso_type: u8,
    /// Length of the frame's headers in bytes.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Offset in the frame from which the checksum is computed.
    pub csum_start: u16,
    /// Offset from `csum_start` where the checksum goes.
    pub csum_offset: u16,
    /// Number of receive buffers the frame fills; meaningless from a sender.
    pub num_buffers: u16,
}

impl NetHeader {
    /// Takes the fields out of the header's bytes.
    #[inline]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Does the sender leave anything to us? Flags that the device does not know are ignored (virtio 1.3 §5.1.6.2.2).
    #[inline]
    pub fn asks_for_work(&self) -> bool {
        self.flags & NEEDS_CSUM != 0 || self.gso_type != GSO_NONE
    }

    /// The header's bytes.
    #[inline]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1, n0, n1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_spec_puts_them() {
        let bytes = [1, 4, 0x36, 0, 0xa8, 5, 34, 0, 16, 0, 3, 1];
        let header = NetHeader::parse(&bytes);
        let want = NetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 259,
        };
        assert_eq!(header, want);
        assert_eq!(header.to_bytes(), bytes);
    }
}
