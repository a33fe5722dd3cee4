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
    /// The object has a session already.
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
    #[n(1)]
    pub text: String,
}

/// Longest text of a refusal, in bytes.
pub const REFUSAL_TEXT_LEN_MAX: usize = 512;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
