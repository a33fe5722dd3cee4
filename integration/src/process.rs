//! Child processes that end with us, even if we are killed.

use std::{
    fs::File,
    io,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a process has to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A child process. Dropping it kills it; [`Process::stop`] asks first.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `program` with its output in `log`. `setpriv` makes the kernel kill it when this process ends, so that a
    /// test that is killed leaves nothing behind; it replaces itself by `program`, so the pid is the program's own.
    pub fn start(name: &str, program: &Path, configure: impl FnOnce(&mut Command), log: &Path) -> io::Result<Self> {
        let log = File::create(log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        configure(&mut command);
        Ok(Self {
            name: name.to_owned(),
            child: command.spawn()?,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Its standard output, where `configure` asked for a pipe.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard input, where `configure` asked for a pipe.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), signal).map_err(io::Error::from)
    }

    /// Asks it to end and waits; kills it when it does not.
    pub fn stop(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} did not end within {STOP_LIMIT:?} and is killed", self.name);
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that all threads of a process have used so far, from the scheduler's own nanosecond count
/// (`/proc/PID/task/*/schedstat`, first field).
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // a thread may end between the listing and the reading
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let nanoseconds = text.split_whitespace().next().and_then(|field| field.parse().ok());
        total += Duration::from_nanos(nanoseconds.ok_or_else(|| io::Error::other("schedstat without a number"))?);
    }
    Ok(total)
}
