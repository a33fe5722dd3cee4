//! The virtio-net features this device offers, and what a driver's choice of them means.

use outboard_controls::{Check, on};
use virtio_bindings::{
    virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1},
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MTU,
    },
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// Everything offered (virtio 1.3 §5.1.3, §6). The configuration space, and with it MAC, status, the number of queue
/// pairs, the MTU's value and the control queue, belongs to the VMM for a vhost-user network device: of those only
/// MQ and MTU are here, as a VMM shows them to its guest only if the back-end offers them too.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_IN_ORDER
    | 1 << VIRTIO_F_RING_PACKED
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MQ
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_USO
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// The features a driver took, as the datapath asks for them. A feature that depends on one the driver did not take
/// (virtio 1.3 §5.1.3.1) counts as not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The receiver takes a frame in several buffers.
    pub mergeable: bool,
    /// The driver keeps to the MTU that the VMM tells.
    pub mtu: bool,
    /// The sender may leave the checksum to us.
    pub host_csum: bool,
    /// The sender may give us TCP over IPv4 to segment.
    pub host_tso4: bool,
    /// The sender may give us TCP over IPv6 to segment.
    pub host_tso6: bool,
    /// The sender may give us TCP with CWR set to segment.
    pub host_ecn: bool,
    /// The sender may give us UDP to segment.
    pub host_uso: bool,
    /// The receiver takes frames whose checksum is not complete.
    pub guest_csum: bool,
    /// The receiver takes unsegmented TCP over IPv4.
    pub guest_tso4: bool,
    /// The receiver takes unsegmented TCP over IPv6.
    pub guest_tso6: bool,
    /// The receiver takes unsegmented TCP with CWR set.
    pub guest_ecn: bool,
    /// The receiver takes unsegmented UDP over IPv4.
    pub guest_uso4: bool,
    /// The receiver takes unsegmented UDP over IPv6.
    pub guest_uso6: bool,
}

impl Accepted {
    /// From the acknowledged feature bits; `None` without VERSION_1, as the legacy interface is not served.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let has = |bit: u32| bits & 1 << bit != 0;
        if !has(VIRTIO_F_VERSION_1) && on(Check::ModernDriver) {
            return None;
        }
        let host_csum = has(VIRTIO_NET_F_CSUM);
        let host_tso4 = host_csum && has(VIRTIO_NET_F_HOST_TSO4);
        let host_tso6 = host_csum && has(VIRTIO_NET_F_HOST_TSO6);
        let guest_csum = has(VIRTIO_NET_F_GUEST_CSUM);
        let guest_tso4 = guest_csum && has(VIRTIO_NET_F_GUEST_TSO4);
        let guest_tso6 = guest_csum && has(VIRTIO_NET_F_GUEST_TSO6);
        Some(Self {
            mergeable: has(VIRTIO_NET_F_MRG_RXBUF),
            mtu: has(VIRTIO_NET_F_MTU),
            host_csum,
            host_tso4,
            host_tso6,
            host_ecn: (host_tso4 || host_tso6) && has(VIRTIO_NET_F_HOST_ECN),
            host_uso: host_csum && has(VIRTIO_NET_F_HOST_USO),
            guest_csum,
            guest_tso4,
            guest_tso6,
            guest_ecn: (guest_tso4 || guest_tso6) && has(VIRTIO_NET_F_GUEST_ECN),
            guest_uso4: guest_csum && has(VIRTIO_NET_F_GUEST_USO4),
            guest_uso6: guest_csum && has(VIRTIO_NET_F_GUEST_USO6),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h38_h41_nothing_that_needs_a_control_queue_is_offered() {
        use virtio_bindings::virtio_net as net;
        // Virtio 1.3 §5.1.6.5: what is set through a control queue would be filters, MAC and VLAN tables, pairs, and
        // tables for RSS. The VMM may have such a queue with its guest; none of its commands comes here, and so none can
        // widen what a port may send or gets.
        for bit in [
            net::VIRTIO_NET_F_CTRL_VQ,
            net::VIRTIO_NET_F_CTRL_RX,
            net::VIRTIO_NET_F_CTRL_RX_EXTRA,
            net::VIRTIO_NET_F_CTRL_VLAN,
            net::VIRTIO_NET_F_CTRL_MAC_ADDR,
            net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            net::VIRTIO_NET_F_GUEST_ANNOUNCE,
            net::VIRTIO_NET_F_RSS,
            net::VIRTIO_NET_F_HASH_REPORT,
            net::VIRTIO_NET_F_MAC,
        ] {
            assert_eq!(FEATURES & 1 << bit, 0, "feature {bit}");
        }
    }

    #[test]
    fn only_version_1_drivers_are_served() {
        assert_eq!(Accepted::from_bits(FEATURES & !(1 << VIRTIO_F_VERSION_1)), None);
        assert!(Accepted::from_bits(FEATURES).is_some_and(|a| a.mergeable && a.host_tso6 && a.guest_uso4));
    }

    #[test]
    fn what_depends_on_a_feature_that_was_not_taken_counts_as_not_taken() {
        let without = |bits: &[u32]| {
            let bits = bits.iter().fold(0, |all, bit| all | 1 << bit);
            Accepted::from_bits(FEATURES & !bits).expect("VERSION_1 is there")
        };
        let all = without(&[]);
        let a = without(&[VIRTIO_NET_F_CSUM]);
        let host_off = Accepted {
            host_csum: false,
            host_tso4: false,
            host_tso6: false,
            host_ecn: false,
            host_uso: false,
            ..all
        };
        assert_eq!(a, host_off);
        let a = without(&[VIRTIO_NET_F_GUEST_CSUM]);
        let guest_off = Accepted {
            guest_csum: false,
            guest_tso4: false,
            guest_tso6: false,
            guest_ecn: false,
            guest_uso4: false,
            guest_uso6: false,
            ..all
        };
        assert_eq!(a, guest_off);
        assert!(without(&[VIRTIO_NET_F_HOST_TSO4]).host_ecn, "one of the two is enough");
        assert!(!without(&[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6]).host_ecn);
        assert!(!without(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6]).guest_ecn);
    }
}
