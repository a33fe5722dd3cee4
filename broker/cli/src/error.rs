//! Errors of the command line: what happened to what, and what to do.

use std::{fmt, io::Write, path::Path};

use outboard_api::{
    error::{ErrorBody, ErrorDetail},
    topology::TopologyError,
};

/// An error, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    detail: ErrorDetail,
    notes: Vec<String>,
}

impl CliError {
    /// An error with its remedy.
    pub fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::coded("failed", message, remedy)
    }

    /// An error with a code that programs may look at.
    pub fn coded(code: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        ErrorBody::new(code, None, message, remedy).into()
    }

    /// A file that could not be used.
    pub fn io(verb: &str, path: &Path, error: &std::io::Error, remedy: impl Into<String>) -> Self {
        Self::coded("io", format!("cannot {verb} {}: {error}", path.display()), remedy)
    }

    /// Lines shown before the error, such as the end of a log.
    #[must_use]
    pub fn with_notes(mut self, notes: Vec<String>) -> Self {
        self.notes = notes;
        self
    }

    /// Says which object it is about.
    #[must_use]
    pub fn about(mut self, object: impl Into<String>) -> Self {
        self.detail.object = Some(object.into());
        self
    }

    /// With another remedy, where the place that it happened at tells a better one.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.detail.remedy = Some(remedy.into());
        self
    }

    /// Says which file it is about.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.detail.message = format!("{}: {}", path.display(), self.detail.message);
        self
    }

    /// The code for programs.
    pub fn code(&self) -> &str {
        &self.detail.code
    }

    /// Shows it on standard error: for people, or as one line of JSON.
    pub fn print(&self, json: bool) {
        let body = ErrorBody {
            error: self.detail.clone(),
        };
        let text = match json.then(|| serde_json::to_string(&body)) {
            Some(Ok(line)) => format!("{line}\n"),
            _ => self.to_string(),
        };
        // Nobody is left to tell when standard error is closed.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "  | {note}")?;
        }
        writeln!(f, "error: {}", self.detail.message)?;
        match &self.detail.remedy {
            Some(remedy) => writeln!(f, "  fix: {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for CliError {}

impl From<ErrorBody> for CliError {
    fn from(body: ErrorBody) -> Self {
        Self {
            detail: body.error,
            notes: Vec::new(),
        }
    }
}

impl From<&TopologyError> for CliError {
    fn from(error: &TopologyError) -> Self {
        ErrorBody::from(error).into()
    }
}
