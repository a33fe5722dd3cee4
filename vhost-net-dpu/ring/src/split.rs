//! The device's side of a split virtqueue (virtio 1.3 §2.7).

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use outboard_controls::{Check, on};
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::{
    ahead::{AHEAD_MAX, Ahead, Seen},
    chain::{Chain, Segment},
    descriptor::Descriptor,
    error::RingError,
    heads::Heads,
    inflight_log::{InflightLog, Journal, Recovered},
    layout::{ConfigFault, FLAGS_OFFSET, Layout, RingConfig, USED_ENTRY_LEN, USED_RING_OFFSET},
    log::RingLog,
    memory::GuestMemory,
    sigbus,
    view::GuestBytes,
    walk,
};

/// `flags` are 16 bits wide in memory.
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
const _: () = assert!(NO_INTERRUPT as u32 == VRING_AVAIL_F_NO_INTERRUPT && NO_NOTIFY as u32 == VRING_USED_F_NO_NOTIFY);

/// The device's side of one split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    mem: Arc<GuestMemory>,
    layout: Layout,
    /// The entry of the available ring to take next.
    next_avail: u16,
    /// avail.idx as last read: entries up to it may be taken without reading it again.
    avail_idx: u16,
    ahead: Ahead,
    /// Where in memory the last buffer was.
    near: u16,
    /// The entry of the used ring to write next.
    next_used: u16,
    /// used.idx as last published.
    published_used: u16,
    /// The head taken at each entry of the available ring, for [`SplitRing::unpop`].
    taken: Box<[u16]>,
    /// Entries from `next_avail` on that are not read from the available ring, but in `taken` already: they were in
    /// flight when the ring started.
    replay_left: u16,
    /// Chains taken from the available ring, without those given back by [`SplitRing::unpop`].
    popped: u64,
    in_flight: Heads,
    journal: Option<Journal>,
    log: Option<RingLog>,
    broken: Option<RingError>,
    /// Nothing is logged, and the ring is whole.
    plain: bool,
}

impl SplitRing {
    /// A ring at rest, which goes on at `config.base` and at the used index in memory.
    ///
    /// # Errors
    /// [`RingError::Config`] if its parts are misaligned, not in memory, or overlap.
    pub fn new(config: RingConfig, mem: Arc<GuestMemory>) -> Result<Self, RingError> {
        let layout = Layout::new(&config, &mem)?;
        let used = layout.view.used_idx();
        let size = config.size;
        let RingConfig { base, .. } = config;
        let next_avail = u16::try_from(base).map_err(|_| ConfigFault::Base { base, size })?;
        Ok(Self {
            mem,
            layout,
            next_avail,
            avail_idx: next_avail,
            ahead: Ahead::new(),
            near: 0,
            next_used: used,
            published_used: used,
            taken: vec![0; usize::from(size)].into(),
            replay_left: 0,
            popped: 0,
            in_flight: Heads::new(size),
            journal: None,
            log: None,
            broken: None,
            plain: true,
        })
    }

    /// The same with a log of what is in flight. If one was kept before, the ring goes on where that says, whatever
    /// `config.base` is: [`SplitRing::pop`] yields first what was in flight, oldest first, and then what comes
    /// after it.
    ///
    /// # Errors
    /// As for [`SplitRing::new`], and if the log cannot be that of this ring.
    pub fn with_inflight(config: RingConfig, mem: Arc<GuestMemory>, log: InflightLog) -> Result<Self, RingError> {
        let mut ring = Self::new(config, mem)?;
        let Recovered { journal, heads } = log.recover(ring.layout.size, ring.next_used)?;
        ring.journal = Some(journal);
        ring.plain = false;
        let Some(heads) = heads else { return Ok(ring) };
        // Each entry up to there was either given back or is in flight.
        ring.next_avail = ring.next_used;
        for head in heads {
            let place = ring.layout.slot(ring.next_avail.wrapping_add(ring.replay_left));
            // The heads differ and are below the size, so that there are no more than places.
            ring.taken[place] = head;
            ring.replay_left += 1;
        }
        ring.avail_idx = ring.next_avail();
        Ok(ring)
    }

    /// Go on at the used index in memory, whatever the base of the configuration was; before anything is popped. For a
    /// device that uses chains in the order in which it takes them and that has none while it rests: for it the two are
    /// the same. A VMM whose connection broke may know an older one, since the device learns of that a moment later.
    pub fn resume_at_used(&mut self) {
        debug_assert!(
            self.popped == 0 && self.journal.is_none(),
            "it is not known what was taken"
        );
        self.next_avail = self.next_used;
        self.avail_idx = self.next_used;
    }

    /// Log writes to guest memory from now on, or no more. Everything written before a log is set must be known to the
    /// front-end in another way, except for the used ring: all of it is marked.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        if let Some(log) = &log {
            log.mark_used(0, self.layout.used_len);
        }
        self.log = log;
        self.plain = self.log.is_none() && self.journal.is_none() && self.broken.is_none();
    }

    /// The memory its chains are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.mem
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// Take the next available chain. `Ok(false)`: there is none, or the ring is broken.
    ///
    /// # Errors
    /// The guest broke the rules, or its memory is gone. The error is returned once and the ring is then broken: it
    /// yields nothing more, see [`SplitRing::broken`].
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.broken.is_some() {
            return Ok(false);
        }
        match self.take(chain) {
            Ok(taken) if !self.vanished() => Ok(taken),
            Ok(taken) => {
                self.unpop(u16::from(taken));
                Err(self.latch(RingError::MemoryVanished))
            }
            Err(error) => Err(self.latch(error)),
        }
    }

    /// Take the next available chains, as many as there are and `chains` has room for: how many, and a failure if one
    /// ended it, as [`SplitRing::pop`] tells it. Chains before a malformed one are taken.
    pub fn pop_burst(&mut self, chains: &mut [Chain]) -> (usize, Option<RingError>) {
        if self.broken.is_some() {
            return (0, None);
        }
        let mut count = 0;
        let mut failure = None;
        for chain in chains {
            match self.take(chain) {
                Ok(true) => count += 1,
                Ok(false) => break,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if self.vanished() {
            // No more than the queue has.
            self.unpop(u16::try_from(count).unwrap_or(0));
            return (0, Some(self.latch(RingError::MemoryVanished)));
        }
        (count, failure.map(|error| self.latch(error)))
    }

    /// The first `len` bytes of the next chain, if they can be filled straight away: see [`crate::Ring::fill_next`].
    #[inline]
    pub(crate) fn next_room(&mut self, len: usize) -> Option<GuestBytes<'_>> {
        if !self.plain || self.in_flight.count() != 0 {
            return None;
        }
        if self.ahead.next == self.ahead.end && !matches!(self.look_ahead(), Ok(true)) {
            return None;
        }
        let Seen { place, first, .. } = self.ahead.peek()?;
        let (place, true) = ((*place)?, first.is_write() && first.len as usize >= len) else {
            return None;
        };
        self.mem.bytes(first.addr, len, place).ok()
    }

    /// Take the next chain and stage it as used, after `len` bytes of what [`SplitRing::next_room`] gave were written. False
    /// if memory was taken away meanwhile: then it was not taken.
    #[inline]
    pub(crate) fn take_filled(&mut self, len: u32) -> bool {
        if self.mem.poisoned() {
            return false;
        }
        // Taken and given back in one, so that nobody asks for what was taken here.
        let Some(&Seen { head, .. }) = self.ahead.pop() else {
            return false;
        };
        self.next_avail = self.next_avail.wrapping_add(1);
        self.layout.view.set_used_entry(self.next_used, head, len);
        self.next_used = self.next_used.wrapping_add(1);
        true
    }

    #[inline]
    fn take(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.replay_left > 0 {
            return self.replay(chain);
        }
        if self.ahead.next == self.ahead.end && !self.look_ahead()? {
            return Ok(false);
        }
        let Some(&Seen { head, place, first }) = self.ahead.pop() else {
            return Ok(false);
        };
        match place {
            Some(place) => {
                let Descriptor { addr, len, .. } = first;
                chain.set_only(head, Segment { addr, len }, first.is_write(), place);
            }
            None => self.walk((head, first), chain)?,
        }
        if !self.in_flight.insert(head) && on(Check::HeadInFlight) {
            return Err(RingError::HeadInFlight { head });
        }
        if let Some(journal) = &mut self.journal {
            journal.take(head)?;
        }
        self.taken[self.layout.slot(self.next_avail)] = head;
        self.next_avail = self.next_avail.wrapping_add(1);
        self.popped += 1;
        Ok(true)
    }

    /// Read the entries that are available, and the first descriptor of each, before the first of them is needed: so
    /// their cache misses overlap. True if there are any.
    #[inline(never)]
    fn look_ahead(&mut self) -> Result<bool, RingError> {
        if self.next_avail == self.avail_idx && !self.read_avail_idx()? {
            return Ok(false);
        }
        let size = self.layout.size;
        let available = self.avail_idx.wrapping_sub(self.next_avail).min(AHEAD_MAX);
        let mut count = 0;
        for (n, entry) in (0..available).zip(self.ahead.entries.iter_mut()) {
            let mut head = self.layout.view.avail_entry(self.next_avail.wrapping_add(n));
            if head >= size {
                if on(Check::HeadInRange) {
                    // Those before it are in order.
                    if n == 0 {
                        return Err(RingError::HeadOutOfRange { head, size });
                    }
                    break;
                }
                head %= size;
            }
            entry.head = head;
            self.layout.view.prefetch_descriptor(head);
            count = n + 1;
        }
        for seen in self.ahead.entries.iter_mut().take(usize::from(count)) {
            // One read; the guest may change it behind our back, and what was checked must be what is used.
            seen.first = self.layout.view.descriptor(seen.head);
            seen.place = walk::alone(&self.layout, &self.mem, seen.first, self.near);
            self.near = seen.place.unwrap_or(self.near);
        }
        (self.ahead.next, self.ahead.end) = (0, count);
        Ok(count > 0)
    }

    /// Fill a chain that is more than one buffer, or not in order.
    fn walk(&mut self, (head, first): (u16, Descriptor), chain: &mut Chain) -> Result<(), RingError> {
        walk::walk(&self.layout, &self.mem, (head, first), chain, &mut self.near)
            .map_err(|fault| RingError::Chain { head, fault })
    }

    /// Take a chain that was in flight when the ring started. The log has it already.
    #[cold]
    fn replay(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        let head = self.taken[self.layout.slot(self.next_avail)];
        self.walk((head, self.layout.view.descriptor(head)), chain)?;
        if !self.in_flight.insert(head) && on(Check::HeadInFlight) {
            return Err(RingError::HeadInFlight { head });
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        self.replay_left -= 1;
        Ok(true)
    }

    /// Read avail.idx. True if there is something to take.
    fn read_avail_idx(&mut self) -> Result<bool, RingError> {
        // Acquire: entries and descriptors are read after the index that covers them (virtio 1.3 §2.7.13.3).
        let idx = self.layout.view.avail_idx();
        let size = self.layout.size;
        if idx.wrapping_sub(self.next_avail) > size && on(Check::AvailIndex) {
            return Err(RingError::AvailIndexJump {
                idx,
                next_avail: self.next_avail,
                size,
            });
        }
        self.avail_idx = idx;
        Ok(idx != self.next_avail)
    }

    /// Give back the `n` chains popped last as if they had not been, to be popped again later. None of them may have
    /// been pushed as used.
    pub fn unpop(&mut self, n: u16) {
        for _ in 0..n {
            let last = self.next_avail.wrapping_sub(1);
            let head = self.taken[self.layout.slot(last)];
            let held = self.in_flight.remove(head);
            debug_assert!(held, "a chain that was pushed as used cannot be given back");
            self.next_avail = last;
            self.ahead.unpop(1);
            match self.popped.checked_sub(1) {
                Some(left) => {
                    self.popped = left;
                    let noted = self.journal.as_mut().map_or(Ok(()), |journal| journal.put_back(head));
                    debug_assert!(noted.is_ok(), "heads are below the size, for which the log has room");
                }
                // It was in flight before the ring started, and still is.
                None => self.replay_left += 1,
            }
        }
    }

    /// Stage a used entry: `chain` is done and its first `len` writable bytes were written. The guest sees it after
    /// [`SplitRing::publish`].
    ///
    /// # Errors
    /// [`RingError::NotInFlight`] if the device does not have this chain, [`RingError::UsedLen`] if it has room for
    /// fewer bytes, [`RingError::OutOfOrder`] if the device has an older one and the driver relies on the order.
    #[inline]
    pub fn push_used(&mut self, chain: &Chain, len: u32) -> Result<(), RingError> {
        self.push_used_dirtying(chain, len, u64::from(len))
    }

    /// The same for a device that may have written more than it says: up to `dirtied_len` bytes, as in a read that
    /// failed half way or a status behind a gap.
    ///
    /// # Errors
    /// As for [`SplitRing::push_used`].
    #[inline]
    pub fn push_used_dirtying(&mut self, chain: &Chain, len: u32, dirtied_len: u64) -> Result<(), RingError> {
        let head = chain.head();
        let room = chain.writable_len();
        // Bytes that nobody wrote would be what the driver's buffer held before (virtio 1.3 §2.7.8.2).
        if u64::from(len) > room && on(Check::UsedLen) {
            return Err(RingError::UsedLen { head, len, room });
        }
        if self.layout.in_order {
            self.check_order(head, self.oldest())?;
        }
        if !self.in_flight.remove(head) && on(Check::HeadInFlight) {
            return Err(RingError::NotInFlight { head });
        }
        if let Some(log) = &self.log {
            log.mark_chain(chain, dirtied_len);
        }
        self.layout.view.set_used_entry(self.next_used, head, len);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(journal) = &mut self.journal {
            journal.stage(head)?;
        }
        Ok(())
    }

    /// Stage used entries for chains of which nothing was written, in this order. A driver of VIRTIO_F_IN_ORDER is given
    /// one entry for all of them (virtio 1.3 §2.7.9).
    ///
    /// # Errors
    /// As for [`SplitRing::push_used`]. Those before the one that is wrong are staged.
    pub fn push_used_burst(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        let in_order = self.layout.in_order;
        let oldest = self.oldest();
        for (n, chain) in (0..).zip(chains) {
            let head = chain.head();
            // No more than the queue has are held; the first that is not among them ends it.
            if let Err(error) = self.stage_unwritten(head, oldest.wrapping_add(n)) {
                self.end_batch(chains.get(..usize::from(n)).unwrap_or_default());
                return Err(error);
            }
            if !in_order {
                self.layout.view.set_used_entry(self.next_used, head, 0);
                self.next_used = self.next_used.wrapping_add(1);
            }
        }
        self.end_batch(chains);
        Ok(())
    }

    /// Write the one entry for chains that an in-order driver gets back as a batch: that of the last, where the driver looks
    /// for the first.
    fn end_batch(&mut self, chains: &[Chain]) {
        if let (true, Some(last)) = (self.layout.in_order, chains.last()) {
            self.layout.view.set_used_entry(self.next_used, last.head(), 0);
            // There are no more than the queue has.
            let count = u16::try_from(chains.len()).unwrap_or(0);
            self.next_used = self.next_used.wrapping_add(count);
        }
    }

    /// The device is done with a head; the entry itself is yet to be written.
    #[inline]
    fn stage_unwritten(&mut self, head: u16, oldest: u16) -> Result<(), RingError> {
        if self.layout.in_order {
            self.check_order(head, oldest)?;
        }
        if !self.in_flight.remove(head) && on(Check::HeadInFlight) {
            return Err(RingError::NotInFlight { head });
        }
        if let Some(journal) = &mut self.journal {
            journal.stage(head)?;
        }
        Ok(())
    }

    /// The entry of the available ring at which the oldest chain was taken that the device has.
    #[inline]
    fn oldest(&self) -> u16 {
        self.next_avail.wrapping_sub(self.in_flight.count())
    }

    /// The driver of VIRTIO_F_IN_ORDER gets its chains back in the order in which it made them available
    /// (virtio 1.3 §2.7.9): `oldest` is where it took the one that is due.
    #[inline]
    fn check_order(&self, head: u16, oldest: u16) -> Result<(), RingError> {
        let due = self.taken[self.layout.slot(oldest)];
        if head != due && oldest != self.next_avail && on(Check::InOrder) {
            return Err(RingError::OutOfOrder { head, due });
        }
        Ok(())
    }

    /// Show the guest all staged entries by one store of used.idx. True if the driver wants a call for them.
    ///
    /// # Errors
    /// The ring's memory could not be accessed.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        if self.next_used == self.published_used {
            return Ok(false);
        }
        let (old, new) = (self.published_used, self.next_used);
        // Entries and the data they speak of are seen before the index.
        self.layout.view.set_used_idx(new);
        self.published_used = new;
        if let Some(journal) = &mut self.journal {
            journal.published(new)?;
        }
        if let Some(log) = &self.log {
            self.mark_entries(log, old, new);
        }
        // The index must be seen before we look at what the driver wants (virtio 1.3 §2.7.10).
        fence(Ordering::SeqCst);
        Ok(match self.layout.view.used_event() {
            Some(event) => passes(event, old, new),
            None => self.layout.view.avail_flags() & NO_INTERRUPT == 0,
        })
    }

    /// Mark the used ring's own pages, after they were written.
    #[cold]
    fn mark_entries(&self, log: &RingLog, old: u16, new: u16) {
        log.mark_used(0, USED_RING_OFFSET);
        let mut index = old;
        while index != new {
            log.mark_used(self.layout.used_entry(index), USED_ENTRY_LEN);
            index = index.wrapping_add(1);
        }
    }

    /// Ask the driver for kicks, before going to sleep. True if chains are waiting already: do not sleep.
    ///
    /// # Errors
    /// As for [`SplitRing::pop`].
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        if self.broken.is_some() {
            return Ok(false);
        }
        match self.ask_for_kicks() {
            Ok(_) if self.vanished() => Err(self.latch(RingError::MemoryVanished)),
            Ok(waiting) => Ok(waiting),
            Err(error) => Err(self.latch(error)),
        }
    }

    fn ask_for_kicks(&mut self) -> Result<bool, RingError> {
        match self.layout.view.set_avail_event(self.next_avail()) {
            Some(at) => self.mark_written(at),
            None => {
                self.layout.view.set_used_flags(0);
                self.mark_written(FLAGS_OFFSET);
            }
        }
        if self.replay_left > 0 {
            return Ok(true);
        }
        // The wish must be seen before we look for what came in the meantime (virtio 1.3 §2.7.7.2 and §2.7.10).
        fence(Ordering::SeqCst);
        self.read_avail_idx()
    }

    /// Tell the driver that kicks are not needed, while polling. With EVENT_IDX there is nothing to tell: the driver
    /// kicks once when it passes the index at which kicks were asked for last.
    pub fn disable_kicks(&mut self) {
        if !self.layout.event_idx {
            self.layout.view.set_used_flags(NO_NOTIFY);
            self.mark_written(FLAGS_OFFSET);
        }
    }

    /// Two bytes of the used ring that are no entry were written.
    fn mark_written(&self, offset: usize) {
        if let Some(log) = &self.log {
            log.mark_used(offset, 2);
        }
    }

    /// The entry of the available ring that is read next: where another ring over the same memory goes on, once nothing
    /// is in flight or to be replayed.
    pub fn next_avail(&self) -> u16 {
        self.next_avail.wrapping_add(self.replay_left)
    }

    /// Chains that were in flight when the ring started and were not popped since. A ring that is stopped for good, so
    /// that only its index is passed on, must have none left.
    pub fn to_replay(&self) -> u16 {
        self.replay_left
    }

    /// Chains popped and not yet pushed as used.
    pub fn in_flight(&self) -> u16 {
        self.in_flight.count()
    }

    /// Why the ring yields nothing more, if so.
    pub fn broken(&self) -> Option<&RingError> {
        self.broken.as_ref()
    }

    /// Break the ring for a reason that the device found. Chains in flight can still be given back.
    pub fn fail(&mut self, error: RingError) {
        self.latch(error);
    }

    /// Did the host take memory away that the ring needs?
    #[inline]
    fn vanished(&self) -> bool {
        sigbus::any_fault()
            && (self.mem.poisoned()
                || self.journal.as_ref().is_some_and(Journal::poisoned)
                || self.log.as_ref().is_some_and(|log| log.log.poisoned()))
    }

    #[cold]
    fn latch(&mut self, error: RingError) -> RingError {
        // What was read from memory that is gone is no fault of the guest.
        let error = if self.vanished() {
            RingError::MemoryVanished
        } else {
            error
        };
        self.plain = false;
        self.broken.get_or_insert(error).clone()
    }
}

/// Does the used index pass `event` when it moves from `old` to `new`? (virtio 1.3 §2.7.10, vring_need_event)
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
