//! The only unsafe code of the storage layer: the kernel reads and writes guest memory by address.
//!
//! What makes it sound: a [`Flight`] owns the request, the request owns a reference to the guest's memory, and neither
//! the request nor the list of addresses is let go while the kernel has it (`in_kernel`). Dropping a [`Uring`] with
//! operations in the kernel waits for them, on a thread of its own.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    mem::ManuallyDrop,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    errno::Errno,
    fcntl::Flock,
    sys::eventfd::{EfdFlags, EventFd},
};
use outboard_ring::MemoryError;

use super::means::Means;
use crate::{Buffer, IoError, Op, Request, SEGMENT_COUNT_MAX};

/// Zeros to write where the file system makes none.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// How often [`ZEROS`] is written by one operation: a piece is 1 MiB.
const ZEROS_COUNT: usize = 16;

/// `user_data` of a sync. Slots are smaller.
const SYNC: u64 = u64::MAX;

/// A request that the ring holds, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u16);

/// What the kernel reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A read or write is over: bytes done, or why not.
    Transferred(Slot, Result<u32, Errno>),
    /// The sync is over.
    Synced(Result<(), Errno>),
}

/// A file and the ring by which it is read and written.
pub(super) struct Uring(ManuallyDrop<Box<Inner>>);

struct Inner {
    ring: IoUring,
    /// The kernel adds to it with each completion. Ours alone, so that O_NONBLOCK can be relied upon.
    wake: EventFd,
    flights: Box<[Flight]>,
    free: Vec<u16>,
    /// Operations pushed whose completion was not seen.
    in_kernel: usize,
    submit_failed: bool,
    // Last, so that the lock is let go when everything else is over.
    file: Flock<File>,
}

/// One request and the addresses of its data that are still to be read or written.
struct Flight {
    request: Option<Request>,
    iovecs: Vec<libc::iovec>,
    /// The first of `iovecs` that is not done.
    first: usize,
    /// How the range of a discard or zeroing is done.
    means: Option<Means>,
    done_len: u64,
    retries: u16,
    in_kernel: bool,
}

// SAFETY: the addresses in `iovecs` lie in the guest memory that `request` holds a reference to, which is mapped for the
// whole process, not for a thread, or in `ZEROS`.
unsafe impl Send for Flight {}

impl Uring {
    /// A ring for `depth` requests to `file`.
    pub(super) fn new(file: Flock<File>, depth: u16) -> io::Result<Self> {
        // One entry more for the sync.
        let ring = IoUring::new(u32::from(depth) + 1)?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(wake.as_fd().as_raw_fd())?;
        let flights = (0..depth).map(|_| Flight::new()).collect();
        let free = (0..depth).rev().collect();
        let inner = Inner {
            ring,
            wake,
            flights,
            free,
            in_kernel: 0,
            submit_failed: false,
            file,
        };
        Ok(Self(ManuallyDrop::new(Box::new(inner))))
    }

    /// Where the file or device ends.
    pub(super) fn end_of_file(&self) -> io::Result<u64> {
        // All transfers name their place, so nobody misses the one in the file.
        let mut file: &File = &self.0.file;
        file.seek(SeekFrom::End(0))
    }

    /// Keep a request and find the addresses of its data, or begin with `means` if it is a range without data.
    pub(super) fn hold(&mut self, request: Request, means: Option<Means>) -> Result<Slot, (Request, IoError)> {
        let inner = &mut self.0;
        let Some(index) = inner.free.pop() else {
            // The caller counts requests; there is always a place.
            return Err((
                request,
                IoError::System {
                    call: "io_uring",
                    errno: Errno::EBUSY,
                },
            ));
        };
        let flight = &mut inner.flights[usize::from(index)];
        let located = match request.op {
            Op::Read | Op::Write { .. } => flight.locate(Some(&request.buffer)),
            Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => flight.locate(None),
        };
        if let Err(error) = located {
            inner.free.push(index);
            return Err((request, error.into()));
        }
        flight.request = Some(request);
        flight.means = means;
        Ok(Slot(index))
    }

    /// How many requests are held.
    pub(super) fn held(&self) -> usize {
        let inner = &self.0;
        inner.flights.len() - inner.free.len()
    }

    /// The request.
    #[cfg(feature = "recorded-files")]
    pub(super) fn request(&self, slot: Slot) -> Option<&Request> {
        self.0.flights.get(usize::from(slot.0))?.request.as_ref()
    }

    /// What the request does.
    pub(super) fn op(&self, slot: Slot) -> Option<Op> {
        self.0
            .flights
            .get(usize::from(slot.0))?
            .request
            .as_ref()
            .map(|request| request.op)
    }

    /// How the request's range is discarded or zeroed, if it is about one.
    pub(super) fn means(&self, slot: Slot) -> Option<Means> {
        self.0.flights.get(usize::from(slot.0))?.means
    }

    /// Go on by other means. False: there are none.
    pub(super) fn use_means(&mut self, slot: Slot, means: Option<Means>) -> bool {
        if let Some(flight) = self.0.flights.get_mut(usize::from(slot.0))
            && !flight.in_kernel
        {
            flight.means = means;
        }
        means.is_some()
    }

    /// Is there anything to be done for the request?
    pub(super) fn has_work(&self, slot: Slot) -> bool {
        self.op(slot)
            .is_some_and(|op| matches!(op, Op::Read | Op::Write { .. }))
            || self.means(slot).is_some()
    }

    /// Stage the reading, writing, discarding or zeroing of what is left of the request.
    pub(super) fn transfer(&mut self, slot: Slot) {
        let inner = &mut self.0;
        let fd = types::Fd(inner.file.as_raw_fd());
        let Some(flight) = inner.flights.get_mut(usize::from(slot.0)) else {
            return;
        };
        if flight.in_kernel {
            return;
        }
        if flight.means == Some(Means::Zeros) {
            flight.aim_at_zeros();
        }
        let Some(request) = &flight.request else { return };
        let iovecs = &flight.iovecs[flight.first..];
        let (address, offset) = (iovecs.as_ptr(), request.offset + flight.done_len);
        // At most SEGMENT_COUNT_MAX.
        let count = u32::try_from(iovecs.len()).unwrap_or(0);
        let entry = match (request.op, flight.means.and_then(Means::mode)) {
            (Op::Read, _) => opcode::Readv::new(fd, address, count).offset(offset).build(),
            (_, Some(mode)) => opcode::Fallocate::new(fd, request.range_len())
                .offset(offset)
                .mode(mode)
                .build(),
            (_, None) => opcode::Writev::new(fd, address, count).offset(offset).build(),
        };
        flight.in_kernel = true;
        inner.push(&entry.user_data(u64::from(slot.0)));
    }

    /// Stage `fdatasync`.
    pub(super) fn sync(&mut self) {
        let inner = &mut self.0;
        let fd = types::Fd(inner.file.as_raw_fd());
        let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build();
        inner.push(&entry.user_data(SYNC));
    }

    /// Hand what was staged to the kernel. What it cannot take now stays staged for the next time.
    pub(super) fn submit(&mut self) {
        self.0.submit();
    }

    /// What the kernel reports next, if anything.
    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.0.next_event()
    }

    /// Are reports waiting?
    pub(super) fn events_waiting(&mut self) -> bool {
        !self.0.ring.completion().is_empty()
    }

    /// Is anything staged that the kernel has not taken?
    pub(super) fn is_staged(&mut self) -> bool {
        !self.0.ring.submission().is_empty()
    }

    /// Readable after a report came.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake.as_fd()
    }

    /// Make [`Uring::wake_fd`] readable by reports from now on only.
    pub(super) fn drain_wake(&self) {
        // Nothing to read is as good.
        let _ = self.0.wake.read();
    }

    /// Take account of a transfer's result. True: the request's data is all there. False: transfer the rest.
    pub(super) fn advance(
        &mut self,
        slot: Slot,
        result: Result<u32, Errno>,
        retries_max: u16,
    ) -> Result<bool, IoError> {
        match self.0.flights.get_mut(usize::from(slot.0)) {
            Some(flight) if !flight.in_kernel => flight.advance(result, retries_max),
            _ => Ok(true),
        }
    }

    /// Take the request out, if it is not in the kernel.
    pub(super) fn release(&mut self, slot: Slot) -> Option<Request> {
        let inner = &mut self.0;
        let flight = inner
            .flights
            .get_mut(usize::from(slot.0))
            .filter(|flight| !flight.in_kernel)?;
        let request = flight.request.take()?;
        inner.free.push(slot.0);
        Some(request)
    }
}

impl Inner {
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the file is open as long as `self`. The addresses and the memory behind them belong to a flight that
        // is marked as in the kernel, and which neither `release` nor `drop` lets go before its completion was seen;
        // nor does anything change its addresses. Zeros that are written are static, and only read.
        let pushed = unsafe { self.ring.submission().push(entry) };
        // There is an entry for each flight and one for the sync, and each has at most one operation.
        debug_assert!(pushed.is_ok());
        self.in_kernel += 1;
    }

    fn submit(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => return,
                Ok(_) => self.submit_failed = false,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR) => {}
                    Some(Errno::EAGAIN | Errno::EBUSY) => return,
                    _ if self.submit_failed => return,
                    _ => {
                        self.submit_failed = true;
                        return tracing::error!(%error, "the kernel takes no more requests to a volume; trying on");
                    }
                },
            }
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        loop {
            let completion = self.ring.completion().next()?;
            self.in_kernel = self.in_kernel.saturating_sub(1);
            let result = match u32::try_from(completion.result()) {
                Ok(len) => Ok(len),
                Err(_) => Err(Errno::from_raw(completion.result().saturating_neg())),
            };
            if completion.user_data() == SYNC {
                return Some(Event::Synced(result.map(|_| ())));
            }
            let Ok(index) = u16::try_from(completion.user_data()) else {
                continue;
            };
            let Some(flight) = self.flights.get_mut(usize::from(index)) else {
                continue;
            };
            flight.in_kernel = false;
            return Some(Event::Transferred(Slot(index), result));
        }
    }

    /// Wait until the kernel has nothing of ours any more. Gives up if it cannot be waited for.
    fn wait(&mut self) -> io::Result<()> {
        while self.in_kernel > 0 {
            while self.next_event().is_some() {}
            if self.in_kernel > 0 {
                match self.ring.submit_and_wait(1) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // SAFETY: nothing uses the field after this.
        let mut inner = ManuallyDrop::new(unsafe { ManuallyDrop::take(&mut self.0) });
        if inner.in_kernel == 0 {
            return drop(ManuallyDrop::into_inner(inner));
        }
        // The kernel still writes to guest memory and to the file: both stay until it is done, and so does the lock. They
        // stay for good if the thread cannot be made or cannot wait.
        let wait = move || match inner.wait() {
            Ok(()) => drop(ManuallyDrop::into_inner(inner)),
            Err(error) => {
                tracing::error!(%error, "requests to a volume cannot be waited for: their memory stays mapped")
            }
        };
        if let Err(error) = std::thread::Builder::new().name("volume-close".into()).spawn(wait) {
            tracing::error!(%error, "requests to a volume cannot be waited for: their memory stays mapped");
        }
    }
}

impl Flight {
    fn new() -> Self {
        let iovecs = Vec::with_capacity(SEGMENT_COUNT_MAX);
        Self {
            request: None,
            iovecs,
            first: 0,
            means: None,
            done_len: 0,
            retries: 0,
            in_kernel: false,
        }
    }

    /// Find the addresses of a buffer.
    fn locate(&mut self, buffer: Option<&Buffer>) -> Result<(), MemoryError> {
        self.iovecs.clear();
        (self.first, self.done_len, self.retries) = (0, 0, 0);
        let Some((buffer, memory)) = buffer.and_then(|buffer| Some((buffer, buffer.memory()?))) else {
            return Ok(());
        };
        for segment in buffer.segments() {
            let slice = memory.slice(segment.addr, segment.len as usize)?;
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            self.iovecs.push(libc::iovec {
                iov_base,
                iov_len: slice.len(),
            });
        }
        Ok(())
    }

    /// Let the next piece be zeros.
    fn aim_at_zeros(&mut self) {
        let len = self.request.as_ref().map_or(0, Request::range_len);
        let mut left = usize::try_from(len - self.done_len).unwrap_or(usize::MAX);
        self.iovecs.clear();
        self.first = 0;
        while left > 0 && self.iovecs.len() < ZEROS_COUNT {
            let iov_len = left.min(ZEROS.len());
            // The kernel only reads what it is to write to a file.
            let iov_base = ZEROS.as_ptr().cast_mut().cast();
            self.iovecs.push(libc::iovec { iov_base, iov_len });
            left -= iov_len;
        }
    }

    /// As [`Uring::advance`].
    fn advance(&mut self, result: Result<u32, Errno>, retries_max: u16) -> Result<bool, IoError> {
        let Some(request) = &self.request else { return Ok(true) };
        let (op, offset, len_wanted) = (request.op, request.offset, request.range_len());
        let allocating = self.means.is_some_and(|means| means.mode().is_some());
        let call = match op {
            Op::Read => "readv",
            _ if allocating => "fallocate",
            _ => "writev",
        };
        match result {
            // It has no length: it did everything.
            Ok(_) if allocating => self.done_len = len_wanted,
            Ok(0) if op == Op::Read => {
                return Err(IoError::EndOfFile {
                    offset: offset + self.done_len,
                });
            }
            Ok(0) => {
                return Err(IoError::System {
                    call,
                    errno: Errno::ENOSPC,
                });
            }
            Ok(len) => {
                (self.done_len, self.retries) = (self.done_len + u64::from(len), 0);
                self.skip(len as usize);
            }
            Err(Errno::EINTR | Errno::EAGAIN) if self.retries < retries_max => self.retries += 1,
            Err(errno) => return Err(IoError::System { call, errno }),
        }
        Ok(self.done_len >= len_wanted)
    }

    /// Leave out the first `len` bytes of what is left.
    fn skip(&mut self, mut len: usize) {
        while let Some(iovec) = self.iovecs.get_mut(self.first)
            && len > 0
        {
            if len < iovec.iov_len {
                iovec.iov_base = iovec.iov_base.wrapping_byte_add(len);
                iovec.iov_len -= len;
                return;
            }
            len -= iovec.iov_len;
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests;
