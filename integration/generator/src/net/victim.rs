//! `victim`: what is left of a pair's rate while another pair attacks the back-end.
//!
//! First both pairs send legal frames as fast as they are taken: what arrives of the victim's is its share. Then the attacker
//! sends as many frames a second as it got rid of before, of another kind, and the victim goes on.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::{
    args::{Attack, NetArgs},
    error::Error,
    meter::{Meter, Phase, percent, real},
    net::{
        frames::{FCS_LEN, Spread},
        link::Link,
        outcome::Outcome,
        plan::Plan,
        port::{RX_QUEUE, TX_QUEUE},
        prime::find_path,
        queue::{HEADER_LEN, Sink},
        stream::Pace,
    },
    report::Report,
};

/// Rounds between two looks at the clock.
const ROUNDS_PER_LOOK: u32 = 16;
/// Connections that an attack opens before one comes again.
const CONNECTIONS: u32 = 10_000_000;
/// Bits of an address in which frames of [`Attack::Masks`] differ from the receiver's: those behind the first eight.
const ADDRESS_BITS: u32 = 24;
const PORT_BITS: u32 = 16;

/// Takes what arrives at the attacker's peer.
#[derive(Debug, Default)]
struct Heap(u64);

impl Sink for Heap {
    fn glance(&mut self, _word: u64, _len: u32) -> bool {
        self.0 += 1;
        true
    }

    fn inspect(&mut self, _header: &[u8; HEADER_LEN], _frame: &[u8]) {}
}

/// What the attacker's port does.
enum Load {
    /// One flow, as fast as it goes.
    Legal(Plan),
    /// Frames of many flows.
    Varied(Plan, Pace),
    /// What is in the buffers.
    Prepared(Pace),
}

impl Load {
    fn wanted(&mut self, burst: u16) -> u16 {
        match self {
            Self::Legal(_) => burst,
            Self::Varied(_, pace) | Self::Prepared(pace) => pace.due(Instant::now(), burst),
        }
    }
}

/// What a phase came to.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    received: u64,
    beside: u64,
    attempts: u64,
    full: u64,
    seconds: f64,
    cpu_pct: f64,
}

/// Both phases.
///
/// # Errors
/// A back-end failed, or nothing comes through.
pub fn run(args: &NetArgs, mut attacker: Link) -> Result<Outcome, Error> {
    let patience = Duration::from_secs(args.common.patience);
    let mut victim = Link::open(&victim_args(args))?;
    find_path(&mut attacker, patience)?;
    find_path(&mut victim, patience)?;
    let mut heap = Heap::default();
    let mut load = Load::Legal(attacker.plans[0].clone());
    let legal = contend(args, (&mut attacker, &mut load, &mut heap), &mut victim)?;
    let beside_pps = real(legal.beside) / legal.seconds;
    attacker.settle()?;
    let mut load = attack(args, &mut attacker, beside_pps)?;
    let attacked = contend(args, (&mut attacker, &mut load, &mut heap), &mut victim)?;
    victim.drain()?;
    let (before, after) = (
        real(legal.received) / legal.seconds,
        real(attacked.received) / attacked.seconds,
    );
    let bytes = attacked.received * (victim.plans[0].frames.len + FCS_LEN) as u64;
    let report = Report {
        frames: Some(attacked.received),
        bytes: Some(bytes),
        seconds: attacked.seconds,
        pps: Some(after),
        legal_pps: Some(before),
        victim_pct: Some(percent(after, before)),
        beside_pps: Some(beside_pps),
        attack_pps: Some(real(attacked.beside) / attacked.seconds),
        ring_full_pct: Some(percent(real(attacked.full), real(attacked.attempts))),
        cpu_pct: attacked.cpu_pct,
        ..Report::default()
    };
    attacker.close()?;
    Ok(Outcome::of_stream(args, report, victim))
}

/// The second pair's ports, which send what the first pair's do.
fn victim_args(args: &NetArgs) -> NetArgs {
    NetArgs {
        a: args.victim_a.clone().unwrap_or_default(),
        b: args.victim_b.clone().unwrap_or_default(),
        mac_a: args.victim_mac_a,
        mac_b: args.victim_mac_b,
        ip_a: args.victim_ip_a,
        ip_b: args.victim_ip_b,
        ..args.clone()
    }
}

fn attack(args: &NetArgs, attacker: &mut Link, per_second: f64) -> Result<Load, Error> {
    let pace = Pace::new(per_second.max(1.0), args.burst)?;
    let frames = attacker.plans[0].frames;
    // A sample of 2^31: frames are made out of one another, not written anew to be compared.
    let varied = |frames| Load::Varied(Plan::new(frames, 1 << 31, 0.0), pace);
    Ok(match args.attack {
        Attack::Tuples => varied(frames.of_flows(u32::MAX, Spread::Anywhere)),
        Attack::Connections => varied(frames.of_flows(CONNECTIONS, Spread::Allowed)),
        Attack::Masks => {
            attacker.ports[0].tx.prepare_each(|n, frame| {
                let n = u32::from(n);
                frames.build_to(masked(frames.to.ip, n), n, frame);
            });
            Load::Prepared(pace)
        }
    })
}

/// Address and port of the `n`th frame of [`Attack::Masks`]: one bit of the address is not the receiver's, the highest bit
/// that is set in the port is another one each time, and what is behind both is anything.
fn masked(ip: Ipv4Addr, n: u32) -> (Ipv4Addr, u16) {
    let noise = n.wrapping_add(1).wrapping_mul(0x9e37_79b1);
    let bit = 1 << (n % ADDRESS_BITS);
    let address = (u32::from(ip) ^ bit) & !(bit - 1) | noise & (bit - 1);
    let top = 1u32 << (n / ADDRESS_BITS % PORT_BITS);
    let port = top | noise >> 16 & (top - 1);
    (address.into(), u16::try_from(port).unwrap_or(u16::MAX))
}

/// Both pairs at once, for the time given.
fn contend(
    args: &NetArgs,
    (attacker, load, heap): (&mut Link, &mut Load, &mut Heap),
    victim: &mut Link,
) -> Result<Tally, Error> {
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let (mut tally, mut start) = (Tally::default(), Tally::default());
    let mut round = 0u32;
    loop {
        let wanted = load.wanted(args.burst);
        let port = &mut attacker.ports[0];
        let room = port.tx.room();
        let count = room.map_err(|fault| port.fault(TX_QUEUE, fault))?.min(wanted);
        if count > 0 {
            match load {
                Load::Legal(plan) => port.tx.send::<false>(plan, count),
                Load::Varied(plan, _) => port.tx.send::<true>(plan, count),
                Load::Prepared(_) => port.tx.flush(count),
            }
        }
        tally.beside += u64::from(count);
        let port = &mut attacker.ports[1];
        let got = port.rx.receive(2 * args.burst, heap);
        got.map_err(|fault| port.fault(RX_QUEUE, fault))?;

        let port = &mut victim.ports[0];
        let room = port.tx.room();
        let count = room.map_err(|fault| port.fault(TX_QUEUE, fault))?.min(args.burst);
        tally.attempts += 1;
        tally.full += u64::from(count == 0);
        if count > 0 {
            port.tx.send::<false>(&mut victim.plans[0], count);
        }
        victim.receive_up_to(1, 2 * args.burst)?;

        round = round.wrapping_add(1);
        if round.is_multiple_of(ROUNDS_PER_LOOK) {
            // What a switch says to those that send.
            attacker.receive(0)?;
            victim.receive(0)?;
            let (phase, changed) = meter.at(Instant::now());
            if changed {
                tally.received = victim.counts()[1].received;
                match phase {
                    Phase::Measure => start = tally,
                    _ => break,
                }
            }
        }
    }
    Ok(Tally {
        received: tally.received - start.received,
        beside: tally.beside - start.beside,
        attempts: tally.attempts - start.attempts,
        full: tally.full - start.full,
        seconds: meter.seconds(),
        cpu_pct: meter.cpu_pct(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn masked_frames_differ_from_the_receivers_in_every_bit_of_address_and_port() {
        let ip = Ipv4Addr::new(10, 0, 0, 11);
        let mut seen = HashSet::new();
        for n in 0..1024 {
            let (address, port) = masked(ip, n);
            let first = (u32::from(address) ^ u32::from(ip)).leading_zeros();
            assert!(port > 0 && (8..32).contains(&first), "{address}:{port}");
            seen.insert((first, port.leading_zeros()));
        }
        assert_eq!(seen.len(), (ADDRESS_BITS * PORT_BITS) as usize);
    }
}
