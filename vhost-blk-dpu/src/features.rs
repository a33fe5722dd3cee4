//! Which virtio features are offered.

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    },
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
};

/// What every volume offers: VERSION_1, INDIRECT_DESC, FLUSH, BLK_SIZE, SEG_MAX, TOPOLOGY (virtio 1.3 §5.2.3, §6).
pub const DEFAULT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_TOPOLOGY;

/// The features of a volume: RO too if it is read-only.
pub fn features(read_only: bool) -> u64 {
    DEFAULT_FEATURES | u64::from(read_only) << VIRTIO_BLK_F_RO
}

/// Must each write be durable before it is answered? So it is for a driver that cannot flush (virtio 1.3 §5.2.6.2).
pub(crate) fn is_write_through(negotiated: u64) -> bool {
    negotiated & 1 << VIRTIO_BLK_F_FLUSH == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offered_bits_are_those_of_the_specification() {
        let bits: u64 = [2, 6, 9, 10, 28, 32].iter().map(|bit| 1 << bit).sum();
        assert_eq!(features(false), bits);
        assert_eq!(features(true), bits | 1 << 5);
    }

    #[test]
    fn a_driver_without_flush_writes_through() {
        assert!(is_write_through(DEFAULT_FEATURES & !(1 << 9)));
        assert!(!is_write_through(DEFAULT_FEATURES));
    }
}
