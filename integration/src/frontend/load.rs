//! Load on a volume that knows what it is owed: every request is acknowledged once, every read gives what was acknowledged
//! last, and a ledger tells what a flush has promised.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::rings::{Rings, Wanted};
use crate::{
    ledger::{BLOCK_LEN, Covered, Ledger},
    random::Random,
};

/// `VIRTIO_RING_F_EVENT_IDX`.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_RING_F_INDIRECT_DESC`.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_IN_ORDER`.
pub const F_IN_ORDER: u64 = 1 << 35;
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_BLK_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_MQ`.
pub const F_BLK_MQ: u64 = 1 << 12;

/// `VIRTIO_BLK_F_SIZE_MAX`, `SEG_MAX`, `BLK_SIZE`, `TOPOLOGY`.
pub const F_BLK_SHAPE: u64 = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 10;
/// `VIRTIO_BLK_F_CONFIG_WCE`.
pub const F_BLK_CONFIG_WCE: u64 = 1 << 11;
/// `VIRTIO_BLK_F_DISCARD`, `WRITE_ZEROES`.
pub const F_BLK_TRIM: u64 = 1 << 13 | 1 << 14;

/// Request types (virtio 1.3 §5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const HEADER_LEN: u32 = 16;
const STATUS_OK: u8 = 0;
/// What the status byte holds before the device writes it.
const STATUS_UNWRITTEN: u8 = 0xff;
/// How long nothing at all may happen, whatever is killed meanwhile.
const STUCK_LIMIT: Duration = Duration::from_secs(60);
/// How long a call may stay out once its used entry can be seen.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// What was acknowledged so far. May be looked at while the load runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Acknowledged requests of every kind.
    pub requests: AtomicU64,
    /// Flushes among them.
    pub flushes: AtomicU64,
}

enum Pending {
    Write(usize),
    /// A write of zeros, which is no new version.
    Zero(usize),
    Read(usize),
    Flush(Covered),
}

/// Memory of one request.
struct Slot {
    header: u64,
    data: u64,
    status: u64,
}

struct Queue {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// For each head in flight its slot and what it is.
    in_flight: Vec<Option<(usize, Pending)>>,
    reaped: u16,
}

/// A guest that reads, writes and flushes a volume at random.
pub struct BlkLoad {
    /// Its session.
    pub rings: Rings,
    queues: Vec<Queue>,
    ledger: Arc<Mutex<Ledger>>,
    progress: Arc<Progress>,
    busy: Vec<bool>,
    random: Random,
    flush_in_flight: bool,
    event_idx: bool,
    indirect: bool,
}

impl BlkLoad {
    /// Connects to a volume of at least `blocks` blocks of zeros; `depth` requests are in flight in each queue.
    pub fn start(socket: &Path, wanted: Wanted, blocks: usize, depth: usize, seed: u64) -> io::Result<Self> {
        let rings = Rings::start(
            socket,
            Wanted {
                features: wanted.features | F_BLK_FLUSH,
                ..wanted
            },
        )?;
        let queue = |_| Queue {
            slots: (0..depth)
                .map(|_| Slot {
                    header: rings.ram.alloc(HEADER_LEN.into(), 16),
                    data: rings.ram.alloc(BLOCK_LEN as u64, 512),
                    status: rings.ram.alloc(1, 1),
                })
                .collect(),
            free: (0..depth).collect(),
            in_flight: (0..wanted.queue_size).map(|_| None).collect(),
            reaped: 0,
        };
        Ok(Self {
            queues: (0..wanted.queues).map(queue).collect(),
            ledger: Arc::new(Mutex::new(Ledger::new(blocks))),
            progress: Arc::default(),
            busy: vec![false; blocks],
            random: Random(seed),
            flush_in_flight: false,
            event_idx: rings.features & F_EVENT_IDX != 0,
            indirect: rings.features & F_INDIRECT_DESC != 0,
            rings,
        })
    }

    /// What was promised; shared with whoever judges.
    pub fn ledger(&self) -> Arc<Mutex<Ledger>> {
        Arc::clone(&self.ledger)
    }

    /// What was acknowledged.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }

    /// Goes on until `stop`, then waits for what is in flight.
    pub fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut moved = Instant::now();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if !stopping {
                self.submit();
            }
            if stopping && self.idle() {
                return Ok(());
            }
            if self.reap()? {
                moved = Instant::now();
            } else {
                self.wait_for_call(Duration::from_millis(20))?;
                if moved.elapsed() > STUCK_LIMIT {
                    return Err(self.stuck());
                }
            }
        }
    }

    /// Reads every block and checks it.
    pub fn check_everything(&mut self) -> io::Result<()> {
        (0..self.busy.len()).try_for_each(|block| self.one(Pending::Read(block)))
    }

    /// Makes every block of a volume that was used before what a ledger begins with.
    pub fn overwrite_with_zeros(&mut self) -> io::Result<()> {
        (0..self.busy.len()).try_for_each(|block| self.one(Pending::Zero(block)))
    }

    /// Where the device has written or may write: each request's data and status.
    pub fn written_addresses(&self) -> Vec<u64> {
        // requests that come one by one always take the slot that became free last
        let last = self.queues[0].free.last().map(|slot| &self.queues[0].slots[*slot]);
        last.map_or_else(Vec::new, |slot| vec![slot.data, slot.status])
    }

    /// One request by itself.
    fn one(&mut self, pending: Pending) -> io::Result<()> {
        self.queue_request(0, pending);
        self.publish(0);
        let deadline = Instant::now() + STUCK_LIMIT;
        while !self.idle() {
            if !self.reap()? {
                self.wait_for_call(Duration::from_millis(20))?;
            }
            if Instant::now() > deadline {
                return Err(self.stuck());
            }
        }
        Ok(())
    }

    /// Is nothing in flight?
    pub fn idle(&self) -> bool {
        self.queues.iter().all(|queue| queue.free.len() == queue.slots.len())
    }

    /// Fills every queue with requests, as far as blocks without a request are found.
    fn submit(&mut self) {
        for number in 0..self.queues.len() {
            let mut added = false;
            while !self.queues[number].free.is_empty() {
                let Some(pending) = self.choose() else { break };
                self.queue_request(number, pending);
                added = true;
            }
            if added {
                self.publish(number);
            }
        }
    }

    /// One request in 16 is a flush, one in four of the others a read.
    fn choose(&mut self) -> Option<Pending> {
        if !self.flush_in_flight && self.random.below(16) == 0 {
            self.flush_in_flight = true;
            return Some(Pending::Flush(self.ledger().lock_it().begin_flush()));
        }
        // one request a block at a time, so that what it holds is known
        let block = (0..8)
            .map(|_| self.random.below(self.busy.len()))
            .find(|&block| !self.busy[block])?;
        self.busy[block] = true;
        Some(if self.random.below(4) == 0 {
            Pending::Read(block)
        } else {
            Pending::Write(block)
        })
    }

    fn queue_request(&mut self, number: usize, pending: Pending) {
        let (queue, driver) = (&mut self.queues[number], &mut self.rings.queues[number].driver);
        let Some(slot_index) = queue.free.pop() else { return };
        let slot = &queue.slots[slot_index];
        let (kind, block) = match &pending {
            Pending::Write(block) | Pending::Zero(block) => (T_OUT, *block),
            Pending::Read(block) => (T_IN, *block),
            Pending::Flush(_) => (T_FLUSH, 0),
        };
        let sector = (block * BLOCK_LEN / 512) as u64;
        driver.write(
            slot.header,
            &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(),
        );
        driver.write(slot.status, &[STATUS_UNWRITTEN]);
        let header = (slot.header, HEADER_LEN);
        // the constant is small
        #[allow(clippy::cast_possible_truncation)]
        let data = (slot.data, BLOCK_LEN as u32);
        let status = (slot.status, 1);
        let (readable, writable) = match &pending {
            Pending::Write(block) => {
                let bytes = self.ledger.lock_it().submit(*block);
                driver.write(slot.data, &bytes);
                (vec![header, data], vec![status])
            }
            Pending::Zero(_) => {
                driver.write(slot.data, &[0; BLOCK_LEN]);
                (vec![header, data], vec![status])
            }
            Pending::Read(_) => (vec![header], vec![data, status]),
            Pending::Flush(_) => (vec![header], vec![status]),
        };
        let head = if self.indirect {
            driver.add_indirect(&readable, &writable)
        } else {
            driver.add(&readable, &writable)
        };
        let head = head.expect("a queue has three descriptors for each slot");
        queue.in_flight[usize::from(head)] = Some((slot_index, pending));
    }

    fn publish(&mut self, number: usize) {
        let ring = &mut self.rings.queues[number];
        ring.driver.publish();
        if ring.driver.needs_kick() {
            // a counter that is full was kicked already
            let _ = ring.kick.write(1);
        }
    }

    /// Takes what is used; whether there was anything.
    fn reap(&mut self) -> io::Result<bool> {
        let mut any = false;
        for number in 0..self.queues.len() {
            loop {
                while let Some((head, _)) = self.rings.queues[number].driver.used() {
                    any = true;
                    self.acknowledged(number, head)?;
                }
                if !self.event_idx {
                    break;
                }
                let (queue, driver) = (&self.queues[number], &self.rings.queues[number].driver);
                driver.set_used_event(queue.reaped);
                std::sync::atomic::fence(Ordering::SeqCst);
                if driver.published_used() == queue.reaped {
                    break;
                }
            }
        }
        Ok(any)
    }

    fn acknowledged(&mut self, number: usize, head: u16) -> io::Result<()> {
        let queue = &mut self.queues[number];
        queue.reaped = queue.reaped.wrapping_add(1);
        let (slot_index, pending) = queue.in_flight[usize::from(head)].take().ok_or_else(|| {
            io::Error::other(format!(
                "queue {number}: request {head} was acknowledged, but was not in flight: twice, or never submitted"
            ))
        })?;
        queue.free.push(slot_index);
        let slot = &queue.slots[slot_index];
        let driver = &self.rings.queues[number].driver;
        let status = driver.read(slot.status, 1)[0];
        if status != STATUS_OK {
            let what = match pending {
                Pending::Write(block) | Pending::Zero(block) => format!("write of block {block}"),
                Pending::Read(block) => format!("read of block {block}"),
                Pending::Flush(_) => "flush".to_owned(),
            };
            return Err(io::Error::other(format!("a {what} ended with status {status}")));
        }
        let mut ledger = self.ledger.lock_it();
        match pending {
            Pending::Write(block) => {
                ledger.acknowledge(block);
                self.busy[block] = false;
            }
            Pending::Zero(_) => {}
            Pending::Read(block) => {
                ledger
                    .check_read(block, &driver.read(slot.data, BLOCK_LEN))
                    .map_err(io::Error::other)?;
                self.busy[block] = false;
            }
            Pending::Flush(covered) => {
                ledger.acknowledge_flush(&covered);
                self.flush_in_flight = false;
                self.progress.flushes.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.progress.requests.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Sleeps until a call comes. A used entry whose call does not come is an error: a real driver would sleep on.
    fn wait_for_call(&self, limit: Duration) -> io::Result<()> {
        if self.called_within(limit)? {
            return Ok(());
        }
        if !self.anything_used() || self.called_within(CALL_LIMIT)? {
            return Ok(());
        }
        Err(io::Error::other("there are used entries, but no call came for them"))
    }

    fn anything_used(&self) -> bool {
        let mut queues = self.rings.queues.iter().zip(&self.queues);
        queues.any(|(ring, queue)| ring.driver.published_used() != queue.reaped)
    }

    fn called_within(&self, limit: Duration) -> io::Result<bool> {
        let mut polled: Vec<_> = self
            .rings
            .queues
            .iter()
            .map(|ring| PollFd::new(ring.call.as_fd(), PollFlags::POLLIN))
            .collect();
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let called = poll(&mut polled, timeout)? > 0;
        for ring in &self.rings.queues {
            // nothing there is as good
            let _ = ring.call.read();
        }
        Ok(called)
    }

    fn stuck(&self) -> io::Error {
        let mut text = format!("nothing was acknowledged for {STUCK_LIMIT:?};");
        for (number, (ring, queue)) in self.rings.queues.iter().zip(&self.queues).enumerate() {
            text += &format!(
                " queue {number}: {} in flight, {} reaped, used.idx {};",
                queue.slots.len() - queue.free.len(),
                queue.reaped,
                ring.driver.published_used()
            );
        }
        io::Error::new(io::ErrorKind::TimedOut, text)
    }
}

/// The lock of a ledger whose holder never panics half-way through a change.
pub trait LockIt<T> {
    /// Locks it.
    fn lock_it(&self) -> MutexGuard<'_, T>;
}

impl<T> LockIt<T> for Mutex<T> {
    fn lock_it(&self) -> MutexGuard<'_, T> {
        self.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
