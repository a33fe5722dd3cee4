//! Bindings: a port or volume bound to a function of a card, for a host.

use jiff::Timestamp;
use outboard_protocol::{
    binding::State,
    id::{FunctionKind, Generation, Incarnation, Name, ObjectKind},
    refusal::{Code, Refusal},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One binding, as the broker last heard of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BindingView {
    /// Port or volume.
    #[schema(value_type = String, example = "port")]
    pub kind: ObjectKind,
    /// Name of the port or volume.
    #[schema(value_type = String, example = "vm1")]
    pub name: Name,
    /// The host it is bound for.
    #[schema(value_type = String, example = "local")]
    pub host: Name,
    /// The function that serves it.
    pub function: FunctionView,
    /// Which binding of the object this is; rises with each.
    #[schema(value_type = u64)]
    pub generation: Generation,
    /// One of `reserved`, `prepared`, `attached`, `active`, `draining`, `released`, `quarantined`.
    #[schema(value_type = String, example = "active")]
    pub state: State,
    /// What stands in the way now, in the card's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<BindingError>,
    /// When the broker learnt of this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
}

/// A function of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionView {
    /// The card that has it.
    #[schema(value_type = String, example = "local")]
    pub card: Name,
    /// Controller on that card.
    pub controller: u16,
    /// Physical function of that controller.
    pub pf: u16,
    /// Number within the physical function.
    pub function: u16,
    /// How it reaches the guest.
    #[schema(value_type = String, example = "vhost-user", pattern = "^(vhost-user|subport)$")]
    pub kind: FunctionKind,
    /// Which use of this slot.
    #[schema(value_type = u64)]
    pub incarnation: Incarnation,
}

/// What stands in a binding's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BindingError {
    /// Stable `snake_case` code.
    #[schema(value_type = String, example = "unavailable")]
    pub code: Code,
    /// A sentence naming the object and what to do.
    pub message: String,
}

impl From<&Refusal> for BindingError {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: refusal.code,
            message: refusal.text.clone(),
        }
    }
}
