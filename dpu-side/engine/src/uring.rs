//! The only unsafe code of the engine: entries for `io_uring`, which takes raw descriptors and pointers.

use std::{io, os::fd::AsRawFd};

use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use outboard_ring::CallFd;

/// Entries of the submission queue; more calls than this in one breath take more than one submission.
const ENTRIES: u32 = 256;
/// Threads the kernel may use for writes that a host made blocking. A well-behaved host's writes need none.
const BLOCKED_WRITES_MAX: u32 = 16;
/// What a call writes: eventfds add it to their counter.
static ONE: u64 = 1;
/// `user_data` of cancellations, whose completions mean nothing. Descriptors are never negative, so never this.
const CANCEL: u64 = u64::MAX;

/// An `io_uring` that does nothing but write 8-byte ones.
pub(crate) struct Uring {
    ring: IoUring,
}

impl Uring {
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let mut max_workers = [BLOCKED_WRITES_MAX, BLOCKED_WRITES_MAX];
        ring.submitter().register_iowq_max_workers(&mut max_workers)?;
        Ok(Self { ring })
    }

    /// The descriptor that becomes readable when a completion waits.
    pub(crate) fn completion_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.ring`, which the returned borrow keeps alive.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Stage a write of one to `call`. The caller keeps `call` open until [`Uring::reap`] has reported its key.
    /// False if the queue is full: [`Uring::submit`] and try again.
    pub(crate) fn stage_write(&mut self, call: &CallFd, key: u32) -> bool {
        use std::os::fd::AsFd;
        let fd = types::Fd(call.as_fd().as_raw_fd());
        let entry = opcode::Write::new(fd, (&raw const ONE).cast(), 8)
            .build()
            .user_data(u64::from(key));
        // SAFETY: the buffer is a static of 8 bytes; the descriptor stays open until the completion (see above), and
        // were it closed early the kernel would only report EBADF.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    /// Stage the cancellation of the write staged as `key`; its completion is then reported with an error.
    pub(crate) fn stage_cancel(&mut self, key: u32) -> bool {
        let entry = opcode::AsyncCancel::new(u64::from(key)).build().user_data(CANCEL);
        // SAFETY: the entry refers to no memory and no descriptor.
        unsafe { self.ring.submission().push(&entry) }.is_ok()
    }

    /// Hand everything staged to the kernel; never waits for a completion. What the kernel cannot take now stays staged.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        let staged = self.ring.submission();
        // Completions beyond the queue's room are kept by the kernel until it is next entered.
        if staged.is_empty() && !staged.cq_overflow() {
            return Ok(());
        }
        drop(staged);
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN | Errno::EBUSY | Errno::EINTR) => Ok(()),
                _ => Err(e),
            },
        }
    }

    /// The next completed write: its key and its result (negative: an errno). Never blocks.
    pub(crate) fn reap(&mut self) -> Option<(u32, i32)> {
        loop {
            let completion = self.ring.completion().next()?;
            if let Ok(key) = u32::try_from(completion.user_data()) {
                return Some((key, completion.result()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::sys::eventfd::EventFd;

    use super::*;

    #[test]
    fn completions_beyond_the_queues_room_are_reported_too() {
        let event = EventFd::new().unwrap();
        let call = CallFd::new(event.into()).unwrap();
        let mut uring = Uring::new().unwrap();
        // More than the completion queue holds, which is twice as long as the submission queue.
        let wanted = 3 * ENTRIES;
        for key in 0..wanted {
            if !uring.stage_write(&call, key) {
                uring.submit().unwrap();
                assert!(uring.stage_write(&call, key));
            }
        }
        uring.submit().unwrap();
        let mut reaped = 0;
        let end = Instant::now() + Duration::from_secs(60);
        while reaped < wanted as usize && Instant::now() < end {
            uring.submit().unwrap();
            reaped += std::iter::from_fn(|| uring.reap()).count();
        }
        assert_eq!(reaped, wanted as usize);
        assert_eq!(uring.reap(), None);
    }
}
