//! From a descriptor of the host's to a mapping: only memory, and only what lies inside of it.

use std::{fs::File, sync::Arc};

use outboard_controls::{Check, on};
use rustix::{
    fs::{FileType, fstat, fstatfs},
    io::Errno,
};

use crate::{
    mapping::{Area, MapError, Mapping},
    sigbus::{GuardError, SLOT_COUNT},
};

/// `f_type` of tmpfs and of memfds.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// `f_type` of hugetlbfs and of memfds made of huge pages.
const HUGETLBFS_MAGIC: i64 = 0x958_458f6;

/// Why a file of the host's was not mapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
    /// It is no memory file. A page of another file may take for ever to come.
    #[error("it is not a memfd nor a file on tmpfs or hugetlbfs ({found}): pass a memfd")]
    NotMemory {
        /// What it is instead.
        found: String,
    },
    /// The part to map is not inside.
    #[error("it would end at byte {end} of a file of {file_len} bytes: it must lie inside its file")]
    Outside {
        /// Where in the file it would end.
        end: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// Its end is beyond 2^64.
    #[error("its offset and size wrap around")]
    Wraps,
    /// Too many files are mapped.
    #[error("the DPU has {SLOT_COUNT} memory regions mapped and takes no more: detach devices of other VMs")]
    TableFull,
    /// A system call failed.
    #[error("{call}: {errno}")]
    System {
        /// Which.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
}

/// Map `len` bytes of `file` from `offset`: the mapping, whose pages are whole, and where in it they begin.
pub(crate) fn map(file: &File, offset: u64, len: u64) -> Result<(Arc<Mapping>, usize), FileFault> {
    let end = offset.checked_add(len).ok_or(FileFault::Wraps)?;
    let page_len = check(file, end)?;
    // Whole pages, as huge pages need.
    let file_start = offset & !(page_len - 1);
    let file_end = end.checked_next_multiple_of(page_len).ok_or(FileFault::Wraps)?;
    let delta = usize::try_from(offset - file_start).map_err(|_| FileFault::Wraps)?;
    let mapped_len = usize::try_from(file_end - file_start).map_err(|_| FileFault::Wraps)?;
    let system = |call| move |errno| FileFault::System { call, errno };
    let mapping = Mapping::new(file, file_start, mapped_len).map_err(|error| match error {
        MapError::Mmap(errno) => system("mmap")(errno),
        MapError::Guard(GuardError::Install(errno)) => system("sigaction")(errno),
        MapError::Guard(GuardError::Full) => FileFault::TableFull,
    })?;
    Ok((Arc::new(mapping), delta))
}

/// The same for a range that is accessed as one.
pub(crate) fn map_area(file: &File, offset: u64, len: u64) -> Result<Area, FileFault> {
    let (mapping, delta) = map(file, offset, len)?;
    let len = usize::try_from(len).map_err(|_| FileFault::Wraps)?;
    Area::new(mapping, delta, len).ok_or(FileFault::Wraps)
}

/// Check that the file is memory and has `end` bytes. Its page size in bytes.
fn check(file: &File, end: u64) -> Result<u64, FileFault> {
    let system = |call| move |errno| FileFault::System { call, errno };
    let stat = fstat(file).map_err(system("fstat"))?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if file_type != FileType::RegularFile {
        return Err(FileFault::NotMemory {
            found: format!("{file_type:?}"),
        });
    }
    let fs = fstatfs(file).map_err(system("fstatfs"))?;
    let page_len = match fs.f_type {
        TMPFS_MAGIC => rustix::param::page_size() as u64,
        HUGETLBFS_MAGIC => u64::try_from(fs.f_bsize).unwrap_or(0),
        _ if !on(Check::MemoryFileOnly) => rustix::param::page_size() as u64,
        other => {
            let found = format!("a file system of type {other:#x}");
            return Err(FileFault::NotMemory { found });
        }
    };
    let file_len = u64::try_from(stat.st_size).unwrap_or(0);
    if end > file_len && on(Check::RegionInsideFile) {
        return Err(FileFault::Outside { end, file_len });
    }
    if !page_len.is_power_of_two() {
        return Err(system("fstatfs")(Errno::INVAL));
    }
    Ok(page_len)
}
