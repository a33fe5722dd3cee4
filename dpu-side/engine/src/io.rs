//! What the worker lends to its workload.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use outboard_ring::{CallFd, Signals};

use crate::calls::Calls;

/// Events taken per wake-up. It does not matter which were reported: everything is polled after a wake-up.
const EVENTS_PER_WAKE_MAX: usize = 64;

/// The worker's means to signal guests and to be woken by them.
pub struct Io {
    epoll: Epoll,
    pub(crate) calls: Calls,
    pub(crate) stop: bool,
}

impl Io {
    pub(crate) fn new(calls: Calls) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let io = Self {
            epoll,
            calls,
            stop: false,
        };
        io.add(io.calls.uring().completion_fd())?;
        Ok(io)
    }

    /// Signal a guest at the end of this breath; several signals of one descriptor become one. Never blocks.
    pub fn signal(&mut self, call: &CallFd) {
        self.calls.signal(call);
    }

    /// From now on, wake the worker whenever `fd` becomes readable *again* (edge triggered): it need not be drained.
    ///
    /// Undo it by [`Io::unwatch`] before closing `fd`: the host holds the same file description, and the kernel
    /// forgets a watched descriptor only when the last copy of it is closed.
    pub fn watch(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.add(fd)
    }

    /// Stop watching `fd`; nothing happens if it was not watched.
    pub fn unwatch(&mut self, fd: BorrowedFd<'_>) {
        if let Err(e) = self.epoll.delete(fd)
            && e != Errno::ENOENT
        {
            tracing::warn!("the worker could not stop watching a descriptor: {e}");
        }
    }

    fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0);
        Ok(self.epoll.add(fd, event)?)
    }

    /// Sleep until a watched descriptor becomes readable or a call may be overdue.
    pub(crate) fn sleep(&self) -> io::Result<()> {
        let timeout = match self.calls.deadline() {
            None => EpollTimeout::NONE,
            // One more, since the timeout counts whole milliseconds and must not end before the deadline.
            Some(deadline) => {
                let left_ms = deadline.saturating_duration_since(Instant::now()).as_millis() + 1;
                EpollTimeout::from(u16::try_from(left_ms).unwrap_or(u16::MAX))
            }
        };
        let mut events = [EpollEvent::empty(); EVENTS_PER_WAKE_MAX];
        match self.epoll.wait(&mut events, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Watch the worker's own wake-up.
    pub(crate) fn watch_wake(&self, wake: impl AsFd) -> io::Result<()> {
        self.add(wake.as_fd())
    }
}

impl Signals for Io {
    fn signal(&mut self, call: &CallFd) {
        Self::signal(self, call);
    }
}
