//! The back-end's own channel, by which a device speaks first (vhost-user, "Back-end communication").

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketType, send, sockopt},
};
use vhost::vhost_user::message::BackendReq;

/// Header flags of a message that wants no reply (vhost-user, "Header").
const FLAG_VERSION: u32 = 0x1;

/// Why a descriptor is no channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("host gave a back-end channel that is no Unix stream socket ({0}): pass one end of a socketpair")]
pub struct NoChannel(pub(crate) String);

/// A channel to the front-end. It never waits, and expects no answer: whoever serves requests of a front-end and waited
/// for it here would keep it from being answered.
#[derive(Debug, Clone)]
pub struct BackendChannel(Arc<OwnedFd>);

impl BackendChannel {
    /// Take `fd`.
    ///
    /// # Errors
    /// It is no Unix stream socket. Closing another kind of socket could wait for its peer.
    pub fn new(fd: OwnedFd) -> Result<Self, NoChannel> {
        let lookup = |errno: Errno| NoChannel(errno.to_string());
        let (domain, kind) = (
            sockopt::socket_domain(&fd).map_err(lookup)?,
            sockopt::socket_type(&fd).map_err(lookup)?,
        );
        if domain != AddressFamily::UNIX || kind != SocketType::STREAM {
            return Err(NoChannel(format!("{domain:?}, {kind:?}")));
        }
        Ok(Self(Arc::new(fd)))
    }

    /// Tell the front-end that config space has changed, so that it reads it again.
    pub fn config_changed(&self) {
        let header = [BackendReq::CONFIG_CHANGE_MSG.into(), FLAG_VERSION, 0];
        let message: Vec<u8> = header.into_iter().flat_map(u32::to_ne_bytes).collect();
        // Twelve bytes go whole or not at all. With no room for them the front-end has the same message to read still.
        match send(self.0.as_fd(), &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => {}
            Err(errno) => tracing::debug!(%errno, "a change of config space could not be announced"),
        }
    }
}
