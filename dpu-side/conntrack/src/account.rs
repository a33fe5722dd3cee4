//! What each port may take of the table, and what it took.
//!
//! A connection counts against the port whose packet opened it. Until both ends are known to want it, it is *half-open*;
//! each port's half-open connections queue in the order in which they came. When a port's budget is used up the oldest
//! of them gives way: a flood of opening packets pushes out its own kind, never an established connection, and never
//! another port's.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

/// How many connections a port may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Connections, half-open ones among them.
    pub entries: u32,
    /// Half-open ones. A port's queue takes 8 bytes for each.
    pub half_open: u32,
}

impl Budget {
    /// No connections at all: what a port has that was given nothing.
    pub const NONE: Self = Self {
        entries: 0,
        half_open: 0,
    };

    /// So many connections, all of which may be half-open: those give way first in any case.
    pub const fn of(entries: u32) -> Self {
        Self {
            entries,
            half_open: entries,
        }
    }
}

/// What a port has, and what became of its connections since the table was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Connections it has now, those past their time but not yet cleared away among them.
    pub entries: u32,
    /// Of these, half-open ones.
    pub half_open: u32,
    /// Connections it opened.
    pub opened: u64,
    /// Half-open connections of it that gave way to others.
    pub evicted: u64,
    /// Connections that it was refused, its budget being used up.
    pub refused: u64,
}

/// How many entries of a port's queue one new connection looks at, at most.
const STEPS_MAX: u32 = 32;
/// How far ahead of eviction what it needs is brought near: what an entry leads to, and before that the entry.
const NEAR: usize = 4;
const FAR: usize = 8;

#[repr(align(64))]
pub(crate) struct Account {
    entries_max: AtomicU32,
    half_open_max: AtomicU32,
    pub entries: AtomicU32,
    pub half_open: AtomicU32,
    pub opened: AtomicU64,
    pub evicted: AtomicU64,
    pub refused: AtomicU64,
    queue: Mutex<Queue>,
}

/// A ring of half-open connections, oldest at the tail; they may have become assured, or been freed, meanwhile.
#[derive(Default)]
struct Queue {
    ring: Box<[u64]>,
    tail: usize,
    len: usize,
}

impl Queue {
    fn pop(&mut self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let bits = self.ring[self.tail];
        self.tail = (self.tail + 1) % self.ring.len();
        self.len -= 1;
        Some(bits)
    }

    fn peek(&self, ahead: usize) -> Option<u64> {
        (ahead < self.len).then(|| self.ring[(self.tail + ahead) % self.ring.len()])
    }

    fn push(&mut self, bits: u64) -> bool {
        if self.len == self.ring.len() {
            return false;
        }
        let head = (self.tail + self.len) % self.ring.len();
        self.ring[head] = bits;
        self.len += 1;
        true
    }
}

impl Account {
    pub fn new() -> Self {
        Self {
            entries_max: AtomicU32::new(0),
            half_open_max: AtomicU32::new(0),
            entries: AtomicU32::new(0),
            half_open: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            queue: Mutex::new(Queue::default()),
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Give the port another budget. What it has beyond that stays until its time is up.
    pub fn set(&self, budget: Budget) {
        let mut queue = self.queue();
        // One more than may be half-open, so that what queues and is no longer so gives way before what is.
        let mut ring = vec![0; budget.half_open as usize + 1].into_boxed_slice();
        while queue.len > budget.half_open as usize {
            queue.pop();
        }
        let mut len = 0;
        while let Some(bits) = queue.pop() {
            ring[len] = bits;
            len += 1;
        }
        *queue = Queue { ring, tail: 0, len };
        self.entries_max.store(budget.entries, Ordering::Relaxed);
        self.half_open_max.store(budget.half_open, Ordering::Relaxed);
    }

    /// Is there room for one more connection?
    #[inline]
    pub fn has_room(&self) -> bool {
        self.entries.load(Ordering::Relaxed) < self.entries_max.load(Ordering::Relaxed)
            && self.half_open.load(Ordering::Relaxed) < self.half_open_max.load(Ordering::Relaxed)
    }

    /// A connection was opened: queue it.
    pub fn enqueue(&self, bits: u64, is_half_open: impl Fn(u64) -> bool) -> Option<u64> {
        let mut queue = self.queue();
        let mut steps = 0;
        while !queue.push(bits) {
            // Full of what is half-open no more, but for a few that are: those go to the head again.
            let oldest = queue.pop()?;
            steps += 1;
            if is_half_open(oldest) {
                if steps == STEPS_MAX {
                    queue.push(bits);
                    return Some(oldest);
                }
                queue.push(oldest);
            }
        }
        None
    }

    /// The port's oldest half-open connection, if the oldest few that queue have one: it is to be evicted. And two that
    /// will be soon: one [`NEAR`] further on, one [`FAR`].
    pub fn oldest(&self, is_half_open: impl Fn(u64) -> bool) -> (Option<u64>, [Option<u64>; 2]) {
        let mut queue = self.queue();
        let mut oldest = None;
        for _ in 0..STEPS_MAX {
            let Some(bits) = queue.pop() else { break };
            if is_half_open(bits) {
                oldest = Some(bits);
                break;
            }
        }
        (oldest, [queue.peek(NEAR), queue.peek(FAR)])
    }

    pub fn counters(&self) -> PortCounters {
        PortCounters {
            entries: self.entries.load(Ordering::Relaxed),
            half_open: self.half_open.load(Ordering::Relaxed),
            opened: self.opened.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}
