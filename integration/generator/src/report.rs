//! The result of a run, as one JSON object.

use serde::Serialize;

/// What was measured. What a mode does not have is left out. Rates and shares are over the measured seconds; `lost`,
/// `reordered`, `corrupt`, `denied_*` and `errors` are over the whole run after the path was up, warm-up included.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(default)]
pub struct Report {
    /// The mode, or the operation on blocks.
    pub mode: String,
    /// Frames that arrived; connections for `newconn`; round trips for `pingpong` and `paced`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<u64>,
    /// Bytes of these frames on a wire: with the 4 of the frame check sequence, without preamble and gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Length of the measurement.
    pub seconds: f64,
    /// Frames (or what `frames` counts) per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pps: Option<f64>,
    /// Gigabits per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbit_s: Option<f64>,
    /// Frames sent that never arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Frames that arrived after a later one of their flow, or twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reordered: Option<u64>,
    /// Frames whose bytes were not those sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<u64>,
    /// Frames that are none of ours, such as a switch's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign: Option<u64>,
    /// Frames that were compared as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled: Option<u64>,
    /// Frames sent that must be denied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied_sent: Option<u64>,
    /// Those that arrived all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denied_received: Option<u64>,
    /// Latency that half of the samples do not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    /// 99 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
    /// 99.9 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999_us: Option<f64>,
    /// All.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_us: Option<f64>,
    /// The longest time between two answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub longest_gap_us: Option<f64>,
    /// Virtio features negotiated (at the first socket).
    pub features: String,
    /// Protocol features negotiated (at the first socket).
    pub protocol_features: String,
    /// Polls of the receiving ring that found nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub empty_polls_pct: Option<f64>,
    /// Attempts to send that found no room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_full_pct: Option<f64>,
    /// CPU time of the generator's thread.
    pub cpu_pct: f64,
    /// Frames per second of the victim beside legal frames; `pps` is that beside the attack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub legal_pps: Option<f64>,
    /// What is left of it, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub victim_pct: Option<f64>,
    /// Legal frames per second that were sent beside the victim's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside_pps: Option<f64>,
    /// Attacking frames per second that the back-end took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack_pps: Option<f64>,
    /// Requests finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Requests per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iops: Option<f64>,
    /// Requests that the device failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<u64>,
    /// Blocks whose content was compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<u64>,
    /// Rounds in which the thread that moves frames found none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_idle_pct: Option<f64>,
    /// How a ceiling was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub how: Option<&'static str>,
}
