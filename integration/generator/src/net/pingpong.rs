//! `pingpong` and `paced`: frames that are answered, and how long that takes.

use std::time::{Duration, Instant};

use crate::{
    args::NetArgs,
    error::Error,
    histogram::Histogram,
    meter::{Meter, Phase, percent, real},
    net::{
        frames::FCS_LEN,
        link::Link,
        outcome::Outcome,
        prime::{find_path, make_known},
        stream::Pace,
    },
    report::Report,
};

/// When an answer is given up.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
/// Pings per second unless said otherwise.
const RATE_DEFAULT: f64 = 1000.0;
/// Pings whose time of sending is remembered: more than any ring holds.
const REMEMBERED: usize = 1 << 17;
const SLEEP: Duration = Duration::from_millis(1);

/// What was counted in the measured time.
#[derive(Debug, Default)]
struct Trips {
    latency: Histogram,
    longest_gap: Duration,
    polls: u64,
    empty: u64,
}

/// One frame at a time.
///
/// # Errors
/// A back-end failed, or nothing comes through.
pub fn run(args: &NetArgs, mut link: Link) -> Result<Outcome, Error> {
    begin(args, &mut link)?;
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let mut trips = Trips::default();
    let mut sent_at = Instant::now();
    loop {
        let (phase, changed) = meter.at(sent_at);
        if changed && phase == Phase::Measure {
            trips = Trips::default();
        }
        if phase == Phase::Over {
            break;
        }
        let answered = trip(&mut link, sent_at, &mut trips)?;
        let now = Instant::now();
        if answered {
            trips.latency.add(nanos(now - sent_at));
        }
        sent_at = now;
    }
    Ok(finish(args, link, &meter, trips, None))
}

/// There and back. False if the frame was lost.
fn trip(link: &mut Link, sent_at: Instant, trips: &mut Trips) -> Result<bool, Error> {
    for (from, to) in [(0, 1), (1, 0)] {
        let before = link.checkers[to].counts().received;
        if !link.send_data(from)? {
            return Ok(false);
        }
        let mut polls = 0u32;
        while link.checkers[to].counts().received == before {
            polls += 1;
            if link.receive_up_to(to, 1)? > 0 {
                continue;
            }
            trips.empty += 1;
            link.idle(SLEEP)?;
            if (link.sleeps || polls.is_multiple_of(1024)) && sent_at.elapsed() > ANSWER_LIMIT {
                trips.polls += u64::from(polls);
                return Ok(false);
            }
        }
        trips.polls += u64::from(polls);
    }
    Ok(true)
}

/// At a fixed rate.
///
/// # Errors
/// A back-end failed, or nothing comes through.
pub fn run_paced(args: &NetArgs, mut link: Link) -> Result<Outcome, Error> {
    begin(args, &mut link)?;
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let mut pace = Pace::new(args.rate.unwrap_or(RATE_DEFAULT), args.burst)?;
    let mut trips = Trips::default();
    let mut sent_at = vec![Instant::now(); REMEMBERED];
    let mut last_answer = Instant::now();
    loop {
        let now = Instant::now();
        let (phase, changed) = meter.at(now);
        if changed && phase == Phase::Measure {
            (trips, last_answer) = (Trips::default(), now);
        }
        if phase == Phase::Over {
            trips.longest_gap = trips.longest_gap.max(now - last_answer);
            break;
        }
        let mut worked = false;
        for _ in 0..pace.due(now, args.burst) {
            let sequence = link.plans[0].sequence();
            if link.send_data(0)? {
                sent_at[place(sequence)] = now;
                worked = true;
            }
        }
        worked |= answer_one(&mut link)?;
        let before = link.checkers[0].counts().received;
        worked |= link.receive_up_to(0, 1)? > 0;
        trips.polls += 1;
        if link.checkers[0].counts().received > before {
            let now = Instant::now();
            trips.latency.add(nanos(now - sent_at[place(link.checkers[0].last())]));
            trips.longest_gap = trips.longest_gap.max(now - last_answer);
            last_answer = now;
        } else {
            trips.empty += 1;
        }
        if !worked {
            link.idle(SLEEP.min(Duration::from_secs_f64(pace.interval())))?;
        }
    }
    settle(&mut link)?;
    let gap = trips.longest_gap;
    Ok(finish(args, link, &meter, trips, Some(gap)))
}

/// B takes one frame, and sends its number back. True if there was one.
fn answer_one(link: &mut Link) -> Result<bool, Error> {
    let before = link.checkers[1].counts().received;
    if link.receive_up_to(1, 1)? == 0 {
        return Ok(false);
    }
    if link.checkers[1].counts().received > before {
        let number = link.checkers[1].last();
        link.plans[1].answer(number);
        // Without room A misses it, which is counted.
        let _sent = link.send_data(1)?;
    }
    Ok(true)
}

/// Waits for answers that are on their way.
fn settle(link: &mut Link) -> Result<(), Error> {
    let start = Instant::now();
    while start.elapsed() < ANSWER_LIMIT && link.checkers[0].counts().received < link.plans[0].sent() {
        if !answer_one(link)? && link.receive_up_to(0, 1)? == 0 {
            link.idle(SLEEP)?;
        }
    }
    Ok(())
}

fn place(sequence: u32) -> usize {
    usize::try_from(sequence).unwrap_or(0) % REMEMBERED
}

fn begin(args: &NetArgs, link: &mut Link) -> Result<(), Error> {
    find_path(link, Duration::from_secs(args.common.patience))?;
    if args.flows > 1 {
        make_known(link, args.flows, args.burst)
    } else {
        Ok(())
    }
}

fn finish(args: &NetArgs, link: Link, meter: &Meter, trips: Trips, longest_gap: Option<Duration>) -> Outcome {
    let Trips {
        latency, polls, empty, ..
    } = trips;
    let seconds = meter.seconds();
    let report = Report {
        frames: Some(latency.count()),
        bytes: Some(latency.count() * 2 * (link.plans[0].frames.len + FCS_LEN) as u64),
        seconds,
        pps: Some(real(latency.count()) / seconds),
        p50_us: latency.quantile_us(500),
        p99_us: latency.quantile_us(990),
        p999_us: latency.quantile_us(999),
        max_us: latency.max_us(),
        longest_gap_us: longest_gap.map(|gap| (gap.as_secs_f64() * 1e7).round() / 10.0),
        empty_polls_pct: Some(percent(real(empty), real(polls))),
        cpu_pct: meter.cpu_pct(),
        ..Report::default()
    };
    Outcome::of_stream(args, report, link)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
