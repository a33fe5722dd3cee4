//! The daemons: started, watched, stopped; each by its own process id.

use std::{
    ffi::OsStr,
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    task::Poll,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::{child, layout::RunDir, log::Log, progress::Progress, restarts::QUICK};
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
    started: Instant,
}

/// A daemon that ended.
pub struct Ended {
    /// Its name.
    pub name: &'static str,
    /// The process id that it had.
    pub pid: u32,
    /// How long it lived.
    pub lived: Duration,
    /// Was it started while another one of its name was running, which still does?
    pub was_successor: bool,
    /// What it said.
    pub log: Log,
    status: Option<ExitStatus>,
}

impl Ended {
    /// How it ended, as the end of a sentence.
    pub fn how(&self) -> String {
        self.status
            .map_or_else(|| "ended".to_owned(), |status| format!("ended ({status})"))
    }

    /// That it ended, where nothing is done about it.
    pub fn error(&self) -> CliError {
        ended(self.name, self.status, &self.log)
    }

    /// That it ended once too often.
    pub fn given_up(&self, times: usize) -> CliError {
        let name = self.name;
        let what = format!(
            "outboard-{name} {} for the {times}th time in a row within {} s of its start, and is given up",
            self.how(),
            QUICK.as_secs()
        );
        let remedy = format!(
            "see the lines above and {}; then start 'outboard up' again: VMMs that reconnect go on from there",
            self.log.path().display()
        );
        CliError::coded("daemon_given_up", what, remedy).with_notes(self.log.tail())
    }
}

/// The daemons that run, in the order in which they depend on each other: broker, DPU, shim.
pub struct Daemons {
    running: Vec<Daemon>,
    /// Where the programs are. Found once: after an upgrade, this program's own file may be another one.
    programs: PathBuf,
    configs: Vec<(&'static str, PathBuf)>,
}

impl Daemons {
    /// None yet; their programs are beside this one.
    ///
    /// # Errors
    /// This program's own file cannot be found.
    pub fn new() -> Result<Self, CliError> {
        let own = std::env::current_exe()
            .map_err(|e| CliError::new(format!("cannot find this program's own file: {e}"), "mount /proc"))?;
        Ok(Self {
            running: Vec::new(),
            programs: own.parent().unwrap_or(Path::new("/")).to_owned(),
            configs: Vec::new(),
        })
    }

    /// Starts `outboard-NAME run --config CONFIG`; what it says goes to its log.
    ///
    /// # Errors
    /// The program is not there, or cannot be started.
    pub fn start(&mut self, dir: &RunDir, name: &'static str, config: &Path) -> Result<u32, CliError> {
        self.configs.push((name, config.to_owned()));
        self.spawn(dir, name, config, &[])
    }

    /// Starts one as it was started before, after it ended. A DPU may be started while one runs, and takes over.
    ///
    /// # Errors
    /// The program is not there, or cannot be started.
    pub fn start_again(&mut self, dir: &RunDir, name: &'static str) -> Result<u32, CliError> {
        let known = self.configs.iter().find(|(known, _)| *known == name);
        let Some((_, config)) = known.cloned() else {
            return Err(CliError::new(
                format!("outboard-{name} was never started"),
                "report this",
            ));
        };
        // The run directory is this process's: a DPU that somebody else started in it meanwhile makes way.
        let more: &[&OsStr] = if name == "dpu" { &["--take-over".as_ref()] } else { &[] };
        self.spawn(dir, name, &config, more)
    }

    fn spawn(&mut self, dir: &RunDir, name: &'static str, config: &Path, more: &[&OsStr]) -> Result<u32, CliError> {
        let arguments = [&["run".as_ref(), "--config".as_ref(), config.as_os_str()], more].concat();
        let (mut command, log) = self.prepare(dir, name, &arguments)?;
        let child = command.spawn().map_err(|e| not_started(name, &e))?;
        let pid = child
            .id()
            .ok_or_else(|| not_started(name, &std::io::Error::other("it ended at once")))?;
        let rank = |name: &str| self.configs.iter().position(|(known, _)| *known == name);
        let place = self.running.partition_point(|d| rank(d.name) <= rank(name));
        let daemon = Daemon {
            name,
            child,
            pid,
            log,
            started: Instant::now(),
        };
        self.running.insert(place, daemon);
        Ok(pid)
    }

    /// Waits until one of them ends by itself, and tells how.
    pub async fn died(&mut self) -> CliError {
        self.next_end().await.error()
    }

    /// Waits until one of them ends by itself.
    pub async fn next_end(&mut self) -> Ended {
        let (index, status) = self.first_exit().await;
        let daemon = self.running.remove(index);
        let older = |other: &Daemon| other.name == daemon.name && other.started < daemon.started;
        Ended {
            name: daemon.name,
            pid: daemon.pid,
            lived: daemon.started.elapsed(),
            was_successor: self.running.iter().any(older),
            log: daemon.log,
            status: status.ok(),
        }
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

    /// Runs `outboard-dpu enrol`, which is to be awaited.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn enrol(
        &self,
        dir: &RunDir,
        config: &Path,
        token: &str,
    ) -> Result<impl Future<Output = Result<(), CliError>> + use<>, CliError> {
        let arguments = [
            "enrol".as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
            "--token".as_ref(),
            token.as_ref(),
        ];
        let (mut command, log) = self.prepare(dir, "dpu", &arguments)?;
        let child = command.kill_on_drop(true).spawn().map_err(|e| not_started("dpu", &e))?;
        Ok(enrolled(child, log, dir.log("broker")))
    }

    fn prepare(&self, dir: &RunDir, name: &str, arguments: &[&OsStr]) -> Result<(Command, Log), CliError> {
        let program = self.program(name)?;
        let path = dir.log(name);
        let unusable = |e: &std::io::Error| CliError::io("write", &path, e, "check its owner and the space left");
        let (log, out) = Log::open(&path).map_err(|e| unusable(&e))?;
        let err = out.try_clone().map_err(|e| unusable(&e))?;
        let mut command = child::command(&program, arguments);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        Ok((command.into(), log))
    }

    /// `outboard-NAME`, beside this program.
    fn program(&self, name: &str) -> Result<PathBuf, CliError> {
        let program = self.programs.join(format!("outboard-{name}"));
        if program.is_file() {
            return Ok(program);
        }
        Err(CliError::coded(
            "program_missing",
            format!("there is no {}", program.display()),
            "install outboard, outboard-broker, outboard-dpu and outboard-shim in one directory (cargo build makes all four)",
        ))
    }
}

async fn enrolled(mut child: Child, log: Log, broker_log: PathBuf) -> Result<(), CliError> {
    match tokio::time::timeout(ENROL_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(status) => Err(ended("dpu enrol", status.ok(), &log)),
        Err(_) => {
            let what = format!("outboard-dpu enrol did not end within {} s", ENROL_TIMEOUT.as_secs());
            let remedy = format!("look at {} and {}", log.path().display(), broker_log.display());
            Err(CliError::new(what, remedy).with_notes(log.tail()))
        }
    }
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
