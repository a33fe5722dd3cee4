//! One daemon per state directory: two would overwrite each other's records and serve the same guests.
//!
//! The lock is a `flock`, so it is free once its holder is dead, however it died, and not before: a daemon that hangs
//! keeps it, and goes on as the only one if it ever wakes up. Who holds it is the kernel's word, not a file's.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use outboard_storage::{Holder, holder_of};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::error::Failure;

/// How long a daemon that was killed may take to be gone.
pub const DYING_MAX: Duration = Duration::from_secs(1);
/// How long a daemon that was asked to stop may take: longer than it waits for requests in flight.
pub const STOPPING_MAX: Duration = Duration::from_secs(10);
/// Between two looks at the lock.
const PAUSE: Duration = Duration::from_millis(1);

/// What to do about a daemon that has the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfHeld {
    /// Give up at once.
    Fail,
    /// It may be dying: wait a moment.
    WaitForDeath,
    /// Ask it to stop, and wait until it has.
    TakeOver,
}

/// The lock of a state directory. Freed when dropped.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

impl StateLock {
    /// Takes the lock of `state_dir`, which is made if need be.
    ///
    /// # Errors
    /// A daemon has it and keeps it, or the directory cannot be used.
    pub fn take(state_dir: &Path, if_held: IfHeld) -> Result<Self, Failure> {
        let path = state_dir.join("lock");
        fs::create_dir_all(state_dir).map_err(|e| {
            Failure::io(
                "make the directory",
                state_dir,
                &e,
                "check its parent's owner, or state_dir",
            )
        })?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(|e| Failure::io("open", &path, &e, "check the directory's owner"))?;
        let wait = match if_held {
            IfHeld::Fail => Duration::ZERO,
            IfHeld::WaitForDeath => DYING_MAX,
            IfHeld::TakeOver => STOPPING_MAX,
        };
        Taking { path, asked: None }.take(file, if_held, wait)
    }
}

struct Taking {
    path: PathBuf,
    /// Who was asked to stop.
    asked: Option<u32>,
}

impl Taking {
    fn take(mut self, mut file: File, if_held: IfHeld, wait: Duration) -> Result<StateLock, Failure> {
        let end = Instant::now() + wait;
        loop {
            file = match self.attempt(file)? {
                Ok(lock) => return Ok(lock),
                Err(file) => file,
            };
            if let (IfHeld::TakeOver, Holder::Process { pid, .. }) = (if_held, holder_of(&file))
                && self.asked != Some(pid)
            {
                self.ask_to_stop(&file, pid)?;
            }
            if Instant::now() >= end {
                return Err(self.held(&holder_of(&file)));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The lock, or the file again if somebody has it.
    fn attempt(&self, file: File) -> Result<Result<StateLock, File>, Failure> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Ok(StateLock { _file: lock })),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => Ok(Err(file)),
            Err((_, e)) => Err(Failure::io(
                "lock",
                &self.path,
                &e.into(),
                "use a local file system for state_dir",
            )),
        }
    }

    /// Asks the holder to stop. Whoever is asked is the holder for sure: it is pinned by a descriptor, and still the
    /// holder after that.
    fn ask_to_stop(&mut self, file: &File, pid: u32) -> Result<(), Failure> {
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(process) = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
            return Ok(());
        };
        if !matches!(holder_of(file), Holder::Process { pid: now, .. } if now == pid) {
            return Ok(());
        }
        match pidfd_send_signal(process, Signal::TERM) {
            Ok(()) => {
                tracing::info!("taking over from process {pid}, which was asked to stop");
                self.asked = Some(pid);
                Ok(())
            }
            Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(Failure::new(
                format!("process {pid} cannot be asked to stop: {e}"),
                "run as the same user, or stop it as whoever runs it",
            )),
        }
    }

    fn held(&self, holder: &Holder) -> Failure {
        let directory = self.path.parent().unwrap_or(&self.path).display();
        match holder {
            Holder::Process { pid, .. } => Failure::new(
                format!("another outboard-dpu uses the state directory {directory}: {holder}"),
                format!(
                    "`outboard-dpu run --take-over` takes over from one that works, `kill -9 {pid}` ends one that hangs; or \
                     give this one another state_dir"
                ),
            ),
            Holder::ThisProcess | Holder::Unknown => Failure::new(
                format!("another outboard-dpu uses the state directory {directory}"),
                "stop it, or give this one another state_dir",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once() {
        let directory = tempfile::tempdir().unwrap();
        let take = || StateLock::take(directory.path(), IfHeld::Fail);
        let lock = take().unwrap();
        let held = take().unwrap_err();
        assert!(held.to_string().contains("another outboard-dpu uses"), "{held}");
        drop(lock);
        take().unwrap();
    }

    #[test]
    fn a_dying_holder_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let lock = StateLock::take(directory.path(), IfHeld::Fail).unwrap();
        let start = Instant::now();
        let dying = std::thread::spawn(move || {
            std::thread::sleep(DYING_MAX / 10);
            drop(lock);
        });
        StateLock::take(directory.path(), IfHeld::WaitForDeath).unwrap();
        assert!(start.elapsed() >= DYING_MAX / 10 && start.elapsed() < DYING_MAX);
        dying.join().unwrap();
    }
}
