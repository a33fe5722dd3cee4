//! The controller: commands in flight, and what becomes of them.

use std::{collections::VecDeque, os::fd::BorrowedFd};

use outboard_controls::{Check, on};
use outboard_storage::{Buffer, Completion, IoError, Op, Request, ResizeError};

use crate::{
    command::{Plan, check_blocks, plan, status_of},
    deallocation::{Deallocations, Piece},
    namespace::{LBA_LEN, Namespace},
    spec::{CompletionEntry, RANGE_COUNT_MAX, RANGE_LEN, Range, Status, SubmissionEntry},
};

/// Pieces of deallocations that are ended by one call of [`Controller::complete`]: a backend may carry out the next ones
/// meanwhile, on the worker.
const PIECES_PER_CALL_MAX: usize = 4;

/// A command that is over, and its data, which nothing touches any more.
#[derive(Debug)]
pub struct Completed {
    /// What to tell who gave the command.
    pub entry: CompletionEntry,
    /// The guest memory that came with it.
    pub data: Buffer,
    /// What went wrong in the backend, for the log.
    pub cause: Option<IoError>,
}

/// The controller has as many commands in flight as it takes, of this kind or at all; submit it again after a completion.
#[derive(Debug)]
pub struct Busy {
    /// The command.
    pub entry: SubmissionEntry,
    /// Its data.
    pub data: Buffer,
}

/// A controller with one namespace.
pub struct Controller {
    namespace: Namespace,
    /// Command ids in flight, a bit each.
    cids: Box<[u64]>,
    /// Commands that were over when they came.
    answered: VecDeque<Completed>,
    deallocations: Deallocations,
}

impl Controller {
    /// A controller of `namespace`.
    pub fn new(namespace: Namespace) -> Self {
        let depth = namespace.backend.depth();
        let words = (usize::from(u16::MAX) + 1) / 64;
        Self {
            namespace,
            cids: vec![0; words].into(),
            answered: VecDeque::with_capacity(depth),
            deallocations: Deallocations::new(),
        }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// How many commands it takes at once.
    pub fn depth(&self) -> usize {
        self.namespace.backend.depth()
    }

    /// Commands taken and not yet completed.
    pub fn in_flight(&self) -> usize {
        self.namespace.backend.in_flight() + self.answered.len()
    }

    /// Have `size_bytes` from now on. Commands in flight go on.
    ///
    /// # Errors
    /// The backend keeps its size, and so does the namespace.
    pub fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
        self.namespace.resize(size_bytes)
    }

    /// Take a command. Whatever is wrong with it shows in its completion. The ranges of Dataset Management are copied from
    /// its data here, once.
    ///
    /// # Errors
    /// [`Busy`] gives it back if [`Controller::depth`] commands are in flight, or as many deallocations as it takes.
    pub fn submit(&mut self, entry: SubmissionEntry, data: Buffer) -> Result<(), Busy> {
        let data_len = data.len();
        self.submit_command(entry, data, data_len, None)
    }

    /// Take a Dataset Management command whose ranges the front end has in memory of its own.
    ///
    /// # Errors
    /// As for [`Controller::submit`].
    pub fn submit_ranges(&mut self, entry: SubmissionEntry, data: Buffer, ranges: &[Range]) -> Result<(), Busy> {
        let data_len = (ranges.len() * RANGE_LEN) as u64;
        self.submit_command(entry, data, data_len, Some(ranges))
    }

    fn submit_command(
        &mut self,
        entry: SubmissionEntry,
        data: Buffer,
        data_len: u64,
        ranges: Option<&[Range]>,
    ) -> Result<(), Busy> {
        if self.in_flight() >= self.depth() {
            return Err(Busy { entry, data });
        }
        let cid = entry.cid();
        let (word, bit) = place(cid);
        if self.cids[word] & bit != 0 {
            self.answer(cid, data, Status::CID_CONFLICT);
            return Ok(());
        }
        match plan(&entry, &self.namespace, data_len) {
            Ok(Plan::Request { op, offset }) => self.submit_request(entry, data, op, offset),
            Ok(Plan::Ranges { .. }) if !self.deallocations.has_room() => Err(Busy { entry, data }),
            Ok(Plan::Ranges { count, deallocate }) => {
                let mut copied = [Range::default(); RANGE_COUNT_MAX];
                let checked = match ranges {
                    Some(ranges) => Ok(ranges),
                    None => copy_ranges(&data, &mut copied[..count]),
                };
                match checked.and_then(|ranges| self.check_ranges(ranges)) {
                    Ok(ranges) if deallocate => self.deallocate(entry, data, ranges),
                    Ok(_) => {
                        // Hints, which nothing here can use.
                        self.answer(cid, data, Status::SUCCESS);
                        Ok(())
                    }
                    Err(status) => {
                        self.answer(cid, data, status);
                        Ok(())
                    }
                }
            }
            Err(status) => {
                self.answer(cid, data, status);
                Ok(())
            }
        }
    }

    fn submit_request(&mut self, entry: SubmissionEntry, data: Buffer, op: Op, offset: u64) -> Result<(), Busy> {
        let cid = entry.cid();
        let op = match op {
            Op::Flush if !on(Check::DurableFlush) => {
                self.answer(cid, data, Status::SUCCESS);
                return Ok(());
            }
            Op::Write { durable } => Op::Write {
                durable: durable && on(Check::DurableFlush),
            },
            Op::WriteZeroes { len, unmap, durable } => Op::WriteZeroes {
                len,
                unmap,
                durable: durable && on(Check::DurableFlush),
            },
            op => op,
        };
        let request = Request {
            tag: u64::from(cid),
            op,
            offset,
            buffer: data,
        };
        match self.namespace.backend.submit(request) {
            Ok(()) => {
                let (word, bit) = place(cid);
                self.cids[word] |= bit;
                Ok(())
            }
            Err(outboard_storage::Busy(request)) => Err(Busy {
                entry,
                data: request.buffer,
            }),
        }
    }

    fn check_ranges<'a>(&self, ranges: &'a [Range]) -> Result<&'a [Range], Status> {
        for range in ranges {
            check_blocks(range.slba, u64::from(range.block_count), &self.namespace)?;
        }
        Ok(ranges)
    }

    fn deallocate(&mut self, entry: SubmissionEntry, data: Buffer, ranges: &[Range]) -> Result<(), Busy> {
        let cid = entry.cid();
        let Some(piece) = self.deallocations.begin(cid, ranges) else {
            self.answer(cid, data, Status::SUCCESS);
            return Ok(());
        };
        let (op, offset) = discard(piece);
        self.submit_request(entry, data, op, offset)
            .inspect_err(|_| self.deallocations.end(cid))
    }

    fn answer(&mut self, cid: u16, data: Buffer, status: Status) {
        self.answered.push_back(Completed {
            entry: CompletionEntry::new(cid, status),
            data,
            cause: None,
        });
    }

    /// Begin everything that was submitted. One call per batch: it may cost a system call.
    pub fn start(&mut self) {
        self.namespace.backend.start();
    }

    /// Take the completion of a command, if there is one. Never waits. What has to go on for a command to end is submitted
    /// too: call [`Controller::start`] afterwards.
    pub fn complete(&mut self) -> Option<Completed> {
        if let Some(answered) = self.answered.pop_front() {
            return Some(answered);
        }
        for _ in 0..PIECES_PER_CALL_MAX {
            let completion = self.namespace.backend.complete()?;
            if let Some(completion) = self.go_on(completion) {
                return Some(self.end(completion));
            }
        }
        None
    }

    /// Submit the next piece of a deallocation. Gives the completion back if its command is over.
    fn go_on(&mut self, completion: Completion) -> Option<Completion> {
        let Completion { mut request, result } = completion;
        if !matches!(request.op, Op::Discard { .. }) {
            return Some(Completion { request, result });
        }
        let cid = cid_of(&request);
        if result.is_err() {
            self.deallocations.end(cid);
            return Some(Completion { request, result });
        }
        let Some(piece) = self.deallocations.next(cid) else {
            return Some(Completion { request, result });
        };
        (request.op, request.offset) = discard(piece);
        match self.namespace.backend.submit(request) {
            Ok(()) => None,
            // It has just made room. All the same, what was discarded by now is as good as a hint.
            Err(outboard_storage::Busy(request)) => {
                self.deallocations.end(cid);
                Some(Completion { request, result })
            }
        }
    }

    fn end(&mut self, completion: Completion) -> Completed {
        let request = completion.request;
        let cid = cid_of(&request);
        let (word, bit) = place(cid);
        self.cids[word] &= !bit;
        let cause = completion.result.err();
        let status = cause
            .as_ref()
            .map_or(Status::SUCCESS, |error| status_of(request.op, error));
        Completed {
            entry: CompletionEntry::new(cid, status),
            data: request.buffer,
            cause,
        }
    }

    /// Readable once there are completions, after [`Controller::arm`]. None if they never come later than
    /// [`Controller::start`].
    pub fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        self.namespace.backend.wake_fd()
    }

    /// Prepare for sleeping on [`Controller::wake_fd`]. True if completions are waiting already.
    pub fn arm(&mut self) -> bool {
        self.namespace.backend.arm() || !self.answered.is_empty()
    }
}

/// Its command's id, from which the tag was made.
fn cid_of(request: &Request) -> u16 {
    u16::try_from(request.tag).unwrap_or(u16::MAX)
}

/// The request for a piece, which was checked: it lies below the namespace's size in bytes.
fn discard(piece: Piece) -> (Op, u64) {
    let len = piece.block_count * LBA_LEN;
    (Op::Discard { len }, piece.slba * LBA_LEN)
}

/// Copy ranges from a command's data, which the guest may change at any time.
fn copy_ranges<'a>(data: &Buffer, ranges: &'a mut [Range]) -> Result<&'a [Range], Status> {
    let mut bytes = [0; RANGE_LEN * RANGE_COUNT_MAX];
    let bytes = &mut bytes[..RANGE_LEN * ranges.len()];
    data.read_at(0, bytes).map_err(|_| Status::DATA_TRANSFER_ERROR)?;
    for (range, bytes) in ranges.iter_mut().zip(bytes.as_chunks().0) {
        *range = Range::from_bytes(*bytes);
    }
    Ok(ranges)
}

/// Where the bit of a command id is.
fn place(cid: u16) -> (usize, u64) {
    (usize::from(cid / 64), 1 << (cid % 64))
}

#[cfg(test)]
mod tests;
