//! The host's link: a unix `SOCK_SEQPACKET` on which an untrusted host asks for what it was granted.
//!
//! **Boot epochs.** A host says its boot epoch in each hello, and a lower one than the highest it ever said is refused:
//! it comes from before a reboot. Nothing keeps a host from saying a high one, so one that says `u64::MAX` locks its
//! own later shims out, and nobody else: epochs are kept by host, and the link is what a host is known by. The way out is
//! `outboard-dpu forget-host-epoch` while the daemon is stopped; what was granted and attached stays so.
//!
//! One thread per connection, bounded in number. A connection has one request outstanding; the enforcement answers.

mod connection;
mod listener;
mod packet;

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use outboard_protocol::{
    id::{Generation, ObjectRef},
    link::FromDpu,
};
use rustix::net::{Shutdown, shutdown};

pub use connection::Host;
pub use listener::{LinkServer, Settings};

/// The connections that are open, to reach them from outside their threads.
#[derive(Default)]
pub struct Links {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    sockets: BTreeMap<u64, (Arc<OwnedFd>, bool)>,
    opened: u64,
    stopped: bool,
}

impl Links {
    /// Tells every host that a binding was revoked. Never waits: a host that does not read loses its connection.
    pub fn revoked(&self, object: &ObjectRef, generation: Generation) {
        let notice = FromDpu::Revoked {
            object: object.clone(),
            generation,
        };
        for (socket, greeted) in self.lock().sockets.values() {
            if *greeted && packet::send_now(socket, &notice).is_err() {
                // It may be gone already.
                let _ = shutdown(socket, Shutdown::Both);
            }
        }
    }

    /// Closes all connections, and those to come.
    pub fn stop(&self) {
        let mut open = self.lock();
        open.stopped = true;
        for (socket, _) in open.sockets.values() {
            // It may be gone already.
            let _ = shutdown(socket, Shutdown::Both);
        }
    }

    /// Its number, unless there are `count_max` already.
    fn add(&self, socket: &Arc<OwnedFd>, count_max: usize) -> Option<u64> {
        let mut open = self.lock();
        if open.stopped || open.sockets.len() >= count_max {
            return None;
        }
        open.opened += 1;
        let id = open.opened;
        open.sockets.insert(id, (Arc::clone(socket), false));
        Some(id)
    }

    /// From now on it gets notices.
    fn greeted(&self, id: u64) {
        if let Some((_, greeted)) = self.lock().sockets.get_mut(&id) {
            *greeted = true;
        }
    }

    fn remove(&self, id: u64) {
        self.lock().sockets.remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
