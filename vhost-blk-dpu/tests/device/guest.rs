//! A guest with one volume: its driver, and the device it talks to.

use std::os::fd::OwnedFd;

use outboard_ring::{
    CallFd, KickFd, Ring, RingConfig, Signals,
    driver::{Added, Driver, GuestRam},
};
use outboard_storage::Backend;
use outboard_vhost_user::QueueResources;
use rustix::event::{EventfdFlags, eventfd};
use vhost_blk_dpu::{BlkConfig, BlkUnit};

pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;
pub const S_OK: u8 = 0;
pub const F_EVENT_IDX: u64 = 1 << 29;
/// What is in a buffer before the device writes it.
pub const UNTOUCHED: u8 = 0xff;

/// Counts calls instead of making them.
#[derive(Default)]
pub struct Calls(pub usize);

impl Signals for Calls {
    fn signal(&mut self, _: &CallFd) {
        self.0 += 1;
    }
}

pub struct Guest {
    pub ram: GuestRam,
    pub driver: Driver,
    pub unit: BlkUnit,
    pub calls: Calls,
}

pub fn config(size_bytes: u64) -> BlkConfig {
    BlkConfig {
        name: "disk1".into(),
        read_only: false,
        size_bytes,
    }
}

pub fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[8..].copy_from_slice(&sector.to_le_bytes());
    bytes
}

fn new_eventfd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

impl Guest {
    /// A guest that drives `backend` with these features.
    pub fn new(config: BlkConfig, backend: Box<dyn Backend>, features: u64) -> Self {
        Self::with_queue(config, backend, features, 64)
    }

    /// The same with a queue of so many descriptors.
    pub fn with_queue(config: BlkConfig, backend: Box<dyn Backend>, features: u64, size: u16) -> Self {
        // An indirect table as long as the queue for each descriptor, and room for buffers.
        let ram = GuestRam::new((8 << 20) + 32 * u64::from(size) * u64::from(size));
        let driver = Driver::new(&ram, size, features);
        let mut guest = Self {
            ram,
            driver,
            unit: BlkUnit::new(config, backend),
            calls: Calls::default(),
        };
        guest.start(guest.driver.config().base);
        guest
    }

    /// Start the queue at `base`.
    pub fn start(&mut self, base: u32) {
        let config = RingConfig {
            base,
            ..self.driver.config()
        };
        let ring = Ring::new(config, self.ram.memory().clone()).expect("a ring in order");
        let resources = resources(ring, config.features);
        self.unit.start_queue(0, resources).expect("the queue is not running");
    }

    /// Make a request available: header and `data` readable, `read_len` bytes and the status writable.
    pub fn add(&mut self, kind: u32, sector: u64, data: &[u8], read_len: u32) -> Added {
        add(&mut self.driver, kind, sector, data, read_len)
    }

    /// Let the device work once.
    pub fn breathe(&mut self) -> bool {
        self.unit.breathe(&mut self.calls)
    }

    pub fn status(&self, added: &Added) -> u8 {
        status(&self.driver, added)
    }

    /// Wait for the next answer.
    pub fn wait_used(&mut self) -> (u16, u32) {
        for _ in 0..200_000 {
            if let Some(used) = self.driver.used() {
                return used;
            }
            if !self.breathe() {
                std::thread::yield_now();
            }
        }
        panic!("the device never answered");
    }

    /// Carry out one request: its status, the length the device says it wrote, and the data it read.
    pub fn run(&mut self, kind: u32, sector: u64, data: &[u8], read_len: u32) -> (u8, u32, Vec<u8>) {
        let added = self.add(kind, sector, data, read_len);
        let (head, used_len) = self.wait_used();
        assert_eq!(head, added.head);
        let data = self.driver.read(added.writable[0].0, read_len as usize);
        (self.status(&added), used_len, data)
    }
}

/// What a queue with this ring runs on.
pub fn resources(ring: Ring, features: u64) -> QueueResources {
    QueueResources {
        ring,
        kick: Some(KickFd::new(new_eventfd()).expect("an eventfd")),
        call: Some(CallFd::new(new_eventfd()).expect("an eventfd")),
        features,
        log: None,
    }
}

/// As [`Guest::add`], on any queue.
pub fn add(driver: &mut Driver, kind: u32, sector: u64, data: &[u8], read_len: u32) -> Added {
    let header = header(kind, sector);
    let readable: &[&[u8]] = if data.is_empty() { &[&header] } else { &[&header, data] };
    let writable: &[u32] = if read_len == 0 { &[1] } else { &[read_len, 1] };
    let added = driver
        .add_bytes(readable, writable)
        .expect("there are descriptors left");
    // No status is this, and no data that a test writes.
    for &(addr, len) in &added.writable {
        driver.write(addr, &vec![UNTOUCHED; len as usize]);
    }
    driver.publish();
    added
}

pub fn status(driver: &Driver, added: &Added) -> u8 {
    driver.read(status_addr(added), 1)[0]
}

fn status_addr(added: &Added) -> u64 {
    let (addr, len) = *added.writable.last().expect("a request has room for its status");
    addr + u64::from(len) - 1
}
