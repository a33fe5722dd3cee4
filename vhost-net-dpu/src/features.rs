//! The virtio-net features this device offers, and what a driver's choice of them means.

use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
    },
    virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
};

/// Everything offered (virtio 1.3 §5.1.3). The configuration space, and with it MAC, status and the control queue,
/// belongs to the VMM for a vhost-user network device: none of it is offered here.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// The features a driver took, as the datapath asks for them. A feature that depends on one the driver did not take
/// (virtio 1.3 §5.1.3.1) counts as not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The receiver takes a frame in several buffers.
    pub mergeable: bool,
    /// The sender may leave the checksum to us.
    pub host_csum: bool,
    /// The sender may give us TCP over IPv4 to segment.
    pub host_tso4: bool,
    /// The sender may give us TCP over IPv6 to segment.
    pub host_tso6: bool,
    /// The receiver takes frames whose checksum is not complete.
    pub guest_csum: bool,
    /// The receiver takes unsegmented TCP over IPv4.
    pub guest_tso4: bool,
    /// The receiver takes unsegmented TCP over IPv6.
    pub guest_tso6: bool,
}

impl Accepted {
    /// From the acknowledged feature bits; `None` without VERSION_1, as the legacy interface is not served.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let has = |bit: u32| bits & 1 << bit != 0;
        if !has(VIRTIO_F_VERSION_1) {
            return None;
        }
        let host_csum = has(VIRTIO_NET_F_CSUM);
        let guest_csum = has(VIRTIO_NET_F_GUEST_CSUM);
        Some(Self {
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            host_csum,
            host_tso4: host_csum && has(VIRTIO_NET_F_HOST_TSO4),
            host_tso6: host_csum && has(VIRTIO_NET_F_HOST_TSO6),
            guest_csum,
            guest_tso4: guest_csum && has(VIRTIO_NET_F_GUEST_TSO4),
            guest_tso6: guest_csum && has(VIRTIO_NET_F_GUEST_TSO6),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_version_1_drivers_are_served() {
        assert_eq!(Accepted::from_bits(FEATURES & !(1 << VIRTIO_F_VERSION_1)), None);
        assert!(Accepted::from_bits(FEATURES).is_some_and(|a| a.mergeable && a.host_tso6 && a.guest_tso4));
    }

    #[test]
    fn segmentation_without_checksum_counts_as_not_taken() {
        let accepted = Accepted::from_bits(FEATURES & !(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_CSUM));
        let accepted = accepted.expect("VERSION_1 is there");
        assert!(!accepted.guest_tso4 && !accepted.guest_tso6 && !accepted.host_tso4 && !accepted.host_tso6);
    }
}
