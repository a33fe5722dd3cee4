//! A backend that takes its time.

use std::{
    collections::VecDeque,
    sync::mpsc::{self, Receiver},
};

use outboard_storage::{Backend, Busy, Completion, Geometry, MemoryBackend, Request, ResizeError};

const MIB: u64 = 1 << 20;

/// A backend that completes nothing until its gate is opened.
pub struct Gated {
    inner: MemoryBackend,
    depth: usize,
    held: VecDeque<Request>,
    gate: Receiver<()>,
}

/// It, on a volume of zeros, and what opens its gate for one request at a time.
pub fn gated(depth: usize) -> (Box<Gated>, mpsc::Sender<()>) {
    let (open, gate) = mpsc::channel();
    (
        Box::new(Gated {
            inner: MemoryBackend::new(MIB, false),
            depth,
            held: VecDeque::new(),
            gate,
        }),
        open,
    )
}

impl Backend for Gated {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
        self.inner.resize(size_bytes)
    }
    fn depth(&self) -> usize {
        self.depth
    }
    fn submit(&mut self, request: Request) -> Result<(), Busy> {
        if self.in_flight() >= self.depth {
            return Err(Busy(request));
        }
        self.held.push_back(request);
        Ok(())
    }
    fn start(&mut self) {}
    fn complete(&mut self) -> Option<Completion> {
        if self.inner.in_flight() == 0 && !self.held.is_empty() && self.gate.try_recv().is_ok() {
            let request = self.held.pop_front().expect("it is not empty");
            self.inner.submit(request).expect("it is idle");
        }
        self.inner.complete()
    }
    fn in_flight(&self) -> usize {
        self.held.len() + self.inner.in_flight()
    }
    fn wake_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
    fn arm(&mut self) -> bool {
        false
    }
}
