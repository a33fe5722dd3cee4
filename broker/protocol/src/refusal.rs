//! Typed refusals: what a peer is told when it does not get what it asked for.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Why a request was refused. The host sees [`Code::NotGranted`] alike for objects that do not exist, belong to
/// another host, were revoked or have expired, so that it cannot learn which objects exist (promise P6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum Code {
    /// The object is not granted to the peer (or does not exist; the two are not told apart).
    #[n(0)]
    NotGranted,
    /// A generation, incarnation or epoch older than the one in force.
    #[n(1)]
    Stale,
    /// The event is not possible in the binding's present state.
    #[n(2)]
    WrongState,
    /// The same operation id came with another request.
    #[n(3)]
    OperationConflict,
    /// The operation id is older than results are kept.
    #[n(4)]
    OperationExpired,
    /// No common protocol version.
    #[n(5)]
    Version,
    /// The message could not be decoded, or a bound was passed.
    #[n(6)]
    Malformed,
    /// A quota would be passed.
    #[n(7)]
    Quota,
    /// The enrolment token is wrong, used or expired.
    #[n(8)]
    BadToken,
    /// The object cannot be served: its backing is missing, too small or failed.
    #[n(9)]
    Unavailable,
    /// The object has a session already, or is being set up and there in a moment: ask again soon.
    #[n(10)]
    Busy,
}

/// A refusal, with a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode, thiserror::Error)]
pub struct Refusal {
    /// For programs.
    #[n(0)]
    pub code: Code,
    /// For people: what happened to which object, and what to do. At most [`REFUSAL_TEXT_LEN_MAX`] bytes.
    #[cbor(n(1), with = "text")]
    pub text: String,
}

impl Refusal {
    /// A refusal whose text is cut at [`REFUSAL_TEXT_LEN_MAX`] bytes.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(cut_at(&text));
        Self { code, text }
    }
}

/// Where a text ends so that it fits [`REFUSAL_TEXT_LEN_MAX`] and no character is split.
fn cut_at(text: &str) -> usize {
    text.floor_char_boundary(REFUSAL_TEXT_LEN_MAX)
}

/// The text on the wire: cut when it is written, refused when a peer wrote more.
mod text {
    use minicbor::{Decoder, Encoder};

    pub fn encode<C, W: minicbor::encode::Write>(
        text: &str,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&text[..super::cut_at(text)])?.ok()
    }

    pub fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<String, minicbor::decode::Error> {
        let text = d.str()?;
        if text.len() > super::REFUSAL_TEXT_LEN_MAX {
            return Err(minicbor::decode::Error::message(
                "a refusal's text has at most 512 bytes",
            ));
        }
        Ok(text.to_owned())
    }
}

/// Longest text of a refusal, in bytes.
pub const REFUSAL_TEXT_LEN_MAX: usize = 512;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let refusal = Refusal::new(Code::Quota, "é".repeat(400));
        assert_eq!(refusal.text, "é".repeat(REFUSAL_TEXT_LEN_MAX / 2));
        let odd = Refusal::new(Code::Quota, format!("x{}", "é".repeat(400)));
        assert_eq!(odd.text.len(), REFUSAL_TEXT_LEN_MAX - 1);
    }

    #[test]
    fn a_peer_that_writes_more_than_the_bound_is_refused() {
        let fits = Refusal::new(Code::Quota, "x".repeat(REFUSAL_TEXT_LEN_MAX));
        assert_eq!(decode::<Refusal>(&encode(&fits), 4096), Ok(fits));
        let long = minicbor::to_vec((Code::Quota, "x".repeat(REFUSAL_TEXT_LEN_MAX + 1))).unwrap();
        assert!(decode::<Refusal>(&long, 4096).unwrap_err().to_string().contains("512"));
    }
}
