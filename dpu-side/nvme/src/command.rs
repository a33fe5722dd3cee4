//! What a command asks for, checked.

use outboard_controls::{Check, on};
use outboard_storage::{IoError, Op, RANGE_LEN_MAX};

use crate::{
    namespace::{LBA_LEN, NSID, Namespace},
    spec::{NSID_BROADCAST, RANGE_LEN, Status, SubmissionEntry, opcode},
};

/// The most bytes one command transfers (MDTS, base §5.17.2.1). Small enough that copying it, which a backend may do on
/// the worker, holds up the other devices for some 100 µs only.
pub const TRANSFER_LEN_MAX: u64 = 1 << 20;

/// The most blocks that one Write Zeroes names: NLB is 16 bits wide.
const ZEROES_BLOCKS_MAX: u64 = 1 << 16;
const _: () = assert!(ZEROES_BLOCKS_MAX * LBA_LEN <= RANGE_LEN_MAX);

/// A command that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// One request to the backend.
    Request { op: Op, offset: u64 },
    /// The ranges in the command's data are to be looked at, and deallocated if `deallocate`.
    Ranges { count: usize, deallocate: bool },
}

/// Check a command whose data is `data_len` bytes.
pub(crate) fn plan(entry: &SubmissionEntry, namespace: &Namespace, data_len: u64) -> Result<Plan, Status> {
    let opcode = entry.opcode();
    if !matches!(
        opcode,
        opcode::READ | opcode::WRITE | opcode::FLUSH | opcode::WRITE_ZEROES | opcode::DATASET_MANAGEMENT
    ) {
        return Err(Status::INVALID_OPCODE);
    }
    if entry.fuse() != 0 {
        return Err(Status::INVALID_FIELD);
    }
    let all = opcode == opcode::FLUSH && entry.nsid() == NSID_BROADCAST;
    if entry.nsid() != NSID && !all {
        return Err(Status::INVALID_NAMESPACE);
    }
    let len = entry.block_count() * LBA_LEN;
    match opcode {
        opcode::FLUSH => {
            expect_data(data_len, 0)?;
            Ok(Plan::Request {
                op: Op::Flush,
                offset: 0,
            })
        }
        opcode::DATASET_MANAGEMENT => {
            let count = entry.range_count();
            expect_data(data_len, (count * RANGE_LEN) as u64)?;
            let deallocate = entry.attribute_deallocate();
            if deallocate {
                check_writable(namespace)?;
            }
            Ok(Plan::Ranges { count, deallocate })
        }
        opcode::WRITE_ZEROES => {
            expect_data(data_len, 0)?;
            let op = Op::WriteZeroes {
                len,
                unmap: entry.deac(),
                durable: entry.fua(),
            };
            plan_blocks(entry, namespace, op)
        }
        opcode => {
            if len > TRANSFER_LEN_MAX {
                return Err(Status::INVALID_FIELD);
            }
            expect_data(data_len, len)?;
            let op = match opcode {
                opcode::READ => Op::Read,
                _ => Op::Write { durable: entry.fua() },
            };
            plan_blocks(entry, namespace, op)
        }
    }
}

/// Check a command for the blocks that it names itself.
fn plan_blocks(entry: &SubmissionEntry, namespace: &Namespace, op: Op) -> Result<Plan, Status> {
    check_blocks(entry.slba(), entry.block_count(), namespace)?;
    if op.changes() {
        check_writable(namespace)?;
    }
    // Below the namespace's size in bytes.
    Ok(Plan::Request {
        op,
        offset: entry.slba() * LBA_LEN,
    })
}

/// Check that blocks are there.
pub(crate) fn check_blocks(slba: u64, block_count: u64, namespace: &Namespace) -> Result<(), Status> {
    match slba.checked_add(block_count) {
        Some(end) if end <= namespace.block_count() || !on(Check::VolumeRange) => Ok(()),
        _ => Err(Status::LBA_OUT_OF_RANGE),
    }
}

fn check_writable(namespace: &Namespace) -> Result<(), Status> {
    match namespace.read_only() && on(Check::VolumeReadOnly) {
        true => Err(Status::WRITE_PROTECTED),
        false => Ok(()),
    }
}

fn expect_data(data_len: u64, len: u64) -> Result<(), Status> {
    match data_len == len || !on(Check::RequestLength) {
        true => Ok(()),
        false => Err(Status::DATA_LENGTH_INVALID),
    }
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
