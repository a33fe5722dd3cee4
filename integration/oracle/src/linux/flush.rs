//! Makes the kernel forget all connections of its namespace.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::Failure;

// linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
const NLM_F_REQUEST_AND_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const MESSAGE_LEN: u32 = 20;

/// Its channel to the kernel.
pub(super) struct Connections {
    netlink: OwnedFd,
}

impl Connections {
    pub(super) fn new() -> Result<Self, Failure> {
        let netlink = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(Failure::kernel("open a netlink socket"))?;
        Ok(Self { netlink })
    }

    /// All of them, of all families.
    pub(super) fn forget(&self) -> Result<(), Failure> {
        let mut message = MESSAGE_LEN.to_ne_bytes().to_vec();
        message.extend((NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE).to_ne_bytes());
        message.extend(NLM_F_REQUEST_AND_ACK.to_ne_bytes());
        // sequence number and port; then any family, version 0, no resource
        message.extend([0; 12]);
        let flushing = || Failure::kernel("flush connections");
        send(self.netlink.as_raw_fd(), &message, MsgFlags::empty()).map_err(flushing())?;
        let mut answer = [0; 256];
        let len = recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).map_err(flushing())?;
        let answer = &answer[..len];
        let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        let error = answer
            .get(16..20)
            .and_then(|b| b.try_into().ok())
            .map(i32::from_ne_bytes);
        match (kind, error) {
            (Some(NLMSG_ERROR), Some(0)) => Ok(()),
            (_, error) => Err(flushing()(Errno::from_raw(error.unwrap_or(0).saturating_neg()))),
        }
    }
}
