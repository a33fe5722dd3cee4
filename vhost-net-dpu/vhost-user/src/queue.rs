//! What a front-end has said about one queue.

use outboard_ring::{CallFd, GuestMemory, KickFd, RingConfig};

use crate::{error::SessionError, request::VringAddr};

/// One queue, running or not.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) size: Option<u16>,
    /// Where the ring goes on when the queue starts.
    pub(crate) base: u32,
    /// What GET_VRING_BASE told, until the queue starts again.
    pub(crate) told: Option<u32>,
    pub(crate) addr: Option<VringAddr>,
    /// Under which guest-physical address writes to the used ring are logged, if they are.
    pub(crate) log_used: Option<u64>,
    pub(crate) kick: Option<KickFd>,
    pub(crate) call: Option<CallFd>,
    /// What SET_VRING_ENABLE said last, if anything.
    pub(crate) enabled: Option<bool>,
    pub(crate) running: bool,
}

impl Queue {
    /// What a ring of it needs, once all of that is known and it is enabled. `start_enabled` is how rings begin:
    /// disabled only if protocol features were negotiated (vhost-user, "Ring states").
    pub(crate) fn ready(&self, start_enabled: bool) -> Option<(u16, VringAddr, &KickFd)> {
        if self.running || !self.enabled.unwrap_or(start_enabled) {
            return None;
        }
        Some((self.size?, self.addr?, self.kick.as_ref()?))
    }

    /// Forget what has to be said again before the queue starts again (vhost-user, GET_VRING_BASE).
    pub(crate) fn stopped(&mut self) {
        (self.kick, self.call, self.told) = (None, None, Some(self.base));
    }
}

/// A ring's configuration from what the VMM said in its own addresses.
pub(crate) fn ring_config(
    index: u16,
    (size, addr): (u16, VringAddr),
    base: u32,
    features: u64,
    memory: &GuestMemory,
) -> Result<RingConfig, SessionError> {
    let guest = |user_addr| {
        memory
            .user_to_guest(user_addr)
            .ok_or(SessionError::RingAddress { index, user_addr })
    };
    Ok(RingConfig {
        size,
        desc: guest(addr.desc)?,
        avail: guest(addr.avail)?,
        used: guest(addr.used)?,
        base,
        features,
    })
}
