//! What every backend does alike.

use std::{os::fd::BorrowedFd, sync::Arc};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_controls::{Check, Off};
use outboard_ring::{Segment, driver::GuestRam};
use outboard_storage::{
    Backend, Buffer, Busy, Completion, IoError, MemoryBackend, Op, Request, open_file,
    recording::{Random, Recording},
};
use tempfile::NamedTempFile;

const SIZE_BYTES: u64 = 256 << 10;
const WRITE: Op = Op::Write { durable: false };
const DURABLE_WRITE: Op = Op::Write { durable: true };

/// A backend, and guest memory for its requests.
struct Bench {
    ram: GuestRam,
    backend: Box<dyn Backend>,
    // Dropped after the backend.
    _file: Option<NamedTempFile>,
}

fn benches(read_only: bool) -> Vec<(&'static str, Bench)> {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(SIZE_BYTES).expect("its size");
    let backend = Box::new(open_file(file.path(), SIZE_BYTES, read_only).expect("it opens"));
    let recording = || Recording::new(SIZE_BYTES, read_only);
    vec![
        ("file", Bench::new(backend, Some(file))),
        (
            "memory",
            Bench::new(Box::new(MemoryBackend::new(SIZE_BYTES, read_only)), None),
        ),
        ("recording", Bench::new(Box::new(recording().backend()), None)),
        ("shuffled", Bench::new(Box::new(recording().shuffled_backend(3)), None)),
    ]
}

/// Wait until a descriptor is readable.
fn wait(fd: BorrowedFd) {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    // A completion may interrupt the wait on its way.
    while poll(&mut fds, PollTimeout::from(10_000u16)) == Err(nix::errno::Errno::EINTR) {}
    assert_ne!(fds[0].any(), Some(false), "no completion came");
}

impl Bench {
    fn new(backend: Box<dyn Backend>, file: Option<NamedTempFile>) -> Self {
        Self {
            ram: GuestRam::new(4 << 20),
            backend,
            _file: file,
        }
    }

    /// Guest memory in pieces of these lengths, filled with `byte`, as a buffer.
    fn buffer(&self, lens: &[u32], byte: u8) -> Buffer {
        let segment = |&len: &u32| {
            let addr = self.ram.alloc(u64::from(len), 1);
            self.ram
                .memory()
                .write(addr, &vec![byte; len as usize])
                .expect("it is mapped");
            Segment { addr, len }
        };
        let segments: Vec<Segment> = lens.iter().map(segment).collect();
        let len = lens.iter().map(|&len| u64::from(len)).sum();
        let mut buffer = Buffer::new();
        buffer
            .fill(self.ram.memory(), &segments, 0, len)
            .expect("it is long enough");
        buffer
    }

    fn complete(&mut self) -> Completion {
        loop {
            if let Some(completion) = self.backend.complete() {
                return completion;
            }
            if !self.backend.arm() {
                wait(
                    self.backend
                        .wake_fd()
                        .expect("a backend that makes one wait says on what"),
                );
            }
        }
    }

    fn run(&mut self, op: Op, offset: u64, buffer: Buffer) -> Completion {
        let request = Request {
            tag: offset,
            op,
            offset,
            buffer,
        };
        self.backend.submit(request).expect("it is idle");
        self.backend.start();
        let completion = self.complete();
        assert_eq!((completion.request.tag, completion.request.op), (offset, op));
        assert_eq!(self.backend.in_flight(), 0);
        completion
    }

    fn read(&mut self, offset: u64, lens: &[u32]) -> Vec<u8> {
        let buffer = self.buffer(lens, 0xee);
        let completion = self.run(Op::Read, offset, buffer);
        assert_eq!(completion.result, Ok(()));
        bytes_of(&completion.request.buffer)
    }
}

fn bytes_of(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(buffer.len()).expect("short")];
    buffer.read_at(0, &mut bytes).expect("it is mapped");
    bytes
}

#[test]
fn reads_see_what_was_written_and_zeros_elsewhere() {
    for (name, mut bench) in benches(false) {
        let mut model = vec![0; usize::try_from(SIZE_BYTES).expect("small")];
        let mut random = Random(7);
        for step in 0..200u8 {
            let sectors = 1 + random.below(64);
            let first = random.below(512 - sectors);
            // Pieces of any length that add up to whole sectors.
            let mut left = u32::try_from(sectors * 512).expect("small");
            let mut lens = Vec::new();
            while left > 0 {
                let len = u32::try_from(1 + random.below(5000)).expect("small").min(left);
                lens.push(len);
                left -= len;
            }
            let (offset, range) = (first as u64 * 512, first * 512..(first + sectors) * 512);
            if step % 2 == 0 {
                let op = if step % 4 == 0 { WRITE } else { DURABLE_WRITE };
                let buffer = bench.buffer(&lens, step + 1);
                assert_eq!(bench.run(op, offset, buffer).result, Ok(()), "{name}");
                model[range].fill(step + 1);
            } else {
                assert!(bench.read(offset, &lens) == model[range], "{name} at step {step}");
            }
            // Guest memory for the steps to come.
            bench.ram = GuestRam::new(4 << 20);
        }
        assert_eq!(bench.run(Op::Flush, 0, Buffer::new()).result, Ok(()), "{name}");
    }
}

#[test]
fn requests_outside_the_volume_or_of_partial_sectors_fail_and_nothing_else_does() {
    for (name, mut bench) in benches(false) {
        for offset in [
            SIZE_BYTES,
            SIZE_BYTES - 512,
            1 << 40,
            (u64::MAX - 1023) / 512 * 512,
            u64::MAX / 512 * 512,
        ] {
            for op in [Op::Read, WRITE, DURABLE_WRITE] {
                let buffer = bench.buffer(&[1024], 1);
                let result = bench.run(op, offset, buffer).result;
                assert!(
                    matches!(result, Err(IoError::OutOfRange { .. })),
                    "{name}: {op:?} at {offset}: {result:?}"
                );
            }
        }
        for (offset, len) in [(1, 512), (0, 1), (511, 513), (512, 511)] {
            let buffer = bench.buffer(&[len], 1);
            let result = bench.run(Op::Read, offset, buffer).result;
            assert_eq!(
                result,
                Err(IoError::PartialSector {
                    offset,
                    len: u64::from(len)
                }),
                "{name}"
            );
        }
        assert_eq!(
            bench.read(SIZE_BYTES - 512, &[512]),
            [0; 512],
            "{name}: the last sector is served"
        );
        assert_eq!(
            bench.run(WRITE, 0, Buffer::new()).result,
            Ok(()),
            "{name}: nothing at all is no error"
        );
        assert_eq!(
            bench.run(DURABLE_WRITE, SIZE_BYTES, Buffer::new()).result,
            Ok(()),
            "{name}"
        );
    }
}

#[test]
fn control_without_the_range_check_a_file_grows() {
    let (_, mut bench) = benches(false).swap_remove(0);
    let _off = Off::here(Check::VolumeRange);
    let buffer = bench.buffer(&[512], 5);
    assert_eq!(bench.run(WRITE, SIZE_BYTES, buffer).result, Ok(()));
    assert_eq!(bench.read(SIZE_BYTES, &[512]), [5; 512]);
}

#[test]
fn a_read_only_backend_is_not_written() {
    for (name, mut bench) in benches(true) {
        for op in [WRITE, DURABLE_WRITE] {
            let buffer = bench.buffer(&[512], 1);
            assert_eq!(bench.run(op, 0, buffer).result, Err(IoError::ReadOnly), "{name}");
        }
        assert_eq!(bench.read(0, &[512]), [0; 512], "{name}");
        assert_eq!(bench.run(Op::Flush, 0, Buffer::new()).result, Ok(()), "{name}");
        assert!(bench.backend.geometry().read_only, "{name}");
    }
}

#[test]
fn no_more_requests_are_taken_than_it_says_and_each_is_given_back_once() {
    for (name, mut bench) in benches(false) {
        let depth = bench.backend.depth();
        for tag in 0..depth as u64 {
            let op = [Op::Read, WRITE, DURABLE_WRITE, Op::Flush][usize::try_from(tag % 4).expect("small")];
            let buffer = if op == Op::Flush {
                Buffer::new()
            } else {
                bench.buffer(&[512], 1)
            };
            bench
                .backend
                .submit(Request {
                    tag,
                    op,
                    offset: 512 * tag,
                    buffer,
                })
                .expect("it is not full");
        }
        assert_eq!(bench.backend.in_flight(), depth, "{name}");
        let one_more = Request {
            tag: 999,
            op: Op::Flush,
            offset: 0,
            buffer: Buffer::new(),
        };
        let refused = bench.backend.submit(one_more);
        assert!(matches!(refused, Err(Busy(request)) if request.tag == 999), "{name}");
        bench.backend.start();
        let mut tags: Vec<u64> = (0..depth)
            .map(|_| {
                let completion = bench.complete();
                assert_eq!(completion.result, Ok(()), "{name}");
                completion.request.tag
            })
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, (0..depth as u64).collect::<Vec<_>>(), "{name}");
        assert!(bench.backend.complete().is_none(), "{name}");
        assert!(!bench.backend.arm(), "{name}: nothing keeps the worker awake");
    }
}

#[test]
fn guest_memory_is_held_until_the_completion_is_taken_and_no_longer() {
    for (name, mut bench) in benches(false) {
        let before = Arc::strong_count(bench.ram.memory());
        let buffer = bench.buffer(&[512, 512], 1);
        let held = Arc::strong_count(bench.ram.memory());
        assert!(held > before, "{name}");
        let completion = bench.run(WRITE, 0, buffer);
        assert_eq!(Arc::strong_count(bench.ram.memory()), held, "{name}");
        drop(completion);
        assert_eq!(Arc::strong_count(bench.ram.memory()), before, "{name}");
    }
}

/// The host may take the guest's memory away while a request uses it.
#[test]
fn memory_that_vanishes_fails_the_request_only() {
    for (name, mut bench) in benches(false) {
        let buffer = bench.buffer(&[512], 1);
        bench.ram.file().set_len(0).expect("the host may truncate it");
        let result = bench.run(WRITE, 0, buffer).result;
        assert!(
            matches!(result, Err(IoError::GuestMemory(_) | IoError::System { .. })),
            "{name}: {result:?}"
        );
        bench.ram = GuestRam::new(1 << 20);
        let buffer = bench.buffer(&[512], 7);
        assert_eq!(bench.run(DURABLE_WRITE, 0, buffer).result, Ok(()), "{name}");
        assert_eq!(bench.read(0, &[512]), [7; 512], "{name}");
    }
}
