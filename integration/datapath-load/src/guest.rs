//! A guest's memory and queues, seen from both sides.

use std::{os::fd::AsFd, sync::Arc};

use outboard_generator::{
    raw::Memory,
    ring::{GUEST_START, Ring, Space},
};
use outboard_ring::{CallFd, GuestMemory, KickFd, RegionSpec, RingConfig, Signals};
use outboard_vhost_user::QueueResources;

use crate::error::Error;

/// Nobody is called: drivers poll. Counts how often one would have been.
#[derive(Debug, Default)]
pub struct Calls(pub u64);

impl Signals for Calls {
    fn signal(&mut self, _: &CallFd) {
        self.0 += 1;
    }
}

/// A guest's memory, mapped by the driver's side and by the device's.
#[derive(Debug)]
pub struct Guest {
    /// What is free of it.
    pub space: Space,
    device: Arc<GuestMemory>,
}

impl Guest {
    /// At least `len` bytes.
    ///
    /// # Errors
    /// There is no such memory.
    pub fn new(len: usize) -> Result<Self, Error> {
        let memory = Memory::new(len, false)?;
        let spec = RegionSpec {
            guest_phys_addr: GUEST_START,
            len: memory.len() as u64,
            user_addr: memory.address(),
            mmap_offset: 0,
            file: memory.file().try_clone()?,
        };
        Ok(Self {
            device: Arc::new(GuestMemory::map(vec![spec])?),
            space: Space::new(memory),
        })
    }

    /// The driver's view.
    pub fn memory(&self) -> &Arc<Memory> {
        self.space.memory()
    }

    /// The device's end of a queue.
    ///
    /// # Errors
    /// The ring is refused.
    pub fn device_end(&self, ring: &Ring, features: u64) -> Result<QueueResources, Error> {
        let [desc, used, avail] = ring
            .addresses()
            .map(|address| address - self.memory().address() + GUEST_START);
        let config = RingConfig {
            size: ring.size(),
            desc,
            avail,
            used,
            base: 0,
            features,
        };
        Ok(QueueResources {
            ring: outboard_ring::Ring::new(config, Arc::clone(&self.device))?,
            kick: Some(KickFd::new(ring.kick_fd().as_fd().try_clone_to_owned()?)?),
            call: Some(CallFd::new(ring.call_fd().as_fd().try_clone_to_owned()?)?),
            features,
            log: None,
        })
    }
}
