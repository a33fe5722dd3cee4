//! A request of the guest, checked (virtio 1.3 §5.2.6).
//!
//! How a request is spread over descriptors means nothing (virtio 1.3 §2.7.4.1): it is its readable bytes, beginning with
//! the header, and its writable bytes, ending with the status. So a chain comes down to two lengths and a header.

use outboard_controls::{Check, on};
use outboard_nvme::LBA_LEN;
use outboard_storage::BufferError;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::{
    id::ID_LEN,
    ranges::{RANGE_COUNT_MAX, RANGE_LEN, RangeKind},
};

/// Length of the header in bytes: type, reserved, sector.
pub const HEADER_LEN: usize = 16;
/// Length of the status in bytes.
const STATUS_LEN: u64 = 1;

/// The lengths of a chain in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// What the device may read.
    pub readable_len: u64,
    /// What the device may write.
    pub writable_len: u64,
}

/// What the volume allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its size in blocks of 512 bytes.
    pub block_count: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// What was negotiated: a request of a feature that was not is unsupported.
    pub features: u64,
}

/// A request that may be carried out. `len` is in bytes: a multiple of 512, not 0, and inside the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Read to the writable bytes.
    Read {
        /// First block.
        sector: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Write what follows the header.
    Write {
        /// First block.
        sector: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Make writes durable.
    Flush,
    /// Tell the volume's id.
    GetId,
    /// Discard or zero the ranges that follow the header, which are still to be checked.
    Ranges {
        /// Which of the two.
        kind: RangeKind,
        /// How many ranges: 1 to [`RANGE_COUNT_MAX`].
        count: usize,
    },
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// There is no room for the status, so that it cannot even be refused.
    #[error("guest gave a request without room for its status")]
    NoStatus,
    /// The header is incomplete.
    #[error("guest gave a request of {readable_len} bytes, shorter than its header of {HEADER_LEN}")]
    NoHeader {
        /// How many bytes it has.
        readable_len: u64,
    },
    /// A type that is not offered.
    #[error("guest gave a request of type {kind}, which was not offered")]
    Unsupported {
        /// The type.
        kind: u32,
    },
    /// The wrong number of readable or writable bytes for the type.
    #[error("guest gave a request of type {kind} with {readable_len} readable and {writable_len} writable bytes")]
    Length {
        /// The type.
        kind: u32,
        /// Readable bytes, with the header.
        readable_len: u64,
        /// Writable bytes, with the status.
        writable_len: u64,
    },
    /// The data is not whole blocks, or there is none.
    #[error("guest gave a request for {len} bytes, which is not a whole number of blocks of {LBA_LEN}")]
    PartialBlock {
        /// Length of the data in bytes.
        len: u64,
    },
    /// The range is not inside the volume.
    #[error("guest gave a request for {len} bytes at block {sector} of a volume of {block_count} blocks")]
    OutOfRange {
        /// First block.
        sector: u64,
        /// Length of the data in bytes.
        len: u64,
        /// Size of the volume in blocks.
        block_count: u64,
    },
    /// A write to a read-only volume.
    #[error("guest gave a write to a read-only volume")]
    ReadOnly,
    /// More ranges than the config space allows.
    #[error("guest gave a request for {count} ranges, more than the {RANGE_COUNT_MAX} that its config space allows")]
    TooManyRanges {
        /// How many.
        count: u64,
    },
    /// A range without sectors, or with more than the config space allows.
    #[error("guest gave a range of {sectors} sectors, where 1 to {sectors_max} are allowed")]
    RangeLength {
        /// How many sectors.
        sectors: u32,
        /// How many there may be.
        sectors_max: u32,
    },
    /// Flags that this type of request does not have (virtio 1.3 §5.2.6.2).
    #[error("guest gave a range with flags {flags:#x}, which its request does not have")]
    Flags {
        /// All of them.
        flags: u32,
    },
    /// Its data is in too many pieces.
    #[error(transparent)]
    Data(#[from] BufferError),
}

impl RequestError {
    /// The status by which the guest is told.
    pub fn status(&self) -> u8 {
        match self {
            Self::Unsupported { .. } | Self::Flags { .. } => status_byte(VIRTIO_BLK_S_UNSUPP),
            _ => status_byte(VIRTIO_BLK_S_IOERR),
        }
    }
}

/// Statuses are 8 bits wide.
pub(crate) const fn status_byte(status: u32) -> u8 {
    assert!(status <= 0xff);
    status.to_le_bytes()[0]
}

impl Shape {
    /// Where in the writable bytes the status is: it is the last one.
    pub fn status_offset(self) -> Option<u64> {
        self.writable_len.checked_sub(STATUS_LEN)
    }
}

/// Check a request. `header` is the first [`HEADER_LEN`] readable bytes, or what there is of them.
///
/// # Errors
/// Why it is refused.
pub fn parse(shape: Shape, header: &[u8], limits: Limits) -> Result<Request, RequestError> {
    let Shape {
        readable_len,
        writable_len,
    } = shape;
    let writable_data_len = shape.status_offset().ok_or(RequestError::NoStatus)?;
    let header = header
        .first_chunk::<HEADER_LEN>()
        .ok_or(RequestError::NoHeader { readable_len })?;
    let readable_data_len = readable_len
        .checked_sub(HEADER_LEN as u64)
        .ok_or(RequestError::NoHeader { readable_len })?;
    let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = *header;
    let kind = u32::from_le_bytes([k0, k1, k2, k3]);
    let sector = u64::from_le_bytes(sector);
    let length = RequestError::Length {
        kind,
        readable_len,
        writable_len,
    };

    match (kind, readable_data_len, writable_data_len) {
        (VIRTIO_BLK_T_IN, 0, len) => check_range(sector, len, limits).map(|()| Request::Read { sector, len }),
        (VIRTIO_BLK_T_OUT, _, 0) if limits.read_only && on(Check::VolumeReadOnly) => Err(RequestError::ReadOnly),
        (VIRTIO_BLK_T_OUT, len, 0) => check_range(sector, len, limits).map(|()| Request::Write { sector, len }),
        (VIRTIO_BLK_T_FLUSH, 0, 0) => Ok(Request::Flush),
        (VIRTIO_BLK_T_GET_ID, 0, len) if len == ID_LEN as u64 => Ok(Request::GetId),
        (VIRTIO_BLK_T_DISCARD, ..) if limits.has(VIRTIO_BLK_F_DISCARD) => {
            let count = count_ranges(readable_data_len, writable_data_len, limits).ok_or(length)??;
            let kind = RangeKind::Discard;
            Ok(Request::Ranges { kind, count })
        }
        (VIRTIO_BLK_T_WRITE_ZEROES, ..) if limits.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
            let count = count_ranges(readable_data_len, writable_data_len, limits).ok_or(length)??;
            let kind = RangeKind::WriteZeroes;
            Ok(Request::Ranges { kind, count })
        }
        (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_GET_ID, ..) => Err(length),
        _ => Err(RequestError::Unsupported { kind }),
    }
}

impl Limits {
    fn has(self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }
}

/// How many ranges a request has, if it is made of ranges.
fn count_ranges(readable_data_len: u64, writable_data_len: u64, limits: Limits) -> Option<Result<usize, RequestError>> {
    let count = readable_data_len / RANGE_LEN as u64;
    if writable_data_len != 0 || count == 0 || !readable_data_len.is_multiple_of(RANGE_LEN as u64) {
        return None;
    }
    if limits.read_only && on(Check::VolumeReadOnly) {
        return Some(Err(RequestError::ReadOnly));
    }
    match usize::try_from(count) {
        Ok(count) if count <= RANGE_COUNT_MAX => Some(Ok(count)),
        _ => Some(Err(RequestError::TooManyRanges { count })),
    }
}

fn check_range(sector: u64, len: u64, limits: Limits) -> Result<(), RequestError> {
    if len == 0 || (!len.is_multiple_of(LBA_LEN) && on(Check::RequestLength)) {
        return Err(RequestError::PartialBlock { len });
    }
    match sector.checked_add(len / LBA_LEN) {
        Some(end) if end <= limits.block_count || !on(Check::VolumeRange) => Ok(()),
        _ => Err(RequestError::OutOfRange {
            sector,
            len,
            block_count: limits.block_count,
        }),
    }
}

#[cfg(test)]
mod tests;
