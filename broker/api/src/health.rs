//! The broker's own state.

use outboard_protocol::id::BrokerEpoch;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// The broker's version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// Raised when the broker is restored from a backup.
    #[schema(value_type = u64)]
    pub broker_epoch: BrokerEpoch,
    /// Cards that are connected now.
    pub cards_connected: u64,
}
