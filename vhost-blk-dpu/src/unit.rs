//! One volume as a virtio-blk device.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd},
};

use outboard_nvme::{Completed, Controller, Namespace};
use outboard_ring::{CallFd, RingError, RingLog, Signals};
use outboard_storage::{Backend, ResizeError};
use outboard_vhost_user::{DeviceError, QueueResources};

use crate::{
    answer::Outcome,
    cache::Cache,
    config_space::{CONFIG_LEN, ConfigFields, SEG_MAX, WRITEBACK_OFFSET, config_space},
    counters::VolumeCounters,
    features::features,
    id::{ID_LEN, device_id},
    queue::{Queue, REQUEST_COST_MIN, Stopped},
    ranges::{RANGE_COUNT_MAX, RANGE_LEN, RangeKind, Ranges},
    request::{HEADER_LEN, Limits, Request, RequestError, parse},
    slot::{Slot, Work},
};

/// Queues of a device.
pub const QUEUE_COUNT: u16 = 16;
/// The largest queue.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Requests taken from a queue in one breath.
const CHAINS_PER_BREATH_MAX: usize = 64;
/// Bytes of data begun in one breath: the backend may copy them on the worker.
const BYTES_PER_BREATH_MAX: u64 = 4 << 20;

/// A volume as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkConfig {
    /// Its name, from which its id is made.
    pub name: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// One volume as a virtio-blk device.
pub struct BlkUnit {
    pub(crate) name: String,
    pub(crate) id: [u8; ID_LEN],
    controller: Controller,
    read_only: bool,
    cache: Cache,
    /// Boxed, so that passing over those that do not run touches little memory.
    pub(crate) queues: [Option<Box<Queue>>; QUEUE_COUNT as usize],
    /// The queue whose turn is first in the next breath.
    first_turn: usize,
    /// Requests in flight; a command's id is the index of its slot.
    pub(crate) slots: Vec<Slot>,
    pub(crate) free: Vec<u16>,
    /// Slots whose next command is still to be submitted, before anything new is taken.
    stalled: VecDeque<u16>,
    /// Slots of discards that the controller has no room for: others pass them by.
    waiting_discards: VecDeque<u16>,
    /// Bytes that this breath may still begin.
    bytes_left: u64,
    pub(crate) shut: bool,
    pub(crate) counters: VolumeCounters,
}

impl BlkUnit {
    /// A device over `backend`. Smaller than `config` says if the backend is, and read-only if either is.
    pub fn new(config: BlkConfig, backend: Box<dyn Backend>) -> Self {
        let controller = Controller::new(Namespace::new(backend, config.size_bytes, config.read_only));
        let depth = u16::try_from(controller.depth())
            .unwrap_or(u16::MAX)
            .min(QUEUE_COUNT * QUEUE_SIZE_MAX);
        Self {
            id: device_id(&config.name),
            name: config.name,
            read_only: controller.namespace().read_only(),
            controller,
            cache: Cache::default(),
            queues: [const { None }; QUEUE_COUNT as usize],
            first_turn: 0,
            slots: (0..depth).map(|_| Slot::new()).collect(),
            free: (0..depth).rev().collect(),
            stalled: VecDeque::with_capacity(usize::from(depth)),
            waiting_discards: VecDeque::with_capacity(usize::from(depth)),
            bytes_left: 0,
            shut: false,
            counters: VolumeCounters::default(),
        }
    }

    /// The virtio features offered.
    pub fn features(&self) -> u64 {
        features(self.read_only)
    }

    /// The config space. It changes when the volume is resized and when the driver writes it.
    pub fn config_space(&self) -> [u8; CONFIG_LEN] {
        config_space(ConfigFields {
            block_count: self.controller.namespace().block_count(),
            read_only: self.read_only,
            writeback: self.cache.writeback(),
        })
    }

    /// The driver writes config space: 0 or 1 to `writeback`, which holds for every request taken from now on, of all
    /// queues. A front-end may write more at once if nothing else changes by it.
    ///
    /// # Errors
    /// Anything else is written.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DeviceError> {
        let now = self.config_space();
        let refused = || DeviceError::ConfigNotWritable {
            offset,
            len: data.len(),
        };
        let start = usize::try_from(offset).map_err(|_| refused())?;
        let end = start.checked_add(data.len()).ok_or_else(refused)?;
        let mut after = now;
        after.get_mut(start..end).ok_or_else(refused)?.copy_from_slice(data);
        let writeback = after[WRITEBACK_OFFSET];
        after[WRITEBACK_OFFSET] = now[WRITEBACK_OFFSET];
        if after != now || writeback > 1 || !(start..end).contains(&WRITEBACK_OFFSET) {
            return Err(refused());
        }
        self.cache.write(writeback == 1);
        Ok(())
    }

    /// Go back to how the device was before a driver came. Its queues were stopped.
    pub fn reset(&mut self) {
        self.cache = Cache::default();
    }

    /// Have `size_bytes` from now on, while requests are in flight. True if the config space changed, which the driver
    /// must be told. Requests past a new, smaller end fail.
    ///
    /// # Errors
    /// The size is none, or what is below the volume has fewer bytes. The volume keeps its size.
    pub fn resize(&mut self, size_bytes: u64) -> Result<bool, ResizeError> {
        let before = self.controller.namespace().block_count();
        self.controller.resize(size_bytes)?;
        Ok(self.controller.namespace().block_count() != before)
    }

    /// What was counted so far.
    pub fn counters(&self) -> VolumeCounters {
        self.counters
    }

    /// Requests taken from the guest and not finished.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Serve a queue.
    ///
    /// # Errors
    /// There is no such queue, it runs already, it lacks what [`StartError`](crate::StartError) names, or the volume was shut.
    pub fn start_queue(&mut self, index: u16, resources: QueueResources) -> Result<(), DeviceError> {
        if self.shut {
            return Err(DeviceError::NotGranted {
                object: format!("volume {}", self.name),
            });
        }
        match self.queue_slot(index)? {
            Some(_) => Err(DeviceError::QueueRuns { index }),
            empty => {
                let queue = Queue::new(resources).map_err(|error| DeviceError::Other(Box::new(error)))?;
                let (features, small, size) = (queue.features, queue.is_small(), queue.ring.size());
                *empty = Some(Box::new(queue));
                self.cache.negotiated(features);
                if small {
                    tracing::warn!(
                        volume = %self.name, queue = index, size, seg_max = SEG_MAX,
                        "a queue is smaller than a large request may be, which would break it: let the VMM give it \
                         128 descriptors or more (QEMU: queue-size=128)"
                    );
                }
                Ok(())
            }
        }
    }

    /// Stop a queue. `done` is called once nothing of it is in flight and its memory was let go; at once if it does not
    /// run.
    pub fn stop_queue(&mut self, index: u16, done: Stopped) {
        match self.queues.get_mut(usize::from(index)) {
            Some(Some(queue)) => {
                queue.stopping.push(done);
                self.end_stopped();
            }
            _ => done(None),
        }
    }

    /// Call the driver by another descriptor from now on, and once at once.
    ///
    /// # Errors
    /// There is no such queue, or it does not run.
    pub fn set_call(&mut self, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        match self.queue_slot(index)? {
            Some(queue) => {
                queue.call = call;
                queue.call_due = true;
                Ok(())
            }
            None => Err(DeviceError::QueueStopped { index }),
        }
    }

    /// Log the writes of a running queue in this way from now on, or not at all.
    ///
    /// # Errors
    /// There is no such queue, or it does not run.
    pub fn set_log(&mut self, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        match self.queue_slot(index)? {
            Some(queue) => {
                queue.ring.set_log(log);
                Ok(())
            }
            None => Err(DeviceError::QueueStopped { index }),
        }
    }

    /// The volume was revoked. From now on nothing is submitted and nothing is told to the guest; queues stay silent
    /// until they are stopped. Reads that are in flight may still land in the guest's memory.
    pub fn shut(&mut self) {
        self.shut = true;
        while let Some(cid) = self.stalled.pop_front().or_else(|| self.waiting_discards.pop_front()) {
            self.finish(cid, Outcome::Failed);
        }
        self.end_stopped();
    }

    /// Do a bounded amount of work. True if there was any.
    pub fn breathe(&mut self, signals: &mut dyn Signals) -> bool {
        self.bytes_left = BYTES_PER_BREATH_MAX;
        let mut worked = self.resume_stalled();
        worked |= self.take_requests();
        self.controller.start();
        worked |= self.take_completions();
        self.controller.start();
        self.publish(signals);
        self.end_stopped();
        worked
    }

    /// Ask for kicks. True if work is waiting already.
    pub fn before_sleep(&mut self) -> bool {
        let mut waiting = self.controller.arm() || !self.stalled.is_empty();
        // With all slots taken a completion wakes the worker first.
        if !self.shut && !self.free.is_empty() {
            for index in 0..self.queues.len() {
                waiting |= self.ask_for_kicks(index);
            }
        }
        waiting
    }

    fn ask_for_kicks(&mut self, index: usize) -> bool {
        let Some(queue) = self.queues[index].as_mut().filter(|queue| queue.is_open()) else {
            return false;
        };
        match queue.ring.enable_kicks() {
            Ok(waiting) => waiting,
            Err(error) => {
                self.note_broken(&error);
                false
            }
        }
    }

    /// The worker polls again: no kicks are needed.
    pub fn after_sleep(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            queue.ring.disable_kicks();
        }
    }

    /// What to wait for between [`BlkUnit::before_sleep`] and [`BlkUnit::after_sleep`], until one of them becomes readable
    /// *again*: kicks are left in them, so that waking costs no system call for each queue. Changes when a queue starts,
    /// stops or breaks, and when the volume is shut.
    pub fn wake_fds(&self) -> Vec<BorrowedFd<'_>> {
        let open = self
            .queues
            .iter()
            .flatten()
            .filter(|queue| !self.shut && queue.is_open());
        let kicks = open.map(|queue| queue.kick.as_fd());
        kicks.chain(self.controller.wake_fd()).collect()
    }

    fn queue_slot(&mut self, index: u16) -> Result<&mut Option<Box<Queue>>, DeviceError> {
        self.queues.get_mut(usize::from(index)).ok_or(DeviceError::NoSuchQueue {
            index,
            queue_count: QUEUE_COUNT,
        })
    }

    /// Submit what had to wait.
    fn resume_stalled(&mut self) -> bool {
        let waiting = self.stalled.len();
        for _ in 0..waiting {
            if let Some(cid) = self.stalled.pop_front() {
                self.submit(cid);
            }
        }
        self.resume_discards() || waiting > 0
    }

    /// Submit the discards that there is room for now.
    fn resume_discards(&mut self) -> bool {
        let waiting = self.waiting_discards.len();
        for _ in 0..waiting {
            let Some(cid) = self.waiting_discards.pop_front() else {
                break;
            };
            let before = self.waiting_discards.len();
            self.submit(cid);
            if self.waiting_discards.len() > before {
                // Still no room: it is the first again.
                self.waiting_discards.rotate_right(1);
                return self.waiting_discards.len() < waiting;
            }
        }
        waiting > 0
    }

    /// Take requests from the queues, as long as there is room for them: each in its turn, so that no queue keeps the
    /// others from being served.
    fn take_requests(&mut self) -> bool {
        let mut taken = 0;
        loop {
            let mut waiting = false;
            for n in 0..self.queues.len() {
                let index = (self.first_turn + n) % self.queues.len();
                let Some(queue) = &mut self.queues[index] else { continue };
                queue.begin_turn();
                waiting |= self.take_turn(index, &mut taken);
            }
            self.first_turn = (self.first_turn + 1) % self.queues.len();
            if !waiting || !self.has_room(taken) {
                return taken > 0;
            }
        }
    }

    /// Take requests from one queue. True if it may have more and only its turn is over.
    fn take_turn(&mut self, index: usize, taken: &mut usize) -> bool {
        while self.has_room(*taken) {
            match &self.queues[index] {
                Some(queue) if queue.has_credit() => {}
                Some(_) => return true,
                None => return false,
            }
            match self.pop(index) {
                Some(cid) => self.begin(cid),
                None => return false,
            }
            *taken += 1;
        }
        false
    }

    /// May one more request be begun in this breath, after so many?
    fn has_room(&self, taken: usize) -> bool {
        taken < CHAINS_PER_BREATH_MAX && self.bytes_left > 0 && self.stalled.is_empty() && !self.shut
    }

    /// The next chain of a queue, in a slot of its own.
    fn pop(&mut self, index: usize) -> Option<u16> {
        let queue = self.queues[index].as_mut().filter(|queue| queue.is_open())?;
        let &cid = self.free.last()?;
        let slot = &mut self.slots[usize::from(cid)];
        match queue.ring.pop(&mut slot.chain) {
            Ok(true) => {
                self.free.pop();
                // Below QUEUE_COUNT.
                slot.queue = u16::try_from(index).unwrap_or(0);
                queue.in_flight += 1;
                queue.charge(REQUEST_COST_MIN);
                Some(cid)
            }
            Ok(false) => None,
            Err(error) => {
                self.note_broken(&error);
                None
            }
        }
    }

    /// Check the request in a slot and bring it on its way.
    fn begin(&mut self, cid: u16) {
        let slot = &mut self.slots[usize::from(cid)];
        let Some(queue) = &self.queues[usize::from(slot.queue)] else {
            return;
        };
        let shape = slot.shape();
        let mut header = [0; HEADER_LEN];
        let header_len = usize::try_from(shape.readable_len).map_or(HEADER_LEN, |len| len.min(HEADER_LEN));
        if let Err(error) = slot.chain.read_at(queue.ring.memory(), 0, &mut header[..header_len]) {
            let index = slot.queue;
            tracing::debug!(volume = %self.name, %error, "a request's header could not be read");
            self.fail_queue(index, RingError::MemoryVanished);
            return self.finish(cid, Outcome::Failed);
        }
        let limits = Limits {
            block_count: self.controller.namespace().block_count(),
            read_only: self.read_only,
            features: queue.features,
        };
        let write_through = self.cache.is_write_through(queue.features);
        match parse(shape, &header[..header_len], limits) {
            Ok(Request::GetId) => self.tell_id(cid),
            Ok(request @ Request::Ranges { kind, count }) => {
                slot.work = Work::new(request, write_through);
                self.begin_ranges(cid, kind, count, limits);
            }
            Ok(request) => {
                slot.work = Work::new(request, write_through);
                self.submit(cid);
            }
            Err(error) => self.finish(cid, Outcome::Refused(error)),
        }
    }

    /// Copy and check the ranges of a request, all of them before any is touched.
    fn begin_ranges(&mut self, cid: u16, kind: RangeKind, count: usize, limits: Limits) {
        let slot = &mut self.slots[usize::from(cid)];
        let Some(queue) = &self.queues[usize::from(slot.queue)] else {
            return;
        };
        let mut bytes = [0; RANGE_LEN * RANGE_COUNT_MAX];
        let bytes = &mut bytes[..RANGE_LEN * count.min(RANGE_COUNT_MAX)];
        if let Err(error) = slot.chain.read_at(queue.ring.memory(), HEADER_LEN as u64, bytes) {
            let index = slot.queue;
            tracing::debug!(volume = %self.name, %error, "a request's ranges could not be read");
            self.fail_queue(index, RingError::MemoryVanished);
            return self.finish(cid, Outcome::Failed);
        }
        match Ranges::parse(kind, bytes.as_chunks().0, limits) {
            Ok(ranges) => {
                slot.ranges = ranges;
                self.submit(cid);
            }
            Err(error) => self.finish(cid, Outcome::Refused(error)),
        }
    }

    /// Submit the next command of a request, or put it off.
    fn submit(&mut self, cid: u16) {
        let slot = &mut self.slots[usize::from(cid)];
        let Some(queue) = &mut self.queues[usize::from(slot.queue)] else {
            return;
        };
        let cost = slot.cost();
        if cost > 0 && self.bytes_left == 0 {
            return self.stalled.push_back(cid);
        }
        let mut buffer = slot.buffer.take().unwrap_or_default();
        let entry = match slot.next_command(cid, queue.ring.memory(), &mut buffer) {
            Ok(entry) => entry,
            Err(error) => {
                slot.buffer = Some(buffer);
                return self.finish(cid, Outcome::Refused(RequestError::Data(error)));
            }
        };
        let is_discard = matches!(
            slot.work.request,
            Request::Ranges {
                kind: RangeKind::Discard,
                ..
            }
        );
        let submitted = if is_discard {
            self.controller.submit_ranges(entry, buffer, slot.ranges.list())
        } else {
            self.controller.submit(entry, buffer)
        };
        match submitted {
            Ok(()) => {
                queue.charge(cost.saturating_sub(REQUEST_COST_MIN));
                self.bytes_left = self.bytes_left.saturating_sub(cost);
            }
            Err(busy) => {
                slot.buffer = Some(busy.data);
                let waiting = match is_discard {
                    true => &mut self.waiting_discards,
                    false => &mut self.stalled,
                };
                waiting.push_back(cid);
            }
        }
    }

    /// Take what the controller completed, at most once for each slot.
    fn take_completions(&mut self) -> bool {
        for done in 0..self.slots.len() {
            match self.controller.complete() {
                Some(completed) => self.on_completed(completed),
                None => return done > 0,
            }
        }
        true
    }

    fn on_completed(&mut self, completed: Completed) {
        let cid = completed.entry.cid();
        let Some(slot) = self.slots.get_mut(usize::from(cid)) else {
            return;
        };
        let mut buffer = completed.data;
        // The guest's memory may go from here on.
        buffer.clear();
        slot.buffer = Some(buffer);
        if !completed.entry.status().is_success() {
            self.log_failure(cid, completed.cause.as_ref());
            return self.finish(cid, Outcome::Failed);
        }
        if slot.advance() {
            let request = slot.work.request;
            self.finish(cid, Outcome::Done(request));
        } else if self.shut {
            self.finish(cid, Outcome::Failed);
        } else {
            self.submit(cid);
        }
    }
}
