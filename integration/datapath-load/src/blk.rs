//! A guest with a volume: reads of 4 KiB, 32 at a time.

use std::{sync::Arc, time::Instant};

use outboard_generator::{
    features::{BLK_BLK_SIZE, BLK_FLUSH, INDIRECT_DESC, VERSION_1},
    raw::Memory,
    ring::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE, Descriptor, Ring, ring_len},
};
use outboard_storage::{Backend, MemoryBackend, NullBackend};
use vhost_blk_dpu::{BlkConfig, BlkUnit};

use crate::{
    Done,
    error::Error,
    guest::{Calls, Guest},
};

const DEPTH: u16 = 32;
const QUEUE_SIZE: u16 = 256;
const BLOCK_LEN: usize = 4096;
const SECTOR_LEN: u64 = 512;
/// Blocks of the volume, all of them written before they are read.
const BLOCK_COUNT: u64 = 2048;
const HEADER_LEN: usize = 16;
/// Types of requests (virtio 1.3 §5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const UNANSWERED: u8 = 0xff;

/// Where blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Nowhere: reads give zeros.
    Null,
    /// In memory.
    Memory,
}

/// Reads at least `operations` blocks after at least `warm_up`.
pub fn run(store: Store, warm_up: u64, operations: u64) -> Result<Done, Error> {
    let mut load = Load::new(store)?;
    load.work(BLOCK_COUNT, T_OUT)?;
    load.work(warm_up, T_IN)?;
    load.work(operations, T_IN)
}

/// One breath. A function of its own, which no optimiser takes apart: profilers look for its name.
#[inline(never)]
fn measured_breath(unit: &mut BlkUnit, calls: &mut Calls) -> bool {
    std::hint::black_box(unit).breathe(calls)
}

struct Load {
    store: Store,
    unit: BlkUnit,
    calls: Calls,
    ring: Ring,
    memory: Arc<Memory>,
    /// Header, data, status and descriptors of each request.
    slots: Vec<Slot>,
    /// Slots that are free.
    free: Vec<u16>,
    next_block: u64,
}

struct Slot {
    header_at: usize,
    data_at: usize,
    status_at: usize,
    table_at: usize,
    block: u64,
}

impl Load {
    fn new(store: Store) -> Result<Self, Error> {
        let features = VERSION_1 | INDIRECT_DESC | BLK_FLUSH | BLK_BLK_SIZE;
        let size_bytes = BLOCK_COUNT * BLOCK_LEN as u64;
        let backend: Box<dyn Backend> = match store {
            Store::Null => Box::new(NullBackend::new(size_bytes, false)),
            Store::Memory => Box::new(MemoryBackend::new(size_bytes, false)),
        };
        let config = BlkConfig {
            name: "disk".into(),
            read_only: false,
            size_bytes,
        };
        let mut unit = BlkUnit::new(config, backend);
        let mut guest = Guest::new(ring_len(QUEUE_SIZE) + usize::from(DEPTH) * 3 * BLOCK_LEN + (1 << 16))?;
        let ring = Ring::new(&mut guest.space, QUEUE_SIZE, features)?;
        unit.start_queue(0, guest.device_end(&ring, features)?)?;
        let slots = (0..DEPTH).map(|_| Slot {
            header_at: guest.space.take(HEADER_LEN),
            // An odd number of lines apart, beginning at a page.
            data_at: guest.space.take(2 * BLOCK_LEN).next_multiple_of(BLOCK_LEN),
            status_at: guest.space.take(1),
            table_at: guest.space.take(3 * DESC_LEN),
            block: 0,
        });
        Ok(Self {
            store,
            unit,
            calls: Calls::default(),
            ring,
            slots: slots.collect(),
            memory: Arc::clone(guest.memory()),
            free: (0..DEPTH).collect(),
            next_block: 0,
        })
    }

    /// Carries out at least `requests`, and checks each answer.
    fn work(&mut self, requests: u64, kind: u32) -> Result<Done, Error> {
        for slot in 0..DEPTH {
            self.describe(slot, kind);
        }
        let mut done = Done::default();
        while done.operations < requests {
            let count = u16::try_from(self.free.len()).unwrap_or(DEPTH);
            for n in 0..count {
                self.offer(n, kind);
            }
            self.ring.publish(count);
            let started = Instant::now();
            measured_breath(&mut self.unit, &mut self.calls);
            done.spent += started.elapsed();
            let answered = self.reap(kind)?;
            if answered == 0 {
                return Err(Error::wrong("a backend that answers at once did not"));
            }
            done.operations += answered;
        }
        done.bytes = done.operations * BLOCK_LEN as u64;
        Ok(done)
    }

    /// Writes a slot's table: header, data, status.
    fn describe(&self, slot: u16, kind: u32) {
        let Slot {
            header_at,
            data_at,
            status_at,
            table_at,
            ..
        } = self.slots[usize::from(slot)];
        let part = |at, len, flags, next| Descriptor { at, len, flags, next }.to_bytes();
        let data_flags = if kind == T_IN {
            DESC_NEXT | DESC_WRITE
        } else {
            DESC_NEXT
        };
        let table = [
            part(header_at, 16, DESC_NEXT, 1),
            part(data_at, 4096, data_flags, 2),
            part(status_at, 1, DESC_WRITE, 0),
        ]
        .concat();
        self.memory.write(table_at, &table);
        let indirect = Descriptor {
            at: table_at,
            len: 48,
            flags: DESC_INDIRECT,
            next: 0,
        };
        self.ring.describe(slot, indirect);
    }

    /// Stages a request as the `n`th.
    fn offer(&mut self, n: u16, kind: u32) {
        let Some(head) = self.free.pop() else { return };
        let slot = &mut self.slots[usize::from(head)];
        slot.block = self.next_block;
        // Odd, so that all blocks have their turn, far apart.
        self.next_block = (self.next_block + 797) % BLOCK_COUNT;
        let mut header = [0; HEADER_LEN];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&(slot.block * (BLOCK_LEN as u64 / SECTOR_LEN)).to_le_bytes());
        self.memory.write(slot.header_at, &header);
        self.memory.write(slot.status_at, &[UNANSWERED]);
        let stamp = if kind == T_OUT { slot.block } else { u64::MAX };
        self.memory.write(slot.data_at, &stamp.to_le_bytes());
        self.memory.write(slot.data_at + BLOCK_LEN - 8, &stamp.to_le_bytes());
        self.ring.offer(n, head);
    }

    /// Takes all answers.
    fn reap(&mut self, kind: u32) -> Result<u64, Error> {
        let fault = |fault| Error::Used {
            queue: "requests",
            fault,
        };
        let count = self.ring.waiting().map_err(fault)?;
        for n in 0..count {
            let head = self.ring.used_id(n).map_err(fault)?;
            let len = self.ring.used_len(n);
            let Some(slot) = self.slots.get(usize::from(head)) else {
                return Err(Error::wrong("an answer to no request"));
            };
            let want_len = if kind == T_IN { 4097 } else { 1 };
            let mut status = [0];
            self.memory.read(slot.status_at, &mut status);
            if status != [0] || len != want_len {
                return Err(Error::wrong(format!(
                    "a request was answered with {status:?} and {len} bytes"
                )));
            }
            if kind == T_IN && self.store == Store::Memory {
                for at in [slot.data_at, slot.data_at + BLOCK_LEN - 8] {
                    let mut stamp = [0; 8];
                    self.memory.read(at, &mut stamp);
                    if u64::from_le_bytes(stamp) != slot.block {
                        return Err(Error::wrong(format!("block {} was read as another", slot.block)));
                    }
                }
            }
            self.free.push(head);
        }
        self.ring.take(count);
        Ok(u64::from(count))
    }
}
