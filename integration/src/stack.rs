//! Broker, DPU and shim on this machine, started by `outboard up`, and the command line beside them.

use std::{
    fs, io,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{binaries::Binaries, process::Process, wait};

/// How long `outboard up` may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// What went wrong with the stack.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// Files or processes failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// `outboard up` ended or said nothing in time.
    #[error("'outboard up' was not ready within {READY_LIMIT:?}: {0}")]
    NotReady(String),
    /// A command ended with an error.
    #[error("'outboard {command}' ended with an error: {text}")]
    Failed {
        /// Its arguments.
        command: String,
        /// What it said.
        text: String,
    },
    /// A command printed something that is not JSON.
    #[error("'outboard {command}' printed no JSON: {text}")]
    NotJson {
        /// Its arguments.
        command: String,
        /// What it printed.
        text: String,
    },
}

/// A running `outboard up`.
#[derive(Debug)]
pub struct Stack {
    binaries: Binaries,
    run_dir: PathBuf,
    process: Process,
    ready: Value,
}

impl Stack {
    /// Starts `outboard up --json FILE` with its run folder below `folder` and waits until it is ready.
    /// `configure` may add to the command, for example its environment.
    pub fn up(
        binaries: &Binaries,
        topology: &Path,
        folder: &Path,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self, StackError> {
        let run_dir = folder.join("run");
        let log = folder.join("up.log");
        let mut process = Process::start(
            "outboard up",
            &binaries.path("outboard"),
            |up| {
                up.args(["--json", "up"])
                    .arg(topology)
                    .arg("--run-dir")
                    .arg(&run_dir)
                    .stdout(Stdio::piped());
                configure(up);
            },
            &log,
        )?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let stdout = process
            .take_stdout()
            .ok_or_else(|| io::Error::other("no standard output"))?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            // An empty line means that it ended; the receiver tells both apart.
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = receiver
            .recv_timeout(READY_LIMIT)
            .map_err(|_| StackError::NotReady(said()))?;
        let ready = serde_json::from_str(&line).map_err(|_| StackError::NotReady(format!("{line}{}", said())))?;
        Ok(Self {
            binaries: binaries.clone(),
            run_dir,
            process,
            ready,
        })
    }

    /// What `outboard up --json` printed once it was ready.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// The folder with sockets, state and logs.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.binaries.path(name)
    }

    /// Socket of a port.
    pub fn port_socket(&self, name: &str) -> PathBuf {
        self.run_dir.join("ports").join(format!("{name}.sock"))
    }

    /// Socket of a volume.
    pub fn volume_socket(&self, name: &str) -> PathBuf {
        self.run_dir.join("volumes").join(format!("{name}.sock"))
    }

    /// Process id of `broker`, `dpu` or `shim`.
    pub fn pid(&self, daemon: &str) -> Option<u32> {
        self.ready["pids"][daemon].as_u64().and_then(|pid| pid.try_into().ok())
    }

    /// Runs `outboard ARGUMENTS` against this broker: its output as printed for people.
    pub fn outboard(&self, arguments: &[&str]) -> Result<String, StackError> {
        let output = Command::new(self.binaries.path("outboard"))
            .arg("--socket")
            .arg(self.run_dir.join("broker.sock"))
            .args(arguments)
            .output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(StackError::Failed {
            command: arguments.join(" "),
            text,
        })
    }

    /// Runs `outboard --json ARGUMENTS`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, StackError> {
        let text = self.outboard(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|_| StackError::NotJson {
            command: arguments.join(" "),
            text,
        })
    }

    /// State of the binding of a port or volume, as `outboard KIND show NAME` tells it.
    pub fn binding_state(&self, kind: &str, name: &str) -> Result<Option<String>, StackError> {
        Ok(self.json(&[kind, "show", name])?["binding"]["state"]
            .as_str()
            .map(str::to_owned))
    }

    /// Waits for a binding to come to `state`; whether it did.
    pub fn wait_binding(&self, kind: &str, name: &str, state: &str, limit: Duration) -> bool {
        wait::until(limit, || {
            (self.binding_state(kind, name).ok()?.as_deref() == Some(state)).then_some(())
        })
        .is_some()
    }

    /// Ends it as Ctrl-C does.
    pub fn stop(mut self) -> Result<(), StackError> {
        self.process.signal(Signal::SIGINT)?;
        let status = self.process.stop()?;
        if status.success() {
            return Ok(());
        }
        Err(StackError::Failed {
            command: "up".into(),
            text: format!("it ended with {status} when it was interrupted"),
        })
    }
}
