//! A request in flight.

use outboard_nvme::{LBA_LEN, NSID, SubmissionEntry, TRANSFER_LEN_MAX};
use outboard_ring::{Chain, GuestMemory};
use outboard_storage::{Buffer, BufferError};
use std::sync::Arc;

use crate::request::{HEADER_LEN, Request, Shape};

/// What is to be done for a request, part by part: a command transfers no more than [`TRANSFER_LEN_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) request: Request,
    /// Bytes that are transferred.
    pub(crate) done_len: u64,
    /// Each write is to be durable at once.
    pub(crate) write_through: bool,
}

/// Room for a request, used again and again.
pub(crate) struct Slot {
    pub(crate) chain: Chain,
    /// The queue it came from.
    pub(crate) queue: u16,
    /// Ours while no command is in flight.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) work: Work,
}

impl Slot {
    pub(crate) fn new() -> Self {
        let work = Work {
            request: Request::Flush,
            done_len: 0,
            write_through: false,
        };
        Self {
            chain: Chain::new(),
            queue: 0,
            buffer: Some(Buffer::new()),
            work,
        }
    }

    pub(crate) fn shape(&self) -> Shape {
        Shape {
            readable_len: self.chain.readable_len(),
            writable_len: self.chain.writable_len(),
        }
    }

    /// Fill `buffer` with the data of the next part and encode its command.
    pub(crate) fn next_command(
        &self,
        cid: u16,
        memory: &Arc<GuestMemory>,
        buffer: &mut Buffer,
    ) -> Result<SubmissionEntry, BufferError> {
        let done = self.work.done_len;
        let part = self.work.next_len();
        let slba = |sector: u64| sector + done / LBA_LEN;
        Ok(match self.work.request {
            Request::Read { sector, .. } => {
                buffer.fill(memory, self.chain.writable(), done, part)?;
                SubmissionEntry::read(cid, NSID, slba(sector), nlb(part))
            }
            Request::Write { sector, .. } => {
                buffer.fill(memory, self.chain.readable(), HEADER_LEN as u64 + done, part)?;
                SubmissionEntry::write(cid, NSID, slba(sector), nlb(part), self.work.write_through)
            }
            Request::Flush | Request::GetId => {
                buffer.clear();
                SubmissionEntry::flush(cid, NSID)
            }
        })
    }
}

impl Work {
    /// Length of the data in bytes.
    pub(crate) fn len(self) -> u64 {
        match self.request {
            Request::Read { len, .. } | Request::Write { len, .. } => len,
            Request::Flush | Request::GetId => 0,
        }
    }

    /// Length of the next part in bytes; 0 if all is done.
    pub(crate) fn next_len(self) -> u64 {
        (self.len() - self.done_len).min(TRANSFER_LEN_MAX)
    }
}

/// The field NLB for so many bytes: the number of blocks less one.
fn nlb(len: u64) -> u16 {
    const { assert!(TRANSFER_LEN_MAX / LBA_LEN <= 1 << 16) };
    u16::try_from((len / LBA_LEN).saturating_sub(1)).unwrap_or(u16::MAX)
}
