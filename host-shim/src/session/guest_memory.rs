//! The guest's memory as the VMM has described it: remembered, never mapped.
//!
//! What the shim has to know of it, two bytes of a used ring, it reads with `pread` from the VMM's descriptor: a
//! file that was truncated gives an error there, where a mapping would give SIGBUS.

use std::os::fd::AsFd;

use rustix::{
    fs::{FileType, fstat, fstatfs},
    io::pread,
};

use super::{framing::Descriptor, request::Region};

/// Magic number of tmpfs and of memfds (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Magic number of hugetlbfs and of memfds of huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// A region and the file that it is part of.
#[derive(Debug, Clone)]
pub struct MappedRegion {
    /// Where it is.
    pub region: Region,
    /// Its file.
    pub file: Descriptor,
}

impl MappedRegion {
    /// Where in its file a user address lies, if `len` bytes from there on belong to the region.
    fn offset_of(&self, user_addr: u64, len: u64) -> Option<u64> {
        let Region {
            user_addr: begin,
            len: region_len,
            mmap_offset,
            ..
        } = self.region;
        let within = user_addr.checked_sub(begin)?;
        (within.checked_add(len)? <= region_len)
            .then(|| mmap_offset.checked_add(within))
            .flatten()
    }
}

/// The memory table.
#[derive(Debug, Clone, Default)]
pub struct GuestMemory {
    regions: Vec<MappedRegion>,
}

impl GuestMemory {
    /// A table of these regions.
    pub fn new(regions: Vec<MappedRegion>) -> Self {
        Self { regions }
    }

    /// Its regions, in the order in which the VMM gave them.
    pub fn regions(&self) -> &[MappedRegion] {
        &self.regions
    }

    /// Adds a region.
    pub fn add(&mut self, region: MappedRegion) {
        self.regions.push(region);
    }

    /// True if the table has the region that a `REM_MEM_REG` names: by both addresses and its length.
    pub fn has(&self, region: &Region) -> bool {
        self.regions.iter().any(|known| same(&known.region, region))
    }

    /// Takes a region out.
    pub fn remove(&mut self, region: &Region) {
        self.regions.retain(|known| !same(&known.region, region));
    }

    /// The 16-bit number at an address of the VMM's; none if it is in no region, or cannot be read without waiting.
    pub fn read_u16(&self, user_addr: u64) -> Option<u16> {
        let mut bytes = [0; 2];
        let (region, offset) = self
            .regions
            .iter()
            .find_map(|region| Some((region, region.offset_of(user_addr, 2)?)))?;
        if !is_memory_file(&region.file) {
            return None;
        }
        match pread(&region.file, &mut bytes, offset) {
            Ok(2) => Some(u16::from_le_bytes(bytes)),
            _ => None,
        }
    }
}

fn same(a: &Region, b: &Region) -> bool {
    (a.guest_phys_addr, a.user_addr, a.len) == (b.guest_phys_addr, b.user_addr, b.len)
}

/// A file whose pages are at hand: reading it waits for nobody. (On FUSE, say, a read waits for whoever serves it.)
pub fn is_memory_file(file: impl AsFd) -> bool {
    let regular = fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    let magic = fstatfs(&file).ok().and_then(|fs| u64::try_from(fs.f_type).ok());
    regular && matches!(magic, Some(TMPFS_MAGIC | HUGETLBFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use rustix::{
        fs::{MemfdFlags, ftruncate, memfd_create},
        io::pwrite,
    };

    use super::*;

    fn table(file_len: u64) -> GuestMemory {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, file_len).unwrap();
        let region = Region {
            guest_phys_addr: 0,
            len: 0x2000,
            user_addr: 0x7000_0000,
            mmap_offset: 0x1000,
        };
        GuestMemory::new(vec![MappedRegion {
            region,
            file: file.into(),
        }])
    }

    #[test]
    fn numbers_are_read_where_the_region_says_and_nowhere_else() {
        let memory = table(0x3000);
        pwrite(&memory.regions()[0].file, &0x1234_u16.to_le_bytes(), 0x1010).unwrap();
        assert_eq!(memory.read_u16(0x7000_0010), Some(0x1234));
        assert_eq!(memory.read_u16(0x7000_1ffe), Some(0));
        for outside in [0, 0x6fff_ffff, 0x7000_1fff, 0x7000_2000, u64::MAX] {
            assert_eq!(memory.read_u16(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn a_file_that_ends_early_gives_nothing() {
        assert_eq!(table(0x1010).read_u16(0x7000_0010), None);
        assert_eq!(table(0x1011).read_u16(0x7000_0010), None);
    }

    #[test]
    fn a_file_that_may_be_waited_for_is_not_read() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(!is_memory_file(&file));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!is_memory_file(&socket));
    }

    #[test]
    fn regions_come_and_go_by_address_and_length() {
        let mut memory = table(0x3000);
        let known = memory.regions()[0].region;
        let other = Region { len: 1, ..known };
        assert!(memory.has(&known) && !memory.has(&other));
        memory.remove(&other);
        assert_eq!(memory.regions().len(), 1);
        memory.remove(&known);
        assert!(memory.regions().is_empty());
    }
}
