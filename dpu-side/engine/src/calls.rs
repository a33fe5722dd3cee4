//! Calls to guests: who is signalled, what is outstanding, what is overdue.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use outboard_controls::{Check, on};
use outboard_ring::CallFd;

use crate::uring::Uring;

/// A call whose write has not completed after this long is broken: its host filled the eventfd's counter, which no
/// number of real calls does.
pub const CALL_TIMEOUT: Duration = Duration::from_millis(100);

/// The call of one descriptor. It holds the descriptor open while anything is staged or outstanding, so that its
/// number cannot be given to another file meanwhile.
struct Slot {
    call: CallFd,
    state: State,
    /// Signalled again since the write went out; the guest may have missed that.
    again: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Wanted in this breath.
    Wanted,
    /// The kernel has it since then.
    Outstanding(Instant),
    /// Overdue, reported and being cancelled; more signals are ignored.
    Broken,
}

/// All calls of one worker.
pub(crate) struct Calls {
    uring: Uring,
    /// By descriptor number.
    slots: Vec<Option<Slot>>,
    wanted: Vec<u32>,
    outstanding: Vec<u32>,
    broken: Vec<CallFd>,
}

impl Calls {
    pub(crate) fn new() -> io::Result<Self> {
        let capacity = 1024;
        Ok(Self {
            uring: Uring::new()?,
            slots: std::iter::repeat_with(|| None).take(capacity).collect(),
            wanted: Vec::with_capacity(capacity),
            outstanding: Vec::with_capacity(capacity),
            broken: Vec::new(),
        })
    }

    pub(crate) fn uring(&self) -> &Uring {
        &self.uring
    }

    /// Signal `call` at the end of this breath.
    pub(crate) fn signal(&mut self, call: &CallFd) {
        if !on(Check::NonBlockingCall) {
            // What a test build shows: on a descriptor that its host made blocking, this stops the whole worker.
            let _ = nix::unistd::write(call, &1u64.to_ne_bytes());
            return;
        }
        let Ok(key) = u32::try_from(call.as_fd().as_raw_fd()) else {
            return;
        };
        let index = key as usize;
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        match &mut self.slots[index] {
            Some(slot) => slot.again |= matches!(slot.state, State::Outstanding(_)),
            empty => {
                *empty = Some(Slot {
                    call: call.clone(),
                    state: State::Wanted,
                    again: false,
                });
                self.wanted.push(key);
            }
        }
    }

    /// Hand all wanted calls to the kernel, take back what it has completed, and find what is overdue.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.wanted.is_empty() && self.outstanding.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        self.submit_wanted(now)?;
        self.reap();
        if !self.wanted.is_empty() {
            self.submit_wanted(now)?;
            self.reap();
        }
        self.break_overdue(now)
    }

    /// When the next outstanding call is overdue.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let since = |&key: &u32| match self.slots[key as usize].as_ref()?.state {
            State::Outstanding(since) => Some(since + CALL_TIMEOUT),
            State::Wanted | State::Broken => None,
        };
        self.outstanding.iter().filter_map(since).min()
    }

    /// Is a call waiting to be handed to the kernel?
    pub(crate) fn has_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// One of the calls found broken since this was last asked.
    pub(crate) fn take_broken(&mut self) -> Option<CallFd> {
        self.broken.pop()
    }

    fn submit_wanted(&mut self, now: Instant) -> io::Result<()> {
        while let Some(key) = self.wanted.pop() {
            let Some(slot) = &mut self.slots[key as usize] else {
                continue;
            };
            if !self.uring.stage_write(&slot.call, key) {
                self.uring.submit()?;
                if !self.uring.stage_write(&slot.call, key) {
                    self.wanted.push(key); // the kernel takes nothing now; the next breath tries again
                    return Ok(());
                }
            }
            slot.state = State::Outstanding(now);
            self.outstanding.push(key);
        }
        self.uring.submit()
    }

    fn reap(&mut self) {
        while let Some((key, result)) = self.uring.reap() {
            if let Some(at) = self.outstanding.iter().position(|&k| k == key) {
                self.outstanding.swap_remove(at);
            }
            let Some(entry) = self.slots.get_mut(key as usize) else {
                continue;
            };
            let Some(slot) = entry else { continue };
            let delivered = result == 8;
            if slot.state != State::Broken && !delivered {
                self.broken.push(slot.call.clone());
            }
            if slot.state != State::Broken && delivered && slot.again {
                slot.state = State::Wanted;
                slot.again = false;
                self.wanted.push(key);
            } else {
                *entry = None;
            }
        }
    }

    fn break_overdue(&mut self, now: Instant) -> io::Result<()> {
        let mut cancelled = false;
        for &key in &self.outstanding {
            let Some(slot) = &mut self.slots[key as usize] else {
                continue;
            };
            let State::Outstanding(since) = slot.state else {
                continue;
            };
            // Not cancelled now (the queue is full): it stays overdue, and the next breath does it.
            if now.saturating_duration_since(since) >= CALL_TIMEOUT && self.uring.stage_cancel(key) {
                slot.state = State::Broken;
                self.broken.push(slot.call.clone());
                cancelled = true;
            }
        }
        if cancelled { self.uring.submit() } else { Ok(()) }
    }
}
