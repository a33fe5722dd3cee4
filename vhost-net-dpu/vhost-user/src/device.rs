//! What a session needs of a device.

use outboard_ring::{CallFd, KickFd, Ring, RingError, RingLog};

use crate::backend::BackendChannel;

/// What a queue runs on.
#[derive(Debug)]
pub struct QueueResources {
    /// The ring, over the session's memory.
    pub ring: Ring,
    /// How the driver kicks.
    pub kick: Option<KickFd>,
    /// How the driver is called; without it, it polls.
    pub call: Option<CallFd>,
    /// The virtio features that were negotiated.
    pub features: u64,
    /// How writes to guest memory are logged. The ring was given it already; it is for devices that write guest memory
    /// without the ring.
    pub log: Option<RingLog>,
}

/// Why a device could not do what a session asked.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is no such queue.
    #[error("queue {index} does not exist: the device has {queue_count}")]
    NoSuchQueue {
        /// Which was named.
        index: u16,
        /// How many there are.
        queue_count: u16,
    },
    /// The queue runs already.
    #[error("queue {index} runs already")]
    QueueRuns {
        /// Which.
        index: u16,
    },
    /// The queue does not run.
    #[error("queue {index} does not run")]
    QueueStopped {
        /// Which.
        index: u16,
    },
    /// The ring cannot be served.
    #[error("queue {index}: {source}")]
    Ring {
        /// Which.
        index: u16,
        /// Why.
        source: RingError,
    },
    /// The guest wrote config space that it may only read, or that is not there.
    #[error("guest wrote {len} bytes of config space at {offset}, which it may not write")]
    ConfigNotWritable {
        /// Where, in bytes.
        offset: u32,
        /// How many bytes.
        len: usize,
    },
    /// The device's object is gone: its grant was revoked or it was deleted.
    #[error("{object} is no longer granted to this host: attach it again after it was granted")]
    NotGranted {
        /// Which, such as "port vm1".
        object: String,
    },
    /// The thread that serves the device ended.
    #[error("the worker that serves the device has ended: restart outboard-dpu")]
    WorkerGone,
    /// Something that only this kind of device knows.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// A virtio device, apart from how it is reached.
pub trait Device: Send {
    /// Virtio features offered, including `VIRTIO_F_VERSION_1`. The session adds vhost-user's own.
    fn features(&self) -> u64;
    /// Does the device serve its config space over vhost-user? (virtio-net over vhost-user does not: its VMM does.)
    fn has_config(&self) -> bool;
    /// Number of queues.
    fn queue_count(&self) -> u16;
    /// The largest queue size, a power of two.
    fn queue_size_max(&self) -> u16;
    /// The config space. What is beyond its end reads as zeros.
    fn config(&self) -> Vec<u8>;
    /// The guest wrote config space at `offset`.
    ///
    /// # Errors
    /// It may not. The session goes on.
    fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError>;
    /// Serve a queue. It is not running.
    ///
    /// # Errors
    /// It cannot be served. The session ends.
    fn start_queue(&mut self, index: u16, queue: QueueResources) -> Result<(), DeviceError>;
    /// Stop a queue. Returns when nothing of it is in flight and its memory is no longer used, with where its ring
    /// goes on (vhost-user, GET_VRING_BASE). `None` if it did not run.
    ///
    /// # Errors
    /// It could not be stopped. The session ends.
    fn stop_queue(&mut self, index: u16) -> Result<Option<u32>, DeviceError>;
    /// Call the driver of a running queue by another descriptor from now on. It must be called once at once: what was
    /// used while there was no descriptor, or the old one, may not have been noticed.
    ///
    /// # Errors
    /// It cannot. The session ends.
    fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError>;
    /// Log the writes of a running queue in this way from now on, or not at all. The queue runs on as it was.
    ///
    /// # Errors
    /// It cannot. The session ends.
    fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError>;
    /// Does the device finish requests out of order, so that a front-end should keep a log of what is in flight? Of one
    /// that does not, the position is enough, and only packed rings need a log for that.
    fn finishes_out_of_order(&self) -> bool;
    /// Go back to how the device was at the beginning of the session. All queues were stopped before.
    ///
    /// # Errors
    /// It cannot. The session ends.
    fn reset(&mut self) -> Result<(), DeviceError>;
    /// Does the device want to know the guest's MTU?
    fn takes_mtu(&self) -> bool;
    /// The VMM told the guest this MTU.
    ///
    /// # Errors
    /// It is none that the device can keep to. The session goes on.
    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError>;
    /// Tell the front-end by this channel when config space changes, or no more. Only devices with config space get one.
    fn set_backend_channel(&mut self, channel: Option<BackendChannel>);
    /// The session is over. All queues were stopped before.
    fn closed(&mut self);
}
