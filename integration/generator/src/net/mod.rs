//! The network driver.

pub mod check;
pub mod frames;
pub mod idle;
pub mod link;
pub mod newconn;
pub mod outcome;
pub mod pingpong;
pub mod plan;
pub mod port;
pub mod prime;
pub mod queue;
pub mod stream;
pub mod tso;
pub mod victim;

use std::path::PathBuf;

use crate::{
    args::{Mode, NetArgs},
    error::Error,
    meter,
    net::{
        frames::{FCS_LEN, Frames, PORT_COUNT},
        link::Link,
        outcome::Outcome,
    },
};

/// Flows at most.
const FLOWS_MAX: u32 = 10_000_000;
/// The largest frame on a wire: what fits an MTU of 9,216.
const FRAME_MAX: u16 = 9216 + 18;
const QUEUE_SIZE_MIN: u16 = 8;
const QUEUE_SIZE_MAX: u16 = 32_768;

/// Runs `net`.
///
/// # Errors
/// There is no result.
pub fn run(args: &NetArgs) -> Result<Outcome, Error> {
    check(args)?;
    if let Some(core) = args.common.core {
        meter::pin(core)?;
    }
    let link = Link::open(args)?;
    match args.mode {
        Mode::Oneway | Mode::Bidir => stream::run(args, link),
        Mode::Pingpong => pingpong::run(args, link),
        Mode::Paced => pingpong::run_paced(args, link),
        Mode::Newconn => newconn::run(args, link),
        Mode::Tso => tso::run(args, link),
        Mode::Idle => idle::run(args, link),
        Mode::Victim => victim::run(args, link),
    }
}

/// Are the arguments such that something can be measured?
///
/// # Errors
/// They are not.
pub fn check(args: &NetArgs) -> Result<(), Error> {
    let usage = |text: String| Err(Error::Usage(text));
    check_queue(args.queue_size, args.burst)?;
    let least = Frames::len_min(args.l4) + FCS_LEN;
    if args.mode != Mode::Newconn && usize::from(args.frame) < least || args.frame < 64 || args.frame > FRAME_MAX {
        let least = least.max(64);
        return usage(format!("--frame must be {least} to {FRAME_MAX} with --l4 {:?}", args.l4).to_lowercase());
    }
    if args.flows == 0 || args.flows > FLOWS_MAX {
        return usage(format!("--flows must be 1 to {FLOWS_MAX}"));
    }
    let last = u32::from(args.port) + PORT_COUNT - 1;
    if last > 0xffff || (u32::from(args.port)..=last).contains(&u32::from(args.deny_port)) {
        return usage(format!(
            "--port must leave {PORT_COUNT} ports, and --deny-port must be none of them"
        ));
    }
    if !(0.0..=50.0).contains(&args.deny_percent) {
        return usage("--deny-percent must be 0 to 50".into());
    }
    if !args.sample.is_power_of_two() {
        return usage("--sample must be a power of two".into());
    }
    if args.a == args.b {
        return usage("--a and --b must be two sockets".into());
    }
    let sockets = [
        Some(&args.a),
        Some(&args.b),
        args.victim_a.as_ref(),
        args.victim_b.as_ref(),
    ];
    let different = |(n, one): (usize, &Option<&PathBuf>)| one.is_some() && !sockets[..n].contains(one);
    if args.mode == Mode::Victim && !sockets.iter().enumerate().all(different) {
        return usage("--a, --b, --victim-a and --victim-b must be four sockets".into());
    }
    Ok(())
}

fn check_queue(size: u16, burst: u16) -> Result<(), Error> {
    if !size.is_power_of_two() || !(QUEUE_SIZE_MIN..=QUEUE_SIZE_MAX).contains(&size) {
        let text = format!("--queue-size must be a power of two, {QUEUE_SIZE_MIN} to {QUEUE_SIZE_MAX}");
        return Err(Error::Usage(text));
    }
    if burst == 0 || burst > size / 2 {
        return Err(Error::Usage(format!(
            "--burst must be 1 to {} with --queue-size {size}",
            size / 2
        )));
    }
    Ok(())
}
