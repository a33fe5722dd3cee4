//! A front-end that says exactly what a test wants, byte by byte.

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread::JoinHandle,
    time::Duration,
};

use outboard_controls::{Check, Off};
use outboard_ring::{
    RegionSpec,
    driver::{Driver, GuestRam, USER_OFFSET},
};
use outboard_vhost_user::{SessionEnd, SessionError, serve};
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, memfd_create},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
};
use vhost::vhost_user::message::FrontendReq;

use crate::device::{Echo, Log};

pub const VERSION: u32 = 1;
pub const NEED_REPLY: u32 = 8;
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
pub const F_LOG_ALL: u64 = 1 << 26;
/// What a device with config space is offered: MQ, LOG_SHMFD, REPLY_ACK, MTU, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD,
/// RESET_DEVICE and CONFIGURE_MEM_SLOTS.
pub const PROTOCOL_FEATURES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;

/// A session being served in a thread of its own.
pub struct Frontend {
    pub stream: UnixStream,
    pub log: Log,
    served: JoinHandle<SessionEnd>,
}

impl Frontend {
    /// A device with config space.
    pub fn new() -> Self {
        Self::start(true, None)
    }

    /// The same, whose session does not make one check.
    pub fn without(check: Check) -> Self {
        Self::start(true, Some(check))
    }

    pub fn start(has_config: bool, off: Option<Check>) -> Self {
        let (stream, other) = UnixStream::pair().unwrap();
        // A test that waits for what never comes fails.
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let log = Log::default();
        let mut device = Echo {
            log: log.clone(),
            has_config,
        };
        let served = std::thread::spawn(move || {
            let _off = off.map(Off::here);
            serve(other, &mut device)
        });
        Self { stream, log, served }
    }

    /// A session with features, without memory.
    pub fn negotiated(self) -> Self {
        self.negotiated_with(0)
    }

    /// The same with more features.
    pub fn negotiated_with(self, features: u64) -> Self {
        self.send(FrontendReq::SET_OWNER, &[], &[]);
        self.send(
            FrontendReq::SET_PROTOCOL_FEATURES,
            &PROTOCOL_FEATURES.to_ne_bytes(),
            &[],
        );
        self.ask(
            FrontendReq::SET_FEATURES,
            &(1u64 << 32 | F_PROTOCOL_FEATURES | features).to_ne_bytes(),
            &[],
        );
        self
    }

    /// Send bytes as they are.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// Send a request that wants no acknowledgement.
    pub fn send(&self, request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_raw(&message(request, VERSION, body), fds);
    }

    /// Send a request and wait for its acknowledgement, which must be of success.
    pub fn ask(&self, request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_raw(&message(request, VERSION | NEED_REPLY, body), fds);
        assert_eq!(self.reply(request), 0u64.to_ne_bytes(), "{request:?}");
    }

    /// Send a request that has a reply of its own and wait for it.
    pub fn get(&self, request: FrontendReq, body: &[u8]) -> Vec<u8> {
        self.send(request, body, &[]);
        self.reply(request)
    }

    /// The same for a reply that comes with a descriptor.
    pub fn get_fd(&self, request: FrontendReq, body: &[u8]) -> (Vec<u8>, OwnedFd) {
        self.send(request, body, &[]);
        let mut reply = vec![0; 12 + body.len()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut reply)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        assert_eq!(received.unwrap().bytes, reply.len());
        let mut fds = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let fd = fds.next().expect("a descriptor");
        assert!(fds.next().is_none());
        let len = u32::try_from(body.len()).unwrap();
        assert_eq!(reply[..12], words(&[request.into(), VERSION | 4, len]));
        (reply.split_off(12), fd)
    }

    /// The next reply.
    pub fn reply(&self, request: FrontendReq) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).unwrap();
        let word = |n: usize| u32::from_ne_bytes(header[n..n + 4].try_into().unwrap());
        assert_eq!(
            (word(0), word(4)),
            (request.into(), VERSION | 4),
            "a reply to {request:?}"
        );
        let mut body = vec![0; word(8) as usize];
        (&self.stream).read_exact(&mut body).unwrap();
        body
    }

    /// The session must end by itself, with an error.
    pub fn refused(self) -> SessionError {
        // Whatever it answered before.
        let mut rest = Vec::new();
        let _reset = (&self.stream).read_to_end(&mut rest);
        let _gone = self.stream.shutdown(std::net::Shutdown::Both);
        let end = self.served.join().unwrap();
        assert!(self.log.seen().closed && self.log.seen().running.is_empty());
        match end {
            SessionEnd::Failed(error) => error,
            SessionEnd::Closed => panic!("the session was closed where an error was due"),
        }
    }

    /// Close the session, which must have gone well so far.
    pub fn close(self) -> Log {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        (&self.stream).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"", "no reply is left");
        match self.served.join().unwrap() {
            SessionEnd::Closed => {}
            SessionEnd::Failed(error) => panic!("{error}"),
        }
        assert!(self.log.seen().closed && self.log.seen().running.is_empty());
        self.log
    }

    /// Is it still served?
    pub fn assert_alive(&self) {
        assert_eq!(self.get(FrontendReq::GET_FEATURES, &[]).len(), 8);
    }

    /// Share a guest's memory.
    pub fn set_memory(&self, rams: &[&GuestRam]) {
        let specs: Vec<RegionSpec> = rams.iter().map(|ram| ram.spec()).collect();
        let fds: Vec<BorrowedFd<'_>> = specs.iter().map(|spec| spec.file.as_fd()).collect();
        self.ask(FrontendReq::SET_MEM_TABLE, &mem_table(&specs), &fds);
    }

    /// Tell all about a queue, with the kick descriptor last.
    pub fn set_up_queue(&self, index: u32, driver: &Driver) {
        self.set_up_queue_at(index, driver, driver.config().base);
    }

    /// The same for a queue that goes on at `base`.
    pub fn set_up_queue_at(&self, index: u32, driver: &Driver, base: u32) {
        let config = driver.config();
        self.ask(FrontendReq::SET_VRING_NUM, &words(&[index, config.size.into()]), &[]);
        self.ask(FrontendReq::SET_VRING_BASE, &words(&[index, base]), &[]);
        self.ask(FrontendReq::SET_VRING_ADDR, &vring_addr(index, driver), &[]);
        self.ask(
            FrontendReq::SET_VRING_CALL,
            &u64::from(index).to_ne_bytes(),
            &[event_fd().as_fd()],
        );
        self.ask(FrontendReq::SET_VRING_ENABLE, &words(&[index, 1]), &[]);
        self.ask(
            FrontendReq::SET_VRING_KICK,
            &u64::from(index).to_ne_bytes(),
            &[event_fd().as_fd()],
        );
    }

    /// A chain there and back.
    pub fn round(&self, index: u16, driver: &mut Driver) {
        let added = driver.add_bytes(&[b"ping"], &[4]).unwrap();
        driver.publish();
        assert_eq!(self.log.answer(index), Ok(1));
        assert_eq!(driver.used(), Some((added.head, 4)));
        assert_eq!(driver.read(added.writable[0].0, 4), b"pong");
    }

    /// Send bytes slowly.
    pub fn drip(&self, bytes: &[u8]) {
        for byte in bytes {
            (&self.stream).write_all(&[*byte]).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A session with one queue that works.
pub fn working() -> (Frontend, GuestRam, Driver) {
    working_without(None)
}

pub fn working_without(off: Option<Check>) -> (Frontend, GuestRam, Driver) {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, 0);
    let frontend = Frontend::start(true, off).negotiated();
    frontend.set_memory(&[&ram]);
    frontend.set_up_queue(0, &driver);
    frontend.round(0, &mut driver);
    (frontend, ram, driver)
}

pub fn message(request: FrontendReq, flags: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).unwrap();
    let mut message = words(&[request.into(), flags, len]);
    message.extend(body);
    message
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

pub fn region(spec: &RegionSpec) -> Vec<u8> {
    let fields = [spec.guest_phys_addr, spec.len, spec.user_addr, spec.mmap_offset];
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

pub fn mem_table(specs: &[RegionSpec]) -> Vec<u8> {
    let count = u32::try_from(specs.len()).unwrap();
    words(&[count, 0])
        .into_iter()
        .chain(specs.iter().flat_map(region))
        .collect()
}

pub fn single_region(spec: &RegionSpec) -> Vec<u8> {
    [0; 8].into_iter().chain(region(spec)).collect()
}

pub fn vring_addr(index: u32, driver: &Driver) -> Vec<u8> {
    let config = driver.config();
    let mut body = words(&[index, 0]);
    for addr in [config.desc, config.used, config.avail, 0] {
        body.extend((if addr == 0 { 0 } else { addr + USER_OFFSET }).to_ne_bytes());
    }
    body
}

/// The same address with the flag by which writes to the used ring are logged at `log_addr`.
pub fn logged_vring_addr(index: u32, driver: &Driver, log_addr: u64) -> Vec<u8> {
    let mut body = vring_addr(index, driver);
    body[4] = 1;
    body[32..].copy_from_slice(&log_addr.to_ne_bytes());
    body
}

/// Body of SET_LOG_BASE.
pub fn log_base(len: u64, offset: u64) -> Vec<u8> {
    [len, offset].into_iter().flat_map(u64::to_ne_bytes).collect()
}

/// Body of GET_INFLIGHT_FD and SET_INFLIGHT_FD, with the padding that C has.
pub fn inflight(len: u64, offset: u64, queue_count: u16, queue_size: u16) -> Vec<u8> {
    let mut body = log_base(len, offset);
    body.extend([queue_count, queue_size, 0, 0].into_iter().flat_map(u16::to_ne_bytes));
    body
}

/// A memfd of `len` bytes.
pub fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

pub fn event_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}
