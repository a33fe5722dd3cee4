//! The program that is counted, and the tools that count.

use std::{
    env, fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use outboard_bench::error::Failure;
use serde::Deserialize;

use crate::{
    WHO,
    callgrind::Counts,
    stages::{self, Timed},
};

/// What the program can do.
pub const CASES: [&str; 18] = [
    "l2-64",
    "l2-1518",
    "l2-64-imix-flows",
    "tso-64k",
    "fw-64",
    "fw-64-flows",
    "policy-10k",
    "null-4k-read",
    "mem-4k-read",
    VICTIM_LEGAL,
    "victim-new-connections",
    "victim-denied",
    "victim-explosion",
    "victim-rejected",
    "victim-strays",
    "victim-fragments",
    "victim-broadcast",
    "victim-macs",
];
/// A victim's frame, with what the worker does for an attacker beside it that sends legal traffic.
pub const VICTIM_LEGAL: &str = "victim-legal";
/// How the cases begin in which the attacker sends something else.
pub const VICTIM: &str = "victim-";
const PACKAGE: &str = "outboard-datapath-load";
/// The function in which the device works.
const MEASURED: &str = "*measured_breath*";
/// Operations by which it is found out how long they take.
const TRIAL: u64 = 20_000;
/// Nanoseconds of the program's own time from one sample of perf to the next.
const PERIOD_NS: u64 = 200_000;
/// Bytes of the stack that perf keeps of each: enough for the innermost functions.
const STACK: &str = "dwarf,2048";

/// The program.
#[derive(Debug)]
pub struct Load {
    program: PathBuf,
    folder: tempfile::TempDir,
}

/// What it says that it did.
#[derive(Debug, Deserialize)]
struct Said {
    operations: u64,
    nanoseconds_per_operation: f64,
}

impl Load {
    /// Builds it, always in the release profile; what is up to date takes no time.
    ///
    /// # Errors
    /// It cannot be built.
    pub fn build() -> Result<Self, Failure> {
        let failed = |e: &io::Error| Failure::io("build", "cargo build", e, "run 'cargo build --release'");
        let own = env::current_exe().map_err(|e| failed(&e))?;
        // target/PROFILE/program
        let target = own.ancestors().nth(2).unwrap_or(Path::new("target"));
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        // Alone, so that features that other packages ask for are off.
        command
            .args(["build", "--release", "-p", PACKAGE, "--target-dir"])
            .arg(target);
        command.args((!io::stderr().is_terminal()).then_some("--quiet"));
        let status = command.status().map_err(|e| failed(&e))?;
        if !status.success() {
            let failure = Failure::new("build", format!("ended with {status}"), "correct what cargo says above");
            return Err(failure.command(format!("{command:?}")));
        }
        let folder = tempfile::tempdir().map_err(|e| Failure::io(WHO, "/tmp", &e, "check its owner and space"))?;
        Ok(Self {
            program: target.join("release/datapath-load"),
            folder,
        })
    }

    /// Counts the instructions of so many operations.
    ///
    /// # Errors
    /// Valgrind or the program failed.
    pub fn count(&self, case: &str, operations: u64) -> Result<Counts, Failure> {
        let path = self.folder.path().join(format!("{case}.{operations}"));
        let mut command = Command::new("valgrind");
        command
            .args([
                "--quiet",
                "--tool=callgrind",
                "--compress-strings=no",
                "--compress-pos=no",
            ])
            .arg(format!("--toggle-collect={MEASURED}"))
            .arg(format!("--callgrind-out-file={}", path.display()))
            .arg(&self.program)
            .args([case, "--operations", &operations.to_string()]);
        let said: Said = said(&run(&mut command)?, &command)?;
        Counts::parse(&read(&path)?, said.operations)
    }

    /// Samples the time of operations for so many seconds.
    ///
    /// # Errors
    /// Perf or the program failed.
    pub fn sample(&self, case: &str, seconds: f64) -> Result<Timed, Failure> {
        let mut trial = Command::new(&self.program);
        trial.args([case, "--operations", &TRIAL.to_string()]);
        let each = said(&run(&mut trial)?, &trial)?.nanoseconds_per_operation;
        let operations = whole(seconds * 1e9 / each.max(1.0)).max(TRIAL);
        let path = self.folder.path().join(format!("{case}.perf"));
        let mut record = Command::new("perf");
        record
            .args(["record", "--quiet", "-e", "cpu-clock", "-c"])
            .arg(PERIOD_NS.to_string())
            .args(["--call-graph", STACK, "-o"])
            .arg(&path)
            .arg(&self.program)
            .args([case, "--operations", &operations.to_string()]);
        let said = said(&run(&mut record)?, &record)?;
        let mut script = Command::new("perf");
        script
            .args(["script", "--inline", "--full-source-path", "-F", "ip,sym,srcline", "-i"])
            .arg(&path);
        let output = run(&mut script)?;
        stages::split(&String::from_utf8_lossy(&output.stdout), PERIOD_NS, said.operations)
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|e| Failure::io(WHO, path.display(), &e, "check its owner and space"))
}

fn run(command: &mut Command) -> Result<Output, Failure> {
    let remedy = "run the command yourself to see more";
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Failure::io(WHO, command.get_program().display(), &e, "install it"))?;
    if output.status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().map(str::to_owned).collect::<Vec<_>>();
    Err(Failure::new(WHO, format!("ended with {}", output.status), remedy)
        .command(format!("{command:?}"))
        .said(lines.into_iter().rev().take(5).rev().collect()))
}

/// What the program printed, in whatever a tool printed beside it.
fn said(output: &Output, command: &Command) -> Result<Said, Failure> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).map_err(|e| {
        Failure::new(WHO, format!("no report: {e}"), "run the command yourself to see more")
            .command(format!("{command:?}"))
    })
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded just before"
)]
fn whole(count: f64) -> u64 {
    count.clamp(0.0, 1e12) as u64
}
