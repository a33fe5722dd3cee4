//! What goes wrong, told so that one can do something about it.

use std::{fmt, io};

/// Something failed: who, what, its command, what it said last, and what helps.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// The system, or the part of the runner.
    who: String,
    what: String,
    command: Option<String>,
    said: Vec<String>,
    remedy: String,
}

impl Failure {
    /// A failure of `who`.
    pub fn new(who: &str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            who: who.to_owned(),
            what: what.into(),
            command: None,
            said: Vec::new(),
            remedy: remedy.into(),
        }
    }

    /// An operation on a file or process failed.
    pub fn io(who: &str, what: impl fmt::Display, source: &io::Error, remedy: &str) -> Self {
        Self::new(who, format!("{what}: {source}"), remedy)
    }

    /// With the command that was run.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }

    /// With the last lines of what it said.
    #[must_use]
    pub fn said(mut self, lines: Vec<String>) -> Self {
        self.said = lines;
        self
    }

    /// What helps.
    pub fn remedy(&self) -> &str {
        &self.remedy
    }

    /// The command, if one was run.
    pub fn command_line(&self) -> &str {
        self.command.as_deref().unwrap_or_default()
    }

    /// In one line, for a table.
    pub fn short(&self) -> String {
        let reason = self
            .said
            .last()
            .map(|line| format!(": {}", line.trim()))
            .unwrap_or_default();
        format!("{}{reason}", self.what)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.who, self.what)?;
        if let Some(command) = &self.command {
            write!(f, "\n  command: {command}")?;
        }
        for line in &self.said {
            write!(f, "\n  | {line}")?;
        }
        write!(f, "\n  fix: {}", self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_system_the_command_its_last_words_and_what_helps() {
        let failure = Failure::new(
            "ovs-dpdk",
            "ovs-vswitchd ended with exit status: 1",
            "free 1 GiB of memory",
        )
        .command("ovs-vswitchd-dpdk unix:db.sock")
        .said(vec!["EAL: Cannot allocate memory".into()]);
        let expected = "ovs-dpdk: ovs-vswitchd ended with exit status: 1\n  command: ovs-vswitchd-dpdk unix:db.sock\n  \
                        | EAL: Cannot allocate memory\n  fix: free 1 GiB of memory";
        assert_eq!(failure.to_string(), expected);
        let short = "ovs-vswitchd ended with exit status: 1: EAL: Cannot allocate memory";
        assert_eq!(failure.short(), short);
    }
}
