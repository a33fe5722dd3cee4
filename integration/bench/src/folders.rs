//! Folders of a run, what was changed on the machine for it, and that nothing of that stays behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process, thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{huge_pages::HugePages, launch::OwnSession};

const PREFIX: &str = "outboard-bench.";
const SHARED_MEMORY: &str = "/dev/shm";
/// Exit status of a program that a signal ended, as shells count: 128 and the signal's number.
const SIGNAL_STATUS: i32 = 128;

/// What was changed on the machine for a run.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The priority of our own session.
    pub session: OwnSession,
    /// The kernel's pool of huge pages.
    pub huge_pages: HugePages,
}

impl Changes {
    fn put_back(&self) {
        self.session.put_back();
        self.huge_pages.put_back();
    }
}

/// The folders of a run. Dropping it removes them, and puts back what was changed.
#[derive(Debug)]
pub struct Folders {
    /// Sockets, configuration and logs.
    pub run: PathBuf,
    /// On tmpfs: volumes that are files in memory.
    pub memory: PathBuf,
    /// On a disk: volumes that are not.
    pub disk: PathBuf,
    keep: bool,
    changes: Changes,
}

impl Folders {
    /// Makes them, removes those of runs that were killed, and sees to it that a signal removes them too. `keep` leaves
    /// the folder with configuration and logs.
    pub fn new(results: &Path, keep: bool, changes: Changes) -> io::Result<Self> {
        let own = format!("{PREFIX}{}", process::id());
        let temporary = std::env::temp_dir();
        let shared = Path::new(SHARED_MEMORY);
        let memory = if shared.is_dir() { shared } else { temporary.as_path() };
        for folder in [&temporary, memory, results] {
            remove_stale(folder)?;
        }
        let folders = Self {
            run: temporary.join(&own),
            memory: memory.join(&own).join("volumes"),
            disk: results.join(&own),
            keep,
            changes,
        };
        for folder in [&folders.run, &folders.memory, &folders.disk] {
            fs::create_dir_all(folder)?;
        }
        folders.remove_at_signals()?;
        Ok(folders)
    }

    fn all(&self) -> Vec<PathBuf> {
        let volumes = [self.memory.clone(), self.disk.clone()];
        // where there is no /dev/shm, the volumes in memory are below the run's folder
        let mut all: Vec<PathBuf> = volumes.into();
        if !self.keep {
            all.extend(self.memory.parent().map(Path::to_owned));
            all.push(self.run.clone());
        }
        all
    }

    /// Children end with the thread that started them, the main one; what is left is ours to remove.
    fn remove_at_signals(&self) -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let (all, changes) = (self.all(), self.changes.clone());
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                changes.put_back();
                remove(&all);
                process::exit(SIGNAL_STATUS + signal);
            }
        });
        Ok(())
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        self.changes.put_back();
        remove(&self.all());
    }
}

fn remove(folders: &[PathBuf]) {
    for folder in folders {
        // what is not there any more needs no removing
        let _ = fs::remove_dir_all(folder);
    }
}

/// Removes what runs left whose process is gone.
fn remove_stale(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let pid: Option<u32> = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // another user's is not ours to remove
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_ended_runs_left_is_removed() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        // process ids are at most 2^22 (proc(5))
        let names = [
            "outboard-bench.4194999".to_owned(),
            format!("{PREFIX}{}", process::id()),
            "outboard-bench.x".into(),
        ];
        for name in &names {
            fs::create_dir(folder.path().join(name))?;
        }
        remove_stale(folder.path())?;
        let left = names.map(|name| folder.path().join(name).exists());
        assert_eq!(left, [false, true, true]);
        Ok(())
    }

    #[test]
    fn folders_go_with_the_run() -> io::Result<()> {
        let results = tempfile::tempdir()?;
        let changes = Changes {
            session: OwnSession::put_first(),
            huge_pages: HugePages::default(),
        };
        let folders = Folders::new(results.path(), false, changes)?;
        let paths = [folders.run.clone(), folders.memory.clone(), folders.disk.clone()];
        assert!(paths.iter().all(|path| path.is_dir()));
        drop(folders);
        assert!(!paths.iter().any(|path| path.exists()));
        Ok(())
    }
}
