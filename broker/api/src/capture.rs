//! Frames that pass a port, captured.

use base64::{Engine, engine::general_purpose::STANDARD};
use outboard_protocol::{
    id::Name,
    inquiry::{self, Way},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::trace::ReasonView;

/// Bytes of a frame that are captured unless asked otherwise: what the card's switch itself looks at.
pub const SNAPLEN_DEFAULT: u32 = 256;
/// Seconds that a capture runs unless asked otherwise.
pub const SECONDS_DEFAULT: u32 = 60;

/// Body of `POST /v1/ports/{name}/captures`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureRequest {
    /// Which frames, after pcap-filter(7); all of them if it is empty.
    #[serde(default)]
    #[schema(example = "tcp port 80 or dropped")]
    pub filter: String,
    /// The first bytes of each that are kept; 256 unless told, 16384 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snaplen: Option<u32>,
    /// After how many frames it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// After how many seconds it ends; 60 unless told, 3600 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u32>,
}

/// A capture that was begun. It is to be read at least every 10 s, or it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CaptureView {
    /// The card that captures.
    #[schema(value_type = String, example = "local")]
    pub card: Name,
    /// Its number there: `GET /v1/cards/{card}/captures/{id}/after/{number}` reads it.
    pub id: u64,
}

/// What a capture has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CapturedView {
    /// The oldest frames that were not read yet.
    pub frames: Vec<FrameView>,
    /// Frames that there was no room for since it began: they came faster than they were read.
    pub lost: u64,
    /// Why nothing more comes, if nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FrameView {
    /// Its number in the capture, from 1 on; the last one that was read is what the next reading names.
    pub number: u64,
    /// When, in nanoseconds since the Unix epoch, by the card's clock.
    pub unix_ns: u64,
    /// `from_guest` or `to_guest`.
    #[schema(value_type = String, example = "from_guest")]
    pub way: Way,
    /// Its whole length in bytes.
    pub len: u32,
    /// Its first bytes, in base64.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    #[schema(value_type = String)]
    pub bytes: Vec<u8>,
    /// Why it was dropped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<ReasonView>,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(de::Error::custom)
}

impl From<inquiry::CapturedFrame> for FrameView {
    fn from(frame: inquiry::CapturedFrame) -> Self {
        Self {
            number: frame.number,
            unix_ns: frame.unix_ns,
            way: frame.way,
            len: frame.len,
            bytes: frame.bytes.into(),
            dropped: frame.dropped.map(Into::into),
        }
    }
}
