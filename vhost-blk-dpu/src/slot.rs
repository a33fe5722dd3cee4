//! A request in flight.

use std::sync::Arc;

use outboard_nvme::{LBA_LEN, NSID, SubmissionEntry, TRANSFER_LEN_MAX};
use outboard_ring::{Chain, GuestMemory};
use outboard_storage::{Buffer, BufferError};

use crate::{
    ranges::{RangeKind, Ranges},
    request::{HEADER_LEN, Request, Shape},
};

/// Blocks that one Write Zeroes command names at most: its field NLB is 16 bits wide.
const ZEROES_BLOCKS_MAX: u64 = 1 << 16;
/// Discarding or zeroing costs a worker about as much as transferring so many times fewer bytes.
const RANGE_DISCOUNT: u64 = 32;

/// What is to be done for a request, command by command: none transfers more than [`TRANSFER_LEN_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) request: Request,
    /// Bytes that are done: of the data, or of the range that is being zeroed.
    done_len: u64,
    /// The range that is being zeroed.
    range: usize,
    /// Each write is to be durable at once.
    write_through: bool,
}

/// Room for a request, used again and again.
pub(crate) struct Slot {
    pub(crate) chain: Chain,
    /// The queue it came from.
    pub(crate) queue: u16,
    /// Ours while no command is in flight.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) work: Work,
    pub(crate) ranges: Ranges,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            chain: Chain::new(),
            queue: 0,
            buffer: Some(Buffer::new()),
            work: Work::new(Request::Flush, false),
            ranges: Ranges::new(),
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
        let work = self.work;
        let part = self.next_len();
        let slba = |sector: u64| sector + work.done_len / LBA_LEN;
        buffer.clear();
        Ok(match work.request {
            Request::Read { sector, .. } => {
                buffer.fill(memory, self.chain.writable(), work.done_len, part)?;
                SubmissionEntry::read(cid, NSID, slba(sector), nlb(part))
            }
            Request::Write { sector, .. } => {
                buffer.fill(memory, self.chain.readable(), HEADER_LEN as u64 + work.done_len, part)?;
                SubmissionEntry::write(cid, NSID, slba(sector), nlb(part), work.write_through)
            }
            Request::Flush | Request::GetId => SubmissionEntry::flush(cid, NSID),
            Request::Ranges {
                kind: RangeKind::Discard,
                ..
            } => {
                let last = self.ranges.list().len().saturating_sub(1);
                SubmissionEntry::deallocate(cid, NSID, u8::try_from(last).unwrap_or(u8::MAX))
            }
            Request::Ranges {
                kind: RangeKind::WriteZeroes,
                ..
            } => {
                let sector = self.ranges.list().get(work.range).map_or(0, |range| range.slba);
                let unmap = self.ranges.unmap(work.range);
                SubmissionEntry::write_zeroes(cid, NSID, slba(sector), nlb(part), unmap, work.write_through)
            }
        })
    }

    /// The command in flight is done. True if it was the last.
    pub(crate) fn advance(&mut self) -> bool {
        let part = self.next_len();
        match self.work.request {
            Request::Read { len, .. } | Request::Write { len, .. } => {
                self.work.done_len += part;
                self.work.done_len >= len
            }
            Request::Flush
            | Request::GetId
            | Request::Ranges {
                kind: RangeKind::Discard,
                ..
            } => true,
            Request::Ranges {
                kind: RangeKind::WriteZeroes,
                ..
            } => {
                self.work.done_len += part;
                if self.next_len() == 0 {
                    (self.work.range, self.work.done_len) = (self.work.range + 1, 0);
                }
                self.work.range >= self.ranges.list().len()
            }
        }
    }

    /// What the next part costs, in bytes that a worker copies.
    pub(crate) fn cost(&self) -> u64 {
        match self.work.request {
            Request::Read { .. } | Request::Write { .. } => self.next_len(),
            Request::Flush | Request::GetId => 0,
            Request::Ranges {
                kind: RangeKind::WriteZeroes,
                ..
            } => self.next_len() / RANGE_DISCOUNT,
            // The controller does them in pieces as long as the longest of zeroes.
            Request::Ranges { .. } => ZEROES_BLOCKS_MAX * LBA_LEN / RANGE_DISCOUNT,
        }
    }

    /// Length of the next part in bytes.
    fn next_len(&self) -> u64 {
        let done = self.work.done_len;
        match self.work.request {
            Request::Read { len, .. } | Request::Write { len, .. } => (len - done).min(TRANSFER_LEN_MAX),
            Request::Flush | Request::GetId => 0,
            Request::Ranges { .. } => {
                let range = self.ranges.list().get(self.work.range);
                let len = range.map_or(0, |range| u64::from(range.block_count) * LBA_LEN);
                (len - done).min(ZEROES_BLOCKS_MAX * LBA_LEN)
            }
        }
    }
}

impl Work {
    pub(crate) fn new(request: Request, write_through: bool) -> Self {
        Self {
            request,
            done_len: 0,
            range: 0,
            write_through,
        }
    }
}

/// The field NLB for so many bytes: the number of blocks less one.
fn nlb(len: u64) -> u16 {
    const { assert!(TRANSFER_LEN_MAX / LBA_LEN <= 1 << 16) };
    u16::try_from((len / LBA_LEN).saturating_sub(1)).unwrap_or(u16::MAX)
}
