//! The daemons: started, watched, stopped; each by its own process id.

use std::{
    ffi::OsStr,
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    task::Poll,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::{child, layout::RunDir, log::Log, progress::Progress};
use crate::error::CliError;

/// How long a daemon may take to end after SIGTERM before it is killed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `outboard-dpu enrol` may take.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon that runs.
struct Daemon {
    name: &'static str,
    child: Child,
    pid: u32,
    log: Log,
}

/// The daemons that run, in the order in which they were started.
#[derive(Default)]
pub struct Daemons {
    running: Vec<Daemon>,
}

impl Daemons {
    /// Starts `outboard-NAME run --config CONFIG`; what it says goes to its log.
    ///
    /// # Errors
    /// The program is not there, or cannot be started.
    pub fn start(&mut self, dir: &RunDir, name: &'static str, config: &Path) -> Result<u32, CliError> {
        let (mut command, log) = prepare(dir, name, &["run".as_ref(), "--config".as_ref(), config.as_os_str()])?;
        let child = command.spawn().map_err(|e| not_started(name, &e))?;
        let pid = child
            .id()
            .ok_or_else(|| not_started(name, &std::io::Error::other("it ended at once")))?;
        self.running.push(Daemon { name, child, pid, log });
        Ok(pid)
    }

    /// Waits until one of them ends by itself, and tells how.
    pub async fn died(&mut self) -> CliError {
        let (index, status) = self.first_exit().await;
        let daemon = self.running.remove(index);
        ended(daemon.name, status.ok(), &daemon.log)
    }

    /// Awaits `step`, unless a daemon ends first.
    ///
    /// # Errors
    /// Those of `step`, or how the daemon ended.
    pub async fn watch<T>(&mut self, step: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        tokio::select! {
            outcome = step => outcome,
            error = self.died() => Err(error),
        }
    }

    async fn first_exit(&mut self) -> (usize, std::io::Result<ExitStatus>) {
        let mut waits: Vec<_> = self.running.iter_mut().map(|d| Box::pin(d.child.wait())).collect();
        poll_fn(move |context| {
            let polled = waits
                .iter_mut()
                .enumerate()
                .map(|(index, wait)| (index, wait.as_mut().poll(context)));
            for (index, poll) in polled {
                if let Poll::Ready(status) = poll {
                    return Poll::Ready((index, status));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Stops them, the last started first: shim, DPU, broker.
    pub async fn stop(&mut self, progress: &mut Progress) {
        while let Some(mut daemon) = self.running.pop() {
            progress.step(&format!("stopping outboard-{}", daemon.name));
            signal(&daemon.child, Signal::SIGTERM);
            if tokio::time::timeout(STOP_TIMEOUT, daemon.child.wait()).await.is_err() {
                let name = daemon.name;
                progress.note(&format!(
                    "outboard-{name} did not end within {} s: killed",
                    STOP_TIMEOUT.as_secs()
                ));
                signal(&daemon.child, Signal::SIGKILL);
                // Nothing survives SIGKILL for long; that it ended is all that is of interest.
                let _ = daemon.child.wait().await;
            }
        }
        progress.clear();
    }

    /// Process ids, by name.
    pub fn pids(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.running.iter().map(|d| (d.name, d.pid))
    }
}

/// Runs `outboard-dpu enrol`.
///
/// # Errors
/// It fails; the text has what it said.
pub async fn enrol(dir: &RunDir, config: &Path, token: &str) -> Result<(), CliError> {
    let arguments = [
        "enrol".as_ref(),
        "--config".as_ref(),
        config.as_os_str(),
        "--token".as_ref(),
        token.as_ref(),
    ];
    let (mut command, log) = prepare(dir, "dpu", &arguments)?;
    let mut child = command.kill_on_drop(true).spawn().map_err(|e| not_started("dpu", &e))?;
    match tokio::time::timeout(ENROL_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(status) => Err(ended("dpu enrol", status.ok(), &log)),
        Err(_) => {
            let what = format!("outboard-dpu enrol did not end within {} s", ENROL_TIMEOUT.as_secs());
            let remedy = format!("look at {} and {}", log.path().display(), dir.log("broker").display());
            Err(CliError::new(what, remedy).with_notes(log.tail()))
        }
    }
}

fn prepare(dir: &RunDir, name: &str, arguments: &[&OsStr]) -> Result<(Command, Log), CliError> {
    let (outboard, program) = programs(name)?;
    let path = dir.log(name);
    let unusable = |e: &std::io::Error| CliError::io("write", &path, e, "check its owner and the space left");
    let (log, out) = Log::open(&path).map_err(|e| unusable(&e))?;
    let err = out.try_clone().map_err(|e| unusable(&e))?;
    let mut command = child::command(&outboard, &program, arguments);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    Ok((command.into(), log))
}

/// This program, and `outboard-NAME` beside it.
fn programs(name: &str) -> Result<(PathBuf, PathBuf), CliError> {
    let own = std::env::current_exe()
        .map_err(|e| CliError::new(format!("cannot find this program's own file: {e}"), "mount /proc"))?;
    let program = own.with_file_name(format!("outboard-{name}"));
    if program.is_file() {
        return Ok((own, program));
    }
    Err(CliError::coded(
        "program_missing",
        format!("there is no {}", program.display()),
        "install outboard, outboard-broker, outboard-dpu and outboard-shim in one directory (cargo build makes all four)",
    ))
}

/// To a child that has not been waited for: its process id cannot have been given to another process.
fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        // It fails only if the child has ended, which is what is wanted.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn not_started(name: &str, error: &std::io::Error) -> CliError {
    CliError::new(
        format!("cannot start outboard-{name}: {error}"),
        "check the limits (ulimit -a)",
    )
}

fn ended(name: &str, status: Option<ExitStatus>, log: &Log) -> CliError {
    let how = status.map_or_else(|| "ended".to_owned(), |status| format!("ended ({status})"));
    let remedy = format!("see the lines above; the whole log is {}", log.path().display());
    CliError::coded("daemon_ended", format!("outboard-{name} {how}"), remedy).with_notes(log.tail())
}
