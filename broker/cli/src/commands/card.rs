//! `card`: enrolled DPUs.

use clap::{Args, Subcommand};
use outboard_api::card::{CardView, EnrolRequest, EnrolResponse};
use outboard_protocol::id::Name;
use serde_json::Value;

use super::{done, show, spelt};
use crate::{error::CliError, options::Global, output};

/// `outboard card`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard card list
  outboard card enrol rack7 --serial OB-0001
  outboard card show rack7")]
pub struct CardArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All cards: state, isolation, attestation
    #[command(after_help = "\
ISOLATION tells who is held off: 'machine', the DPU is on another kernel and the host's root is held
off too; 'process', the DPU shares the host's kernel and its root is trusted.

Examples:
  outboard card list
  outboard card list --json")]
    List,
    /// One card
    #[command(after_help = "Examples:\n  outboard card show rack7")]
    Show {
        /// The card's name
        name: Name,
    },
    /// Make a card known and print the one-time token that gets it its certificate
    #[command(after_help = "\
The token is shown once. On the DPU: outboard-dpu enrol --config dpu.toml --token TOKEN
Enrolling a card again gives it a new certificate; the old one stops working.

Examples:
  outboard card enrol rack7 --serial OB-0001
  outboard card enrol rack7 --serial OB-0001 --ttl 600 --json")]
    Enrol {
        /// The card's name
        name: Name,
        /// Its serial; no two cards may have the same
        #[arg(long)]
        serial: String,
        /// Seconds until the token expires [default: an hour]
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
    },
    /// Forget a card; its certificate stops working
    #[command(after_help = "Examples:\n  outboard card remove rack7")]
    Remove {
        /// The card's name
        name: Name,
    },
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &CardArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => show(global, &client.get::<Vec<CardView>>("/v1/cards").await?, |cards| {
            table(cards)
        }),
        Verb::Show { name } => show(global, &client.get(&format!("/v1/cards/{name}")).await?, details),
        Verb::Enrol { name, serial, ttl } => {
            let request = EnrolRequest {
                serial: serial.clone(),
                ttl_s: *ttl,
            };
            let answer: EnrolResponse = client.post(&format!("/v1/cards/{name}/enrol"), &request).await?;
            show(global, &answer, |answer| {
                let run = format!("outboard-dpu enrol --config dpu.toml --token {}", answer.token);
                format!("On the DPU of card {name}, before {}:\n\n  {run}", answer.expires)
            })
        }
        Verb::Remove { name } => {
            let answer: Value = client.delete(&format!("/v1/cards/{name}")).await?;
            done(global, &answer, &format!("card {name} removed"))
        }
    }
}

/// The table of all cards.
pub fn table(cards: &[CardView]) -> String {
    let row = |c: &CardView| {
        [
            c.name.to_string(),
            c.serial.clone(),
            c.state.name().to_owned(),
            output::or_dash(c.isolation.as_ref().map(spelt)),
            c.attestation.name().to_owned(),
            revision(c),
        ]
    };
    let header = ["CARD", "SERIAL", "STATE", "ISOLATION", "ATTESTATION", "REVISION"];
    let nothing = "There are no cards. Make one known with: outboard card enrol NAME --serial SERIAL";
    output::table(header, cards.iter().map(row).collect(), nothing)
}

fn revision(card: &CardView) -> String {
    match card.revision_applied {
        Some(applied) if applied == card.revision_wanted => applied.to_string(),
        applied => format!("{} of {}", output::or_dash(applied), card.revision_wanted),
    }
}

fn details(card: &CardView) -> String {
    output::details(vec![
        ("card", card.name.to_string()),
        ("serial", card.serial.clone()),
        ("state", card.state.name().to_owned()),
        ("isolation", output::or_dash(card.isolation.as_ref().map(spelt))),
        ("attestation", card.attestation.name().to_owned()),
        ("boot epoch", output::or_dash(card.dpu_epoch)),
        ("revision", revision(card)),
        ("certificate ends", output::or_dash(card.certificate_expires)),
        ("last seen", output::or_dash(card.last_seen)),
    ])
}
