//! Opening files, and what happens to them while they are served.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use outboard_ring::{Segment, driver::GuestRam};
use outboard_storage::{Backend, Buffer, FileBackend, IoError, Op, OpenError, Request, open_file};
use tempfile::{NamedTempFile, TempDir};

const SIZE_BYTES: u64 = 64 << 10;

fn volume_file() -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(SIZE_BYTES).expect("its size");
    file
}

fn refusal(path: &Path, size_bytes: u64) -> String {
    open_file(path, size_bytes, false)
        .err()
        .expect("it is refused")
        .to_string()
}

fn buffer(ram: &GuestRam, len: u32) -> Buffer {
    let segment = Segment {
        addr: ram.alloc(u64::from(len), 1),
        len,
    };
    let mut buffer = Buffer::new();
    buffer
        .fill(ram.memory(), &[segment], 0, u64::from(len))
        .expect("it is long enough");
    buffer
}

fn run(backend: &mut FileBackend, op: Op, offset: u64, buffer: Buffer) -> Result<(), IoError> {
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
fn refusals_name_the_file_and_the_remedy() {
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("disk1.raw");
    let said = refusal(&path, 4096);
    assert!(
        said.contains("does not exist") && said.contains(&format!("truncate -s 4096 {}", path.display())),
        "{said}"
    );

    std::fs::write(&path, [0; 1000]).expect("it is written");
    let said = refusal(&path, 4096);
    assert!(
        said.contains("has 1000 bytes") && said.contains("truncate -s 4096"),
        "{said}"
    );
    for size_bytes in [0, 100, 513] {
        assert!(refusal(&path, size_bytes).contains("multiple of 512"));
    }

    nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    assert!(refusal(&dir.path().join("pipe"), 512).contains("is a pipe"));
    assert!(refusal(Path::new("/dev/zero"), 512).contains("is a character device"));
    assert!(refusal(dir.path(), 512).contains(&dir.path().display().to_string()));
    let refused = open_file(dir.path(), 512, true).err();
    assert!(matches!(
        refused,
        Some(OpenError::WrongType {
            found: "a directory",
            ..
        })
    ));
    assert!(
        open_file(&path, 512, false).is_ok(),
        "a file longer than its volume is served"
    );
}

#[test]
fn a_file_is_served_once() {
    let file = volume_file();
    let serving = open_file(file.path(), SIZE_BYTES, false).expect("it opens");
    let said = refusal(file.path(), SIZE_BYTES);
    assert!(said.contains("another volume of this DPU"), "{said}");
    assert!(
        open_file(file.path(), SIZE_BYTES, true).is_err(),
        "nor is it read while it is written"
    );
    drop(serving);
    let reading = open_file(file.path(), SIZE_BYTES, true).expect("it is free again");
    let reading_too = open_file(file.path(), SIZE_BYTES, true).expect("readers share");
    assert!(open_file(file.path(), SIZE_BYTES, false).is_err());
    drop((reading, reading_too));
    assert!(open_file(file.path(), SIZE_BYTES, false).is_ok());
}

#[test]
fn who_else_serves_a_file_is_named() {
    let file = volume_file();
    let mut other = Command::new("flock")
        .args(["--exclusive", "--no-fork"])
        .arg(file.path())
        .args(["sh", "-c", "echo locked; read line || true"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux is installed");
    let mut locked = [0; 7];
    std::io::Read::read_exact(other.stdout.as_mut().expect("piped"), &mut locked).expect("it has the lock");
    let said = refusal(file.path(), SIZE_BYTES);
    assert!(said.contains(&format!("process {} (sh)", other.id())), "{said}");
    drop(other.stdin.take());
    assert!(other.wait().expect("it ends").success());
    assert!(open_file(file.path(), SIZE_BYTES, false).is_ok());
}

/// A read that ends early is continued, and at the end of the file it fails; nothing reads what is not there.
#[test]
fn a_file_that_was_truncated_fails_reads_and_takes_writes() {
    let (file, ram) = (volume_file(), GuestRam::new(1 << 20));
    let mut backend = open_file(file.path(), SIZE_BYTES, false).expect("it opens");
    file.as_file().set_len(700).expect("anybody may truncate it");
    assert_eq!(run(&mut backend, Op::Read, 0, buffer(&ram, 512)), Ok(()));
    assert_eq!(
        run(&mut backend, Op::Read, 0, buffer(&ram, 1024)),
        Err(IoError::EndOfFile { offset: 700 })
    );
    assert_eq!(
        run(&mut backend, Op::Read, 4096, buffer(&ram, 512)),
        Err(IoError::EndOfFile { offset: 4096 })
    );
    assert_eq!(
        run(&mut backend, Op::Write { durable: true }, 4096, buffer(&ram, 512)),
        Ok(())
    );
    assert_eq!(
        run(&mut backend, Op::Read, 0, buffer(&ram, 4608)),
        Ok(()),
        "it is that long again"
    );
    assert_eq!(run(&mut backend, Op::Flush, 0, Buffer::new()), Ok(()));
}

/// The kernel may still be writing: memory and lock stay until it is done, and nobody waits for that.
#[test]
fn a_backend_dropped_with_requests_in_flight_lets_go_when_they_are_over() {
    let (file, ram) = (volume_file(), GuestRam::new(4 << 20));
    let before = Arc::strong_count(ram.memory());
    for _ in 0..20 {
        let mut backend = open_within(file.path(), Duration::from_secs(60));
        for tag in 0..32 {
            let op = if tag % 4 == 3 {
                Op::Flush
            } else {
                Op::Write { durable: tag % 2 == 0 }
            };
            let buffer = if op == Op::Flush {
                Buffer::new()
            } else {
                buffer(&ram, 512)
            };
            backend
                .submit(Request {
                    tag,
                    op,
                    offset: 512 * tag,
                    buffer,
                })
                .expect("it is idle");
        }
        backend.start();
        drop(backend);
    }
    drop(open_within(file.path(), Duration::from_secs(60)));
    assert_eq!(Arc::strong_count(ram.memory()), before);
}

/// Open it as soon as it is free.
fn open_within(path: &Path, patience: Duration) -> FileBackend {
    let start = Instant::now();
    loop {
        match open_file(path, SIZE_BYTES, false) {
            Ok(backend) => return backend,
            Err(OpenError::InUse { .. }) if start.elapsed() < patience => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("{error}"),
        }
    }
}
