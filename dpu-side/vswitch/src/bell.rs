//! Waking a worker that sleeps, and only one that sleeps: a frame handed over costs no system call while both are awake.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::event::{EventfdFlags, eventfd};

use crate::rest::Rest;

/// The bell of one worker.
#[derive(Debug)]
pub struct Bell {
    rest: Rest,
    wake: OwnedFd,
}

impl Bell {
    /// A bell of a worker that is awake.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            rest: Rest::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Becomes readable anew whenever its worker is to wake up; it need not be drained.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Its worker is about to sleep. What it was given before this is to be looked for after it.
    pub(crate) fn lie_down(&self) {
        self.rest.lie_down();
    }

    /// Its worker is awake.
    pub(crate) fn get_up(&self) {
        self.rest.get_up();
    }

    /// Its worker was given something.
    pub(crate) fn ring(&self) {
        if self.rest.disturb()
            && let Err(error) = rustix::io::write(&self.wake, &1u64.to_ne_bytes())
        {
            // The counter cannot be full: each write follows a sleep of its own.
            tracing::error!("a worker of the datapath could not be woken: {error}");
        }
    }
}
