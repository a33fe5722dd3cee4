//! The one place with unsafe code: a memory file that the back-end shares, mapped, and reached by checked offsets.
//!
//! The back-end changes these bytes whenever it likes, so everything is read and written by atomic operations, and no
//! reference to plain bytes is ever made.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    marker::PhantomData,
    os::fd::AsFd,
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// Bytes of a cache line.
pub const LINE_LEN: usize = 64;
const HUGE_PAGE_LEN: usize = 2 << 20;
/// From here on bytes are copied as `memcpy` does.
const LARGE_LEN: usize = 1024;

/// A mapped memory file.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
    file: File,
}

// SAFETY: the mapping belongs to the process, not to a thread, and lives until it is dropped.
unsafe impl Send for Memory {}
// SAFETY: as above; it is accessed by atomic operations only.
unsafe impl Sync for Memory {}

/// A value in shared memory that is read and written as a whole.
///
/// # Safety
/// Any bit pattern is a value, and any number of threads and processes may change it.
pub unsafe trait Shared {}
// SAFETY: atomics of integers.
unsafe impl Shared for AtomicU8 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU16 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}

impl Memory {
    /// A new file of at least `len` bytes, zeroed, every page present. With `huge`, of 2 MiB pages.
    ///
    /// # Errors
    /// The kernel has no such memory.
    pub fn new(len: usize, huge: bool) -> io::Result<Arc<Self>> {
        let len = len.next_multiple_of(HUGE_PAGE_LEN);
        let kind = if huge {
            MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB
        } else {
            MemfdFlags::empty()
        };
        let file = File::from(memfd_create("generator", MemfdFlags::CLOEXEC | kind)?);
        file.set_len(len as u64)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: the kernel picks the place, so that nothing that exists is touched.
        let start = unsafe { mmap(ptr::null_mut(), len, prot, flags, file.as_fd(), 0) }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Arc::new(Self { start, len, file }))
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: it has at least a page.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is mapped; the address that the back-end is told.
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn check(&self, at: usize, len: usize) {
        assert!(
            at <= self.len && len <= self.len - at,
            "{len} bytes at {at} are outside of the memory"
        );
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// They do not fit.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: the range was checked.
        let to = unsafe { self.start.as_ptr().add(at) };
        let head = to.align_offset(8).min(bytes.len());
        let (first, rest) = bytes.split_at(head);
        let words = rest.chunks_exact(8);
        let last = words.remainder();
        for (n, byte) in first.iter().enumerate() {
            // SAFETY: inside the range; a byte is always aligned.
            unsafe { AtomicU8::from_ptr(to.add(n)) }.store(*byte, Relaxed);
        }
        let mut n = head;
        for word in words {
            let word = word.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            // SAFETY: inside the range, and aligned by `head`.
            unsafe { AtomicU64::from_ptr(to.add(n).cast()) }.store(word, Relaxed);
            n += 8;
        }
        for byte in last {
            // SAFETY: inside the range.
            unsafe { AtomicU8::from_ptr(to.add(n)) }.store(*byte, Relaxed);
            n += 1;
        }
    }

    /// Fetches the cache line of an offset that will be read soon.
    #[inline]
    pub fn prefetch(&self, at: usize) {
        if at < self.len {
            // SAFETY: inside of the mapping.
            prefetch(unsafe { self.start.add(at) });
        }
    }

    /// Copies `len` bytes from `at` to `to_at` of another memory. Quick if both are at the same place of a word, or they
    /// are many.
    ///
    /// # Panics
    /// They are not all there, or do not fit.
    #[inline]
    pub fn copy(&self, at: usize, to: &Self, to_at: usize, len: usize) {
        self.check(at, len);
        to.check(to_at, len);
        // SAFETY: the ranges were checked.
        let (from, to) = unsafe { (self.start.as_ptr().add(at), to.start.as_ptr().add(to_at)) };
        if len >= LARGE_LEN {
            // SAFETY: as above. What a ring hands to one side, the other one leaves alone until it has it back; should it not,
            // any bytes will do, and no reference to them is made.
            return unsafe { ptr::copy(from, to, len) };
        }
        let head = if at % 8 == to_at % 8 {
            from.align_offset(8).min(len)
        } else {
            len
        };
        let tail = head + (len - head) / 8 * 8;
        for n in (0..head).chain(tail..len) {
            // SAFETY: inside of the ranges; a byte is always aligned.
            unsafe { AtomicU8::from_ptr(to.add(n)).store(AtomicU8::from_ptr(from.add(n)).load(Relaxed), Relaxed) };
        }
        for n in (head..tail).step_by(8) {
            // SAFETY: inside of the ranges, and aligned by `head`, both alike.
            unsafe {
                let word = AtomicU64::from_ptr(from.add(n).cast()).load(Relaxed);
                AtomicU64::from_ptr(to.add(n).cast()).store(word, Relaxed);
            }
        }
    }

    /// Reads bytes.
    ///
    /// # Panics
    /// They are not all there.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        self.check(at, bytes.len());
        // SAFETY: the range was checked.
        let from = unsafe { self.start.as_ptr().add(at) };
        let head = from.align_offset(8).min(bytes.len());
        let (first, rest) = bytes.split_at_mut(head);
        let mut words = rest.chunks_exact_mut(8);
        for (n, byte) in first.iter_mut().enumerate() {
            // SAFETY: inside the range.
            *byte = unsafe { AtomicU8::from_ptr(from.add(n)) }.load(Relaxed);
        }
        let mut n = head;
        for word in &mut words {
            // SAFETY: inside the range, and aligned by `head`.
            let value = unsafe { AtomicU64::from_ptr(from.add(n).cast()) }.load(Relaxed);
            word.copy_from_slice(&value.to_ne_bytes());
            n += 8;
        }
        for byte in words.into_remainder() {
            // SAFETY: inside the range.
            *byte = unsafe { AtomicU8::from_ptr(from.add(n)) }.load(Relaxed);
            n += 1;
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, and whatever points into it holds a reference to it.
        // Unmapping a range of our own cannot fail, and nothing could be done about it.
        let _gone = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Equal cells at a fixed distance, as many as a power of two: a ring's entries, or one field of each buffer. An index
/// is taken modulo their number.
#[derive(Debug)]
pub struct Cells<T> {
    first: NonNull<u8>,
    stride: usize,
    mask: usize,
    memory: Arc<Memory>,
    kind: PhantomData<T>,
}

impl<T> Clone for Cells<T> {
    fn clone(&self) -> Self {
        Self {
            memory: Arc::clone(&self.memory),
            ..*self
        }
    }
}

// SAFETY: it is a checked pointer into a mapping that it keeps, to cells that any thread may access.
unsafe impl<T: Shared> Send for Cells<T> {}

impl<T: Shared> Cells<T> {
    /// `count` cells from offset `at`, `stride` bytes apart.
    ///
    /// # Panics
    /// `count` is no power of two, or they are not aligned, or not all inside of the memory.
    pub fn new(memory: &Arc<Memory>, at: usize, count: usize, stride: usize) -> Self {
        assert!(count.is_power_of_two(), "{count} is no power of two");
        let align = align_of::<T>();
        assert!(
            at.is_multiple_of(align) && (count == 1 || stride.is_multiple_of(align)),
            "the cells are not aligned"
        );
        let last = (count - 1).checked_mul(stride).and_then(|len| len.checked_add(at));
        memory.check(last.expect("a sum of addresses"), size_of::<T>());
        // SAFETY: inside of the mapping, as the last cell is.
        let first = unsafe { memory.start.add(at) };
        Self {
            first,
            stride,
            mask: count - 1,
            memory: Arc::clone(memory),
            kind: PhantomData,
        }
    }

    /// A cell.
    #[inline(always)]
    pub fn at(&self, index: usize) -> &T {
        // SAFETY: `new` checked all cells up to the mask, the mapping lives as long as `self`, and `T` is `Shared`.
        unsafe { self.first.add((index & self.mask) * self.stride).cast().as_ref() }
    }

    /// Offset of a cell in the memory.
    pub fn offset(&self, index: usize) -> usize {
        self.first.addr().get() - self.memory.start.addr().get() + (index & self.mask) * self.stride
    }

    /// Fetches the cache line of a cell that will be read soon.
    #[inline(always)]
    pub fn prefetch(&self, index: usize) {
        // SAFETY: `new` checked all cells up to the mask.
        prefetch(unsafe { self.first.add((index & self.mask) * self.stride) });
    }
}

impl<T: Shared> Cells<T> {
    /// Fetches the cache line of a cell that will be written soon, for this core alone: the store, and those after it,
    /// then need not wait for the other core to give it up.
    #[inline(always)]
    pub fn claim(&self, index: usize) {
        // SAFETY: `new` checked all cells up to the mask.
        let at = unsafe { self.first.add((index & self.mask) * self.stride) };
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which never faults; processors without it do nothing.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) at.as_ptr(), options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(target_arch = "x86_64"))]
        prefetch(at);
    }
}

#[inline(always)]
fn prefetch(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _no_hint = at;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_at_any_alignment() {
        let memory = Memory::new(4096, false).expect("a page");
        let bytes: Vec<u8> = (0..61).collect();
        for at in 100..120 {
            for len in 0..bytes.len() {
                let mut back = vec![0xff; len + 1];
                memory.write(at, &bytes[..len]);
                memory.read(at, &mut back[..len]);
                assert_eq!((&back[..len], back[len]), (&bytes[..len], 0xff));
            }
        }
    }

    #[test]
    fn an_index_is_taken_modulo_the_count() {
        let memory = Memory::new(4096, false).expect("a page");
        let cells: Cells<AtomicU16> = Cells::new(&memory, 64, 8, 32);
        cells.at(11).store(0x0102, Relaxed);
        let mut bytes = [0; 2];
        memory.read(64 + 3 * 32, &mut bytes);
        assert_eq!(u16::from_ne_bytes(bytes), 0x0102);
    }

    #[test]
    #[should_panic(expected = "outside of the memory")]
    fn cells_must_be_inside() {
        let memory = Memory::new(4096, false).expect("a page");
        let _cells: Cells<AtomicU64> = Cells::new(&memory, memory.len() - 64, 2, 64);
    }

    #[test]
    #[should_panic(expected = "outside of the memory")]
    fn writes_must_be_inside() {
        let memory = Memory::new(4096, false).expect("a page");
        memory.write(memory.len() - 3, &[0; 4]);
    }
}
