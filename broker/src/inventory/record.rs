//! The records, as the store keeps them. Fields are only ever added, with a default.

use outboard_api::{
    address_set::AddressSetSpec, group::GroupSpec, network::NetworkSpec, port::PortSpec, volume::VolumeSpec,
};
use outboard_protocol::{
    binding::{Binding, Event, Now, State, step},
    card::Isolation,
    desired::{GROUPS_CARD_VERSION, TRUNKS_CARD_VERSION},
    id::{BootEpoch, BrokerEpoch, FunctionId, Generation, Incarnation, Name, ObjectRef, Revision},
    refusal::Refusal,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::identity::TokenRecord;

/// The broker's own counters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokerRecord {
    /// The broker's epoch.
    pub epoch: BrokerEpoch,
    /// Highest generation of any binding whose record is gone: objects that are made anew begin above it.
    pub generation_floor: Generation,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CardRecord {
    /// Its name.
    pub name: Name,
    /// Its serial.
    pub serial: String,
    /// The token that may be redeemed, if one was printed and not used yet.
    pub token: Option<TokenRecord>,
    /// The one certificate that it may come with.
    pub certificate: Option<CertificateRecord>,
    /// As it told last.
    pub isolation: Option<Isolation>,
    /// Version of the card protocol that was spoken last; none before the first time.
    #[serde(default)]
    pub version: Option<u16>,
    /// Boot epoch that it told last.
    pub dpu_epoch: Option<BootEpoch>,
    /// Revision of its desired state.
    pub revision: Revision,
    /// SHA-256 of its desired state at that revision, in hex.
    pub desired_sha256: String,
    /// Revision that it said is in force.
    pub applied: Option<Revision>,
    /// Highest incarnation handed out for any of its functions.
    pub incarnation: Incarnation,
    /// Seconds since the Unix epoch when it last connected or left.
    pub last_seen_s: Option<u64>,
}

impl CardRecord {
    /// A card that has never been heard of.
    pub fn new(name: Name, serial: String, token: Option<TokenRecord>) -> Self {
        Self {
            name,
            serial,
            token,
            certificate: None,
            isolation: None,
            version: None,
            dpu_epoch: None,
            revision: Revision::default(),
            desired_sha256: String::new(),
            applied: None,
            incarnation: Incarnation::default(),
            last_seen_s: None,
        }
    }
}

impl CardRecord {
    /// Whether it can filter. One that was never heard of is taken to be of this version.
    pub fn knows_groups(&self) -> bool {
        self.version.is_none_or(|version| version >= GROUPS_CARD_VERSION)
    }

    /// Whether it knows subports. One that was never heard of is taken to be of this version.
    pub fn knows_trunks(&self) -> bool {
        self.version.is_none_or(|version| version >= TRUNKS_CARD_VERSION)
    }
}

/// A certificate that the broker signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// SHA-256 of it, in hex.
    pub fingerprint: String,
    /// Seconds since the Unix epoch until which it is valid.
    pub not_after_s: u64,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// As declared.
    pub spec: NetworkSpec,
    /// Whether applying a topology made it; then applying one without it deletes it.
    pub applied: bool,
}

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// As declared.
    pub spec: GroupSpec,
    /// Whether applying a topology made it.
    pub applied: bool,
}

/// An address set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressSetRecord {
    /// As declared.
    pub spec: AddressSetSpec,
    /// Whether applying a topology made it.
    pub applied: bool,
}

/// Where an object is and who may have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The card that serves it.
    pub card: Name,
    /// The host it is, or was last, granted to.
    pub host: Name,
    /// Whether the grant is in force; a revocation stays until it is granted again.
    pub granted: bool,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRecord {
    /// As declared, with its card.
    pub spec: PortSpec,
    /// Whether applying a topology made it.
    pub applied: bool,
    /// Where it is and who may have it.
    pub placement: Placement,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// As declared, with its card.
    pub spec: VolumeSpec,
    /// Whether applying a topology made it.
    pub applied: bool,
    /// Where it is and who may have it.
    pub placement: Placement,
}

/// The latest binding of an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingRecord {
    /// The object.
    pub object: ObjectRef,
    /// The host it is for.
    pub host: Name,
    /// The function that serves it.
    pub function: FunctionId,
    /// Which binding of the object it is.
    pub generation: Generation,
    /// Its state.
    pub state: State,
    /// What stands in its way, in the card's words.
    pub error: Option<Refusal>,
    /// First revision of the card's desired state without it, once it is to end.
    pub ends_at: Option<Revision>,
    /// Seconds since the Unix epoch when it came into this state.
    pub since_s: u64,
}

impl BindingRecord {
    /// The binding after `event`. An event that is refused (a report about another generation, say) changes nothing.
    #[must_use]
    pub fn after(&self, event: &Event, now_s: u64) -> Self {
        let binding = Binding {
            object: self.object.clone(),
            host: self.host.clone(),
            generation: self.generation,
            incarnation: self.function.incarnation,
            state: self.state,
            since_unix_s: self.since_s,
            expires_unix_s: None,
            error: self.error.clone(),
            served_bytes: None,
            since_ms: 0,
        };
        // The broker's picture has no timeouts of its own: the card runs those.
        match step(
            &binding,
            event,
            Now {
                monotonic_ms: 0,
                unix_s: now_s,
            },
        ) {
            Ok((next, _)) => Self {
                state: next.state,
                error: next.error,
                since_s: next.since_unix_s,
                ..self.clone()
            },
            Err(refusal) => {
                tracing::warn!("ignored what card {} said: {refusal}", self.function.card);
                self.clone()
            }
        }
    }
}

/// The result of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its id.
    pub id: Uuid,
    /// SHA-256 of the request (method, path and body), in hex.
    pub request_sha256: String,
    /// HTTP status of the answer.
    pub status: u16,
    /// The answer's JSON; none if it held a secret or was too long to keep.
    pub body: Option<String>,
    /// Seconds since the Unix epoch when it was done.
    pub done_s: u64,
}

/// An operator of the mutual-TLS API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRecord {
    /// The operator's name.
    pub name: Name,
    /// The one certificate that is let in.
    pub certificate: CertificateRecord,
}
