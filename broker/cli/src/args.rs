//! What can be typed.

use clap::{Parser, Subcommand};

use crate::{
    commands::{
        address_set, apply, binding, capture, card, explain, flow, grant, group, network, operator, port, status,
        trace, volume,
    },
    options::Global,
    up,
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
  outboard explain port/vm1                         does it work, and if not, why not?
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

/// Nouns and verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start broker, DPU and shim on this machine from one file, and print what VMMs need
    Up(up::UpArgs),
    /// Make networks, security groups, ports and volumes as a file declares them
    Apply(apply::ApplyArgs),
    /// Show what applying a file would change; exit status 2 if anything
    Diff(apply::DiffArgs),
    /// Show the broker, its cards, and every port and volume
    Status(status::StatusArgs),
    /// DPUs: list, show, enrol, remove
    Card(card::CardArgs),
    /// Networks: list, show, create, delete
    Network(network::NetworkArgs),
    /// Security groups and their rules, what ports may receive and send: list, show, add, remove, rule
    Group(group::GroupArgs),
    /// Lists of addresses that rules name: list, show, add, remove
    AddressSet(address_set::AddressSetArgs),
    /// Ports, a guest's virtio-net devices: list, show, create, set, delete
    Port(port::PortArgs),
    /// Volumes, a guest's virtio-blk devices: list, show, create, delete
    Volume(volume::VolumeArgs),
    /// Which host may have which port or volume: list, create, revoke
    Grant(grant::GrantArgs),
    /// Which host has which port or volume: list, show
    Binding(binding::BindingArgs),
    /// Why a port or volume is as it is, and what to do about it
    Explain(explain::ExplainArgs),
    /// What would become of a packet that a port's guest sent
    Trace(trace::TraceArgs),
    /// Frames that pass a port, with the reason of each drop, into a pcapng file
    Capture(capture::CaptureArgs),
    /// Connections that the firewall follows: list, flush
    Flow(flow::FlowArgs),
    /// Every reason for which frames are dropped, with its meaning
    Reasons(explain::ReasonsArgs),
    /// People and programs that may use the broker's network API: issue
    Operator(operator::OperatorArgs),
    /// Runs a program that dies with its parent: how `up` starts its daemons
    #[command(name = "__child", hide = true)]
    Child(up::child::ChildArgs),
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
