//! A guest that sends frames and shows what it got: drivers over memory of its own.

use std::{collections::HashMap, io};

use outboard_ring::{
    KickFd, Ring,
    driver::{Driver, GuestRam},
};
use outboard_vhost_user::QueueResources;
use rustix::event::{EventfdFlags, eventfd};
use vhost_net_dpu::{
    features::FEATURES,
    header::{HEADER_LEN, NetHeader},
};

const QUEUE_SIZE: u16 = 32;
const RAM_LEN: u64 = 1 << 20;
const BUFFER_LEN: u16 = 2048;

/// One queue pair.
pub(super) struct Guest {
    ram: GuestRam,
    rx: Driver,
    tx: Driver,
    /// Receive buffers by their descriptors.
    posted: HashMap<u16, u64>,
    /// Where frames to be sent lie, in turn.
    slots: Vec<u64>,
    turn: usize,
}

impl Guest {
    pub(super) fn new() -> Self {
        let ram = GuestRam::new(RAM_LEN);
        let slots = (0..QUEUE_SIZE).map(|_| ram.alloc(BUFFER_LEN.into(), 64)).collect();
        let mut guest = Self {
            rx: Driver::new(&ram, QUEUE_SIZE, FEATURES),
            tx: Driver::new(&ram, QUEUE_SIZE, FEATURES),
            ram,
            posted: HashMap::new(),
            slots,
            turn: 0,
        };
        for _ in 0..QUEUE_SIZE {
            let at = guest.ram.alloc(BUFFER_LEN.into(), 64);
            guest.post(at);
        }
        guest.rx.publish();
        guest
    }

    /// What its queues run on: the receiving one, and the sending one.
    pub(super) fn queues(&self) -> io::Result<[QueueResources; 2]> {
        let resources = |driver: &Driver| -> io::Result<QueueResources> {
            let ring = Ring::new(driver.config(), self.ram.memory().clone()).map_err(io::Error::other)?;
            let kick = KickFd::new(eventfd(0, EventfdFlags::CLOEXEC)?).map_err(io::Error::other)?;
            Ok(QueueResources {
                ring,
                kick: Some(kick),
                call: None,
                features: FEATURES,
                log: None,
            })
        };
        Ok([resources(&self.rx)?, resources(&self.tx)?])
    }

    fn post(&mut self, at: u64) {
        if let Some(head) = self.rx.add(&[], &[(at, BUFFER_LEN.into())]) {
            self.posted.insert(head, at);
        }
    }

    pub(super) fn send(&mut self, frame: &[u8]) {
        while self.tx.used().is_some() {}
        let at = self.slots[self.turn];
        self.turn = (self.turn + 1) % self.slots.len();
        let bytes = [&NetHeader::default().to_bytes(), frame].concat();
        self.tx.write(at, &bytes);
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.tx.add(&[(at, len)], &[]);
        self.tx.publish();
    }

    /// Frames that it got since the last call.
    pub(super) fn received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some((head, len)) = self.rx.used() {
            let Some(at) = self.posted.remove(&head) else { continue };
            let bytes = self.rx.read(at, usize::try_from(len).unwrap_or(0));
            frames.push(bytes.get(HEADER_LEN..).unwrap_or_default().to_vec());
            self.post(at);
        }
        self.rx.publish();
        frames
    }
}
