//! `grant`: which host may have which port or volume.

use clap::{Args, Subcommand};
use outboard_api::grant::{GrantRequest, GrantView};
use outboard_protocol::id::Name;
use serde_json::Value;

use super::{binding::Kind, done, show, spelt};
use crate::{error::CliError, options::Global, output};

/// `outboard grant`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard grant list
  outboard grant revoke port vm1
  outboard grant create port vm1")]
pub struct GrantArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All grants, revoked ones included
    #[command(after_help = "Examples:\n  outboard grant list")]
    List,
    /// Let a host have a port or volume
    #[command(after_help = "\
Examples:
  outboard grant create port vm1
  outboard grant create volume disk1 --host rack7")]
    Create {
        /// port or volume
        kind: Kind,
        /// Its name
        name: Name,
        /// The host [default: that of the object's card]
        #[arg(long)]
        host: Option<Name>,
    },
    /// Take a port or volume back: the card silences it at once, and it stays silent until granted again
    #[command(after_help = "\
'revocation: pending' until the card has confirmed; 'outboard grant list' tells.

Examples:
  outboard grant revoke port vm1
  outboard grant revoke volume disk1 --json")]
    Revoke {
        /// port or volume
        kind: Kind,
        /// Its name
        name: Name,
    },
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &GrantArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => show(global, &client.get::<Vec<GrantView>>("/v1/grants").await?, |grants| {
            table(grants)
        }),
        Verb::Create { kind, name, host } => {
            let request = GrantRequest { host: host.clone() };
            let answer: Value = client
                .put(&format!("/v1/grants/{}/{name}", kind.name()), &request)
                .await?;
            done(global, &answer, &format!("{} {name} granted", kind.name()))
        }
        Verb::Revoke { kind, name } => {
            let answer: Value = client.delete(&format!("/v1/grants/{}/{name}", kind.name())).await?;
            let text = match answer.get("revocation").and_then(Value::as_str) {
                Some(progress) => format!("{} {name}: revocation {progress}", kind.name()),
                None => format!("{} {name} revoked", kind.name()),
            };
            done(global, &answer, &text)
        }
    }
}

fn table(grants: &[GrantView]) -> String {
    let row = |g: &GrantView| {
        [
            format!("{} {}", spelt(&g.kind), g.name),
            g.host.to_string(),
            g.card.to_string(),
            output::or_dash(g.generation),
            g.revocation
                .map_or_else(|| "granted".to_owned(), |r| format!("revocation {}", r.name())),
        ]
    };
    let header = ["OBJECT", "HOST", "CARD", "GENERATION", "STATE"];
    output::table(header, grants.iter().map(row).collect(), "There are no grants.")
}
