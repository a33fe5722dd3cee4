//! The body of every 4xx and 5xx answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::topology::TopologyError;

/// What a failed request is answered with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong, with what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ErrorDetail {
    /// Stable `snake_case` code, for programs.
    #[schema(example = "not_found")]
    pub code: String,
    /// What it is about, such as `port vm1`; absent when it is about the request as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "port vm1")]
    pub object: Option<String>,
    /// What happened, for people.
    pub message: String,
    /// What to do about it, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl ErrorBody {
    /// An error about one object.
    pub fn new(code: &str, object: Option<String>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        Self {
            error: ErrorDetail {
                code: code.to_owned(),
                object,
                message,
                remedy,
            },
        }
    }
}

impl From<&TopologyError> for ErrorBody {
    fn from(error: &TopologyError) -> Self {
        Self::new(
            error.code(),
            error.object.as_ref().map(ToString::to_string),
            error.to_string(),
            error.remedy(),
        )
    }
}
