//! `flow`: connections that the firewall follows.

use clap::{Args, Subcommand};
use outboard_api::flow::{FlowRequest, FlowView, FlowsView, FlushedView};
use outboard_packet::parse_filter;
use outboard_protocol::id::Name;

use super::show;
use crate::{error::CliError, options::Global, output};

/// `outboard flow`.
#[derive(Debug, Args)]
#[command(after_help = "\
Connections are followed where a port of the network has security groups.

Examples:
  outboard flow list
  outboard flow list --port vm1 'tcp dst port 80'
  outboard flow flush --port vm1 'host 10.0.0.9'")]
pub struct FlowArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Connections: ends, state, age
    #[command(after_help = "\
Filters are those of 'outboard capture'; source and destination are those of the first packet.

Examples:
  outboard flow list --port vm1
  outboard flow list 'udp port 53' --limit 20 --json | jq -r '.flows[].state'")]
    List {
        /// Only those of this port, at either end
        #[arg(long)]
        port: Option<Name>,
        /// At most so many of each card
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: u32,
        /// Which ones, in one argument or several [default: all]
        filter: Vec<String>,
    },
    /// End connections: the next packet of each is judged as the first of a new one
    #[command(after_help = "\
Examples:
  outboard flow flush --port vm1
  outboard flow flush 'tcp and host 10.0.0.9'
  outboard flow flush --all")]
    Flush {
        /// Only those of this port, at either end
        #[arg(long)]
        port: Option<Name>,
        /// Which ones, in one argument or several
        #[arg(required_unless_present_any = ["port", "all"])]
        filter: Vec<String>,
        /// All there are
        #[arg(long, conflicts_with_all = ["port", "filter"])]
        all: bool,
    },
}

/// Does it.
///
/// # Errors
/// The filter cannot be understood, or broker or card cannot be asked.
pub async fn run(global: &Global, args: &FlowArgs) -> Result<(), CliError> {
    let client = global.client()?;
    match &args.verb {
        Verb::List { port, limit, filter } => {
            let request = FlowRequest {
                port: port.clone(),
                filter: checked(filter)?,
                limit: Some(*limit),
            };
            let flows: FlowsView = client.query("/v1/flows/list", &request).await?;
            show(global, &flows, table)
        }
        Verb::Flush { port, filter, .. } => {
            let request = FlowRequest {
                port: port.clone(),
                filter: checked(filter)?,
                limit: None,
            };
            let flushed: FlushedView = client.query("/v1/flows/flush", &request).await?;
            show(global, &flushed, |f| {
                with_unknown(format!("{} connections were ended", f.count), &f.unknown)
            })
        }
    }
}

/// The filter as one text, if it is one.
fn checked(words: &[String]) -> Result<String, CliError> {
    let filter = words.join(" ");
    match parse_filter(&filter) {
        Ok(_) => Ok(filter),
        Err(error) => {
            let notes = error.point(&filter).lines().map(str::to_owned).collect();
            let remedy = "see 'outboard capture --help' for what can be written";
            Err(CliError::coded("bad_filter", error.to_string(), remedy).with_notes(notes))
        }
    }
}

fn table(view: &FlowsView) -> String {
    let row = |flow: &FlowView| {
        [
            flow.network.to_string(),
            protocol(flow.protocol),
            source(flow),
            destination(flow),
            flow.state.clone(),
            format!("{} s", flow.age_s),
            format!("{} s", flow.left_s),
            output::or_dash(flow.from.as_ref()),
            output::or_dash(flow.to.as_ref()),
        ]
    };
    let header = [
        "NETWORK",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "STATE",
        "AGE",
        "LIVES",
        "FROM",
        "TO",
    ];
    let rows = view.flows.iter().map(row).collect();
    let mut text = output::table(header, rows, "There are no connections.");
    if view.more {
        text.push_str("\n\nThere are more: filter, or raise --limit.");
    }
    with_unknown(text, &view.unknown)
}

fn with_unknown(mut text: String, unknown: &[String]) -> String {
    for why in unknown {
        text.push_str("\nnot asked: ");
        text.push_str(why);
    }
    text
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn is_icmp(flow: &FlowView) -> bool {
    matches!(flow.protocol, 1 | 58)
}

fn source(flow: &FlowView) -> String {
    match flow.source_port {
        id if is_icmp(flow) => format!("{} id {id}", flow.source),
        0 => flow.source.to_string(),
        port => std::net::SocketAddr::new(flow.source, port).to_string(),
    }
}

fn destination(flow: &FlowView) -> String {
    match flow.destination_port {
        both if is_icmp(flow) => {
            let [kind, code] = both.to_be_bytes();
            format!("{} type {kind} code {code}", flow.destination)
        }
        0 => flow.destination.to_string(),
        port => std::net::SocketAddr::new(flow.destination, port).to_string(),
    }
}
