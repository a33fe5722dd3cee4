//! `trace`: what would become of a packet.

use clap::Args;
use outboard_api::trace::{EndView, StepView, TraceRequest, TraceView};
use outboard_packet::Packet;
use outboard_protocol::id::Name;

use super::{show, spelt};
use crate::{error::CliError, options::Global, output};

/// `outboard trace`.
#[derive(Debug, Args)]
#[command(after_help = "\
The card decides by the very code that decides about traffic, and sends, opens and counts nothing.

Packets:
  tcp SOURCE[:PORT] > DESTINATION[:PORT]     options: flags SA, seq N, ack N, window N
  udp SOURCE[:PORT] > DESTINATION[:PORT]
  icmp SOURCE > DESTINATION                  options: type N, code N, id N, seq N; an echo request
  icmp6 SOURCE > DESTINATION                 the same, for IPv6
  arp [request|reply] SENDER > TARGET
  ip SOURCE > DESTINATION                    options: protocol N
Options of all: from MAC, to MAC, vlan N; of all but arp: ttl N, len BYTES, fragment first|later.
IPv6 with a port is written [fd00::1]:80. TCP without flags is a SYN. Without 'from' and 'to' the
MACs are the port's and that of the port with the destination address.

Examples:
  outboard trace --port vm1 'tcp 10.0.0.1:1234 > 10.0.0.2:80'
  outboard trace --port vm1 'tcp 10.0.0.1:1234 > 10.0.0.2:80 flags SA len 100'
  outboard trace --port vm1 'icmp6 fd00::1 > fd00::2'
  outboard trace --port vm1 'arp 10.0.0.1 > 10.0.0.2'")]
pub struct TraceArgs {
    /// The port whose guest would send it
    #[arg(long)]
    port: Name,
    /// The packet, in one argument or several
    #[arg(required = true)]
    packet: Vec<String>,
}

/// Asks, and prints the packet's way.
///
/// # Errors
/// The packet cannot be understood, the broker is away, or the card cannot be asked.
pub async fn run(global: &Global, args: &TraceArgs) -> Result<(), CliError> {
    let packet = args.packet.join(" ");
    // Looked at here first: this side can show where it is wrong.
    if let Err(error) = packet.parse::<Packet>() {
        let notes = error.point(&packet).lines().map(str::to_owned).collect();
        let remedy = "see 'outboard trace --help' for what can be written";
        return Err(CliError::coded("bad_packet", error.to_string(), remedy).with_notes(notes));
    }
    let path = format!("/v1/ports/{}/trace", args.port);
    let trace: TraceView = global.client()?.query(&path, &TraceRequest { packet }).await?;
    show(global, &trace, text)
}

fn text(trace: &TraceView) -> String {
    let [source, destination] = trace.macs;
    let head = format!(
        "{}\nfrom port {} on card {}: {} bytes, {source} > {destination}",
        trace.packet, trace.port, trace.card, trace.frame_len
    );
    let row = |step: &StepView| {
        let detail = match &step.rule {
            Some(rule) => format!("{} (rule {rule})", step.detail),
            None => step.detail.clone(),
        };
        [step.layer.clone(), spelt(&step.verdict), detail]
    };
    let steps = output::table(["LAYER", "VERDICT", "WHY"], trace.steps.iter().map(row).collect(), "");
    let ends: Vec<_> = trace.ends.iter().map(end).collect();
    let ends = match ends.as_slice() {
        [] => "It goes nowhere.".to_owned(),
        ends => ends.join("\n"),
    };
    format!("{head}\n\n{steps}\n\n{ends}")
}

fn end(end: &EndView) -> String {
    match &end.dropped {
        None => format!("It is given to port {}.", end.port),
        Some(reason) => format!(
            "It is dropped at port {}: {}. {}",
            end.port, reason.name, reason.sentence
        ),
    }
}
