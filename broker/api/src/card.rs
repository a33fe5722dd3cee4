//! Cards: enrolled DPUs.

use jiff::Timestamp;
use outboard_protocol::{
    card::Isolation,
    id::{BootEpoch, Name, Revision},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest card serial, in bytes; those in PCI VPD are far shorter.
pub const SERIAL_LEN_MAX: usize = 64;

/// Lifetime of an enrolment token when the request names none, in seconds.
pub const TOKEN_TTL_DEFAULT_S: u64 = 3600;

/// Longest lifetime of an enrolment token, in seconds.
pub const TOKEN_TTL_MAX_S: u64 = 7 * 24 * 3600;

/// A card, as the broker knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CardView {
    /// The operator's name for it.
    #[schema(value_type = String, example = "local")]
    pub name: Name,
    /// Its serial, as in its PCI VPD.
    #[schema(example = "OB-0001")]
    pub serial: String,
    /// Whether it has a certificate and is connected.
    pub state: CardState,
    /// What holds the host's root user off: `machine` or `process`; absent until the card first connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "process")]
    pub isolation: Option<Isolation>,
    /// Whether the card proved what software it runs.
    pub attestation: Attestation,
    /// Boot epoch that it reported last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub dpu_epoch: Option<BootEpoch>,
    /// Revision of the desired state that the broker wants it to hold.
    #[schema(value_type = u64)]
    pub revision_wanted: Revision,
    /// Revision that it said is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub revision_applied: Option<Revision>,
    /// When its certificate ends; it has to be enrolled again before. Absent while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub certificate_expires: Option<Timestamp>,
    /// When it was last heard of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_seen: Option<Timestamp>,
}

/// Where a card is on its way into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CardState {
    /// A token was printed; no certificate has been issued yet.
    Pending,
    /// It has a certificate but no connection now.
    Disconnected,
    /// It is connected.
    Connected,
}

impl CardState {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Disconnected => "disconnected",
            Self::Connected => "connected",
        }
    }
}

/// How a card proved what software it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attestation {
    /// It did not: it gets desired state, and no secrets.
    None,
}

impl Attestation {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
        }
    }
}

/// Asks for an enrolment token: `POST /v1/cards/{name}/enrol`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EnrolRequest {
    /// The card's serial; no two cards may have the same. At most 64 bytes.
    #[schema(example = "OB-0001")]
    pub serial: String,
    /// Seconds until the token expires; 3600 unless told, at most 604800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// A one-time token, shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnrolResponse {
    /// Give it to `outboard-dpu enrol --token`.
    pub token: String,
    /// When it stops working.
    #[schema(value_type = String, format = DateTime)]
    pub expires: Timestamp,
}
