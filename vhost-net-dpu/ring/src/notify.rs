//! Kicks from the driver and calls to it, by eventfds that the host gave us.

use std::{
    io::IoSliceMut,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use outboard_controls::{Check, on};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// What `/proc/self/fd` says of an eventfd. A path begins with '/', so that no file can pass for one.
const EVENTFD_LINK: &[u8] = b"anon_inode:[eventfd]";

/// Why a descriptor was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// Something else than an eventfd: reading or writing it could block, or do anything at all.
    #[error("host gave a descriptor that is no eventfd but '{found}': pass an eventfd")]
    NotEventFd {
        /// What the kernel calls it.
        found: String,
    },
    /// The kernel could not be asked.
    #[error("a descriptor given by the host could not be looked up in /proc/self/fd: {0}")]
    Lookup(Errno),
}

fn check_eventfd(fd: &OwnedFd) -> Result<(), NotifyError> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let link = rustix::fs::readlink(path, Vec::new()).map_err(NotifyError::Lookup)?;
    if link.as_bytes() != EVENTFD_LINK && on(Check::EventfdOnly) {
        return Err(NotifyError::NotEventFd {
            found: link.to_string_lossy().into_owned(),
        });
    }
    Ok(())
}

/// The eventfd by which the driver kicks the device.
#[derive(Debug, Clone)]
pub struct KickFd(Arc<OwnedFd>);

impl KickFd {
    /// Take `fd`.
    ///
    /// # Errors
    /// It is no eventfd.
    pub fn new(fd: OwnedFd) -> Result<Self, NotifyError> {
        check_eventfd(&fd)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Take what was kicked, if anything was. Never blocks: not even if the host, which shares the open file
    /// description, cleared O_NONBLOCK.
    pub fn drain(&self) {
        let mut count = [0; 8];
        // An offset of u64::MAX means the current one, as an eventfd has none. Nothing to read is no error to us.
        let _count = preadv2(
            &self.0,
            &mut [IoSliceMut::new(&mut count)],
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        );
    }
}

impl AsFd for KickFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The eventfd by which the device calls the driver.
#[derive(Debug, Clone)]
pub struct CallFd(Arc<OwnedFd>);

impl CallFd {
    /// Take `fd`.
    ///
    /// # Errors
    /// It is no eventfd.
    pub fn new(fd: OwnedFd) -> Result<Self, NotifyError> {
        check_eventfd(&fd)?;
        Ok(Self(Arc::new(fd)))
    }
}

impl AsFd for CallFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who makes calls for a device. Must never block: a host can saturate an eventfd and clear O_NONBLOCK, which lives in
/// the description that it shares.
pub trait Signals {
    /// Call the driver.
    fn signal(&mut self, call: &CallFd);
}

// Miri maps no files.
#[cfg(all(test, not(miri)))]
mod tests;
