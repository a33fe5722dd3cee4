//! The worker thread and the handle on it.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::eventfd::{EfdFlags, EventFd},
    unistd::Pid,
};
use outboard_ring::CallFd;

use crate::{calls::Calls, io::Io};

/// How long a worker polls in vain before it sleeps, unless configured otherwise.
pub const SPIN_DEFAULT: Duration = Duration::from_micros(50);

/// Closures run between two breaths; the rest wait for the next.
const COMMANDS_PER_BREATH_MAX: usize = 32;

/// What a worker polls.
pub trait Workload: Send + 'static {
    /// Do a bounded amount of work. True if there was any.
    fn breathe(&mut self, io: &mut Io) -> bool;
    /// Arm all kicks. True if work is waiting all the same, which the next [`Workload::breathe`] will do; the worker
    /// does not sleep then.
    fn before_sleep(&mut self, io: &mut Io) -> bool;
    /// Disarm the kicks: the worker polls again.
    fn after_sleep(&mut self, io: &mut Io);
    /// `call` could not be signalled within [`crate::CALL_TIMEOUT`], or not at all. Its device should be failed; until
    /// then every further signal takes that long again.
    fn call_broken(&mut self, call: &CallFd, io: &mut Io);
}

/// How to run a worker.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the thread.
    pub name: String,
    /// Core to pin it to.
    pub core: Option<usize>,
    /// How long to poll in vain before sleeping.
    pub spin: Duration,
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel, or a container's filter, forbids `io_uring`.
    #[error(
        "the kernel does not permit io_uring to this process ({0}), and without it a host could block the datapath"
    )]
    IoUringForbidden(io::Error),
    /// `io_uring` could not be set up for want of memory or descriptors.
    #[error("io_uring could not be set up: {0}")]
    IoUring(io::Error),
    /// The core does not exist or is not allowed to this process.
    #[error("the worker cannot be pinned to core {core}: {source}")]
    Core {
        /// The configured core.
        core: usize,
        /// What the kernel says.
        source: Errno,
    },
    /// Threads, epoll or eventfds ran out.
    #[error("the worker cannot start: {0}")]
    Resources(#[from] io::Error),
}

impl StartError {
    /// What the operator can do.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::IoUringForbidden(_) => {
                "set sysctl kernel.io_uring_disabled to 0, and in a container use a seccomp profile that allows io_uring"
            }
            Self::IoUring(_) => "raise the limits on locked memory (ulimit -l) and open files (ulimit -n)",
            Self::Core { .. } => "name a core that `taskset -cp $$` shows, or none",
            Self::Resources(_) => "raise the limits on open files (ulimit -n) and processes (ulimit -u)",
        }
    }

    fn of_io_uring(error: io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EINVAL) => Self::IoUringForbidden(error),
            _ => Self::IoUring(error),
        }
    }
}

/// The worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the datapath worker has ended")]
pub struct WorkerGone;

type Command<W> = Box<dyn FnOnce(&mut W, &mut Io) + Send>;

/// A way to run code on a worker, between two breaths. When the last handle is dropped the worker ends.
pub struct WorkerHandle<W> {
    mailbox: Arc<Mailbox<W>>,
}

struct Mailbox<W> {
    /// None only while dropping.
    commands: Option<Sender<Command<W>>>,
    wake: Arc<EventFd>,
}

impl<W> Drop for Mailbox<W> {
    fn drop(&mut self) {
        self.commands = None;
        wake(&self.wake);
    }
}

/// The counter cannot overflow: nothing but this adds to it, one at a time.
fn wake(wake: &EventFd) {
    if let Err(e) = wake.write(1) {
        tracing::error!("the datapath worker could not be woken: {e}");
    }
}

impl<W> Clone for WorkerHandle<W> {
    fn clone(&self) -> Self {
        Self {
            mailbox: Arc::clone(&self.mailbox),
        }
    }
}

impl<W: Workload> WorkerHandle<W> {
    /// Run `f` on the worker and wait for its result. Never call it on the worker itself.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut W, &mut Io) -> R + Send + 'static,
    ) -> Result<R, WorkerGone> {
        let (reply, result) = mpsc::sync_channel(1);
        self.post(move |workload, io| {
            // Nobody is left to hear the result only if the caller's thread died; the work is done all the same.
            let _ = reply.send(f(workload, io));
        })?;
        result.recv().map_err(|_| WorkerGone)
    }

    /// Run `f` on the worker without waiting for it.
    pub fn post(&self, f: impl FnOnce(&mut W, &mut Io) + Send + 'static) -> Result<(), WorkerGone> {
        let commands = self.mailbox.commands.as_ref().ok_or(WorkerGone)?;
        commands.send(Box::new(f)).map_err(|_| WorkerGone)?;
        wake(&self.mailbox.wake);
        Ok(())
    }

    /// End the worker after this breath; what was called before runs first.
    pub fn stop(&self) {
        // Gone already is as good.
        let _ = self.post(|_, io| io.stop = true);
    }
}

/// Start a worker. It runs until [`WorkerHandle::stop`], or until its last handle is dropped.
pub fn spawn<W: Workload>(
    config: WorkerConfig,
    workload: W,
) -> Result<(WorkerHandle<W>, JoinHandle<io::Result<()>>), StartError> {
    let (commands, inbox) = mpsc::channel();
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?);
    let wake_in_worker = Arc::clone(&wake);
    let (started, start) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(config.name.clone()).spawn(move || {
        let prepared = prepare(&config, &wake_in_worker);
        match prepared {
            Err(e) => {
                let _ = started.send(Err(e));
                Ok(())
            }
            Ok(io) => {
                let _ = started.send(Ok(()));
                Worker {
                    workload,
                    io,
                    inbox,
                    spin: config.spin,
                }
                .run()
            }
        }
    })?;
    match start.recv() {
        Ok(Ok(())) => Ok((
            WorkerHandle {
                mailbox: Arc::new(Mailbox {
                    commands: Some(commands),
                    wake,
                }),
            },
            thread,
        )),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(io::Error::other("its thread ended at once").into()),
    }
}

fn prepare(config: &WorkerConfig, wake: &EventFd) -> Result<Io, StartError> {
    if let Some(core) = config.core {
        let mut cores = CpuSet::new();
        let pinned = cores
            .set(core)
            .and_then(|()| sched_setaffinity(Pid::from_raw(0), &cores));
        pinned.map_err(|source| StartError::Core { core, source })?;
    }
    let io = Io::new(Calls::new().map_err(StartError::of_io_uring)?)?;
    io.watch_wake(wake)?;
    Ok(io)
}

struct Worker<W> {
    workload: W,
    io: Io,
    inbox: Receiver<Command<W>>,
    spin: Duration,
}

impl<W: Workload> Worker<W> {
    fn run(mut self) -> io::Result<()> {
        let mut idle_since: Option<Instant> = None;
        while let Some(more_commands) = self.run_commands() {
            let worked = self.workload.breathe(&mut self.io);
            self.finish_breath()?;
            if worked || more_commands {
                idle_since = None;
                continue;
            }
            let now = Instant::now();
            if now.duration_since(*idle_since.get_or_insert(now)) < self.spin {
                std::hint::spin_loop();
                continue;
            }
            self.sleep()?;
            idle_since = None;
        }
        Ok(())
    }

    /// Whether more may be waiting (the worker must not sleep then, for their wake-up may be spent); none when the
    /// worker has to end.
    fn run_commands(&mut self) -> Option<bool> {
        for _ in 0..COMMANDS_PER_BREATH_MAX {
            if self.io.stop {
                return None;
            }
            match self.inbox.try_recv() {
                Ok(command) => command(&mut self.workload, &mut self.io),
                Err(TryRecvError::Empty) => return (!self.io.stop).then_some(false),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
        (!self.io.stop).then_some(true)
    }

    fn finish_breath(&mut self) -> io::Result<()> {
        self.io.calls.flush()?;
        while let Some(call) = self.io.calls.take_broken() {
            self.workload.call_broken(&call, &mut self.io);
        }
        Ok(())
    }

    fn sleep(&mut self) -> io::Result<()> {
        let waiting = self.workload.before_sleep(&mut self.io);
        if !waiting {
            self.finish_breath()?;
            // A command that came meanwhile has woken the epoll already, since its wake-up is an edge of its own.
            if !self.io.calls.has_wanted() {
                self.io.sleep()?;
            }
        }
        self.workload.after_sleep(&mut self.io);
        Ok(())
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
