//! The ranges of a discard or write-zeroes request, checked (virtio 1.3 §5.2.6).

use outboard_controls::{Check, on};
use outboard_nvme::{LBA_LEN, Range};
use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

use crate::request::{Limits, RequestError};

/// Length of a range in bytes: first sector, number of sectors, flags.
pub const RANGE_LEN: usize = 16;
/// The most ranges of a request (`max_discard_seg`, `max_write_zeroes_seg`).
pub const RANGE_COUNT_MAX: usize = 16;
/// The most sectors of a range to discard (`max_discard_sectors`).
pub const DISCARD_SECTORS_MAX: u32 = 1 << 21;
/// The most sectors of a range to zero (`max_write_zeroes_sectors`): if they have to be written, a queue that is to stop
/// waits for them.
pub const ZEROES_SECTORS_MAX: u32 = 1 << 17;

/// What is done to the ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// Discard them.
    Discard,
    /// Zero them.
    WriteZeroes,
}

/// The ranges of one request. Room for all there may be, so that nothing is allocated for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    list: [Range; RANGE_COUNT_MAX],
    /// Which of them may be deallocated, a bit each.
    unmap: u16,
    count: u8,
}

const _: () = assert!(RANGE_COUNT_MAX <= 16);

impl Default for Ranges {
    fn default() -> Self {
        Self::new()
    }
}

impl Ranges {
    /// No range.
    pub const fn new() -> Self {
        let none = Range {
            slba: 0,
            block_count: 0,
        };
        Self {
            list: [none; RANGE_COUNT_MAX],
            unmap: 0,
            count: 0,
        }
    }

    /// The ranges.
    pub fn list(&self) -> &[Range] {
        &self.list[..usize::from(self.count)]
    }

    /// May the `n`th be deallocated while it is zeroed?
    pub fn unmap(&self, n: usize) -> bool {
        self.unmap >> n & 1 != 0
    }

    /// Check ranges as they come after a request's header. Of more than [`RANGE_COUNT_MAX`] the rest is ignored: their
    /// number was checked.
    ///
    /// # Errors
    /// Why the request is refused; nothing of it may be done then.
    pub fn parse(kind: RangeKind, bytes: &[[u8; RANGE_LEN]], limits: Limits) -> Result<Self, RequestError> {
        let mut ranges = Self::new();
        for (n, bytes) in bytes.iter().take(RANGE_COUNT_MAX).enumerate() {
            let (range, unmap) = parse_one(kind, *bytes, limits)?;
            ranges.list[n] = range;
            ranges.unmap |= u16::from(unmap) << n;
            ranges.count += 1;
        }
        Ok(ranges)
    }
}

fn parse_one(kind: RangeKind, bytes: [u8; RANGE_LEN], limits: Limits) -> Result<(Range, bool), RequestError> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
    let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
    let flags = u32::from_le_bytes(flags);
    let (known_flags, sectors_max) = match kind {
        RangeKind::Discard => (0, DISCARD_SECTORS_MAX),
        RangeKind::WriteZeroes => (VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, ZEROES_SECTORS_MAX),
    };
    if flags & !known_flags != 0 {
        return Err(RequestError::Flags { flags });
    }
    if sectors == 0 || (sectors > sectors_max && on(Check::VolumeRange)) {
        return Err(RequestError::RangeLength { sectors, sectors_max });
    }
    match sector.checked_add(u64::from(sectors)) {
        Some(end) if end <= limits.block_count || !on(Check::VolumeRange) => {}
        _ => {
            return Err(RequestError::OutOfRange {
                sector,
                len: u64::from(sectors) * LBA_LEN,
                block_count: limits.block_count,
            });
        }
    }
    let range = Range {
        slba: sector,
        block_count: sectors,
    };
    Ok((range, flags != 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        block_count: 1 << 30,
        read_only: false,
        features: u64::MAX,
    };

    fn bytes(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE_LEN] {
        let mut bytes = [0; RANGE_LEN];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    #[test]
    fn flags_are_refused_as_unsupported_and_not_as_an_error() {
        let parse = |kind, flags| Ranges::parse(kind, &[bytes(0, 8, flags)], LIMITS);
        assert!(parse(RangeKind::Discard, 0).is_ok() && parse(RangeKind::WriteZeroes, 0).is_ok());
        assert!(parse(RangeKind::WriteZeroes, 1).expect("known").unmap(0));
        for (kind, flags) in [
            (RangeKind::Discard, 1),
            (RangeKind::Discard, 2),
            (RangeKind::WriteZeroes, 2),
            (RangeKind::WriteZeroes, 3),
            (RangeKind::WriteZeroes, 1 << 31),
        ] {
            assert_eq!(parse(kind, flags).expect_err("unknown").status(), 2, "{kind:?} {flags}");
        }
    }

    proptest! {
        /// Whatever comes, what is let through lies inside the volume and within the limits.
        #[test]
        fn what_is_let_through_is_in_order(
            raw in proptest::collection::vec(
                (
                    prop_oneof![0u64..1002, any::<u64>()],
                    prop_oneof![0u32..1002, any::<u32>()],
                    prop_oneof![4 => 0u32..2, 1 => any::<u32>()],
                ),
                0..20,
            ),
            block_count in prop_oneof![0u64..1001, any::<u64>()],
            discard: bool,
        ) {
            let kind = if discard { RangeKind::Discard } else { RangeKind::WriteZeroes };
            let limits = Limits { block_count, ..LIMITS };
            let all: Vec<_> = raw.iter().map(|&(sector, sectors, flags)| bytes(sector, sectors, flags)).collect();
            match Ranges::parse(kind, &all, limits) {
                Ok(ranges) => {
                    prop_assert_eq!(ranges.list().len(), raw.len().min(RANGE_COUNT_MAX));
                    for (n, (range, &(sector, sectors, flags))) in ranges.list().iter().zip(&raw).enumerate() {
                        prop_assert_eq!((range.slba, range.block_count), (sector, sectors));
                        prop_assert!(sectors > 0 && sectors <= DISCARD_SECTORS_MAX);
                        prop_assert!(u128::from(sector) + u128::from(sectors) <= u128::from(block_count));
                        prop_assert_eq!(ranges.unmap(n), flags == 1);
                        prop_assert!(flags == 0 || !discard && flags == 1);
                    }
                }
                Err(error) => prop_assert!((1..=2).contains(&error.status())),
            }
        }
    }
}
