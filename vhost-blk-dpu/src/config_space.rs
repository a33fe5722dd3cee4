//! The config space (virtio 1.3 §5.2.4).

use outboard_nvme::{LBA_LEN, PHYSICAL_BLOCK_LEN};

use crate::{
    ranges::{DISCARD_SECTORS_MAX, RANGE_COUNT_MAX, ZEROES_SECTORS_MAX},
    unit::QUEUE_COUNT,
};

/// Its length in bytes: up to and with the padding behind `write_zeroes_may_unmap`, the last field of an offered feature.
pub const CONFIG_LEN: usize = 60;
/// The most segments of data a request may have: with header and status they fit a queue of 128, the size that VMMs
/// give a queue unless told otherwise. A driver reads it before any queue has a size.
pub const SEG_MAX: u32 = 126;
/// The most bytes of a segment. What is longer is served all the same.
pub const SIZE_MAX: u32 = 4 << 20;
/// Where the one field is that a driver may write: `writeback`.
pub const WRITEBACK_OFFSET: usize = 32;

const PHYSICAL_BLOCK_EXP: u8 = 3;
const PHYSICAL_BLOCK_SECTORS: u16 = 1 << PHYSICAL_BLOCK_EXP;
const _: () = assert!(LBA_LEN << PHYSICAL_BLOCK_EXP == PHYSICAL_BLOCK_LEN);
const RANGE_COUNT: u32 = 16;
const _: () = assert!(RANGE_COUNT as usize == RANGE_COUNT_MAX);

/// What the config space of a volume depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConfigFields {
    pub(crate) block_count: u64,
    pub(crate) read_only: bool,
    pub(crate) writeback: bool,
}

/// The bytes of a volume's config space.
pub(crate) fn config_space(fields: ConfigFields) -> [u8; CONFIG_LEN] {
    // `capacity` and the limits of ranges count sectors of 512 bytes, whatever `blk_size` is.
    const { assert!(LBA_LEN == 512) };
    let mut space = Space([0; CONFIG_LEN]);
    space.put(0, fields.block_count.to_le_bytes()); // capacity
    space.put(8, SIZE_MAX.to_le_bytes()); // size_max
    space.put(12, SEG_MAX.to_le_bytes()); // seg_max
    // 16: geometry, not offered
    space.put(20, 512u32.to_le_bytes()); // blk_size
    space.put(24, [PHYSICAL_BLOCK_EXP, 0]); // topology: physical_block_exp, alignment_offset
    space.put(26, PHYSICAL_BLOCK_SECTORS.to_le_bytes()); // topology: min_io_size, in blocks
    // 28: topology: opt_io_size, none
    space.put(WRITEBACK_OFFSET, [u8::from(fields.writeback), 0]); // writeback, padding
    space.put(34, QUEUE_COUNT.to_le_bytes()); // num_queues
    if !fields.read_only {
        let (count, alignment) = (RANGE_COUNT, u32::from(PHYSICAL_BLOCK_SECTORS));
        space.put(36, DISCARD_SECTORS_MAX.to_le_bytes()); // max_discard_sectors
        space.put(40, count.to_le_bytes()); // max_discard_seg
        space.put(44, alignment.to_le_bytes()); // discard_sector_alignment
        space.put(48, ZEROES_SECTORS_MAX.to_le_bytes()); // max_write_zeroes_sectors
        space.put(52, count.to_le_bytes()); // max_write_zeroes_seg
        space.put(56, [1]); // write_zeroes_may_unmap
    }
    space.0
}

struct Space([u8; CONFIG_LEN]);

impl Space {
    fn put<const N: usize>(&mut self, at: usize, bytes: [u8; N]) {
        self.0[at..at + N].copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_blk::virtio_blk_config;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_puts_them() {
        use std::mem::offset_of;
        let bytes = config_space(ConfigFields {
            block_count: 0x0102_0304_0506,
            read_only: false,
            writeback: true,
        });
        assert_eq!(bytes.len(), size_of::<virtio_blk_config>().min(CONFIG_LEN));
        assert_eq!(bytes[..8], 0x0102_0304_0506u64.to_le_bytes());
        let at = |offset: usize| u32::from_le_bytes(*bytes[offset..].first_chunk().expect("4 bytes"));
        assert_eq!(at(offset_of!(virtio_blk_config, size_max)), SIZE_MAX);
        assert_eq!(at(offset_of!(virtio_blk_config, seg_max)), SEG_MAX);
        assert_eq!(at(offset_of!(virtio_blk_config, blk_size)), 512);
        assert_eq!(bytes[offset_of!(virtio_blk_config, physical_block_exp)], 3);
        assert_eq!(bytes[offset_of!(virtio_blk_config, min_io_size)], 8);
        assert_eq!(at(offset_of!(virtio_blk_config, opt_io_size)), 0);
        assert_eq!(offset_of!(virtio_blk_config, wce), WRITEBACK_OFFSET);
        assert_eq!(bytes[WRITEBACK_OFFSET], 1);
        assert_eq!(
            at(offset_of!(virtio_blk_config, num_queues)) & 0xffff,
            u32::from(QUEUE_COUNT)
        );
        assert_eq!(
            at(offset_of!(virtio_blk_config, max_discard_sectors)),
            DISCARD_SECTORS_MAX
        );
        assert_eq!(at(offset_of!(virtio_blk_config, max_discard_seg)), 16);
        assert_eq!(at(offset_of!(virtio_blk_config, discard_sector_alignment)), 8);
        assert_eq!(
            at(offset_of!(virtio_blk_config, max_write_zeroes_sectors)),
            ZEROES_SECTORS_MAX
        );
        assert_eq!(at(offset_of!(virtio_blk_config, max_write_zeroes_seg)), 16);
        assert_eq!(bytes[offset_of!(virtio_blk_config, write_zeroes_may_unmap)], 1);
    }

    #[test]
    fn a_read_only_volume_has_no_limits_of_what_it_refuses() {
        let bytes = config_space(ConfigFields {
            block_count: 8,
            read_only: true,
            writeback: false,
        });
        assert_eq!((bytes[WRITEBACK_OFFSET], &bytes[36..]), (0, &[0; 24][..]));
    }
}
