//! The config space (virtio 1.3 §5.2.4).

use outboard_nvme::{LBA_LEN, PHYSICAL_BLOCK_LEN};

/// Its length in bytes: up to and with `topology`, the last field of an offered feature.
pub const CONFIG_LEN: usize = 32;
/// The most segments of data a request may have: with header and status they fit a queue of 128, the size that VMMs
/// give a queue unless told otherwise.
pub const SEG_MAX: u32 = 126;

const PHYSICAL_BLOCK_EXP: u8 = 3;
const _: () = assert!(LBA_LEN << PHYSICAL_BLOCK_EXP == PHYSICAL_BLOCK_LEN);

/// The bytes of a volume's config space.
pub(crate) fn config_space(block_count: u64) -> Vec<u8> {
    // `capacity` counts sectors of 512 bytes, whatever `blk_size` is.
    const { assert!(LBA_LEN == 512) };
    let mut bytes = Vec::with_capacity(CONFIG_LEN);
    bytes.extend(block_count.to_le_bytes()); // capacity
    bytes.extend(0u32.to_le_bytes()); // size_max: not offered
    bytes.extend(SEG_MAX.to_le_bytes()); // seg_max
    bytes.extend([0; 4]); // geometry: not offered
    bytes.extend(512u32.to_le_bytes()); // blk_size
    bytes.extend([PHYSICAL_BLOCK_EXP, 0]); // topology: physical_block_exp, alignment_offset
    bytes.extend(0u16.to_le_bytes()); // topology: min_io_size
    bytes.extend(0u32.to_le_bytes()); // topology: opt_io_size
    bytes
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_blk::virtio_blk_config;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        use std::mem::offset_of;
        let bytes = config_space(0x0102_0304_0506);
        assert_eq!(bytes.len(), CONFIG_LEN);
        assert_eq!(bytes[..8], 0x0102_0304_0506u64.to_le_bytes());
        let at = |offset: usize| u32::from_le_bytes(*bytes[offset..].first_chunk().expect("4 bytes"));
        assert_eq!(at(offset_of!(virtio_blk_config, size_max)), 0);
        assert_eq!(at(offset_of!(virtio_blk_config, seg_max)), SEG_MAX);
        assert_eq!(at(offset_of!(virtio_blk_config, blk_size)), 512);
        assert_eq!(bytes[offset_of!(virtio_blk_config, physical_block_exp)], 3);
        assert_eq!(offset_of!(virtio_blk_config, opt_io_size) + 4, CONFIG_LEN);
    }
}
