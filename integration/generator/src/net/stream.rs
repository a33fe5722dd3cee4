//! `oneway` and `bidir`: frames as fast as they go, or at a rate.

use std::time::{Duration, Instant};

use crate::{
    args::{Mode, NetArgs},
    error::Error,
    meter::{Meter, Phase, percent, real},
    net::{
        frames::FCS_LEN,
        link::Link,
        outcome::Outcome,
        port::{RX_QUEUE, TX_QUEUE},
        prime::{find_path, make_known},
    },
    report::Report,
};

/// Rounds between two looks at the clock.
const ROUNDS_PER_LOOK: u32 = 64;
/// How long a driver sleeps at most.
const SLEEP: Duration = Duration::from_millis(1);

/// Polls and attempts.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    received: u64,
    polls: u64,
    empty: u64,
    attempts: u64,
    full: u64,
}

/// Sends for the time given.
///
/// # Errors
/// A back-end failed, or nothing comes through.
pub fn run(args: &NetArgs, mut link: Link) -> Result<Outcome, Error> {
    find_path(&mut link, Duration::from_secs(args.common.patience))?;
    if args.flows > 1 {
        make_known(&mut link, args.flows, args.burst)?;
    }
    let both = args.mode == Mode::Bidir;
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let varied = link.plans[0].varied();
    let pace = args.rate.map(|rate| Pace::new(rate, args.burst)).transpose()?;
    let window = match args.window {
        None | Some(0) => u64::MAX,
        Some(window) => u64::from(window),
    };
    let tally = if varied {
        drive::<true>(&mut link, &mut meter, both, args.burst, pace, window)?
    } else {
        drive::<false>(&mut link, &mut meter, both, args.burst, pace, window)?
    };
    link.drain()?;
    let seconds = meter.seconds();
    let bytes = tally.received * (link.plans[0].frames.len + FCS_LEN) as u64;
    let report = Report {
        frames: Some(tally.received),
        bytes: Some(bytes),
        seconds,
        pps: Some(real(tally.received) / seconds),
        gbit_s: Some(real(bytes) * 8e-9 / seconds),
        empty_polls_pct: Some(percent(real(tally.empty), real(tally.polls))),
        ring_full_pct: Some(percent(real(tally.full), real(tally.attempts))),
        cpu_pct: meter.cpu_pct(),
        ..Report::default()
    };
    Ok(Outcome::of_stream(args, report, link))
}

/// Frames that are due.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    per_second: f64,
    burst: f64,
    start: Option<Instant>,
    sent: f64,
}

impl Pace {
    /// `per_second` frames, of which up to `burst` are made up for when late.
    ///
    /// # Errors
    /// The rate is none.
    pub fn new(per_second: f64, burst: u16) -> Result<Self, Error> {
        if !(per_second > 0.0 && per_second <= 1e9) {
            return Err(Error::Usage(
                "--rate must be a number of frames per second, up to 1e9".into(),
            ));
        }
        Ok(Self {
            per_second,
            burst: f64::from(burst),
            start: None,
            sent: 0.0,
        })
    }

    /// Seconds between two frames.
    pub fn interval(&self) -> f64 {
        self.per_second.recip()
    }

    /// How many are due at `now`, at most `most`.
    pub fn due(&mut self, now: Instant, most: u16) -> u16 {
        let start = *self.start.get_or_insert(now);
        let target = (now - start).as_secs_f64() * self.per_second;
        // What was missed by more than that is not made up for: a burst of seconds measures nothing.
        self.sent = self.sent.max(target - self.burst.max(self.per_second * 1e-3));
        let due = whole(target - self.sent).min(most);
        self.sent += f64::from(due);
        due
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded just before"
)]
fn whole(count: f64) -> u16 {
    count.clamp(0.0, 65_535.0) as u16
}

fn drive<const VARIED: bool>(
    link: &mut Link,
    meter: &mut Meter,
    both: bool,
    burst: u16,
    pace: Option<Pace>,
    window: u64,
) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let mut start = Tally::default();
    let mut paces = [pace; 2];
    let directions: &[(usize, usize)] = if both { &[(0, 1), (1, 0)] } else { &[(0, 1)] };
    let mut round = 0u32;
    loop {
        let mut worked = false;
        for &(from, to) in directions {
            let outstanding = || {
                link.plans[from]
                    .sent()
                    .saturating_sub(link.checkers[to].counts().received)
            };
            let allowed = if window == u64::MAX {
                u64::MAX
            } else {
                window.saturating_sub(outstanding())
            };
            let allowed = u16::try_from(allowed).unwrap_or(u16::MAX).min(burst);
            let wanted = match &mut paces[from] {
                Some(pace) => pace.due(Instant::now(), allowed),
                None => allowed,
            };
            if wanted > 0 {
                let port = &mut link.ports[from];
                let room = port.tx.room();
                let room = room.map_err(|fault| port.fault(TX_QUEUE, fault))?;
                tally.attempts += 1;
                let count = wanted.min(room);
                if count > 0 {
                    port.tx.send::<VARIED>(&mut link.plans[from], count);
                    worked = true;
                } else {
                    tally.full += 1;
                }
            }
            let port = &mut link.ports[to];
            let got = port.rx.receive(2 * burst, &mut link.checkers[to]);
            let got = got.map_err(|fault| port.fault(RX_QUEUE, fault))?;
            tally.polls += 1;
            tally.empty += u64::from(got == 0);
            worked |= got > 0;
        }
        round = round.wrapping_add(1);
        if !worked {
            link.idle(SLEEP)?;
        }
        if round.is_multiple_of(ROUNDS_PER_LOOK) || !worked && link.sleeps {
            if !both {
                // What a switch says to A.
                link.receive(0)?;
            }
            link.answer(0)?;
            link.answer(1)?;
            let (phase, changed) = meter.at(Instant::now());
            if changed {
                let counts = link.counts();
                tally.received = counts[1].received + if both { counts[0].received } else { 0 };
                match phase {
                    Phase::Measure => start = tally,
                    _ => break,
                }
            }
        }
    }
    Ok(Tally {
        received: tally.received - start.received,
        polls: tally.polls - start.polls,
        empty: tally.empty - start.empty,
        attempts: tally.attempts - start.attempts,
        full: tally.full - start.full,
    })
}
