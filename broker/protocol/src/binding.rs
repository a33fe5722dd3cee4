//! The binding state machine.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// State of a binding (a port or volume bound to a function of a card for a host).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum State {
    /// The broker has decided; the card has not confirmed.
    #[n(0)]
    Reserved,
    /// The card holds policy and grant durably; the host may redeem.
    #[n(1)]
    Prepared,
    /// The host has redeemed; its device may open sessions.
    #[n(2)]
    Attached,
    /// Rings are live and policy is loaded.
    #[n(3)]
    Active,
    /// Shut; waiting for what is in flight.
    #[n(4)]
    Draining,
    /// Ended; the function may be used again, under a higher incarnation.
    #[n(5)]
    Released,
    /// Could not be drained, or its end is not certain: an operator decides.
    #[n(6)]
    Quarantined,
}
