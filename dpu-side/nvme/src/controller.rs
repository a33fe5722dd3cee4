//! The controller: commands in flight, and what becomes of them.

use std::{collections::VecDeque, os::fd::BorrowedFd};

use outboard_controls::{Check, on};
use outboard_storage::{Buffer, IoError, Op, Request};

use crate::{
    command::{plan, status_of},
    namespace::Namespace,
    spec::{CompletionEntry, Status, SubmissionEntry},
};

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

/// The controller has as many commands in flight as it takes; submit it again after a completion.
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

    /// Take a command. Whatever is wrong with it shows in its completion.
    ///
    /// # Errors
    /// [`Busy`] gives it back if [`Controller::depth`] commands are in flight.
    pub fn submit(&mut self, entry: SubmissionEntry, data: Buffer) -> Result<(), Busy> {
        if self.in_flight() >= self.depth() {
            return Err(Busy { entry, data });
        }
        let cid = entry.cid();
        let (word, bit) = place(cid);
        if self.cids[word] & bit != 0 {
            self.answer(cid, data, Status::CID_CONFLICT);
            return Ok(());
        }
        let plan = match plan(&entry, &self.namespace, data.len()) {
            Ok(plan) => plan,
            Err(status) => {
                self.answer(cid, data, status);
                return Ok(());
            }
        };
        let op = match plan.op {
            Op::Flush if !on(Check::DurableFlush) => {
                self.answer(cid, data, Status::SUCCESS);
                return Ok(());
            }
            Op::Write { durable } => Op::Write {
                durable: durable && on(Check::DurableFlush),
            },
            op => op,
        };
        let request = Request {
            tag: u64::from(cid),
            op,
            offset: plan.offset,
            buffer: data,
        };
        match self.namespace.backend.submit(request) {
            Ok(()) => {
                self.cids[word] |= bit;
                Ok(())
            }
            Err(outboard_storage::Busy(request)) => Err(Busy {
                entry,
                data: request.buffer,
            }),
        }
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

    /// Take the completion of a command, if there is one. Never waits.
    pub fn complete(&mut self) -> Option<Completed> {
        if let Some(answered) = self.answered.pop_front() {
            return Some(answered);
        }
        let completion = self.namespace.backend.complete()?;
        let request = completion.request;
        // The tag was made from a command id.
        let cid = u16::try_from(request.tag).unwrap_or(u16::MAX);
        let (word, bit) = place(cid);
        self.cids[word] &= !bit;
        let cause = completion.result.err();
        let status = cause
            .as_ref()
            .map_or(Status::SUCCESS, |error| status_of(request.op, error));
        Some(Completed {
            entry: CompletionEntry::new(cid, status),
            data: request.buffer,
            cause,
        })
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

/// Where the bit of a command id is.
fn place(cid: u16) -> (usize, u64) {
    (usize::from(cid / 64), 1 << (cid % 64))
}

#[cfg(test)]
mod tests;
