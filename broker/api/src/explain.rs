//! Why a port or volume is as it is.

use jiff::Timestamp;
use outboard_protocol::{
    binding::State,
    id::{Generation, Name, ObjectKind},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{binding::BindingError, trace::ReasonView};

/// The state of an object, from its record down to its rings, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// Port or volume.
    #[schema(value_type = String, example = "port")]
    pub kind: ObjectKind,
    /// Its name.
    #[schema(value_type = String, example = "vm1")]
    pub name: Name,
    /// Nothing stands in its way.
    pub well: bool,
    /// In plain words: is it usable, and if not, why not.
    pub conclusion: String,
    /// What to do about it, if anything is to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What was looked at, from the broker to the ring.
    pub findings: Vec<Finding>,
    /// What happened to its binding since the card started, oldest first.
    pub history: Vec<IncidentView>,
    /// Frames dropped at it, most frequent first.
    pub drops: Vec<DropView>,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// What, such as `grant` or `queue 0`.
    #[schema(example = "grant")]
    pub topic: String,
    /// `well`, `wrong`, `unknown` or `note`.
    pub health: Health,
    /// What was found.
    pub text: String,
}

/// Whether what was found is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Well,
    /// Something stands in the way.
    Wrong,
    /// Nobody who knows could be asked.
    Unknown,
    /// Neither good nor bad.
    Note,
}

impl Health {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Wrong => "wrong",
            Self::Unknown => "unknown",
            Self::Note => "note",
        }
    }
}

/// Something that happened to a binding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IncidentView {
    /// When, by the card's clock.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Which binding of the object.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// The state that it came to, or was in.
    #[schema(value_type = String, example = "active")]
    pub state: State,
    /// What stood in its way from then on; absent if nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<BindingError>,
}

/// How often frames were dropped for a reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DropView {
    /// Why.
    pub reason: ReasonView,
    /// Frames since the card started.
    pub frames: u64,
}
