//! A guest's block driver without a guest: one ring over a vhost-user session.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_ring::driver::{Driver, GuestRam, USER_OFFSET};

use super::{F_PROTOCOL_FEATURES, Frontend, PROTOCOL_F_REPLY_ACK, Request, mem_table, vring_state};

const RAM_LEN: u64 = 8 << 20;
const QUEUE_SIZE: u16 = 64;
const F_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_BLK_F_FLUSH`.
const F_FLUSH: u64 = 1 << 9;
/// Request types (virtio 1.3 §5.2.6).
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
/// How long a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// The guest's side of a volume.
#[derive(Debug)]
pub struct BlkGuest {
    // held: dropping it ends the session
    _frontend: Frontend,
    ring: Driver,
    kick: EventFd,
    _call: EventFd,
}

impl BlkGuest {
    /// Connects to the volume's socket, negotiates and starts its queue.
    pub fn start(socket: &Path) -> io::Result<Self> {
        let frontend = Frontend::connect(socket)?;
        let wanted = F_VERSION_1 | F_FLUSH | F_PROTOCOL_FEATURES;
        let offered = frontend.ask(Request::GetFeatures)?;
        if offered & wanted != wanted {
            return Err(io::Error::other(format!("the volume offers features {offered:#x}")));
        }
        frontend.ask(Request::GetProtocolFeatures)?;
        frontend.send(Request::SetProtocolFeatures, &PROTOCOL_F_REPLY_ACK.to_ne_bytes(), &[])?;
        frontend.send_acked(Request::SetOwner, &[], &[])?;
        frontend.send_acked(Request::SetFeatures, &wanted.to_ne_bytes(), &[])?;

        let ram = GuestRam::new(RAM_LEN);
        let ring = Driver::new(&ram, QUEUE_SIZE, F_VERSION_1);
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let (kick, call) = (event()?, event()?);
        let spec = ram.spec();
        let table = mem_table(&[[spec.guest_phys_addr, spec.len, spec.user_addr, spec.mmap_offset]]);
        frontend.send_acked(Request::SetMemTable, &table, &[ram.file().as_fd()])?;
        frontend.send_acked(Request::SetVringNum, &vring_state(0, QUEUE_SIZE.into()), &[])?;
        frontend.send_acked(Request::SetVringBase, &vring_state(0, 0), &[])?;
        let config = ring.config();
        let words = [config.desc, config.used, config.avail].map(|addr| (addr + USER_OFFSET).to_ne_bytes());
        let addr = [vring_state(0, 0), words.concat(), vec![0; 8]].concat();
        frontend.send_acked(Request::SetVringAddr, &addr, &[])?;
        frontend.send_acked(Request::SetVringCall, &[0; 8], &[call.as_fd()])?;
        frontend.send_acked(Request::SetVringKick, &[0; 8], &[kick.as_fd()])?;
        frontend.send_acked(Request::SetVringEnable, &vring_state(0, 1), &[])?;
        Ok(Self {
            _frontend: frontend,
            ring,
            kick,
            _call: call,
        })
    }

    /// Writes blocks from `sector` on.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> io::Result<()> {
        self.request(T_OUT, sector, data, 0).map(|_| ())
    }

    /// Makes what was written durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(T_FLUSH, 0, &[], 0).map(|_| ())
    }

    /// Reads `len` bytes from `sector` on.
    pub fn read(&mut self, sector: u64, len: u32) -> io::Result<Vec<u8>> {
        self.request(T_IN, sector, &[], len)
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[u8], read_len: u32) -> io::Result<Vec<u8>> {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let readable: Vec<&[u8]> = [&header[..], data]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect();
        // read data, then the status
        let writable: Vec<u32> = [read_len, 1].into_iter().filter(|len| *len > 0).collect();
        let added = self
            .ring
            .add_bytes(&readable, &writable)
            .ok_or_else(|| io::Error::other("the ring is full"))?;
        self.ring.publish();
        self.kick.write(1)?;
        let deadline = Instant::now() + REQUEST_LIMIT;
        while self.ring.used().is_none() {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the volume does not answer"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut parts: Vec<Vec<u8>> = added
            .writable
            .iter()
            .zip(&writable)
            .map(|((addr, _), len)| self.ring.read(*addr, usize::try_from(*len).unwrap_or(0)))
            .collect();
        match parts.pop().as_deref() {
            Some([0]) => Ok(parts.concat()),
            status => Err(io::Error::other(format!("the request ended with status {status:?}"))),
        }
    }
}
