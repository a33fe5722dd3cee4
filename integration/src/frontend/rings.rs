//! A session with any number of queues, as a driver and its VMM together have it. It can lose its back end and begin
//! anew with the same memory and rings, as QEMU does when it reconnects.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_ring::driver::{Driver, GuestRam, RAM_START, USER_OFFSET};

use super::{
    F_PROTOCOL_FEATURES, Frontend, PROTOCOL_F_CONFIGURE_MEM_SLOTS, PROTOCOL_F_INFLIGHT_SHMFD, PROTOCOL_F_MQ,
    PROTOCOL_F_REPLY_ACK, Request, mem_table, vring_state,
};

/// `VIRTIO_F_VERSION_1`.
pub const F_VERSION_1: u64 = 1 << 32;

/// What a session is to be like.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Features beside `VERSION_1` and `PROTOCOL_FEATURES`.
    pub features: u64,
    /// Protocol features beside `REPLY_ACK`.
    pub protocol: u64,
    /// How many queues.
    pub queues: u16,
    /// Descriptors in each.
    pub queue_size: u16,
    /// Bytes of guest memory.
    pub ram_len: u64,
    /// In how many regions, each with its own descriptor, that memory is told.
    pub regions: u64,
    /// `SET_FEATURES` comes before the protocol features are asked for, as libblkio does it.
    pub features_first: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            features: 0,
            protocol: 0,
            queues: 1,
            queue_size: 64,
            ram_len: 8 << 20,
            regions: 1,
            features_first: false,
        }
    }
}

/// One queue, the guest's side.
#[derive(Debug)]
pub struct Ring {
    /// Its ring.
    pub driver: Driver,
    /// Wakes the device.
    pub kick: EventFd,
    /// The device wakes the driver by this.
    pub call: EventFd,
}

/// A session and its queues.
#[derive(Debug)]
pub struct Rings {
    /// The session.
    pub frontend: Frontend,
    /// The guest's memory.
    pub ram: GuestRam,
    /// The queues.
    pub queues: Vec<Ring>,
    /// All features that were negotiated.
    pub features: u64,
    /// All protocol features that were negotiated.
    pub protocol: u64,
    wanted: Wanted,
    /// Answer to `GET_INFLIGHT_FD`: size and offset, and the region.
    inflight: Option<(u64, u64, OwnedFd)>,
}

impl Rings {
    /// Connects, negotiates and starts every queue.
    pub fn start(socket: &Path, wanted: Wanted) -> io::Result<Self> {
        Self::over(Frontend::connect(socket)?, wanted)
    }

    /// The same over a connection that stands.
    pub fn over(frontend: Frontend, wanted: Wanted) -> io::Result<Self> {
        let mut rings = Self::negotiated(frontend, wanted)?;
        rings.run()?;
        Ok(rings)
    }

    /// Negotiates; no queue runs yet and no memory was told.
    pub fn negotiated(frontend: Frontend, wanted: Wanted) -> io::Result<Self> {
        let ram = GuestRam::new(wanted.ram_len);
        let features = wanted.features | F_VERSION_1 | F_PROTOCOL_FEATURES;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let ring = || -> io::Result<Ring> {
            Ok(Ring {
                driver: Driver::new(&ram, wanted.queue_size, features),
                kick: event()?,
                call: event()?,
            })
        };
        let queues = (0..wanted.queues).map(|_| ring()).collect::<io::Result<_>>()?;
        let rings = Self {
            frontend,
            ram,
            queues,
            features,
            protocol: wanted.protocol | PROTOCOL_F_REPLY_ACK,
            wanted,
            inflight: None,
        };
        rings.negotiate()?;
        Ok(rings)
    }

    /// Begins anew over a new connection, with the same memory, rings and in-flight region: what was in flight is the new
    /// back end's to finish.
    pub fn resume(&mut self, socket: &Path) -> io::Result<()> {
        self.frontend = Frontend::connect(socket)?;
        self.negotiate()?;
        self.run()
    }

    fn negotiate(&self) -> io::Result<()> {
        let frontend = &self.frontend;
        let offered = frontend.ask(Request::GetFeatures)?;
        if offered & self.features != self.features {
            return Err(refused("features", offered, self.features));
        }
        if self.wanted.features_first {
            frontend.send(Request::SetFeatures, &self.features.to_ne_bytes(), &[])?;
        }
        let offered = frontend.ask(Request::GetProtocolFeatures)?;
        if offered & self.protocol != self.protocol {
            return Err(refused("protocol features", offered, self.protocol));
        }
        frontend.send(Request::SetProtocolFeatures, &self.protocol.to_ne_bytes(), &[])?;
        if self.protocol & PROTOCOL_F_MQ != 0 {
            let most = frontend.ask(Request::GetQueueNum)?;
            if most < u64::from(self.wanted.queues) {
                return Err(refused("queues", most, self.wanted.queues.into()));
            }
        }
        frontend.send_acked(Request::SetOwner, &[], &[])?;
        if self.wanted.features_first {
            return Ok(());
        }
        frontend.send_acked(Request::SetFeatures, &self.features.to_ne_bytes(), &[])
    }

    /// Tells the memory and starts every queue where its ring stands.
    pub fn run(&mut self) -> io::Result<()> {
        if self.protocol & PROTOCOL_F_INFLIGHT_SHMFD != 0 {
            self.send_inflight()?;
        }
        self.send_memory()?;
        for index in 0..self.queues.len() {
            self.start_queue(index)?;
        }
        Ok(())
    }

    fn send_inflight(&mut self) -> io::Result<()> {
        let shape = [self.wanted.queues.to_ne_bytes(), self.wanted.queue_size.to_ne_bytes()].concat();
        if self.inflight.is_none() {
            let payload = [&[0; 16], &shape[..], &[0; 4]].concat();
            self.frontend.send(Request::GetInflightFd, &payload, &[])?;
            let (reply, fd) = self.frontend.reply_with_fd(Request::GetInflightFd)?;
            let word = |at: usize| {
                let bytes = reply.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
                bytes.map(u64::from_ne_bytes).ok_or(io::ErrorKind::UnexpectedEof)
            };
            let fd = fd.ok_or_else(|| io::Error::other("no descriptor came with GET_INFLIGHT_FD"))?;
            self.inflight = Some((word(0)?, word(8)?, fd));
        }
        let Some((size, offset, fd)) = &self.inflight else {
            return Ok(());
        };
        let payload = [&size.to_ne_bytes()[..], &offset.to_ne_bytes(), &shape, &[0; 4]].concat();
        self.frontend
            .send_acked(Request::SetInflightFd, &payload, &[fd.as_fd()])
    }

    /// Tells the memory, region by region where slots were negotiated.
    pub fn send_memory(&self) -> io::Result<()> {
        let each = self.wanted.ram_len / self.wanted.regions;
        let region = |number: u64| {
            let at = number * each;
            [RAM_START + at, each, RAM_START + USER_OFFSET + at, at]
        };
        let regions: Vec<[u64; 4]> = (0..self.wanted.regions).map(region).collect();
        let file = self.ram.file().as_fd();
        if self.protocol & PROTOCOL_F_CONFIGURE_MEM_SLOTS == 0 {
            let fds = vec![file; regions.len()];
            return self
                .frontend
                .send_acked(Request::SetMemTable, &mem_table(&regions), &fds);
        }
        for region in regions {
            let words = region.map(u64::to_ne_bytes).concat();
            let payload = [&[0; 8], &words[..]].concat();
            self.frontend.send_acked(Request::AddMemReg, &payload, &[file])?;
        }
        Ok(())
    }

    /// Payload of `SET_VRING_ADDR` for a queue.
    pub fn vring_addr(&self, index: usize, flags: u32, log_addr: u64) -> Vec<u8> {
        let config = self.queues[index].driver.config();
        let words = [
            config.desc + USER_OFFSET,
            config.used + USER_OFFSET,
            config.avail + USER_OFFSET,
            log_addr,
        ];
        [vring_state(number(index), flags), words.map(u64::to_ne_bytes).concat()].concat()
    }

    /// Starts a queue from where its used ring stands.
    pub fn start_queue(&self, index: usize) -> io::Result<()> {
        self.start_queue_at(index, self.queues[index].driver.published_used())
    }

    /// Starts a queue from an index.
    pub fn start_queue_at(&self, index: usize, base: u16) -> io::Result<()> {
        let (frontend, queue, ring) = (&self.frontend, number(index), &self.queues[index]);
        let size = u32::from(self.wanted.queue_size);
        frontend.send_acked(Request::SetVringNum, &vring_state(queue, size), &[])?;
        frontend.send_acked(Request::SetVringBase, &vring_state(queue, base.into()), &[])?;
        frontend.send_acked(Request::SetVringAddr, &self.vring_addr(index, 0, 0), &[])?;
        let word = u64::from(queue).to_ne_bytes();
        frontend.send_acked(Request::SetVringCall, &word, &[ring.call.as_fd()])?;
        frontend.send_acked(Request::SetVringKick, &word, &[ring.kick.as_fd()])?;
        frontend.send_acked(Request::SetVringEnable, &vring_state(queue, 1), &[])
    }

    /// Stops a queue: the index from which it would go on.
    pub fn stop_queue(&self, index: usize) -> io::Result<u16> {
        self.frontend
            .send(Request::GetVringBase, &vring_state(number(index), 0), &[])?;
        let reply = self.frontend.reply(Request::GetVringBase)?;
        match reply[..] {
            [_, _, _, _, low, high, 0, 0] => Ok(u16::from_ne_bytes([low, high])),
            _ => Err(io::Error::other(format!("GET_VRING_BASE was answered with {reply:?}"))),
        }
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn refused(what: &str, offered: u64, wanted: u64) -> io::Error {
    io::Error::other(format!("{what}: {offered:#x} are offered, {wanted:#x} are wanted"))
}
