//! Nothing is written to guest memory that the device no longer has: neither late, nor more than it says.

use std::sync::mpsc::TryRecvError;

use crate::{DEFAULT_FEATURES, FORMAT};
use outboard_controls::{Check, Off};
use outboard_ring::RingFormat;
use outboard_storage::{Backend, MemoryBackend, open_file};

use crate::{
    gated::gated,
    guest::{Guest, S_OK, T_IN, T_OUT, UNTOUCHED, config, header},
    lifecycle::stop,
};

const MIB: u64 = 1 << 20;
const S_IOERR: u8 = 1;
const READS: u64 = 1000;
/// What the guest uses its memory for once the device has stopped.
const REUSED: u8 = 0x5a;

/// A guest with a queue of 1024, and a thousand reads in it, each of a header, a sector and a status.
fn guest_with_a_thousand_reads(backend: Box<dyn Backend>) -> (Guest, u64) {
    let mut guest = Guest::with_queue(config(MIB), backend, DEFAULT_FEATURES, 1024);
    let start = guest.ram.alloc(1024 * READS, 1024);
    for n in 0..READS {
        let at = start + 1024 * n;
        guest.driver.write(at, &header(T_IN, n));
        guest
            .driver
            .add_indirect(&[(at, 16)], &[(at + 16, 512), (at + 528, 1)])
            .expect("there is room");
    }
    guest.driver.publish();
    (guest, start)
}

fn reuse(guest: &Guest, start: u64) {
    guest.driver.write(start, &[REUSED; 1024 * READS as usize]);
}

fn is_as_the_guest_left_it(guest: &Guest, start: u64) -> bool {
    let bytes = guest.driver.read(start, 1024 * READS as usize);
    bytes.iter().all(|&byte| byte == REUSED)
}

/// Where a queue stands of which a thousand chains were taken, each of one descriptor, and `used` were given back.
fn taken(used: u32) -> u32 {
    match FORMAT {
        RingFormat::Split => 1000,
        RingFormat::Packed => 0x8000_8000 | used << 16 | 1000,
    }
}

/// A queue with a thousand requests in flight says that it stopped only when the last of them can write no more.
#[test]
fn h29_a_queue_that_stopped_writes_nothing_late() {
    let (backend, gate) = gated(1024);
    let (mut guest, start) = guest_with_a_thousand_reads(backend);
    while guest.unit.in_flight() < READS as usize {
        assert!(guest.breathe());
    }
    let stopped = stop(&mut guest.unit);
    for _ in 0..READS {
        assert_eq!(stopped.try_recv(), Err(TryRecvError::Empty), "requests are in flight");
        gate.send(()).expect("the backend listens");
        guest.breathe();
    }
    assert_eq!(stopped.try_recv(), Ok(Some(taken(1000))));
    assert_eq!(guest.unit.in_flight(), 0);
    reuse(&guest, start);
    for _ in 0..10 {
        guest.breathe();
    }
    assert!(is_as_the_guest_left_it(&guest, start));
}

#[test]
fn control_a_queue_that_does_not_wait_for_its_requests_writes_late() {
    let (backend, gate) = gated(1024);
    let (mut guest, start) = guest_with_a_thousand_reads(backend);
    while guest.unit.in_flight() < READS as usize {
        assert!(guest.breathe());
    }
    let _off = Off::here(Check::StopDrains);
    assert_eq!(stop(&mut guest.unit).try_recv(), Ok(Some(taken(0))));
    reuse(&guest, start);
    for _ in 0..READS {
        gate.send(()).expect("the backend listens");
        guest.breathe();
    }
    assert!(!is_as_the_guest_left_it(&guest, start));
}

/// The same with the kernel writing to guest memory.
#[test]
fn h29_reads_of_a_file_are_not_late_either() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![7; MIB as usize]).expect("it is written");
    for breaths in [1, 2, 5] {
        let backend = Box::new(open_file(file.path(), MIB, false).expect("it opens"));
        let (mut guest, start) = guest_with_a_thousand_reads(backend);
        for _ in 0..breaths {
            guest.breathe();
        }
        let stopped = stop(&mut guest.unit);
        let base = loop {
            guest.breathe();
            match stopped.try_recv() {
                Ok(base) => break base.expect("it ran"),
                Err(TryRecvError::Empty) => std::thread::yield_now(),
                Err(gone) => panic!("{gone}"),
            }
        };
        let mut answered = 0;
        while let Some((_, used_len)) = guest.driver.used() {
            assert_eq!(used_len, 513);
            answered += 1;
        }
        if FORMAT == RingFormat::Split {
            assert_eq!(answered, base, "what was taken is answered");
        }
        let index = answered;
        reuse(&guest, start);
        std::thread::sleep(std::time::Duration::from_millis(20));
        guest.breathe();
        assert!(is_as_the_guest_left_it(&guest, start));
        // It goes on where it stopped.
        for n in u64::from(index)..READS {
            let at = start + 1024 * n;
            guest.driver.write(at, &header(T_IN, n));
        }
        guest.start(base);
        for _ in u64::from(index)..READS {
            assert_eq!(guest.wait_used().1, 513);
        }
    }
}

/// What the device says that it wrote, it wrote, and with nothing but the volume's own bytes.
#[test]
fn h30_a_read_that_fails_claims_nothing_and_leaks_nothing() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![b'v'; 64 << 10]).expect("it is written");
    let backend = open_file(file.path(), 64 << 10, false).expect("it opens");
    let mut guest = Guest::new(config(64 << 10), Box::new(backend), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_IN, 0, &[], 1024), (S_OK, 1025, vec![b'v'; 1024]));
    file.as_file().set_len(700).expect("anybody may truncate it");
    for sector in [0, 1, 2, 100] {
        let (status, used_len, data) = guest.run(T_IN, sector, &[], 1024);
        assert_eq!((status, used_len), (S_IOERR, 0), "sector {sector}");
        assert!(
            data.iter().all(|byte| [b'v', UNTOUCHED].contains(byte)),
            "sector {sector}"
        );
    }
    file.as_file().set_len(64 << 10).expect("it may grow again");
    assert_eq!(guest.run(T_IN, 100, &[], 512), (S_OK, 513, vec![0; 512]));
}

/// Room for more than is read stays as it is: a chain says how long a request is, and nothing else does.
#[test]
fn h33_a_request_is_as_long_as_its_descriptors() {
    let mut guest = Guest::new(config(MIB), Box::new(MemoryBackend::new(MIB, false)), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_OUT, 0, &[7; 1536], 0).0, S_OK);
    for (len, whole) in [(512, true), (1024, true), (1025, false), (1535, false), (1, false)] {
        let (status, used_len, data) = guest.run(T_IN, 0, &[], len);
        if whole {
            assert_eq!((status, used_len), (S_OK, len + 1));
            assert!(data.iter().all(|&byte| byte == 7));
        } else {
            assert_eq!((status, used_len), (S_IOERR, 0), "{len}");
            assert!(data.iter().all(|&byte| byte == UNTOUCHED), "{len}");
        }
    }
    // Readable bytes in a read, writable ones in a write: the lengths of the wrong direction count too.
    assert_eq!(guest.run(T_IN, 0, &[1; 512], 512).0, S_IOERR);
    assert_eq!(guest.run(T_OUT, 0, &[1; 512], 512).0, S_IOERR);
    assert_eq!(guest.run(T_IN, 0, &[], 512).2, [7; 512]);
}
