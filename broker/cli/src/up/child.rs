//! `outboard __child`: becomes a program that dies with the `up` that started it.
//!
//! A parent-death signal must be set by the child itself, between fork and exec. Doing it in a program of its own,
//! this one, needs no unsafe code; it is kept across exec (prctl(2), `PR_SET_PDEATHSIG`).

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use clap::Args;
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

use crate::error::CliError;

/// `outboard __child`.
#[derive(Debug, Args)]
pub struct ChildArgs {
    /// Process id of the `up` that started this.
    #[arg(long)]
    parent: i32,
    /// The program to become.
    program: PathBuf,
    /// Its arguments.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// The command that runs `program` as a child that dies with this process.
pub fn command(program: &std::path::Path, arguments: &[&std::ffi::OsStr]) -> Command {
    // Not by its path, where another version may be by now, or nothing.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["__child", "--parent", &std::process::id().to_string()])
        .arg(program)
        .arg("--")
        .args(arguments);
    // A group of its own: Ctrl-C on the terminal is for `up`, which then stops its children in order.
    command.process_group(0);
    command
}

/// Becomes the program; returns only when that fails.
pub fn run(args: &ChildArgs) -> CliError {
    // SIGKILL: whoever started this was killed itself, and what it leaves behind must not serve the next run's VMs.
    if let Err(e) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return CliError::new(format!("cannot ask to die with the parent: {e}"), "report this");
    }
    if getppid() != Pid::from_raw(args.parent) {
        return CliError::new(
            "the 'outboard up' that started this has ended",
            "start 'outboard up' again",
        );
    }
    let e = Command::new(&args.program).args(&args.arguments).exec();
    let remedy = "install the four programs of one version in one directory";
    CliError::io("run", &args.program, &e, remedy)
}
