//! Copies of frames that pass a port, for an operator to look at, both ways, with what became of them.
//!
//! While nobody captures, this is one question for a burst. While somebody does, bursts from the captured port's network are
//! delivered one frame at a time, so that the counters tell what became of each, and those that the filter takes in are
//! copied into memory that was taken when the capture began. What finds no room is counted and lost; a capture that nobody
//! reads ends.
//!
//! Bytes beyond a frame's inspected ones are read from the sender's memory once more: a guest that rewrites them at that
//! moment may show another payload here than its receiver got.
//!
//! Where a switch has several workers, all of them put what they see into the same capture ([`Switch::join_capture`]): frames
//! from the guest where they are taken, and frames for it where they are given to it.
//!
//! Of a trunk, each port is captured by itself, and its frames are shown without their tags, as its rules see them; those whose
//! tag belongs to no subport are the parent's.
//!
//! # What it doesn't implement
//!
//! Answers that the switch makes itself (to rejected packets), and the segments that a large frame is cut into for a
//! receiver: the large frame is shown.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use outboard_ring::{Chain, GuestMemory};
use vhost_net_dpu::record::Record;

use crate::{
    burst::{Fate, From},
    crossing::Crossing,
    reason::DropReason,
    switch::Switch,
};

/// Captures that may run at a time.
pub const CAPTURES_MAX: usize = 4;
/// Most frames that wait to be read.
const WAITING_MAX: usize = 8192;

/// Which way a frame passes the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureWay {
    /// From its guest.
    FromGuest,
    /// To its guest.
    ToGuest,
}

/// A frame at the port.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What it is; of a frame that is none, only its length means anything.
    pub record: &'a Record,
    /// Its inspected bytes.
    pub head: &'a [u8],
    /// Which way it goes.
    pub way: CaptureWay,
    /// Why it was dropped, if it was.
    pub dropped: Option<DropReason>,
}

/// Which of them are kept. Runs on the worker: it must not take long.
pub type CaptureFilter = Box<dyn Fn(&Seen<'_>) -> bool + Send>;

/// What is to be captured, and for how long.
pub struct CaptureSpec {
    /// The port.
    pub port: String,
    /// Which frames.
    pub filter: CaptureFilter,
    /// How many bytes of each, at most.
    pub snaplen: usize,
    /// After how many frames it ends.
    pub frames_max: u64,
    /// After how long it ends.
    pub time_max: Duration,
    /// How long it goes on without being read.
    pub unread_max: Duration,
    /// Bytes of frames that are kept until they are read.
    pub len_max: usize,
}

/// A frame that was captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Its number in the capture, from 1 on.
    pub number: u64,
    /// When, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Which way it passed.
    pub way: CaptureWay,
    /// Its whole length in bytes.
    pub len: u32,
    /// Its first bytes.
    pub bytes: Vec<u8>,
    /// Why it was dropped, at this port or by the other one's rules, if it was.
    pub dropped: Option<DropReason>,
}

/// What a capture has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CaptureRead {
    /// The oldest frames that were not read yet.
    pub frames: Vec<Captured>,
    /// Frames that there was no room for, since the capture began.
    pub lost: u64,
    /// Why nothing more comes, if nothing does.
    pub ended: Option<&'static str>,
}

/// Why no capture was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureRefused {
    /// There is no such port.
    NoPort,
    /// [`CAPTURES_MAX`] run already.
    TooMany,
}

/// A frame that waits to be read; its bytes are in the capture's.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    number: u64,
    unix_ns: u64,
    way: CaptureWay,
    len: u32,
    kept: usize,
    dropped: Option<DropReason>,
}

/// What shows that a port was given a frame, or dropped one: its frames received, and its drops.
type Marks = (u64, [u64; DropReason::COUNT]);

/// A capture that runs, or has ended and is still to be read.
struct Capture {
    spec: CaptureSpec,
    waiting: VecDeque<Waiting>,
    /// The bytes of those that wait, in their order.
    bytes: VecDeque<u8>,
    /// For the bytes of one frame.
    scratch: Vec<u8>,
    taken: u64,
    lost: u64,
    begun: Instant,
    read: Instant,
    ended: Option<&'static str>,
}

/// A capture, as one worker has it.
struct Open {
    shared: SharedCapture,
    before: Marks,
}

/// A capture that other workers can join.
#[derive(Clone)]
pub struct SharedCapture {
    id: u64,
    port: Arc<str>,
    capture: Arc<Mutex<Capture>>,
}

impl std::fmt::Debug for SharedCapture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedCapture")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl SharedCapture {
    /// Locked for each frame of a captured port, and for as long as it takes to copy its beginning.
    fn lock(&self) -> MutexGuard<'_, Capture> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A frame, wherever it is kept.
struct Shot<'a> {
    record: &'a Record,
    head: &'a [u8],
    chain: Option<&'a Chain>,
    memory: &'a GuestMemory,
}

/// The captures of a switch.
#[derive(Default)]
pub(crate) struct Captures {
    open: Vec<Open>,
    last_id: u64,
}

impl std::fmt::Debug for Captures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Captures")
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl Captures {
    /// Is anything captured?
    #[inline]
    pub(crate) fn any(&self) -> bool {
        !self.open.is_empty()
    }

    fn find(&self, id: u64) -> Option<&Open> {
        self.open.iter().find(|open| open.shared.id == id)
    }
}

impl Capture {
    fn new(spec: CaptureSpec, now: Instant) -> Self {
        Self {
            waiting: VecDeque::with_capacity(WAITING_MAX),
            bytes: VecDeque::with_capacity(spec.len_max),
            scratch: vec![0; spec.snaplen],
            spec,
            taken: 0,
            lost: 0,
            begun: now,
            read: now,
            ended: None,
        }
    }

    fn end_by_time(&mut self, now: Instant) {
        if now.saturating_duration_since(self.begun) >= self.spec.time_max {
            self.ended.get_or_insert("its time is up");
        }
        if self.is_unread(now) {
            self.ended.get_or_insert("nobody read it");
        }
    }

    fn is_unread(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.read) >= self.spec.unread_max
    }

    /// Keeps a frame, if the filter takes it in and there is room.
    fn keep(&mut self, seen: &Seen<'_>, shot: &Shot<'_>, now: Instant) {
        self.end_by_time(now);
        if self.ended.is_some() || !(self.spec.filter)(seen) {
            return;
        }
        let want = self.spec.snaplen.min(seen.record.len as usize);
        if self.bytes.len() + want > self.spec.len_max || self.waiting.len() == WAITING_MAX {
            self.lost += 1;
            return;
        }
        let kept = copy(shot, self.scratch.get_mut(..want).unwrap_or_default());
        self.bytes.extend(self.scratch.get(..kept).unwrap_or_default());
        self.taken += 1;
        self.waiting.push_back(Waiting {
            number: self.taken,
            unix_ns: unix_ns(),
            way: seen.way,
            len: seen.record.len,
            kept,
            dropped: seen.dropped,
        });
        if self.taken >= self.spec.frames_max {
            self.ended.get_or_insert("it has all the frames that were asked for");
        }
    }

    /// Forgets the frames up to a number.
    fn forget(&mut self, number: u64) {
        while let Some(frame) = self.waiting.pop_front_if(|frame| frame.number <= number) {
            self.bytes.drain(..frame.kept.min(self.bytes.len()));
        }
    }

    fn show(&self, len_max: usize) -> CaptureRead {
        let mut begin = 0;
        let fitting = self.waiting.iter().map_while(|frame| {
            let end = begin + frame.kept;
            if end > len_max {
                return None;
            }
            let bytes = self.bytes.range(begin..end).copied().collect();
            begin = end;
            Some(Captured {
                number: frame.number,
                unix_ns: frame.unix_ns,
                way: frame.way,
                len: frame.len,
                bytes,
                dropped: frame.dropped,
            })
        });
        let frames: Vec<_> = fitting.collect();
        CaptureRead {
            // What is left comes when it is read again.
            ended: self.ended.filter(|_| frames.len() == self.waiting.len()),
            frames,
            lost: self.lost,
        }
    }
}

/// What time it is, in nanoseconds since 1970.
fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The first bytes of a frame: the private ones, and what follows them in the guest's memory. How many there were.
fn copy(shot: &Shot<'_>, to: &mut [u8]) -> usize {
    let head = shot.head;
    let private = head.len().min(to.len());
    let (inspected, rest) = to.split_at_mut(private);
    for (to, from) in inspected.iter_mut().zip(head) {
        *to = *from;
    }
    if rest.is_empty() {
        return private;
    }
    let offset = (shot.record.start() + private) as u64;
    match shot.chain {
        Some(chain) if chain.read_at(shot.memory, offset, rest).is_ok() => private + rest.len(),
        _ => private,
    }
}

impl Switch {
    /// Begins to capture; its number.
    ///
    /// # Errors
    /// There is no such port, or too many captures run.
    pub fn open_capture(&mut self, spec: CaptureSpec) -> Result<u64, CaptureRefused> {
        self.declared(&spec.port).ok_or(CaptureRefused::NoPort)?;
        self.sweep_captures();
        if self.captures.open.len() >= CAPTURES_MAX {
            return Err(CaptureRefused::TooMany);
        }
        self.captures.last_id += 1;
        let id = self.captures.last_id;
        self.captures.open.push(Open {
            shared: SharedCapture {
                id,
                port: spec.port.as_str().into(),
                capture: Arc::new(Mutex::new(Capture::new(spec, Instant::now()))),
            },
            before: (0, [0; DropReason::COUNT]),
        });
        Ok(id)
    }

    /// A capture that was begun here, for other workers to join.
    pub fn shared_capture(&self, id: u64) -> Option<SharedCapture> {
        self.captures.find(id).map(|open| open.shared.clone())
    }

    /// Puts what this worker sees of a port into a capture that was begun in another one.
    pub fn join_capture(&mut self, shared: SharedCapture) {
        self.captures.open.push(Open {
            shared,
            before: (0, [0; DropReason::COUNT]),
        });
    }

    /// What a capture has beyond frame number `after`, up to `len_max` bytes of it; what comes before is forgotten. None if
    /// there is no such capture, or not any more.
    pub fn read_capture(&mut self, id: u64, after: u64, len_max: usize) -> Option<CaptureRead> {
        let shared = &self.captures.find(id)?.shared;
        let gone = self.declared(&shared.port).is_none();
        let mut capture = shared.lock();
        let now = Instant::now();
        if gone {
            capture.ended.get_or_insert("the port is gone");
        }
        capture.end_by_time(now);
        capture.read = now;
        capture.forget(after);
        Some(capture.show(len_max))
    }

    /// Ends a capture and forgets it. False if there is none.
    pub fn close_capture(&mut self, id: u64) -> bool {
        let before = self.captures.open.len();
        self.captures.open.retain(|open| open.shared.id != id);
        self.captures.open.len() < before
    }

    /// Forgets captures that nobody reads; true if others are left.
    pub fn sweep_captures(&mut self) -> bool {
        let now = Instant::now();
        self.captures.open.retain(|open| !open.shared.lock().is_unread(now));
        self.captures.any()
    }

    /// Delivers a burst one frame at a time, and keeps those that are captured.
    #[cold]
    pub(crate) fn deliver_captured(&mut self, from: From, slots: Range<usize>) {
        // Taken out, so that they can look at the switch; nothing that is called here asks for them.
        let mut captures = std::mem::take(&mut self.captures);
        let now = Instant::now();
        for slot in slots {
            for open in &mut captures.open {
                open.before = self.marks(&open.shared.port);
            }
            let fate = self.fates.get(slot);
            self.deliver(from, slot..slot + 1);
            let tx = self.ports.get(from.device).and_then(|port| port.tx.get(from.place));
            let Some((tx, record)) = tx.and_then(|tx| Some((&tx.queue, tx.queue.records().get(slot)?))) else {
                continue;
            };
            let shot = Shot {
                record,
                head: tx.head_of(slot),
                chain: tx.chain_of(slot),
                memory: tx.memory(),
            };
            for open in &captures.open {
                self.look(open, Some((from.port, fate)), &shot, now);
            }
        }
        self.captures = captures;
    }

    /// Delivers a frame that another worker took, which has shown it as its sender's, and keeps it if it is captured here.
    #[cold]
    pub(crate) fn deliver_crossing_captured(&mut self, crossing: &mut Crossing, sender: Option<usize>) {
        let mut captures = std::mem::take(&mut self.captures);
        for open in &mut captures.open {
            open.before = self.marks(&open.shared.port);
        }
        self.deliver_crossing(crossing, sender);
        let shot = Shot {
            record: crossing.parcel.record(),
            head: crossing.parcel.head(),
            chain: Some(crossing.parcel.chain()),
            memory: crossing.parcel.memory(),
        };
        let of_another =
            |open: &&Open| sender.is_none() || self.declared(&open.shared.port).map(|(at, _)| at) != sender;
        for open in captures.open.iter().filter(of_another) {
            self.look(open, None, &shot, Instant::now());
        }
        self.captures = captures;
    }

    fn marks(&self, port: &str) -> Marks {
        let none = (0, [0; DropReason::COUNT]);
        self.declared(port).map_or(none, |(_, port)| port.tally.marks())
    }

    /// Keeps a frame that was just delivered, or was not, if it passed a capture's port. `from` is its sender, and what became
    /// of it, where it was taken here.
    fn look(&self, open: &Open, from: Option<(usize, Option<Fate>)>, shot: &Shot<'_>, now: Instant) {
        let Some((index, port)) = self.declared(&open.shared.port) else {
            return;
        };
        let (received, drops) = port.tally.marks();
        let mut changed = DropReason::ALL.into_iter().zip(drops.iter().zip(open.before.1));
        let dropped = changed.find_map(|(reason, (now, before))| (*now != before).then_some(reason));
        let (way, dropped) = match from {
            // The other port's rules may be against it, and that port counts it then.
            Some((sender, Some(Fate::Refused { reason, .. }))) if index == sender => {
                (CaptureWay::FromGuest, Some(reason))
            }
            Some((sender, _)) if index == sender => (CaptureWay::FromGuest, dropped),
            _ if received != open.before.0 || dropped.is_some() => (CaptureWay::ToGuest, dropped),
            _ => return,
        };
        let seen = Seen {
            record: shot.record,
            head: shot.head,
            way,
            dropped,
        };
        open.shared.lock().keep(&seen, shot, now);
    }
}
