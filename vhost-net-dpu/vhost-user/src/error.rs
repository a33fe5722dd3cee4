//! Why a session ended.

use outboard_ring::{InflightError, LogError, MemoryError, NotifyError, RingError};
use rustix::io::Errno;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use crate::{
    backend::NoChannel,
    device::DeviceError,
    frame::{DESCRIPTOR_COUNT_MAX, MESSAGE_LEN_MAX, MESSAGE_TIMEOUT},
};

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// The stream was closed, by the peer or by a shutdown of our side of it.
    Closed,
    /// The peer broke the protocol, or the device failed.
    Failed(SessionError),
}

/// Why a session had to be ended. The texts say "host" for the VMM and what stands between it and us.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The stream ended within a message.
    #[error("host closed the session in the middle of a message")]
    Truncated,
    /// The peer began a message or left replies unread and then did nothing.
    #[error("host stalled in the middle of a message for {} s", MESSAGE_TIMEOUT.as_secs())]
    Stalled,
    /// The stream failed.
    #[error("the session's socket failed: {call}: {errno}")]
    Socket {
        /// Which system call.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The header is not one of a vhost-user request.
    #[error("host sent a header with flags {flags:#x}: this is no vhost-user request of version 1")]
    Header {
        /// Its flags.
        flags: u32,
    },
    /// A body longer than any message has.
    #[error("host sent request {request} with {len} bytes, more than {MESSAGE_LEN_MAX}")]
    TooLong {
        /// Its number.
        request: u32,
        /// The length it claims, in bytes.
        len: u32,
    },
    /// More descriptors than fit.
    #[error("host sent more than {DESCRIPTOR_COUNT_MAX} descriptors with a message")]
    TooManyDescriptors,
    /// A request that does not exist, or that was never offered.
    #[error("host sent request {request}, which this device does not serve")]
    Unknown {
        /// Its number.
        request: u32,
    },
    /// A request of a protocol feature that was not negotiated.
    #[error("host sent {request:?} without having negotiated {feature:?}")]
    NotNegotiated {
        /// Which request.
        request: FrontendReq,
        /// What it belongs to.
        feature: VhostUserProtocolFeatures,
    },
    /// A body of the wrong length.
    #[error("host sent {request:?} with {len} bytes where {expected} are due")]
    Len {
        /// Which request.
        request: FrontendReq,
        /// What came, in bytes.
        len: usize,
        /// What should have, in bytes.
        expected: usize,
    },
    /// The wrong number of descriptors.
    #[error("host sent {request:?} with {count} descriptors where {expected} are due")]
    Descriptors {
        /// Which request.
        request: FrontendReq,
        /// How many came.
        count: usize,
        /// How many should have.
        expected: usize,
    },
    /// A field with a value that it cannot have.
    #[error("host sent {request:?} with {field} {value:#x}, which is not allowed")]
    Value {
        /// Which request.
        request: FrontendReq,
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// A queue that does not exist.
    #[error("host named queue {index} in {request:?}, but the device has {queue_count}")]
    QueueIndex {
        /// Which request.
        request: FrontendReq,
        /// Which queue.
        index: u32,
        /// How many there are.
        queue_count: u16,
    },
    /// A queue size that cannot be.
    #[error("host gave queue {index} a size of {size}, which is not a power of two from 1 to {max}")]
    QueueSize {
        /// Which queue.
        index: u16,
        /// The size.
        size: u32,
        /// The largest that was offered.
        max: u16,
    },
    /// A change of a queue that runs.
    #[error("host changed queue {index} by {request:?} while it runs: stop it first, by GET_VRING_BASE")]
    QueueRuns {
        /// Which request.
        request: FrontendReq,
        /// Which queue.
        index: u16,
    },
    /// A part of a ring that is not in guest memory.
    #[error("host put a part of queue {index} at its address {user_addr:#x}, which is not in the memory it gave")]
    RingAddress {
        /// Which queue.
        index: u16,
        /// The VMM's own address.
        user_addr: u64,
    },
    /// A kick descriptor before any memory.
    #[error("host gave queue {index} a kick descriptor before it gave any memory: share the VM's memory first")]
    NoMemory {
        /// Which queue.
        index: u16,
    },
    /// A queue without a kick descriptor.
    #[error("host asks to poll queue {index} without a kick descriptor, which is not served: pass an eventfd")]
    NoKick {
        /// Which queue.
        index: u16,
    },
    /// Features that were not offered.
    #[error("host accepted {what} {extra:#x} that were not offered")]
    Features {
        /// "virtio features" or "protocol features".
        what: &'static str,
        /// Those bits.
        extra: u64,
    },
    /// Other features while queues run.
    #[error("host changed the virtio features while queues run: stop them first, by GET_VRING_BASE")]
    FeaturesInUse,
    /// A second SET_OWNER.
    #[error("host sent SET_OWNER twice in a session")]
    Owned,
    /// The memory was refused.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The dirty log was refused.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The in-flight region was refused.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// Another in-flight region while queues run.
    #[error("host changed the in-flight region while queues run: stop them first, by GET_VRING_BASE")]
    InflightInUse,
    /// The back-end's channel was refused.
    #[error(transparent)]
    Channel(#[from] NoChannel),
    /// A descriptor was refused.
    #[error("queue {index}: {source}")]
    Notify {
        /// Which queue.
        index: u16,
        /// Why.
        source: NotifyError,
    },
    /// A ring cannot be served.
    #[error("queue {index}: {source}")]
    Ring {
        /// Which queue.
        index: u16,
        /// Why.
        source: RingError,
    },
    /// The device could not do what was asked.
    #[error("the device failed: {0}")]
    Device(#[from] DeviceError),
}
