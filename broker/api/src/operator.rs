//! Operators of the mutual-TLS API.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Answer of `POST /v1/operators/{name}`, all PEM. The broker keeps no copy of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperatorCredentials {
    /// The operator's certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The certificate authority that signed it, and the broker's own certificate.
    pub ca: String,
}
