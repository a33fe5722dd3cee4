//! One effect and one answer for each operation id, however often the request arrives.
//!
//! The result of a mutation is kept under the id that its initiator chose, together with a hash of the request. A
//! repeated request gets the stored result; the same id with another request is a conflict; after
//! [`RESULT_KEPT_S`] the result is forgotten but the id is not, so that a late repeat is refused and never done twice.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use outboard_controls::{Check, on};

use crate::{
    codec::encode,
    id::OperationId,
    refusal::{Code, Refusal},
};

/// How long a result is kept, in seconds: 7 days.
pub const RESULT_KEPT_S: u64 = 7 * 24 * 3600;
/// How long an id is remembered, in seconds: 30 days.
pub const ID_KEPT_S: u64 = 30 * 24 * 3600;

/// SHA-256 of a request in its canonical encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(transparent)]
pub struct RequestHash(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 32]);

impl RequestHash {
    /// The hash of `request` made by `initiator`: two initiators never share an operation.
    pub fn of<T: Encode<()>>(initiator: &str, request: &T) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &encode(&(initiator, request)));
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }
}

/// A mutation that was done.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Entry {
    /// Its id.
    #[n(0)]
    pub id: OperationId,
    /// What was asked.
    #[n(1)]
    pub request: RequestHash,
    /// When it was done, in seconds since the Unix epoch.
    #[n(2)]
    pub done_unix_s: u64,
    /// What was answered; empty once forgotten.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub result: Vec<u8>,
}

/// Where an operation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Not seen before: do it, then [`Table::record`] its result.
    New,
    /// Done before: answer this again.
    Done(&'a [u8]),
}

/// The operations that were done, bounded in number: beyond the bound the oldest is forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    entries: BTreeMap<OperationId, Entry>,
    entries_max: usize,
}

impl Table {
    /// An empty table for at most `entries_max` operations.
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            entries_max,
        }
    }

    /// A table of what was stored.
    pub fn load(entries: Vec<Entry>, entries_max: usize) -> Self {
        let entries = entries.into_iter().map(|e| (e.id, e)).collect();
        let mut table = Self { entries, entries_max };
        table.shrink();
        table
    }

    /// What has to be stored.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// Whether the operation was done before.
    ///
    /// # Errors
    /// [`Code::OperationConflict`] if the id was used for another request, [`Code::OperationExpired`] if it was done
    /// longer than [`RESULT_KEPT_S`] ago.
    pub fn find(&self, id: OperationId, request: RequestHash, now_unix_s: u64) -> Result<Standing<'_>, Refusal> {
        let Some(entry) = self.entries.get(&id).filter(|_| on(Check::OperationReplay)) else {
            return Ok(Standing::New);
        };
        if entry.request != request {
            let text = format!("operation {} was used for another request: choose a new id", id.0);
            return Err(Refusal::new(Code::OperationConflict, text));
        }
        if entry.is_older(RESULT_KEPT_S, now_unix_s) || entry.result.is_empty() {
            let text = format!(
                "operation {} was done long ago and its result is forgotten: ask for the state",
                id.0
            );
            return Err(Refusal::new(Code::OperationExpired, text));
        }
        Ok(Standing::Done(&entry.result))
    }

    /// Keeps the result of an operation that was done now. An operation that was refused is not recorded: it had no
    /// effect, and may be tried again under the same id.
    pub fn record(&mut self, id: OperationId, request: RequestHash, result: Vec<u8>, now_unix_s: u64) {
        self.entries.insert(
            id,
            Entry {
                id,
                request,
                done_unix_s: now_unix_s,
                result,
            },
        );
        self.shrink();
    }

    /// Whether [`Table::sweep`] would forget anything.
    pub fn has_old(&self, now_unix_s: u64) -> bool {
        let forgets = |e: &Entry| {
            e.is_older(ID_KEPT_S, now_unix_s) || (e.is_older(RESULT_KEPT_S, now_unix_s) && !e.result.is_empty())
        };
        self.entries.values().any(forgets)
    }

    /// Forgets results and ids whose time is over. A clock that was set back forgets nothing too early.
    pub fn sweep(&mut self, now_unix_s: u64) {
        self.entries.retain(|_, e| !e.is_older(ID_KEPT_S, now_unix_s));
        for entry in self
            .entries
            .values_mut()
            .filter(|e| e.is_older(RESULT_KEPT_S, now_unix_s))
        {
            entry.result = Vec::new();
        }
    }

    fn shrink(&mut self) {
        while self.entries.len() > self.entries_max {
            let Some(oldest) = self.entries.values().min_by_key(|e| e.done_unix_s).map(|e| e.id) else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}

impl Entry {
    fn is_older(&self, age_s: u64, now_unix_s: u64) -> bool {
        now_unix_s.saturating_sub(self.done_unix_s) >= age_s
    }
}

#[cfg(test)]
mod tests;
