//! The all-in-one: broker, DPU and shim on one machine, from one topology file.
//!
//! | module | subject |
//! |---|---|
//! | [`plan`] | what the file asks of this machine; nothing is touched yet |
//! | [`layout`], [`lock`] | the run directory, and that it has one user |
//! | [`volumes`] | files that volumes need |
//! | [`config`] | the daemons' configuration files |
//! | [`child`], [`daemons`], [`log`] | starting, watching and stopping the daemons |
//! | [`sequence`] | the steps, in order |
//! | [`supervise`], [`restarts`] | daemons that end are started again; the DPU's upgrade |
//! | [`ready`], [`snippets`] | what is printed once all is ready |

pub mod child;
pub mod config;
pub mod daemons;
pub mod layout;
pub mod lock;
pub mod log;
pub mod plan;
pub mod progress;
pub mod ready;
pub mod restarts;
pub mod sequence;
pub mod snippets;
pub mod supervise;
pub mod volumes;

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{daemons::Daemons, layout::RunDir, plan::Plan, progress::Progress, supervise::Supervisor};
use crate::{commands::apply, error::CliError, options::Global};

/// `outboard up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Starts outboard-broker, outboard-dpu and outboard-shim (from the directory of this program), applies
FILE, attaches every port and volume, and prints arguments for QEMU and cloud-hypervisor and XML for
libvirt. Runs until Ctrl-C or SIGTERM, then stops what it started. Works without root. It talks to
the broker that it starts: --socket and --api do not apply.

The run directory keeps configuration, state and logs, and a later 'up' in it goes on from there:
  ports/NAME.sock, volumes/NAME.sock  the VMMs' sockets
  broker.sock, shim.sock, dpu.sock    the daemons' sockets
  *.toml, state/, log/*.log           their configuration, state and logs

A daemon that ends is started again, and what happened is said with the last lines of its log; the
guests go on. One that ends within 10 s of its start six times in a row is given up: all is stopped.
To upgrade the DPU, replace outboard-dpu's file and send SIGUSR1 to this process (its id is in the
file 'lock'): the new one takes over, and if it cannot start, the old one goes on. Broker and shim
are upgraded by SIGTERM to them: they are started again from their files as they are then.

With --json, one line tells all paths, process ids and arguments once everything is ready, and
each daemon that ended or started since is one more line.

Examples:
  outboard up two-vms.toml
  outboard up two-vms.toml --run-dir /tmp/ob --volume-dir /srv/volumes --core 1
  outboard up two-vms.toml --core 2,3               two workers
  outboard up two-vms.toml --json")]
pub struct UpArgs {
    /// The topology file; it may name one card
    pub file: PathBuf,

    /// Directory for sockets, state and logs [default: $OUTBOARD_RUN_DIR, or /run/outboard for root, or
    /// $XDG_RUNTIME_DIR/outboard]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory of volumes' files [default: that of FILE]
    #[arg(long, value_name = "DIR")]
    pub volume_dir: Option<PathBuf>,

    /// Workers of the DPU's datapath, each a thread: ports' queue pairs and volumes are spread over them [default: one for
    /// each --core, or one]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Pin the DPU's workers to these cores, one each [default: wherever the kernel puts them]
    #[arg(long = "core", value_name = "N,…", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// Connections that the DPU follows at a time, of all ports with groups [default: 2 million]
    #[arg(long, value_name = "N")]
    pub tracked_connections: Option<u32>,
}

/// Brings everything up, waits for a signal or for something to fail, and takes everything down again.
///
/// # Errors
/// Anything in the way of starting, or a daemon that ended again and again.
pub async fn run(global: &Global, args: &UpArgs) -> Result<(), CliError> {
    if global.api.is_some() {
        let remedy = "leave --api out; to use a broker elsewhere: outboard apply -f FILE --api URL …";
        return Err(CliError::coded("usage", "'up' starts a broker of its own", remedy));
    }
    let mut stop = StopSignals::new()?;
    let mut upgrade = listen(SignalKind::user_defined1())?;
    let plan = Plan::new(apply::load(&args.file)?, args)?;
    volumes::check(&plan)?;
    let dir = RunDir::open(&plan)?;
    let _lock = lock::take(&dir)?;
    let mut progress = Progress::new(global.json);
    let mut daemons = Daemons::new()?;
    let outcome = tokio::select! {
        outcome = run_until_failure(global, &plan, &dir, &mut daemons, &mut progress, &mut upgrade) => outcome,
        () = stop.received() => Ok(()),
    };
    progress.clear();
    daemons.stop(&mut progress).await;
    outcome
}

/// Returns only when something failed.
async fn run_until_failure(
    global: &Global,
    plan: &Plan,
    dir: &RunDir,
    daemons: &mut Daemons,
    progress: &mut Progress,
    upgrade: &mut Signal,
) -> Result<(), CliError> {
    let ready = sequence::start(plan, dir, daemons, progress).await?;
    progress.clear();
    ready.print(global.json)?;
    Err(Supervisor::new(dir, daemons, progress).run(upgrade).await)
}

fn listen(kind: SignalKind) -> Result<Signal, CliError> {
    signal(kind).map_err(|e| {
        CliError::new(
            format!("cannot listen for signals: {e}"),
            "check the limits (ulimit -a)",
        )
    })
}

/// The signals that ask `up` to end.
struct StopSignals([Signal; 3]);

impl StopSignals {
    fn new() -> Result<Self, CliError> {
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    async fn received(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
