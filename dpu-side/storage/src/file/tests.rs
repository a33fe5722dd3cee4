use std::fs::OpenOptions;

use nix::fcntl::FlockArg;
use outboard_ring::{Segment, driver::GuestRam};

use super::{means::Means, *};
use crate::Buffer;

/// `/dev/zero` takes writes and refuses `fdatasync`.
fn backend_that_cannot_sync() -> FileBackend {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/zero")
        .expect("it is there");
    let file = Flock::lock(file, FlockArg::LockSharedNonblock)
        .map_err(|(_, errno)| errno)
        .expect("it can be locked");
    FileBackend::new(
        file,
        Geometry {
            size_bytes: 1 << 20,
            read_only: false,
        },
    )
    .expect("io_uring works here")
}

fn request(ram: &GuestRam, tag: u64, op: Op) -> Request {
    let mut buffer = Buffer::new();
    if op != Op::Flush {
        let segment = Segment {
            addr: ram.alloc(512, 512),
            len: 512,
        };
        buffer
            .fill(ram.memory(), &[segment], 0, 512)
            .expect("it is long enough");
    }
    Request {
        tag,
        op,
        offset: 0,
        buffer,
    }
}

fn run(backend: &mut FileBackend, request: Request) -> Result<(), IoError> {
    backend.submit(request).expect("it is idle");
    backend.start();
    next(backend).1
}

fn next(backend: &mut FileBackend) -> (u64, Result<(), IoError>) {
    loop {
        if let Some(completion) = backend.complete() {
            return (completion.request.tag, completion.result);
        }
        std::thread::yield_now();
    }
}

const WRITE: Op = Op::Write { durable: false };
const DURABLE_WRITE: Op = Op::Write { durable: true };
const DISCARD: Op = Op::Discard { len: 512 };
const ZEROES: Op = Op::WriteZeroes {
    len: 512,
    unmap: true,
    durable: false,
};

/// Else a request that the kernel could not take for a moment would wait for another one to come.
#[test]
fn nobody_may_sleep_on_what_the_kernel_has_not_taken() {
    let ram = GuestRam::new(1 << 20);
    let mut backend = backend_that_cannot_sync();
    assert!(!backend.arm());
    backend.submit(request(&ram, 0, WRITE)).expect("it is idle");
    assert!(backend.arm(), "as if the kernel had refused it");
    backend.start();
    assert_eq!(next(&mut backend), (0, Ok(())));
    assert!(!backend.arm());
}

#[test]
fn a_failed_flush_fails_all_later_flushes_and_writes_but_no_read() {
    let ram = GuestRam::new(1 << 20);
    let mut backend = backend_that_cannot_sync();
    assert_eq!(
        run(&mut backend, request(&ram, 0, WRITE)),
        Ok(()),
        "before, it is written"
    );
    let failed = run(&mut backend, request(&ram, 0, Op::Flush));
    assert!(
        matches!(failed, Err(IoError::System { call: "fdatasync", .. })),
        "{failed:?}"
    );
    for op in [Op::Flush, WRITE, DURABLE_WRITE, DISCARD, ZEROES] {
        assert_eq!(run(&mut backend, request(&ram, 0, op)), Err(IoError::Latched), "{op:?}");
    }
    assert_eq!(run(&mut backend, request(&ram, 0, Op::Read)), Ok(()));
}

#[test]
fn a_durable_write_that_cannot_be_synced_fails_and_latches() {
    let ram = GuestRam::new(1 << 20);
    let mut backend = backend_that_cannot_sync();
    assert!(run(&mut backend, request(&ram, 0, DURABLE_WRITE)).is_err());
    assert_eq!(run(&mut backend, request(&ram, 0, WRITE)), Err(IoError::Latched));
}

/// Flushes and durable writes that come while a sync runs, or before it is begun, all hear of its failure.
#[test]
fn nobody_who_waits_beside_a_failed_sync_is_told_that_it_went_well() {
    let ram = GuestRam::new(1 << 20);
    let mut backend = backend_that_cannot_sync();
    for tag in 0..8 {
        let op = if tag % 2 == 0 { Op::Flush } else { DURABLE_WRITE };
        backend.submit(request(&ram, tag, op)).expect("there is room");
        backend.start();
    }
    let mut tags: Vec<u64> = (0..8)
        .map(|_| {
            let (tag, result) = next(&mut backend);
            assert!(result.is_err(), "request {tag}");
            tag
        })
        .collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..8).collect::<Vec<_>>());
    assert_eq!(backend.in_flight(), 0);
}

/// More than one piece of zeros, on a file system that can neither punch nor zero.
#[test]
fn zeros_that_no_file_system_makes_are_written_piece_by_piece() {
    const LEN: u64 = (5 << 20) / 2 + 512;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![7; 3 << 20]).expect("it is written");
    let mut backend = open_file(file.path(), 3 << 20, false).expect("it opens");
    for means in [Means::Punch, Means::ZeroRange] {
        let next = backend.abilities.next(ZEROES, means, Errno::EOPNOTSUPP);
        assert!(next.is_ok());
    }
    let op = Op::WriteZeroes {
        len: LEN,
        unmap: true,
        durable: true,
    };
    for op in [op, Op::Discard { len: 512 }] {
        let request = Request {
            tag: 0,
            op,
            offset: 1024,
            buffer: Buffer::new(),
        };
        assert_eq!(run(&mut backend, request), Ok(()), "{op:?}");
    }
    let bytes = std::fs::read(file.path()).expect("it is readable");
    let end = 1024 + usize::try_from(LEN).expect("small");
    assert!(bytes[1024..end].iter().all(|&byte| byte == 0));
    assert!(bytes[..1024].iter().chain(&bytes[end..]).all(|&byte| byte == 7));
}

/// `/dev/zero` knows no `fallocate`, and takes whatever is written.
#[test]
fn what_the_kernel_refuses_is_done_otherwise_and_not_asked_again() {
    let ram = GuestRam::new(1 << 20);
    let mut backend = backend_that_cannot_sync();
    for _ in 0..2 {
        assert_eq!(run(&mut backend, request(&ram, 0, DISCARD)), Ok(()));
        assert_eq!(run(&mut backend, request(&ram, 0, ZEROES)), Ok(()));
    }
    assert_eq!(backend.abilities.first(DISCARD), None);
    assert_eq!(backend.abilities.first(ZEROES), Some(Means::Zeros));
}
