//! What is known of cards only while the broker runs: connections, the latest inventory and counters.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use outboard_protocol::{
    card::{PortCounters, VolumeCounters},
    desired::DesiredState,
    id::{Name, Revision},
};
use tokio::sync::watch;

use super::report::Reports;

/// Number of a connection, never used again while the broker runs.
pub type ConnectionId = u64;

/// The latest desired state to send; a card that is slow skips those in between.
pub type Outbox = watch::Sender<Option<Arc<DesiredState>>>;

/// A connected card.
#[derive(Debug)]
pub struct Connection {
    /// Its number.
    pub id: ConnectionId,
    /// What is to be sent; dropping it ends the connection.
    pub outbox: Outbox,
    /// Revision that the card said is in force, on this connection.
    pub applied: Option<Revision>,
    /// Number and content of its latest inventory on this connection.
    pub inventory: Option<(u64, Reports)>,
}

/// A card's counters and when they came.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// By port.
    pub ports: BTreeMap<Name, PortCounters>,
    /// By volume.
    pub volumes: BTreeMap<Name, VolumeCounters>,
    /// When they came.
    pub received: Instant,
}

/// All cards that are or were connected.
#[derive(Debug, Default)]
pub struct Live {
    /// Connections by card.
    pub connections: BTreeMap<Name, Connection>,
    /// Latest counters by card; kept after it disconnects.
    pub telemetry: BTreeMap<Name, Telemetry>,
    last_id: ConnectionId,
}

impl Live {
    /// A number for a new connection.
    pub fn next_id(&mut self) -> ConnectionId {
        self.last_id += 1;
        self.last_id
    }

    /// The connection, if it is still the card's present one.
    pub fn connection(&mut self, card: &Name, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(card).filter(|c| c.id == id)
    }
}
