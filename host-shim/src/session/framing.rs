//! Bytes and descriptors to messages and back, over a stream socket.
//!
//! [`Assembler`] does no I/O: it is told what arrived and says when a message is whole. Memory grows with the bytes
//! that arrived, never with a length that was only announced.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use outboard_controls::{Check, on};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::vhost_user_wire::{
    DESCRIPTORS_MAX, FLAG_VERSION, FLAG_VERSION_MASK, FLAGS_KNOWN, HEADER_LEN, PAYLOAD_LEN_MAX,
};

/// Bytes taken from the socket at a time.
const READ_LEN_MAX: usize = 4096;

/// Header of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which message.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Length of the payload in bytes.
    pub size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }

    fn check(&self) -> Result<(), FrameError> {
        if self.flags & FLAG_VERSION_MASK != FLAG_VERSION || self.flags & !FLAGS_KNOWN != 0 {
            return Err(FrameError::Flags(self.flags));
        }
        if on(Check::MessageSize) && self.size as usize > PAYLOAD_LEN_MAX {
            return Err(FrameError::TooLong(self.size));
        }
        Ok(())
    }
}

/// A descriptor of the VMM's. It is remembered as long as the session needs it and may go to the DPU more than once.
pub type Descriptor = Arc<OwnedFd>;

/// A whole message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Which message.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// What it says.
    pub payload: Vec<u8>,
    /// What came along.
    pub descriptors: Vec<Descriptor>,
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A wrong version or unknown flags.
    #[error("a message with flags {0:#x}, which vhost-user version 1 does not have")]
    Flags(u32),
    /// A payload beyond the bound.
    #[error("a message of {0} bytes; at most {PAYLOAD_LEN_MAX} are allowed")]
    TooLong(u32),
    /// The kernel could not deliver all descriptors (`MSG_CTRUNC`).
    #[error(
        "more descriptors with one message than the {DESCRIPTORS_MAX} allowed, or than this process may still open"
    )]
    TooManyDescriptors,
    /// Descriptors that are not attached to the first byte of a message.
    #[error("{0} descriptors in the middle of a message")]
    StrayDescriptors(usize),
    /// The stream ended inside a message.
    #[error("half a message, and closed the stream")]
    CutOff,
}

/// Puts one message after the other together from what arrives.
#[derive(Debug, Default)]
pub struct Assembler {
    header: [u8; HEADER_LEN],
    header_len: usize,
    payload: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Assembler {
    /// How many more bytes belong to the message begun; reading more would take bytes of the next.
    pub fn wanted(&self) -> usize {
        match self.parsed() {
            None => HEADER_LEN - self.header_len,
            Some(header) => (header.size as usize).saturating_sub(self.payload.len()),
        }
    }

    /// True if part of a message has arrived.
    pub fn is_mid_message(&self) -> bool {
        self.header_len > 0
    }

    fn parsed(&self) -> Option<Header> {
        (self.header_len == HEADER_LEN).then(|| Header::parse(&self.header))
    }

    /// Adds what one read returned: at most [`Self::wanted`] bytes, the descriptors with them, and whether the kernel
    /// had to leave descriptors out.
    ///
    /// # Errors
    /// After an error nothing that follows on the stream can be trusted.
    pub fn push(
        &mut self,
        bytes: &[u8],
        descriptors: Vec<OwnedFd>,
        truncated: bool,
    ) -> Result<Option<Message>, FrameError> {
        let strict = on(Check::MessageDescriptors);
        if strict && (truncated || descriptors.len() > DESCRIPTORS_MAX) {
            return Err(FrameError::TooManyDescriptors);
        }
        if !descriptors.is_empty() {
            if strict && self.is_mid_message() {
                return Err(FrameError::StrayDescriptors(descriptors.len()));
            }
            self.descriptors = descriptors;
        }
        let header_part = bytes.len().min(HEADER_LEN - self.header_len);
        let (head, body) = bytes.split_at(header_part);
        self.header[self.header_len..self.header_len + header_part].copy_from_slice(head);
        self.header_len += header_part;
        let Some(header) = self.parsed() else { return Ok(None) };
        header.check()?;
        self.payload.extend_from_slice(body);
        if self.payload.len() < header.size as usize {
            return Ok(None);
        }
        let whole = std::mem::take(self);
        Ok(Some(Message {
            request: header.request,
            flags: header.flags,
            payload: whole.payload,
            descriptors: whole.descriptors.into_iter().map(Arc::new).collect(),
        }))
    }
}

/// What one attempt to read gave.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Part of one, or nothing yet.
    Nothing,
    /// The peer closed the stream between messages.
    Closed,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The peer broke the framing.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One end of a vhost-user stream. Never blocks: the caller waits.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    assembler: Assembler,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Channel {
    /// Takes over a stream.
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            assembler: Assembler::default(),
        }
    }

    /// Ends the stream for both sides, also where the other one still holds descriptors of it.
    pub fn shut_down(&self) {
        // An error says that it has ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Reads once, without waiting.
    ///
    /// # Errors
    /// Broken framing, or a socket that failed.
    pub fn receive(&mut self) -> Result<Received, ReceiveError> {
        let mut bytes = [0; READ_LEN_MAX];
        let wanted = self.assembler.wanted().min(READ_LEN_MAX);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let answer = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes[..wanted])],
            &mut control,
            flags,
        );
        let received = match answer {
            Ok(received) => received,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Received::Nothing),
            // A peer that closed with bytes unread; for us the same as closing.
            Err(rustix::io::Errno::CONNRESET) if !self.assembler.is_mid_message() => return Ok(Received::Closed),
            Err(error) => return Err(io::Error::from(error).into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let truncated = received.flags.contains(ReturnFlags::CTRUNC);
        if received.bytes == 0 {
            return match self.assembler.is_mid_message() {
                true => Err(FrameError::CutOff.into()),
                false => Ok(Received::Closed),
            };
        }
        let whole = self.assembler.push(&bytes[..received.bytes], descriptors, truncated)?;
        Ok(whole.map_or(Received::Nothing, Received::Message))
    }

    /// Writes what the socket takes of `outgoing`, without waiting; true when all of it is written.
    ///
    /// # Errors
    /// A socket that failed; `EPIPE` when the peer is gone.
    pub fn send(&mut self, outgoing: &mut Outgoing) -> io::Result<bool> {
        while outgoing.written < outgoing.bytes.len() {
            let rest = [IoSlice::new(&outgoing.bytes[outgoing.written..])];
            let borrowed: Vec<BorrowedFd<'_>> = outgoing.descriptors.iter().map(|fd| fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            // Descriptors go with the first byte, once.
            if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            match sendmsg(
                &self.stream,
                &rest,
                &mut control,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(written) => {
                    outgoing.written += written;
                    outgoing.descriptors.clear();
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// A message on its way out.
#[derive(Debug)]
pub struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<Descriptor>,
    written: usize,
}

impl From<Message> for Outgoing {
    fn from(message: Message) -> Self {
        let size = u32::try_from(message.payload.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(HEADER_LEN + message.payload.len());
        for word in [message.request, message.flags, size] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&message.payload);
        Self {
            bytes,
            descriptors: message.descriptors,
            written: 0,
        }
    }
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
