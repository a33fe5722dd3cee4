//! Opening a volume's file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl},
    libc::{major, minor},
};

use super::FileBackend;
use crate::{Geometry, SECTOR_LEN};

/// Why a volume's file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The size is 0 or not a multiple of [`SECTOR_LEN`].
    #[error("a volume of {size_bytes} bytes is not possible: its size must be a multiple of {SECTOR_LEN} bytes")]
    Size {
        /// The size that was asked for.
        size_bytes: u64,
    },
    /// There is no such file.
    #[error("volume file {path} does not exist: create it with `truncate -s {size_bytes} {path}`")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The size it must have.
        size_bytes: u64,
    },
    /// It is neither a regular file nor a block device.
    #[error("volume file {path} is {found}: name a regular file or a block device")]
    WrongType {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// It has fewer bytes than the volume.
    #[error(
        "volume file {path} has {found_bytes} bytes, but the volume has {size_bytes}: enlarge it with \
         `truncate -s {size_bytes} {path}`, or make the volume smaller"
    )]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// How many it has.
        found_bytes: u64,
        /// How many it needs.
        size_bytes: u64,
    },
    /// Someone else serves it. If he has died, his last writes may still be landing; the lock is free when they have.
    #[error("volume file {path} is in use by {holder}: stop that first, since two writers would destroy its contents")]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// It may not be opened, or the kernel reports an error.
    #[error("volume file {path} could not be {attempt}: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        attempt: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refuses `io_uring`.
    #[error(
        "volume file {path} cannot be served, since the kernel refuses io_uring ({source}): set sysctl \
         kernel.io_uring_disabled to 0, allow io_uring in the container's seccomp profile, or raise the limits on open \
         files (ulimit -n) and locked memory (ulimit -l)"
    )]
    Ring {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Who has a volume's file locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Holder {
    /// Another volume of this process.
    #[error("another volume of this DPU")]
    ThisProcess,
    /// A process that can be named.
    #[error("process {pid} ({name})")]
    Process {
        /// Its process id.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// Nobody that can be seen from here.
    #[error("a process that is not visible from here (`lslocks` as root shows it)")]
    Unknown,
}

/// Serve the first `size_bytes` of a regular file or block device as a volume. The file is neither created nor resized,
/// and nothing in it is looked at.
///
/// It is locked (`flock`) as long as it is served, and longer if writes are still landing: exclusively, or shared with
/// other readers if `read_only`.
///
/// # Errors
/// See [`OpenError`].
pub fn open_file(path: &Path, size_bytes: u64, read_only: bool) -> Result<FileBackend, OpenError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_LEN) {
        return Err(OpenError::Size { size_bytes });
    }
    let system = |attempt| {
        move |source| OpenError::System {
            path: path.to_owned(),
            attempt,
            source,
        }
    };
    let mut file = match open(path, read_only) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Missing {
                path: path.to_owned(),
                size_bytes,
            });
        }
        Err(error) => return Err(system("opened")(error)),
    };
    check_type(path, &file)?;
    // Left set, it would make io_uring fail requests rather than wait for the disk.
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| system("set up")(errno.into()))?;
    // The length of a block device is where its end is.
    let found_bytes = file.seek(SeekFrom::End(0)).map_err(system("measured"))?;
    if found_bytes < size_bytes {
        return Err(OpenError::TooSmall {
            path: path.to_owned(),
            found_bytes,
            size_bytes,
        });
    }
    let file = lock(path, file, read_only)?;
    let geometry = Geometry { size_bytes, read_only };
    let backend = FileBackend::new(file, geometry);
    #[cfg(feature = "recorded-files")]
    let backend = backend.and_then(|backend| backend.recorded(path));
    backend.map_err(|source| OpenError::Ring {
        path: path.to_owned(),
        source,
    })
}

fn open(path: &Path, read_only: bool) -> io::Result<File> {
    // O_NONBLOCK: opening a FIFO must not wait for its other end.
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
}

fn check_type(path: &Path, file: &File) -> Result<(), OpenError> {
    let metadata = file.metadata().map_err(|source| OpenError::System {
        path: path.to_owned(),
        attempt: "looked at",
        source,
    })?;
    let kind = metadata.file_type();
    let found = match () {
        () if kind.is_file() || kind.is_block_device() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_char_device() => "a character device",
        () => "no file",
    };
    Err(OpenError::WrongType {
        path: path.to_owned(),
        found,
    })
}

fn lock(path: &Path, file: File, read_only: bool) -> Result<Flock<File>, OpenError> {
    let mode = if read_only {
        FlockArg::LockSharedNonblock
    } else {
        FlockArg::LockExclusiveNonblock
    };
    Flock::lock(file, mode).map_err(|(file, errno)| match errno {
        Errno::EWOULDBLOCK => OpenError::InUse {
            path: path.to_owned(),
            holder: holder_of(&file),
        },
        errno => OpenError::System {
            path: path.to_owned(),
            attempt: "locked",
            source: errno.into(),
        },
    })
}

/// Who has `file` locked, as far as the kernel tells us.
pub fn holder_of(file: &File) -> Holder {
    let (Ok(metadata), Ok(locks)) = (file.metadata(), fs::read_to_string("/proc/locks")) else {
        return Holder::Unknown;
    };
    let device = metadata.dev();
    let inode = format!("{:02x}:{:02x}:{}", major(device), minor(device), metadata.ino());
    match locks.lines().find_map(|line| flock_holder(line, &inode)) {
        Some(pid) if pid == std::process::id() => Holder::ThisProcess,
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            let name = name.map_or_else(|_| "ended just now".to_owned(), |name| name.trim_end().to_owned());
            Holder::Process { pid, name }
        }
        None => Holder::Unknown,
    }
}

/// The process of a line of `/proc/locks` such as `4: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`, if it is a lock
/// that is held on `inode`.
fn flock_holder(line: &str, inode: &str) -> Option<u32> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    match fields[..] {
        // A waiter has "->" in the second field. A process of another namespace has no id here.
        [_, "FLOCK", _, _, pid, locked, ..] if locked == inode => pid.parse().ok().filter(|&pid| pid != 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_in_the_kernels_list() {
        let line = "4: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF";
        assert_eq!(flock_holder(line, "fe:00:5678"), Some(1234));
        assert_eq!(flock_holder(line, "fe:00:567"), None);
        assert_eq!(
            flock_holder("4: POSIX  ADVISORY  WRITE 1234 fe:00:5678 0 EOF", "fe:00:5678"),
            None
        );
        assert_eq!(
            flock_holder("4: -> FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF", "fe:00:5678"),
            None
        );
        assert_eq!(
            flock_holder("4: FLOCK  ADVISORY  WRITE 0 fe:00:5678 0 EOF", "fe:00:5678"),
            None
        );
        for broken in ["", "4:", "4: FLOCK", "4: FLOCK ADVISORY WRITE x fe:00:5678"] {
            assert_eq!(flock_holder(broken, "fe:00:5678"), None);
        }
    }
}
