//! How the guest is told, or not told, that a request is over.

use outboard_nvme::LBA_LEN;
use outboard_ring::{RingError, Signals};
use outboard_storage::IoError;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};

use crate::{
    queue::Queue,
    ranges::RangeKind,
    request::{Request, RequestError, status_byte},
    slot::Slot,
    unit::BlkUnit,
};

/// What became of a request.
pub(crate) enum Outcome {
    /// It was carried out.
    Done(Request),
    /// It was refused.
    Refused(RequestError),
    /// The backend failed it.
    Failed,
}

impl Outcome {
    fn status(&self) -> u8 {
        match self {
            Self::Done(_) => status_byte(VIRTIO_BLK_S_OK),
            Self::Refused(error) => error.status(),
            Self::Failed => status_byte(VIRTIO_BLK_S_IOERR),
        }
    }
}

impl BlkUnit {
    /// Tell the guest, unless it is to hear nothing any more, and free the slot.
    pub(crate) fn finish(&mut self, cid: u16, outcome: Outcome) {
        self.free.push(cid);
        let slot = &self.slots[usize::from(cid)];
        let Some(queue) = &mut self.queues[usize::from(slot.queue)] else {
            return;
        };
        queue.in_flight -= 1;
        if self.shut || queue.ring.broken().is_some() {
            self.counters.silenced += 1;
            return;
        }
        if let Err(error) = answer(queue, slot, &outcome) {
            self.counters.silenced += 1;
            let index = slot.queue;
            return self.fail_queue(index, error);
        }
        self.count(cid, &outcome);
    }

    fn count(&mut self, cid: u16, outcome: &Outcome) {
        let counters = &mut self.counters;
        let ranges = &self.slots[usize::from(cid)].ranges;
        match outcome {
            Outcome::Done(Request::Read { len, .. }) => {
                counters.reads += 1;
                counters.read_bytes += len;
            }
            Outcome::Done(Request::Write { len, .. }) => {
                counters.writes += 1;
                counters.written_bytes += len;
            }
            Outcome::Done(Request::Flush) => counters.flushes += 1,
            Outcome::Done(Request::GetId) => counters.ids += 1,
            Outcome::Done(Request::Ranges { kind, .. }) => {
                let (requests, bytes) = match kind {
                    RangeKind::Discard => (&mut counters.discards, &mut counters.discarded_bytes),
                    RangeKind::WriteZeroes => (&mut counters.zeroes, &mut counters.zeroed_bytes),
                };
                let blocks = ranges.list().iter().map(|range| u64::from(range.block_count));
                *requests += 1;
                *bytes += blocks.sum::<u64>() * LBA_LEN;
            }
            Outcome::Failed => counters.failed += 1,
            Outcome::Refused(error) => {
                let count = match error {
                    RequestError::Unsupported { .. } | RequestError::Flags { .. } => &mut counters.unsupported,
                    _ => &mut counters.refused,
                };
                *count += 1;
                if count.is_power_of_two() {
                    tracing::debug!(volume = %self.name, count = *count, %error, "refused a request");
                }
            }
        }
    }

    /// Answer a request for the volume's id.
    pub(crate) fn tell_id(&mut self, cid: u16) {
        let slot = &self.slots[usize::from(cid)];
        let Some(queue) = &self.queues[usize::from(slot.queue)] else {
            return;
        };
        match slot.chain.write_at(queue.ring.memory(), 0, &self.id) {
            Ok(()) => self.finish(cid, Outcome::Done(Request::GetId)),
            Err(error) => {
                let index = slot.queue;
                tracing::debug!(volume = %self.name, %error, "the id could not be written");
                self.fail_queue(index, RingError::MemoryVanished);
                self.finish(cid, Outcome::Failed);
            }
        }
    }

    /// Show the guests what was finished and call those that want to be called.
    pub(crate) fn publish(&mut self, signals: &mut dyn Signals) {
        for index in 0..self.queues.len() {
            let Some(queue) = &mut self.queues[index] else { continue };
            if self.shut || queue.ring.broken().is_some() {
                continue;
            }
            match (queue.ring.publish(), &queue.call) {
                (Ok(wanted), Some(call)) => {
                    if wanted || queue.call_due {
                        queue.call_due = false;
                        signals.signal(call);
                    }
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    if queue.fail(error.clone()) {
                        self.note_broken(&error);
                    }
                }
            }
        }
    }

    /// Let go of the queues that are to stop and have nothing in flight.
    pub(crate) fn end_stopped(&mut self) {
        for place in &mut self.queues {
            let shut = self.shut;
            let Some(mut queue) = place.take_if(|queue| queue.is_over(shut)) else {
                continue;
            };
            let base = queue.ring.base();
            let waiters = std::mem::take(&mut queue.stopping);
            // With it goes its hold on the guest's memory.
            drop(queue);
            for done in waiters {
                done(Some(base));
            }
        }
    }

    /// Break a queue.
    pub(crate) fn fail_queue(&mut self, index: u16, error: RingError) {
        let queue = self.queues.get_mut(usize::from(index)).and_then(Option::as_mut);
        if queue.is_some_and(|queue| queue.fail(error.clone())) {
            self.note_broken(&error);
        }
    }

    /// A queue was broken just now.
    pub(crate) fn note_broken(&mut self, error: &RingError) {
        self.counters.broken_queues += 1;
        tracing::warn!(volume = %self.name, %error, "a queue is broken until its device is reset");
    }

    /// Log a failed request, ever more rarely.
    pub(crate) fn log_failure(&self, cid: u16, cause: Option<&IoError>) {
        let count = self.counters.failed + 1;
        if let (Some(cause), true) = (cause, count.is_power_of_two()) {
            let request = self.slots.get(usize::from(cid)).map(|slot| slot.work.request);
            tracing::warn!(volume = %self.name, ?request, count, %cause, "a request failed");
        }
    }
}

/// Write the status and stage the used entry.
fn answer(queue: &mut Queue, slot: &Slot, outcome: &Outcome) -> Result<(), RingError> {
    let shape = slot.shape();
    let status_offset = shape.status_offset();
    if let Some(offset) = status_offset {
        let written = slot.chain.write_at(queue.ring.memory(), offset, &[outcome.status()]);
        written.map_err(|_| RingError::MemoryVanished)?;
    }
    // The length is that of what was written from the start on (virtio 1.3 §2.7.8.2): everything, if the request was
    // carried out; otherwise only the status is sure to be written.
    let written_len = match (outcome, status_offset) {
        (Outcome::Done(_), _) => shape.writable_len,
        (_, Some(0)) => shape.writable_len,
        _ => 0,
    };
    // Data of a read that failed may have come in part, and the status stands behind it.
    queue.ring.push_used_dirtying(
        &slot.chain,
        u32::try_from(written_len).unwrap_or(u32::MAX),
        shape.writable_len,
    )
}
