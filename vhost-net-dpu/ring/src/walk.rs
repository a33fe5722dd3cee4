//! From a head to a checked chain (virtio 1.3 §2.7.5, §2.8.5).

use outboard_controls::{Check, on};

use crate::{
    chain::{Chain, Segment},
    descriptor::{DESC_LEN, Descriptor},
    layout::Layout,
    memory::{GuestMemory, MemoryError},
    view::{GuestBytes, RingView},
};

/// Bytes a chain may have in all (virtio 1.3 §2.7.5: a driver must not make a chain longer than 2^32 bytes).
const CHAIN_LEN_MAX: u64 = 1 << 32;

/// Times the buffers of one chain may go on in the next region of memory. A host that gives a guest many tiny regions
/// could otherwise have each descriptor looked up hundreds of times.
pub(crate) const CROSSING_COUNT_MAX: u16 = 64;

/// What is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// More descriptors than the queue has (virtio 1.3 §2.7.5.3.1), as with a loop.
    #[error("it loops or has more than {max} descriptors, the queue's size")]
    TooLong {
        /// The queue's size.
        max: u16,
    },
    /// A chain of a packed ring that goes on at a descriptor that was not made available (virtio 1.3 §2.8.6).
    #[error("it goes on in slot {slot}, whose flags {flags:#06x} do not say that it is available")]
    NotAvailable {
        /// Where in the ring.
        slot: u16,
        /// What is there.
        flags: u16,
    },
    /// A descriptor names a next one that does not exist.
    #[error("descriptor {index} goes on at {next}, but there are {count}")]
    NextOutOfRange {
        /// Which descriptor of its table.
        index: u16,
        /// What it names.
        next: u16,
        /// Descriptors in that table.
        count: u16,
    },
    /// An indirect table, but the feature was not negotiated (virtio 1.3 §2.7.5.3.1).
    #[error("descriptor {index} is indirect, which was not negotiated")]
    IndirectNotNegotiated {
        /// Which descriptor.
        index: u16,
    },
    /// An indirect descriptor that goes on (virtio 1.3 §2.7.5.3.1).
    #[error("descriptor {index} is indirect and has a next one")]
    IndirectWithNext {
        /// Which descriptor.
        index: u16,
    },
    /// An indirect descriptor inside an indirect table (virtio 1.3 §2.7.5.3.1).
    #[error("descriptor {index} of an indirect table is indirect itself")]
    NestedIndirect {
        /// Which descriptor of the table.
        index: u16,
    },
    /// An indirect table whose length is no number of descriptors, or more than the queue's size of them.
    #[error("an indirect table of {len} bytes: it must be a multiple of 16, not 0, and at most {max} descriptors")]
    IndirectLen {
        /// Its length in bytes.
        len: u32,
        /// The queue's size.
        max: u16,
    },
    /// An indirect table that spans regions of memory, or is not in memory.
    #[error("an indirect table that is not in one piece of memory: {0}")]
    IndirectUnmapped(MemoryError),
    /// A buffer of no bytes.
    #[error("a buffer at {addr:#x} of length 0")]
    EmptyBuffer {
        /// Guest-physical address.
        addr: u64,
    },
    /// A buffer outside of memory, or one that wraps around.
    #[error("a buffer at {addr:#x} of {len} bytes that is not in the guest's memory")]
    Unmapped {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A buffer over the ring itself.
    #[error("a buffer at {addr:#x} of {len} bytes that lies over the ring itself")]
    InRing {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
    },
    /// A readable buffer after a writable one (virtio 1.3 §2.7.4.2).
    #[error("a readable buffer at {addr:#x} after a writable one")]
    ReadableAfterWritable {
        /// Guest-physical address.
        addr: u64,
    },
    /// Its buffers span too many regions of memory.
    #[error("its buffers go on in another memory region more than {CROSSING_COUNT_MAX} times")]
    TooManyCrossings,
    /// More than 4 GiB in all.
    #[error("it has more than {CHAIN_LEN_MAX} bytes")]
    TooManyBytes,
}

/// Is the chain of this first descriptor one buffer in one region, as most are? Then it is in order; where its region
/// is. Its first bytes are fetched.
#[inline]
pub(crate) fn alone<View>(layout: &Layout<View>, mem: &GuestMemory, first: Descriptor, near: u16) -> Option<u16> {
    let Descriptor { addr, len, .. } = first;
    if !first.is_alone() || len == 0 {
        return None;
    }
    let place = mem.place_ahead((addr, len), first.is_write(), near)?;
    // All of it is in a region, so that its end does not wrap.
    (!layout.holds(&(addr..addr.wrapping_add(len.into())))).then_some(place)
}

/// Fill `chain` from the descriptors at `head`, which must be below the queue's size. The first of them was read
/// already; `near` is where its buffer may be, and where the last one was afterwards.
#[inline(never)]
pub(crate) fn walk(
    layout: &Layout,
    mem: &GuestMemory,
    (head, first): (u16, Descriptor),
    chain: &mut Chain,
    near: &mut u16,
) -> Result<(), ChainFault> {
    chain.reset(head);
    let mut walk = Walk::new(layout, mem, chain, *near);
    let result = walk.split(head, first);
    walk.end(result, near)
}

/// Fill `chain` from descriptors of a packed ring, of which the first was read already; `next` reads the one that
/// follows (virtio 1.3 §2.8.5). The last one has the buffer's id.
pub(crate) fn walk_packed<View>(
    layout: &Layout<View>,
    mem: &GuestMemory,
    first: Descriptor,
    next: impl FnMut() -> Result<Descriptor, ChainFault>,
    chain: &mut Chain,
    near: &mut u16,
) -> Result<(), ChainFault> {
    chain.reset(first.next);
    let mut walk = Walk::new(layout, mem, chain, *near);
    let result = walk.packed(first, next);
    walk.end(result, near)
}

struct Walk<'a, View> {
    layout: &'a Layout<View>,
    mem: &'a GuestMemory,
    chain: &'a mut Chain,
    /// Where the last buffer was in memory.
    near: u16,
    /// Descriptors it may still have. A loop uses it up.
    left: u16,
    /// Times its buffers may still go on in another region.
    crossings_left: u16,
}

impl Walk<'_, RingView> {
    fn split(&mut self, head: u16, first: Descriptor) -> Result<(), ChainFault> {
        let size = self.layout.size;
        let (mut index, mut descriptor) = (head, first);
        loop {
            if descriptor.is_indirect() {
                return self.table(index, descriptor);
            }
            self.buffer(descriptor)?;
            match self.next(index, descriptor, size)? {
                // One read; the guest may change it behind our back, and what was checked must be what is used.
                Some(next) => (index, descriptor) = (next, self.layout.view.descriptor(next)),
                None => return Ok(()),
            }
        }
    }

    /// A table of descriptors in guest memory, which ends the chain. Its own WRITE flag means nothing
    /// (virtio 1.3 §2.7.5.3.2).
    fn table(&mut self, at: u16, table: Descriptor) -> Result<(), ChainFault> {
        let (entries, count) = self.indirect(at, table)?;
        let mut index = 0;
        loop {
            // One read, as above.
            let Some(descriptor) = entries.descriptor(index) else {
                return Err(ChainFault::IndirectLen {
                    len: table.len,
                    max: self.layout.size,
                });
            };
            if descriptor.is_indirect() {
                return Err(ChainFault::NestedIndirect { index });
            }
            self.buffer(descriptor)?;
            match self.next(index, descriptor, count)? {
                Some(next) => index = next,
                None => return Ok(()),
            }
        }
    }
}

impl<'a, View> Walk<'a, View> {
    fn new(layout: &'a Layout<View>, mem: &'a GuestMemory, chain: &'a mut Chain, near: u16) -> Self {
        Self {
            layout,
            mem,
            chain,
            near,
            left: layout.size,
            crossings_left: CROSSING_COUNT_MAX,
        }
    }

    fn end(self, result: Result<(), ChainFault>, near: &mut u16) -> Result<(), ChainFault> {
        *near = self.near;
        self.chain.set_near(*near);
        match result {
            // The control of "rejected whole": hand out what was good so far, as an iterator that just ends would.
            Err(_) if !on(Check::WholeChain) => Ok(()),
            result => result,
        }
    }

    fn packed(
        &mut self,
        first: Descriptor,
        mut next: impl FnMut() -> Result<Descriptor, ChainFault>,
    ) -> Result<(), ChainFault> {
        let mut descriptor = first;
        loop {
            self.chain.set_head(descriptor.next);
            if descriptor.is_indirect() {
                return self.packed_table(descriptor);
            }
            self.buffer(descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            if self.left == 0 {
                return Err(ChainFault::TooLong { max: self.layout.size });
            }
            descriptor = next()?;
        }
    }

    /// A table whose entries follow each other; of their flags only WRITE means something (virtio 1.3 §2.8.7).
    fn packed_table(&mut self, table: Descriptor) -> Result<(), ChainFault> {
        let (entries, count) = self.indirect(table.next, table)?;
        for index in 0..count {
            let Some(descriptor) = entries.packed_descriptor(index) else {
                return Err(ChainFault::IndirectLen {
                    len: table.len,
                    max: self.layout.size,
                });
            };
            if descriptor.is_indirect() {
                return Err(ChainFault::NestedIndirect { index });
            }
            self.buffer(descriptor)?;
        }
        Ok(())
    }

    /// A table of descriptors in guest memory: its bytes, and how many it has.
    fn indirect(&self, at: u16, table: Descriptor) -> Result<(GuestBytes<'a>, u16), ChainFault> {
        if !self.layout.indirect {
            return Err(ChainFault::IndirectNotNegotiated { index: at });
        }
        if table.has_next() {
            return Err(ChainFault::IndirectWithNext { index: at });
        }
        let Descriptor { addr, len, .. } = table;
        let max = self.layout.size;
        // Made only where it is returned: faults are large, and this is done for each chain.
        let bad_len = || ChainFault::IndirectLen { len, max };
        let bytes = len as usize;
        let count = u16::try_from(bytes / DESC_LEN).map_err(|_| bad_len())?;
        if !bytes.is_multiple_of(DESC_LEN) || count == 0 || count > self.layout.size {
            return Err(bad_len());
        }
        let entries = self
            .mem
            .bytes(addr, bytes, self.near)
            .map_err(ChainFault::IndirectUnmapped)?;
        if self.layout.holds(&(addr..addr + u64::from(len))) && on(Check::RingOverlap) {
            return Err(ChainFault::InRing { addr, len });
        }
        Ok((entries, count))
    }

    /// The index of the descriptor after this one in a table of `count`.
    fn next(&self, index: u16, descriptor: Descriptor, count: u16) -> Result<Option<u16>, ChainFault> {
        match descriptor.next {
            _ if !descriptor.has_next() => Ok(None),
            next if next < count => Ok(Some(next)),
            next => Err(ChainFault::NextOutOfRange { index, next, count }),
        }
    }

    /// Check a buffer and add it to the chain, a segment for each region of memory it spans.
    fn buffer(&mut self, descriptor: Descriptor) -> Result<(), ChainFault> {
        let Descriptor { addr, len, .. } = descriptor;
        let max = self.layout.size;
        self.left = self.left.checked_sub(1).ok_or(ChainFault::TooLong { max })?;
        if len == 0 {
            return Err(ChainFault::EmptyBuffer { addr });
        }
        if self.chain.total_len() + u64::from(len) > CHAIN_LEN_MAX {
            return Err(ChainFault::TooManyBytes);
        }
        let unmapped = || ChainFault::Unmapped { addr, len };
        if !on(Check::DescriptorRange) {
            self.chain.push(Segment { addr, len }, descriptor.is_write());
            return Ok(());
        }
        let end = addr.checked_add(u64::from(len)).ok_or_else(unmapped)?;
        if self.layout.holds(&(addr..end)) && on(Check::RingOverlap) {
            return Err(ChainFault::InRing { addr, len });
        }
        if let Some(place) = self.mem.place(addr, len, self.near) {
            self.near = place;
            return match self.chain.push(Segment { addr, len }, descriptor.is_write()) {
                true => Ok(()),
                false => Err(ChainFault::ReadableAfterWritable { addr }),
            };
        }
        let mut at = addr;
        while at < end {
            let piece = self.mem.first_piece(at, end - at).ok_or_else(unmapped)?;
            // Not above `len`.
            let segment = Segment {
                addr: at,
                len: u32::try_from(piece).map_err(|_| unmapped())?,
            };
            if !self.chain.push(segment, descriptor.is_write()) {
                return Err(ChainFault::ReadableAfterWritable { addr });
            }
            at += piece;
            if at < end {
                self.crossings_left = self.crossings_left.checked_sub(1).ok_or(ChainFault::TooManyCrossings)?;
            }
        }
        Ok(())
    }
}
