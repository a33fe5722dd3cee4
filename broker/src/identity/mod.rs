//! Who is who: the broker's certificate authority, the certificates it signs, enrolment tokens and the TLS settings.
//!
//! A certificate's subject says what its bearer is: `O=Outboard, OU=<kind>, CN=<name>`. Subjects and alternative names
//! are always written by the broker; of a signing request only the public key is used.

mod authority;
mod peer;
mod private_file;
mod tls;
mod token;

pub use authority::{Authority, CARD_CERT_TTL_S, IssueError, Issued, OPERATOR_CERT_TTL_S, SERVER_CERT_TTL_S};
pub use peer::{Kind, Peer, PeerError, fingerprint, sha256_hex};
pub use private_file::write_private;
pub use tls::ServerTls;
pub use token::{TokenRecord, TokenVerdict, new_secret};

/// DNS name in the broker's certificate, whatever address it is reached at.
pub const BROKER_TLS_NAME: &str = outboard_protocol::card::BROKER_TLS_NAME;
