//! A network guest without a guest: its driver's side of one rx and one tx ring over a vhost-user session.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};
use outboard_ring::driver::{Driver, GuestRam, USER_OFFSET};

use super::{F_PROTOCOL_FEATURES, Frontend, PROTOCOL_F_REPLY_ACK, Request, mem_table, vring_state};

const RAM_LEN: u64 = 8 << 20;
const QUEUE_SIZE: u16 = 64;
/// Length of the virtio-net header with VERSION_1 (virtio 1.3 §5.1.6).
const HEADER_LEN: usize = 12;
const BUFFER_LEN: u32 = 2048;
const RX: u8 = 0;
const TX: u8 = 1;
const F_VERSION_1: u64 = 1 << 32;

/// The guest's side of a port.
#[derive(Debug)]
pub struct NetGuest {
    /// Its session.
    pub frontend: Frontend,
    /// Its memory.
    pub ram: GuestRam,
    /// Its receive ring.
    pub rx: Driver,
    /// Its transmit ring.
    pub tx: Driver,
    /// Kicks of rx and tx.
    pub kicks: [EventFd; 2],
    /// Calls of rx and tx.
    pub calls: [EventFd; 2],
}

impl NetGuest {
    /// Connects to the port's socket and negotiates; no queue runs yet.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Self::negotiate(Frontend::connect(socket)?)
    }

    /// Negotiates over a connection that stands; no queue runs yet.
    pub fn negotiate(frontend: Frontend) -> io::Result<Self> {
        let offered = frontend.ask(Request::GetFeatures)?;
        let protocol = frontend.ask(Request::GetProtocolFeatures)?;
        if offered & (F_VERSION_1 | F_PROTOCOL_FEATURES) != F_VERSION_1 | F_PROTOCOL_FEATURES
            || protocol & PROTOCOL_F_REPLY_ACK == 0
        {
            return Err(io::Error::other(format!(
                "features {offered:#x}, protocol features {protocol:#x}"
            )));
        }
        frontend.send(Request::SetProtocolFeatures, &PROTOCOL_F_REPLY_ACK.to_ne_bytes(), &[])?;
        frontend.send_acked(Request::SetOwner, &[], &[])?;
        frontend.send_acked(
            Request::SetFeatures,
            &(F_VERSION_1 | F_PROTOCOL_FEATURES).to_ne_bytes(),
            &[],
        )?;
        let ram = GuestRam::new(RAM_LEN);
        let (rx, tx) = (
            Driver::new(&ram, QUEUE_SIZE, F_VERSION_1),
            Driver::new(&ram, QUEUE_SIZE, F_VERSION_1),
        );
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            frontend,
            ram,
            rx,
            tx,
            kicks: [event()?, event()?],
            calls: [event()?, event()?],
        })
    }

    /// Connects and starts both queues.
    pub fn start(socket: &Path) -> io::Result<Self> {
        Self::connect(socket)?.run()
    }

    /// Starts both queues.
    pub fn run(self) -> io::Result<Self> {
        let mut guest = self;
        guest.send_memory()?;
        guest.start_queue(RX)?;
        guest.start_queue(TX)?;
        guest.fill_rx();
        Ok(guest)
    }

    /// Sends the memory table.
    pub fn send_memory(&self) -> io::Result<()> {
        let spec = self.ram.spec();
        let table = mem_table(&[[spec.guest_phys_addr, spec.len, spec.user_addr, spec.mmap_offset]]);
        self.frontend
            .send_acked(Request::SetMemTable, &table, &[self.ram.file().as_fd()])
    }

    /// Payload of `SET_VRING_ADDR` for queue 0 (rx) or 1 (tx).
    pub fn vring_addr(&self, index: u8) -> Vec<u8> {
        let config = if index == RX {
            self.rx.config()
        } else {
            self.tx.config()
        };
        let user = |addr: u64| (addr + USER_OFFSET).to_ne_bytes();
        let words = [
            user(config.desc),
            user(config.used),
            user(config.avail),
            0u64.to_ne_bytes(),
        ];
        [vring_state(index.into(), 0), words.concat()].concat()
    }

    /// Sets up and enables queue 0 (rx) or 1 (tx).
    pub fn start_queue(&mut self, index: u8) -> io::Result<()> {
        let queue = u32::from(index);
        self.frontend
            .send_acked(Request::SetVringNum, &vring_state(queue, QUEUE_SIZE.into()), &[])?;
        self.frontend
            .send_acked(Request::SetVringBase, &vring_state(queue, 0), &[])?;
        self.frontend
            .send_acked(Request::SetVringAddr, &self.vring_addr(index), &[])?;
        self.start_queue_as_it_is(index)
    }

    /// Gives the queue its call and its kick and enables it, whatever its size and addresses are.
    pub fn start_queue_as_it_is(&mut self, index: u8) -> io::Result<()> {
        let (at, queue) = (usize::from(index), u32::from(index));
        let number = u64::from(index).to_ne_bytes();
        self.frontend
            .send_acked(Request::SetVringCall, &number, &[self.calls[at].as_fd()])?;
        self.frontend
            .send_acked(Request::SetVringKick, &number, &[self.kicks[at].as_fd()])?;
        self.frontend
            .send_acked(Request::SetVringEnable, &vring_state(queue, 1), &[])
    }

    /// Offers every free rx buffer.
    pub fn fill_rx(&mut self) {
        while self.rx.add_bytes(&[], &[BUFFER_LEN]).is_some() {}
        self.rx.publish();
        let _ = self.kicks[usize::from(RX)].write(1);
    }

    /// Kicks tx.
    pub fn kick_tx(&self) {
        // A full counter has been kicked already.
        let _ = self.kicks[usize::from(TX)].write(1);
    }

    /// Sends one frame; false if the tx ring is full.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        while self.tx.used().is_some() {}
        if self.tx.add_bytes(&[&[0; HEADER_LEN], frame], &[]).is_none() {
            return false;
        }
        self.tx.publish();
        self.kick_tx();
        true
    }

    /// The next frame that came, if one comes within `limit`.
    pub fn receive(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + limit;
        let (head, len) = loop {
            if let Some(used) = self.rx.used() {
                break used;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let call = &self.calls[usize::from(RX)];
            // A call that comes after the look above ends the wait; what was called before is taken off the counter.
            poll(&mut [PollFd::new(call.as_fd(), PollFlags::POLLIN)], timeout).ok()?;
            let _ = call.read();
        };
        let bytes = self.rx.read(self.rx.buffer(head), usize::try_from(len).ok()?);
        self.fill_rx();
        Some(bytes.get(HEADER_LEN..)?.to_vec())
    }
}

/// An ICMP echo request from one port of network 10.0.0.0/24 to another, MAC and address made from their numbers, told
/// apart by `sequence`.
pub fn echo_frame(from: u8, to: u8, sequence: u16) -> Vec<u8> {
    let checksum = |bytes: &[u8]| {
        let sum: u32 = bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |b| u32::from(*b)))
            .sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let folded = (folded & 0xffff) + (folded >> 16);
        // the fold above leaves 16 bits
        !(u16::try_from(folded).unwrap_or(u16::MAX))
    };
    let mut icmp = [&[8, 0, 0, 0, 0x0b, 0x0d][..], &sequence.to_be_bytes(), &[0x5a; 32]].concat();
    let sum = checksum(&icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    let mut ip = [0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, from, 10, 0, 0, to];
    let sum = checksum(&ip).to_be_bytes();
    ip[10..12].copy_from_slice(&sum);
    let mac = |number: u8| [0x52, 0x54, 0, 0, 0, number];
    [&mac(to)[..], &mac(from), &[0x08, 0x00], &ip, &icmp].concat()
}
