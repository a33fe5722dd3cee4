//! What the card keeps on its disk.

use minicbor::{Decode, Encode};

use super::{CardCore, HighWater};
use crate::{
    binding::Binding,
    codec::{DecodeError, decode},
    desired::DesiredState,
    id::{BootEpoch, Name},
    operation::Entry,
};

/// Most operations whose results are kept.
pub const OPERATIONS_MAX: usize = 4096;
/// Most objects whose highest generation is kept one by one.
pub const HIGH_WATER_MAX: usize = 8192;
/// Largest record, in bytes.
pub const RECORD_LEN_MAX: usize = 16 << 20;

/// Everything durable of a [`CardCore`]. What a crash may not undo is in here, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct CardRecord {
    /// The last boot epoch.
    #[n(0)]
    pub dpu_epoch: BootEpoch,
    /// The desired state in force.
    #[n(1)]
    pub desired: DesiredState,
    /// The bindings that have not ended, or whose end the broker may not know.
    #[n(2)]
    pub bindings: Vec<Binding>,
    /// The highest generation seen of each object.
    #[n(3)]
    pub high_water: HighWater,
    /// The highest boot epoch seen of each host.
    #[n(4)]
    pub host_epochs: Vec<(Name, BootEpoch)>,
    /// Results of operations.
    #[n(5)]
    pub operations: Vec<Entry>,
}

impl CardRecord {
    /// The record that the bytes of an [`super::Effect::Persist`] hold.
    ///
    /// # Errors
    /// If they are not such bytes. The caller tells damage apart by a checksum; this is the second line.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, RECORD_LEN_MAX)
    }
}

impl CardCore {
    /// What has to be durable now.
    pub fn record(&self) -> CardRecord {
        CardRecord {
            dpu_epoch: self.dpu_epoch,
            desired: DesiredState::clone(&self.desired),
            bindings: self.bindings().cloned().collect(),
            high_water: HighWater::clone(&self.high_water),
            host_epochs: self
                .host_epochs
                .iter()
                .map(|(host, epoch)| (host.clone(), *epoch))
                .collect(),
            operations: self.operations.entries().cloned().collect(),
        }
    }
}
