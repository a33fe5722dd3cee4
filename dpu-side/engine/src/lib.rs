//! The engine of the datapath: a worker thread, and nothing that knows networks or disks.
//!
//! A [`Workload`] is polled in *breaths*. While it has work the worker never sleeps; when it has been idle for a
//! while the workload arms its kicks and the worker sleeps in `epoll_wait`, so that an idle DPU costs no CPU.
//! Control code reaches the workload through [`WorkerHandle::call`]: a closure that runs on the worker between two
//! breaths, so the datapath needs no locks.
//!
//! Guests are signalled by [`Io::signal`]. The call eventfd belongs to the host, which may clear `O_NONBLOCK` on the
//! shared file description and saturate the counter; a plain `write` would then block the worker and every guest on
//! it. Calls therefore go out as `io_uring` writes, at most one outstanding per descriptor; one that does not complete
//! within [`CALL_TIMEOUT`] is cancelled and reported to [`Workload::call_broken`].
//!
//! # What it doesn't implement
//!
//! NUMA placement. Who has several workers lets their workloads speak with each other by means of its own.

mod calls;
mod io;
mod uring;
mod worker;

pub use calls::CALL_TIMEOUT;
pub use io::Io;
pub use worker::{SPIN_DEFAULT, StartError, WorkerConfig, WorkerGone, WorkerHandle, Workload, spawn};
