//! What a hostile driver does. Each attack comes between requests that are served, and with the check that stops it
//! turned off it succeeds.

use std::os::unix::fs::FileExt;

use crate::DEFAULT_FEATURES;
use outboard_controls::{Check, Off};
use outboard_ring::{DESC_F_NEXT, DESC_F_WRITE, Descriptor, driver::RAM_START};
use outboard_storage::{MemoryBackend, open_file};
use proptest::prelude::*;
use vhost_blk_dpu::{BlkConfig, VolumeCounters};

use crate::guest::{Guest, S_OK, T_FLUSH, T_IN, T_OUT, UNTOUCHED, config, header};

const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;
const T_SCSI_CMD: u32 = 2;
const T_GET_ID: u32 = 8;
const KIB: u64 = 1 << 10;
/// Sectors of the volumes here.
const SECTORS: u64 = 128;

fn memory_guest(read_only: bool) -> Guest {
    let config = BlkConfig {
        read_only,
        ..config(64 * KIB)
    };
    Guest::new(config, Box::new(MemoryBackend::new(64 * KIB, false)), DEFAULT_FEATURES)
}

fn still_serves(guest: &mut Guest) {
    assert_eq!(guest.run(T_IN, SECTORS - 1, &[], 512).0, S_OK);
}

/// A volume in a file that goes on, with something secret, where the volume ends.
fn guest_before_a_secret() -> (Guest, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file()
        .write_all_at(&[b's'; 4096], 64 * KIB)
        .expect("it is written");
    let backend = open_file(file.path(), 64 * KIB, false).expect("it opens");
    (Guest::new(config(64 * KIB), Box::new(backend), DEFAULT_FEATURES), file)
}

#[test]
fn h52_requests_beyond_the_end_are_refused() {
    let (mut guest, file) = guest_before_a_secret();
    still_serves(&mut guest);
    // Across the end, at the end, wrapping in sectors, in bytes, and by one.
    let beyond = [
        SECTORS - 1,
        SECTORS,
        u64::MAX / 512,
        u64::MAX / 512 + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    for sector in beyond {
        let (status, used_len, data) = guest.run(T_IN, sector, &[], 1024);
        assert_eq!((status, used_len), (S_IOERR, 0), "read at {sector}");
        assert!(!data.contains(&b's'));
        assert_eq!(
            guest.run(T_OUT, sector, &[b'!'; 1024], 0).0,
            S_IOERR,
            "write at {sector}"
        );
    }
    still_serves(&mut guest);
    let expected = VolumeCounters {
        reads: 2,
        read_bytes: 1024,
        refused: 12,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
    drop(guest);
    let mut secret = [0; 4096];
    file.as_file()
        .read_exact_at(&mut secret, 64 * KIB)
        .expect("it is there");
    assert_eq!(secret, [b's'; 4096]);
}

#[test]
fn control_without_the_range_check_a_guest_reads_what_lies_behind_its_volume() {
    let (mut guest, _file) = guest_before_a_secret();
    let _off = Off::here(Check::VolumeRange);
    assert_eq!(guest.run(T_IN, SECTORS, &[], 512), (S_OK, 513, vec![b's'; 512]));
}

#[test]
fn h52_h33_lengths_that_are_not_whole_sectors_or_do_not_fit_the_type_are_refused() {
    let mut guest = memory_guest(false);
    still_serves(&mut guest);
    let bad: [(u32, &[u8], u32); 12] = [
        (T_IN, &[], 0),
        (T_IN, &[], 511),
        (T_IN, &[], 513),
        (T_IN, &[0; 512], 512),
        (T_OUT, &[], 0),
        (T_OUT, &[1; 511], 0),
        (T_OUT, &[1; 513], 0),
        (T_OUT, &[1; 512], 512),
        (T_FLUSH, &[1; 512], 0),
        (T_FLUSH, &[], 512),
        (T_GET_ID, &[], 19),
        (T_GET_ID, &[], 21),
    ];
    for (kind, data, read_len) in bad {
        let (status, used_len, read) = guest.run(kind, 0, data, read_len);
        assert_eq!(status, S_IOERR, "type {kind}, {} bytes, {read_len} bytes", data.len());
        assert_eq!(
            used_len,
            u32::from(read_len == 0),
            "no more than was written, from the start on"
        );
        assert!(
            read.iter().all(|&byte| byte == UNTOUCHED),
            "nothing was written but the status"
        );
    }
    still_serves(&mut guest);
    let expected = VolumeCounters {
        reads: 2,
        read_bytes: 1024,
        refused: 12,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
}

#[test]
fn h33_control_without_the_check_a_request_for_one_sector_changes_the_next() {
    let mut guest = memory_guest(false);
    let _off = Off::here(Check::RequestLength);
    assert_eq!(guest.run(T_OUT, 0, &[9; 513], 0).0, S_OK);
    assert_eq!(guest.run(T_IN, 1, &[], 512).2[..2], [9, 0]);
}

#[test]
fn h53_types_that_were_not_negotiated_are_unsupported() {
    let backend = Box::new(MemoryBackend::new(64 * KIB, false));
    let mut guest = Guest::new(config(64 * KIB), backend, DEFAULT_FEATURES & !(1 << 13 | 1 << 14));
    // SCSI in both of its forms, discard, write-zeroes, secure erase, a zone append, anything.
    for kind in [T_SCSI_CMD, 3, 11, 13, 14, 15, 0x8000_0000, 1 << 16 | T_IN, u32::MAX] {
        assert_eq!(guest.run(kind, 0, &[0x2a; 64], 512).0, S_UNSUPP, "type {kind}");
    }
    still_serves(&mut guest);
    let expected = VolumeCounters {
        reads: 1,
        read_bytes: 512,
        unsupported: 9,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
}

#[test]
fn h53_a_read_only_volume_is_not_written_whatever_the_driver_negotiated() {
    let mut guest = memory_guest(true);
    still_serves(&mut guest);
    assert_eq!(guest.run(T_OUT, 0, &[9; 512], 0).0, S_IOERR);
    assert_eq!(guest.run(T_IN, 0, &[], 512), (S_OK, 513, vec![0; 512]));
    assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
}

#[test]
fn control_without_the_check_a_read_only_volume_is_written() {
    let mut guest = memory_guest(true);
    let _off = Off::here(Check::VolumeReadOnly);
    assert_eq!(guest.run(T_OUT, 0, &[9; 512], 0).0, S_OK);
    assert_eq!(guest.run(T_IN, 0, &[], 512).2, [9; 512]);
}

/// A guest that writes the header of another format to its volume could otherwise have the host's files opened for it
/// as backing files, when its volume is next opened.
#[test]
fn h54_a_volume_that_begins_like_another_format_stays_raw() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(64 * KIB).expect("its size");
    let open = || Box::new(open_file(file.path(), 64 * KIB, false).expect("it opens"));
    let mut qcow2 = vec![0; 512];
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    // Backing file at byte 104, 11 bytes long; a virtual size of 1 GiB.
    qcow2[8..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 104, 0, 0, 0, 11, 0, 0, 0, 16]);
    qcow2[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
    qcow2[104..115].copy_from_slice(b"/etc/passwd");

    let mut guest = Guest::new(config(64 * KIB), open(), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_OUT, 0, &qcow2, 0).0, S_OK);
    assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
    drop(guest);

    let mut guest = Guest::new(config(64 * KIB), open(), DEFAULT_FEATURES);
    assert_eq!(
        guest.unit.config_space()[..8],
        SECTORS.to_le_bytes(),
        "its size is that of the file"
    );
    assert_eq!(guest.run(T_IN, 0, &[], 512), (S_OK, 513, qcow2));
    still_serves(&mut guest);
}

/// A header that is too short, and a status byte that may not be written, or is not there.
#[test]
fn a_request_without_header_or_status_harms_nobody() {
    let mut guest = memory_guest(false);
    let at = guest.ram.alloc(32, 16);
    guest.driver.write(at, &header(T_IN, 0));

    guest.driver.add(&[(at, 15)], &[(at + 16, 1)]).expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, 1);
    assert_eq!(guest.driver.read(at + 16, 1), [S_IOERR]);

    guest.driver.add(&[], &[(at + 16, 1)]).expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, 1);

    let before = guest.driver.read(at, 32);
    guest.driver.add(&[(at, 16), (at + 16, 1)], &[]).expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, 0, "nothing was written");
    assert_eq!(guest.driver.read(at, 32), before);

    still_serves(&mut guest);
    let expected = VolumeCounters {
        reads: 1,
        read_bytes: 512,
        refused: 3,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
}

/// A malformed chain breaks its queue, and that of nobody else.
#[test]
fn a_malformed_chain_breaks_its_queue_and_no_other() {
    let (addr, next) = (RAM_START, 1);
    let writable_first = Descriptor {
        addr,
        len: 16,
        flags: DESC_F_WRITE | DESC_F_NEXT,
        next,
    };
    let wraps = Descriptor {
        addr: u64::MAX - 8,
        len: 16,
        flags: 0,
        next: 0,
    };
    let unmapped = Descriptor {
        addr: 0,
        len: 16,
        flags: 0,
        next: 0,
    };
    let mut neighbour = memory_guest(false);
    for first in [writable_first, wraps, unmapped] {
        let mut guest = memory_guest(false);
        still_serves(&mut guest);
        let second = Descriptor {
            addr: addr + 4096,
            len: 16,
            flags: 0,
            next: 0,
        };
        guest.driver.offer_chain(&[first, second]);
        guest.driver.publish();
        guest.breathe();
        // Nothing that comes after is looked at.
        guest.driver.offer(1);
        guest.driver.publish();
        for _ in 0..10 {
            guest.breathe();
        }
        assert_eq!(guest.driver.used(), None);
        let expected = VolumeCounters {
            reads: 1,
            read_bytes: 512,
            broken_queues: 1,
            ..VolumeCounters::default()
        };
        assert_eq!(guest.unit.counters(), expected);
        assert!(!guest.unit.before_sleep(), "a broken queue keeps no worker awake");
        still_serves(&mut neighbour);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever a request is made of, it is answered once and nothing outside its buffers changes.
    #[test]
    fn h30_h33_arbitrary_requests_are_answered_once(
        requests in proptest::collection::vec(
            (
                proptest::collection::vec(any::<u8>(), 0..24),
                proptest::option::of((prop_oneof![0u32..16, any::<u32>()], prop_oneof![0u64..130, any::<u64>()])),
                0usize..1100,
                proptest::collection::vec(1u32..1100, 0..3),
            ),
            1..12,
        ),
    ) {
        let mut guest = memory_guest(false);
        for (junk, sensible, data_len, writable) in requests {
            let head = sensible.map_or(junk, |(kind, sector)| header(kind, sector).to_vec());
            let data = vec![0xab; data_len];
            let readable: Vec<&[u8]> = [&head[..], &data].into_iter().filter(|part| !part.is_empty()).collect();
            if readable.is_empty() && writable.is_empty() {
                continue;
            }
            let added = guest.driver.add_bytes(&readable, &writable).expect("there is room");
            guest.driver.publish();
            let (used_head, used_len) = guest.wait_used();
            prop_assert_eq!(used_head, added.head);
            prop_assert!(used_len <= writable.iter().sum());
            prop_assert_eq!(guest.driver.used(), None);
            if let Some(&(addr, len)) = added.writable.last() {
                let status = guest.driver.read(addr + u64::from(len) - 1, 1)[0];
                prop_assert!(status <= S_UNSUPP);
            }
            for (&(addr, len), part) in added.readable.iter().zip(&readable) {
                prop_assert_eq!(&guest.driver.read(addr, len as usize), part);
            }
        }
        still_serves(&mut guest);
    }
}
