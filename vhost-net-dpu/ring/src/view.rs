//! Guest memory as pointers that carry their lengths.
//!
//! Nothing here forms a reference to guest memory: the guest changes it at any time. What is read ends in private memory
//! or in a register, and a compiler fence after each copy keeps the compiler from reading the same byte again later in
//! place of the copy.

use std::{
    fmt,
    marker::PhantomData,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU16, AtomicU32, Ordering, compiler_fence},
};

use crate::{
    descriptor::{DESC_LEN, Descriptor},
    layout::{
        AVAIL_ENTRY_LEN, AVAIL_RING_OFFSET, EVENT_LEN, FLAGS_OFFSET, IDX_OFFSET, USED_ENTRY_LEN, USED_RING_OFFSET,
    },
    mapping::{Area, Mapping},
};

/// What is copied at once: a vector register, where there are any.
#[cfg(target_arch = "x86_64")]
type Chunk = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Chunk = [u64; 2];
const CHUNK_LEN: usize = size_of::<Chunk>();
/// Up to here copies are made inline, in bytes; beyond, libc's are as fast.
const INLINE_LEN_MAX: usize = 256;
/// Bytes of a cache line, on most machines.
const LINE_LEN: usize = 64;

/// Bytes of guest memory that lie in one piece of ours. They may change at any time, between two reads too.
#[derive(Clone, Copy)]
pub struct GuestBytes<'a> {
    start: NonNull<u8>,
    len: usize,
    mapping: PhantomData<&'a Mapping>,
}

impl fmt::Debug for GuestBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestBytes")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl GuestBytes<'_> {
    /// `len` bytes from `start`.
    ///
    /// # Safety
    /// They are mapped, to be read and written, as long as `'a`, and no reference to any of them exists.
    #[inline]
    pub(crate) unsafe fn new(start: NonNull<u8>, len: usize) -> Self {
        Self {
            start,
            len,
            mapping: PhantomData,
        }
    }

    /// How many they are.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "a range of no bytes is nobody's question")]
    pub fn len(self) -> usize {
        self.len
    }

    /// `len` of them from `offset`, if they are there.
    #[inline]
    pub fn part(self, offset: usize, len: usize) -> Option<Self> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: `offset` is at most the length, so that the pointer stays in the mapping or at its end.
        let start = unsafe { self.start.add(offset) };
        Some(Self { start, len, ..self })
    }

    /// Copy them to `buf`, as many as both have.
    #[inline]
    pub fn copy_to(self, buf: &mut [u8]) {
        let len = self.len.min(buf.len());
        // SAFETY: both have `len` bytes, and private memory does not overlap the guest's.
        unsafe { copy(self.start.as_ptr(), buf.as_mut_ptr(), len) }
    }

    /// Copy `buf` to them, as many as both have.
    #[inline]
    pub fn copy_from(self, buf: &[u8]) {
        let len = self.len.min(buf.len());
        // SAFETY: as for `copy_to`.
        unsafe { copy(buf.as_ptr(), self.start.as_ptr(), len) }
    }

    /// Write `bytes` at `offset`. `None` if they do not fit.
    #[inline]
    pub fn put<const N: usize>(self, offset: usize, bytes: &[u8; N]) -> Option<()> {
        let to = self.part(offset, N)?;
        // SAFETY: both have `N` bytes; private memory does not overlap the guest's.
        unsafe { copy(bytes.as_ptr(), to.start.as_ptr(), N) }
        Some(())
    }

    /// Copy them to other guest memory, as many as both have. They may overlap.
    #[inline]
    pub fn copy_to_guest(self, to: GuestBytes<'_>) {
        let len = self.len.min(to.len);
        // SAFETY: both have `len` bytes.
        unsafe { copy(self.start.as_ptr(), to.start.as_ptr(), len) }
    }

    /// One descriptor, read once, of an indirect table, which may have any alignment.
    #[inline]
    pub(crate) fn descriptor(self, index: u16) -> Option<Descriptor> {
        let at = self.part(DESC_LEN * usize::from(index), DESC_LEN)?;
        // SAFETY: the bytes are there.
        let raw = unsafe { read_chunk(at.start.as_ptr()) };
        Some(Descriptor::from_raw(raw))
    }

    /// The same of an indirect table of a packed ring.
    #[inline]
    pub(crate) fn packed_descriptor(self, index: u16) -> Option<Descriptor> {
        let at = self.part(DESC_LEN * usize::from(index), DESC_LEN)?;
        // SAFETY: the bytes are there.
        let raw = unsafe { read_chunk(at.start.as_ptr()) };
        Some(Descriptor::from_packed(raw))
    }

    /// They are about to be looked at, or to be written: fetch the first two lines.
    #[inline]
    pub(crate) fn prefetch(self, to_write: bool) {
        // Where there are fewer, what follows is fetched in vain, and no fault comes of it.
        let first = self.start.as_ptr().cast_const();
        let lines = [first, first.wrapping_add(LINE_LEN)];
        if to_write {
            lines.into_iter().for_each(prefetch_to_write);
        } else {
            lines.into_iter().for_each(prefetch);
        }
    }
}

/// A chunk at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned(Chunk);

/// 16 bytes by one volatile load, as a number of the host. A load of a vector register is one where there are any.
///
/// # Safety
/// They are mapped.
#[inline]
unsafe fn read_chunk(from: *const u8) -> u128 {
    // SAFETY: the caller vouches for the bytes; both types are plain ones of 16 bytes.
    unsafe { std::mem::transmute::<Chunk, u128>(ptr::read_volatile(from.cast::<Unaligned>()).0) }
}

/// The same of an address that is a multiple of 16.
///
/// # Safety
/// The bytes are mapped, and the address is such a multiple.
#[inline]
unsafe fn read_aligned_chunk(from: *const u8) -> u128 {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<Chunk, u128>(ptr::read_volatile(from.cast::<Chunk>())) }
}

#[inline]
fn prefetch(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes nothing and never faults, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// The same for a line that is about to be written: another core that has it gives it up now, and not at the first store.
#[inline]
fn prefetch_to_write(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as above. Processors that do not know the instruction take it for one that does nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Copy `len` bytes, as if all were read before the first is written.
///
/// # Safety
/// `from` may be read and `to` written for `len` bytes.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    if len <= INLINE_LEN_MAX {
        // SAFETY: as the caller vouches.
        unsafe { copy_inline(from, to, len) }
    } else {
        // SAFETY: as the caller vouches.
        unsafe { ptr::copy(from, to, len) }
    }
    compiler_fence(Ordering::SeqCst);
}

/// The same for at most [`INLINE_LEN_MAX`] bytes: as many chunks from the start as from the end, which overlap.
///
/// # Safety
/// As for [`copy`].
#[inline(always)]
unsafe fn copy_inline(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: each branch has a type and a count of which `count` fit into `len`, from its start and from its end.
    unsafe {
        match len {
            129.. => copy_ends::<Chunk, 8>(from, to, len),
            65.. => copy_ends::<Chunk, 4>(from, to, len),
            33.. => copy_ends::<Chunk, 2>(from, to, len),
            CHUNK_LEN.. => copy_ends::<Chunk, 1>(from, to, len),
            8.. => copy_ends::<u64, 1>(from, to, len),
            4.. => copy_ends::<u32, 1>(from, to, len),
            2.. => copy_ends::<u16, 1>(from, to, len),
            1 => copy_ends::<u8, 1>(from, to, len),
            0 => {}
        }
    }
}

/// Copy `COUNT` values from the start, and as many that end at the end.
///
/// # Safety
/// As for [`copy`], and `len` is at least the length of `COUNT` values and at most twice that.
#[inline(always)]
unsafe fn copy_ends<T: Copy, const COUNT: usize>(from: *const u8, to: *mut u8, len: usize) {
    let tail = len - COUNT * size_of::<T>();
    // SAFETY: `COUNT` values fit into `len` bytes, so that both ranges lie inside; values of any alignment are read
    // and written, of types that any bytes are values of.
    unsafe {
        let head = ptr::read_unaligned(from.cast::<[T; COUNT]>());
        let end = ptr::read_unaligned(from.add(tail).cast::<[T; COUNT]>());
        ptr::write_unaligned(to.cast::<[T; COUNT]>(), head);
        ptr::write_unaligned(to.add(tail).cast::<[T; COUNT]>(), end);
    }
}

/// The three parts of a split ring (virtio 1.3 §2.7), found once. Entries are taken modulo the queue's size, so that
/// every access lies inside.
#[derive(Debug)]
pub(crate) struct RingView {
    desc: NonNull<u8>,
    avail: NonNull<u8>,
    used: NonNull<u8>,
    /// The queue's size less 1.
    mask: u16,
    /// Are there used_event and avail_event?
    events: bool,
    /// What keeps the memory mapped.
    _areas: [Area; 3],
}

// SAFETY: the memory is the areas', which may be sent, and is accessed only by volatile and atomic operations.
unsafe impl Send for RingView {}
// SAFETY: as above.
unsafe impl Sync for RingView {}

impl RingView {
    /// Descriptor table, available ring and used ring of a queue of `size`, a power of two. `None` if one of them is too
    /// short or misaligned.
    pub(crate) fn new(size: u16, events: bool, desc: Area, avail: Area, used: Area) -> Option<Self> {
        let count = usize::from(size);
        let event_len = if events { EVENT_LEN } else { 0 };
        let fits = desc.len() >= DESC_LEN * count
            && avail.len() >= AVAIL_RING_OFFSET + AVAIL_ENTRY_LEN * count + event_len
            && used.len() >= USED_RING_OFFSET + USED_ENTRY_LEN * count + event_len;
        let aligned = desc.start().addr().get().is_multiple_of(DESC_LEN)
            && avail.start().addr().get().is_multiple_of(2)
            && used.start().addr().get().is_multiple_of(4);
        (size.is_power_of_two() && fits && aligned).then(|| Self {
            desc: desc.start(),
            avail: avail.start(),
            used: used.start(),
            mask: size - 1,
            events,
            _areas: [desc, avail, used],
        })
    }

    /// A descriptor, by one read.
    #[inline]
    pub(crate) fn descriptor(&self, index: u16) -> Descriptor {
        // SAFETY: below the size, for which the table was measured; its start was found aligned.
        let raw = unsafe { read_aligned_chunk(self.desc.as_ptr().add(DESC_LEN * self.slot(index))) };
        Descriptor::from_raw(raw)
    }

    /// A descriptor is about to be read.
    #[inline]
    pub(crate) fn prefetch_descriptor(&self, index: u16) {
        prefetch(self.desc.as_ptr().wrapping_add(DESC_LEN * self.slot(index)));
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }

    /// Two bytes of the available ring.
    #[inline]
    fn avail16(&self, offset: usize, order: Ordering) -> u16 {
        // SAFETY: every caller's offset is even and below the length that was measured.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.avail.as_ptr().add(offset).cast()) }.load(order))
    }

    #[inline]
    fn set_used16(&self, offset: usize, value: u16, order: Ordering) {
        // SAFETY: as for `avail16`, in the used ring.
        unsafe { AtomicU16::from_ptr(self.used.as_ptr().add(offset).cast()) }.store(value.to_le(), order);
    }

    /// avail.idx. What is read later is what the driver wrote before it.
    #[inline]
    pub(crate) fn avail_idx(&self) -> u16 {
        self.avail16(IDX_OFFSET, Ordering::Acquire)
    }

    /// avail.flags.
    #[inline]
    pub(crate) fn avail_flags(&self) -> u16 {
        self.avail16(FLAGS_OFFSET, Ordering::Relaxed)
    }

    /// The head in the entry of a running index.
    #[inline]
    pub(crate) fn avail_entry(&self, index: u16) -> u16 {
        self.avail16(
            AVAIL_RING_OFFSET + AVAIL_ENTRY_LEN * self.slot(index),
            Ordering::Relaxed,
        )
    }

    /// used_event, with EVENT_IDX.
    #[inline]
    pub(crate) fn used_event(&self) -> Option<u16> {
        let at = AVAIL_RING_OFFSET + AVAIL_ENTRY_LEN * (usize::from(self.mask) + 1);
        self.events.then(|| self.avail16(at, Ordering::Relaxed))
    }

    /// used.idx as it stands.
    pub(crate) fn used_idx(&self) -> u16 {
        // SAFETY: the used ring has an index, at an even offset.
        u16::from_le(unsafe { AtomicU16::from_ptr(self.used.as_ptr().add(IDX_OFFSET).cast()) }.load(Ordering::Acquire))
    }

    /// Write used.idx, after all that was written before.
    #[inline]
    pub(crate) fn set_used_idx(&self, idx: u16) {
        self.set_used16(IDX_OFFSET, idx, Ordering::Release);
    }

    /// Write used.flags.
    pub(crate) fn set_used_flags(&self, flags: u16) {
        self.set_used16(FLAGS_OFFSET, flags, Ordering::Relaxed);
    }

    /// Write avail_event, if there is one: where it is.
    pub(crate) fn set_avail_event(&self, idx: u16) -> Option<usize> {
        let at = USED_RING_OFFSET + USED_ENTRY_LEN * (usize::from(self.mask) + 1);
        self.events.then(|| {
            self.set_used16(at, idx, Ordering::Relaxed);
            at
        })
    }

    /// Write the used entry of a running index.
    #[inline]
    pub(crate) fn set_used_entry(&self, index: u16, head: u16, len: u32) {
        let at = USED_RING_OFFSET + USED_ENTRY_LEN * self.slot(index);
        // SAFETY: the entry is inside, as for `avail16`, and its halves are aligned to 4.
        let (id, written) = unsafe {
            let entry = self.used.as_ptr().add(at);
            (
                AtomicU32::from_ptr(entry.cast()),
                AtomicU32::from_ptr(entry.add(4).cast()),
            )
        };
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        written.store(len.to_le(), Ordering::Relaxed);
    }
}

mod packed;
#[cfg(test)]
mod tests;

pub(crate) use packed::{EventArea, PackedView, UsedTail};
