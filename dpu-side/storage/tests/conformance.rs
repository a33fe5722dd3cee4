//! What every backend does alike.

use std::{os::fd::BorrowedFd, sync::Arc};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard_controls::{Check, Off};
use outboard_ring::{Segment, driver::GuestRam};
use outboard_storage::{
    Backend, Buffer, Busy, Completion, IoError, MemoryBackend, Op, Request, ResizeError, open_file,
    recording::{Keep, Random, Recording},
};
use tempfile::NamedTempFile;

const SIZE_BYTES: u64 = 256 << 10;
const WRITE: Op = Op::Write { durable: false };
const DURABLE_WRITE: Op = Op::Write { durable: true };

fn zeroes(len: u64, unmap: bool, durable: bool) -> Op {
    Op::WriteZeroes { len, unmap, durable }
}

/// A backend, and guest memory for its requests.
struct Bench {
    ram: GuestRam,
    backend: Box<dyn Backend>,
    // Dropped after the backend.
    file: Option<NamedTempFile>,
}

fn benches(read_only: bool) -> Vec<(&'static str, Bench)> {
    let on = |file: NamedTempFile| {
        file.as_file().set_len(SIZE_BYTES).expect("its size");
        let backend = Box::new(open_file(file.path(), SIZE_BYTES, read_only).expect("it opens"));
        Bench::new(backend, Some(file))
    };
    let recording = || Recording::new(SIZE_BYTES, read_only);
    vec![
        // On a disk's file system, as a rule, and on tmpfs: they differ in how zeros are made.
        ("file", on(NamedTempFile::new().expect("a file"))),
        (
            "file on tmpfs",
            on(NamedTempFile::new_in("/dev/shm").expect("Linux has it")),
        ),
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
            file,
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

/// What is known of each sector: the byte it is filled with, or nothing once it was discarded.
type Model = Vec<Option<u8>>;

fn assert_is(name: &str, step: u8, read: &[u8], model: &[Option<u8>]) {
    for (sector, expected) in read.chunks(512).zip(model) {
        let same = sector.iter().all(|&byte| Some(byte) == *expected);
        assert!(
            same || expected.is_none(),
            "{name} at step {step}: {} for {expected:?}",
            sector[0]
        );
    }
}

#[test]
fn reads_see_what_was_written_and_zeros_elsewhere() {
    for (name, mut bench) in benches(false) {
        let mut model: Model = vec![Some(0); 512];
        let mut random = Random(7);
        for step in 0..250u8 {
            let sectors = 1 + random.below(if step % 8 == 0 { 400 } else { 64 });
            let first = random.below(512 - sectors);
            // Pieces of any length that add up to whole sectors.
            let mut left = u32::try_from(sectors * 512).expect("small");
            let mut lens = Vec::new();
            while left > 0 {
                let len = u32::try_from(1 + random.below(5000)).expect("small").min(left);
                lens.push(len);
                left -= len;
            }
            let (offset, len, range) = (first as u64 * 512, sectors as u64 * 512, first..first + sectors);
            let (op, byte) = match random.below(6) {
                0 => (WRITE, Some(step + 1)),
                1 => (DURABLE_WRITE, Some(step + 1)),
                2 => (Op::Discard { len }, None),
                3 => (zeroes(len, step % 3 == 0, step % 4 == 0), Some(0)),
                _ => (Op::Read, None),
            };
            if op == Op::Read {
                assert_is(name, step, &bench.read(offset, &lens), &model[range]);
            } else {
                let buffer = match op {
                    Op::Write { .. } => bench.buffer(&lens, step + 1),
                    _ => Buffer::new(),
                };
                assert_eq!(bench.run(op, offset, buffer).result, Ok(()), "{name}: {op:?}");
                model[range].fill(byte);
            }
            // Guest memory for the steps to come.
            bench.ram = GuestRam::new(4 << 20);
        }
        assert_is(name, 255, &bench.read(0, &[256 << 10]), &model);
        assert_eq!(bench.run(Op::Flush, 0, Buffer::new()).result, Ok(()), "{name}");
    }
}

/// What was discarded is still the volume's own: written, zeros, or a mix. Nothing of anybody else's.
#[test]
fn a_discarded_range_takes_no_room_where_the_backend_can_help_it() {
    use std::os::unix::fs::MetadataExt;
    for (name, mut bench) in benches(false) {
        let Some(file) = bench.file.as_ref().map(|file| file.reopen().expect("it is there")) else {
            continue;
        };
        let blocks = || file.metadata().expect("it is open").blocks();
        let buffer = bench.buffer(&[256 << 10], 7);
        assert_eq!(bench.run(DURABLE_WRITE, 0, buffer).result, Ok(()), "{name}");
        let full = blocks();
        assert!(full >= 512, "{name}");
        bench.run(zeroes(128 << 10, false, true), 0, Buffer::new());
        assert!(blocks() >= 512, "{name}: room that was not to be given back");
        bench.run(zeroes(64 << 10, true, true), 0, Buffer::new());
        bench.run(Op::Discard { len: 64 << 10 }, 64 << 10, Buffer::new());
        assert!(blocks() <= full - 256, "{name}: {} of {full}", blocks());
        assert_eq!(file.metadata().expect("it is open").len(), SIZE_BYTES, "{name}");
        let read = bench.read(0, &[256 << 10]);
        assert!(read[..64 << 10].iter().all(|&byte| byte == 0), "{name}");
        assert!(read[128 << 10..].iter().all(|&byte| byte == 7), "{name}");
    }
}

/// Requests are checked against the size of the moment they were submitted in.
#[test]
fn a_volume_that_changed_its_size_serves_all_of_it_and_no_more() {
    for (name, mut bench) in benches(false) {
        let larger = SIZE_BYTES + (64 << 10);
        if let Some(file) = &bench.file {
            assert_eq!(
                bench.backend.resize(larger),
                Err(ResizeError::TooSmall {
                    found_bytes: SIZE_BYTES,
                    size_bytes: larger
                }),
                "{name}"
            );
            file.as_file().set_len(larger).expect("it may grow");
        }
        for size_bytes in [0, 511, SIZE_BYTES + 1] {
            assert_eq!(
                bench.backend.resize(size_bytes),
                Err(ResizeError::Size { size_bytes }),
                "{name}"
            );
        }
        assert_eq!(bench.backend.geometry().size_bytes, SIZE_BYTES, "{name}");
        assert_eq!(bench.backend.resize(larger), Ok(()), "{name}");
        let buffer = bench.buffer(&[1024], 9);
        assert_eq!(bench.run(WRITE, larger - 1024, buffer).result, Ok(()), "{name}");
        assert_eq!(bench.read(larger - 512, &[512]), [9; 512], "{name}");

        let before = bench.buffer(&[512], 8);
        let request = Request {
            tag: 1,
            op: WRITE,
            offset: SIZE_BYTES - 512,
            buffer: before,
        };
        bench.backend.submit(request).expect("it is idle");
        bench.backend.start();
        assert_eq!(bench.complete().result, Ok(()), "{name}");
        assert_eq!(bench.backend.resize(SIZE_BYTES - 512), Ok(()), "{name}");
        for op in [Op::Discard { len: 512 }, zeroes(512, true, false)] {
            let result = bench.run(op, SIZE_BYTES - 512, Buffer::new()).result;
            assert!(matches!(result, Err(IoError::OutOfRange { .. })), "{name}: {result:?}");
        }
        let buffer = bench.buffer(&[512], 1);
        let result = bench.run(Op::Read, SIZE_BYTES - 512, buffer).result;
        assert!(matches!(result, Err(IoError::OutOfRange { .. })), "{name}: {result:?}");
        assert_eq!(bench.read(SIZE_BYTES - 1024, &[512]), [0; 512], "{name}");
    }
}

/// Zeros that were flushed, or were to be durable, survive a power cut; a discard neither has to nor harms what was written
/// after it.
#[test]
fn zeros_survive_a_power_cut_as_writes_do() {
    let trial = |ops: &[Op]| {
        let recording = Recording::new(SIZE_BYTES, false);
        let mut bench = Bench::new(Box::new(recording.backend()), None);
        let buffer = bench.buffer(&[512], 7);
        assert_eq!(bench.run(DURABLE_WRITE, 0, buffer).result, Ok(()));
        for &op in ops {
            let buffer = match op {
                Op::Write { .. } => bench.buffer(&[512], 9),
                _ => Buffer::new(),
            };
            assert_eq!(bench.run(op, 0, buffer).result, Ok(()));
        }
        recording.power_loss(Keep::Nothing);
        recording.sector(0)
    };
    let (volatile, durable) = (zeroes(512, true, false), zeroes(512, false, true));
    let discard = Op::Discard { len: 512 };
    assert_eq!(trial(&[volatile]), [7; 512]);
    assert_eq!(trial(&[volatile, Op::Flush]), [0; 512]);
    assert_eq!(trial(&[durable]), [0; 512]);
    assert_eq!(trial(&[discard, DURABLE_WRITE]), [9; 512]);
    assert_eq!(trial(&[discard, durable]), [0; 512]);
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
            let ranges = [Op::Discard { len: 1024 }, zeroes(1024, true, true)];
            for op in [Op::Read, WRITE, DURABLE_WRITE].into_iter().chain(ranges) {
                let buffer = bench.buffer(&[1024], 1);
                let result = bench.run(op, offset, buffer).result;
                assert!(
                    matches!(result, Err(IoError::OutOfRange { .. })),
                    "{name}: {op:?} at {offset}: {result:?}"
                );
            }
        }
        for len in [SIZE_BYTES + 512, u64::MAX - 511] {
            for op in [Op::Discard { len }, zeroes(len, false, false)] {
                let result = bench.run(op, 0, Buffer::new()).result;
                assert!(
                    matches!(result, Err(IoError::OutOfRange { .. })),
                    "{name}: {op:?}: {result:?}"
                );
            }
        }
        for (offset, short) in [(1, 512), (0, 1), (511, 513), (512, 511)] {
            let len = u64::from(short);
            for op in [Op::Discard { len }, zeroes(len, false, false)] {
                let result = bench.run(op, offset, Buffer::new()).result;
                assert_eq!(result, Err(IoError::PartialSector { offset, len }), "{name}: {op:?}");
            }
            let buffer = bench.buffer(&[short], 1);
            let result = bench.run(Op::Read, offset, buffer).result;
            assert_eq!(result, Err(IoError::PartialSector { offset, len }), "{name}");
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
        for op in [Op::Discard { len: 0 }, zeroes(0, true, true)] {
            assert_eq!(
                bench.run(op, SIZE_BYTES, Buffer::new()).result,
                Ok(()),
                "{name}: {op:?}"
            );
        }
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
        let ranges = [Op::Discard { len: 512 }, zeroes(512, true, false)];
        for op in [WRITE, DURABLE_WRITE].into_iter().chain(ranges) {
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
            let ranges = [Op::Discard { len: 512 }, zeroes(512, true, true)];
            let ops = [Op::Read, WRITE, DURABLE_WRITE, ranges[0], ranges[1], Op::Flush];
            let op = ops[usize::try_from(tag % 6).expect("small")];
            let buffer = if tag % 6 > 2 {
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
