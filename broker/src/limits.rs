//! Bounds of both listeners.

use std::time::Duration;

/// Connections of cards at a time, enrolled or not.
pub const CARD_CONNECTIONS_MAX: usize = 2048;
/// Of those, connections that have not shown a card's certificate yet.
pub const CARD_STRANGERS_MAX: usize = 64;
/// Connections to the API over the unix socket at a time.
pub const API_CONNECTIONS_MAX: usize = 256;
/// Connections to the API over TLS at a time.
pub const API_TLS_CONNECTIONS_MAX: usize = 256;
/// Of those, connections that have not shown an operator's certificate yet.
pub const API_TLS_STRANGERS_MAX: usize = 64;
/// Time for a TLS handshake, and then again for the first message.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a peer to take one message.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for an HTTP request's head, and for its body and answer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Silence after which the kernel asks whether a card is still there, in seconds.
pub const KEEPALIVE_IDLE_S: u32 = 15;
/// Time between those questions, in seconds.
pub const KEEPALIVE_INTERVAL_S: u32 = 5;
/// Questions without an answer after which the connection is dead.
pub const KEEPALIVE_PROBES: u32 = 3;
/// Pause after the kernel refused to accept a connection (it has no descriptors left).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
