//! Whoever serves a file next begins when the last request of whoever served it before is over, also if he was killed.
//!
//! The lock of a file (`flock`) belongs to its open file description. A request that is in the kernel holds that
//! description, so that the lock outlives the process until the request has ended; a POSIX lock would end with the process,
//! and a write of the dead could land over one of the living.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use outboard_ring::{Segment, driver::GuestRam};
use outboard_storage::{Backend, Buffer, FileBackend, Op, OpenError, Request, open_file};
use tempfile::NamedTempFile;

const SIZE_BYTES: u64 = 32 << 20;
const WRITE_LEN: u32 = 1 << 20;
/// Names the file that a process of this test's own serves until it is killed.
const CHILD: &str = "OUTBOARD_TEST_SERVES";

fn volume_file() -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    file.as_file().set_len(SIZE_BYTES).expect("its size");
    file
}

fn open(path: &Path) -> Result<FileBackend, OpenError> {
    open_file(path, SIZE_BYTES, false)
}

/// Open it as soon as it is free, and tell how long that took.
fn open_when_free(path: &Path) -> (FileBackend, Duration) {
    let start = Instant::now();
    loop {
        match open(path) {
            Ok(backend) => return (backend, start.elapsed()),
            Err(OpenError::InUse { .. }) if start.elapsed() < Duration::from_secs(60) => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The descriptors of this process that are open on a file.
fn descriptors(path: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").expect("proc is mounted");
    entries
        .filter_map(Result::ok)
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// There is one descriptor, so what is locked and what requests go to is the same description, and no program that is
/// started meanwhile gets a copy that would keep the lock.
#[test]
fn the_lock_is_on_the_description_that_requests_hold_and_is_not_inherited() {
    let file = volume_file();
    let path = file.path().canonicalize().expect("it is there");
    let before = descriptors(&path);
    let serving = open(&path).expect("it is free");
    let ours: Vec<_> = descriptors(&path)
        .into_iter()
        .filter(|fd| !before.contains(fd))
        .collect();
    assert_eq!(ours.len(), 1);
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", ours[0])).expect("it is open");
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .expect("it has flags");
    let flags = i32::from_str_radix(flags.trim(), 8).expect("in octal");
    assert_ne!(flags & libc::O_CLOEXEC, 0);

    let mut bystander = Command::new("sleep")
        .arg("60")
        .spawn()
        .expect("coreutils are installed");
    drop(serving);
    assert!(open(&path).is_ok(), "though a process that was started meanwhile lives");
    bystander.kill().expect("it lives");
    bystander.wait().expect("it ends");
}

/// A description that outlives the process that locked it stays locked. Here this test holds it, in the field the kernel.
#[test]
fn a_lock_outlives_its_process_as_long_as_something_holds_the_description() {
    let file = volume_file();
    let description = File::options()
        .read(true)
        .write(true)
        .open(file.path())
        .expect("it opens");
    let mut child = Command::new("sh")
        .args(["-c", "flock --exclusive 0 && echo locked && exec sleep 60"])
        .stdin(description.try_clone().expect("dup"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux is installed");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("it says so");
    assert_eq!(line, "locked\n");
    child.kill().expect("it lives");
    child.wait().expect("it ends");
    assert!(matches!(open(file.path()), Err(OpenError::InUse { .. })));
    drop(description);
    assert!(open(file.path()).is_ok());
}

/// Serves the file that the environment names, with as many large and durable writes in flight as there may be, until it
/// is killed. A test of its own only so that this program can be started as a process of that kind.
#[test]
fn serve_until_killed() {
    let Some(path) = env::var_os(CHILD) else { return };
    let mut backend = open(Path::new(&path)).expect("it is free");
    let ram = GuestRam::new(64 << 20);
    let at = ram.alloc(u64::from(WRITE_LEN), 4096);
    println!("\nserving");
    let mut stamp = 0u8;
    loop {
        for n in 0..SIZE_BYTES / u64::from(WRITE_LEN) {
            let segment = Segment {
                addr: at,
                len: WRITE_LEN,
            };
            let mut buffer = Buffer::new();
            buffer
                .fill(ram.memory(), &[segment], 0, u64::from(WRITE_LEN))
                .expect("it is long enough");
            let request = Request {
                tag: n,
                op: Op::Write { durable: true },
                offset: n * u64::from(WRITE_LEN),
                buffer,
            };
            backend.submit(request).expect("there is room");
        }
        backend.start();
        while backend.in_flight() > 0 {
            if backend.complete().is_none() {
                std::thread::yield_now();
            }
        }
        stamp = stamp.wrapping_add(1);
        ram.memory()
            .write(at, &vec![stamp; WRITE_LEN as usize])
            .expect("it is mapped");
    }
}

/// Nothing of a process that was killed in the middle of its writes changes the file once it is free.
#[test]
fn what_a_killed_process_had_in_flight_is_over_when_its_file_is_free() {
    let file = volume_file();
    for round in 0..8u64 {
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "serve_until_killed", "--nocapture"])
            .env(CHILD, file.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line == "serving")), "it serves");
        std::thread::sleep(Duration::from_millis(3 * round));
        assert!(
            matches!(open(file.path()), Err(OpenError::InUse { .. })),
            "two never serve it"
        );
        child.kill().expect("it lives");
        let (serving, waited) = open_when_free(file.path());
        // The first thing that is done after that stays.
        let successor = [0xee; 4096];
        for n in 0..SIZE_BYTES / u64::from(WRITE_LEN) {
            file.as_file()
                .write_all_at(&successor, n * u64::from(WRITE_LEN))
                .expect("it is writable");
        }
        std::thread::sleep(Duration::from_millis(50));
        for n in 0..SIZE_BYTES / u64::from(WRITE_LEN) {
            let mut found = [0; 4096];
            file.as_file()
                .read_exact_at(&mut found, n * u64::from(WRITE_LEN))
                .expect("it is readable");
            assert!(found == successor, "round {round}: a late write, free after {waited:?}");
        }
        drop(serving);
        child.wait().expect("it ends");
    }
}

/// Trying never waits, so that whoever decides can go on and try again.
#[test]
fn trying_to_open_a_locked_file_does_not_wait() {
    let file = volume_file();
    let held = Flock::lock(
        File::open(file.path()).expect("it opens"),
        FlockArg::LockExclusiveNonblock,
    )
    .map_err(|(_, errno)| errno)
    .expect("it is free");
    let start = Instant::now();
    for _ in 0..20 {
        assert!(matches!(open(file.path()), Err(OpenError::InUse { .. })));
    }
    // Waiting for the lock would be for ever: it is held until below.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    drop(held);
    assert!(open(file.path()).is_ok());
}
