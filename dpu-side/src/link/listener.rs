//! Accepts the host's connections: from the right users, and not too many.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc::SyncSender},
    thread::JoinHandle,
    time::Duration,
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use outboard_controls::{Check, on};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, shutdown,
        socket_with,
    },
};

use super::{
    Host, Links,
    connection::{Connection, PATIENCE},
};
use crate::{
    error::Failure,
    message::Message,
    pace::{Pace, SharedPace},
};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 16;
/// Mode of the socket: the daemon's user and group.
const MODE: u32 = 0o660;
/// Connections accepted in a second: each costs a thread and perhaps a line in the log.
const CONNECTIONS_PER_S: u32 = 100;
/// Pause after the kernel could not give a connection, for want of descriptors for example.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How to serve the link.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the socket is.
    pub path: PathBuf,
    /// Users beside root and our own.
    pub uids: Vec<u32>,
    /// Connections at a time.
    pub connections_max: usize,
    /// The host behind the socket.
    pub host: Host,
}

/// The listener and its thread.
pub struct LinkServer {
    listener: Arc<OwnedFd>,
    links: Arc<Links>,
    path: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl LinkServer {
    /// Listens, and serves each connection on a thread of its own.
    pub fn start(settings: Settings, links: Arc<Links>, enforcement: SyncSender<Message>) -> Result<Self, Failure> {
        let path = settings.path.clone();
        let listener = Arc::new(listen_at(&path)?);
        let (accepting, registered) = (Arc::clone(&listener), Arc::clone(&links));
        let thread = std::thread::Builder::new()
            .name("link".into())
            .spawn(move || accept_all(&accepting, &settings, &registered, &enforcement))
            .map_err(|e| {
                Failure::new(
                    format!("no thread for the link: {e}"),
                    "raise the limit on processes (ulimit -u)",
                )
            })?;
        Ok(Self {
            listener,
            links,
            path,
            thread: Some(thread),
        })
    }

    /// Closes the socket and all connections.
    pub fn stop(mut self) {
        // Both ends of this are ours; if it fails, it is closed already.
        let _ = shutdown(&self.listener, Shutdown::Both);
        self.links.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Nobody else's: as long as we listened, nobody took the path.
        let _ = fs::remove_file(&self.path);
    }
}

fn listen_at(path: &Path) -> Result<OwnedFd, Failure> {
    let io = |verb: &str, e: Errno| Failure::io(verb, path, &e.into(), "check link_socket and its directory's owner");
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::create_dir_all(directory).map_err(|e| {
            Failure::io(
                "make the directory",
                directory,
                &e,
                "check its parent's owner, or link_socket",
            )
        })?;
    }
    let address = SocketAddrUnix::new(path).map_err(|e| io("use the socket path", e))?;
    let new = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let socket = new().map_err(|e| io("make the socket", e))?;
    match bind(&socket, &address) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &address)?;
            bind(&socket, &address).map_err(|e| io("bind", e))?;
        }
        Err(e) => return Err(io("bind", e)),
    }
    // Whatever the mode is until then, peers are checked one by one.
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))
        .map_err(|e| Failure::io("set the mode of", path, &e, "check its directory's owner"))?;
    listen(&socket, BACKLOG).map_err(|e| io("listen on", e))?;
    Ok(socket)
}

/// A socket file that nobody listens on any more is removed; anything else at that path is somebody's.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), Failure> {
    let taken = |who: &str| {
        Failure::new(
            format!("link_socket {} is in use: {who}", path.display()),
            "stop what uses it, or choose another link_socket for this daemon and its shim",
        )
    };
    if !fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        return Err(taken("there is a file that is no socket"));
    }
    // Not blocking: a daemon that hangs accepts nobody, and connecting would hang as well once its backlog is full.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|e| {
        Failure::io(
            "make a socket for",
            path,
            &e.into(),
            "raise the limit on open files (ulimit -n)",
        )
    })?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!("removing the socket {} that a daemon left behind", path.display());
            fs::remove_file(path).map_err(|e| Failure::io("remove", path, &e, "remove it by hand"))
        }
        Ok(()) => Err(taken("another outboard-dpu listens there")),
        Err(_) => Err(taken("another program listens there")),
    }
}

fn accept_all(listener: &OwnedFd, settings: &Settings, links: &Arc<Links>, enforcement: &SyncSender<Message>) {
    let mut pace = Pace::new(CONNECTIONS_PER_S);
    let requests = Arc::new(SharedPace::new(settings.host.requests_per_s));
    loop {
        pace.wait();
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(socket) => admit(socket, settings, &requests, links, enforcement),
            // Shut down by `stop`.
            Err(Errno::INVAL) => return,
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Err(e) => {
                tracing::warn!("the host's link cannot accept a connection: {e}; fix: raise the limit on open files");
                std::thread::sleep(ACCEPT_RETRY);
            }
        }
    }
}

fn admit(
    socket: OwnedFd,
    settings: &Settings,
    requests: &Arc<SharedPace>,
    links: &Arc<Links>,
    enforcement: &SyncSender<Message>,
) {
    match peer_uid(&socket) {
        Ok(uid) if may_use(uid, &settings.uids) => {}
        Ok(uid) => {
            tracing::warn!("user {uid} may not use the host's link; fix: if it should, add it to host_uids");
            return;
        }
        Err(e) => {
            tracing::warn!("a peer of the host's link cannot be identified: {e}");
            return;
        }
    }
    let socket = Arc::new(socket);
    let Some(id) = links.add(&socket, settings.connections_max) else {
        tracing::warn!(
            "the host has {} connections already; fix: close some, or raise limits.connections",
            settings.connections_max
        );
        return;
    };
    let connection = Connection {
        socket,
        id,
        host: settings.host.clone(),
        pace: Arc::clone(requests),
        links: Arc::clone(links),
        enforcement: enforcement.clone(),
    };
    let spawned = std::thread::Builder::new()
        .name(format!("link-{id}"))
        .spawn(move || match connection.serve() {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let patience_s = PATIENCE.as_secs();
                tracing::info!("a connection of the host was closed: it neither spoke nor read for {patience_s} s");
            }
            Err(e) => tracing::info!("a connection of the host ended: {e}"),
        });
    if let Err(e) = spawned {
        tracing::warn!("no thread for a connection of the host: {e}; fix: raise the limit on processes (ulimit -u)");
    }
}

fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    // A peer in a foreign pid namespace has process id 0, which not every wrapper can represent.
    Ok(getsockopt(&socket, PeerCredentials)?.uid())
}

fn may_use(uid: u32, uids: &[u32]) -> bool {
    uid == 0 || uid == nix::unistd::getuid().as_raw() || uids.contains(&uid) || !on(Check::PeerUid)
}
