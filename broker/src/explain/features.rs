//! Names of virtio features.

use outboard_protocol::id::ObjectKind;

/// Bits of every device (virtio 1.3 §6).
const COMMON: [(u32, &str); 8] = [
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (38, "NOTIFICATION_DATA"),
    (40, "RING_RESET"),
];

/// Bits of network devices (virtio 1.3 §5.1.3).
const NET: [(u32, &str); 21] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
];

/// Bits of block devices (virtio 1.3 §5.2.3).
const BLOCK: [(u32, &str); 11] = [
    (1, "SIZE_MAX"),
    (2, "SEG_MAX"),
    (4, "GEOMETRY"),
    (5, "RO"),
    (6, "BLK_SIZE"),
    (9, "FLUSH"),
    (10, "TOPOLOGY"),
    (11, "CONFIG_WCE"),
    (12, "MQ"),
    (13, "DISCARD"),
    (14, "WRITE_ZEROES"),
];

/// Vhost-user's own bit, which no driver sees.
const PROTOCOL_FEATURES: u32 = 30;

/// The features in `bits`, by name; those without one by number.
pub(super) fn names(kind: ObjectKind, bits: u64) -> String {
    let own: &[(u32, &str)] = match kind {
        ObjectKind::Port => &NET,
        ObjectKind::Volume => &BLOCK,
    };
    let name = |bit: u32| match own.iter().chain(&COMMON).find(|(known, _)| *known == bit) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("bit {bit}"),
    };
    let set = (0..64).filter(|bit| bits & 1 << bit != 0 && *bit != PROTOCOL_FEATURES);
    let names: Vec<_> = set.map(name).collect();
    format!("features {}", names.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bit_means_what_it_means_for_the_kind_of_device() {
        let bits = 1 << 32 | 1 << 13 | 1 << 30 | 1 << 60;
        assert_eq!(names(ObjectKind::Port, bits), "features HOST_ECN VERSION_1 bit 60");
        assert_eq!(names(ObjectKind::Volume, bits), "features DISCARD VERSION_1 bit 60");
    }
}
