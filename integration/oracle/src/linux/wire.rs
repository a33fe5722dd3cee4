//! Frames in and out of an interface, past its address resolution: AF_PACKET.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
        sockopt::RcvBuf,
    },
};

use crate::Failure;

const RECEIVE_BUFFER_LEN: usize = 4 << 20;

/// The far end of an interface pair.
pub(super) struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// What is sent and received on the interface of this name.
    pub(super) fn on(name: &str) -> Result<Self, Failure> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .map_err(Failure::kernel("open a packet socket"))?;
        let link = getifaddrs()
            .map_err(Failure::kernel("list interfaces"))?
            .filter(|interface| interface.interface_name == name)
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .ok_or_else(|| Failure::kernel("find an interface")(Errno::ENODEV))?;
        bind(socket.as_raw_fd(), &link).map_err(Failure::kernel("bind a packet socket"))?;
        setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER_LEN).map_err(Failure::kernel("enlarge a receive buffer"))?;
        Ok(Self { socket })
    }

    pub(super) fn send(&self, frame: &[u8]) -> Result<(), Failure> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        sent.map(|_| ()).map_err(Failure::kernel("send a frame"))
    }

    /// The next IP frame that is for one host.
    pub(super) fn receive(&self) -> Result<Option<Vec<u8>>, Failure> {
        let mut buffer = [0; 2048];
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => len,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(Failure::kernel("receive a frame")(error)),
            };
            let frame = &buffer[..len];
            let unicast = frame.first().is_some_and(|byte| byte & 1 == 0);
            let ip = matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
            if unicast && ip {
                return Ok(Some(frame.to_vec()));
            }
        }
    }

    pub(super) fn descriptor(&self) -> impl AsFd {
        &self.socket
    }
}
