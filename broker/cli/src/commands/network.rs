//! `network`: ports of one network exchange frames, ports of different ones never do.

use clap::{Args, Subcommand};
use outboard_api::{
    network::{NetworkSpec, NetworkView},
    subnet::Subnet,
};
use outboard_protocol::id::Name;
use serde_json::Value;

use super::{done, show};
use crate::{error::CliError, options::Global, output};

/// `outboard network`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  outboard network list
  outboard network create blue --subnet 10.0.0.0/24 --subnet fd00:1::/64")]
pub struct NetworkArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All networks
    #[command(after_help = "Examples:\n  outboard network list")]
    List,
    /// One network and its ports
    #[command(after_help = "Examples:\n  outboard network show blue")]
    Show {
        /// The network's name
        name: Name,
    },
    /// Make a network, or change it to what is said here
    #[command(after_help = "Examples:\n  outboard network create blue --subnet 10.0.0.0/24 --subnet fd00:1::/64")]
    Create {
        /// The network's name
        name: Name,
        /// Addresses that its ports may have; may be given several times
        #[arg(long = "subnet", value_name = "CIDR")]
        subnets: Vec<Subnet>,
        /// Its VLAN id, 1 to 4094: what subports on it have that name none of their own
        #[arg(long, value_name = "ID")]
        vlan: Option<u16>,
    },
    /// Delete a network that has no ports
    #[command(after_help = "Examples:\n  outboard network delete blue")]
    Delete {
        /// The network's name
        name: Name,
    },
}

/// Does it.
///
/// # Errors
/// The broker is away or refuses.
pub async fn run(global: &Global, args: &NetworkArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List => show(
            global,
            &client.get::<Vec<NetworkView>>("/v1/networks").await?,
            |networks| table(networks),
        ),
        Verb::Show { name } => show(global, &client.get(&format!("/v1/networks/{name}")).await?, details),
        Verb::Create { name, subnets, vlan } => {
            let spec = NetworkSpec {
                name: name.clone(),
                subnets: subnets.clone(),
                vlan: *vlan,
            };
            let answer: Value = client.put(&format!("/v1/networks/{name}"), &spec).await?;
            done(global, &answer, &format!("network {name} is declared"))
        }
        Verb::Delete { name } => {
            let answer: Value = client.delete(&format!("/v1/networks/{name}")).await?;
            done(global, &answer, &format!("network {name} deleted"))
        }
    }
}

fn table(networks: &[NetworkView]) -> String {
    let row = |n: &NetworkView| {
        [
            n.spec.name.to_string(),
            output::list(&n.spec.subnets),
            output::or_dash(n.spec.vlan),
            output::list(&n.ports),
        ]
    };
    let nothing = "There are no networks. Make one with: outboard network create NAME --subnet CIDR";
    output::table(
        ["NETWORK", "SUBNETS", "VLAN", "PORTS"],
        networks.iter().map(row).collect(),
        nothing,
    )
}

fn details(network: &NetworkView) -> String {
    output::details(vec![
        ("network", network.spec.name.to_string()),
        ("subnets", output::list(&network.spec.subnets)),
        ("vlan", output::or_dash(network.spec.vlan)),
        ("ports", output::list(&network.ports)),
    ])
}
