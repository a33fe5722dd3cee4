//! Why the broker does not start: one line for what is wrong, one for what to do.

use std::{fmt, path::Path};

/// A failure to start, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// What is wrong, naming the file, address or key.
    pub what: String,
    /// What the operator can do.
    pub fix: String,
}

impl StartError {
    /// An error with its remedy.
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// An I/O error on a path.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error, fix: impl Into<String>) -> Self {
        Self::new(format!("cannot {doing} {}: {error}", path.display()), fix)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\n  fix: {}", self.what, self.fix)
    }
}

impl std::error::Error for StartError {}
