//! The memory of one guest.

use std::fs::File;

use outboard_controls::{Check, on};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use crate::{
    file::{self, FileFault},
    log::DirtyLog,
    mapping::Area,
    sigbus::{self, SLOT_COUNT},
    view::GuestBytes,
};

/// Regions one guest may have. QEMU itself never uses more.
pub const REGION_COUNT_MAX: usize = 512;
/// Bytes of guest memory one guest may have mapped, so that it cannot use up the address space of the process.
pub const GUEST_MEMORY_LEN_MAX: u64 = 1 << 42;

/// Guest-physical and file addresses of a region must agree modulo this, the strictest alignment of a ring's parts
/// (virtio 1.3 §2.7), so that what is aligned for the guest is aligned for us.
const ALIGNMENT: u64 = 16;
/// A region of guest memory as a VMM describes it (vhost-user, "Memory region description").
#[derive(Debug)]
pub struct RegionSpec {
    /// First guest-physical address.
    pub guest_phys_addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// The address at which the VMM itself has mapped it.
    pub user_addr: u64,
    /// Where in `file` the region begins, in bytes.
    pub mmap_offset: u64,
    /// The memory. It is mapped and then closed.
    pub file: File,
}

/// Why memory was refused or an access to it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// More regions than [`REGION_COUNT_MAX`].
    #[error("host gave {count} memory regions, more than {REGION_COUNT_MAX}: give the VM fewer memory slots")]
    TooManyRegions {
        /// How many.
        count: usize,
    },
    /// More memory than [`GUEST_MEMORY_LEN_MAX`].
    #[error("host gave {len} bytes of guest memory, more than {GUEST_MEMORY_LEN_MAX}: use a smaller VM")]
    TooMuchMemory {
        /// How much, in bytes.
        len: u64,
    },
    /// All guests together have too many regions.
    #[error("the DPU has {SLOT_COUNT} memory regions mapped and takes no more: detach devices of other VMs")]
    TableFull,
    /// A region of no length.
    #[error("host gave an empty memory region at {guest_phys_addr:#x}: leave it out")]
    Empty {
        /// Where.
        guest_phys_addr: u64,
    },
    /// A region whose end is beyond 2^64, by guest-physical, user or file address.
    #[error("host gave a memory region at {guest_phys_addr:#x} of {len} bytes that wraps around")]
    Wraps {
        /// Where.
        guest_phys_addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A region whose guest-physical address and file offset differ modulo 16.
    #[error(
        "host gave a memory region at {guest_phys_addr:#x} from file offset {mmap_offset:#x}: both must agree modulo {ALIGNMENT}"
    )]
    Misaligned {
        /// Where.
        guest_phys_addr: u64,
        /// Where in the file.
        mmap_offset: u64,
    },
    /// Two regions share guest-physical or user addresses.
    #[error("host gave memory regions at {first:#x} and {second:#x} that overlap")]
    Overlap {
        /// Guest-physical address of one.
        first: u64,
        /// Guest-physical address of the other.
        second: u64,
    },
    /// The descriptor is no memory file. A page of another file may take for ever to come.
    #[error(
        "host gave memory at {guest_phys_addr:#x} that is not a memfd nor a file on tmpfs or hugetlbfs ({found}): \
         start the VM with memory-backend-memfd,share=on or with hugepages"
    )]
    NotMemoryFile {
        /// Where.
        guest_phys_addr: u64,
        /// What it is instead.
        found: String,
    },
    /// The region is not inside its file.
    #[error(
        "host gave a memory region at {guest_phys_addr:#x} that ends at byte {end} of a file of {file_len} bytes: \
         it must lie inside its file"
    )]
    OutsideFile {
        /// Where.
        guest_phys_addr: u64,
        /// Where in the file it would end.
        end: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// The region to remove does not exist.
    #[error("host removed a memory region at {guest_phys_addr:#x} of {len} bytes that it never gave")]
    NoSuchRegion {
        /// Where.
        guest_phys_addr: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A system call failed.
    #[error("memory given by the host at {guest_phys_addr:#x} could not be used: {call}: {errno}")]
    System {
        /// Where.
        guest_phys_addr: u64,
        /// Which system call.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
    /// An address range that is not guest memory.
    #[error("guest gave address {addr:#x} with {len} bytes, which is not in its memory")]
    Unmapped {
        /// First guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: usize,
    },
    /// The host took pages of the guest's memory away.
    #[error("host took memory of the guest away while it was in use: restart the VM")]
    Vanished,
}

/// A region that is mapped.
#[derive(Debug, Clone)]
struct Region {
    guest_phys_addr: u64,
    len: u64,
    user_addr: u64,
    /// All of it; it has `len` bytes.
    area: Area,
}

/// Guest memory of one session. Immutable: a changed table is another `GuestMemory`, which shares the regions that
/// both have.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// By guest-physical address, not overlapping.
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Map `regions`.
    ///
    /// # Errors
    /// The table is refused as a whole if one region is not a memory file, not inside its file, wraps, or overlaps
    /// another, or if there are too many.
    pub fn map(regions: Vec<RegionSpec>) -> Result<Self, MemoryError> {
        if regions.len() > REGION_COUNT_MAX {
            return Err(MemoryError::TooManyRegions { count: regions.len() });
        }
        regions
            .into_iter()
            .try_fold(Self::default(), |memory, spec| memory.with(spec))
    }

    /// One region of private memory, for an interpreter that cannot map files.
    #[cfg(miri)]
    pub(crate) fn private(guest_phys_addr: u64, len: u64, user_addr: u64) -> Self {
        let bytes = usize::try_from(len).expect("it is no larger than memory");
        let mapping = std::sync::Arc::new(crate::mapping::Mapping::private(bytes));
        let area = Area::new(mapping, 0, bytes).expect("it is all of it");
        let region = Region {
            guest_phys_addr,
            len,
            user_addr,
            area,
        };
        Self { regions: vec![region] }
    }

    /// The same memory and one more region.
    ///
    /// # Errors
    /// As for [`GuestMemory::map`].
    pub fn with(&self, spec: RegionSpec) -> Result<Self, MemoryError> {
        if self.regions.len() >= REGION_COUNT_MAX && on(Check::RegionCount) {
            return Err(MemoryError::TooManyRegions {
                count: self.regions.len() + 1,
            });
        }
        spec.check_range()?;
        let total = self.regions.iter().map(|r| r.len).fold(spec.len, u64::saturating_add);
        if total > GUEST_MEMORY_LEN_MAX {
            return Err(MemoryError::TooMuchMemory { len: total });
        }
        if let Some(other) = self.regions.iter().find(|region| region.overlaps(&spec))
            && on(Check::RegionsApart)
        {
            return Err(MemoryError::Overlap {
                first: other.guest_phys_addr,
                second: spec.guest_phys_addr,
            });
        }
        let region = Region::map(&spec)?;
        let mut regions = self.regions.clone();
        let place = regions.partition_point(|r| r.guest_phys_addr < region.guest_phys_addr);
        regions.insert(place, region);
        Ok(Self { regions })
    }

    /// The same memory without one region, which is named as vhost-user's REM_MEM_REG does.
    ///
    /// # Errors
    /// There is no such region.
    pub fn without(&self, guest_phys_addr: u64, len: u64, user_addr: u64) -> Result<Self, MemoryError> {
        let named = |r: &Region| r.guest_phys_addr == guest_phys_addr && r.len == len && r.user_addr == user_addr;
        let Some(place) = self.regions.iter().position(named) else {
            return Err(MemoryError::NoSuchRegion { guest_phys_addr, len });
        };
        let mut regions = self.regions.clone();
        regions.remove(place);
        Ok(Self { regions })
    }

    /// How many regions there are.
    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Is all of `addr .. addr + len` guest memory? The range may span regions that touch.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`].
    pub fn check(&self, addr: u64, len: usize) -> Result<(), MemoryError> {
        self.pieces(addr, len, |_| ())
    }

    /// Copy guest memory to `buf`.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] if not all of it is guest memory, [`MemoryError::Vanished`] if the host took some away.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.pieces(addr, buf.len(), |bytes| {
            bytes.copy_to(&mut buf[done..]);
            done += bytes.len();
        })?;
        self.alive()
    }

    /// Copy `buf` to guest memory.
    ///
    /// # Errors
    /// As for [`GuestMemory::read`]. What comes before the first unmapped byte may have been written.
    pub fn write(&self, addr: u64, buf: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.pieces(addr, buf.len(), |bytes| {
            bytes.copy_from(&buf[done..]);
            done += bytes.len();
        })?;
        self.alive()
    }

    /// Guest memory as volatile bytes. The range must lie in one region.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`].
    #[inline]
    pub fn slice(&self, addr: u64, len: usize) -> Result<VolatileSlice<'_>, MemoryError> {
        self.find(addr)
            .and_then(|(region, offset)| region.slice(offset, len))
            .ok_or(MemoryError::Unmapped { addr, len })
    }

    /// The same to be copied from and to. `near` is a guess where the region is, as [`GuestMemory::place`] tells.
    #[inline]
    pub(crate) fn bytes(&self, addr: u64, len: usize, near: u16) -> Result<GuestBytes<'_>, MemoryError> {
        let guessed = self.regions.get(usize::from(near)).and_then(|region| {
            let offset = addr.wrapping_sub(region.guest_phys_addr);
            region.bytes(offset, len)
        });
        match guessed {
            Some(bytes) => Ok(bytes),
            None => self.search(addr, len),
        }
    }

    #[cold]
    #[inline(never)]
    fn search(&self, addr: u64, len: usize) -> Result<GuestBytes<'_>, MemoryError> {
        self.find(addr)
            .and_then(|(region, offset)| region.bytes(offset, len))
            .ok_or(MemoryError::Unmapped { addr, len })
    }

    /// Where the region is that holds all of the range, `near` or elsewhere; `None` if none does.
    #[inline]
    pub(crate) fn place(&self, addr: u64, len: u32, near: u16) -> Option<u16> {
        match self.regions.get(usize::from(near)) {
            Some(region) if region.holds(addr, len) => Some(near),
            _ => self.search_place(addr, len),
        }
    }

    #[cold]
    #[inline(never)]
    fn search_place(&self, addr: u64, len: u32) -> Option<u16> {
        let next = self.regions.partition_point(|region| region.guest_phys_addr <= addr);
        let found = next.checked_sub(1)?;
        self.regions.get(found).filter(|region| region.holds(addr, len))?;
        // There are at most `REGION_COUNT_MAX`.
        u16::try_from(found).ok()
    }

    /// The same for a buffer, of at least one byte, that is soon read, or written: its first bytes are fetched.
    #[inline]
    pub(crate) fn place_ahead(&self, (addr, len): (u64, u32), to_write: bool, near: u16) -> Option<u16> {
        if let Some(region) = self.regions.get(usize::from(near))
            && let Some(bytes) = region.bytes(addr.wrapping_sub(region.guest_phys_addr), len as usize)
        {
            bytes.prefetch(to_write);
            return Some(near);
        }
        self.search_place(addr, len)
    }

    /// A range that is accessed again and again. It must lie in one region.
    pub(crate) fn area(&self, addr: u64, len: usize) -> Result<Area, MemoryError> {
        let unmapped = || MemoryError::Unmapped { addr, len };
        let (region, offset) = self.find(addr).ok_or_else(unmapped)?;
        let offset = usize::try_from(offset).map_err(|_| unmapped())?;
        region.area.part(offset, len).ok_or_else(unmapped)
    }

    /// How many of the `len` bytes from `addr` lie in the region of `addr`: a longer range goes on in the next one.
    #[inline]
    pub(crate) fn first_piece(&self, addr: u64, len: u64) -> Option<u64> {
        let (region, offset) = self.find(addr)?;
        let piece = len.min(region.len - offset);
        (piece > 0 || len == 0).then_some(piece)
    }

    /// The first guest-physical address after all of it.
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |r| r.guest_phys_addr + r.len)
    }

    /// The guest-physical address of what the VMM has at `user_addr`, as in vhost-user's SET_VRING_ADDR.
    pub fn user_to_guest(&self, user_addr: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.user_addr)?;
            (offset < region.len).then(|| region.guest_phys_addr + offset)
        })
    }

    /// Mark all of it as written.
    pub fn mark_all(&self, log: &DirtyLog) {
        for region in &self.regions {
            log.mark(region.guest_phys_addr, region.len);
        }
    }

    /// Did the host take pages away that were accessed? What was read is zero from then on and the device must be
    /// failed; the memory stays safe to access.
    #[inline]
    pub fn poisoned(&self) -> bool {
        sigbus::any_fault() && self.any_poisoned()
    }

    #[cold]
    #[inline(never)]
    fn any_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.area.poisoned())
    }

    /// Was nothing taken away, so that what was read is the guest's?
    #[inline]
    pub(crate) fn alive(&self) -> Result<(), MemoryError> {
        if self.poisoned() {
            Err(MemoryError::Vanished)
        } else {
            Ok(())
        }
    }

    /// The region of `addr`, and where in it.
    #[inline]
    fn find(&self, addr: u64) -> Option<(&Region, u64)> {
        let region = match self.regions.as_slice() {
            // A DPDK process has one, and so have many guests: there is nothing to search.
            [only] => only,
            regions => {
                let next = regions.partition_point(|r| r.guest_phys_addr <= addr);
                regions.get(next.checked_sub(1)?)?
            }
        };
        let offset = addr.checked_sub(region.guest_phys_addr)?;
        (offset < region.len).then_some((region, offset))
    }

    /// Visit the parts of a range, one in each region that it spans.
    #[inline]
    fn pieces<'a>(&'a self, addr: u64, len: usize, mut visit: impl FnMut(GuestBytes<'a>)) -> Result<(), MemoryError> {
        // Made only where it is returned: errors are large, and this is done for each copy.
        let unmapped = || MemoryError::Unmapped { addr, len };
        let end = u64::try_from(len)
            .ok()
            .and_then(|len| addr.checked_add(len))
            .ok_or_else(unmapped)?;
        let mut at = addr;
        while at < end {
            let (region, offset) = self.find(at).ok_or_else(unmapped)?;
            let piece = (end - at).min(region.len - offset);
            let bytes = usize::try_from(piece)
                .ok()
                .and_then(|piece| region.bytes(offset, piece));
            visit(bytes.ok_or_else(unmapped)?);
            at += piece;
        }
        Ok(())
    }
}

impl RegionSpec {
    fn check_range(&self) -> Result<(), MemoryError> {
        let Self {
            guest_phys_addr,
            len,
            user_addr,
            mmap_offset,
            ..
        } = *self;
        if len == 0 {
            return Err(MemoryError::Empty { guest_phys_addr });
        }
        let ends = [guest_phys_addr, user_addr, mmap_offset].map(|start| start.checked_add(len));
        if ends.contains(&None) {
            return Err(MemoryError::Wraps { guest_phys_addr, len });
        }
        if guest_phys_addr % ALIGNMENT != mmap_offset % ALIGNMENT {
            return Err(MemoryError::Misaligned {
                guest_phys_addr,
                mmap_offset,
            });
        }
        Ok(())
    }
}

impl Region {
    fn map(spec: &RegionSpec) -> Result<Self, MemoryError> {
        let RegionSpec {
            guest_phys_addr,
            len,
            user_addr,
            mmap_offset,
            ..
        } = *spec;
        let (mapping, delta) = file::map(&spec.file, mmap_offset, len).map_err(|fault| match fault {
            FileFault::NotMemory { found } => MemoryError::NotMemoryFile { guest_phys_addr, found },
            FileFault::Outside { end, file_len } => MemoryError::OutsideFile {
                guest_phys_addr,
                end,
                file_len,
            },
            FileFault::Wraps => MemoryError::Wraps { guest_phys_addr, len },
            FileFault::TableFull => MemoryError::TableFull,
            FileFault::System { call, errno } => MemoryError::System {
                guest_phys_addr,
                call,
                errno,
            },
        })?;
        let unmapped = || MemoryError::Wraps { guest_phys_addr, len };
        let area_len = usize::try_from(len).map_err(|_| unmapped())?;
        Ok(Self {
            guest_phys_addr,
            len,
            user_addr,
            area: Area::new(mapping, delta, area_len).ok_or_else(unmapped)?,
        })
    }

    fn overlaps(&self, spec: &RegionSpec) -> bool {
        let apart = |a: u64, b: u64| a + self.len <= b || b + spec.len <= a;
        !apart(self.guest_phys_addr, spec.guest_phys_addr) || !apart(self.user_addr, spec.user_addr)
    }

    /// `len` bytes from `offset`, which is relative to the region.
    #[inline]
    fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.area.slice(usize::try_from(offset).ok()?, len)
    }

    /// The same to be copied from and to.
    #[inline]
    fn bytes(&self, offset: u64, len: usize) -> Option<GuestBytes<'_>> {
        self.area.guest_bytes().part(usize::try_from(offset).ok()?, len)
    }

    /// Does it hold all of `len` bytes from `addr`?
    #[inline]
    fn holds(&self, addr: u64, len: u32) -> bool {
        let offset = addr.wrapping_sub(self.guest_phys_addr);
        offset < self.len && u64::from(len) <= self.len - offset
    }
}

// Miri maps no files.
#[cfg(all(test, not(miri)))]
mod tests;
