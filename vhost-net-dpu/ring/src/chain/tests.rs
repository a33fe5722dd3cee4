use proptest::prelude::*;

use super::*;
use crate::driver::{GuestRam, RAM_START};

/// Segments of the given lengths, one behind the other with a gap of a byte.
fn chain(ram: &GuestRam, readable: &[u32], writable: &[u32]) -> Chain {
    let mut chain = Chain::new();
    for (&len, write) in readable
        .iter()
        .map(|len| (len, false))
        .chain(writable.iter().map(|len| (len, true)))
    {
        assert!(chain.push(
            Segment {
                addr: ram.alloc(u64::from(len) + 1, 1),
                len
            },
            write
        ));
    }
    chain
}

#[test]
fn bytes_are_copied_across_segments() {
    let ram = GuestRam::new(1 << 16);
    let chain = chain(&ram, &[3, 1, 4], &[2, 5]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 7));
    for (segment, bytes) in chain.readable().iter().zip(["abc", "d", "efgh"]) {
        ram.memory().write(segment.addr, bytes.as_bytes()).unwrap();
    }
    let mut buf = [0; 4];
    chain.read_at(ram.memory(), 2, &mut buf).unwrap();
    assert_eq!(&buf, b"cdef");
    chain.write_at(ram.memory(), 1, b"123456").unwrap();
    let written: Vec<u8> = chain
        .writable()
        .iter()
        .flat_map(|segment| {
            let mut bytes = vec![0; segment.len as usize];
            ram.memory().read(segment.addr, &mut bytes).unwrap();
            bytes
        })
        .collect();
    assert_eq!(written, b"\x00123456");
}

#[test]
fn nothing_is_copied_past_the_end() {
    let ram = GuestRam::new(1 << 16);
    let chain = chain(&ram, &[3], &[2]);
    let short = |direction, chain_len, wanted| {
        Err(ChainError::TooShort {
            direction,
            chain_len,
            wanted,
        })
    };
    assert_eq!(chain.read_at(ram.memory(), 0, &mut [0; 4]), short("readable", 3, 4));
    assert_eq!(
        chain.read_at(ram.memory(), u64::MAX, &mut [0; 4]),
        short("readable", 3, u64::MAX)
    );
    assert_eq!(chain.write_at(ram.memory(), 1, &[0; 2]), short("writable", 2, 3));
    assert_eq!(chain.read_at(ram.memory(), 3, &mut []), Ok(()));
    let len = 3;
    assert_eq!(
        copy(ram.memory(), &chain, 0, ram.memory(), &chain, 0, len),
        short("writable", 2, 3)
    );
}

#[test]
#[cfg_attr(miri, ignore = "miri maps no files")]
fn a_copy_from_memory_that_is_gone_is_an_error() {
    let (ram, other) = (GuestRam::new(1 << 16), GuestRam::new(1 << 16));
    let (src, dst) = (chain(&ram, &[8], &[]), chain(&other, &[], &[8]));
    assert_eq!(copy(ram.memory(), &src, 0, other.memory(), &dst, 0, 8), Ok(()));
    ram.file().set_len(0).unwrap();
    let gone = Err(ChainError::Memory(MemoryError::Vanished));
    assert_eq!(copy(ram.memory(), &src, 0, other.memory(), &dst, 0, 8), gone);
    assert_eq!(other.memory().write(RAM_START, b"x"), Ok(()), "the other guest goes on");
}

#[test]
#[cfg_attr(miri, ignore = "miri maps no files")]
fn a_chain_crosses_from_region_to_region_only_so_often() {
    const RING_LEN: u64 = 1 << 16;
    const TINY_LEN: u64 = 16;
    let region = |guest_phys_addr: u64, len: u64| {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        crate::RegionSpec {
            guest_phys_addr,
            len,
            user_addr: guest_phys_addr,
            mmap_offset: 0,
            file: file.into(),
        }
    };
    let tiny = (0..100).map(|n| region(RING_LEN + n * TINY_LEN, TINY_LEN));
    let mem = GuestMemory::map([region(0, RING_LEN)].into_iter().chain(tiny).collect()).unwrap();
    let config = crate::RingConfig {
        size: 128,
        desc: 0,
        avail: 0x4000,
        used: 0x8000,
        base: 0,
        features: 0,
    };
    let layout = crate::layout::Layout::new(&config, &mem).unwrap();
    let walk = |regions: u64| {
        let descriptor = crate::Descriptor {
            addr: RING_LEN,
            len: u32::try_from(regions * TINY_LEN).unwrap(),
            flags: 0,
            next: 0,
        };
        let mut chain = Chain::new();
        crate::walk::walk(&layout, &mem, (0, descriptor), &mut chain, &mut 0).map(|()| chain.readable().len())
    };
    assert_eq!(walk(1), Ok(1));
    let most = u64::from(crate::walk::CROSSING_COUNT_MAX) + 1;
    assert_eq!(walk(most), Ok(65));
    assert_eq!(walk(most + 1), Err(crate::ChainFault::TooManyCrossings));
}

proptest! {
    #[test]
    fn a_copy_between_guests_moves_exactly_its_bytes(
        from in prop::collection::vec(1u32..50, 1..6),
        to in prop::collection::vec(1u32..50, 1..6),
        src_at in 0usize..60, dst_at in 0usize..60, len in 0usize..120,
    ) {
        let (ram, other) = (GuestRam::new(1 << 16), GuestRam::new(1 << 16));
        let (src, dst) = (chain(&ram, &from, &[]), chain(&other, &[], &to));
        let source: Vec<u8> = (0..=255).cycle().take(from.iter().sum::<u32>() as usize).collect();
        let mut at = 0;
        for segment in src.readable() {
            ram.memory().write(segment.addr, &source[at..at + segment.len as usize]).unwrap();
            at += segment.len as usize;
        }
        let fits = (src_at + len) as u64 <= src.readable_len() && (dst_at + len) as u64 <= dst.writable_len();
        let done = copy(ram.memory(), &src, src_at as u64, other.memory(), &dst, dst_at as u64, len);
        prop_assert_eq!(done.is_ok(), fits);
        let mut there = Vec::new();
        for segment in dst.writable() {
            let mut bytes = vec![0; segment.len as usize];
            other.memory().read(segment.addr, &mut bytes).unwrap();
            there.extend(bytes);
        }
        let mut expected = vec![0; there.len()];
        if fits {
            expected[dst_at..dst_at + len].copy_from_slice(&source[src_at..src_at + len]);
        }
        prop_assert_eq!(there, expected);
    }
}
