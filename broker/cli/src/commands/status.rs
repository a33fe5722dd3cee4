//! `status`: everything at a glance.

use clap::Args;
use outboard_api::{card::CardView, health::Health, port::PortView, volume::VolumeView};
use serde::Serialize;

use super::{card, port, show, volume};
use crate::{error::CliError, options::Global};

/// `outboard status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard status
  outboard status --json | jq .broker.cards_connected")]
pub struct StatusArgs {}

/// What `status --json` prints.
#[derive(Debug, Serialize)]
pub struct Status {
    broker: Health,
    cards: Vec<CardView>,
    ports: Vec<PortView>,
    volumes: Vec<VolumeView>,
}

/// Asks for all of it and prints it.
///
/// # Errors
/// The broker is away.
pub async fn run(global: &Global, _args: &StatusArgs) -> Result<(), CliError> {
    let client = global.client()?;
    let status = Status {
        broker: client.get("/v1/health").await?,
        cards: client.get("/v1/cards").await?,
        ports: client.get("/v1/ports").await?,
        volumes: client.get("/v1/volumes").await?,
    };
    let target = client.target().to_string();
    show(global, &status, |s| {
        let head = format!(
            "{target}: version {}, {} card(s) connected",
            s.broker.version, s.broker.cards_connected
        );
        [
            head,
            card::table(&s.cards),
            port::table(&s.ports),
            volume::table(&s.volumes),
        ]
        .join("\n\n")
    })
}
