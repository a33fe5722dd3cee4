//! The topology file: networks, security groups, address sets, ports and volumes as an operator wants them.
//!
//! ```
//! let topology = outboard_api::topology::parse(r#"
//!     [[network]]
//!     name = "blue"
//!     subnets = ["10.0.0.0/24"]
//!
//!     [[group]]
//!     name = "web"
//!     [[group.rule]]
//!     direction = "ingress"
//!     protocol = "tcp"
//!     ports = "80-81"
//!     from = "0.0.0.0/0"
//!
//!     [[volume]]
//!     name = "disk1"
//!     size = "4GiB"
//!     backend = { file = "disk1.raw" }
//!
//!     [[port]]
//!     name = "vm1"
//!     network = "blue"
//!     mac = "52:54:00:00:00:01"
//!     addresses = ["10.0.0.1"]
//!     groups = ["web"]
//!     card = "local"
//! "#)?;
//! assert_eq!(topology.ports[0].network.as_str(), "blue");
//! # Ok::<(), outboard_api::topology::TopologyError>(())
//! ```
//!
//! The same object travels as JSON in `PUT /v1/topology` and `POST /v1/topology/diff`. A topology that came as JSON
//! has not been checked: the receiver calls [`Topology::check`].

mod check;
mod diff;
mod error;
mod parse;
mod place;
mod trunk;

use outboard_protocol::id::{Name, ObjectKind, ObjectRef};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use diff::{Current, diff};
pub use error::{Problem, RuleFault, TopologyError};
pub use parse::parse;

use crate::{address_set::AddressSetSpec, group::GroupSpec, network::NetworkSpec, port::PortSpec, volume::VolumeSpec};

/// Longest topology file, in bytes.
pub const TOPOLOGY_LEN_MAX: usize = 1 << 20;

/// Everything that one file declares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Networks.
    #[serde(default, rename = "network", skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkSpec>,
    /// Address sets.
    #[serde(default, rename = "address_set", skip_serializing_if = "Vec::is_empty")]
    pub address_sets: Vec<AddressSetSpec>,
    /// Security groups.
    #[serde(default, rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpec>,
    /// Volumes.
    #[serde(default, rename = "volume", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeSpec>,
    /// Ports.
    #[serde(default, rename = "port", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
}

impl Topology {
    /// As a topology file.
    ///
    /// # Errors
    /// Whatever the TOML writer finds; none is known for these types.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Names of all its objects.
    pub fn objects(&self) -> impl Iterator<Item = TopologyObject> + '_ {
        let networks = self
            .networks
            .iter()
            .map(|n| TopologyObject::new(TopologyKind::Network, &n.name));
        let sets = self
            .address_sets
            .iter()
            .map(|s| TopologyObject::new(TopologyKind::AddressSet, &s.name));
        let groups = self
            .groups
            .iter()
            .map(|g| TopologyObject::new(TopologyKind::Group, &g.name));
        let volumes = self
            .volumes
            .iter()
            .map(|v| TopologyObject::new(TopologyKind::Volume, &v.name));
        let ports = self
            .ports
            .iter()
            .map(|p| TopologyObject::new(TopologyKind::Port, &p.name));
        networks.chain(sets).chain(groups).chain(volumes).chain(ports)
    }
}

/// What a topology declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TopologyKind {
    /// A network.
    Network,
    /// An address set.
    AddressSet,
    /// A security group.
    Group,
    /// A volume.
    Volume,
    /// A port.
    Port,
}

impl TopologyKind {
    /// As in the file and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::AddressSet => "address_set",
            Self::Group => "group",
            Self::Volume => "volume",
            Self::Port => "port",
        }
    }
}

/// An object of a topology, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct TopologyObject {
    /// Which of them.
    pub kind: TopologyKind,
    /// Its name.
    #[schema(value_type = String, example = "vm1")]
    pub name: Name,
}

impl TopologyObject {
    /// The object of that kind and name.
    pub fn new(kind: TopologyKind, name: &Name) -> Self {
        Self {
            kind,
            name: name.clone(),
        }
    }
}

impl From<&ObjectRef> for TopologyObject {
    fn from(object: &ObjectRef) -> Self {
        let kind = match object.kind {
            ObjectKind::Port => TopologyKind::Port,
            ObjectKind::Volume => TopologyKind::Volume,
        };
        Self::new(kind, &object.name)
    }
}

impl std::fmt::Display for TopologyObject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}

/// One thing that applying a topology does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// What is done.
    pub action: Action,
    /// To which object.
    pub object: TopologyObject,
    /// What of it changes, for people; empty for a deletion.
    #[schema(example = "mac 52:54:00:00:00:01 -> 52:54:00:00:00:02")]
    pub detail: String,
}

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is made.
    Create,
    /// It stays, with other values.
    Update,
    /// It goes.
    Delete,
}

impl Action {
    /// As in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}
