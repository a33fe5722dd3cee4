//! A disk: its session, its queue, and a slot for each request in flight.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{
    args::{BlkArgs, Notify},
    blk::SECTOR_LEN,
    error::Error,
    features::{BLK_FLUSH, BLK_MQ, BLK_RO, EVENT_IDX, INDIRECT_DESC, PROTOCOL_CONFIG, PROTOCOL_MQ, VERSION_1},
    net::port::guest_memory,
    raw::{Cells, LINE_LEN, Memory},
    ring::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE, Descriptor, Ring, RingFault, Space, ring_len, wait},
    session::{Session, Wanted},
};

/// Bytes of config space that are looked at: up to and with `num_queues` (virtio 1.3 §5.2.4).
const CONFIG_LEN: usize = 36;
const HEADER_LEN: usize = 16;
const QUEUE: u16 = 0;
/// Descriptors of a request: header, data, status.
const PER_REQUEST: u16 = 3;
/// What the status byte is before the device writes it: none of its values.
const UNANSWERED: u8 = 0xff;
/// Types of requests (virtio 1.3 §5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads a block.
    Read,
    /// Writes one.
    Write,
    /// Makes writes durable.
    Flush,
}

/// A disk with one queue.
#[derive(Debug)]
pub struct Disk {
    session: Session,
    ring: Ring,
    memory: Arc<Memory>,
    indirect: bool,
    sleeps: bool,
    /// Bytes of the disk.
    capacity: u64,
    block: u32,
    depth: u16,
    headers_at: usize,
    tables_at: usize,
    data_at: usize,
    data_stride: usize,
    statuses: Cells<AtomicU8>,
    /// What each slot's descriptors are set up for.
    kinds: Vec<Option<Kind>>,
    staged: u16,
}

impl Disk {
    /// Connects, negotiates and starts the queue.
    ///
    /// # Errors
    /// The back-end is not there, or refuses.
    pub fn open(args: &BlkArgs) -> Result<Self, Error> {
        let mut session = Session::open(&args.socket, args.role, Duration::from_secs(args.common.patience))?;
        session.negotiate(wanted(args))?;
        let negotiated = session.features();
        if args.op.writes() && negotiated & BLK_RO != 0 {
            return Err(Error::Usage(format!(
                "the disk at {} is read-only: choose a reading --op",
                args.socket.display()
            )));
        }
        let config = session.config(CONFIG_LEN)?;
        let sectors = config.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let indirect = negotiated & INDIRECT_DESC != 0 && !args.no_indirect;
        let per_request = if indirect { 1 } else { PER_REQUEST };
        if args.depth > args.queue_size / per_request {
            let text = format!(
                "--depth {} needs a larger --queue-size than {}: {per_request} descriptors a request",
                args.depth, args.queue_size
            );
            return Err(Error::Usage(text));
        }
        let depth = usize::from(args.depth);
        let block = usize::try_from(args.block).unwrap_or(0);
        // An odd number of pages: blocks then spread over the caches' sets, and remain aligned for direct I/O.
        let data_stride = (block.div_ceil(4096) | 1) * 4096;
        let slots = depth.next_power_of_two();
        let len = ring_len(args.queue_size) + slots * (2 * LINE_LEN + HEADER_LEN + 3 * DESC_LEN) + depth * data_stride;
        let memory = guest_memory(len + 4 * 4096, args.common.hugepages)?;
        let mut space = Space::new(memory);
        let ring = Ring::new(&mut space, args.queue_size, negotiated)
            .map_err(|source| Error::system("making eventfds", source))?;
        let headers_at = space.take(HEADER_LEN * slots);
        let tables_at = space.take(3 * DESC_LEN * slots);
        let statuses_at = space.take(LINE_LEN * slots);
        let data_at = space.take(data_stride * depth + 4096).next_multiple_of(4096);
        session.set_memory(space.memory())?;
        session.start_queue(QUEUE, &ring)?;
        session.settle()?;
        let memory = Arc::clone(space.memory());
        Ok(Self {
            session,
            ring,
            indirect,
            sleeps: args.notify == Notify::Eventfd,
            capacity: sectors.saturating_mul(SECTOR_LEN),
            block: args.block,
            depth: args.depth,
            headers_at,
            tables_at,
            data_at,
            data_stride,
            statuses: Cells::new(&memory, statuses_at, slots, LINE_LEN),
            kinds: vec![None; depth],
            staged: 0,
            memory,
        })
    }

    /// Its session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Bytes of the disk.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Can it flush?
    pub fn flushes(&self) -> bool {
        self.session.features() & BLK_FLUSH != 0
    }

    /// Requests that may be in flight.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Bytes of a request.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Writes what a slot's request will write.
    pub fn put_data(&self, slot: u16, data: &[u8]) {
        self.memory
            .write(self.data(slot), &data[..data.len().min(self.data_stride)]);
    }

    /// Reads what a slot's request read.
    pub fn get_data(&self, slot: u16, data: &mut [u8]) {
        self.memory.read(self.data(slot), data);
    }

    fn data(&self, slot: u16) -> usize {
        self.data_at + self.data_stride * usize::from(slot)
    }

    /// Stages a request in a slot that is free, about the block of this number.
    pub fn stage(&mut self, slot: u16, kind: Kind, number: u64) {
        let header_at = self.headers_at + HEADER_LEN * usize::from(slot);
        let (code, sector) = match kind {
            Kind::Read => (T_IN, number * u64::from(self.block) / SECTOR_LEN),
            Kind::Write => (T_OUT, number * u64::from(self.block) / SECTOR_LEN),
            Kind::Flush => (T_FLUSH, 0),
        };
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&code.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory.write(header_at, &header);
        self.statuses.at(usize::from(slot)).store(UNANSWERED, Relaxed);
        if self.kinds[usize::from(slot)] != Some(kind) {
            self.kinds[usize::from(slot)] = Some(kind);
            self.describe(slot, kind, header_at);
        }
        self.ring.offer(self.staged, self.head(slot));
        self.staged += 1;
    }

    fn head(&self, slot: u16) -> u16 {
        if self.indirect { slot } else { PER_REQUEST * slot }
    }

    /// Writes the descriptors of a slot.
    fn describe(&self, slot: u16, kind: Kind, header_at: usize) {
        let first = if self.indirect { 0 } else { self.head(slot) };
        let status_at = self.statuses_at(slot);
        let header = |next| Descriptor {
            at: header_at,
            len: 16,
            flags: DESC_NEXT,
            next,
        };
        let status = Descriptor {
            at: status_at,
            len: 1,
            flags: DESC_WRITE,
            next: 0,
        };
        let data_flags = if kind == Kind::Read {
            DESC_NEXT | DESC_WRITE
        } else {
            DESC_NEXT
        };
        let data = Descriptor {
            at: self.data(slot),
            len: self.block,
            flags: data_flags,
            next: first + 2,
        };
        let parts = match kind {
            Kind::Flush => vec![header(first + 1), status],
            Kind::Read | Kind::Write => vec![header(first + 1), data, status],
        };
        if !self.indirect {
            for (index, part) in (first..).zip(parts) {
                self.ring.describe(index, part);
            }
            return;
        }
        let at = self.tables_at + 3 * DESC_LEN * usize::from(slot);
        let table: Vec<u8> = parts.iter().flat_map(|part| part.to_bytes()).collect();
        self.memory.write(at, &table);
        let len = u32::try_from(table.len()).unwrap_or(0);
        self.ring.describe(
            slot,
            Descriptor {
                at,
                len,
                flags: DESC_INDIRECT,
                next: 0,
            },
        );
    }

    fn statuses_at(&self, slot: u16) -> usize {
        // The cells' own place.
        self.statuses.offset(usize::from(slot))
    }

    /// Lets the device see what was staged.
    pub fn submit(&mut self) {
        let count = std::mem::take(&mut self.staged);
        if count > 0 {
            self.ring.publish(count);
            self.ring.notify(count);
        }
    }

    /// Takes up to `limit` finished requests: `each` is told slot and status.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn reap(
        &mut self,
        limit: u16,
        mut each: impl FnMut(&mut Self, u16, u8) -> Result<(), Error>,
    ) -> Result<u16, Error> {
        let count = self.ring.waiting().map_err(|fault| self.fault(fault))?.min(limit);
        for _ in 0..count {
            let id = self.ring.used_id(0).map_err(|fault| self.fault(fault))?;
            self.ring.take(1);
            let slot = if self.indirect { id } else { id / PER_REQUEST };
            if slot >= self.depth || self.head(slot) != id {
                return Err(self.fault(RingFault::NoSuchDescriptor {
                    id: id.into(),
                    size: self.ring.size(),
                }));
            }
            let status = self.statuses.at(usize::from(slot)).load(Relaxed);
            each(self, slot, status)?;
        }
        Ok(count)
    }

    /// Sleeps until something finishes, if it is one that sleeps.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn idle(&self, limit: Duration) -> Result<(), Error> {
        if self.sleeps {
            if self.ring.arm().map_err(|fault| self.fault(fault))? {
                wait([self.ring.call_fd()], limit);
            }
            self.ring.disarm();
        }
        Ok(())
    }

    fn fault(&self, fault: RingFault) -> Error {
        Error::Ring {
            path: self.session.path().to_owned(),
            queue: QUEUE,
            what: fault.to_string(),
        }
    }

    /// Stops the queue.
    ///
    /// # Errors
    /// The back-end does not answer.
    pub fn close(self) -> Result<(), Error> {
        self.session.stop_queue(QUEUE).map(|_| ())
    }
}

fn wanted(args: &BlkArgs) -> Wanted {
    let sleeps = if args.notify == Notify::Eventfd { EVENT_IDX } else { 0 };
    Wanted {
        needed: VERSION_1,
        liked: BLK_RO | BLK_FLUSH | BLK_MQ | INDIRECT_DESC | sleeps,
        protocol: PROTOCOL_CONFIG | PROTOCOL_MQ,
        remedy: "this driver is none of before virtio 1.0",
    }
}
