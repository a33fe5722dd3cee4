//! Volumes in a file or on a block device, through `io_uring`.
//!
//! Reads and writes go through the page cache, with the guest's memory as the kernel's buffer. A flush is `fdatasync`;
//! so is the second half of a durable write. Only one runs at a time, and one covers everything that waited for it:
//! the kernel reports a failed write-back once per open file, so that of two at the same time one would succeed though
//! data is lost.
//!
//! A discard punches a hole. Zeros come from a hole where the room may be given back, else from the file system, and
//! where it cannot either (tmpfs keeps no zeroed room) they are written, piece by piece.

mod means;
mod open;
#[cfg(feature = "recorded-files")]
mod recorder;
mod syncs;
#[allow(unsafe_code)]
mod uring;

#[cfg(feature = "recorded-files")]
use std::path::Path;
use std::{collections::VecDeque, fs::File, io, os::fd::BorrowedFd};

use means::Abilities;
use nix::{errno::Errno, fcntl::Flock};
pub use open::{Holder, OpenError, holder_of, open_file};
use syncs::Syncs;
use uring::{Event, Slot, Uring};

use crate::{Backend, Busy, Completion, Geometry, IoError, Op, Request, ResizeError, backend::check_size};

/// Requests in flight.
const DEPTH: u16 = 128;
/// How often an operation that the kernel says to repeat is repeated.
const RETRIES_MAX: u16 = 64;

/// A volume in a file or on a block device. Made by [`open_file`].
pub struct FileBackend {
    geometry: Geometry,
    uring: Uring,
    abilities: Abilities,
    syncs: Syncs<Slot>,
    sync_retries: u16,
    /// Completions that the kernel was not, or is no longer, needed for.
    finished: VecDeque<Completion>,
    #[cfg(feature = "recorded-files")]
    recorder: recorder::Recorder,
}

impl FileBackend {
    /// Serve `file`, which is locked and has the size that `geometry` says.
    fn new(file: Flock<File>, geometry: Geometry) -> io::Result<Self> {
        Ok(Self {
            geometry,
            uring: Uring::new(file, DEPTH)?,
            abilities: Abilities::new(),
            syncs: Syncs::new(usize::from(DEPTH)),
            sync_retries: 0,
            finished: VecDeque::with_capacity(usize::from(DEPTH)),
            #[cfg(feature = "recorded-files")]
            recorder: recorder::Recorder::off(),
        })
    }

    /// Keep a record of what is done to the volume in `path`, if records are asked for.
    #[cfg(feature = "recorded-files")]
    fn recorded(self, path: &Path) -> io::Result<Self> {
        Ok(Self {
            recorder: recorder::Recorder::new(path)?,
            ..self
        })
    }

    /// Check a request and bring it on its way.
    fn begin(&mut self, request: Request) {
        let op = request.op;
        let refusal = match self.geometry.check(&request) {
            Err(error) => Some(error),
            Ok(()) if self.syncs.latched() && op != Op::Read => Some(IoError::Latched),
            Ok(()) => None,
        };
        if let Some(error) = refusal {
            return self.finished.push_back(Completion {
                request,
                result: Err(error),
            });
        }
        let len = request.range_len();
        match (self.uring.hold(request, self.abilities.first(op)), op) {
            (Err((request, error)), _) => self.finished.push_back(Completion {
                request,
                result: Err(error),
            }),
            (Ok(slot), Op::Flush) => self.syncs.join(slot),
            (Ok(slot), _) if len > 0 && self.uring.has_work(slot) => self.uring.transfer(slot),
            (Ok(slot), op) if op.is_durable() => self.syncs.join(slot),
            (Ok(slot), _) => self.finish(slot, Ok(())),
        }
    }

    fn finish(&mut self, slot: Slot, result: Result<(), IoError>) {
        if let Some(request) = self.uring.release(slot) {
            self.finished.push_back(Completion { request, result });
        }
    }

    /// Take note of what the kernel reports.
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Synced(result) => self.on_synced(result),
            Event::Transferred(slot, result) => match self.advance(slot, result) {
                Ok(true) => self.on_transferred(slot),
                Ok(false) => self.uring.transfer(slot),
                Err(error) => self.finish(slot, Err(error)),
            },
        }
    }

    /// Take account of what was done. True: that was all.
    fn advance(&mut self, slot: Slot, result: Result<u32, Errno>) -> Result<bool, IoError> {
        let (Some(op), Some(means)) = (self.uring.op(slot), self.uring.means(slot)) else {
            return self.uring.advance(slot, result, RETRIES_MAX);
        };
        match result {
            Err(errno) if !matches!(errno, Errno::EINTR | Errno::EAGAIN) => {
                match self.abilities.next(op, means, errno) {
                    Ok(means) => Ok(!self.uring.use_means(slot, means)),
                    Err(errno) => Err(IoError::System {
                        call: if means.mode().is_some() { "fallocate" } else { "writev" },
                        errno,
                    }),
                }
            }
            result => self.uring.advance(slot, result, RETRIES_MAX),
        }
    }

    fn on_transferred(&mut self, slot: Slot) {
        #[cfg(feature = "recorded-files")]
        if let Some(request) = self.uring.request(slot) {
            match request.op {
                Op::Write { .. } => self.recorder.written(request),
                Op::WriteZeroes { len, .. } => self.recorder.zeroed(request.offset, len),
                // A discard promises nothing.
                Op::Read | Op::Flush | Op::Discard { .. } => {}
            }
        }
        match self.uring.op(slot) {
            Some(op) if op.is_durable() && self.syncs.latched() => self.finish(slot, Err(IoError::Latched)),
            Some(op) if op.is_durable() => self.syncs.join(slot),
            _ => self.finish(slot, Ok(())),
        }
    }

    fn on_synced(&mut self, result: Result<(), Errno>) {
        if let Err(Errno::EINTR | Errno::EAGAIN) = result
            && self.sync_retries < RETRIES_MAX
        {
            self.sync_retries += 1;
            return self.uring.sync();
        }
        self.sync_retries = 0;
        #[cfg(feature = "recorded-files")]
        self.recorder.sync_ended(result.is_ok());
        if let Err(errno) = result {
            tracing::error!(%errno, "fdatasync of a volume failed: it takes no more writes until it is attached again");
        }
        self.syncs.ended(result.is_ok());
        while let Some((slot, covered)) = self.syncs.next_over() {
            let result = match (covered, result) {
                (true, Ok(())) => Ok(()),
                (true, Err(errno)) => Err(IoError::System {
                    call: "fdatasync",
                    errno,
                }),
                (false, _) => Err(IoError::Latched),
            };
            self.finish(slot, result);
        }
    }
}

impl Backend for FileBackend {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn resize(&mut self, size_bytes: u64) -> Result<(), ResizeError> {
        check_size(size_bytes)?;
        let measured = self.uring.end_of_file();
        let found_bytes = measured.map_err(|error| ResizeError::Measure {
            errno: error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw),
        })?;
        if found_bytes < size_bytes {
            return Err(ResizeError::TooSmall {
                found_bytes,
                size_bytes,
            });
        }
        self.geometry.size_bytes = size_bytes;
        Ok(())
    }

    fn depth(&self) -> usize {
        usize::from(DEPTH)
    }

    fn submit(&mut self, request: Request) -> Result<(), Busy> {
        if self.in_flight() >= self.depth() {
            return Err(Busy(request));
        }
        self.begin(request);
        Ok(())
    }

    fn start(&mut self) {
        if self.syncs.begin() {
            #[cfg(feature = "recorded-files")]
            self.recorder.sync_begins();
            self.uring.sync();
        }
        self.uring.submit();
    }

    fn complete(&mut self) -> Option<Completion> {
        loop {
            if let Some(completion) = self.finished.pop_front() {
                return Some(completion);
            }
            match self.uring.next_event() {
                Some(event) => self.on_event(event),
                None => {
                    // What the last events gave rise to: the rest of a short write, the next sync.
                    self.start();
                    return None;
                }
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.uring.held() + self.finished.len()
    }

    fn wake_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.uring.wake_fd())
    }

    fn arm(&mut self) -> bool {
        self.uring.drain_wake();
        // What the kernel had no room for brings no report: whoever slept on that would sleep for good.
        !self.finished.is_empty() || self.uring.events_waiting() || self.uring.is_staged()
    }
}

#[cfg(test)]
mod tests;
