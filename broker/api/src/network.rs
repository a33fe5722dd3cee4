//! Networks: ports of one exchange frames; ports of different ones never do.

use outboard_protocol::id::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::subnet::Subnet;

/// What an operator declares. `PUT /v1/networks/{name}` takes it; its name must be the one in the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// The network's name.
    #[schema(value_type = String, example = "blue")]
    pub name: Name,
    /// The addresses that its ports may have.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// Its VLAN id, which subports on it have whose trunk names none. Frames of ports with a device carry no tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4094, example = 100)]
    pub vlan: Option<u16>,
}

/// A network, and who is on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkView {
    /// As declared.
    pub spec: NetworkSpec,
    /// Names of its ports.
    #[schema(value_type = Vec<String>)]
    pub ports: Vec<Name>,
}
