//! Is the memory that a VMM passes really the guest's, shared?
//!
//! The shim maps nothing. It looks at the descriptors, and where it may, at how the VMM itself has mapped them: a
//! private mapping (QEMU's `share=off`) has a descriptor too, but what the guest writes never reaches it, and the
//! device would be silently dead.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{FileType, OFlags, fcntl_getfl, fstat},
    process::Pid,
};

use super::request::Region;

/// Most of `/proc/<pid>/maps` that is looked at, in bytes: some fifty thousand mappings.
const MAPS_LEN_MAX: u64 = 4 << 20;

/// What a memory descriptor is, if it is not memory that can be shared.
pub fn unshareable(descriptor: impl AsFd) -> Option<&'static str> {
    let Ok(stat) = fstat(&descriptor) else {
        return Some("unreadable");
    };
    match FileType::from_raw_mode(stat.st_mode) {
        // memfd, tmpfs, hugetlbfs, file; or device memory.
        FileType::RegularFile | FileType::CharacterDevice | FileType::BlockDevice => {}
        FileType::Socket => return Some("a socket"),
        FileType::Fifo => return Some("a pipe"),
        FileType::Directory => return Some("a directory"),
        _ => return Some("an anonymous descriptor such as an eventfd"),
    }
    match fcntl_getfl(&descriptor) {
        Ok(flags) if flags & OFlags::RWMODE == OFlags::RDWR && !flags.contains(OFlags::PATH) => None,
        _ => Some("not open for reading and writing"),
    }
}

/// True only if the process has surely mapped this region privately; false where that cannot be seen.
pub fn mapped_privately(vmm: Option<Pid>, region: &Region, descriptor: BorrowedFd<'_>) -> bool {
    let (Some(vmm), Ok(stat)) = (vmm, fstat(descriptor)) else {
        return false;
    };
    let Ok(maps) = File::open(format!("/proc/{}/maps", vmm.as_raw_nonzero())) else {
        return false;
    };
    BufReader::new(maps.take(MAPS_LEN_MAX))
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| Mapping::parse(&line))
        .any(|m| m.private && m.inode == stat.st_ino && (m.begin..m.end).contains(&region.user_addr))
}

/// A line of `/proc/<pid>/maps` (proc_pid_maps(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    begin: u64,
    end: u64,
    private: bool,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let private = fields.next()?.ends_with('p');
        let inode = fields.nth(2)?.parse().ok()?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            begin: hex(begin)?,
            end: hex(end)?,
            private,
            inode,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::{
        event::{EventfdFlags, eventfd},
        fs::{MemfdFlags, Mode, ftruncate, memfd_create, open},
        process::getpid,
    };
    use vm_memory::{FileOffset, MmapRegion};

    use super::*;

    fn memfd() -> File {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 1 << 20).unwrap();
        File::from(memory)
    }

    #[test]
    fn memory_is_told_from_other_descriptors() {
        let memory = memfd();
        assert_eq!(unshareable(&memory), None);
        let again = format!("/proc/self/fd/{}", memory.as_raw_fd());
        let read_only = open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(unshareable(&read_only), Some("not open for reading and writing"));
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(unshareable(&event), Some("an anonymous descriptor such as an eventfd"));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(unshareable(&socket), Some("a socket"));
    }

    #[test]
    fn a_private_mapping_is_seen_and_a_shared_one_passes() {
        // MAP_PRIVATE and MAP_SHARED of mmap(2), with PROT_READ | PROT_WRITE.
        for (flags, private) in [(2, true), (1, false)] {
            let memory = memfd();
            let offset = FileOffset::new(memory.try_clone().unwrap(), 0);
            let mapping = MmapRegion::<()>::build(Some(offset), 1 << 20, 3, flags).unwrap();
            let user_addr = mapping.as_ptr() as u64 + 4096;
            let region = Region {
                guest_phys_addr: 0,
                len: 4096,
                user_addr,
                mmap_offset: 4096,
            };
            assert_eq!(mapped_privately(Some(getpid()), &region, memory.as_fd()), private);
            // Nobody to ask, or another file there: no accusation.
            assert!(!mapped_privately(None, &region, memory.as_fd()));
            assert!(!mapped_privately(Some(getpid()), &region, memfd().as_fd()));
        }
    }

    #[test]
    fn lines_of_maps_are_read() {
        let line = "7f0000000000-7f0000100000 rw-s 00000000 00:01 1042                       /memfd:guest (deleted)";
        let mapping = Mapping {
            begin: 0x7f00_0000_0000,
            end: 0x7f00_0010_0000,
            private: false,
            inode: 1042,
        };
        assert_eq!(Mapping::parse(line), Some(mapping));
        assert_eq!(Mapping::parse("rubbish"), None);
    }
}
