//! A descriptor chain that was read once and checked.

use std::slice;

use outboard_controls::{Check, on};

use crate::{
    memory::{GuestMemory, MemoryError},
    view::GuestBytes,
};

/// Segments a new [`Chain`] has room for. Longer chains make it grow, up to the queue size, and it stays that large.
const SEGMENT_COUNT_START: usize = 32;

/// A buffer of a chain, within one region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes, never 0.
    pub len: u32,
}

/// Why bytes of a chain could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The chain is shorter.
    #[error("guest gave a chain of {chain_len} {direction} bytes where {wanted} are needed")]
    TooShort {
        /// "readable" or "writable".
        direction: &'static str,
        /// Bytes there are.
        chain_len: u64,
        /// Bytes that were asked for, from the chain's start.
        wanted: u64,
    },
    /// Its memory is gone.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A chain whose every descriptor was read once and checked. It can be used again and holds no borrow: it must be used
/// with the memory of the ring that filled it.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// There is one segment, `only`; otherwise `segments` has them.
    single: bool,
    only: Segment,
    /// The readable ones first.
    segments: Vec<Segment>,
    readable_count: usize,
    readable_len: u64,
    writable_len: u64,
    /// Where in the ring's memory its first segment's region is. A guess, to whoever copies.
    near: u16,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self {
            head: 0,
            single: false,
            only: Segment { addr: 0, len: 0 },
            segments: Vec::with_capacity(SEGMENT_COUNT_START),
            readable_count: 0,
            readable_len: 0,
            writable_len: 0,
            near: 0,
        }
    }

    /// Make it a copy of another one: who only reads the buffers can do so while that one is used for the next chain.
    pub fn copy_from(&mut self, other: &Self) {
        let Self {
            head,
            single,
            only,
            ref segments,
            readable_count,
            readable_len,
            writable_len,
            near,
        } = *other;
        (self.head, self.single, self.only, self.near) = (head, single, only, near);
        (self.readable_count, self.readable_len, self.writable_len) = (readable_count, readable_len, writable_len);
        self.segments.clear();
        if !single {
            self.segments.extend_from_slice(segments);
        }
    }

    /// What is needed to give it back later: a chain of the same head, without its buffers. Takes no memory.
    pub fn receipt(&self) -> Self {
        Self {
            head: self.head,
            single: false,
            only: Segment { addr: 0, len: 0 },
            segments: Vec::new(),
            readable_count: 0,
            readable_len: 0,
            writable_len: 0,
            near: self.near,
        }
    }

    /// The index of its first descriptor, by which it is given back; of a packed ring, the id of the buffer.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read, in order.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        &self.all()[..self.readable_count]
    }

    /// What the device may write, in order.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        &self.all()[self.readable_count..]
    }

    #[inline]
    fn all(&self) -> &[Segment] {
        if self.single {
            slice::from_ref(&self.only)
        } else {
            &self.segments
        }
    }

    /// Bytes the device may read.
    #[inline]
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes the device may write.
    #[inline]
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// Copy readable bytes from `offset` to `buf`.
    ///
    /// # Errors
    /// The chain has fewer bytes, or its memory was taken away.
    // For each frame, once.
    #[inline(always)]
    pub fn read_at(&self, mem: &GuestMemory, offset: u64, buf: &mut [u8]) -> Result<(), ChainError> {
        match self.piece_of(self.readable(), offset, buf.len()) {
            // Most are in one piece.
            Some((addr, len)) => mem.bytes(addr, len, self.near)?.copy_to(buf),
            None => self.gather(mem, offset, buf)?,
        }
        Ok(mem.alive()?)
    }

    fn gather(&self, mem: &GuestMemory, offset: u64, buf: &mut [u8]) -> Result<(), ChainError> {
        let mut cursor = Cursor::new(self.readable(), self.readable_len, "readable", offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let (addr, piece) = cursor.next(buf.len() - done);
            mem.bytes(addr, piece, self.near)?.copy_to(&mut buf[done..]);
            done += piece;
        }
        Ok(())
    }

    /// Copy `buf` to the writable bytes from `offset`.
    ///
    /// # Errors
    /// As for [`Chain::read_at`].
    #[inline]
    pub fn write_at(&self, mem: &GuestMemory, offset: u64, buf: &[u8]) -> Result<(), ChainError> {
        match self.piece_of(self.writable(), offset, buf.len()) {
            Some((addr, len)) => mem.bytes(addr, len, self.near)?.copy_from(buf),
            None => self.scatter(mem, offset, buf)?,
        }
        Ok(mem.alive()?)
    }

    fn scatter(&self, mem: &GuestMemory, offset: u64, buf: &[u8]) -> Result<(), ChainError> {
        let mut cursor = Cursor::new(self.writable(), self.writable_len, "writable", offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let (addr, piece) = cursor.next(buf.len() - done);
            mem.bytes(addr, piece, self.near)?.copy_from(&buf[done..]);
            done += piece;
        }
        Ok(())
    }

    /// The first `len` writable bytes, if they are in one piece.
    #[inline]
    pub fn writable_piece<'m>(&self, mem: &'m GuestMemory, len: usize) -> Option<GuestBytes<'m>> {
        let (addr, len) = self.piece_of(self.writable(), 0, len)?;
        mem.bytes(addr, len, self.near).ok()
    }

    /// `len` readable bytes from `offset`, if they are in one piece.
    #[inline]
    pub fn readable_piece<'m>(&self, mem: &'m GuestMemory, offset: u64, len: usize) -> Option<GuestBytes<'m>> {
        let (addr, len) = self.piece_of(self.readable(), offset, len)?;
        mem.bytes(addr, len, self.near).ok()
    }

    /// Where `len` bytes from `offset` are, if they are in the first of `segments`.
    #[inline]
    fn piece_of(&self, segments: &[Segment], offset: u64, len: usize) -> Option<(u64, usize)> {
        let first = segments.first()?;
        let left = u64::from(first.len).checked_sub(offset)?;
        // A segment does not wrap.
        (len as u64 <= left).then(|| (first.addr.wrapping_add(offset), len))
    }

    /// Make it the empty chain of `head`.
    pub(crate) fn reset(&mut self, head: u16) {
        (self.head, self.single) = (head, false);
        self.segments.clear();
        (self.readable_count, self.readable_len, self.writable_len) = (0, 0, 0);
    }

    /// Make it the chain of one buffer, which lies in the region at `near`.
    #[inline]
    pub(crate) fn set_only(&mut self, head: u16, segment: Segment, write: bool, near: u16) {
        (self.head, self.near) = (head, near);
        (self.single, self.only) = (true, segment);
        let (readable, writable) = if write { (0, segment.len) } else { (segment.len, 0) };
        self.readable_count = usize::from(!write);
        (self.readable_len, self.writable_len) = (readable.into(), writable.into());
    }

    /// It is known by another descriptor, or id.
    pub(crate) fn set_head(&mut self, head: u16) {
        self.head = head;
    }

    /// Where its first segment's region is.
    pub(crate) fn set_near(&mut self, near: u16) {
        self.near = near;
    }

    /// Bytes in all.
    pub(crate) fn total_len(&self) -> u64 {
        self.readable_len + self.writable_len
    }

    /// Add a buffer. False if it is readable and comes after a writable one.
    pub(crate) fn push(&mut self, segment: Segment, write: bool) -> bool {
        if write {
            self.segments.push(segment);
            self.writable_len += u64::from(segment.len);
            return true;
        }
        if self.readable_count != self.segments.len() && on(Check::WholeChain) {
            return false;
        }
        self.segments.insert(self.readable_count, segment);
        self.readable_count += 1;
        self.readable_len += u64::from(segment.len);
        true
    }
}

/// Copy `len` bytes from the readable part of `src` to the writable part of `dst`, guest to guest, in one copy.
///
/// # Errors
/// One of the chains has fewer bytes, or its memory was taken away.
pub fn copy(
    src_mem: &GuestMemory,
    src: &Chain,
    src_offset: u64,
    dst_mem: &GuestMemory,
    dst: &Chain,
    dst_offset: u64,
    len: usize,
) -> Result<(), ChainError> {
    let mut reader = Reader::new(src_mem, src, src_offset, len)?;
    reader.copy_to(dst_mem, dst, dst_offset, len)?;
    reader.finish(dst_mem)
}

/// Readable bytes of a chain, to be copied to several others one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    mem: &'a GuestMemory,
    near: u16,
    from: Cursor<'a>,
    /// Bytes that are left.
    left: u64,
}

impl<'a> Reader<'a> {
    /// `len` readable bytes of `chain` from `offset`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`].
    pub fn new(mem: &'a GuestMemory, chain: &'a Chain, offset: u64, len: usize) -> Result<Self, ChainError> {
        Ok(Self {
            mem,
            near: chain.near,
            from: Cursor::new(chain.readable(), chain.readable_len, "readable", offset, len as u64)?,
            left: len as u64,
        })
    }

    /// Copy the next `len` bytes to the writable part of `dst` from `offset`, guest to guest, in one copy.
    ///
    /// # Errors
    /// One of both has fewer bytes.
    pub fn copy_to(&mut self, mem: &GuestMemory, dst: &Chain, offset: u64, len: usize) -> Result<(), ChainError> {
        let wanted = len as u64;
        let Some(left_after) = self.left.checked_sub(wanted) else {
            return Err(ChainError::TooShort {
                direction: "readable",
                chain_len: self.left,
                wanted,
            });
        };
        let mut to = Cursor::new(dst.writable(), dst.writable_len, "writable", offset, wanted)?;
        let mut left = len;
        while left > 0 {
            let piece = left.min(self.from.piece_len()).min(to.piece_len());
            let (src_addr, _) = self.from.next(piece);
            let (dst_addr, _) = to.next(piece);
            let source = self.mem.bytes(src_addr, piece, self.near)?;
            source.copy_to_guest(mem.bytes(dst_addr, piece, dst.near)?);
            left -= piece;
        }
        self.left = left_after;
        Ok(())
    }

    /// Was no memory taken away, neither what was read nor `mem`, what was written?
    ///
    /// # Errors
    /// It was.
    pub fn finish(self, mem: &GuestMemory) -> Result<(), ChainError> {
        if self.mem.poisoned() || mem.poisoned() {
            return Err(MemoryError::Vanished.into());
        }
        Ok(())
    }
}

/// A place in a list of segments from which a known number of bytes is there.
#[derive(Debug)]
struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    offset: u32,
}

impl<'a> Cursor<'a> {
    #[inline]
    fn new(
        segments: &'a [Segment],
        chain_len: u64,
        direction: &'static str,
        offset: u64,
        len: u64,
    ) -> Result<Self, ChainError> {
        let wanted = offset.saturating_add(len);
        if wanted > chain_len {
            return Err(ChainError::TooShort {
                direction,
                chain_len,
                wanted,
            });
        }
        let mut skip = offset;
        let mut rest = segments;
        while let [first, others @ ..] = rest
            && skip >= u64::from(first.len)
        {
            skip -= u64::from(first.len);
            rest = others;
        }
        // Less than the first segment's length, or 0 at the end.
        Ok(Self {
            segments: rest,
            offset: u32::try_from(skip).unwrap_or(0),
        })
    }

    /// Bytes left in the present segment; not 0 before the end.
    #[inline]
    fn piece_len(&self) -> usize {
        self.segments
            .first()
            .map_or(0, |segment| (segment.len - self.offset) as usize)
    }

    /// Go on by at most `len` bytes of one segment: where they are, and how many.
    #[inline]
    fn next(&mut self, len: usize) -> (u64, usize) {
        let Some((first, others)) = self.segments.split_first() else {
            return (0, 0);
        };
        let addr = first.addr.wrapping_add(u64::from(self.offset));
        let piece = len.min(self.piece_len());
        // No more than the segment's length, which is a u32.
        self.offset += u32::try_from(piece).unwrap_or(0);
        if self.offset == first.len {
            (self.segments, self.offset) = (others, 0);
        }
        (addr, piece)
    }
}

#[cfg(test)]
mod tests;
