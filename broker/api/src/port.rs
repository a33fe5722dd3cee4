//! Ports: virtio-net devices on a network.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use outboard_protocol::{
    card,
    id::{MacAddr, Name},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{binding::BindingView, grant::GrantView};

/// What an operator declares. `PUT /v1/ports/{name}` takes it; its name must be the one in the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// The port's name.
    #[schema(value_type = String, example = "vm1")]
    pub name: Name,
    /// The network it is on.
    #[schema(value_type = String, example = "blue")]
    pub network: Name,
    /// The only source MAC that its guest may use.
    #[schema(value_type = String, example = "52:54:00:00:00:01")]
    pub mac: MacAddr,
    /// The only source addresses that its guest may use, beside the IPv6 link-local one made from its MAC.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["10.0.0.1"]))]
    pub addresses: Vec<IpAddr>,
    /// Its security groups. If left out it is not filtered; with an empty list nothing may pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>, example = json!(["web"]))]
    pub groups: Option<Vec<Name>>,
    /// The card that serves it. If left out: a subport's parent's, else the only one that the topology names, or else the
    /// only one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "local")]
    pub card: Option<Name>,
    /// Makes it a subport: it has no device of its own, and is redeemed, attached and released with its parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trunk: Option<TrunkSpec>,
}

/// How a subport reaches its guest: through the device of another port, in frames that carry a VLAN tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrunkSpec {
    /// The port whose device carries the subport's frames. Frames without a tag are the parent's own.
    #[schema(value_type = String, example = "vm1")]
    pub parent: Name,
    /// The VLAN id of the subport's frames there. If left out: that of the subport's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 4094, example = 100)]
    pub vlan: Option<u16>,
}

impl fmt::Display for TrunkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vlan {
            Some(vlan) => write!(f, "VLAN {vlan} of {}", self.parent),
            None => write!(f, "its network's VLAN, of {}", self.parent),
        }
    }
}

/// A port: what was declared and what is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    /// As declared, with its card filled in.
    pub spec: PortSpec,
    /// Of a subport: the VLAN id of its frames at its parent's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Names of its subports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub subports: Vec<Name>,
    /// Who may have it; absent before it was first granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantView>,
    /// Its live binding, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<BindingView>,
    /// As the card last told; absent before it first did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<PortCounters>,
}

/// Counters of a port since its card started. A frame from the guest is counted once in `tx_frames`, and again either
/// in `drops` or, per receiver, in the receiver's `rx_frames`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortCounters {
    /// Frames taken from the guest.
    pub tx_frames: u64,
    /// Bytes of those, without the virtio header.
    pub tx_bytes: u64,
    /// Frames given to the guest.
    pub rx_frames: u64,
    /// Bytes of those, without the virtio header.
    pub rx_bytes: u64,
    /// Frames dropped, by reason (`snake_case`); reasons that never occurred are left out.
    pub drops: BTreeMap<String, u64>,
}

impl PortCounters {
    /// Frames dropped for any reason.
    pub fn dropped_frames(&self) -> u64 {
        self.drops.values().fold(0, |sum, n| sum.saturating_add(*n))
    }
}

impl From<&card::PortCounters> for PortCounters {
    fn from(told: &card::PortCounters) -> Self {
        Self {
            tx_frames: told.tx_frames,
            tx_bytes: told.tx_bytes,
            rx_frames: told.rx_frames,
            rx_bytes: told.rx_bytes,
            drops: told.drops.iter().cloned().collect(),
        }
    }
}
