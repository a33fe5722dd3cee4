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
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
/// Of an attribute of 4 bytes.
const ATTRIBUTE_LEN: u16 = 8;

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

    /// All of them, of all families, or those with a mark.
    pub(super) fn forget(&self, mark: Option<u32>) -> Result<(), Failure> {
        let attribute = |kind: u16, value: u32| {
            let head = [ATTRIBUTE_LEN.to_ne_bytes(), kind.to_ne_bytes()].concat();
            [head, value.to_be_bytes().to_vec()].concat()
        };
        let filter = mark.map(|mark| [attribute(CTA_MARK, mark), attribute(CTA_MARK_MASK, u32::MAX)].concat());
        let filter = filter.unwrap_or_default();
        let len = u32::try_from(20 + filter.len()).unwrap_or(u32::MAX);
        let mut message = len.to_ne_bytes().to_vec();
        message.extend((NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE).to_ne_bytes());
        message.extend(NLM_F_REQUEST_AND_ACK.to_ne_bytes());
        // sequence number and port; then any family, version 0, no resource
        message.extend([0; 12]);
        message.extend(filter);
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
