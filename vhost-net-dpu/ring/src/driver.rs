//! The guest's side of a ring over a memfd, for tests: well-behaved, or as hostile as a script wants. The features say
//! whether it is split or packed.
//!
//! ```
//! use outboard_ring::{Chain, SplitRing, driver::{Driver, GuestRam}};
//!
//! let ram = GuestRam::new(1 << 20);
//! let mut driver = Driver::new(&ram, 8, 0);
//! let mut ring = SplitRing::new(driver.config(), ram.memory().clone())?;
//!
//! let added = driver.add_bytes(&[b"ping"], &[4]).expect("there is room");
//! driver.publish();
//!
//! let mut chain = Chain::new();
//! assert!(ring.pop(&mut chain)?);
//! chain.write_at(ring.memory(), 0, b"pong").expect("it has 4 writable bytes");
//! ring.push_used(&chain, 4)?;
//! assert!(ring.publish()?);
//!
//! assert_eq!(driver.used(), Some((added.head, 4)));
//! assert_eq!(driver.read(added.writable[0].0, 4), b"pong");
//! # Ok::<(), outboard_ring::RingError>(())
//! ```
//!
//! Everything here panics when it is used wrongly, as tests should.

use std::{
    collections::VecDeque,
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering, fence},
    },
};

#[cfg(not(miri))]
use rustix::fs::{MemfdFlags, memfd_create};
use virtio_bindings::bindings::{virtio_config::VIRTIO_F_IN_ORDER, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use vm_memory::Bytes;

use crate::{
    chain::{Chain, Segment},
    descriptor::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_LEN, Descriptor},
    layout::{
        AVAIL_ENTRY_LEN, AVAIL_RING_OFFSET, IDX_OFFSET, RingConfig, RingFormat, USED_ENTRY_LEN, USED_RING_OFFSET,
    },
    memory::{GuestMemory, RegionSpec},
};

mod packed;

/// Where a [`GuestRam`] begins unless said otherwise.
pub const RAM_START: u64 = 0x10_0000;
/// A VMM's address of guest-physical address 0.
pub const USER_OFFSET: u64 = 0x7f00_0000_0000;

/// Memory of a guest: one memfd.
#[derive(Debug)]
pub struct GuestRam {
    file: File,
    start: u64,
    len: u64,
    memory: Arc<GuestMemory>,
    next_free: AtomicU64,
}

impl GuestRam {
    /// `len` bytes from [`RAM_START`].
    pub fn new(len: u64) -> Self {
        Self::at(RAM_START, len)
    }

    /// `len` bytes from guest-physical address `start`.
    pub fn at(start: u64, len: u64) -> Self {
        let (file, memory) = memory(start, len);
        let memory = Arc::new(memory);
        Self {
            file,
            start,
            len,
            memory,
            next_free: AtomicU64::new(start),
        }
    }

    /// The whole as a VMM would describe it.
    pub fn spec(&self) -> RegionSpec {
        region(&self.file, self.start, self.len)
    }

    /// The memfd.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It, mapped.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Set `len` bytes aside, at a multiple of `alignment`, for good.
    pub fn alloc(&self, len: u64, alignment: u64) -> u64 {
        let place = |at: u64| at.next_multiple_of(alignment);
        let taken = self
            .next_free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| Some(place(at) + len));
        let addr = place(taken.expect("the update never declines"));
        assert!(
            addr + len <= self.start + self.len,
            "guest memory is used up: make it larger"
        );
        addr
    }
}

/// A memfd, mapped.
#[cfg(not(miri))]
fn memory(start: u64, len: u64) -> (File, GuestMemory) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd_create"));
    file.set_len(len).expect("ftruncate");
    let spec = region(&file, start, len);
    let memory = GuestMemory::map(vec![spec]).expect("a plain memfd can be mapped");
    (file, memory)
}

/// Miri has no memfds: the memory is the heap's, and the file stands for nothing.
#[cfg(miri)]
fn memory(start: u64, len: u64) -> (File, GuestMemory) {
    let file = File::open("/dev/null").expect("there is one");
    (file, GuestMemory::private(start, len, start + USER_OFFSET))
}

fn region(file: &File, guest_phys_addr: u64, len: u64) -> RegionSpec {
    let user_addr = guest_phys_addr + USER_OFFSET;
    RegionSpec {
        guest_phys_addr,
        len,
        user_addr,
        mmap_offset: 0,
        file: file.try_clone().expect("dup"),
    }
}

/// A chain of no buffers that was not popped from any ring: what a device has that lost track.
pub fn chain_of(head: u16) -> Chain {
    let mut chain = Chain::new();
    chain.reset(head);
    chain
}

/// What was made available by [`Driver::add_bytes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its first descriptor.
    pub head: u16,
    /// Address and length of its readable buffers.
    pub readable: Vec<(u64, u32)>,
    /// Address and length of its writable buffers.
    pub writable: Vec<(u64, u32)>,
}

/// A driver of one queue.
#[derive(Debug)]
pub struct Driver {
    mem: Arc<GuestMemory>,
    config: RingConfig,
    free: Vec<u16>,
    /// The descriptors of the chain at each head.
    chains: Vec<Vec<u16>>,
    avail_idx: u16,
    kicked_at: u16,
    used_idx: u16,
    /// With IN_ORDER, heads that were offered and did not come back, oldest first.
    offered: VecDeque<u16>,
    /// With IN_ORDER, the last head of a batch that is not yet taken to its end.
    batch_last: Option<u16>,
    /// An indirect table for each descriptor.
    tables: u64,
    buffers: Buffers,
    /// What only a packed ring has.
    packed: Option<packed::State>,
}

/// Room for buffers that come and go: each descriptor has its own.
#[derive(Debug)]
struct Buffers {
    start: u64,
    each_len: u64,
}

/// Bytes of buffer that [`Driver::add_bytes`] has for each descriptor.
pub const BUFFER_LEN: u64 = 2048;

impl Driver {
    /// Lay out a ring of `size` descriptors in `ram`, with room for buffers and indirect tables.
    pub fn new(ram: &GuestRam, size: u16, features: u64) -> Self {
        let count = u64::from(size);
        let desc = ram.alloc(16 * count, 16);
        let avail = ram.alloc(6 + 2 * count, 4);
        let used = ram.alloc(6 + 8 * count, 4);
        let tables = ram.alloc(16 * count * count, 16);
        let buffers = Buffers {
            start: ram.alloc(BUFFER_LEN * count, 64),
            each_len: BUFFER_LEN,
        };
        Self {
            mem: ram.memory().clone(),
            config: RingConfig {
                size,
                desc,
                avail,
                used,
                base: packed::base(features),
                features,
            },
            free: (0..size).rev().collect(),
            chains: vec![Vec::new(); usize::from(size)],
            avail_idx: 0,
            kicked_at: 0,
            used_idx: 0,
            offered: VecDeque::new(),
            batch_last: None,
            tables,
            buffers,
            packed: packed::State::new(features, size),
        }
    }

    /// Which kind of ring it has.
    pub fn format(&self) -> RingFormat {
        RingFormat::of(self.config.features)
    }

    /// Begin with both indices at `index`, as after many rounds.
    pub fn starting_at(mut self, index: u16) -> Self {
        (self.avail_idx, self.kicked_at, self.used_idx) = (index, index, index);
        if self.packed.is_some() {
            self.packed_start(index);
            return self;
        }
        self.config.base = index.into();
        self.store16(self.config.used + IDX_OFFSET as u64, index);
        self.publish();
        self
    }

    /// What the device's side needs.
    pub fn config(&self) -> RingConfig {
        self.config
    }

    /// Where the device is, if it has used just what was taken back.
    pub fn base(&self) -> u32 {
        match self.packed {
            None => self.used_idx.into(),
            Some(_) => self.packed_base(),
        }
    }

    /// Make a chain of the given buffers; the guest's memory must hold them. `None` if descriptors are used up.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<u16> {
        let count = readable.len() + writable.len();
        assert!(count > 0, "a chain has a buffer");
        if self.free.len() < count {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - count);
        let flags = flags(readable.len(), writable.len());
        if self.packed.is_some() {
            let buffers = readable.iter().chain(writable).zip(flags);
            let descriptors = buffers.map(|(&(addr, len), flags)| Descriptor {
                addr,
                len,
                flags,
                next: 0,
            });
            let (head, descriptors) = (indices[0], descriptors.collect());
            self.chains[usize::from(head)] = indices;
            self.put(head, descriptors);
            return Some(head);
        }
        for (n, (&(addr, len), flags)) in readable.iter().chain(writable).zip(flags).enumerate() {
            let next = indices.get(n + 1).copied().unwrap_or(0);
            self.set_descriptor(indices[n], Descriptor { addr, len, flags, next });
        }
        let head = indices[0];
        self.chains[usize::from(head)] = indices;
        self.offer(head);
        Some(head)
    }

    /// The same with one indirect descriptor. `None` if descriptors are used up.
    pub fn add_indirect(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<u16> {
        let head = self.free.pop()?;
        let table = self.table(head);
        let count = readable.len() + writable.len();
        assert!(
            (1..=usize::from(self.config.size)).contains(&count),
            "a table has 1 to `size` buffers"
        );
        let flags = flags(readable.len(), writable.len());
        for (n, (&(addr, len), flags)) in readable.iter().chain(writable).zip(flags).enumerate() {
            let next = u16::try_from(n + 1).expect("no more than the queue's size");
            let bytes = match self.packed {
                None => Descriptor { addr, len, flags, next }.to_bytes(),
                Some(_) => Descriptor {
                    addr,
                    len,
                    flags: flags & DESC_F_WRITE,
                    next: 0,
                }
                .to_packed_bytes(),
            };
            self.write(table + (DESC_LEN * n) as u64, &bytes);
        }
        let len = u32::try_from(DESC_LEN * count).expect("a table is short");
        let descriptor = Descriptor {
            addr: table,
            len,
            flags: DESC_F_INDIRECT,
            next: 0,
        };
        self.chains[usize::from(head)] = vec![head];
        if self.packed.is_some() {
            self.put(head, vec![descriptor]);
            return Some(head);
        }
        self.set_descriptor(head, descriptor);
        self.offer(head);
        Some(head)
    }

    /// Make a chain with buffers of the driver's own: `readable` is copied in, `writable` are lengths. Each buffer has
    /// at most [`BUFFER_LEN`] bytes. `None` if descriptors are used up.
    pub fn add_bytes(&mut self, readable: &[&[u8]], writable: &[u32]) -> Option<Added> {
        let count = readable.len() + writable.len();
        let first = self.free.len().checked_sub(count)?;
        // The descriptors that `add` will take, in its order.
        let mut places = self.free[first..]
            .iter()
            .map(|&index| self.buffer(index))
            .collect::<Vec<_>>()
            .into_iter();
        let mut place = |len: usize| {
            assert!(
                len as u64 <= self.buffers.each_len,
                "a buffer has at most {BUFFER_LEN} bytes"
            );
            (
                places.next().expect("one a descriptor"),
                u32::try_from(len).expect("short"),
            )
        };
        let readable: Vec<_> = readable.iter().map(|bytes| (place(bytes.len()), *bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|&len| place(len as usize)).collect();
        for ((addr, _), bytes) in &readable {
            self.write(*addr, bytes);
        }
        let readable: Vec<_> = readable.into_iter().map(|(place, _)| place).collect();
        let head = self.add(&readable, &writable)?;
        Some(Added {
            head,
            readable,
            writable,
        })
    }

    /// The driver's own buffer of a descriptor, [`BUFFER_LEN`] bytes.
    pub fn buffer(&self, index: u16) -> u64 {
        self.buffers.start + self.buffers.each_len * u64::from(index)
    }

    /// The indirect table of a descriptor, with room for as many as the queue has.
    pub fn table(&self, index: u16) -> u64 {
        self.tables + (DESC_LEN as u64) * u64::from(self.config.size) * u64::from(index)
    }

    /// Put a head in the next entry of the available ring, without publishing it; in a packed ring, the descriptors that
    /// it had last.
    pub fn offer(&mut self, head: u16) {
        if self.packed.is_some() {
            return self.put_again(head);
        }
        let slot = u64::from(self.avail_idx & (self.config.size - 1));
        self.store16(
            self.config.avail + AVAIL_RING_OFFSET as u64 + AVAIL_ENTRY_LEN as u64 * slot,
            head,
        );
        self.avail_idx = self.avail_idx.wrapping_add(1);
        if self.in_order() {
            self.offered.push_back(head);
        }
    }

    /// Put a chain of these descriptors, whatever they are, without publishing it. In a split ring they stand in the first
    /// ones, so that each can name the next.
    pub fn offer_chain(&mut self, descriptors: &[Descriptor]) {
        if self.packed.is_some() {
            return self.put(0, descriptors.to_vec());
        }
        for (index, descriptor) in (0..).zip(descriptors) {
            self.set_descriptor(index, *descriptor);
        }
        self.offer(0);
    }

    /// Let the device see all that was offered.
    pub fn publish(&mut self) {
        if self.packed.is_some() {
            return self.put_flags();
        }
        self.set_avail_idx(self.avail_idx);
    }

    /// Does the device want a kick for what was published since this was asked last?
    pub fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_at, self.avail_idx);
        self.kicked_at = new;
        if self.packed.is_some() {
            return self.packed_needs_kick(old, new);
        }
        if self.event_idx() {
            let event = self.load16(self.config.used + USED_RING_OFFSET as u64 + 8 * u64::from(self.config.size));
            return new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
        }
        old != new && self.load16(self.config.used) & 1 == 0
    }

    /// The next chain that the device is done with, and how many bytes it says it wrote. With IN_ORDER, one entry may stand
    /// for a batch (virtio 1.3 §2.7.9): all but its last say 0, as ours are batches of what the device only reads.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        if self.packed.is_some() {
            return self.packed_used();
        }
        if self.used_idx == self.published_used() {
            return None;
        }
        let (head, len) = match self.in_order() {
            true => self.next_in_order(),
            false => self.used_entry(),
        };
        self.used_idx = self.used_idx.wrapping_add(1);
        let freed = std::mem::take(&mut self.chains[usize::from(head)]);
        self.free.extend(freed.into_iter().rev());
        Some((head, len))
    }

    fn next_in_order(&mut self) -> (u16, u32) {
        let (last, len) = match self.batch_last {
            Some(last) => (last, 0),
            None => self.used_entry(),
        };
        // A device that keeps no order, as where that is tried: each entry stands for itself.
        let Some(place) = self.offered.iter().position(|head| *head == last) else {
            return (last, len);
        };
        let head = self.offered.pop_front().unwrap_or(last);
        self.batch_last = (place > 0).then_some(last);
        (head, if place > 0 { 0 } else { len })
    }

    /// The used entry at our index.
    fn used_entry(&self) -> (u16, u32) {
        let slot = u64::from(self.used_idx & (self.config.size - 1));
        let entry = self.config.used + USED_RING_OFFSET as u64 + USED_ENTRY_LEN as u64 * slot;
        let mut bytes = [0; USED_ENTRY_LEN];
        self.mem.read(entry, &mut bytes).expect("the ring is mapped");
        let [i0, i1, i2, i3, l0, l1, l2, l3] = bytes;
        let head = u32::from_le_bytes([i0, i1, i2, i3]);
        let head = u16::try_from(head).expect("the device gave back a descriptor that exists");
        (head, u32::from_le_bytes([l0, l1, l2, l3]))
    }

    /// used.idx as the device published it; of a packed ring, up to where it has used what was taken back.
    pub fn published_used(&self) -> u16 {
        if self.packed.is_some() {
            return self.used_idx;
        }
        let bytes = self
            .mem
            .slice(self.config.used, USED_RING_OFFSET)
            .expect("the ring is mapped");
        u16::from_le(bytes.load(IDX_OFFSET, Ordering::Acquire).expect("it is aligned"))
    }

    /// Write any descriptor; of a packed ring, the one in a slot, flags and all.
    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let bytes = match self.packed {
            None => descriptor.to_bytes(),
            Some(_) => descriptor.to_packed_bytes(),
        };
        self.write(self.config.desc + DESC_LEN as u64 * u64::from(index), &bytes);
    }

    /// Write avail.idx, whatever was offered.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        let bytes = self
            .mem
            .slice(self.config.avail, AVAIL_RING_OFFSET)
            .expect("the ring is mapped");
        bytes
            .store(idx.to_le(), IDX_OFFSET, Ordering::Release)
            .expect("it is aligned");
    }

    /// Break the rules, so that the device finds out when it looks at the ring next.
    pub fn break_rules(&mut self) {
        match self.packed {
            None => self.set_avail_idx(self.avail_idx.wrapping_add(1000)),
            Some(_) => self.packed_break_rules(),
        }
    }

    /// Ask for no calls (without EVENT_IDX).
    pub fn set_no_interrupt(&self, on: bool) {
        if self.packed.is_some() {
            return self.set_driver_event(0, u16::from(on));
        }
        self.store16(self.config.avail, u16::from(on));
    }

    /// Ask for a call when used.idx passes `index` (with EVENT_IDX).
    pub fn set_used_event(&self, index: u16) {
        if self.packed.is_some() {
            return self.set_used_position(index);
        }
        let at = self.config.avail + AVAIL_RING_OFFSET as u64 + 2 * u64::from(self.config.size);
        self.store16(at, index);
    }

    /// Read guest memory.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem
            .read(addr, &mut bytes)
            .expect("the driver reads its own memory");
        bytes
    }

    /// Read what is in a list of segments.
    pub fn read_segments(&self, segments: &[Segment]) -> Vec<u8> {
        segments
            .iter()
            .flat_map(|s| self.read(s.addr, s.len as usize))
            .collect()
    }

    /// Write guest memory.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.mem.write(addr, bytes).expect("the driver writes its own memory");
    }

    fn in_order(&self) -> bool {
        self.config.features & 1 << VIRTIO_F_IN_ORDER != 0
    }

    fn event_idx(&self) -> bool {
        self.config.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0
    }

    fn load16(&self, addr: u64) -> u16 {
        let bytes = self.mem.slice(addr, 2).expect("the ring is mapped");
        u16::from_le(bytes.load(0, Ordering::Relaxed).expect("it is aligned"))
    }

    fn store16(&self, addr: u64, value: u16) {
        let bytes = self.mem.slice(addr, 2).expect("the ring is mapped");
        bytes.store(value.to_le(), 0, Ordering::Relaxed).expect("it is aligned");
    }
}

/// Flags of a chain of so many readable and writable buffers.
fn flags(readable: usize, writable: usize) -> impl Iterator<Item = u16> {
    let count = readable + writable;
    (0..count).map(move |n| {
        let next = if n + 1 < count { DESC_F_NEXT } else { 0 };
        next | if n >= readable { DESC_F_WRITE } else { 0 }
    })
}
