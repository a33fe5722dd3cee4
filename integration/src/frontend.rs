//! A vhost-user front end in place of a VMM: polite enough to move frames, free enough to attack.
//!
//! It writes messages itself, byte by byte and descriptor by descriptor, because a front-end library would refuse to
//! send what a hostile VMM sends.

mod blk;
mod load;
mod net;
mod rings;

use std::{
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

pub use blk::BlkGuest;
pub use load::{
    BlkLoad, F_BLK_CONFIG_WCE, F_BLK_FLUSH, F_BLK_MQ, F_BLK_SHAPE, F_BLK_TRIM, F_EVENT_IDX, F_IN_ORDER,
    F_INDIRECT_DESC, LockIt, Progress,
};
pub use net::{NetGuest, echo_frame};
pub use rings::{F_VERSION_1, Ring, Rings, Wanted};

/// How long the back end has to answer.
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// Version 1 in the lowest two bits of a message's flags (vhost-user, "Header").
const VERSION: u32 = 1;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// Requests that are used here, with their numbers (vhost-user, "Front-end message types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    ResetOwner = 4,
    SetMemTable = 5,
    SetLogBase = 6,
    SetLogFd = 7,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    NetSetMtu = 20,
    SetBackendReqFd = 21,
    GetConfig = 24,
    SetConfig = 25,
    GetInflightFd = 31,
    SetInflightFd = 32,
    ResetDevice = 34,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
}

/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VHOST_F_LOG_ALL`.
pub const F_LOG_ALL: u64 = 1 << 26;
/// `VHOST_USER_PROTOCOL_F_MQ`.
pub const PROTOCOL_F_MQ: u64 = 1 << 0;
/// `VHOST_USER_PROTOCOL_F_LOG_SHMFD`.
pub const PROTOCOL_F_LOG_SHMFD: u64 = 1 << 1;
/// `VHOST_USER_PROTOCOL_F_REPLY_ACK`.
pub const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
/// `VHOST_USER_PROTOCOL_F_MTU`.
pub const PROTOCOL_F_MTU: u64 = 1 << 4;
/// `VHOST_USER_PROTOCOL_F_BACKEND_REQ`.
pub const PROTOCOL_F_BACKEND_REQ: u64 = 1 << 5;
/// `VHOST_USER_PROTOCOL_F_CONFIG`.
pub const PROTOCOL_F_CONFIG: u64 = 1 << 9;
/// `VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD`.
pub const PROTOCOL_F_INFLIGHT_SHMFD: u64 = 1 << 12;
/// `VHOST_USER_PROTOCOL_F_RESET_DEVICE`.
pub const PROTOCOL_F_RESET_DEVICE: u64 = 1 << 13;
/// `VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS`.
pub const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

/// A connection to a vhost-user back end.
#[derive(Debug)]
pub struct Frontend {
    stream: UnixStream,
}

impl Frontend {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::over(UnixStream::connect(path)?)
    }

    /// Takes a connection that stands, as a VMM that listens has it.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        Ok(Self { stream })
    }

    /// Sends any bytes with any descriptors.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &control[..0] } else { &control[..] };
        let mut left = bytes;
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(left)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        left = left.get(sent..).unwrap_or_default();
        io::Write::write_all(&mut &self.stream, left)
    }

    /// A message as the specification has it.
    pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        [
            &request.to_ne_bytes(),
            &(VERSION | flags).to_ne_bytes(),
            &len.to_ne_bytes(),
            payload,
        ]
        .concat()
    }

    /// Sends a request that has no reply and asks for none.
    pub fn send(&self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_raw(&Self::message(request as u32, 0, payload), fds)
    }

    /// Sends a request and waits for the acknowledgement that `REPLY_ACK` gives: an error is the back end's refusal, or
    /// that it closed the session.
    pub fn send_acked(&self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_raw(&Self::message(request as u32, FLAG_NEED_REPLY, payload), fds)?;
        match self.reply_u64(request)? {
            0 => Ok(()),
            refused => Err(io::Error::other(format!("{request:?} was refused with {refused}"))),
        }
    }

    /// Sends a request whose reply is a number.
    pub fn ask(&self, request: Request) -> io::Result<u64> {
        self.send(request, &[], &[])?;
        self.reply_u64(request)
    }

    /// Reads the reply to `request`.
    pub fn reply(&self, request: Request) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        self.rest_of_reply(request, &header)
    }

    fn rest_of_reply(&self, request: Request, header: &[u8; 12]) -> io::Result<Vec<u8>> {
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if word(0) != request as u32 {
            return Err(io::Error::other(format!(
                "{request:?} was answered by a reply to request {}",
                word(0)
            )));
        }
        let mut payload = vec![0; usize::try_from(word(8)).map_err(io::Error::other)?.min(4096)];
        (&self.stream).read_exact(&mut payload)?;
        Ok(payload)
    }

    /// Reads the reply to `request` with the descriptor that comes along.
    pub fn reply_with_fd(&self, request: Request) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
        )?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if got.bytes < header.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((self.rest_of_reply(request, &header)?, fds.pop()))
    }

    fn reply_u64(&self, request: Request) -> io::Result<u64> {
        let payload = self.reply(request)?;
        let bytes = payload
            .first_chunk()
            .ok_or_else(|| io::Error::other(format!("short reply to {request:?}")))?;
        Ok(u64::from_ne_bytes(*bytes))
    }

    /// Waits for the back end to close the session; whether it did.
    pub fn closed_within(&self, limit: Duration) -> bool {
        let mut rest = [0; 4096];
        if self.stream.set_read_timeout(Some(limit)).is_err() {
            return true;
        }
        loop {
            match (&self.stream).read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => {
                    return !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                }
            }
        }
    }
}

/// Payload of the requests that take a queue index and a number.
pub fn vring_state(index: u32, number: u32) -> Vec<u8> {
    [index.to_ne_bytes(), number.to_ne_bytes()].concat()
}

/// Payload of `SET_MEM_TABLE`; each region is guest-physical address, size, user address and offset in its file.
pub fn mem_table(regions: &[[u64; 4]]) -> Vec<u8> {
    let count = u32::try_from(regions.len()).unwrap_or(u32::MAX);
    let words = regions.iter().flatten().flat_map(|word| word.to_ne_bytes());
    count.to_ne_bytes().into_iter().chain([0; 4]).chain(words).collect()
}
