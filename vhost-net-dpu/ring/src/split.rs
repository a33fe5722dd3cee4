//! The device's side of a split virtqueue (virtio 1.3 §2.7).

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use outboard_controls::{Check, on};
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use vm_memory::VolatileMemoryError;

use crate::{
    chain::Chain,
    inflight::InFlight,
    layout::{ConfigFault, FLAGS_OFFSET, IDX_OFFSET, Layout, RingConfig},
    memory::GuestMemory,
    walk::{self, ChainFault},
};

/// `flags` are 16 bits wide in memory.
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
const _: () = assert!(NO_INTERRUPT as u32 == VRING_AVAIL_F_NO_INTERRUPT && NO_NOTIFY as u32 == VRING_USED_F_NO_NOTIFY);

/// Why a ring is not, or no longer, served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// It cannot be set up.
    #[error("guest set up a ring that cannot be used: {0}")]
    Config(#[from] ConfigFault),
    /// The available index is further ahead than there are descriptors.
    #[error("guest moved avail.idx to {idx}, more than {size} entries past {next_avail}: reset the device")]
    AvailIndexJump {
        /// What it wrote.
        idx: u16,
        /// Where we are.
        next_avail: u16,
        /// The queue's size.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("guest made descriptor {head} available, but the queue has {size}: reset the device")]
    HeadOutOfRange {
        /// What it wrote.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// A head that the device has not given back yet.
    #[error("guest made descriptor {head} available while the device still had it: reset the device")]
    HeadInFlight {
        /// Which.
        head: u16,
    },
    /// A malformed chain.
    #[error("guest gave a malformed chain at descriptor {head}: {fault}: reset the device")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// What is wrong.
        fault: ChainFault,
    },
    /// A chain that is well formed but that this device cannot take.
    #[error("guest gave a request that the device cannot take at descriptor {head}: {reason}: reset the device")]
    Request {
        /// Its first descriptor.
        head: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// The device gave back a head that it did not have.
    #[error("the device gave back descriptor {head}, which it did not have: report this as a bug")]
    NotInFlight {
        /// Which.
        head: u16,
    },
    /// Memory was taken away.
    #[error("host took memory of the guest away while it was in use: restart the VM")]
    MemoryVanished,
    /// The host's side did something that ends the queue.
    #[error("host broke the queue: {reason}")]
    Host {
        /// What it did.
        reason: &'static str,
    },
    /// Ring memory could not be accessed as it should always be.
    #[error("the ring's memory could not be accessed at its own offsets: report this as a bug")]
    Access,
}

impl From<VolatileMemoryError> for RingError {
    fn from(_: VolatileMemoryError) -> Self {
        // Offsets are computed from the queue's size, for which the areas were measured and aligned.
        Self::Access
    }
}

/// The device's side of one split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    mem: Arc<GuestMemory>,
    layout: Layout,
    /// The entry of the available ring to take next.
    next_avail: u16,
    /// avail.idx as last read: entries up to it may be taken without reading it again.
    avail_idx: u16,
    /// The entry of the used ring to write next.
    next_used: u16,
    /// used.idx as last published.
    published_used: u16,
    /// The head taken at each entry of the available ring, for [`SplitRing::unpop`].
    taken: Box<[u16]>,
    in_flight: InFlight,
    broken: Option<RingError>,
}

impl SplitRing {
    /// A ring at rest, which goes on at `config.next_avail` and at the used index in memory.
    ///
    /// # Errors
    /// [`RingError::Config`] if its parts are misaligned, not in memory, or overlap.
    pub fn new(config: RingConfig, mem: Arc<GuestMemory>) -> Result<Self, RingError> {
        let layout = Layout::new(&config, &mem)?;
        let used = u16::from_le(layout.used.load(IDX_OFFSET, Ordering::Acquire)?);
        let size = config.size;
        Ok(Self {
            mem,
            layout,
            next_avail: config.next_avail,
            avail_idx: config.next_avail,
            next_used: used,
            published_used: used,
            taken: vec![0; usize::from(size)].into(),
            in_flight: InFlight::new(size),
            broken: None,
        })
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
            Ok(taken) if !self.mem.poisoned() => Ok(taken),
            Ok(taken) => {
                self.unpop(u16::from(taken));
                Err(self.latch(RingError::MemoryVanished))
            }
            Err(error) => Err(self.latch(error)),
        }
    }

    fn take(&mut self, chain: &mut Chain) -> Result<bool, RingError> {
        if self.next_avail == self.avail_idx && !self.read_avail_idx()? {
            return Ok(false);
        }
        let size = self.layout.size;
        let entry = self.layout.avail_entry(self.next_avail);
        let mut head = u16::from_le(self.layout.avail.load(entry, Ordering::Relaxed)?);
        if head >= size {
            if on(Check::HeadInRange) {
                return Err(RingError::HeadOutOfRange { head, size });
            }
            head %= size;
        }
        walk::walk(&self.layout, &self.mem, head, chain).map_err(|fault| RingError::Chain { head, fault })?;
        if !self.in_flight.insert(head) && on(Check::HeadInFlight) {
            return Err(RingError::HeadInFlight { head });
        }
        self.taken[self.layout.slot(self.next_avail)] = head;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(true)
    }

    /// Read avail.idx. True if there is something to take.
    fn read_avail_idx(&mut self) -> Result<bool, RingError> {
        // Acquire: entries and descriptors are read after the index that covers them (virtio 1.3 §2.7.13.3).
        let idx = u16::from_le(self.layout.avail.load(IDX_OFFSET, Ordering::Acquire)?);
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
            let held = self.in_flight.remove(self.taken[self.layout.slot(last)]);
            debug_assert!(held, "a chain that was pushed as used cannot be given back");
            self.next_avail = last;
        }
    }

    /// Stage a used entry: the chain at `head` is done and `len` bytes were written to it. The guest sees it after
    /// [`SplitRing::publish`].
    ///
    /// # Errors
    /// [`RingError::NotInFlight`] if the device does not have this chain.
    #[inline]
    pub fn push_used(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        if !self.in_flight.remove(head) && on(Check::HeadInFlight) {
            return Err(RingError::NotInFlight { head });
        }
        let entry = self.layout.used_entry(self.next_used);
        self.layout
            .used
            .store(u32::from(head).to_le(), entry, Ordering::Relaxed)?;
        self.layout.used.store(len.to_le(), entry + 4, Ordering::Relaxed)?;
        self.next_used = self.next_used.wrapping_add(1);
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
        // Release: entries and the data they speak of are seen before the index.
        self.layout.used.store(new.to_le(), IDX_OFFSET, Ordering::Release)?;
        self.published_used = new;
        // The index must be seen before we look at what the driver wants (virtio 1.3 §2.7.10).
        fence(Ordering::SeqCst);
        if self.layout.event_idx {
            let event = u16::from_le(self.layout.avail.load(self.layout.used_event(), Ordering::Relaxed)?);
            return Ok(passes(event, old, new));
        }
        let flags = u16::from_le(self.layout.avail.load(FLAGS_OFFSET, Ordering::Relaxed)?);
        Ok(flags & NO_INTERRUPT == 0)
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
            Ok(_) if self.mem.poisoned() => Err(self.latch(RingError::MemoryVanished)),
            Ok(waiting) => Ok(waiting),
            Err(error) => Err(self.latch(error)),
        }
    }

    fn ask_for_kicks(&mut self) -> Result<bool, RingError> {
        if self.layout.event_idx {
            self.layout
                .used
                .store(self.next_avail.to_le(), self.layout.avail_event(), Ordering::Relaxed)?;
        } else {
            self.layout.used.store(0u16, FLAGS_OFFSET, Ordering::Relaxed)?;
        }
        // The wish must be seen before we look for what came in the meantime (virtio 1.3 §2.7.7.2 and §2.7.10).
        fence(Ordering::SeqCst);
        self.read_avail_idx()
    }

    /// Tell the driver that kicks are not needed, while polling. With EVENT_IDX there is nothing to tell: the driver
    /// kicks once when it passes the index at which kicks were asked for last.
    pub fn disable_kicks(&mut self) {
        if !self.layout.event_idx {
            // The offset is that of every used ring; a failure would cost no more than needless kicks.
            let stored = self
                .layout
                .used
                .store(NO_NOTIFY.to_le(), FLAGS_OFFSET, Ordering::Relaxed);
            debug_assert!(stored.is_ok());
        }
    }

    /// The entry of the available ring that is taken next: where another ring over the same memory goes on.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
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

    #[cold]
    fn latch(&mut self, error: RingError) -> RingError {
        // What was read from memory that is gone is no fault of the guest.
        let error = if self.mem.poisoned() {
            RingError::MemoryVanished
        } else {
            error
        };
        self.broken.get_or_insert(error).clone()
    }
}

/// Does the used index pass `event` when it moves from `old` to `new`? (virtio 1.3 §2.7.10, vring_need_event)
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
