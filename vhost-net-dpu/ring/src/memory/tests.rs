use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
};

use outboard_controls::Off;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::driver::{GuestRam, RAM_START, USER_OFFSET};

const PAGE: u64 = 4096;

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd_create"));
    file.set_len(len).expect("ftruncate");
    file
}

fn region(guest_phys_addr: u64, len: u64, file: File) -> RegionSpec {
    RegionSpec {
        guest_phys_addr,
        len,
        user_addr: guest_phys_addr.wrapping_add(USER_OFFSET),
        mmap_offset: 0,
        file,
    }
}

fn assert_usable(memory: &GuestMemory, addr: u64) {
    memory.write(addr, b"legitimate").expect("it is mapped");
    let mut back = [0; 10];
    memory.read(addr, &mut back).expect("it is mapped");
    assert_eq!(&back, b"legitimate");
    assert!(!memory.poisoned());
}

#[test]
fn h01_region_larger_than_its_file_is_refused() {
    let small = || region(0, 1 << 20, memfd(PAGE));
    assert_usable(&GuestMemory::map(vec![region(0, PAGE, memfd(PAGE))]).unwrap(), 0);

    let error = GuestMemory::map(vec![small()]).unwrap_err();
    assert_eq!(
        error,
        MemoryError::OutsideFile {
            guest_phys_addr: 0,
            end: 1 << 20,
            file_len: PAGE
        }
    );
    let offset = RegionSpec {
        mmap_offset: PAGE,
        ..region(0, PAGE, memfd(PAGE))
    };
    assert!(matches!(
        GuestMemory::map(vec![offset]),
        Err(MemoryError::OutsideFile { .. })
    ));

    assert_usable(&GuestMemory::map(vec![region(0, PAGE, memfd(PAGE))]).unwrap(), 0);

    // Control: without the check the table is taken and its first use past the end faults.
    let _off = Off::here(Check::RegionInsideFile);
    let memory = GuestMemory::map(vec![small()]).unwrap();
    assert_eq!(memory.write(2 * PAGE, b"x"), Err(MemoryError::Vanished));
}

/// Its control runs it again in a process of its own without the guard.
#[test]
fn h02_memory_truncated_in_use_is_poisoned() {
    let victim = GuestRam::new(1 << 20);
    let neighbour = GuestRam::new(1 << 20);
    assert_usable(victim.memory(), RAM_START + 8 * PAGE);

    victim.file().set_len(PAGE).unwrap();
    let mut buf = [0xff; 16];
    assert_eq!(
        victim.memory().read(RAM_START + 8 * PAGE, &mut buf),
        Err(MemoryError::Vanished)
    );
    assert_eq!(buf, [0; 16], "what has vanished reads as zeros");
    assert!(victim.memory().poisoned());
    // It stays so, and safe to touch.
    assert_eq!(victim.memory().write(RAM_START, b"x"), Err(MemoryError::Vanished));

    assert_usable(neighbour.memory(), RAM_START + 8 * PAGE);
}

#[test]
fn h02_control_without_the_guard_the_process_dies() {
    let run = |off: &str| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::tests::h02_memory_truncated_in_use_is_poisoned"])
            .env("OUTBOARD_CHECKS_OFF", off)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
    };
    assert!(run("").success());
    assert_eq!(run("sigbus-guard").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_fault_in_no_guest_memory_still_kills() {
    const NAME: &str = "memory::tests::a_fault_in_no_guest_memory_still_kills";
    if std::env::var_os("OUTBOARD_TEST_FAULT").is_some() {
        // The guard is on, since memory is mapped, but this mapping is not a guest's.
        let _ram = GuestRam::new(PAGE);
        let file = memfd(PAGE);
        let own = {
            let _off = Off::here(Check::SigbusGuard);
            GuestMemory::map(vec![region(0, PAGE, file.try_clone().unwrap())]).unwrap()
        };
        file.set_len(0).unwrap();
        let _never = own.read(0, &mut [0]);
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env("OUTBOARD_TEST_FAULT", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn punched_holes_are_not_faults() {
    let ram = GuestRam::new(1 << 20);
    assert_usable(ram.memory(), RAM_START);
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(ram.file(), flags, 0, 1 << 20).unwrap();
    assert_usable(ram.memory(), RAM_START);
}

#[test]
fn registrations_are_given_back() {
    for _ in 0..SLOT_COUNT + 1 {
        drop(GuestMemory::map(vec![region(0, PAGE, memfd(PAGE))]).unwrap());
    }
}

#[test]
fn a_region_inside_a_huge_page_maps_the_whole_page() {
    const HUGE: u64 = 2 << 20;
    let Ok(fd) = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) else {
        eprintln!("this kernel has no huge pages");
        return;
    };
    let file = File::from(fd);
    file.set_len(HUGE).unwrap();
    let spec = RegionSpec {
        mmap_offset: 16 * PAGE,
        ..region(RAM_START, 16 * PAGE, file)
    };
    let memory = GuestMemory::map(vec![spec]).unwrap();
    assert!(memory.check(RAM_START, 16 * 4096).is_ok());
    assert!(memory.check(RAM_START, 16 * 4096 + 1).is_err());
    // With an empty pool the first access faults, as it does when a host punched a hole. That poisons.
    match memory.write(RAM_START, b"x") {
        Ok(()) => assert!(!memory.poisoned()),
        Err(error) => assert_eq!((error, memory.poisoned()), (MemoryError::Vanished, true)),
    }
}

#[test]
fn h05_only_memory_files_are_mapped() {
    let on_disk = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.as_file().set_len(PAGE).unwrap();
    let refused = |file: File| match GuestMemory::map(vec![region(0, PAGE, file)]) {
        Err(MemoryError::NotMemoryFile { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    let in_shm = tempfile::tempfile_in("/dev/shm").unwrap();
    in_shm.set_len(PAGE).unwrap();
    assert_usable(&GuestMemory::map(vec![region(0, PAGE, in_shm)]).unwrap(), 0);

    assert!(refused(on_disk.reopen().unwrap()).contains("file system of type"));
    assert!(refused(File::open("/dev/zero").unwrap()).contains("CharacterDevice"));
    assert!(refused(File::open("/").unwrap()).contains("Directory"));
    let (reader, _writer) = std::io::pipe().unwrap();
    assert!(refused(File::from(std::os::fd::OwnedFd::from(reader))).contains("Fifo"));

    // Control: without the check a page of a file that may be served by anybody is taken.
    let _off = Off::here(Check::MemoryFileOnly);
    let writable = File::options().read(true).write(true).open(on_disk.path()).unwrap();
    assert_usable(&GuestMemory::map(vec![region(0, PAGE, writable)]).unwrap(), 0);
}

#[test]
fn memory_that_may_not_be_written_is_refused() {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(PAGE).unwrap();
    let error = GuestMemory::map(vec![region(0, PAGE, file.reopen().unwrap())]);
    assert!(error.is_ok());
    let read_only = File::open(file.path()).unwrap();
    let error = GuestMemory::map(vec![region(0, PAGE, read_only)]).unwrap_err();
    assert_eq!(
        error,
        MemoryError::System {
            guest_phys_addr: 0,
            call: "mmap",
            errno: Errno::ACCESS
        }
    );
}

#[test]
fn h10_regions_that_wrap_or_overlap_are_refused() {
    let map = |specs: Vec<RegionSpec>| GuestMemory::map(specs).map(|_| ());
    let at = |guest_phys_addr, user_addr| RegionSpec {
        user_addr,
        ..region(guest_phys_addr, 2 * PAGE, memfd(2 * PAGE))
    };
    assert_eq!(map(vec![at(0, 0), at(2 * PAGE, 2 * PAGE)]), Ok(()));

    assert_eq!(
        map(vec![at(0, 0), at(PAGE, 2 * PAGE)]),
        Err(MemoryError::Overlap { first: 0, second: PAGE })
    );
    assert_eq!(
        map(vec![at(0, 0), at(2 * PAGE, PAGE)]),
        Err(MemoryError::Overlap {
            first: 0,
            second: 2 * PAGE
        })
    );
    assert!(matches!(
        map(vec![at(u64::MAX - PAGE + 1, 0)]),
        Err(MemoryError::Wraps { .. })
    ));
    assert!(matches!(
        map(vec![at(0, u64::MAX - PAGE + 1)]),
        Err(MemoryError::Wraps { .. })
    ));
    let wrapping_file = RegionSpec {
        mmap_offset: u64::MAX - PAGE + 1,
        ..at(0, 0)
    };
    assert!(matches!(map(vec![wrapping_file]), Err(MemoryError::Wraps { .. })));
    let huge = RegionSpec {
        len: u64::MAX,
        ..at(0, 0)
    };
    assert!(matches!(map(vec![huge]), Err(MemoryError::TooMuchMemory { .. })));
    assert_eq!(
        map(vec![RegionSpec { len: 0, ..at(PAGE, 0) }]),
        Err(MemoryError::Empty { guest_phys_addr: PAGE })
    );
    assert!(matches!(map(vec![at(8, 0)]), Err(MemoryError::Misaligned { .. })));
}

#[test]
fn regions_and_bytes_are_bounded() {
    let file = memfd(PAGE);
    let specs = |count: u64| {
        (0..count)
            .map(|n| region(n * PAGE, PAGE, file.try_clone().unwrap()))
            .collect::<Vec<_>>()
    };
    let most = REGION_COUNT_MAX as u64;
    let memory = GuestMemory::map(specs(most)).unwrap();
    assert_eq!(memory.region_count(), REGION_COUNT_MAX);
    let too_many = MemoryError::TooManyRegions {
        count: REGION_COUNT_MAX + 1,
    };
    assert_eq!(GuestMemory::map(specs(most + 1)).unwrap_err(), too_many);
    assert_eq!(memory.with(region(most * PAGE, PAGE, file)).unwrap_err(), too_many);

    let sparse = memfd(GUEST_MEMORY_LEN_MAX + PAGE);
    let too_much = region(0, GUEST_MEMORY_LEN_MAX + PAGE, sparse);
    assert!(matches!(
        GuestMemory::map(vec![too_much]),
        Err(MemoryError::TooMuchMemory { .. })
    ));
}

#[test]
fn a_range_may_span_regions_that_touch() {
    let memory = GuestMemory::map(vec![region(PAGE, PAGE, memfd(PAGE)), region(0, PAGE, memfd(PAGE))]).unwrap();
    memory.write(PAGE - 2, b"abcd").unwrap();
    let mut back = [0; 4];
    memory.read(PAGE - 2, &mut back).unwrap();
    assert_eq!(&back, b"abcd");
    assert!(memory.slice(PAGE - 2, 2).is_ok());
    assert!(memory.slice(PAGE - 2, 4).is_err(), "a slice is within one region");
    assert_eq!(memory.first_piece(PAGE - 2, 4), Some(2));
    assert!(memory.check(0, 8192).is_ok());
    assert!(memory.check(0, 8193).is_err());
    assert!(memory.check(u64::MAX, 2).is_err());
}

#[test]
fn tables_share_the_regions_they_have_in_common() {
    let first = GuestMemory::map(vec![region(0, PAGE, memfd(PAGE))]).unwrap();
    let both = first.with(region(PAGE, PAGE, memfd(PAGE))).unwrap();
    both.write(0, b"shared").unwrap();
    let mut back = [0; 6];
    first.read(0, &mut back).unwrap();
    assert_eq!(&back, b"shared");

    assert_eq!(
        both.without(PAGE, PAGE, 0).unwrap_err(),
        MemoryError::NoSuchRegion {
            guest_phys_addr: PAGE,
            len: PAGE
        }
    );
    let second = both.without(0, PAGE, USER_OFFSET).unwrap();
    assert!(second.check(0, 1).is_err() && second.check(PAGE, 1).is_ok());
    drop(both);
    assert_usable(&first, 0);
}

#[test]
fn user_addresses_translate_within_their_region_only() {
    let memory = GuestMemory::map(vec![region(PAGE, PAGE, memfd(PAGE))]).unwrap();
    let user = PAGE + USER_OFFSET;
    assert_eq!(memory.user_to_guest(user), Some(PAGE));
    assert_eq!(memory.user_to_guest(user + PAGE - 1), Some(2 * PAGE - 1));
    assert_eq!(memory.user_to_guest(user + PAGE), None);
    assert_eq!(memory.user_to_guest(user - 1), None);
}

proptest! {
    #[test]
    fn an_access_is_inside_or_refused(addr in any::<u64>(), near in 0u64..5 * PAGE, len in 0usize..12_000) {
        let memory = GuestMemory::map(vec![
            region(PAGE, PAGE, memfd(PAGE)),
            region(2 * PAGE, PAGE, memfd(PAGE)),
        ]).unwrap();
        for addr in [addr, near] {
            let end = addr.checked_add(len as u64);
            let inside = len == 0 && end.is_some() || addr >= PAGE && end.is_some_and(|end| end <= 3 * PAGE);
            prop_assert_eq!(memory.check(addr, len).is_ok(), inside);
            prop_assert_eq!(memory.read(addr, &mut vec![0; len]).is_ok(), inside);
            prop_assert_eq!(memory.write(addr, &vec![1; len]).is_ok(), inside);
            prop_assert!(len == 0 || memory.slice(addr, len).is_err() || inside);
        }
    }
}
