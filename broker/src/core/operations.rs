//! Repeated operations: one effect, one answer.

use outboard_api::{OPERATION_RESULT_TTL_S, error::ErrorBody};
use outboard_protocol::operation::ID_KEPT_S as OPERATION_ID_TTL_S;
use uuid::Uuid;

use super::{Draft, Failure, Operation};
use crate::inventory::{Action, OPERATION_RESULT_LEN_MAX, OPERATIONS_MAX, OperationRecord, Record, RecordKey};

/// What a command is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// HTTP status.
    pub status: u16,
    /// JSON; empty with status 204.
    pub body: String,
    /// The answer itself is the caller's to make, and must not be kept.
    pub secret: bool,
}

/// The answer to an operation that was seen before.
///
/// # Errors
/// The failure it was answered with then, or a conflict.
pub fn repeated(record: &OperationRecord, operation: &Operation, now_s: u64) -> Result<Outcome, Failure> {
    let object = format!("operation {}", operation.id);
    if record.request_sha256 != operation.request_sha256 {
        let message = "this operation id came before with another request";
        return Err(Failure::about(
            409,
            "operation_conflict",
            object,
            message,
            "use a new operation id for a new request",
        ));
    }
    if is_older(record, OPERATION_RESULT_TTL_S, now_s) {
        let message = "this operation was done long ago, and its answer is not kept any more";
        let remedy = "look at the present state; use a new operation id for a new request";
        return Err(Failure::about(410, "operation_expired", object, message, remedy));
    }
    match &record.body {
        None => Err(Failure::about(
            409,
            "result_not_kept",
            object,
            format!(
                "this operation was done before (status {}); its answer held a secret or was too long to keep",
                record.status
            ),
            "look at the present state; for a new token or certificate repeat the request with a new operation id",
        )),
        Some(body) if record.status < 400 => Ok(Outcome {
            status: record.status,
            body: body.clone(),
            secret: false,
        }),
        Some(body) => match serde_json::from_str::<ErrorBody>(body) {
            Ok(body) => Err(Failure {
                status: record.status,
                body,
            }),
            Err(e) => Err(Failure::about(
                500,
                "internal",
                object,
                format!("its stored answer is damaged: {e}"),
                "report this",
            )),
        },
    }
}

/// The record of an operation that was done.
pub fn done(operation: &Operation, outcome: &Outcome, now_s: u64) -> OperationRecord {
    let keep = !outcome.secret && outcome.body.len() <= OPERATION_RESULT_LEN_MAX;
    OperationRecord {
        id: operation.id,
        request_sha256: operation.request_sha256.clone(),
        status: outcome.status,
        body: keep.then(|| outcome.body.clone()),
        done_s: now_s,
    }
}

/// The record of an operation that was refused.
pub fn refused(operation: &Operation, failure: &Failure, now_s: u64) -> OperationRecord {
    OperationRecord {
        id: operation.id,
        request_sha256: operation.request_sha256.clone(),
        status: failure.status,
        body: serde_json::to_string(&failure.body).ok(),
        done_s: now_s,
    }
}

/// Adds a record; forgets answers and ids whose time is over and, beyond the bound, the oldest id.
pub fn keep(draft: &mut Draft<'_>, record: OperationRecord, now_s: u64) {
    let mut gone: Vec<Uuid> = draft
        .operations
        .values()
        .filter(|o| is_older(o, OPERATION_ID_TTL_S, now_s))
        .map(|o| o.id)
        .collect();
    if gone.is_empty() && draft.operations.len() >= OPERATIONS_MAX {
        gone.extend(draft.operations.values().min_by_key(|o| o.done_s).map(|o| o.id));
    }
    gone.into_iter()
        .for_each(|id| draft.apply(Action::Remove(RecordKey::Operation(id))));
    let stale = |o: &&OperationRecord| o.body.is_some() && is_older(o, OPERATION_RESULT_TTL_S, now_s);
    let forgotten: Vec<OperationRecord> = draft.operations.values().filter(stale).cloned().collect();
    for record in forgotten {
        draft.apply(Action::Put(Record::Operation(OperationRecord { body: None, ..record })));
    }
    draft.apply(Action::Put(Record::Operation(record)));
}

/// A clock that was set back makes nothing older.
fn is_older(record: &OperationRecord, ttl_s: u64, now_s: u64) -> bool {
    now_s.saturating_sub(record.done_s) > ttl_s
}
