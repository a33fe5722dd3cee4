//! What would become of a packet.

use outboard_protocol::{
    id::{MacAddr, Name},
    inquiry::{self, Verdict},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of `POST /v1/ports/{name}/trace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// The packet, as people write it.
    #[schema(example = "tcp 10.0.0.1:1234 > 10.0.0.2:80")]
    pub packet: String,
}

/// What would become of the packet if the port's guest sent it now. Nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceView {
    /// The port it was asked about.
    #[schema(value_type = String, example = "vm1")]
    pub port: Name,
    /// The card that was asked.
    #[schema(value_type = String, example = "local")]
    pub card: Name,
    /// The packet, as it was given.
    pub packet: String,
    /// Source and destination MAC of the frame that was made of it.
    #[schema(value_type = Vec<String>, example = json!(["52:54:00:00:00:01", "52:54:00:00:00:02"]))]
    pub macs: [MacAddr; 2],
    /// How long that frame is, in bytes.
    pub frame_len: u64,
    /// Who was asked, in order, and what they said.
    pub steps: Vec<StepView>,
    /// Where it ends: one for each receiver, or one drop.
    pub ends: Vec<EndView>,
}

/// One station of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// Who decided.
    #[schema(example = "source guard")]
    pub layer: String,
    /// `pass`, `hold` (nothing moves there now), `output` or `drop`.
    #[schema(value_type = String, example = "pass")]
    pub verdict: Verdict,
    /// Why, in words.
    pub detail: String,
    /// The rule that decided, if a rule did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// Where a packet ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndView {
    /// The port whose guest gets it, or that counts the drop.
    #[schema(value_type = String, example = "vm2")]
    pub port: Name,
    /// Why it is dropped; absent if it arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<ReasonView>,
}

/// Why frames are dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReasonView {
    /// The stable name, as in counters and metrics.
    #[schema(example = "spoofed_ipv4")]
    pub name: String,
    /// What happened, and what to do about it where that is not plain.
    pub sentence: String,
    /// Counted at the port that should have received the frame, and not at its sender's.
    pub at_receiver: bool,
}

impl From<inquiry::Reason> for ReasonView {
    fn from(reason: inquiry::Reason) -> Self {
        let inquiry::Reason {
            name,
            sentence,
            at_receiver,
        } = reason;
        Self {
            name,
            sentence,
            at_receiver,
        }
    }
}

impl From<inquiry::Step> for StepView {
    fn from(step: inquiry::Step) -> Self {
        Self {
            layer: step.layer,
            verdict: step.verdict,
            detail: step.detail,
            rule: step.rule,
        }
    }
}

impl From<inquiry::End> for EndView {
    fn from(end: inquiry::End) -> Self {
        Self {
            port: end.port,
            dropped: end.dropped.map(Into::into),
        }
    }
}
