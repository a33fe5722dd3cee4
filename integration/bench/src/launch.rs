//! Child processes: pinned, in a session of their own, ahead of others on their core, and gone when we are.
//!
//! Where the scheduler groups tasks by session (`sched_autogroup_enabled`), niceness only ranks threads within one
//! session, and each session has the same weight: a poller shares its core evenly with any other session that has
//! something to do. So each child gets its own session, and that session is given priority.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::error::Failure;

/// How long a child has to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How long a child may take to be in its own session.
const SESSION_LIMIT: Duration = Duration::from_secs(2);
/// How much of a log is shown.
const SAID_LINES: usize = 8;
/// Highest priority of a session, as `nice` counts.
const FIRST: &str = "-20";

/// What to start and how.
#[derive(Debug)]
pub struct Launch {
    who: String,
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    core: usize,
    own_network: bool,
    stdout: bool,
}

impl Launch {
    /// `program`, pinned to `core` with all its threads.
    pub fn new(who: &str, program: impl AsRef<OsStr>, core: usize) -> Self {
        Self {
            who: who.to_owned(),
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            core,
            own_network: false,
            stdout: false,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments
            .extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// In a network namespace of its own: what it makes there touches no interface of this machine.
    #[must_use]
    pub fn own_network(mut self) -> Self {
        self.own_network = true;
        self
    }

    /// Its standard output is read by us and does not go to its log.
    #[must_use]
    pub fn read_stdout(mut self) -> Self {
        self.stdout = true;
        self
    }

    /// As one would type it.
    pub fn shown(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    /// The program with all that is put before it. Each of them replaces itself by the next, so the process id is
    /// that of the program in the end; the parent-death signal comes last, because a change of credentials or of the
    /// user namespace clears it.
    fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if self.own_network {
            words.extend(["unshare", "--net"].map(OsString::from));
            if !geteuid().is_root() {
                words.extend(["--user", "--map-root-user"].map(OsString::from));
            }
            words.push("--".into());
        }
        words.extend(["setsid", "taskset", "-c"].map(OsString::from));
        words.push(self.core.to_string().into());
        if geteuid().is_root() {
            // where sessions are not grouped, this is what counts
            words.extend(["nice", "-n", FIRST].map(OsString::from));
        }
        words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(OsString::from));
        words.push(self.program.clone());
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// Starts it with its output in `log`.
    pub fn start(self, log: &Path) -> Result<Running, Failure> {
        let failed = |what: &str, source: &io::Error| {
            Failure::io(
                &self.who,
                what,
                source,
                "install util-linux and coreutils, and check the space left in /tmp",
            )
            .command(self.shown())
        };
        let file = File::create(log).map_err(|e| failed(&format!("cannot write {}", log.display()), &e))?;
        let errors = file.try_clone().map_err(|e| failed("cannot write its log", &e))?;
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stderr(errors);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdout(if self.stdout { Stdio::piped() } else { file.into() });
        let child = command.spawn().map_err(|e| failed("cannot start", &e))?;
        let running = Running {
            who: self.who.clone(),
            shown: self.shown(),
            child,
            log: log.to_owned(),
        };
        running.put_first();
        Ok(running)
    }
}

/// A child that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    who: String,
    shown: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Its standard output, if it was asked for.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Sends it a signal; one that has ended needs none.
    pub fn signal(&self, signal: Signal) {
        signal_pid(self.child.id(), signal);
    }

    /// A failure of this child, with its command and the end of its log.
    pub fn failure(&self, what: impl Into<String>, remedy: &str) -> Failure {
        Failure::new(&self.who, what, remedy)
            .command(&self.shown)
            .said(last_lines(&self.log))
    }

    /// Waits until `ready`, as long as it runs and for `limit` at most.
    pub fn wait_until(&mut self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let remedy = format!("look at {}", self.log.display());
        while !ready() {
            if let Some(status) = self.ended() {
                return Err(self.failure(format!("ended with {status} before {what}"), &remedy));
            }
            if Instant::now() > deadline {
                return Err(self.failure(format!("not there within {limit:?}: {what}"), &remedy));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks it to end by `signal` and waits; kills it when it does not.
    pub fn stop(&mut self, signal: Signal) {
        // a stopped process sees no signal but SIGKILL until it goes on
        self.signal(Signal::SIGCONT);
        self.signal(signal);
        let deadline = Instant::now() + STOP_LIMIT;
        while self.ended().is_none() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        self.end();
    }

    /// Gives its session priority, once it has one. Where sessions are not grouped there is no such file, and without
    /// privileges it may not be raised: the share of CPU that it gets is measured in any case.
    fn put_first(&self) {
        let pid = self.child.id();
        let deadline = Instant::now() + SESSION_LIMIT;
        while session(pid) != Some(pid) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if session(pid) == Some(pid) {
            let _ = fs::write(format!("/proc/{pid}/autogroup"), FIRST);
        }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// This program's own session, which looks at the others while they are measured, and must not look late.
#[derive(Debug, Clone)]
pub struct OwnSession {
    before: Option<String>,
}

impl OwnSession {
    /// Gives it the priority of those that are measured, until [`OwnSession::put_back`]. It is the session of the shell too.
    pub fn put_first() -> Self {
        let text = fs::read_to_string(OWN_SESSION).unwrap_or_default();
        let before = niceness(&text).map(str::to_owned);
        // without privileges it stays as it is, and samples are taken late where others want the cores
        let raised = before.is_some() && fs::write(OWN_SESSION, FIRST).is_ok();
        Self {
            before: before.filter(|_| raised),
        }
    }

    /// Gives it back what it had.
    pub fn put_back(&self) {
        if let Some(before) = &self.before {
            let _ = fs::write(OWN_SESSION, before);
        }
    }
}

const OWN_SESSION: &str = "/proc/self/autogroup";

/// Of `/autogroup-126 nice 0` (proc(5)).
fn niceness(text: &str) -> Option<&str> {
    let value = text.trim().rsplit_once(" nice ")?.1;
    value.parse::<i8>().is_ok().then_some(value)
}

/// Sends a signal to a process that we started, or that a child of ours told of.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Session of a process: the fourth field after the name in `/proc/PID/stat` (proc(5)).
fn session(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(3)?.parse().ok()
}

/// The end of a log.
pub fn last_lines(log: &Path) -> Vec<String> {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(SAID_LINES);
    lines[from..].iter().map(|line| (*line).to_owned()).collect()
}

/// Runs a command to its end: what it said, or how it failed.
pub fn run(who: &str, command: &mut Command) -> Result<String, Failure> {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .map_err(|e| Failure::io(who, "cannot start", &e, "run the set-up again").command(&shown))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let from = lines.len().saturating_sub(SAID_LINES);
    Err(Failure::new(
        who,
        format!("ended with {}", output.status),
        "correct what it says above",
    )
    .command(shown)
    .said(lines[from..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> io::Result<tempfile::TempDir> {
        tempfile::tempdir()
    }

    #[test]
    fn a_child_is_pinned_has_a_session_of_its_own_and_keeps_its_process_id() -> Result<(), Box<dyn std::error::Error>> {
        let folder = folder()?;
        let mut child = Launch::new("sleeper", "sleep", 0)
            .arg("30")
            .start(&folder.path().join("log"))?;
        let pid = child.pid();
        assert_eq!(session(pid), Some(pid));
        child.wait_until("being sleep", Duration::from_secs(5), || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
        })?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let cores = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        assert_eq!(cores.map(str::trim), Some("0"));
        child.stop(Signal::SIGTERM);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        Ok(())
    }

    #[test]
    fn the_kernels_line_on_a_session_is_read() {
        assert_eq!(niceness("/autogroup-126 nice -5\n"), Some("-5"));
        assert_eq!(niceness("/autogroup-126\n"), None);
    }

    #[test]
    fn a_child_that_ends_early_is_told_with_its_last_words() -> Result<(), Box<dyn std::error::Error>> {
        let folder = folder()?;
        let mut child = Launch::new("broken", "sh", 0)
            .args(["-c", "echo no memory >&2; exit 3"])
            .start(&folder.path().join("log"))?;
        let outcome = child.wait_until("its socket", Duration::from_secs(5), || false);
        let text = outcome.err().map(|failure| failure.to_string()).unwrap_or_default();
        assert!(
            text.contains("broken: ended with exit status: 3 before its socket"),
            "{text}"
        );
        assert!(
            text.contains("| no memory") && text.contains("command: sh -c"),
            "{text}"
        );
        Ok(())
    }

    #[test]
    fn a_stopped_child_can_be_ended() -> Result<(), Box<dyn std::error::Error>> {
        let folder = folder()?;
        let mut child = Launch::new("sleeper", "sleep", 0)
            .arg("30")
            .start(&folder.path().join("log"))?;
        child.signal(Signal::SIGSTOP);
        let begun = Instant::now();
        child.stop(Signal::SIGTERM);
        assert!(begun.elapsed() < Duration::from_secs(5));
        Ok(())
    }
}
