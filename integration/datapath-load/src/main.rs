//! `datapath-load CASE --operations N`: the production switch, or a production volume, for a fixed number of operations
//! in one thread, with drivers that poll. `cargo bench-instructions` counts what it executes.
//!
//! Nothing else runs: no sessions, no worker that sleeps, no other thread. What the device does happens in
//! `measured_breath`, by which a profiler tells it from the driver. What preparation and warm-up cost there is the same
//! however many operations follow: the difference of two runs is without it. Every answer and the length of every frame
//! are checked, and of some frames each byte, so that a figure is never that of dropping.
//!
//! # What it doesn't implement
//! Notifications, several queue pairs, dirty logging, and in-flight regions.
#![forbid(unsafe_code)]

mod blk;
mod error;
mod frames;
mod guest;
mod net;
mod policy;
mod victim;

use std::{process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::{error::Error, victim::Attack};

/// Operations that are done before it counts: caches, lazily bound symbols and lazily made memory are settled then.
const WARM_UP: u64 = 512;

#[derive(Parser)]
#[command(about = "Drive the datapath for a fixed number of operations in one thread")]
struct Arguments {
    /// What is done.
    case: Case,
    /// How many frames or requests, rounded up to whole bursts.
    #[arg(long, short = 'n', default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..))]
    operations: u64,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Case {
    /// UDP frames of 64 bytes on a wire (60 in the ring), one flow.
    #[value(name = "l2-64")]
    #[serde(rename = "l2-64")]
    L2Small,
    /// The same of 1518.
    #[value(name = "l2-1518")]
    #[serde(rename = "l2-1518")]
    L2Large,
    /// Seven of 64, four of 594 and one of 1518, of 4096 flows.
    #[value(name = "l2-64-imix-flows")]
    #[serde(rename = "l2-64-imix-flows")]
    Imix,
    /// TCP segments of 64 KiB, from an indirect table of 4 KiB pieces into merged buffers of 2 KiB.
    #[value(name = "tso-64k")]
    #[serde(rename = "tso-64k")]
    Tso,
    /// As l2-64, with security groups at both ends: all frames are of one connection.
    #[value(name = "fw-64")]
    #[serde(rename = "fw-64")]
    FirewallSmall,
    /// The same of 1024 connections.
    #[value(name = "fw-64-flows")]
    #[serde(rename = "fw-64-flows")]
    FirewallFlows,
    /// Changes of a policy of 10,000 rules, all of which are replaced. There is one for 64 operations.
    #[value(name = "policy-10k")]
    #[serde(rename = "policy-10k")]
    Policy,
    /// Reads of 4 KiB from the null backend.
    #[value(name = "null-4k-read")]
    #[serde(rename = "null-4k-read")]
    NullRead,
    /// Reads of 4 KiB from the memory backend.
    #[value(name = "mem-4k-read")]
    #[serde(rename = "mem-4k-read")]
    MemoryRead,
    /// A victim's frames at its full share, beside an attacker that sends frames of open connections.
    #[value(name = "victim-legal")]
    #[serde(rename = "victim-legal")]
    VictimLegal,
    /// The same beside one whose every frame opens a connection.
    #[value(name = "victim-new-connections")]
    #[serde(rename = "victim-new-connections")]
    VictimNewConnections,
    /// Beside one whose every frame is denied, each of another connection.
    #[value(name = "victim-denied")]
    #[serde(rename = "victim-denied")]
    VictimDenied,
    /// The same under as many groups, rules and named peers as there may be.
    #[value(name = "victim-explosion")]
    #[serde(rename = "victim-explosion")]
    VictimExplosion,
    /// Beside one whose every frame is rejected.
    #[value(name = "victim-rejected")]
    #[serde(rename = "victim-rejected")]
    VictimRejected,
    /// Beside one that sends TCP segments of no connection.
    #[value(name = "victim-strays")]
    #[serde(rename = "victim-strays")]
    VictimStrays,
    /// Beside one that sends fragments of ever new datagrams.
    #[value(name = "victim-fragments")]
    #[serde(rename = "victim-fragments")]
    VictimFragments,
    /// Beside one that sends to everybody.
    #[value(name = "victim-broadcast")]
    #[serde(rename = "victim-broadcast")]
    VictimBroadcast,
    /// Beside one that sends from and to ever new MACs.
    #[value(name = "victim-macs")]
    #[serde(rename = "victim-macs")]
    VictimMacs,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    case: Case,
    operations: u64,
    bytes: u64,
    /// In the device, without the driver, by the clock.
    nanoseconds_per_operation: f64,
}

/// What one of the loads did after its warm-up.
#[derive(Debug, Default)]
struct Done {
    operations: u64,
    bytes: u64,
    spent: Duration,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<String, Error> {
    if outboard_controls::SWITCHABLE {
        return Err(Error::Switchable);
    }
    let Arguments { case, operations } = *arguments;
    let done = match case {
        Case::L2Small => net::run(net::Traffic::Frames(&[64], 1), net::Ports::Open, WARM_UP, operations),
        Case::L2Large => net::run(net::Traffic::Frames(&[1518], 1), net::Ports::Open, WARM_UP, operations),
        Case::Imix => net::run(
            net::Traffic::Frames(&net::IMIX, 4096),
            net::Ports::Open,
            WARM_UP,
            operations,
        ),
        Case::Tso => net::run(net::Traffic::Segments, net::Ports::Open, WARM_UP, operations),
        Case::FirewallSmall => net::run(
            net::Traffic::Frames(&[64], 1),
            net::Ports::Filtered,
            WARM_UP,
            operations,
        ),
        // All connections are open when it counts.
        Case::FirewallFlows => net::run(
            net::Traffic::Frames(&[64], 1024),
            net::Ports::Filtered,
            2 * WARM_UP,
            operations,
        ),
        Case::Policy => policy::run(operations),
        Case::NullRead => blk::run(blk::Store::Null, WARM_UP, operations),
        Case::MemoryRead => blk::run(blk::Store::Memory, WARM_UP, operations),
        Case::VictimLegal => victim::run(Attack::Legal, WARM_UP, operations),
        Case::VictimNewConnections => victim::run(Attack::NewConnections, WARM_UP, operations),
        Case::VictimDenied => victim::run(Attack::Denied, WARM_UP, operations),
        Case::VictimExplosion => victim::run(Attack::Explosion, WARM_UP, operations),
        Case::VictimRejected => victim::run(Attack::Rejected, WARM_UP, operations),
        Case::VictimStrays => victim::run(Attack::Strays, WARM_UP, operations),
        Case::VictimFragments => victim::run(Attack::Fragments, WARM_UP, operations),
        Case::VictimBroadcast => victim::run(Attack::Broadcast, WARM_UP, operations),
        Case::VictimMacs => victim::run(Attack::Macs, WARM_UP, operations),
    }?;
    let nanoseconds = done.spent.as_secs_f64() * 1e9;
    let report = Report {
        case,
        operations: done.operations,
        bytes: done.bytes,
        nanoseconds_per_operation: (nanoseconds / real(done.operations) * 10.0).round() / 10.0,
    };
    serde_json::to_string(&report).map_err(Error::Report)
}

/// A count as a real number; counts here are far below 2^53.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn real(count: u64) -> f64 {
    count as f64
}
