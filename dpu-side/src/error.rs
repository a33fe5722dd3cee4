//! Errors that end the daemon or keep it from starting: what happened, and what to do about it.

use std::{fmt, io, path::Path};

/// Why the daemon does not start or go on.
#[derive(Debug)]
pub struct Failure {
    what: String,
    fix: String,
}

impl Failure {
    /// `what` happened, to which object; `fix` is what the operator can do.
    pub fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }

    /// `verb` ("read", "write", …) failed on `path`.
    pub fn io(verb: &str, path: &Path, error: &io::Error, fix: impl Into<String>) -> Self {
        Self::new(format!("cannot {verb} {}: {error}", path.display()), fix)
    }

    /// What the operator can do.
    pub fn fix(&self) -> &str {
        &self.fix
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {}
