//! Packets: bounded, with the descriptors that came along, and never waiting for ever for a host that does not read.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use outboard_protocol::{
    codec::encode,
    link::{FromDpu, LINK_MESSAGE_LEN_MAX},
};
use rustix::{
    cmsg_space,
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send},
};

/// Descriptors looked at with one packet; of more the kernel closes the rest and says so.
const DESCRIPTORS_MAX: usize = 4;

/// A packet.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
    /// It was longer than any message, or had more descriptors than were looked at.
    pub(super) cut: bool,
}

/// The next packet; none at the end of the connection. An empty packet cannot be told from the end, and is none of
/// this protocol's either way.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; LINK_MESSAGE_LEN_MAX];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    if received.bytes == 0 && descriptors.is_empty() && !cut {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    Ok(Some(Packet {
        bytes,
        descriptors,
        cut,
    }))
}

/// Sends, waiting as long as the socket's send timeout says if the host does not read.
pub(super) fn send_patiently(socket: impl AsFd, message: &FromDpu) -> io::Result<()> {
    send_with(socket, message, SendFlags::NOSIGNAL)
}

/// Sends at once or not at all.
pub(super) fn send_now(socket: impl AsFd, message: &FromDpu) -> io::Result<()> {
    send_with(socket, message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send_with(socket: impl AsFd, message: &FromDpu, flags: SendFlags) -> io::Result<()> {
    let bytes = encode(message);
    loop {
        match send(&socket, &bytes, flags) {
            Err(Errno::INTR) => {}
            // A packet is sent whole or not at all.
            other => return Ok(other.map(|_| ())?),
        }
    }
}
