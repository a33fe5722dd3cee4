//! The device's side of a packed virtqueue (virtio 1.3 §2.8).
//!
//! Driver and device write the same ring. A descriptor is available, or used, by two flags that are compared with wrap
//! counters; there are no indices, so that only the flags of the next descriptor tell whether there is something.
//! Positions are counted as in [`crate::lap`]. What is used is kept in private memory until it is published: then all
//! used descriptors are written, the first one last, as the driver looks for that one.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use outboard_controls::{Check, on};

use crate::{
    ahead::{AHEAD_MAX, Ahead, Seen},
    chain::{Chain, Segment},
    descriptor::{DESC_LEN, Descriptor},
    error::RingError,
    heads::Heads,
    inflight_log::{
        InflightLog,
        packed::{Journal, Recovered, Replay, Used},
    },
    lap::Laps,
    layout::{ConfigFault, EVENT_AREA_LEN, Layout, RingConfig},
    log::RingLog,
    memory::GuestMemory,
    sigbus,
    view::{EventArea, GuestBytes, PackedView},
    walk::{self, ChainFault},
};

/// What is wanted of the other side (virtio 1.3 §2.8.14): to be told always,
const EVENT_ENABLE: u16 = 0;
/// never,
const EVENT_DISABLE: u16 = 1;
/// or when the descriptor at a position was made available or used.
const EVENT_POSITION: u16 = 2;
/// The bits that say so.
const EVENT_MASK: u16 = 3;

/// A chain that was taken.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    id: u16,
    /// Descriptors it has in the ring.
    count: u16,
    /// Its first entry in the in-flight log.
    entry: u16,
}

/// The device's side of one packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    mem: Arc<GuestMemory>,
    layout: Layout<PackedView>,
    laps: Laps,
    /// The descriptor to take next.
    next_avail: u16,
    /// Where the next used descriptor is written.
    next_used: u16,
    ahead: Ahead,
    /// Where in memory the last buffer was.
    near: u16,
    /// The chains taken last, by the number at which they were: one that is in flight is among them.
    taken: Box<[Taken]>,
    /// Number of the chain that is taken next. Runs on, and is taken modulo the size.
    taken_next: u16,
    /// What the device holds, by id.
    held: Box<[Taken]>,
    in_flight: Heads,
    /// What was in flight when the ring started, and how many of it were taken since.
    replays: Box<[Replay]>,
    pub(crate) replayed: usize,
    /// Chains taken from the ring, without those given back by [`PackedRing::unpop`].
    popped: u64,
    /// What was used and is not published, and how many descriptors that is.
    staged: Vec<Used>,
    staged_count: u16,
    /// The descriptors of the chain at hand, where they are kept.
    descriptors: Vec<Descriptor>,
    journal: Option<Journal>,
    log: Option<RingLog>,
    broken: Option<RingError>,
    /// Nothing but a position is logged, and the ring is whole.
    plain: bool,
}

impl PackedRing {
    /// A ring at rest, which goes on where the configuration says.
    ///
    /// # Errors
    /// [`RingError::Config`] if its parts are misaligned, not in memory, or overlap, or if it cannot go on there.
    pub fn new(config: RingConfig, mem: Arc<GuestMemory>) -> Result<Self, RingError> {
        let layout = Layout::packed(&config, &mem)?;
        let RingConfig { size, base, .. } = config;
        let laps = Laps::new(size);
        let [b0, b1, b2, b3] = base.to_le_bytes();
        let (avail, used) = (u16::from_le_bytes([b0, b1]), u16::from_le_bytes([b2, b3]));
        let used = if used == 0 { avail } else { used };
        let positions = laps.position(avail).zip(laps.position(used));
        let (next_avail, next_used) = positions
            .filter(|&(avail, used)| laps.distance(used, avail) <= size)
            .ok_or(ConfigFault::Base { base, size })?;
        let taken = vec![Taken::default(); usize::from(size)];
        Ok(Self {
            mem,
            layout,
            laps,
            next_avail,
            next_used,
            ahead: Ahead::new(),
            near: 0,
            taken: taken.clone().into(),
            taken_next: 0,
            held: taken.into(),
            in_flight: Heads::new(size),
            replays: Box::default(),
            replayed: 0,
            popped: 0,
            staged: Vec::with_capacity(size.into()),
            staged_count: 0,
            descriptors: Vec::with_capacity(size.into()),
            journal: None,
            log: None,
            broken: None,
            plain: true,
        })
    }

    /// The same with a log of what is in flight. If one was kept before, the ring goes on where that says, whatever the
    /// base of the configuration is: [`PackedRing::pop`] yields first what was in flight, oldest first, and then what comes after it.
    ///
    /// # Errors
    /// As for [`PackedRing::new`], and if the log cannot be that of this ring.
    pub fn with_inflight(config: RingConfig, mem: Arc<GuestMemory>, log: InflightLog) -> Result<Self, RingError> {
        Self::logged(config, mem, log, true)
    }

    /// The same for a device that uses chains in the order in which it takes them and may take them again: of the log only
    /// the position is kept. The ring goes on where all before was used.
    ///
    /// # Errors
    /// As for [`PackedRing::with_inflight`].
    pub fn with_position(config: RingConfig, mem: Arc<GuestMemory>, log: InflightLog) -> Result<Self, RingError> {
        Self::logged(config, mem, log, false)
    }

    fn logged(
        config: RingConfig,
        mem: Arc<GuestMemory>,
        log: InflightLog,
        by_entries: bool,
    ) -> Result<Self, RingError> {
        let mut ring = Self::new(config, mem)?;
        let base = ring.next_used;
        let Recovered {
            journal,
            next_used,
            replays,
        } = log.recover_packed(ring.laps, (ring.layout.size, base), &ring.layout.view, by_entries)?;
        ring.plain = !journal.has_entries();
        ring.journal = Some(journal);
        // Each descriptor up to there was either used or is in flight.
        let held: usize = replays.iter().map(|replay| replay.descriptors.len()).sum();
        ring.next_used = next_used;
        // No more than the ring has.
        ring.next_avail = next_used.wrapping_add(u16::try_from(held).unwrap_or(0));
        ring.replays = replays.into();
        Ok(ring)
    }

    /// Go on where all before was used, whatever the base of the configuration was; before anything is popped. For a
    /// device that uses chains in the order in which it takes them and that has none while it rests.
    pub fn resume_at_used(&mut self) {
        debug_assert!(
            self.popped == 0 && self.replays.is_empty(),
            "it is not known what was taken"
        );
        self.next_avail = self.next_used;
    }

    /// Log writes to guest memory from now on, or no more. Everything written before a log is set must be known to the
    /// front-end in another way, except for the ring itself: all of it is marked.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        if let Some(log) = log.as_ref().filter(|log| log.used_addr.is_some()) {
            let (desc, device) = self.layout.written(0);
            log.log.mark(desc, (DESC_LEN * usize::from(self.layout.size)) as u64);
            log.log.mark(device, EVENT_AREA_LEN as u64);
        }
        self.log = log;
        let entries = self.journal.as_ref().is_some_and(Journal::has_entries);
        self.plain = self.log.is_none() && !entries && self.broken.is_none();
    }

    /// The memory its chains are in.
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.mem
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.layout.size
    }

    /// As [`crate::SplitRing::pop`].
    ///
    /// # Errors
    /// As there.
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

    /// As [`crate::SplitRing::pop_burst`].
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

    /// As [`crate::SplitRing::next_room`].
    #[inline]
    pub(crate) fn next_room(&mut self, len: usize) -> Option<GuestBytes<'_>> {
        if !self.plain || self.in_flight.count() != 0 {
            return None;
        }
        if self.ahead.next == self.ahead.end && !matches!(self.look_ahead(), Ok(true)) {
            return None;
        }
        let Seen { head: id, place, first } = self.ahead.peek()?;
        let fits = *id < self.layout.size && first.is_write() && first.len as usize >= len;
        let (place, true) = ((*place)?, fits) else {
            return None;
        };
        self.mem.bytes(first.addr, len, place).ok()
    }

    /// As [`crate::SplitRing::take_filled`].
    #[inline]
    pub(crate) fn take_filled(&mut self, len: u32) -> bool {
        if self.mem.poisoned() {
            return false;
        }
        // Taken and given back in one, so that nobody asks for what was taken here.
        let Some(&Seen { head: id, .. }) = self.ahead.pop() else {
            return false;
        };
        self.next_avail = self.next_avail.wrapping_add(1);
        self.stage(Used {
            id,
            count: 1,
            len,
            entry: 0,
        });
        true
    }

    #[inline]
    fn take(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.replayed < self.replays.len() {
            return self.replay(chain);
        }
        if self.ahead.next == self.ahead.end && !self.look_ahead()? {
            return Ok(false);
        }
        let Some(&Seen { head, place, first }) = self.ahead.pop() else {
            return Ok(false);
        };
        let mut count = 1;
        match place {
            Some(place) => {
                let Descriptor { addr, len, .. } = first;
                chain.set_only(head, Segment { addr, len }, first.is_write(), place);
                if self.journal.as_ref().is_some_and(Journal::has_entries) {
                    self.descriptors.clear();
                    self.descriptors.push(first);
                }
            }
            None => {
                self.walk(first, chain)?;
                // No more than the ring has.
                count = u16::try_from(self.descriptors.len()).unwrap_or(u16::MAX);
            }
        }
        let id = self.check_id(chain)?;
        let entry = match &mut self.journal {
            Some(journal) => journal.take(&self.descriptors)?,
            None => 0,
        };
        self.note(Taken { id, count, entry });
        self.next_avail = self.next_avail.wrapping_add(count);
        self.popped += 1;
        Ok(true)
    }

    /// The id that the driver gave a chain must be one, and not be held already: the device holds it from now on.
    #[inline]
    fn check_id(&mut self, chain: &mut Chain) -> Result<u16, RingError> {
        let (mut id, size) = (chain.head(), self.layout.size);
        if id >= size {
            if on(Check::HeadInRange) {
                return Err(RingError::HeadOutOfRange { head: id, size });
            }
            id %= size;
            chain.set_head(id);
        }
        if !self.in_flight.insert(id) && on(Check::HeadInFlight) {
            return Err(RingError::HeadInFlight { head: id });
        }
        Ok(id)
    }

    #[inline]
    fn note(&mut self, taken: Taken) {
        let number = self.layout.slot(self.taken_next);
        if let (Some(place), Some(held)) = (self.taken.get_mut(number), self.held.get_mut(usize::from(taken.id))) {
            (*place, *held) = (taken, taken);
        }
        self.taken_next = self.taken_next.wrapping_add(1);
    }

    /// Descriptors that may be available: those that the device has not, nor has shown as used.
    fn room(&self) -> u16 {
        match on(Check::AvailIndex) {
            true => (self.layout.size).saturating_sub(self.laps.distance(self.next_used, self.next_avail)),
            false => self.layout.size,
        }
    }

    /// Read the descriptors that are available, before the first of them is needed. True if there are any.
    #[inline(never)]
    fn look_ahead(&mut self) -> Result<bool, RingError> {
        let room = self.room();
        if room == 0 {
            return self.check_overrun();
        }
        let mut count = 0;
        for (n, seen) in (0..room.min(AHEAD_MAX)).zip(self.ahead.entries.iter_mut()) {
            let position = self.next_avail.wrapping_add(n);
            // Acquire: the rest of the descriptor, and those that follow it, are read after the flags that say that it is
            // available (virtio 1.3 §2.8.21.3.1).
            let flags = self.layout.view.flags(position);
            if !self.laps.is_available(position, flags) {
                break;
            }
            // One read; the guest may change it behind our back, and what was checked must be what is used.
            seen.first = self.layout.view.descriptor(position);
            seen.head = seen.first.next;
            seen.place = walk::alone(&self.layout, &self.mem, seen.first, self.near);
            self.near = seen.place.unwrap_or(self.near);
            count = n + 1;
        }
        (self.ahead.next, self.ahead.end) = (0, count);
        Ok(count > 0)
    }

    /// The device has all descriptors there are. Is another one available nevertheless?
    #[cold]
    fn check_overrun(&mut self) -> Result<bool, RingError> {
        let flags = self.layout.view.flags(self.next_avail);
        if self.laps.is_available(self.next_avail, flags) {
            return Err(RingError::Overrun { size: self.layout.size });
        }
        Ok(false)
    }

    /// Fill a chain that is more than one buffer, or not in order.
    fn walk(&mut self, first: Descriptor, chain: &mut Chain) -> Result<(), RingError> {
        let Self {
            layout,
            mem,
            laps,
            ahead,
            near,
            next_avail,
            next_used,
            descriptors,
            ..
        } = self;
        descriptors.clear();
        descriptors.push(first);
        // Those that the device has are no part of it.
        let room = layout.size.saturating_sub(laps.distance(*next_used, *next_avail));
        let next = || {
            let count = u16::try_from(descriptors.len()).unwrap_or(u16::MAX);
            if count >= room && on(Check::AvailIndex) {
                return Err(ChainFault::TooLong { max: room });
            }
            let position = next_avail.wrapping_add(count);
            let next = match ahead.pop() {
                Some(seen) => seen.first,
                None => {
                    let flags = layout.view.flags(position);
                    if !laps.is_available(position, flags) && on(Check::WrapBits) {
                        return Err(ChainFault::NotAvailable {
                            slot: laps.slot(position),
                            flags,
                        });
                    }
                    layout.view.descriptor(position)
                }
            };
            descriptors.push(next);
            Ok(next)
        };
        let result = walk::walk_packed(layout, mem, first, next, chain, near);
        result.map_err(|fault| RingError::Chain {
            head: chain.head(),
            fault,
        })
    }

    /// Take a chain that was in flight when the ring started. The log has it already.
    #[cold]
    fn replay(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        let Self {
            layout,
            mem,
            near,
            replays,
            replayed,
            ..
        } = self;
        let Some(Replay { entry, descriptors }) = replays.get(*replayed) else {
            return Ok(false);
        };
        let (entry, size) = (*entry, layout.size);
        let mut rest = descriptors.iter().copied();
        let first = rest.next().unwrap_or_default();
        let next = || rest.next().ok_or(ChainFault::TooLong { max: size });
        walk::walk_packed(layout, mem, first, next, chain, near).map_err(|fault| RingError::Chain {
            head: chain.head(),
            fault,
        })?;
        // No more than the ring has.
        let count = u16::try_from(descriptors.len()).unwrap_or(0);
        let id = self.check_id(chain)?;
        self.note(Taken { id, count, entry });
        self.replayed += 1;
        Ok(true)
    }

    /// As [`crate::SplitRing::unpop`].
    pub fn unpop(&mut self, n: u16) {
        for _ in 0..n {
            let last = self.taken_next.wrapping_sub(1);
            let Taken { id, count, entry } = self.taken[self.layout.slot(last)];
            let held = self.in_flight.remove(id);
            debug_assert!(held, "a chain that was pushed as used cannot be given back");
            self.taken_next = last;
            match self.popped.checked_sub(1) {
                Some(left) => {
                    self.popped = left;
                    self.next_avail = self.next_avail.wrapping_sub(count);
                    self.ahead.unpop(count);
                    let noted = self.journal.as_mut().map_or(Ok(()), |journal| journal.put_back(entry));
                    debug_assert!(noted.is_ok(), "entries are below the size, for which the log has room");
                }
                // It was in flight before the ring started, and still is.
                None => self.replayed -= 1,
            }
        }
    }

    #[inline]
    fn stage(&mut self, used: Used) {
        self.staged_count = self.staged_count.wrapping_add(used.count);
        self.staged.push(used);
    }

    /// As [`crate::SplitRing::push_used`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn push_used(&mut self, chain: &Chain, len: u32) -> Result<(), RingError> {
        self.push_used_dirtying(chain, len, u64::from(len))
    }

    /// As [`crate::SplitRing::push_used_dirtying`].
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn push_used_dirtying(&mut self, chain: &Chain, len: u32, dirtied_len: u64) -> Result<(), RingError> {
        let head = chain.head();
        let room = chain.writable_len();
        // Bytes that nobody wrote would be what the driver's buffer held before (virtio 1.3 §2.8.13).
        if u64::from(len) > room && on(Check::UsedLen) {
            return Err(RingError::UsedLen { head, len, room });
        }
        let taken = self.give_back(head)?;
        if let Some(log) = &self.log {
            log.mark_chain(chain, dirtied_len);
        }
        self.stage(Used {
            id: taken.id,
            count: taken.count,
            len,
            entry: taken.entry,
        });
        Ok(())
    }

    /// As [`crate::SplitRing::push_used_burst`]: a driver of VIRTIO_F_IN_ORDER is given one used descriptor for all of
    /// them, with the id of the last (virtio 1.3 §2.8.9).
    ///
    /// # Errors
    /// As there.
    pub fn push_used_burst(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        // By entries of a log, each is told by itself.
        let batched = self.layout.in_order && self.journal.as_ref().is_none_or(|journal| !journal.has_entries());
        let mut batch: Option<Used> = None;
        let mut result = Ok(());
        for chain in chains {
            let Taken { id, count, entry } = match self.give_back(chain.head()) {
                Ok(taken) => taken,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let before = batch.take().filter(|_| batched).map_or(0, |batch| batch.count);
            let used = Used {
                id,
                count: before + count,
                len: 0,
                entry,
            };
            match batched {
                true => batch = Some(used),
                false => self.stage(used),
            }
        }
        if let Some(batch) = batch {
            self.stage(batch);
        }
        result
    }

    /// The device is done with an id; the used descriptor itself is yet to be staged.
    #[inline]
    fn give_back(&mut self, id: u16) -> Result<Taken, RingError> {
        if self.layout.in_order {
            self.check_order(id)?;
        }
        if !self.in_flight.remove(id) && on(Check::HeadInFlight) {
            return Err(RingError::NotInFlight { head: id });
        }
        let held = self.held.get(usize::from(id)).copied();
        held.ok_or(RingError::NotInFlight { head: id })
    }

    /// The driver of VIRTIO_F_IN_ORDER gets its chains back in the order in which it made them available
    /// (virtio 1.3 §2.8.9).
    fn check_order(&self, head: u16) -> Result<(), RingError> {
        let oldest = self.taken_next.wrapping_sub(self.in_flight.count());
        let due = self.taken[self.layout.slot(oldest)].id;
        if head != due && self.in_flight.count() > 0 && on(Check::InOrder) {
            return Err(RingError::OutOfOrder { head, due });
        }
        Ok(())
    }

    /// Show the guest all that is staged, by the last store. True if the driver wants a call for it.
    ///
    /// # Errors
    /// The ring's memory could not be accessed.
    #[inline]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        let Some((first, others)) = self.staged.split_first() else {
            return Ok(false);
        };
        let (old, new) = (self.next_used, self.next_used.wrapping_add(self.staged_count));
        if let Some(journal) = &mut self.journal {
            journal.begin(&self.staged, old, new)?;
        }
        let (view, laps) = (&self.layout.view, self.laps);
        let mut position = old.wrapping_add(first.count);
        for used in others {
            view.set_used(position, used.tail(laps, position));
            position = position.wrapping_add(used.count);
        }
        // The others, and the data they speak of, are seen before the first (virtio 1.3 §2.8.21.2).
        view.set_used(old, first.tail(laps, old));
        if let Some(journal) = &mut self.journal {
            journal.end(&self.staged, new)?;
        }
        if let Some(log) = &self.log {
            self.mark_used(log, old);
        }
        self.next_used = new;
        self.staged.clear();
        self.staged_count = 0;
        // They must be seen before we look at what the driver wants (virtio 1.3 §2.8.21.3).
        fence(Ordering::SeqCst);
        let wish = self.layout.view.driver_event();
        Ok(match wish.flags & EVENT_MASK {
            EVENT_DISABLE => false,
            EVENT_POSITION if self.layout.event_idx => laps.passes(wish.position, old, new),
            _ => true,
        })
    }

    /// Mark the ring's own pages, after used descriptors were written.
    #[cold]
    fn mark_used(&self, log: &RingLog, from: u16) {
        if log.used_addr.is_none() {
            return;
        }
        let mut position = from;
        for used in &self.staged {
            let (at, _) = self.layout.written(self.laps.slot(position));
            log.log.mark(at, DESC_LEN as u64);
            position = position.wrapping_add(used.count);
        }
    }

    /// As [`crate::SplitRing::enable_kicks`].
    ///
    /// # Errors
    /// As there.
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
        let flags = if self.layout.event_idx {
            EVENT_POSITION
        } else {
            EVENT_ENABLE
        };
        self.set_wish(flags);
        if self.to_replay() > 0 {
            return Ok(true);
        }
        // The wish must be seen before we look for what came in the meantime (virtio 1.3 §2.8.21.1).
        fence(Ordering::SeqCst);
        if self.room() == 0 {
            return self.check_overrun();
        }
        let flags = self.layout.view.flags(self.next_avail);
        Ok(self.laps.is_available(self.next_avail, flags))
    }

    /// Tell the driver that kicks are not needed, while polling.
    pub fn disable_kicks(&mut self) {
        self.set_wish(EVENT_DISABLE);
    }

    fn set_wish(&self, flags: u16) {
        let position = self.laps.told(self.next_avail);
        self.layout.view.set_device_event(EventArea { position, flags });
        if let Some(log) = self.log.as_ref().filter(|log| log.used_addr.is_some()) {
            let (_, device) = self.layout.written(0);
            log.log.mark(device, EVENT_AREA_LEN as u64);
        }
    }

    /// Where another ring over the same memory goes on, as [`RingConfig::base`] has it.
    pub fn base(&self) -> u32 {
        let told = |position| u32::from(self.laps.told(position));
        told(self.next_avail) | told(self.next_used) << 16
    }

    /// As [`crate::SplitRing::to_replay`].
    pub fn to_replay(&self) -> u16 {
        // No more than the ring has.
        u16::try_from(self.replays.len() - self.replayed).unwrap_or(u16::MAX)
    }

    /// Chains popped and not yet pushed as used.
    pub fn in_flight(&self) -> u16 {
        self.in_flight.count()
    }

    /// Why the ring yields nothing more, if so.
    pub fn broken(&self) -> Option<&RingError> {
        self.broken.as_ref()
    }

    /// As [`crate::SplitRing::fail`].
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

#[cfg(test)]
mod tests;
