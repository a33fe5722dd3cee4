//! Broker, DPU and shim on this machine, each started by itself, so that each can be killed and started again.

use std::{
    error::Error,
    fs, io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{binaries::Binaries, process::Process, stack::Stack, wait};

/// How long anything may take here. Generous: the machine may be busy.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Result of a step.
pub type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// The daemons, as the run folder's files name them.
const DAEMONS: [&str; 3] = ["broker", "dpu", "shim"];

/// The daemons, their folder and the command lines beside them.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    binaries: Binaries,
    /// Environment of the daemons that are started one by one.
    environment: Vec<(&'static str, String)>,
    processes: [Option<Process>; 3],
    /// Programs that are started instead of those of `binaries`.
    replaced: [Option<PathBuf>; 3],
}

impl Site {
    /// Enrols a card by `outboard up`, stops that, and starts the daemons one by one from the configuration it left.
    /// In it the broker keeps its port, and the shim attaches the devices at its start.
    pub fn new(topology: &str) -> Outcome<Self> {
        Self::prepared(topology, Binaries::build()?, |_| Vec::new())
    }

    /// The same with a test build of the DPU, whose volumes in files leave records in the folder `record` beside the run
    /// folder, and with the checks named in `off` switched off.
    pub fn recorded(topology: &str, off: &str) -> Outcome<Self> {
        Self::prepared(topology, Binaries::build_switchable()?, |folder| {
            vec![
                ("OUTBOARD_RECORD", folder.join("record").display().to_string()),
                ("OUTBOARD_CHECKS_OFF", off.to_owned()),
            ]
        })
    }

    fn prepared(
        topology: &str,
        binaries: Binaries,
        environment: impl FnOnce(&Path) -> Vec<(&'static str, String)>,
    ) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
        let site = Self {
            environment: environment(folder.path()),
            folder,
            binaries,
            processes: [None, None, None],
            replaced: [None, None, None],
        };
        let file = site.file("topology.toml", topology)?;
        Stack::up(&site.binaries, &file, site.folder.path(), |_| {})?.stop()?;
        let mut devices = Vec::new();
        let mut kind = "";
        for line in topology.lines() {
            match line.trim() {
                "[[port]]" => kind = "port",
                "[[volume]]" => kind = "volume",
                "[[network]]" => kind = "",
                name if name.starts_with("name = ") && !kind.is_empty() => {
                    devices.extend(name.split('"').nth(1).map(|name| format!("{kind} {name}")));
                }
                _ => {}
            }
        }
        let mut site = site;
        DAEMONS.into_iter().try_for_each(|daemon| site.start(daemon))?;
        // A test that revokes or detaches begins with devices that are attached, not with the shim's first attempts.
        for device in devices {
            site.wait_device(&device, "waiting-for-vmm")?;
        }
        Ok(site)
    }

    /// A path in the run folder.
    pub fn run_path(&self, name: &str) -> PathBuf {
        self.folder.path().join("run").join(name)
    }

    /// The folder of the topology file, where volumes' files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The process id of a daemon that runs.
    pub fn pid(&self, daemon: &str) -> Option<u32> {
        self.processes[index(daemon)].as_ref().map(Process::pid)
    }

    /// Sends a daemon a signal.
    pub fn signal(&self, daemon: &str, signal: Signal) -> Outcome {
        let process = self.processes[index(daemon)].as_ref().ok_or("it does not run")?;
        Ok(process.signal(signal)?)
    }

    /// Writes a file beside the run folder.
    pub fn file(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts `broker`, `dpu` or `shim` and waits until it serves.
    pub fn start(&mut self, daemon: &str) -> Outcome {
        self.launch(daemon)?;
        let socket = self.run_path(&format!("{daemon}.sock"));
        // The DPU's link takes packets: a stream is refused by its type there, and by absence where nobody listens.
        let serves = wait::until(LIMIT, || match UnixStream::connect(&socket) {
            Ok(_) => Some(()),
            Err(error) => (error.raw_os_error() == Some(nix::libc::EPROTOTYPE)).then_some(()),
        });
        if serves.is_some() {
            return Ok(());
        }
        Err(format!("outboard-{daemon} does not serve: {}", self.log(daemon)).into())
    }

    /// Starts a daemon without waiting.
    pub fn launch(&mut self, daemon: &str) -> Outcome {
        let process = self.spawn(daemon, &[])?;
        self.processes[index(daemon)] = Some(process);
        Ok(())
    }

    /// Starts the DPU's program anew, which makes the one that serves end and takes its place; waits until that ended.
    pub fn take_over(&mut self) -> Outcome {
        let next = self.spawn("dpu", &["--take-over"])?;
        let mut old = self.processes[index("dpu")].replace(next).ok_or("it does not run")?;
        let status = wait::until(LIMIT, || old.ended()).ok_or("the old process does not end")?;
        if status.success() {
            return Ok(());
        }
        Err(format!("the old process ended with {status}: {}", self.log("dpu")).into())
    }

    fn spawn(&self, daemon: &str, more: &[&str]) -> Outcome<Process> {
        let config = self.run_path(&format!("{daemon}.toml"));
        let program = match &self.replaced[index(daemon)] {
            Some(program) => program.clone(),
            None => self.binaries.path(&format!("outboard-{daemon}")),
        };
        Ok(Process::start(
            daemon,
            &program,
            |command| {
                command.args(["run", "--config"]).arg(config).args(more);
                command.envs(self.environment.iter().map(|(name, value)| (name, value)));
            },
            &self.log_path(daemon),
        )?)
    }

    /// Installs a daemon's program anew, beside the one that runs: the next start is of the new file.
    pub fn install_anew(&mut self, daemon: &str) -> Outcome {
        let name = format!("outboard-{daemon}");
        let file = self.folder.path().join(format!("{name}.new"));
        // not over the old one, which may be running
        if file.exists() {
            fs::remove_file(&file)?;
        }
        fs::copy(self.binaries.path(&name), &file)?;
        self.replaced[index(daemon)] = Some(file);
        Ok(())
    }

    /// Starts a daemon that is expected to refuse to: what it says before it ends with an error.
    pub fn refused(&mut self, daemon: &str) -> Outcome<String> {
        self.launch(daemon)?;
        let process = self.processes[index(daemon)].as_mut().ok_or("not launched")?;
        let status = wait::until(LIMIT, || process.ended());
        let said = self.log(daemon);
        match status {
            Some(status) if !status.success() => Ok(said),
            status => Err(format!("outboard-{daemon} did not refuse to start ({status:?}): {said}").into()),
        }
    }

    /// Ends a daemon with `kill -9`.
    pub fn kill(&mut self, daemon: &str) -> Outcome {
        let mut process = self.processes[index(daemon)].take().ok_or("it does not run")?;
        process.signal(Signal::SIGKILL)?;
        process.stop()?;
        Ok(())
    }

    /// Ends a daemon as it should be.
    pub fn stop(&mut self, daemon: &str) -> Outcome {
        let status = self.processes[index(daemon)].take().ok_or("it does not run")?.stop()?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| format!("outboard-{daemon} ended with {status}").into())
    }

    /// What a daemon has said since it was started last.
    pub fn log(&self, daemon: &str) -> String {
        fs::read_to_string(self.log_path(daemon)).unwrap_or_default()
    }

    /// Waits for a daemon to say something.
    pub fn wait_log(&self, daemon: &str, text: &str) -> Outcome<String> {
        wait::until(LIMIT, || Some(self.log(daemon)).filter(|log| log.contains(text)))
            .ok_or_else(|| format!("outboard-{daemon} never said '{text}': {}", self.log(daemon)).into())
    }

    /// Runs `outboard ARGUMENTS`: what it printed, or what it said when it failed.
    pub fn outboard(&self, arguments: &[&str]) -> io::Result<Result<String, String>> {
        let mut command = Command::new(self.binaries.path("outboard"));
        command.arg("--socket").arg(self.run_path("broker.sock"));
        said(command.args(arguments))
    }

    /// Runs `outboard-shim ARGUMENTS` against this site's shim.
    pub fn shim(&self, arguments: &[&str]) -> io::Result<Result<String, String>> {
        let mut command = Command::new(self.binaries.path("outboard-shim"));
        command.env("OUTBOARD_SHIM_API", self.run_path("shim.sock"));
        said(command.args(arguments))
    }

    /// What the shim lists about one device once `wanted` is in it.
    pub fn wait_device(&self, device: &str, wanted: &str) -> Outcome<String> {
        let look = || {
            let list = self.shim(&["list"]).ok()?.ok()?;
            device_lines(&list, device)
        };
        wait::until(LIMIT, || look().filter(|lines| lines.contains(wanted)))
            .ok_or_else(|| format!("{device} never came to '{wanted}': {:?}", look()).into())
    }

    /// What `outboard --json bindings` tells of an object: its generation and state.
    pub fn binding(&self, kind: &str, name: &str) -> Outcome<(u64, String)> {
        let text = self.outboard(&["--json", kind, "show", name])??;
        let view: serde_json::Value = serde_json::from_str(&text)?;
        let generation = view["binding"]["generation"].as_u64().ok_or(text)?;
        let state = view["binding"]["state"].as_str().unwrap_or_default().to_owned();
        Ok((generation, state))
    }

    /// Generation of an object's newest binding, released or not.
    pub fn generation(&self, kind: &str, name: &str) -> Outcome<u64> {
        Ok(self.binding(kind, name)?.0)
    }

    /// Waits for a binding to come to `state`; its generation.
    pub fn wait_binding(&self, kind: &str, name: &str, state: &str) -> Outcome<u64> {
        let found = wait::until(LIMIT, || self.binding(kind, name).ok().filter(|(_, now)| now == state));
        match found {
            Some((generation, _)) => Ok(generation),
            None => Err(format!("{kind} {name} never became {state}: {:?}", self.binding(kind, name)).into()),
        }
    }

    fn log_path(&self, daemon: &str) -> PathBuf {
        self.run_path(&format!("log/by-hand-{daemon}.log"))
    }
}

fn index(daemon: &str) -> usize {
    DAEMONS.iter().position(|name| *name == daemon).unwrap_or_default()
}

fn said(command: &mut Command) -> io::Result<Result<String, String>> {
    let output = command.output()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    })
}

/// A device's line in the shim's list with the indented lines below it.
fn device_lines(list: &str, device: &str) -> Option<String> {
    let mut lines = list.lines().skip_while(|line| !line.starts_with(&format!("{device} ")));
    let first = lines.next()?;
    let rest = lines.take_while(|line| line.starts_with(' '));
    Some(std::iter::once(first).chain(rest).collect::<Vec<_>>().join("\n"))
}
