//! Options of every command, and the broker that they name.

use std::path::PathBuf;

use clap::Args;
use uuid::Uuid;

use crate::{
    client::{
        Client,
        connect::{Service, Target},
        tls::TlsTarget,
    },
    error::CliError,
    paths,
};

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
