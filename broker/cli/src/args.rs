//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use crate::{
    client::{
        Client,
        connect::{Service, Target},
        tls::TlsTarget,
    },
    commands::{apply, binding, card, grant, network, operator, port, status, volume},
    error::CliError,
    paths, up,
};

/// Moves virtual machines' network and storage I/O to a DPU: declare networks, ports and volumes, and see what they do.
#[derive(Debug, Parser)]
#[command(
    name = "outboard",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "\
Examples:
  outboard up two-vms.toml                          everything on this machine, until Ctrl-C
  outboard diff -f two-vms.toml                     what would applying the file change?
  outboard apply -f two-vms.toml                    make it so
  outboard port show vm1                            its binding and counters
  outboard --json port list | jq '.[].binding.state'

Exit status: 0 done, 1 error, 2 'diff' found changes, 64 the command line cannot be understood.
With --json, an error is one line of JSON on standard error:
{\"error\":{\"code\", \"object\", \"message\", \"remedy\"}}"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The broker's unix socket [default: $OUTBOARD_RUN_DIR/broker.sock, or /run/outboard/broker.sock for root, or
    /// $XDG_RUNTIME_DIR/outboard/broker.sock]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "OUTBOARD_SOCKET",
        hide_env_values = true
    )]
    pub socket: Option<PathBuf>,

    /// A broker on the network instead, by mutual TLS; needs --ca, --cert and --key
    #[arg(long, global = true, value_name = "https://HOST:PORT")]
    pub api: Option<String>,

    /// With --api: the certificate authority that signed the broker's certificate, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,

    /// With --api: the operator's certificate, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub cert: Option<PathBuf>,

    /// With --api: the operator's private key, PEM
    #[arg(long, global = true, value_name = "FILE")]
    pub key: Option<PathBuf>,

    /// Answer in JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Repeat a change whose outcome is unknown: the broker acts once per id and gives the stored answer (7 days)
    #[arg(long, global = true, value_name = "UUID")]
    pub operation_id: Option<Uuid>,
}

impl Global {
    /// A client of the broker that the options name.
    ///
    /// # Errors
    /// Options that do not go together, files that cannot be used, or no run directory.
    pub fn client(&self) -> Result<Client, CliError> {
        Ok(Client::new(self.target()?).with_operation_id(self.operation_id))
    }

    fn target(&self) -> Result<Target, CliError> {
        let usage = |message: &str, remedy: &str| Err(CliError::coded("usage", message, remedy));
        match (&self.api, &self.ca, &self.cert, &self.key) {
            (Some(url), Some(ca), Some(cert), Some(key)) => {
                Ok(Target::Tls(Box::new(TlsTarget::new(url, ca, cert, key)?)))
            }
            (Some(_), ..) => usage("--api needs --ca, --cert and --key", "name the three files"),
            (None, None, None, None) => {
                let socket = match &self.socket {
                    Some(path) => path.clone(),
                    None => paths::run_dir()?.join(paths::BROKER_SOCKET),
                };
                Ok(Target::socket(socket, Service::Broker))
            }
            _ => usage(
                "--ca, --cert and --key are for --api",
                "add --api https://HOST:PORT, or leave them out",
            ),
        }
    }
}

/// Nouns and verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start broker, DPU and shim on this machine from one file, and print what VMMs need
    Up(up::UpArgs),
    /// Make networks, ports and volumes as a file declares them
    Apply(apply::ApplyArgs),
    /// Show what applying a file would change; exit status 2 if anything
    Diff(apply::DiffArgs),
    /// Show the broker, its cards, and every port and volume
    Status(status::StatusArgs),
    /// DPUs: list, show, enrol, remove
    Card(card::CardArgs),
    /// Networks: list, show, create, delete
    Network(network::NetworkArgs),
    /// Ports, a guest's virtio-net devices: list, show, create, delete
    Port(port::PortArgs),
    /// Volumes, a guest's virtio-blk devices: list, show, create, delete
    Volume(volume::VolumeArgs),
    /// Which host may have which port or volume: list, create, revoke
    Grant(grant::GrantArgs),
    /// Which host has which port or volume: list, show
    Binding(binding::BindingArgs),
    /// People and programs that may use the broker's network API: issue
    Operator(operator::OperatorArgs),
    /// Runs a program that dies with its parent: how `up` starts its daemons
    #[command(name = "__child", hide = true)]
    Child(up::child::ChildArgs),
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
