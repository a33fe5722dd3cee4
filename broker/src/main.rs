//! The broker's daemon.
#![forbid(unsafe_code)]

use std::{io::IsTerminal, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use outboard_broker::{broker::Broker, config::Config, error::StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long connections may take to end when the broker stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Registry of cards, networks, ports, volumes and grants, and their allocator.
#[derive(Debug, Parser)]
#[command(name = "outboard-broker", version)]
struct Arguments {
    /// How log lines are written.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged: a level, or a filter such as `outboard_broker=debug`.
    #[arg(long, global = true, env = "RUST_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker until it is told to stop (SIGTERM or SIGINT).
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match set_up_log(&arguments).and_then(|()| run(&arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn set_up_log(arguments: &Arguments) -> Result<(), StartError> {
    let filter = EnvFilter::try_new(&arguments.log).map_err(|e| {
        StartError::new(
            format!("--log {}: {e}", arguments.log),
            "use error, warn, info, debug or trace",
        )
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

fn run(command: &Command) -> Result<(), StartError> {
    let Command::Run { config } = command;
    let config = Config::load(config)?;
    let failed = |e: std::io::Error| StartError::new(format!("cannot start: {e}"), "raise the limits of this user");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(failed)?;
    let stopping = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let broker = Broker::start(&config).await?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            // Without its core it would answer everybody that it is stopping, for ever.
            error = broker.broken() => return Err(error),
        }
        tracing::info!("the broker is stopping");
        Ok::<_, StartError>(broker.stop().await)
    })?;
    // Connections go with the runtime; then the core has nobody left to serve and closes the store.
    runtime.shutdown_timeout(STOP_TIMEOUT);
    stopping.finish();
    Ok(())
}
