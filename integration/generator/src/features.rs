//! Feature bits that this driver knows (virtio 1.3 §5.1.3, §5.2.3, §6; vhost-user, "Protocol features").

/// VIRTIO_NET_F_CSUM.
pub const NET_CSUM: u64 = 1 << 0;
/// VIRTIO_NET_F_GUEST_CSUM.
pub const NET_GUEST_CSUM: u64 = 1 << 1;
/// VIRTIO_NET_F_GUEST_TSO4.
pub const NET_GUEST_TSO4: u64 = 1 << 7;
/// VIRTIO_NET_F_HOST_TSO4.
pub const NET_HOST_TSO4: u64 = 1 << 11;
/// VIRTIO_NET_F_MRG_RXBUF.
pub const NET_MRG_RXBUF: u64 = 1 << 15;
/// VIRTIO_BLK_F_RO.
pub const BLK_RO: u64 = 1 << 5;
/// VIRTIO_BLK_F_BLK_SIZE.
pub const BLK_BLK_SIZE: u64 = 1 << 6;
/// VIRTIO_BLK_F_FLUSH.
pub const BLK_FLUSH: u64 = 1 << 9;
/// VIRTIO_BLK_F_MQ.
pub const BLK_MQ: u64 = 1 << 12;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_IN_ORDER.
pub const IN_ORDER: u64 = 1 << 35;

/// VHOST_USER_PROTOCOL_F_MQ.
pub const PROTOCOL_MQ: u64 = 1 << 0;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK.
pub const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
/// VHOST_USER_PROTOCOL_F_CONFIG.
pub const PROTOCOL_CONFIG: u64 = 1 << 9;

const NAMES: [(u64, &str); 13] = [
    (NET_CSUM, "CSUM"),
    (NET_GUEST_CSUM, "GUEST_CSUM"),
    (NET_GUEST_TSO4, "GUEST_TSO4"),
    (NET_HOST_TSO4, "HOST_TSO4"),
    (NET_MRG_RXBUF, "MRG_RXBUF"),
    (BLK_RO, "RO"),
    (BLK_FLUSH, "FLUSH"),
    (BLK_MQ, "MQ"),
    (INDIRECT_DESC, "INDIRECT_DESC"),
    (EVENT_IDX, "EVENT_IDX"),
    (PROTOCOL_FEATURES, "PROTOCOL_FEATURES"),
    (VERSION_1, "VERSION_1"),
    (IN_ORDER, "IN_ORDER"),
];

/// Names of the bits.
pub fn names(bits: u64) -> String {
    let names: Vec<&str> = NAMES
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_names() {
        assert_eq!(names(VERSION_1 | IN_ORDER | 1 << 60), "VERSION_1, IN_ORDER");
    }
}
