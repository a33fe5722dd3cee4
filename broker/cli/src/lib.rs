//! `outboard`: the command line.
//!
//! | module | subject |
//! |---|---|
//! | [`args`], [`options`] | what can be typed |
//! | [`dispatch`] | from there to the command that does it |
//! | [`commands`] | one file per noun or verb that talks to a broker |
//! | [`up`] | the all-in-one: broker, DPU and shim on one machine from one file |
//! | [`client`] | HTTP over a unix socket or mutual TLS |
//! | [`output`], [`error`] | tables, JSON, and errors that say what to do |
#![forbid(unsafe_code)]

pub mod args;
pub mod client;
pub mod commands;
pub mod dispatch;
pub mod error;
pub mod options;
pub mod output;
pub mod paths;
pub mod pcapng;
pub mod up;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use error::CliError;

/// Exit status of an error.
pub const EXIT_ERROR: u8 = 1;

/// Exit status of `outboard diff` when changes would be made.
pub const EXIT_CHANGES: u8 = 2;

/// Exit status of a command line that cannot be understood (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { EXIT_USAGE } else { 0 };
            return match e.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::from(EXIT_ERROR),
            };
        }
    };
    let json = cli.global.json;
    run(cli).unwrap_or_else(|error| {
        error.print(json);
        ExitCode::from(EXIT_ERROR)
    })
}

fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let command = match cli.command {
        Command::Child(child) => return Err(up::child::run(&child)),
        command => command,
    };
    // One thread: a child started by it dies with it (`PR_SET_PDEATHSIG` watches the thread that forked).
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CliError::new(format!("cannot start: {e}"), "check the limits (ulimit -a)"))?;
    runtime.block_on(dispatch::run(&cli.global, command))
}
