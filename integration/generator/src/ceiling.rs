//! What the generator itself is capable of: `oneway` or `tso` against a thread that only copies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use clap::Parser;

use crate::{
    args::{CeilingArgs, CeilingMode, Mode, NetArgs},
    error::Error,
    features::{IN_ORDER, INDIRECT_DESC, NET_MRG_RXBUF, VERSION_1},
    meter::{self, percent, real},
    net::{self, frames::Frames, link::Link, outcome::Outcome, port::Port, stream, tso},
    raw::LINE_LEN,
    ring::DeviceSide,
};

/// What a guest's driver and a back-end without offloads agree on.
const FEATURES: u64 = VERSION_1 | NET_MRG_RXBUF | INDIRECT_DESC | IN_ORDER;
const BURST: u16 = 32;
/// Rounds before the thread looks whether it should end, and whether B sends.
const ROUNDS_PER_LOOK: u32 = 256;
const HOW_ONEWAY: &str = "oneway, both rings in this process: a thread on another core reads each available entry and \
                          descriptor, copies header and frame by 8 bytes, writes each used entry, publishes bursts of \
                          32, and does nothing else";
const HOW_TSO: &str = "tso, both rings in this process: a thread on another core copies each segment by memcpy from the \
                       one buffer that it is sent in to as many receive buffers as it fills, writes each used entry, \
                       and does nothing else";

/// Measures.
///
/// # Errors
/// There is no result.
pub fn run(args: &CeilingArgs) -> Result<Outcome, Error> {
    let net_args = as_net(args);
    net::check(&net_args)?;
    let [forward, back] = Frames::pair(&net_args);
    let ports = [
        Port::inside(&net_args, FEATURES, &forward)?,
        Port::inside(&net_args, FEATURES, &back)?,
    ];
    let mover = Mover {
        transfer: match args.mode {
            CeilingMode::Oneway => transfer,
            CeilingMode::Tso => transfer_segments,
        },
        sides: [&ports[0], &ports[1]].map(|port| [port.rx.ring.device_side(), port.tx.ring.device_side()]),
        stop: Arc::new(AtomicBool::new(false)),
        idle: Arc::new(AtomicU64::new(0)),
        rounds: Arc::new(AtomicU64::new(0)),
    };
    let (stop, idle, rounds) = (mover.stop.clone(), mover.idle.clone(), mover.rounds.clone());
    let core = args.peer_core;
    let thread = thread::Builder::new()
        .name("mover".into())
        .spawn(move || mover.run(core));
    let thread = thread.map_err(|source| Error::system("starting the thread that moves frames", source))?;
    if let Some(core) = args.common.core {
        meter::pin(core)?;
    }
    let link = Link::over(&net_args, ports);
    let outcome = match args.mode {
        CeilingMode::Oneway => stream::run(&net_args, link),
        CeilingMode::Tso => tso::run(&net_args, link),
    };
    stop.store(true, Relaxed);
    let ended = thread
        .join()
        .unwrap_or_else(|_| Err(Error::Stuck("the thread that moves frames ended early".into())));
    let mut outcome = outcome?;
    ended?;
    outcome.report.mode = "ceiling".into();
    outcome.report.how = Some(match args.mode {
        CeilingMode::Oneway => HOW_ONEWAY,
        CeilingMode::Tso => HOW_TSO,
    });
    outcome.report.peer_idle_pct = Some(percent(real(idle.load(Relaxed)), real(rounds.load(Relaxed))));
    Ok(outcome)
}

/// The same as arguments of `net`, with its defaults for the rest.
fn as_net(args: &CeilingArgs) -> NetArgs {
    NetArgs {
        mode: match args.mode {
            CeilingMode::Oneway => Mode::Oneway,
            CeilingMode::Tso => Mode::Tso,
        },
        frame: args.frame,
        flows: args.flows,
        seconds: args.seconds,
        warmup: args.warmup,
        queue_size: args.queue_size,
        burst: args.burst,
        common: args.common.clone(),
        ..NetArgs::parse_from(["net", "--a", "a", "--b", "b"])
    }
}

/// Moves frames from each port to the other.
struct Mover {
    /// Of each port, its receive and its transmit ring.
    sides: [[DeviceSide; 2]; 2],
    transfer: fn(&mut DeviceSide, &mut DeviceSide) -> u16,
    stop: Arc<AtomicBool>,
    idle: Arc<AtomicU64>,
    rounds: Arc<AtomicU64>,
}

impl Mover {
    fn run(self, core: Option<usize>) -> Result<(), Error> {
        if let Some(core) = core {
            meter::pin(core)?;
        }
        let [[mut rx_a, mut tx_a], [mut rx_b, mut tx_b]] = self.sides;
        let transfer = self.transfer;
        let (mut idle, mut rounds) = (0, 0);
        while !self.stop.load(Relaxed) {
            transfer(&mut tx_b, &mut rx_a);
            for _ in 0..ROUNDS_PER_LOOK {
                idle += u64::from(transfer(&mut tx_a, &mut rx_b) == 0);
            }
            rounds += u64::from(ROUNDS_PER_LOOK);
        }
        self.idle.store(idle, Relaxed);
        self.rounds.store(rounds, Relaxed);
        Ok(())
    }
}

/// A burst from one ring to another; frames for which there is no buffer wait.
#[inline]
fn transfer(from: &mut DeviceSide, to: &mut DeviceSide) -> u16 {
    let count = from.waiting().min(to.waiting()).min(BURST);
    if count == 0 {
        return 0;
    }
    for n in 0..count {
        let (_, at, len) = from.buffer(n);
        from.memory().prefetch(at + len.min(LINE_LEN));
    }
    for n in 0..count {
        let (head, at, len) = from.buffer(n);
        let (to_head, to_at, room) = to.buffer(n);
        let len = len.min(room);
        from.memory().copy(at, to.memory(), to_at, len);
        to.memory().write(to_at + 10, &1u16.to_le_bytes());
        from.stage(n, head, 0);
        to.stage(n, to_head, u32::try_from(len).unwrap_or(0));
    }
    to.publish(count);
    from.publish(count);
    count
}

/// One frame, which may fill several buffers, if there are as many.
fn transfer_segments(from: &mut DeviceSide, to: &mut DeviceSide) -> u16 {
    if from.waiting() == 0 {
        return 0;
    }
    let (head, at, len) = from.buffer(0);
    let room = to.waiting();
    let (mut done, mut filled) = (0, 0);
    while done < len {
        if filled == room {
            // It waits for more.
            return 0;
        }
        let (to_head, to_at, to_len) = to.buffer(filled);
        let piece = to_len.min(len - done);
        from.memory().copy(at + done, to.memory(), to_at, piece);
        to.stage(filled, to_head, u32::try_from(piece).unwrap_or(0));
        (done, filled) = (done + piece, filled + 1);
    }
    let (_, header_at, _) = to.buffer(0);
    to.memory().write(header_at + 10, &filled.to_le_bytes());
    from.stage(0, head, 0);
    to.publish(filled);
    from.publish(1);
    1
}
