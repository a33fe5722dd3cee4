//! The command line of `outboard-dpu`: enrols this card with its broker, and serves its host.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    config::Config, daemon::Daemon, enrolment, error::Failure, forgotten, log_writer::LogWriter, state_lock::IfHeld,
};

/// The DPU's daemon: enforces what the broker wants, serves the host's link and runs the datapath.
#[derive(Parser)]
#[command(name = "outboard-dpu", version)]
struct Cli {
    /// How log lines look.
    #[arg(long, value_enum, default_value = "text", global = true)]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or a filter as in RUST_LOG.
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true, value_name = "LEVEL")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Redeem a one-time token from `outboard card enrol` for this card's certificate.
    Enrol {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The token. Give `-` to read it from standard input, where it shows in no process list.
        #[arg(long)]
        token: String,
    },
    /// Forget the host's boot epoch, while the daemon is stopped. For a host that is refused as stale ("host has boot
    /// epoch …") because it once said an epoch that it cannot reach again; its grants and bindings stay.
    ForgetHostEpoch {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Serve until SIGTERM or SIGINT.
    #[command(after_help = "\
To upgrade, start the new program while the old one serves:

  outboard-dpu run --config dpu.toml --take-over

It asks the old one to stop, which ends when nothing of its guests is in flight, and goes on at once
from what that left. No VM notices but for a pause of some 10 ms: the shim keeps their sessions. Under
a supervisor, replace the program's file and restart the service, which does the same with a longer
pause. A DPU that was killed is started again in the same way, and nothing else is to be done.")]
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// If another outboard-dpu serves with this state directory, ask it to stop and go on in its place.
        #[arg(long)]
        take_over: bool,
    },
}

/// What the program does, from its arguments to its exit status.
pub fn run_program() -> ExitCode {
    let cli = Cli::parse();
    let done = log_to_stderr(&cli).and_then(|log| {
        let done = match cli.command {
            Command::Enrol { config, token } => enrol(&config, token),
            Command::Run { config, take_over } => run(&config, take_over),
            Command::ForgetHostEpoch { config } => forget_host_epoch(&config),
        };
        log.flush_all();
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}\n  fix: {}", failure.fix());
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(cli: &Cli) -> Result<LogWriter, Failure> {
    let filter = EnvFilter::try_new(&cli.log).map_err(|e| {
        Failure::new(
            format!("--log {:?} is no log level or filter: {e}", cli.log),
            "use info, or debug",
        )
    })?;
    let log = LogWriter::start(std::io::stderr())
        .map_err(|e| Failure::new(format!("no thread: {e}"), "raise the limit on processes (ulimit -u)"))?;
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        .with_ansi(std::io::stderr().is_terminal());
    match cli.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(log)
}

fn enrol(config: &std::path::Path, token: String) -> Result<(), Failure> {
    let config = Config::load(config)?;
    let token = if token == "-" {
        std::io::read_to_string(std::io::stdin())
            .map_err(|e| Failure::new(format!("no token on standard input: {e}"), "give it with --token"))?
    } else {
        token
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| {
        Failure::new(
            format!("cannot start: {e}"),
            "raise the limit on open files (ulimit -n)",
        )
    })?;
    let identity = runtime.block_on(enrolment::enrol(&config, &token))?;
    println!("card '{}' is enrolled with broker {}", identity.card, identity.broker);
    Ok(())
}

fn forget_host_epoch(config: &std::path::Path) -> Result<(), Failure> {
    let config = Config::load(config)?;
    match forgotten::forget_host_epoch(&config)? {
        Some(epoch) => println!("boot epoch {epoch} is forgotten; start outboard-dpu again"),
        None => println!("no host has said a boot epoch yet; nothing was changed"),
    }
    Ok(())
}

fn run(config: &std::path::Path, take_over: bool) -> Result<(), Failure> {
    let config = Config::load(config)?;
    if outboard_controls::SWITCHABLE {
        tracing::warn!("this is a test build, in which checks can be turned off: never serve anybody's VMs with it");
    }
    // One that was killed a moment ago may not be gone yet.
    let if_held = if take_over {
        IfHeld::TakeOver
    } else {
        IfHeld::WaitForDeath
    };
    let daemon = Daemon::start(&config, if_held)?;
    let end = daemon.wait();
    daemon.stop();
    end
}
