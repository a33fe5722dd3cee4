//! What ends a ring.

use vm_memory::VolatileMemoryError;

use crate::{inflight_log::InflightError, layout::ConfigFault, walk::ChainFault};

/// Why a ring is not, or no longer, served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// It cannot be set up.
    #[error("guest set up a ring that cannot be used: {0}")]
    Config(#[from] ConfigFault),
    /// The available index is further ahead than there are descriptors.
    #[error("guest moved avail.idx to {idx}, more than {size} entries past {next_avail}: reset the device")]
    AvailIndexJump {
        /// What it wrote.
        idx: u16,
        /// Where we are.
        next_avail: u16,
        /// The queue's size.
        size: u16,
    },
    /// More descriptors are available than there are.
    #[error("guest made more descriptors available than the {size} of the queue: reset the device")]
    Overrun {
        /// The queue's size.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("guest made descriptor {head} available, but the queue has {size}: reset the device")]
    HeadOutOfRange {
        /// What it wrote.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A head that the device has not given back yet.
    #[error("guest made descriptor {head} available while the device still had it: reset the device")]
    HeadInFlight {
        /// Which.
        head: u16,
    },
    /// A malformed chain.
    #[error("guest gave a malformed chain at descriptor {head}: {fault}: reset the device")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// What is wrong.
        fault: ChainFault,
    },
    /// A chain that is well formed but that this device cannot take.
    #[error("guest gave a request that the device cannot take at descriptor {head}: {reason}: reset the device")]
    Request {
        /// Its first descriptor.
        head: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// The device gave back a head that it did not have.
    #[error("the device gave back descriptor {head}, which it did not have: report this as a bug")]
    NotInFlight {
        /// Which.
        head: u16,
    },
    /// More bytes are said to be written than the chain has room for.
    #[error(
        "the device says that it wrote {len} bytes to descriptor {head}, which has room for {room}: report this as a bug"
    )]
    UsedLen {
        /// The chain's first descriptor.
        head: u16,
        /// What it says.
        len: u32,
        /// Writable bytes of the chain.
        room: u64,
    },
    /// A chain was given back before one that was taken earlier, but the driver relies on the order.
    #[error(
        "the device gave back descriptor {head} before {due}, though it promised to keep the order: report this as a bug"
    )]
    OutOfOrder {
        /// Which.
        head: u16,
        /// The one that is due.
        due: u16,
    },
    /// What was in flight before cannot be known.
    #[error(transparent)]
    Inflight(#[from] InflightError),
    /// Memory was taken away.
    #[error("host took memory of the guest away while it was in use: restart the VM")]
    MemoryVanished,
    /// The host's side did something that ends the queue.
    #[error("host broke the queue: {reason}")]
    Host {
        /// What it did.
        reason: &'static str,
    },
    /// Ring memory could not be accessed as it should always be.
    #[error("the ring's memory could not be accessed at its own offsets: report this as a bug")]
    Access,
}

impl From<VolatileMemoryError> for RingError {
    fn from(_: VolatileMemoryError) -> Self {
        // Offsets are computed from the queue's size, for which the areas were measured and aligned.
        Self::Access
    }
}
