//! VMM sockets: listening, connecting, and who is on the other end.

pub mod door;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use outboard_controls::{Check, on};
use outboard_shim_api::Problem;
use rustix::{
    fs::{Mode, Uid, chown, fchmod},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
        sockopt::socket_error,
    },
    process::{Pid, geteuid},
};

/// Connections that wait to be accepted at a VMM socket.
const BACKLOG: i32 = 8;

/// The uid of the superuser, who is never kept out: the kernel would not keep it out either.
pub const ROOT_UID: u32 = 0;

/// Why a socket cannot be opened, or a peer was turned away.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("another process listens on {0}")]
    InUse(PathBuf),
    /// Something that is no socket has that name.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The name does not fit a socket address.
    #[error("{0} is too long for a socket: at most 107 bytes")]
    TooLong(PathBuf),
    /// The folder or the socket cannot be made.
    #[error("{path} cannot be opened: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket cannot be given to the VM's uid.
    #[error("{path} cannot be given to uid {uid}: {source}")]
    Owner {
        /// The socket.
        path: PathBuf,
        /// The VM's uid.
        uid: u32,
        /// Why.
        source: io::Error,
    },
    /// The process on the other end runs under a uid that is not served.
    #[error("process {pid} of uid {uid} came to {path}, which serves uid {allowed:?} only")]
    WrongUid {
        /// The socket.
        path: PathBuf,
        /// The peer's uid.
        uid: u32,
        /// The peer's process.
        pid: i32,
        /// The uids served.
        allowed: Vec<u32>,
    },
}

impl SocketError {
    /// For people.
    pub fn problem(&self) -> Problem {
        let remedy = match self {
            Self::InUse(_) => "stop that process or give the device another `socket`; the shim keeps trying",
            Self::NotASocket(_) => "move that file away or give the device another `socket`; the shim keeps trying",
            Self::TooLong(_) => "give the device a shorter `socket`, or the shim a shorter `socket_dir`",
            Self::Io { .. } => "check that the folder exists and that the shim may write to it; the shim keeps trying",
            Self::Owner { .. } => "run the shim as root, or as that uid, or leave out `uid`",
            Self::WrongUid { .. } => "run the VM under that uid, or attach the device with the VM's uid",
        };
        Problem {
            error: self.to_string(),
            remedy: remedy.to_owned(),
        }
    }
}

/// A listening socket whose name goes away with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the name: only our own is removed.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path` with mode 0600, or `mode`, owned by `owner` if given. A name that nobody listens at any more is taken
    /// over.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, mode: Mode, owner: Option<u32>) -> Result<Self, SocketError> {
        let failed = |source: io::Error| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        let address = SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
        clear_stale(path)?;
        let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(failed)?;
        // The name takes the socket's mode: there is no moment in which others may connect.
        fchmod(&socket, mode).map_err(|e| failed(e.into()))?;
        bind(&socket, &address).map_err(|e| match e {
            rustix::io::Errno::ADDRINUSE => SocketError::InUse(path.to_owned()),
            e => failed(e.into()),
        })?;
        let identity = std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let listener = Self {
            socket: UnixListener::from(socket),
            path: path.to_owned(),
            identity,
        };
        if let Some(uid) = owner.filter(|&uid| uid != geteuid().as_raw()) {
            chown(path, Some(Uid::from_raw(uid)), None).map_err(|e| SocketError::Owner {
                path: path.to_owned(),
                uid,
                source: e.into(),
            })?;
        }
        listen(&listener.socket, BACKLOG).map_err(|e| failed(e.into()))?;
        Ok(listener)
    }

    /// The next connection; none if there is none now.
    ///
    /// # Errors
    /// The socket failed, or the process has no descriptor left.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Its own handle on the socket, for another event loop; the name goes away with `self`.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<UnixListener> {
        self.socket.try_clone()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        if now.is_some() && now == self.identity {
            // A name left behind is taken over by the next bind.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn stream_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Makes way at `path`: makes its folder, and removes a socket that nobody listens on.
fn clear_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source: io::Error| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match connect_to(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "taking over a socket that nobody listens on");
            std::fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // It answers, or is too busy to (a full backlog): there is a listener.
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(error) => Err(failed(error)),
    }
}

/// Connects without ever waiting: a listener whose backlog is full gives `WouldBlock`.
///
/// # Errors
/// As connect(2).
pub fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    connect(&socket, &address)?;
    socket_error(&socket)??;
    Ok(UnixStream::from(socket))
}

/// The process on the other end, as it was when it connected (or, seen from the connecting side, when it began to
/// listen).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProcess {
    /// Its user.
    pub uid: u32,
    /// Its number, unless it is in a pid namespace that this process cannot see.
    pub pid: Option<Pid>,
}

/// Who is on the other end.
///
/// # Errors
/// The kernel cannot tell.
pub fn peer_process(stream: &UnixStream) -> io::Result<PeerProcess> {
    // Not by rustix, whose credentials cannot hold the process number 0 that a foreign namespace gives.
    let credentials = getsockopt(stream, PeerCredentials)?;
    Ok(PeerProcess {
        uid: credentials.uid(),
        pid: Pid::from_raw(credentials.pid()),
    })
}

/// Refuses a peer that runs under none of the `allowed` uids.
///
/// # Errors
/// [`SocketError::WrongUid`], or the kernel cannot tell.
pub fn check_peer(stream: &UnixStream, allowed: &[u32], path: &Path) -> Result<(), SocketError> {
    let peer = peer_process(stream).map_err(|source| SocketError::Io {
        path: path.to_owned(),
        source,
    })?;
    if on(Check::PeerUid) && !allowed.contains(&peer.uid) {
        return Err(SocketError::WrongUid {
            path: path.to_owned(),
            uid: peer.uid,
            pid: peer.pid.map_or(0, Pid::as_raw_pid),
            allowed: allowed.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "sockets/sockets_tests.rs"]
mod tests;
