//! `idle`: two ports whose queues run and rest.

use std::time::{Duration, Instant};

use crate::{
    args::NetArgs,
    error::Error,
    meter::{Meter, Phase},
    net::{
        link::Link,
        outcome::Outcome,
        port::{TX_QUEUE, sleep},
        prime::find_path,
    },
    report::Report,
};

/// Between two looks at the clock.
const SLEEP: Duration = Duration::from_millis(50);

/// Rests for the time given.
///
/// # Errors
/// A back-end failed, or nothing comes through before.
pub fn run(args: &NetArgs, mut link: Link) -> Result<Outcome, Error> {
    find_path(&mut link, Duration::from_secs(args.common.patience))?;
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    while meter.at(Instant::now()).0 != Phase::Over {
        // A switch that says something is answered, as a guest would.
        link.receive(0)?;
        link.receive(1)?;
        // Buffers that came back are taken: who sleeps over some is woken at once.
        for port in &mut link.ports {
            let room = port.tx.room();
            room.map_err(|fault| port.fault(TX_QUEUE, fault))?;
        }
        if link.sleeps {
            sleep(&link.ports, SLEEP)?;
        } else {
            std::thread::sleep(SLEEP);
        }
    }
    let report = Report {
        seconds: meter.seconds(),
        cpu_pct: meter.cpu_pct(),
        ..Report::default()
    };
    Ok(Outcome::of_stream(args, report, link))
}
