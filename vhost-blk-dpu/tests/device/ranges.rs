//! Discarding and zeroing.

use crate::DEFAULT_FEATURES;
use outboard_controls::{Check, Off};
use outboard_ring::driver::Added;
use outboard_storage::{
    MemoryBackend, NullBackend, open_file,
    recording::{DISCARDED, Recording},
};
use vhost_blk_dpu::{BlkConfig, DISCARD_SECTORS_MAX, VolumeCounters, ZEROES_SECTORS_MAX};

use crate::guest::{Guest, S_OK, T_DISCARD, T_IN, T_OUT, T_WRITE_ZEROES, config};

const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;
const MIB: u64 = 1 << 20;
const UNMAP: u32 = 1;

/// A range as the driver writes it.
fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

/// Carry out a request for ranges: its status.
fn run(guest: &mut Guest, kind: u32, ranges: &[[u8; 16]]) -> u8 {
    let (status, used_len, _) = guest.run(kind, 0, ranges.as_flattened(), 0);
    assert_eq!(used_len, 1, "the status and nothing else is written");
    status
}

fn fill(guest: &mut Guest, sectors: std::ops::Range<u64>, byte: u8) {
    for sector in sectors {
        assert_eq!(guest.run(T_OUT, sector, &[byte; 512], 0).0, S_OK);
    }
}

fn bytes_at(guest: &mut Guest, sectors: &[u64]) -> Vec<u8> {
    let byte_at = |&sector: &u64| {
        let (status, _, data) = guest.run(T_IN, sector, &[], 512);
        assert!(status == S_OK && data.iter().all(|&byte| byte == data[0]));
        data[0]
    };
    sectors.iter().map(byte_at).collect()
}

fn memory_guest(read_only: bool) -> Guest {
    let config = BlkConfig {
        read_only,
        ..config(MIB)
    };
    // More than the volume, so that there is something behind its end.
    Guest::new(config, Box::new(MemoryBackend::new(2 * MIB, false)), DEFAULT_FEATURES)
}

#[test]
fn each_range_of_a_request_is_done_and_nothing_beside_it() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MIB).expect("its size");
    let tmpfs = tempfile::NamedTempFile::new_in("/dev/shm").expect("Linux has it");
    tmpfs.as_file().set_len(MIB).expect("its size");
    let open = |file: &tempfile::NamedTempFile| Box::new(open_file(file.path(), MIB, false).expect("it opens"));
    let guests = [
        Guest::new(config(MIB), open(&file), DEFAULT_FEATURES),
        Guest::new(config(MIB), open(&tmpfs), DEFAULT_FEATURES),
        memory_guest(false),
        Guest::new(
            config(MIB),
            Box::new(Recording::new(MIB, false).shuffled_backend(3)),
            DEFAULT_FEATURES,
        ),
    ];
    for mut guest in guests {
        fill(&mut guest, 0..40, 7);
        let ranges = [range(1, 2, 0), range(8, 8, UNMAP), range(30, 1, 0)];
        assert_eq!(run(&mut guest, T_WRITE_ZEROES, &ranges), S_OK);
        let read = bytes_at(&mut guest, &[0, 1, 2, 3, 7, 8, 15, 16, 29, 30, 31]);
        assert_eq!(read, [7, 0, 0, 7, 7, 0, 0, 7, 7, 0, 7]);
        assert_eq!(run(&mut guest, T_DISCARD, &[range(16, 8, 0), range(0, 1, 0)]), S_OK);
        assert_eq!(bytes_at(&mut guest, &[3, 24, 39]), [7, 7, 7]);
        for discarded in bytes_at(&mut guest, &[0, 16, 23]) {
            assert!([0, 7, DISCARDED[0]].contains(&discarded), "{discarded}: of nobody else");
        }
        let counters = guest.unit.counters();
        assert_eq!((counters.zeroes, counters.zeroed_bytes), (1, 11 * 512));
        assert_eq!((counters.discards, counters.discarded_bytes), (1, 9 * 512));
    }
}

/// As many ranges as may be, each as long as it may be, on a volume that is larger than all of them.
#[test]
fn the_largest_requests_end() {
    let size_bytes = 64 << 30;
    let mut guest = Guest::new(
        config(size_bytes),
        Box::new(MemoryBackend::new(size_bytes, false)),
        DEFAULT_FEATURES,
    );
    let longest = |sectors: u32, flags| -> Vec<[u8; 16]> {
        (0..16).map(|n| range(n * u64::from(sectors), sectors, flags)).collect()
    };
    let last = 16 * u64::from(ZEROES_SECTORS_MAX) - 1;
    fill(&mut guest, last..last + 2, 7);
    assert_eq!(
        run(&mut guest, T_WRITE_ZEROES, &longest(ZEROES_SECTORS_MAX, UNMAP)),
        S_OK
    );
    assert_eq!(bytes_at(&mut guest, &[last, last + 1]), [0, 7]);
    assert_eq!(run(&mut guest, T_DISCARD, &longest(DISCARD_SECTORS_MAX, 0)), S_OK);
    assert_eq!(bytes_at(&mut guest, &[last + 1]), [0], "which memory frees");
}

/// More discards than the controller works on at once; a read goes by.
#[test]
fn discards_that_wait_hold_nothing_else_back() {
    let size_bytes = 64 << 30;
    let mut guest = Guest::new(
        config(size_bytes),
        Box::new(NullBackend::new(size_bytes, false)),
        DEFAULT_FEATURES,
    );
    let long = [range(0, DISCARD_SECTORS_MAX, 0); 16];
    let discards: Vec<Added> = (0..16)
        .map(|_| guest.add(T_DISCARD, 0, long.as_flattened(), 0))
        .collect();
    let read = guest.add(T_IN, 0, &[], 512);
    assert_eq!(guest.wait_used(), (read.head, 513), "before any of the discards ends");
    let mut heads: Vec<u16> = discards.iter().map(|_| guest.wait_used().0).collect();
    heads.sort_unstable();
    let mut expected: Vec<u16> = discards.iter().map(|added| added.head).collect();
    expected.sort_unstable();
    assert_eq!(heads, expected);
    assert!(discards.iter().all(|added| guest.status(added) == S_OK));
}

const LAST: u64 = 2047;

/// Ranges beyond the volume, of no or too many sectors, with flags that are not theirs.
fn bad_ranges() -> Vec<(u32, [u8; 16], u8)> {
    let mut bad = Vec::new();
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        let max = if kind == T_DISCARD {
            DISCARD_SECTORS_MAX
        } else {
            ZEROES_SECTORS_MAX
        };
        for (sector, sectors) in [
            (LAST, 2),
            (LAST + 1, 1),
            (u64::MAX, 1),
            (u64::MAX - 1, 2),
            (u64::MAX / 512, 8),
            (0, 0),
            (0, max + 1),
            (0, u32::MAX),
        ] {
            bad.push((kind, range(sector, sectors, 0), S_IOERR));
        }
        for flags in [2, 3, 1 << 31, u32::MAX] {
            bad.push((kind, range(0, 1, flags), S_UNSUPP));
        }
    }
    bad.push((T_DISCARD, range(0, 1, UNMAP), S_UNSUPP));
    bad
}

#[test]
fn h52_a_request_with_one_bad_range_changes_nothing() {
    let mut guest = memory_guest(false);
    fill(&mut guest, 0..1, 7);
    let bad = bad_ranges();
    let unsupported = bad.iter().filter(|(_, _, status)| *status == S_UNSUPP).count() as u64;
    let refused = bad.len() as u64 - unsupported;
    for (kind, bad, status) in bad {
        let good = range(0, 1, 0);
        assert_eq!(run(&mut guest, kind, &[good, bad]), status, "{kind}: {bad:?}");
        assert_eq!(bytes_at(&mut guest, &[0]), [7], "{kind}: {bad:?}");
    }
    let counters = guest.unit.counters();
    let expected = VolumeCounters {
        writes: 1,
        written_bytes: 512,
        reads: unsupported + refused,
        read_bytes: (unsupported + refused) * 512,
        unsupported,
        refused,
        ..VolumeCounters::default()
    };
    assert_eq!(counters, expected);
}

#[test]
fn h33_the_number_of_ranges_is_checked() {
    let mut guest = memory_guest(false);
    for kind in [T_DISCARD, T_WRITE_ZEROES] {
        assert_eq!(run(&mut guest, kind, &[range(0, 1, 0); 16]), S_OK);
        assert_eq!(run(&mut guest, kind, &[]), S_IOERR, "none");
        assert_eq!(run(&mut guest, kind, &[range(0, 1, 0); 17]), S_IOERR, "one too many");
        for len in [1, 15, 17, 31] {
            assert_eq!(guest.run(kind, 0, &[0; 32][..len], 0).0, S_IOERR, "{len} bytes");
        }
        let (status, used_len, data) = guest.run(kind, 0, &range(0, 1, 0), 512);
        assert_eq!((status, used_len), (S_IOERR, 0), "room for data that there is none of");
        assert!(data.iter().all(|&byte| byte == crate::guest::UNTOUCHED));

        // As many as a chain can say: 65,535 ranges in one buffer that is used again and again.
        let at = guest.ram.alloc(64 << 10, 16);
        guest.driver.write(at, &crate::guest::header(kind, 0));
        let mut readable = vec![(at, 16)];
        readable.extend([(at, 64 << 10); 15]);
        readable.push((at, (64 << 10) - 16));
        guest.driver.add(&readable, &[(at, 1)]).expect("there is room");
        guest.driver.publish();
        assert_eq!(guest.wait_used().1, 1);
        assert_eq!(guest.driver.read(at, 1), [S_IOERR]);
    }
}

#[test]
fn control_without_the_range_check_what_lies_behind_the_volume_is_zeroed() {
    let mut guest = memory_guest(false);
    let _off = Off::here(Check::VolumeRange);
    fill(&mut guest, LAST + 1..LAST + 2, 7);
    assert_eq!(run(&mut guest, T_WRITE_ZEROES, &[range(LAST, 2, 0)]), S_OK);
    assert_eq!(bytes_at(&mut guest, &[LAST + 1]), [0]);
    fill(&mut guest, LAST + 1..LAST + 2, 7);
    assert_eq!(run(&mut guest, T_DISCARD, &[range(LAST + 1, 1, 0)]), S_OK);
    assert_eq!(bytes_at(&mut guest, &[LAST + 1]), [0]);
}

/// A read-only volume offers neither, and a driver that uses them all the same, as if it had negotiated them, is refused.
#[test]
fn h53_a_read_only_volume_is_neither_discarded_nor_zeroed() {
    for features in [DEFAULT_FEATURES, DEFAULT_FEATURES & !(1 << 13 | 1 << 14)] {
        let config = BlkConfig {
            read_only: true,
            ..config(MIB)
        };
        let recording = Recording::new(MIB, false);
        let mut guest = Guest::new(config, Box::new(recording.backend()), features);
        let negotiated = features == DEFAULT_FEATURES;
        for kind in [T_DISCARD, T_WRITE_ZEROES] {
            let status = run(&mut guest, kind, &[range(0, 1, 0)]);
            assert_eq!(status, if negotiated { S_IOERR } else { S_UNSUPP });
        }
        assert_eq!(bytes_at(&mut guest, &[0]), [0]);
        assert_eq!(recording.writes(), 0);
    }
}

#[test]
fn control_without_the_check_a_read_only_volume_is_discarded() {
    let recording = Recording::new(MIB, false);
    let config = BlkConfig {
        read_only: true,
        ..config(MIB)
    };
    let mut guest = Guest::new(config, Box::new(recording.backend()), DEFAULT_FEATURES);
    let _off = Off::here(Check::VolumeReadOnly);
    assert_eq!(run(&mut guest, T_DISCARD, &[range(0, 1, 0)]), S_OK);
    assert_eq!(recording.sector(0), DISCARDED);
}
