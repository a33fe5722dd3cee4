//! Why a request is refused, as the API answers it.

use outboard_api::{error::ErrorBody, topology::TopologyError};

/// A refused request: an HTTP status and a body that names the object and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status.
    pub status: u16,
    /// What the client is told.
    pub body: ErrorBody,
}

impl Failure {
    /// A failure about `object` (such as `port vm1`).
    pub fn about(
        status: u16,
        code: &str,
        object: impl ToString,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status,
            body: ErrorBody::new(code, Some(object.to_string()), message, remedy),
        }
    }

    /// A failure about the request or the broker as a whole.
    pub fn general(status: u16, code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody::new(code, None, message, remedy),
        }
    }

    /// There is no such object.
    pub fn not_found(kind: &str, name: &impl ToString) -> Self {
        let name = name.to_string();
        let message = format!("there is no {kind} {name}");
        Self::about(
            404,
            "not_found",
            format!("{kind} {name}"),
            message,
            format!("`outboard {kind} list` shows what there is"),
        )
    }

    /// A bound of this broker would be passed.
    pub fn quota(object: impl ToString, what: &str, max: usize) -> Self {
        let message = format!("a broker holds at most {max} {what}");
        Self::about(
            409,
            "quota",
            object,
            message,
            "delete what is not needed any more, or run another broker",
        )
    }
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        Self {
            status: 422,
            body: ErrorBody::from(&error),
        }
    }
}
