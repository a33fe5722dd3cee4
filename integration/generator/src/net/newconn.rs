//! `newconn`: connections that no one has seen before, as fast as they come through.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    args::{L4, NetArgs},
    error::Error,
    meter::{Meter, Phase, percent, real},
    net::{
        frames::{CONNECTION_COUNT, Frames, TCP_ACK, TCP_SYN},
        link::Link,
        outcome::Outcome,
        port::{RX_QUEUE, TX_QUEUE},
        prime::find_path,
        queue::{HEADER_LEN, Sink},
    },
    report::Report,
};

/// Handshakes at once, unless said otherwise.
const WINDOW_DEFAULT: u32 = 256;
/// Without progress for this long, what is outstanding is given up.
const PROGRESS_LIMIT: Duration = Duration::from_millis(200);
const ROUNDS_PER_LOOK: u32 = 16;
const SLEEP: Duration = Duration::from_millis(1);
/// Flags of the two datagrams of a UDP "connection".
const UDP_ASK: u8 = 1;
const UDP_ANSWER: u8 = 2;

/// A segment: flow, and sequence, acknowledged, flags.
type Segment = (u32, (u32, u32, u8));

/// One end's state, which is none: what to say follows from what was heard.
#[derive(Debug)]
struct End {
    hears: Frames,
    says: VecDeque<Segment>,
    done: u64,
    corrupt: u64,
    foreign: u64,
}

impl End {
    fn new(hears: Frames, burst: u16) -> Self {
        // At most one for each frame of a burst, and none is taken while some wait.
        Self {
            hears,
            says: VecDeque::with_capacity(usize::from(burst)),
            done: 0,
            corrupt: 0,
            foreign: 0,
        }
    }

    fn hear(&mut self, (flow, (sequence, acknowledged, flags)): Segment) {
        const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
        let (l4, initiator) = (self.hears.l4, !self.hears.forward);
        match (l4, initiator, flags) {
            (L4::Udp, false, UDP_ASK) if sequence == flow => self.says.push_back((flow, (!flow, 0, UDP_ANSWER))),
            (L4::Udp, true, UDP_ANSWER) if sequence == !flow => self.done += 1,
            (L4::Tcp, false, TCP_SYN) if sequence == flow => {
                self.says.push_back((flow, (!flow, flow.wrapping_add(1), SYN_ACK)));
            }
            (L4::Tcp, true, SYN_ACK) if sequence == !flow && acknowledged == flow.wrapping_add(1) => {
                self.says
                    .push_back((flow, (acknowledged, sequence.wrapping_add(1), TCP_ACK)));
            }
            (L4::Tcp, false, TCP_ACK)
                if sequence == flow.wrapping_add(1) && acknowledged == (!flow).wrapping_add(1) =>
            {
                self.done += 1;
            }
            _ => self.corrupt += 1,
        }
    }
}

impl Sink for End {
    fn glance(&mut self, _word: u64, _len: u32) -> bool {
        false
    }

    fn inspect(&mut self, _header: &[u8; HEADER_LEN], frame: &[u8]) {
        // Frames that find the path may still be under way; they are of flow 0.
        match self.hears.parse_connection(frame).filter(|(flow, _)| *flow != 0) {
            Some(segment) => self.hear(segment),
            None => self.foreign += 1,
        }
    }
}

/// Opens connections for the time given.
///
/// # Errors
/// A back-end failed, or nothing comes through.
pub fn run(args: &NetArgs, mut link: Link) -> Result<Outcome, Error> {
    find_path(&mut link, Duration::from_secs(args.common.patience))?;
    let [forward, back] = [link.plans[0].frames, link.plans[1].frames];
    let mut ends = [End::new(back, args.burst), End::new(forward, args.burst)];
    let window = u64::from(args.window.filter(|window| *window > 0).unwrap_or(WINDOW_DEFAULT));
    let mut meter = Meter::start(args.warmup, args.seconds)?;
    let mut state = State {
        started: 0,
        given_up: 0,
        last_done: 0,
        progress: Instant::now(),
        polls: 0,
        empty: 0,
    };
    let mut start = 0;
    let mut round = 0u32;
    let measured = loop {
        let worked = state.round(&mut link, &mut ends, window, args.burst)?;
        round = round.wrapping_add(1);
        if !worked {
            link.idle(SLEEP)?;
        }
        if round.is_multiple_of(ROUNDS_PER_LOOK) || !worked && link.sleeps {
            let now = Instant::now();
            state.give_up(&ends, now);
            match meter.at(now) {
                (Phase::Measure, true) => {
                    (start, state.polls, state.empty) = (done(&ends), 0, 0);
                }
                (Phase::Over, _) => break done(&ends) - start,
                _ => {}
            }
        }
    };
    let (polls, empty) = (state.polls, state.empty);
    let limit = Instant::now() + PROGRESS_LIMIT;
    while done(&ends) < state.started && Instant::now() < limit {
        if !state.round(&mut link, &mut ends, 0, args.burst)? {
            link.idle(SLEEP)?;
        }
    }
    let finished = done(&ends);
    let report = Report {
        frames: Some(measured),
        seconds: meter.seconds(),
        pps: Some(real(measured) / meter.seconds()),
        lost: Some(state.started.saturating_sub(finished)),
        corrupt: Some(ends.iter().map(|end| end.corrupt).sum()),
        foreign: Some(ends.iter().map(|end| end.foreign).sum()),
        empty_polls_pct: Some(percent(real(empty), real(polls))),
        cpu_pct: meter.cpu_pct(),
        ..Report::default()
    };
    Ok(Outcome::new(args, report, state.started, finished, link))
}

fn done(ends: &[End; 2]) -> u64 {
    ends[0].done + ends[1].done
}

#[derive(Debug)]
struct State {
    started: u64,
    given_up: u64,
    last_done: u64,
    progress: Instant,
    polls: u64,
    empty: u64,
}

impl State {
    /// New connections, and the next segments of those that are there. True if there was anything to do.
    fn round(&mut self, link: &mut Link, ends: &mut [End; 2], window: u64, burst: u16) -> Result<bool, Error> {
        let outstanding = self.started.saturating_sub(done(ends)).saturating_sub(self.given_up);
        let mut fresh = window.saturating_sub(outstanding);
        let mut worked = false;
        for (at, end) in ends.iter_mut().enumerate() {
            let port = &mut link.ports[at];
            if end.says.is_empty() {
                let got = port.rx.receive(burst, end);
                let got = got.map_err(|fault| port.fault(RX_QUEUE, fault))?;
                self.polls += 1;
                self.empty += u64::from(got == 0);
                worked |= got > 0;
            }
            let room = port.tx.room();
            let room = room.map_err(|fault| port.fault(TX_QUEUE, fault))?.min(2 * burst);
            let mut count = 0;
            let mut frame = std::mem::take(&mut link.scratch);
            while count < room {
                let (flow, segment) = match end.says.pop_front() {
                    Some(segment) => segment,
                    None if at == 0 && fresh > 0 => {
                        fresh -= 1;
                        self.started += 1;
                        start(link.plans[0].frames.l4, self.started)
                    }
                    None => break,
                };
                link.plans[at].frames.build_connection(flow, segment, &mut frame);
                port.tx.put(count, &[0; HEADER_LEN], &frame);
                count += 1;
            }
            link.scratch = frame;
            port.tx.flush(count);
            worked |= count > 0;
        }
        Ok(worked)
    }

    /// Notices that nothing moves any more.
    fn give_up(&mut self, ends: &[End; 2], now: Instant) {
        let finished = done(ends);
        if finished != self.last_done {
            (self.last_done, self.progress) = (finished, now);
        } else if now - self.progress > PROGRESS_LIMIT {
            self.given_up = self.started.saturating_sub(finished);
            self.progress = now;
        }
    }
}

/// The first segment of the `n`th connection.
fn start(l4: L4, n: u64) -> Segment {
    // Flow 0 found the path. Those that are left are more than any run opens.
    let flow = u32::try_from(1 + (n - 1) % (CONNECTION_COUNT - 1)).unwrap_or(1);
    match l4 {
        L4::Udp => (flow, (flow, 0, UDP_ASK)),
        L4::Tcp => (flow, (flow, 0, TCP_SYN)),
    }
}
