//! Connections that cards follow.

use std::net::IpAddr;

use outboard_protocol::{id::Name, inquiry};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/flows/list` and `POST /v1/flows/flush`: which connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowRequest {
    /// Those of this port, at either end; of all cards that are connected, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "vm1")]
    pub port: Option<Name>,
    /// Which ones, after pcap-filter(7), source and destination being those of the first packet; all if it is empty.
    #[serde(default)]
    #[schema(example = "tcp dst port 80")]
    pub filter: String,
    /// How many to list of each card, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowsView {
    /// Those that were found.
    pub flows: Vec<FlowView>,
    /// There are more than these.
    pub more: bool,
    /// Why a card could not be asked, for each that could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// A connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowView {
    /// The card that follows it.
    #[schema(value_type = String, example = "local")]
    pub card: Name,
    /// The network it is in.
    #[schema(value_type = String, example = "blue")]
    pub network: Name,
    /// The IP protocol.
    pub protocol: u8,
    /// Source of its first packet.
    #[schema(value_type = String, example = "10.0.0.1")]
    pub source: IpAddr,
    /// Its port; of ICMP the identifier.
    pub source_port: u16,
    /// Destination of its first packet.
    #[schema(value_type = String, example = "10.0.0.2")]
    pub destination: IpAddr,
    /// Its port; of ICMP type times 256 and code.
    pub destination_port: u16,
    /// Where it stands.
    #[schema(example = "established")]
    pub state: String,
    /// It was answered.
    pub replied: bool,
    /// Seconds since its first packet.
    pub age_s: u64,
    /// Seconds that it lives without another packet.
    pub left_s: u64,
    /// The port that opened it, if it is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub from: Option<Name>,
    /// The port on the other side, if it is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub to: Option<Name>,
}

/// What ending connections came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlushedView {
    /// How many ended.
    pub count: u64,
    /// Why a card could not be asked, for each that could not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

impl FlowView {
    /// As a card told it.
    pub fn of(card: Name, flow: inquiry::Flow) -> Self {
        Self {
            card,
            network: flow.network,
            protocol: flow.protocol,
            source: flow.source,
            source_port: flow.source_port,
            destination: flow.destination,
            destination_port: flow.destination_port,
            state: flow.state,
            replied: flow.replied,
            age_s: flow.age_s,
            left_s: flow.left_s,
            from: flow.from,
            to: flow.to,
        }
    }
}
