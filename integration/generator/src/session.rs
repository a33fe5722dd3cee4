//! The front-end's side of a vhost-user session, in either socket role.
//!
//! Messages are framed here and not by the `vhost` crate's front-end: a back-end that listens and one that connects are
//! served alike, each reply has a limit of time, and an error says which request it was.

use std::{
    io::{self, IoSlice, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::{
    args::Role,
    error::Error,
    features::{self, PROTOCOL_FEATURES, PROTOCOL_REPLY_ACK},
    raw::Memory,
    ring::{GUEST_START, Ring},
};

/// How long a back-end has for an answer. Generous: one that is away is replaced meanwhile.
const REPLY_LIMIT: Duration = Duration::from_secs(30);
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(20);
/// Version 1 (vhost-user, "Header").
const VERSION: u32 = 1;
const FLAG_NEED_REPLY: u32 = 1 << 3;
/// No reply of a request used here is longer.
const REPLY_LEN_MAX: usize = 4096;

/// A request: number and name (vhost-user, "Front-end message types").
#[derive(Debug, Clone, Copy)]
struct Request(u32, &'static str);

const GET_FEATURES: Request = Request(1, "GET_FEATURES");
const SET_FEATURES: Request = Request(2, "SET_FEATURES");
const SET_OWNER: Request = Request(3, "SET_OWNER");
const SET_MEM_TABLE: Request = Request(5, "SET_MEM_TABLE");
const SET_VRING_NUM: Request = Request(8, "SET_VRING_NUM");
const SET_VRING_ADDR: Request = Request(9, "SET_VRING_ADDR");
const SET_VRING_BASE: Request = Request(10, "SET_VRING_BASE");
const GET_VRING_BASE: Request = Request(11, "GET_VRING_BASE");
const SET_VRING_KICK: Request = Request(12, "SET_VRING_KICK");
const SET_VRING_CALL: Request = Request(13, "SET_VRING_CALL");
const GET_PROTOCOL_FEATURES: Request = Request(15, "GET_PROTOCOL_FEATURES");
const SET_PROTOCOL_FEATURES: Request = Request(16, "SET_PROTOCOL_FEATURES");
const SET_VRING_ENABLE: Request = Request(18, "SET_VRING_ENABLE");
const GET_CONFIG: Request = Request(24, "GET_CONFIG");

/// A session.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    path: PathBuf,
    reply_ack: bool,
    features: u64,
    protocol: u64,
}

/// What is wanted of a back-end.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Virtio features without which nothing goes.
    pub needed: u64,
    /// Those that are taken if offered.
    pub liked: u64,
    /// Protocol features that are taken if offered.
    pub protocol: u64,
    /// What helps if a needed one is missing.
    pub remedy: &'static str,
}

impl Session {
    /// A connection to the back-end at `path`: made, or waited for.
    ///
    /// # Errors
    /// There is none within `limit`.
    pub fn open(path: &Path, role: Role, limit: Duration) -> Result<Self, Error> {
        let stream = match role {
            Role::Connect => connect(path, limit)?,
            Role::Listen => accept(path, limit)?,
        };
        let ready = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(REPLY_LIMIT)))
            .and_then(|()| stream.set_write_timeout(Some(REPLY_LIMIT)));
        ready.map_err(|source| Error::system(format!("setting up the socket {}", path.display()), source))?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            reply_ack: false,
            features: 0,
            protocol: 0,
        })
    }

    /// Its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The virtio features negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The protocol features negotiated.
    pub fn protocol_features(&self) -> u64 {
        self.protocol
    }

    /// Agrees on features.
    ///
    /// # Errors
    /// A needed one is missing.
    pub fn negotiate(&mut self, wanted: Wanted) -> Result<(), Error> {
        self.send(SET_OWNER, &[], &[])?;
        let offered = self.ask_u64(GET_FEATURES, &[])?;
        let missing = wanted.needed & !offered;
        if missing != 0 {
            return Err(Error::Lacks {
                path: self.path.clone(),
                offered,
                missing: features::names(missing),
                remedy: wanted.remedy,
            });
        }
        self.features = offered & (wanted.needed | wanted.liked | PROTOCOL_FEATURES);
        if self.features & PROTOCOL_FEATURES != 0 {
            self.protocol = self.ask_u64(GET_PROTOCOL_FEATURES, &[])? & (wanted.protocol | PROTOCOL_REPLY_ACK);
            self.send(SET_PROTOCOL_FEATURES, &self.protocol.to_ne_bytes(), &[])?;
            self.reply_ack = self.protocol & PROTOCOL_REPLY_ACK != 0;
        }
        self.send(SET_FEATURES, &self.features.to_ne_bytes(), &[])
    }

    /// Gives the back-end the memory.
    ///
    /// # Errors
    /// It refuses.
    pub fn set_memory(&self, memory: &Memory) -> Result<(), Error> {
        let region = [GUEST_START, memory.len() as u64, memory.address(), 0];
        let mut payload = vec![0; 8];
        payload[..4].copy_from_slice(&1u32.to_ne_bytes());
        payload.extend(region.iter().flat_map(|word| word.to_ne_bytes()));
        let file = std::os::fd::AsFd::as_fd(memory.file());
        self.send(SET_MEM_TABLE, &payload, &[file])
    }

    /// Starts a queue whose indices are 0.
    ///
    /// # Errors
    /// The back-end refuses.
    pub fn start_queue(&self, index: u16, ring: &Ring) -> Result<(), Error> {
        let index_only = u64::from(index).to_ne_bytes();
        self.send(SET_VRING_CALL, &index_only, &[ring.call_fd()])?;
        self.send(SET_VRING_NUM, &state(index, u32::from(ring.size())), &[])?;
        self.send(SET_VRING_BASE, &state(index, 0), &[])?;
        let [desc, used, avail] = ring.addresses();
        let mut payload = state(index, 0);
        payload.extend([desc, used, avail, 0].iter().flat_map(|word| word.to_ne_bytes()));
        self.send(SET_VRING_ADDR, &payload, &[])?;
        self.send(SET_VRING_KICK, &index_only, &[ring.kick_fd()])?;
        if self.features & PROTOCOL_FEATURES != 0 {
            self.send(SET_VRING_ENABLE, &state(index, 1), &[])?;
        }
        Ok(())
    }

    /// Waits until everything sent before was handled.
    ///
    /// # Errors
    /// The back-end ended the session because of it.
    pub fn settle(&self) -> Result<(), Error> {
        self.ask_u64(GET_FEATURES, &[]).map(|_| ())
    }

    /// Stops a queue; the index of its available ring at which another back-end would go on.
    ///
    /// # Errors
    /// The back-end does not answer.
    pub fn stop_queue(&self, index: u16) -> Result<u16, Error> {
        let payload = self.ask(GET_VRING_BASE, &state(index, 0))?;
        match payload.as_slice() {
            &[_, _, _, _, a, b, c, d] => u16::try_from(u32::from_ne_bytes([a, b, c, d]))
                .map_err(|_| self.failed(GET_VRING_BASE, io::Error::other("an index that is none"))),
            _ => Err(self.failed(
                GET_VRING_BASE,
                io::Error::other("a reply of another length than 8 bytes"),
            )),
        }
    }

    /// The first `len` bytes of config space.
    ///
    /// # Errors
    /// The back-end refuses.
    pub fn config(&self, len: usize) -> Result<Vec<u8>, Error> {
        let size = u32::try_from(len).map_err(|_| Error::Usage("config space is short".into()))?;
        let mut payload = Vec::with_capacity(12 + len);
        for word in [0, size, 0] {
            payload.extend(word.to_ne_bytes());
        }
        payload.resize(12 + len, 0);
        let reply = self.ask(GET_CONFIG, &payload)?;
        match reply.get(12..12 + len) {
            Some(config) => Ok(config.to_vec()),
            None => Err(self.failed(GET_CONFIG, io::Error::other("a refusal"))),
        }
    }

    /// Sends a request; waits for its acknowledgement if these were negotiated.
    fn send(&self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let flags = if self.reply_ack { FLAG_NEED_REPLY } else { 0 };
        self.transmit(request, flags, payload, fds)
            .map_err(|source| self.failed(request, source))?;
        if !self.reply_ack {
            return Ok(());
        }
        let reply = self.receive(request).map_err(|source| self.failed(request, source))?;
        match number(&reply) {
            Some(0) => Ok(()),
            Some(code) => Err(Error::Refused {
                path: self.path.clone(),
                request: request.1,
                code,
            }),
            None => Err(self.failed(request, io::Error::other("an acknowledgement that is no number"))),
        }
    }

    fn ask(&self, request: Request, payload: &[u8]) -> Result<Vec<u8>, Error> {
        let sent = self.transmit(request, 0, payload, &[]);
        sent.and_then(|()| self.receive(request))
            .map_err(|source| self.failed(request, source))
    }

    fn ask_u64(&self, request: Request, payload: &[u8]) -> Result<u64, Error> {
        let reply = self.ask(request, payload)?;
        number(&reply).ok_or_else(|| self.failed(request, io::Error::other("a reply that is no number")))
    }

    fn transmit(&self, request: Request, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(12 + payload.len());
        for word in [request.0, VERSION | flags, len] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(payload);
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let fd = self.stream.as_raw_fd();
        let sent = sendmsg::<()>(fd, &[IoSlice::new(&message)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        (&self.stream).write_all(message.get(sent..).unwrap_or_default())
    }

    fn receive(&self, request: Request) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).map_err(in_words)?;
        let [r0, r1, r2, r3, _, _, _, _, l0, l1, l2, l3] = header;
        let (kind, len) = (
            u32::from_ne_bytes([r0, r1, r2, r3]),
            u32::from_ne_bytes([l0, l1, l2, l3]),
        );
        if kind != request.0 {
            return Err(io::Error::other(format!("a reply to request {kind} instead")));
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if len > REPLY_LEN_MAX {
            return Err(io::Error::other(format!("a reply of {len} bytes")));
        }
        let mut payload = vec![0; len];
        (&self.stream).read_exact(&mut payload).map_err(in_words)?;
        Ok(payload)
    }

    fn failed(&self, request: Request, source: io::Error) -> Error {
        Error::Session {
            path: self.path.clone(),
            request: request.1,
            source,
        }
    }
}

fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::other("it closed the connection"),
        io::ErrorKind::WouldBlock => io::Error::other(format!("no answer in {} s", REPLY_LIMIT.as_secs())),
        _ => error,
    }
}

fn state(index: u16, number: u32) -> Vec<u8> {
    [u32::from(index).to_ne_bytes(), number.to_ne_bytes()].concat()
}

fn number(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_ne_bytes)
}

fn connect(path: &Path, limit: Duration) -> Result<UnixStream, Error> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(_) if start.elapsed() < limit => std::thread::sleep(RETRY),
            Err(source) => {
                return Err(Error::Connect {
                    path: path.to_owned(),
                    seconds: limit.as_secs(),
                    source,
                    other: "listen if it is the back-end that connects",
                });
            }
        }
    }
}

/// Takes one connection. The socket is removed then: one driver has one back-end.
fn accept(path: &Path, limit: Duration) -> Result<UnixStream, Error> {
    let failed = |source| Error::Listen {
        path: path.to_owned(),
        source,
    };
    // What a former run left behind; a file that is no socket stays and makes bind fail.
    let is_socket = std::fs::symlink_metadata(path)
        .is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()));
    if is_socket && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).map_err(failed)?;
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let start = Instant::now();
    let accepted = loop {
        match listener.accept() {
            Ok((stream, _)) => break Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && start.elapsed() < limit => {
                std::thread::sleep(RETRY);
            }
            Err(source) => {
                break Err(Error::Connect {
                    path: path.to_owned(),
                    seconds: limit.as_secs(),
                    source,
                    other: "connect if it is the back-end that listens",
                });
            }
        }
    };
    let _left_behind = std::fs::remove_file(path);
    accepted
}
