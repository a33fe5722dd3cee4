//! Requests for the time given, and the passes that verify.

use std::time::{Duration, Instant};

use crate::{
    args::BlkArgs,
    blk::{
        content,
        disk::{Disk, Kind},
        places::Places,
    },
    error::Error,
    histogram::Histogram,
    meter::{Meter, Phase, percent, real},
    report::Report,
};

const STATUS_OK: u8 = 0;
/// Bytes that --verify uses unless said otherwise.
const VERIFY_SPAN_DEFAULT: u64 = 64 << 20;
/// Without an answer for this long, the device is taken for stuck. A DPU that is replaced takes less.
const STUCK_LIMIT: Duration = Duration::from_secs(60);
const SLEEP: Duration = Duration::from_millis(10);
const REAP_MAX: u16 = 64;

/// One pass over blocks.
#[derive(Debug)]
struct Pass<'a> {
    args: &'a BlkArgs,
    /// Version of each block, where content is verified.
    versions: Option<&'a mut Vec<u64>>,
    /// Of each block, is a write or read of it in flight? Only where content is verified.
    busy: Vec<bool>,
    slots: Vec<Slot>,
    buffer: Vec<u8>,
    writes_since_flush: u32,
    tally: Tally,
    /// What is wrong with the content first found wrong.
    fault: Option<String>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    kind: Kind,
    number: u64,
    started: Instant,
}

#[derive(Debug, Default)]
struct Tally {
    latency: Histogram,
    requests: u64,
    polls: u64,
    empty: u64,
    errors: u64,
    wrong: u64,
    verified: u64,
}

/// When a pass ends.
enum Until<'a> {
    /// After so many blocks.
    Blocks(u64),
    /// When it was measured.
    Measured(&'a mut Meter),
}

/// Runs and judges.
///
/// # Errors
/// There is no result.
pub fn run(args: &BlkArgs, mut disk: Disk) -> Result<(Report, Option<Error>), Error> {
    let blocks = span(args, &disk)? / u64::from(args.block);
    if args.flush_every > 0 && !disk.flushes() {
        return Err(Error::Usage(format!(
            "the disk at {} offers no FLUSH: leave --flush-every out",
            args.socket.display()
        )));
    }
    let mut versions = args.verify.then(|| vec![0u64; usize::try_from(blocks).unwrap_or(0)]);
    let (mut errors, mut wrong, mut verified, mut fault) = (0, 0, 0, None);
    let mut add = |tally: &Tally, found: Option<String>| {
        errors += tally.errors;
        wrong += tally.wrong;
        verified += tally.verified;
        fault = fault.take().or(found);
    };
    if args.verify && !args.op.writes() {
        let mut pass = Pass::new(args, &disk, versions.as_mut(), blocks);
        pass.run(
            &mut disk,
            Kind::Write,
            &mut Places::new(blocks, false),
            Until::Blocks(blocks),
        )?;
        add(&pass.tally, pass.fault);
    }
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let kind = if args.op.writes() { Kind::Write } else { Kind::Read };
    let mut pass = Pass::new(args, &disk, versions.as_mut(), blocks);
    pass.run(
        &mut disk,
        kind,
        &mut Places::new(blocks, args.op.random()),
        Until::Measured(&mut meter),
    )?;
    add(&pass.tally, pass.fault.take());
    let measured = pass.tally;
    if args.verify && args.op.writes() {
        let mut pass = Pass::new(args, &disk, versions.as_mut(), blocks);
        pass.run(
            &mut disk,
            Kind::Read,
            &mut Places::new(blocks, false),
            Until::Blocks(blocks),
        )?;
        add(&pass.tally, pass.fault);
    }
    let seconds = meter.seconds();
    let bytes = measured.requests * u64::from(args.block);
    let report = Report {
        mode: args.op.name().into(),
        bytes: Some(bytes),
        seconds,
        gbit_s: Some(real(bytes) * 8e-9 / seconds),
        corrupt: args.verify.then_some(wrong),
        p50_us: measured.latency.quantile_us(500),
        p99_us: measured.latency.quantile_us(990),
        p999_us: measured.latency.quantile_us(999),
        max_us: measured.latency.max_us(),
        features: format!("{:#x}", disk.session().features()),
        protocol_features: format!("{:#x}", disk.session().protocol_features()),
        empty_polls_pct: Some(percent(real(measured.empty), real(measured.polls))),
        cpu_pct: meter.cpu_pct(),
        requests: Some(measured.requests),
        iops: Some(real(measured.requests) / seconds),
        errors: Some(errors),
        verified: args.verify.then_some(verified),
        ..Report::default()
    };
    let at = args.socket.display();
    let wrong = match fault {
        Some(text) => Some(format!(
            "{wrong} blocks of {verified} are wrong at {at}; the first: {text}"
        )),
        None if errors > 0 => Some(format!("{errors} requests failed at {at}: look at the back-end's log")),
        None if measured.requests == 0 => Some(format!("nothing finished in the measured time at {at}")),
        None => None,
    };
    // What was counted is worth to be seen, also if the back-end is gone.
    let closed = disk.close().err();
    Ok((report, wrong.map(Error::Wrong).or(closed)))
}

/// Bytes that are used: whole blocks.
fn span(args: &BlkArgs, disk: &Disk) -> Result<u64, Error> {
    let all = disk.capacity();
    let wanted = args.span.unwrap_or(if args.verify { VERIFY_SPAN_DEFAULT } else { all });
    let span = wanted.min(all);
    let needed = if args.verify { u64::from(disk.depth()) + 1 } else { 1 };
    if span / u64::from(args.block) < needed {
        let at = args.socket.display();
        return Err(Error::Usage(format!(
            "{span} bytes of the disk at {at} are fewer than {needed} blocks of {}: enlarge --span or the disk",
            args.block
        )));
    }
    Ok(span)
}

impl<'a> Pass<'a> {
    fn new(args: &'a BlkArgs, disk: &Disk, versions: Option<&'a mut Vec<u64>>, blocks: u64) -> Self {
        let busy = if versions.is_some() {
            vec![false; usize::try_from(blocks).unwrap_or(0)]
        } else {
            Vec::new()
        };
        let mut buffer = vec![0; usize::try_from(args.block).unwrap_or(0)];
        // What is written where nothing is verified: no zeros, which a back-end may treat as holes.
        content::fill(0, 0, &mut buffer);
        for slot in 0..disk.depth() {
            disk.put_data(slot, &buffer);
        }
        let slot = Slot {
            kind: Kind::Flush,
            number: 0,
            started: Instant::now(),
        };
        Self {
            args,
            versions,
            busy,
            slots: vec![slot; usize::from(disk.depth())],
            buffer,
            writes_since_flush: 0,
            tally: Tally::default(),
            fault: None,
        }
    }

    fn run(&mut self, disk: &mut Disk, kind: Kind, places: &mut Places, mut until: Until<'_>) -> Result<(), Error> {
        let mut free: Vec<u16> = (0..disk.depth()).rev().collect();
        let mut staged = 0u64;
        let mut going = true;
        let mut last = Instant::now();
        loop {
            let now = Instant::now();
            match &mut until {
                Until::Blocks(count) => going = staged < *count,
                Until::Measured(meter) => match meter.at(now) {
                    (Phase::Measure, true) => {
                        let Tally {
                            errors,
                            wrong,
                            verified,
                            ..
                        } = self.tally;
                        self.tally = Tally {
                            errors,
                            wrong,
                            verified,
                            ..Tally::default()
                        };
                    }
                    (Phase::Over, true) => going = false,
                    _ => {}
                },
            }
            let counted = going;
            while going && !free.is_empty() {
                if matches!(until, Until::Blocks(count) if staged == count) {
                    break;
                }
                let Some(slot) = free.pop() else { break };
                staged += u64::from(self.begin(disk, slot, kind, places, now));
            }
            disk.submit();
            let reaped = disk.reap(REAP_MAX, |disk, slot, status| {
                self.end(disk, slot, status, counted);
                free.push(slot);
                Ok(())
            })?;
            self.tally.polls += u64::from(counted);
            if reaped > 0 {
                last = now;
                continue;
            }
            self.tally.empty += u64::from(counted);
            if !going && free.len() == self.slots.len() {
                return Ok(());
            }
            if now - last > STUCK_LIMIT {
                let count = self.slots.len() - free.len();
                let (at, limit) = (self.args.socket.display(), STUCK_LIMIT.as_secs());
                return Err(Error::Stuck(format!(
                    "{count} requests at {at} are unanswered for {limit} s: is the back-end stopped?"
                )));
            }
            disk.idle(SLEEP)?;
        }
    }

    /// Stages the next request. True if it is about a block.
    fn begin(&mut self, disk: &mut Disk, slot: u16, kind: Kind, places: &mut Places, now: Instant) -> bool {
        let due = kind == Kind::Write && self.args.flush_every > 0 && self.writes_since_flush >= self.args.flush_every;
        let (kind, number) = if due {
            (Kind::Flush, 0)
        } else {
            (kind, self.place(places))
        };
        match kind {
            Kind::Flush => self.writes_since_flush = 0,
            Kind::Write => {
                self.writes_since_flush += 1;
                if let Some(version) = self.versions.as_mut().and_then(|all| all.get_mut(index(number))) {
                    *version += 1;
                    content::fill(number, *version, &mut self.buffer);
                    disk.put_data(slot, &self.buffer);
                }
            }
            Kind::Read => {}
        }
        self.slots[usize::from(slot)] = Slot {
            kind,
            number,
            started: now,
        };
        disk.stage(slot, kind, number);
        kind != Kind::Flush
    }

    /// The next block; where content is verified, one that nothing in flight is about.
    fn place(&mut self, places: &mut Places) -> u64 {
        loop {
            let number = places.pick();
            match self.busy.get_mut(index(number)) {
                // There are more blocks than requests.
                Some(true) => {}
                Some(busy) => {
                    *busy = true;
                    return number;
                }
                None => return number,
            }
        }
    }

    fn end(&mut self, disk: &Disk, slot: u16, status: u8, counted: bool) {
        let Slot { kind, number, started } = self.slots[usize::from(slot)];
        if kind != Kind::Flush
            && let Some(busy) = self.busy.get_mut(index(number))
        {
            *busy = false;
        }
        if status != STATUS_OK {
            self.tally.errors += 1;
        } else if kind == Kind::Read
            && let Some(version) = self
                .versions
                .as_ref()
                .and_then(|all| all.get(index(number)))
                .filter(|v| **v > 0)
        {
            disk.get_data(slot, &mut self.buffer);
            self.tally.verified += 1;
            if let Some(fault) = content::fault(number, *version, &self.buffer) {
                self.tally.wrong += 1;
                self.fault.get_or_insert(fault);
            }
        }
        if counted {
            self.tally
                .latency
                .add(u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX));
            self.tally.requests += u64::from(kind != Kind::Flush);
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
