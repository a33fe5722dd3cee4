//! What a command asks for, checked.

use outboard_controls::{Check, on};
use outboard_storage::{IoError, Op};

use crate::{
    namespace::{LBA_LEN, NSID, Namespace},
    spec::{NSID_BROADCAST, Status, SubmissionEntry, opcode},
};

/// The most bytes one command transfers (MDTS, base §5.17.2.1). Small enough that copying it, which a backend may do on
/// the worker, holds up the other devices for some 100 µs only.
pub const TRANSFER_LEN_MAX: u64 = 1 << 20;

/// A command that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) op: Op,
    pub(crate) offset: u64,
}

/// Check a command whose data is `data_len` bytes.
pub(crate) fn plan(entry: &SubmissionEntry, namespace: &Namespace, data_len: u64) -> Result<Plan, Status> {
    let op = match entry.opcode() {
        opcode::READ => Op::Read,
        opcode::WRITE => Op::Write { durable: entry.fua() },
        opcode::FLUSH => Op::Flush,
        _ => return Err(Status::INVALID_OPCODE),
    };
    if entry.fuse() != 0 {
        return Err(Status::INVALID_FIELD);
    }
    let all = op == Op::Flush && entry.nsid() == NSID_BROADCAST;
    if entry.nsid() != NSID && !all {
        return Err(Status::INVALID_NAMESPACE);
    }
    if op == Op::Flush {
        return if data_len == 0 {
            Ok(Plan { op, offset: 0 })
        } else {
            Err(Status::DATA_LENGTH_INVALID)
        };
    }
    // At most 65,536 blocks.
    let len = entry.block_count() * LBA_LEN;
    if len > TRANSFER_LEN_MAX {
        return Err(Status::INVALID_FIELD);
    }
    if len != data_len {
        return Err(Status::DATA_LENGTH_INVALID);
    }
    match entry.slba().checked_add(entry.block_count()) {
        Some(end) if end <= namespace.block_count() || !on(Check::VolumeRange) => {}
        _ => return Err(Status::LBA_OUT_OF_RANGE),
    }
    if op != Op::Read && namespace.read_only() && on(Check::VolumeReadOnly) {
        return Err(Status::WRITE_PROTECTED);
    }
    // Below the namespace's size in bytes.
    Ok(Plan {
        op,
        offset: entry.slba() * LBA_LEN,
    })
}

/// The status that tells of a backend's error.
pub(crate) fn status_of(op: Op, error: &IoError) -> Status {
    match error {
        IoError::OutOfRange { .. } => Status::LBA_OUT_OF_RANGE,
        IoError::PartialSector { .. } => Status::INVALID_FIELD,
        IoError::ReadOnly => Status::WRITE_PROTECTED,
        IoError::Latched => Status::WRITE_FAULT.for_good(),
        IoError::GuestMemory(_) => Status::DATA_TRANSFER_ERROR,
        IoError::OutOfMemory => Status::INTERNAL_ERROR,
        IoError::EndOfFile { .. } | IoError::System { .. } if op == Op::Read => Status::UNRECOVERED_READ,
        IoError::EndOfFile { .. } | IoError::System { .. } => Status::WRITE_FAULT,
    }
}
