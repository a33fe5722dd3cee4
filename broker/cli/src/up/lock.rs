//! One `up` per run directory.

use std::{
    fs::File,
    io::{Read, Write},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::layout::RunDir;
use crate::error::CliError;

/// Takes the lock, which lasts as long as what is returned; the kernel frees it whatever way `up` ends. It is closed on
/// exec, so no child keeps it.
///
/// # Errors
/// Another `up` has it; the text tells its process id.
pub fn take(dir: &RunDir) -> Result<Flock<File>, CliError> {
    let path = dir.lock();
    let unusable =
        |e: &std::io::Error| CliError::io("lock", &path, e, "check the directory's owner and the space left");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    let file = file.map_err(|e| unusable(&e))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((file, Errno::EWOULDBLOCK)) => return Err(taken(dir, file)),
        Err((_, e)) => return Err(unusable(&e.into())),
    };
    let pid = std::process::id().to_string();
    lock.set_len(0)
        .and_then(|()| lock.write_all(pid.as_bytes()))
        .map_err(|e| unusable(&e))?;
    Ok(lock)
}

fn taken(dir: &RunDir, file: File) -> CliError {
    let mut pid = String::new();
    // The process id is a courtesy: that the lock is taken is certain without it.
    let _ = file.take(20).read_to_string(&mut pid);
    let by = if pid.is_empty() {
        String::new()
    } else {
        format!(" (process {pid})")
    };
    CliError::coded(
        "already_up",
        format!("another 'outboard up'{by} runs in {}", dir.root().display()),
        "stop that one with Ctrl-C or SIGTERM, or name another directory with --run-dir",
    )
}
