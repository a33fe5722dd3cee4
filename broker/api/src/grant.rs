//! Grants: which host may have which port or volume.

use outboard_protocol::id::{Generation, Name, ObjectKind};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A grant, in force or revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GrantView {
    /// Port or volume.
    #[schema(value_type = String, example = "port")]
    pub kind: ObjectKind,
    /// Name of the port or volume.
    #[schema(value_type = String, example = "vm1")]
    pub name: Name,
    /// The host that may have it.
    #[schema(value_type = String, example = "local")]
    pub host: Name,
    /// The card that serves it.
    #[schema(value_type = String, example = "local")]
    pub card: Name,
    /// Generation of the binding that this grant led to last; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub generation: Option<Generation>,
    /// Absent while the grant is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<Revocation>,
}

/// How far a revocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Revocation {
    /// The card has not confirmed yet: the object may still be in use.
    Pending,
    /// The card confirmed: nothing goes in or out any more.
    Done,
}

impl Revocation {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
        }
    }
}

/// Body of `PUT /v1/grants/{kind}/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// The host to grant it to; the host of the object's card (of the same name) unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub host: Option<Name>,
}
