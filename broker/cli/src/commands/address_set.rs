//! `address-set`: named lists of addresses that rules of security groups share.

use clap::{Args, Subcommand};
use outboard_api::address_set::{AddressSetSpec, AddressSetView, Prefix};
use outboard_protocol::id::Name;
use serde_json::Value;

use super::{done, show};
use crate::{error::CliError, options::Global, output};

/// `outboard address-set`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard address-set list
  outboard address-set add partners 192.0.2.0/24 2001:db8::7
  outboard group rule add web --direction ingress --protocol tcp --ports 443 --address-set partners")]
pub struct AddressSetArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All address sets
    #[command(after_help = "Examples:\n  outboard address-set list")]
    List,
    /// One address set, all of it
    #[command(after_help = "Examples:\n  outboard address-set show partners")]
    Show {
        /// The set's name
        name: Name,
    },
    /// Make an address set, or change it to what is said here
    #[command(after_help = "\
Rules that name the set follow it at once.

Examples:
  outboard address-set add partners 192.0.2.0/24 2001:db8::7")]
    Add {
        /// The set's name
        name: Name,
        /// Its addresses and subnets
        #[arg(value_name = "ADDRESS|CIDR")]
        addresses: Vec<Prefix>,
    },
    /// Remove an address set that no rule names
    #[command(after_help = "Examples:\n  outboard address-set remove partners")]
    Remove {
        /// The set's name
        name: Name,
    },
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &AddressSetArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => {
            let sets: Vec<AddressSetView> = client.get("/v1/address-sets").await?;
            show(global, &sets, |sets| table(sets))
        }
        Verb::Show { name } => show(global, &client.get(&format!("/v1/address-sets/{name}")).await?, details),
        Verb::Add { name, addresses } => {
            let spec = AddressSetSpec {
                name: name.clone(),
                addresses: addresses.clone(),
            };
            let answer: Value = client.put(&format!("/v1/address-sets/{name}"), &spec).await?;
            done(global, &answer, &format!("address set {name} is declared"))
        }
        Verb::Remove { name } => {
            let answer: Value = client.delete(&format!("/v1/address-sets/{name}")).await?;
            done(global, &answer, &format!("address set {name} removed"))
        }
    }
}

fn table(sets: &[AddressSetView]) -> String {
    let row = |s: &AddressSetView| {
        [
            s.spec.name.to_string(),
            s.spec.addresses.len().to_string(),
            output::list(&s.named_by),
        ]
    };
    let nothing = "There are no address sets. Make one with: outboard address-set add NAME CIDR …";
    output::table(
        ["ADDRESS SET", "ADDRESSES", "NAMED BY GROUPS"],
        sets.iter().map(row).collect(),
        nothing,
    )
}

fn details(set: &AddressSetView) -> String {
    output::details(vec![
        ("address set", set.spec.name.to_string()),
        ("addresses", output::list(&set.spec.addresses)),
        ("named by groups", output::list(&set.named_by)),
    ])
}
