//! Why a load could not be carried out, or proved nothing.

use outboard_generator::ring::RingFault;
use outboard_ring::{MemoryError, NotifyError, RingError};
use outboard_vhost_user::DeviceError;

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Checks can be turned off in this build.
    #[error(
        "this build asks before each check whether it is on, which nothing in production does: \
         build this package alone (cargo build --release -p outboard-datapath-load)"
    )]
    Switchable,
    /// No memory or eventfds.
    #[error("the system gave no memory or eventfds: {0}: free some")]
    System(#[from] std::io::Error),
    /// The memory could not be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring could not be set up.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// An eventfd was refused.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// A queue was refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device broke a ring.
    #[error("the device broke queue '{queue}': {fault}: report this as a bug")]
    Used {
        /// Which queue.
        queue: &'static str,
        /// How.
        fault: RingFault,
    },
    /// The device did something else than it was asked for.
    #[error("{what}: the figure would be wrong: report this as a bug")]
    Wrong {
        /// What it did.
        what: String,
    },
    /// The report could not be written.
    #[error("the report could not be written as JSON: {0}")]
    Report(serde_json::Error),
}

impl Error {
    /// The device did something wrong.
    pub fn wrong(what: impl Into<String>) -> Self {
        Self::Wrong { what: what.into() }
    }
}
