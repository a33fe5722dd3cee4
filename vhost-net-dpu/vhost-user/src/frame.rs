//! Messages as they come over the stream: bounded, and whoever is at the other end.
//!
//! The host may hold a duplicate of our own end of the stream, since it made the pair, and with it O_NONBLOCK and the
//! buffer sizes. So each call says itself that it must not wait, and waiting is done by poll with a time limit.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use outboard_controls::{Check, on};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

use crate::error::SessionError;

/// Length of a header in bytes.
const HEADER_LEN: usize = 12;
/// The longest body, in bytes. A memory table of 32 regions has 1032, and config space at most 256 and its header.
pub(crate) const MESSAGE_LEN_MAX: u32 = 4096;
/// Descriptors that come with one message: one a region of a memory table.
pub(crate) const DESCRIPTOR_COUNT_MAX: usize = 32;
/// How long the rest of a message may take, and the sending of a reply.
pub(crate) const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bits of a header's flags (vhost-user, "Header").
const FLAG_VERSION: u32 = 0x1;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

/// One request.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A stream of them.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    timeout: Duration,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            timeout: MESSAGE_TIMEOUT,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_timeout(stream: UnixStream, timeout: Duration) -> Self {
        Self { stream, timeout }
    }

    /// Wait for a request, for as long as it takes to begin. `None` if the stream was closed instead.
    pub(crate) fn receive(&self) -> Result<Option<Frame>, SessionError> {
        let mut descriptors = Vec::new();
        let mut header = [0; HEADER_LEN];
        self.wait(PollFlags::IN, None)?;
        let deadline = Instant::now() + self.timeout;
        match self.fill(&mut header, &mut descriptors, deadline)? {
            0 => return Ok(None),
            HEADER_LEN => {}
            _ => return Err(SessionError::Truncated),
        }
        let word = |n: usize| u32::from_ne_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
        let (request, flags, len) = (word(0), word(4), word(8));
        if flags & !FLAG_NEED_REPLY != FLAG_VERSION {
            return Err(SessionError::Header { flags });
        }
        if len > MESSAGE_LEN_MAX && on(Check::MessageSize) {
            return Err(SessionError::TooLong { request, len });
        }
        let mut body = vec![0; len as usize];
        if self.fill(&mut body, &mut descriptors, deadline)? != body.len() {
            return Err(SessionError::Truncated);
        }
        let need_reply = flags & FLAG_NEED_REPLY != 0;
        Ok(Some(Frame {
            request,
            need_reply,
            body,
            descriptors,
        }))
    }

    /// Send the reply to a request.
    pub(crate) fn reply(&self, request: u32, body: &[u8]) -> Result<(), SessionError> {
        self.reply_with(request, body, None)
    }

    /// Send the reply to a request, and a descriptor with its first byte.
    pub(crate) fn reply_with(
        &self,
        request: u32,
        body: &[u8],
        mut fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), SessionError> {
        let len = u32::try_from(body.len()).map_err(|_| SessionError::TooLong { request, len: u32::MAX })?;
        let header = [request, FLAG_VERSION | FLAG_REPLY, len];
        let message: Vec<u8> = header
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .chain(body.iter().copied())
            .collect();
        let deadline = Instant::now() + self.timeout;
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            let fds = fd.as_slice();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // There is room for the one.
            let _fits = fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds));
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, flags) {
                Ok(sent) => (rest, fd) = (rest.get(sent..).unwrap_or_default(), None),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, Some(deadline))?,
                Err(errno) => return Err(SessionError::Socket { call: "sendmsg", errno }),
            }
        }
        Ok(())
    }

    /// Receive until `buf` is full or the stream ends. Returns how much came.
    fn fill(&self, buf: &mut [u8], descriptors: &mut Vec<OwnedFd>, deadline: Instant) -> Result<usize, SessionError> {
        let mut done = 0;
        while done < buf.len() {
            match self.receive_some(&mut buf[done..], descriptors) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(SessionError::Socket { errno: Errno::INTR, .. }) => {}
                Err(SessionError::Socket {
                    errno: Errno::AGAIN, ..
                }) => self.wait(PollFlags::IN, Some(deadline))?,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn receive_some(&self, buf: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, SessionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_COUNT_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.stream, &mut [IoSliceMut::new(buf)], &mut control, flags)
            .map_err(|errno| SessionError::Socket { call: "recvmsg", errno })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTOR_COUNT_MAX {
            return Err(SessionError::TooManyDescriptors);
        }
        Ok(received.bytes)
    }

    /// Wait until the stream is ready or closed.
    fn wait(&self, events: PollFlags, deadline: Option<Instant>) -> Result<(), SessionError> {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(SessionError::Stalled);
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.stream, events)], timeout.as_ref()) {
                Ok(0) => return Err(SessionError::Stalled),
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(SessionError::Socket { call: "poll", errno }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
