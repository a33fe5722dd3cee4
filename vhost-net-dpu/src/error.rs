//! What can go wrong with a queue or a frame.

use outboard_ring::RingError;

use crate::{FRAME_LEN_MAX, MTU_MIN, offload::OffloadError, packet::ParseError};

/// Why a queue is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The driver did not accept VERSION_1.
    #[error("guest's network driver did not accept VIRTIO_F_VERSION_1: use a driver for virtio 1.0 or later")]
    Legacy,
    /// There is no way for the driver to kick.
    #[error("host gave the transmit queue no kick descriptor, and it is not polled: pass an eventfd")]
    NoKick,
}

/// An MTU that no network device may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("host told an MTU of {mtu} bytes, but the least is {MTU_MIN}: correct the VMM's host_mtu")]
pub struct MtuError {
    /// What it told.
    pub mtu: u16,
}

/// Why a transmitted buffer is no frame, or none that is forwarded. The buffer is given back to the guest all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TxRefusal {
    /// A part of the buffer is for the device to write, or there is no whole virtio header.
    #[error("guest gave a transmit buffer that is writable or shorter than the virtio header")]
    Chain,
    /// Longer than any frame.
    #[error("guest sent a frame of more than {FRAME_LEN_MAX} bytes")]
    Oversize,
    /// Longer than the MTU, and not to be segmented.
    #[error("guest sent a frame of more than {len_max} bytes, its MTU's most, that is not to be segmented")]
    OverMtu {
        /// The most its MTU allows, in bytes.
        len_max: usize,
    },
    /// It contradicts itself.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// Its virtio header contradicts it.
    #[error(transparent)]
    Offload(#[from] OffloadError),
    /// It could not be read: the queue has failed.
    #[error("host took the guest's memory away while a frame was read")]
    MemoryGone,
}

/// Why a receiver did not get a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RxDrop {
    /// Too few buffers are ready.
    #[error("guest has too few receive buffers ready")]
    Full,
    /// The buffers are too small for the frame.
    #[error("guest's receive buffers are too small for the frame")]
    BufferTooSmall,
    /// The frame is longer than the receiver's MTU, and not to be segmented by the receiver.
    #[error("the frame is longer than the receiving guest's MTU")]
    OverMtu,
    /// The queue has failed, now or earlier.
    #[error("guest's receive queue has failed")]
    Broken,
    /// The payload could not be read from the sender's memory.
    #[error("host took the sender's memory away while a frame was copied")]
    SourceGone,
}

/// A queue failed: told once, when it happens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct QueueFailure(#[from] pub RingError);
