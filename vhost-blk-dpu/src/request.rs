//! A request of the guest, checked (virtio 1.3 §5.2.6).
//!
//! How a request is spread over descriptors means nothing (virtio 1.3 §2.7.4.1): it is its readable bytes, beginning with
//! the header, and its writable bytes, ending with the status. So a chain comes down to two lengths and a header.

use outboard_controls::{Check, on};
use outboard_nvme::LBA_LEN;
use outboard_storage::BufferError;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use crate::id::ID_LEN;

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
    /// Its data is in too many pieces.
    #[error(transparent)]
    Data(#[from] BufferError),
}

impl RequestError {
    /// The status by which the guest is told.
    pub fn status(&self) -> u8 {
        match self {
            Self::Unsupported { .. } => status_byte(VIRTIO_BLK_S_UNSUPP),
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
        (VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_FLUSH | VIRTIO_BLK_T_GET_ID, ..) => Err(length),
        _ => Err(RequestError::Unsupported { kind }),
    }
}

fn check_range(sector: u64, len: u64, limits: Limits) -> Result<(), RequestError> {
    if len == 0 || !len.is_multiple_of(LBA_LEN) {
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
