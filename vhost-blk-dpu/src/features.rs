//! Which virtio features are offered.

use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1},
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// What every volume that may be written offers: VERSION_1, RING_PACKED, INDIRECT_DESC, EVENT_IDX, and of its own SIZE_MAX, SEG_MAX,
/// BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES (virtio 1.3 §5.2.3, §6). Requests are completed out
/// of order, so IN_ORDER is never among them.
pub const DEFAULT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_RING_PACKED
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_TOPOLOGY
    | 1 << VIRTIO_BLK_F_CONFIG_WCE
    | 1 << VIRTIO_BLK_F_MQ
    | WRITING_FEATURES;

/// What has no meaning for a volume that may only be read.
const WRITING_FEATURES: u64 = 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES;

/// The features of a volume: one that is read-only says so, and offers neither DISCARD nor WRITE_ZEROES.
pub fn features(read_only: bool) -> u64 {
    match read_only {
        false => DEFAULT_FEATURES,
        true => DEFAULT_FEATURES & !WRITING_FEATURES | 1 << VIRTIO_BLK_F_RO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offered_bits_are_those_of_the_specification() {
        let bits = |bits: &[u32]| bits.iter().map(|bit| 1u64 << bit).sum::<u64>();
        assert_eq!(features(false), bits(&[1, 2, 6, 9, 10, 11, 12, 13, 14, 28, 29, 32, 34]));
        assert_eq!(features(true), bits(&[1, 2, 5, 6, 9, 10, 11, 12, 28, 29, 32, 34]));
    }
}
