//! `outboard-shim`: the daemon, and the verbs that talk to it.
#![forbid(unsafe_code)]

use std::{fmt::Display, io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use host_shim::{
    api::Api,
    client::{Client, ClientError},
    config::Config,
    daemon::Daemon,
};
use outboard_shim_api::{DeviceKind, DeviceSpec, DeviceView, Health, Release, Role};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The host's side of Outboard: opens sockets for VMMs and hands each session to the DPU.
#[derive(Debug, Parser)]
#[command(name = "outboard-shim", version)]
struct Arguments {
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// How much is logged: error, warn, info, debug, trace, or a filter as in RUST_LOG.
    #[arg(long = "log", global = true, env = "RUST_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the shim until it is told to stop.
    Run {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Attach a port or volume that is granted to this host.
    Attach {
        /// Port or volume.
        #[arg(value_enum)]
        kind: Kind,
        /// Its name.
        name: String,
        /// The VMM's socket [default: ports/NAME.sock or volumes/NAME.sock in the shim's socket_dir].
        #[arg(long)]
        socket: Option<PathBuf>,
        /// `listen` where the VMM connects, `connect` where the VMM listens (QEMU's server=on).
        #[arg(long, value_enum, default_value_t = RoleArgument::Listen)]
        role: RoleArgument,
        /// The uid that the VM's process runs as.
        #[arg(long)]
        uid: Option<u32>,
        #[command(flatten)]
        api: ApiArguments,
    },
    /// Detach a port or volume and give it back.
    Detach {
        /// Port or volume.
        #[arg(value_enum)]
        kind: Kind,
        /// Its name.
        name: String,
        #[command(flatten)]
        api: ApiArguments,
    },
    /// List the devices.
    List(ApiArguments),
    /// Tell how the shim is doing; exits with 1 if something is wrong.
    Health(ApiArguments),
}

#[derive(Debug, Args)]
struct ApiArguments {
    /// The shim's API socket.
    #[arg(long, env = "OUTBOARD_SHIM_API")]
    api: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Port,
    Volume,
}

impl From<Kind> for DeviceKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Port => Self::Port,
            Kind::Volume => Self::Volume,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArgument {
    Listen,
    Connect,
}

impl From<RoleArgument> for Role {
    fn from(role: RoleArgument) -> Self {
        match role {
            RoleArgument::Listen => Self::Listen,
            RoleArgument::Connect => Self::Connect,
        }
    }
}

/// What went wrong, and what to do.
struct Failure {
    error: String,
    fix: String,
}

impl Failure {
    fn new(error: impl Display, fix: impl Into<String>) -> Self {
        Self {
            error: error.to_string(),
            fix: fix.into(),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(&error, error.remedy())
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match start(arguments) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {}", failure.error);
            eprintln!("  fix: {}", failure.fix);
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<ExitCode, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("the shim cannot start: {e}"), "raise the limit of open files"))?;
    if matches!(arguments.verb, Verb::Run { .. }) {
        start_log(arguments.log_format, &arguments.log)?;
    }
    runtime.block_on(execute(arguments.verb))
}

fn start_log(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|e| Failure::new(format!("--log {filter}: {e}"), "use error, warn, info, debug or trace"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn run(path: &std::path::Path) -> Result<(), Failure> {
    let config = Config::load(path).map_err(|e| Failure::new(&e, e.remedy()))?;
    let no_signal = |e| {
        Failure::new(
            format!("signals cannot be handled: {e}"),
            "raise the limit of open files",
        )
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signal)?;
    let api = Api::bind(&config.api_socket, &config.api_uids).map_err(|e| {
        let problem = e.problem();
        Failure::new(problem.error, problem.remedy)
    })?;
    let daemon = Daemon::start(&config).map_err(|e| Failure::new(&e, e.remedy()))?;
    if outboard_controls::SWITCHABLE {
        tracing::warn!("this is a test build in which checks can be switched off");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), api = %config.api_socket.display(), "the shim is running");
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let served = api.serve(daemon.shim(), stop).await;
    tracing::info!("the shim is stopping; its bindings stay");
    daemon.stop();
    served.map_err(|e| Failure::new(format!("the API's socket failed: {e}"), "start the shim again"))
}

async fn execute(verb: Verb) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Run { config } => {
            run(&config).await?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Attach {
            kind,
            name,
            socket,
            role,
            uid,
            api,
        } => {
            let spec = DeviceSpec {
                kind: kind.into(),
                name,
                socket,
                role: role.into(),
                uid,
            };
            let view = Client::new(&api.api).attach(&spec).await?;
            print(api.json, &view, || {
                format!(
                    "{} {}: {} at {}",
                    view.kind,
                    view.name,
                    view.state,
                    view.socket.display()
                )
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Detach { kind, name, api } => {
            let kind = DeviceKind::from(kind);
            let detached = Client::new(&api.api).detach(kind, &name).await?;
            print(api.json, &detached, || match detached.release {
                Release::Done => format!("{kind} {name}: detached and given back"),
                Release::Pending => format!("{kind} {name}: detached; given back once the DPU answers"),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::List(api) => {
            let list = Client::new(&api.api).list().await?;
            print(api.json, &list, || table(&list.devices))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Health(api) => {
            let health = Client::new(&api.api).health().await?;
            print(api.json, &health, || report(&health))?;
            Ok(if health.healthy {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

fn print<T: serde::Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let text = if json {
        serde_json::to_string_pretty(value).map_err(|e| Failure::new(e, "leave out --json"))?
    } else {
        text()
    };
    println!("{text}");
    Ok(())
}

fn report(health: &Health) -> String {
    let link = match (&health.link.card, &health.link.problem) {
        (Some(card), _) => format!("link: connected to {card}"),
        (None, Some(problem)) => format!("link: away: {}\n  fix: {}", problem.error, problem.remedy),
        (None, None) => "link: away".to_owned(),
    };
    format!("outboard-shim {}\n{link}\n{}", health.version, table(&health.devices))
}

fn table(devices: &[DeviceView]) -> String {
    if devices.is_empty() {
        return "no devices".to_owned();
    }
    let mut lines = vec![format!(
        "{:<24} {:<18} {:<8} {:>8} {:>7} {}",
        "DEVICE", "STATE", "ROLE", "SESSIONS", "REPLAYS", "SOCKET"
    )];
    for device in devices {
        let name = format!("{} {}", device.kind, device.name);
        lines.push(format!(
            "{name:<24} {:<18} {:<8} {:>8} {:>7} {}",
            device.state,
            device.role,
            device.sessions,
            device.replays,
            device.socket.display()
        ));
        if let Some(problem) = &device.problem {
            lines.push(format!("  problem: {}\n      fix: {}", problem.error, problem.remedy));
        }
    }
    lines.join("\n")
}
