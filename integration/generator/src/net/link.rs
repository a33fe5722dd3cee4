//! Both ports, what is sent by each, and what was received.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    args::{NetArgs, Notify},
    error::Error,
    net::{
        check::{Checker, Counts},
        frames::{Frames, Kind},
        plan::Plan,
        port::{Port, RX_QUEUE, TX_QUEUE, sleep},
        queue::HEADER_LEN,
    },
    session::Session,
};

/// How long stragglers may take.
const DRAIN_LIMIT: Duration = Duration::from_millis(300);
/// How long a device may keep a frame before anything is measured.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
/// Frames taken at a time beside measurements.
const BURST: u16 = 64;

/// A and B: index 0 and 1.
#[derive(Debug)]
pub struct Link {
    /// The ports.
    pub ports: [Port; 2],
    /// What each sends.
    pub plans: [Plan; 2],
    /// What each receives.
    pub checkers: [Checker; 2],
    /// Does it sleep when there is nothing to do?
    pub sleeps: bool,
    pub(crate) scratch: Vec<u8>,
}

impl Link {
    /// Opens both ports.
    ///
    /// # Errors
    /// A back-end is not there, or refuses.
    pub fn open(args: &NetArgs) -> Result<Self, Error> {
        let [forward, back] = Frames::pair(args);
        let patience = Duration::from_secs(args.common.patience);
        // At once: a back-end that connects may try both, and then not again for a while.
        let (a, b) = thread::scope(|scope| {
            let b = scope.spawn(|| Session::open(&args.b, args.role, patience));
            let a = Session::open(&args.a, args.role, patience);
            (a, b.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let a = Port::start(a?, args, &forward)?;
        let b = Port::start(b?, args, &back)?;
        Ok(Self::over(args, [a, b]))
    }

    /// Joins two ports.
    pub fn over(args: &NetArgs, ports: [Port; 2]) -> Self {
        let [forward, back] = Frames::pair(args);
        Self {
            ports,
            plans: [forward, back].map(|frames| Plan::new(frames, args.sample, args.deny_percent)),
            checkers: [back, forward].map(|frames| Checker::new(frames, args.sample)),
            sleeps: args.notify == Notify::Eventfd,
            scratch: Vec::new(),
        }
    }

    /// Sends one frame, if there is room.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn send_one(&mut self, from: usize, frame: &[u8]) -> Result<bool, Error> {
        let port = &mut self.ports[from];
        let sent = port.tx.send_one(frame);
        sent.map_err(|fault| port.fault(TX_QUEUE, fault))
    }

    /// Sends frames that make flows known, as many as fit. How many.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn send_primes(&mut self, from: usize, first: u32, count: u32) -> Result<u32, Error> {
        let port = &mut self.ports[from];
        let room = port.tx.room();
        let room = room.map_err(|fault| port.fault(TX_QUEUE, fault))?;
        let count = u16::try_from(count).unwrap_or(room).min(room);
        for n in 0..count {
            self.plans[from]
                .frames
                .build(Kind::Prime(first + u32::from(n)), &mut self.scratch);
            port.tx.put(n, &[0; HEADER_LEN], &self.scratch);
        }
        port.tx.flush(count);
        Ok(u32::from(count))
    }

    /// Takes frames that arrived at a port, and answers questions about it. How many there were.
    ///
    /// # Errors
    /// The device broke a ring.
    pub fn receive(&mut self, to: usize) -> Result<u16, Error> {
        self.receive_up_to(to, BURST)
    }

    /// The same, at most `limit`.
    ///
    /// # Errors
    /// The device broke a ring.
    #[inline]
    pub fn receive_up_to(&mut self, to: usize, limit: u16) -> Result<u16, Error> {
        let port = &mut self.ports[to];
        let count = port.rx.receive(limit, &mut self.checkers[to]);
        let count = count.map_err(|fault| port.fault(RX_QUEUE, fault))?;
        self.answer(to)?;
        Ok(count)
    }

    /// Sends the next data frame of a port, if there is room.
    ///
    /// # Errors
    /// The device broke the ring.
    #[inline]
    pub fn send_data(&mut self, from: usize) -> Result<bool, Error> {
        let (port, plan) = (&mut self.ports[from], &mut self.plans[from]);
        let room = port.tx.room();
        if room.map_err(|fault| port.fault(TX_QUEUE, fault))? == 0 {
            return Ok(false);
        }
        if plan.varied() {
            port.tx.send::<true>(plan, 1);
        } else {
            port.tx.send::<false>(plan, 1);
        }
        Ok(true)
    }

    /// Sends ARP answers that are due.
    ///
    /// # Errors
    /// The device broke a ring.
    pub fn answer(&mut self, at: usize) -> Result<(), Error> {
        if self.checkers[at].has_answers() {
            for answer in self.checkers[at].take_answers() {
                // Without room it is lost, as on any network: who asks asks again.
                let _sent = self.send_one(at, &answer)?;
            }
        }
        Ok(())
    }

    /// Sleeps until something happens, if it is one that sleeps.
    ///
    /// # Errors
    /// A device broke its ring.
    pub fn idle(&self, limit: Duration) -> Result<(), Error> {
        if self.sleeps { sleep(&self.ports, limit) } else { Ok(()) }
    }

    /// Counts at A and at B.
    pub fn counts(&self) -> [Counts; 2] {
        [self.checkers[0].counts(), self.checkers[1].counts()]
    }

    /// Waits for frames that are on their way: until all arrived, or none came for a while.
    ///
    /// # Errors
    /// A device broke its ring.
    pub fn drain(&mut self) -> Result<(), Error> {
        let mut last = Instant::now();
        while last.elapsed() < DRAIN_LIMIT && self.missing() > 0 {
            let got = self.receive(0)? + self.receive(1)?;
            if got > 0 {
                last = Instant::now();
            } else {
                self.idle(Duration::from_millis(10))?;
            }
        }
        Ok(())
    }

    /// Waits until A's device gave all transmit buffers back, so that they can be written.
    ///
    /// # Errors
    /// It keeps some, or broke the ring.
    pub fn settle(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let port = &mut self.ports[0];
            let room = port.tx.room();
            if room.map_err(|fault| port.fault(TX_QUEUE, fault))? == port.tx.ring.size() {
                return Ok(());
            }
            if start.elapsed() > SETTLE_LIMIT {
                let path = port.path().display();
                return Err(Error::Stuck(format!(
                    "the back-end at {path} keeps frames that it was sent: look at its log"
                )));
            }
            self.receive(1)?;
            self.idle(Duration::from_millis(1))?;
        }
    }

    /// Frames sent that did not arrive (yet).
    pub fn missing(&self) -> u64 {
        let [at_a, at_b] = self.counts();
        let missing = |plan: &Plan, counts: Counts| plan.sent().saturating_sub(counts.received);
        missing(&self.plans[0], at_b) + missing(&self.plans[1], at_a)
    }

    /// Ends both sessions.
    ///
    /// # Errors
    /// A back-end does not answer.
    pub fn close(self) -> Result<(), Error> {
        let [a, b] = self.ports;
        a.close()?;
        b.close()
    }
}
