//! What a device writes to guest memory is in the dirty log (vhost-user, "Migration").

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use crate::DEFAULT_FEATURES;
use outboard_ring::{DirtyLog, RingLog, driver::RAM_START};
use outboard_storage::{Backend, MemoryBackend, open_file};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    gated::gated,
    guest::{Guest, S_OK, T_IN, T_OUT, config, header},
};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// A guest whose every buffer has pages of its own, and the log of what is written to them.
struct Logged {
    guest: Guest,
    bits: File,
    log: RingLog,
    /// Two pages for data after one for the header, and one for the status.
    at: u64,
}

impl Logged {
    fn new(backend: Box<dyn Backend>) -> Self {
        let guest = Guest::new(config(MIB), backend, DEFAULT_FEATURES);
        let bits = File::from(memfd_create("log", MemfdFlags::CLOEXEC).expect("memfd_create"));
        bits.set_len(PAGE).expect("ftruncate");
        let log = RingLog {
            log: Arc::new(DirtyLog::map(&bits, 0, PAGE).expect("a memfd can be mapped")),
            used_addr: Some(guest.driver.config().used),
        };
        let at = guest.ram.alloc(4 * PAGE, PAGE);
        Self { guest, bits, log, at }
    }

    fn is_dirty(&self, addr: u64) -> bool {
        let page = addr / PAGE;
        let mut byte = [0];
        self.bits
            .read_exact_at(&mut byte, page / 8)
            .expect("the log is that long");
        byte[0] >> (page % 8) & 1 != 0
    }

    /// Which of header, first and second page of data, and status are marked. The marks are taken, as a VMM does.
    fn take(&mut self) -> [bool; 4] {
        let dirty = [0, 1, 2, 3].map(|n| self.is_dirty(self.at + n * PAGE));
        assert!(self.at > RAM_START);
        self.bits.write_all_at(&[0; PAGE as usize], 0).expect("it is writable");
        dirty
    }

    fn offer(&mut self, kind: u32, sector: u64) {
        let (at, driver) = (self.at, &mut self.guest.driver);
        driver.write(at, &header(kind, sector));
        let (data, status) = ((at + PAGE, 2 * PAGE as u32), (at + 3 * PAGE, 1));
        let added = match kind {
            T_IN => driver.add(&[(at, 16)], &[data, status]),
            _ => driver.add(&[(at, 16), data], &[status]),
        };
        assert!(added.is_some());
        driver.publish();
    }

    fn run(&mut self, kind: u32, sector: u64) -> u8 {
        self.offer(kind, sector);
        self.guest.wait_used();
        self.guest.driver.read(self.at + 3 * PAGE, 1)[0]
    }

    fn set(&mut self, on: bool) {
        let log = on.then(|| self.log.clone());
        self.guest.unit.set_log(0, log).expect("it runs");
    }
}

#[test]
fn pages_that_are_written_are_marked_and_no_others() {
    let mut logged = Logged::new(Box::new(MemoryBackend::new(MIB, false)));
    let used = logged.guest.driver.config().used;
    assert_eq!(logged.run(T_IN, 0), S_OK);
    assert_eq!(logged.take(), [false; 4], "nobody asked for it");
    logged.set(true);
    assert_eq!(logged.run(T_OUT, 0), S_OK);
    assert!(logged.is_dirty(used), "the used ring");
    assert_eq!(logged.take(), [false, false, false, true]);
    assert_eq!(logged.run(T_IN, 0), S_OK);
    assert_eq!(logged.take(), [false, true, true, true]);
    // Refused before anything is read: at least the status is marked.
    assert_ne!(logged.run(T_IN, 1 << 40), S_OK);
    assert!(logged.take()[3]);
    logged.set(false);
    assert_eq!(logged.run(T_IN, 0), S_OK);
    assert_eq!(logged.take(), [false; 4], "a migration that was called off");
}

/// The kernel may have read a part before it failed.
#[test]
fn what_a_failed_read_may_have_written_is_marked() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![7; MIB as usize]).expect("it is written");
    let mut logged = Logged::new(Box::new(open_file(file.path(), MIB, false).expect("it opens")));
    logged.set(true);
    file.as_file().set_len(5000).expect("anybody may truncate it");
    assert_ne!(logged.run(T_IN, 0), S_OK);
    let at = logged.at;
    assert_eq!(logged.guest.driver.read(at + PAGE, 1), [7], "it did");
    assert_eq!(logged.take(), [false, true, true, true]);
}

/// Its data comes after the log was switched on.
#[test]
fn a_request_that_was_in_flight_when_logging_began_is_marked() {
    let (backend, gate) = gated(8);
    let mut logged = Logged::new(backend);
    logged.offer(T_IN, 0);
    logged.guest.breathe();
    assert_eq!(logged.guest.unit.in_flight(), 1);
    logged.set(true);
    logged.take();
    gate.send(()).expect("the backend listens");
    logged.guest.wait_used();
    assert_eq!(logged.take(), [false, true, true, true]);
}
