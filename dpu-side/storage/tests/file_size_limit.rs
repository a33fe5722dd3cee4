//! A write that there is no room for. The limit is the process's, so this test has one of its own.

use nix::sys::signal::{SigSet, Signal};
use outboard_ring::{Segment, driver::GuestRam};
use outboard_storage::{Backend, Buffer, FileBackend, IoError, Op, Request, open_file};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const SIZE_BYTES: u64 = 64 << 10;

fn run(backend: &mut FileBackend, ram: &GuestRam, op: Op, offset: u64, len: u32) -> Result<(), IoError> {
    let segment = Segment {
        addr: ram.alloc(u64::from(len), 1),
        len,
    };
    let mut buffer = Buffer::new();
    buffer
        .fill(ram.memory(), &[segment], 0, u64::from(len))
        .expect("it is long enough");
    backend
        .submit(Request {
            tag: 0,
            op,
            offset,
            buffer,
        })
        .expect("it is idle");
    backend.start();
    loop {
        if let Some(completion) = backend.complete() {
            return completion.result;
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_write_that_there_is_no_room_for_fails_and_the_volume_goes_on() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(SIZE_BYTES).expect("its size");
    let ram = GuestRam::new(1 << 20);
    let mut backend = open_file(file.path(), SIZE_BYTES, false).expect("it opens");
    SigSet::from(Signal::SIGXFSZ).thread_block().expect("it can be blocked");
    let before = getrlimit(Resource::Fsize);
    setrlimit(
        Resource::Fsize,
        Rlimit {
            current: Some(8192),
            ..before
        },
    )
    .expect("it can be lowered");

    let durable = Op::Write { durable: true };
    // The first half is a short write, which is continued; the second half fails.
    let across = run(&mut backend, &ram, durable, 4096, 8192);
    let within = run(&mut backend, &ram, durable, 0, 8192);
    let flush = run(&mut backend, &ram, Op::Flush, 0, 0);
    setrlimit(Resource::Fsize, before).expect("it can be raised again");

    assert!(
        matches!(across, Err(IoError::System { call: "writev", .. })),
        "{across:?}"
    );
    assert_eq!(
        (within, flush),
        (Ok(()), Ok(())),
        "a write that failed is no failed flush: nothing is latched"
    );
    assert_eq!(run(&mut backend, &ram, durable, 4096, 8192), Ok(()));
}
