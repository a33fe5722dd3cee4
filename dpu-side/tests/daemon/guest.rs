//! Guests behind vhost-user: a VMM's side of the session and the driver's side of the rings.

use std::{
    fs::File,
    os::{
        fd::AsRawFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use outboard_ring::driver::{Added, BUFFER_LEN, Driver, GuestRam, USER_OFFSET};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures},
    },
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const VIRTIO_F_VERSION_1: u64 = 1 << 32;
const QUEUE_SIZE: u16 = 64;
/// virtio 1.3 §5.1.6.1.
const NET_HEADER_LEN: usize = 12;

struct Queue {
    driver: Driver,
    kick: EventFd,
    pub call: EventFd,
}

impl Queue {
    fn kick(&mut self) {
        self.driver.publish();
        if self.driver.needs_kick() {
            self.kick.write(1).expect("a kick");
        }
    }
}

/// A VM with one device.
pub struct Guest {
    pub frontend: Frontend,
    queues: Vec<Queue>,
    posted: Vec<Added>,
    inflight: Option<(VhostUserInflight, File)>,
    ram: GuestRam,
}

impl Guest {
    /// Brings the device behind `stream` up.
    pub fn start(stream: UnixStream, queue_count: usize) -> vhost::Result<Self> {
        Self::start_with(stream, queue_count, EFD_NONBLOCK)
    }

    /// The same, with call eventfds of these flags.
    pub fn start_with(stream: UnixStream, queue_count: usize, call_flags: i32) -> vhost::Result<Self> {
        let ram = GuestRam::new(4 << 20);
        let (mut frontend, wants_log) = begin(stream, queue_count, &ram)?;
        let count = u16::try_from(queue_count).expect("few");
        let log = wants_log.then(|| VhostUserInflight::new(0, 0, count, QUEUE_SIZE));
        let inflight = log.map(|log| frontend.get_inflight_fd(&log)).transpose()?;
        set_inflight(&mut frontend, inflight.as_ref())?;
        let eventfd = |flags| EventFd::new(flags).expect("an eventfd");
        let queues = (0..queue_count).map(|_| Queue {
            driver: Driver::new(&ram, QUEUE_SIZE, VIRTIO_F_VERSION_1),
            kick: eventfd(EFD_NONBLOCK),
            call: eventfd(call_flags),
        });
        let queues: Vec<_> = queues.collect();
        for (index, queue) in queues.iter().enumerate() {
            start_queue(&mut frontend, index, queue, 0)?;
        }
        Ok(Self {
            frontend,
            queues,
            posted: vec![],
            inflight,
            ram,
        })
    }

    /// Brings the device up again behind another stream, as whoever keeps a session while its device is away: the rings
    /// and the log of what is in flight are as the former one left them.
    pub fn resume(&mut self, stream: UnixStream) -> vhost::Result<()> {
        let (mut frontend, _) = begin(stream, self.queues.len(), &self.ram)?;
        set_inflight(&mut frontend, self.inflight.as_ref())?;
        for (index, queue) in self.queues.iter().enumerate() {
            start_queue(&mut frontend, index, queue, queue.driver.published_used())?;
            queue.kick.write(1).expect("a kick");
        }
        self.frontend = frontend;
        Ok(())
    }

    /// Requests that the log of what is in flight names, as it is now (vhost-user, "Inflight I/O tracking").
    pub fn in_flight(&self) -> usize {
        let (description, file) = self.inflight.as_ref().expect("a log");
        let mut log = vec![0; usize::try_from(description.mmap_size).expect("short")];
        file.read_exact_at(&mut log, description.mmap_offset).expect("a log");
        let states = log[16..].chunks(16).take(usize::from(QUEUE_SIZE));
        states.filter(|state| state[0] == 1).count()
    }

    /// The call eventfd of a queue, as the host holds it.
    pub fn call(&self, queue: usize) -> &EventFd {
        &self.queues[queue].call
    }
}

/// Features and memory of a session. Whether the device wants a log of what is in flight.
fn begin(stream: UnixStream, queue_count: usize, ram: &GuestRam) -> vhost::Result<(Frontend, bool)> {
    let mut frontend = Frontend::from_stream(stream, queue_count as u64);
    frontend.set_owner()?;
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    assert_eq!(
        frontend.get_features()? & (VIRTIO_F_VERSION_1 | protocol),
        VIRTIO_F_VERSION_1 | protocol
    );
    let wanted = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    let accepted = frontend.get_protocol_features()? & wanted;
    frontend.set_protocol_features(accepted)?;
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    // Only now, since replies to it are asked for.
    frontend.set_features(VIRTIO_F_VERSION_1 | protocol)?;
    let spec = ram.spec();
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: spec.guest_phys_addr,
        memory_size: spec.len,
        userspace_addr: spec.user_addr,
        mmap_offset: spec.mmap_offset,
        mmap_handle: ram.file().as_raw_fd(),
    }])?;
    Ok((frontend, accepted.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)))
}

fn set_inflight(frontend: &mut Frontend, inflight: Option<&(VhostUserInflight, File)>) -> vhost::Result<()> {
    match inflight {
        Some((description, file)) => frontend.set_inflight_fd(description, file.as_raw_fd()),
        None => Ok(()),
    }
}

fn start_queue(frontend: &mut Frontend, index: usize, queue: &Queue, base: u16) -> vhost::Result<()> {
    let config = queue.driver.config();
    frontend.set_vring_num(index, QUEUE_SIZE)?;
    frontend.set_vring_addr(
        index,
        &VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: config.desc + USER_OFFSET,
            used_ring_addr: config.used + USER_OFFSET,
            avail_ring_addr: config.avail + USER_OFFSET,
            log_addr: None,
        },
    )?;
    frontend.set_vring_base(index, base)?;
    frontend.set_vring_call(index, &queue.call)?;
    frontend.set_vring_kick(index, &queue.kick)?;
    frontend.set_vring_enable(index, true)
}

/// A VM with a network card.
pub struct NetGuest(pub Guest);

impl NetGuest {
    /// With room for received frames.
    pub fn start(stream: UnixStream) -> Self {
        Self::start_with(stream, EFD_NONBLOCK)
    }

    /// The same, with call eventfds of these flags.
    pub fn start_with(stream: UnixStream, call_flags: i32) -> Self {
        let mut guest = Self(Guest::start_with(stream, 2, call_flags).expect("the device comes up"));
        for _ in 0..QUEUE_SIZE / 2 {
            guest.post();
        }
        guest.0.queues[0].kick();
        guest
    }

    fn post(&mut self) {
        let room = u32::try_from(BUFFER_LEN).expect("short");
        let added = self.0.queues[0]
            .driver
            .add_bytes(&[], &[room])
            .expect("descriptors are free");
        self.0.posted.push(added);
    }

    /// Sends a frame; false if the device does not take frames any more.
    pub fn send(&mut self, frame: &[u8]) -> bool {
        let tx = &mut self.0.queues[1];
        while tx.driver.used().is_some() {}
        let added = tx.driver.add_bytes(&[&[0; NET_HEADER_LEN], frame], &[]);
        tx.kick();
        added.is_some()
    }

    /// Takes a frame that was received.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let rx = &mut self.0.queues[0];
        let (head, len) = rx.driver.used()?;
        let at = self
            .0
            .posted
            .iter()
            .position(|a| a.head == head)
            .expect("a buffer that was posted");
        let added = self.0.posted.swap_remove(at);
        let bytes = rx.driver.read(added.writable[0].0, len as usize);
        self.post();
        self.0.queues[0].kick();
        Some(bytes[NET_HEADER_LEN..].to_vec())
    }

    /// Waits for a frame.
    pub fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let end = Instant::now() + patience;
        loop {
            if let Some(frame) = self.take() {
                return Some(frame);
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// A UDP datagram over IPv4 from `vm<from>` to `vm<to>`.
pub fn frame(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let mac = |n| [0x52, 0x54, 0, 0, 0, n];
    let udp_len = u16::try_from(8 + payload.len()).expect("short");
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, from, 10, 0, 0, to]);
    let sum: u32 = ip.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = [mac(to), mac(from)].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend([0x30, 0x39, 0x30, 0x39]);
    frame.extend(udp_len.to_be_bytes());
    // No UDP checksum, which IPv4 allows.
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// A VM with a disk.
pub struct BlkGuest(pub Guest);

/// virtio 1.3 §5.2.6.
pub const BLK_T_IN: u32 = 0;
pub const BLK_T_OUT: u32 = 1;
pub const BLK_T_FLUSH: u32 = 4;

impl BlkGuest {
    pub fn start(stream: UnixStream) -> Self {
        Self(Guest::start(stream, 1).expect("the device comes up"))
    }

    /// The disk's size in sectors, from its config space.
    pub fn capacity(&mut self) -> u64 {
        let (_, bytes) = self
            .0
            .frontend
            .get_config(0, 8, vhost::vhost_user::message::VhostUserConfigFlags::empty(), &[0; 8])
            .expect("a config space");
        u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))
    }

    /// One request: the status, and what was read.
    pub fn request(&mut self, kind: u32, sector: u64, write: &[u8], read: u32) -> (u8, Vec<u8>) {
        let added = self.submit(kind, sector, write, read);
        let answer = crate::fixture::eventually("the request is answered", || self.0.queues[0].driver.used());
        assert_eq!(answer.0, added.head);
        let at = |n: usize| {
            self.0.queues[0]
                .driver
                .read(added.writable[n].0, added.writable[n].1 as usize)
        };
        let status = at(added.writable.len() - 1)[0];
        (status, if read == 0 { vec![] } else { at(0) })
    }

    /// Makes a request available and kicks.
    pub fn submit(&mut self, kind: u32, sector: u64, write: &[u8], read: u32) -> Added {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let readable: &[&[u8]] = if write.is_empty() {
            &[&header]
        } else {
            &[&header, write]
        };
        let writable: &[u32] = if read == 0 { &[1] } else { &[read, 1] };
        let queue = &mut self.0.queues[0];
        let added = queue
            .driver
            .add_bytes(readable, writable)
            .expect("descriptors are free");
        queue.kick();
        added
    }

    /// A request that was answered since this was last asked: its head and status.
    pub fn answer(&mut self, submitted: &[Added]) -> Option<(u16, u8)> {
        let (head, _) = self.0.queues[0].driver.used()?;
        let of = submitted
            .iter()
            .find(|added| added.head == head)
            .expect("it was submitted");
        let (status, _) = *of.writable.last().expect("a status byte");
        Some((head, self.0.queues[0].driver.read(status, 1)[0]))
    }

    /// Has a request been answered?
    pub fn is_answered(&mut self) -> bool {
        self.0.queues[0].driver.used().is_some()
    }
}
