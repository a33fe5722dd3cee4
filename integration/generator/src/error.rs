//! What ends a run.

use std::{io, path::PathBuf};

/// Why a run ended without a result, or with one that is not right. Each text says what, which object, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// No back-end was there in time.
    #[error("no back-end at {path} within {seconds} s ({source}): start it, or give --role {other}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// How long it was tried.
        seconds: u64,
        /// What the last attempt said.
        source: io::Error,
        /// The other role.
        other: &'static str,
    },
    /// The socket could not be made.
    #[error("cannot listen at {path}: {source}; remove the file if nobody listens there, or choose another path")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The back-end broke the session off, or does not answer.
    #[error("the back-end at {path} failed at {request} ({source}): look at its log")]
    Session {
        /// The socket.
        path: PathBuf,
        /// What it was asked.
        request: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The back-end answered that it will not.
    #[error("the back-end at {path} refused {request} with {code}: look at its log")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it was asked.
        request: &'static str,
        /// Its answer.
        code: u64,
    },
    /// Something that is needed is not offered.
    #[error("the back-end at {path} offers features {offered:#x}, which lack {missing}: {remedy}")]
    Lacks {
        /// The socket.
        path: PathBuf,
        /// What it offers.
        offered: u64,
        /// What is missing, by name.
        missing: String,
        /// What helps.
        remedy: &'static str,
    },
    /// Memory for the rings and buffers.
    #[error("no memory of {len} bytes for rings and buffers ({source}): {remedy}")]
    Memory {
        /// How much.
        len: usize,
        /// Why.
        source: io::Error,
        /// What helps.
        remedy: &'static str,
    },
    /// The device broke the ring.
    #[error("the back-end broke queue {queue} of {path}: {what}")]
    Ring {
        /// The socket.
        path: PathBuf,
        /// Which queue.
        queue: u16,
        /// How.
        what: String,
    },
    /// Other calls of the operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing came through.
    #[error(
        "nothing sent at {from} arrived at {to} within {seconds} s: do the ports belong to one network, do the MACs and addresses given match it, and does the back-end run?"
    )]
    NoPath {
        /// The sending side's socket.
        from: PathBuf,
        /// The receiving side's socket.
        to: PathBuf,
        /// How long it was tried.
        seconds: u64,
    },
    /// The result was obtained, and it is not right.
    #[error("wrong result: {0}")]
    Wrong(String),
    /// A request stays unanswered.
    #[error("{0}")]
    Stuck(String),
}

impl Error {
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            what: what.into(),
            source: source.into(),
        }
    }
}
