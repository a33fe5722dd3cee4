use std::sync::mpsc::{Receiver, channel};

use super::*;

/// Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn volume(name: &str, size_bytes: u64, backend: VolumeBackend) -> Volume {
    Volume {
        name: name.parse().unwrap(),
        size_bytes,
        backend,
        read_only: false,
    }
}

fn opener(directory: PathBuf, memory_bytes_max: u64) -> (Opener, Receiver<Done>) {
    let (done, inbox) = channel();
    (
        Opener::new(directory, memory_bytes_max, move |d| done.send(d).unwrap()),
        inbox,
    )
}

fn open(opener: &mut Opener, generation: u64, volume: &Volume) -> Result<(), Refusal> {
    opener.open(Generation(generation), volume, None, Instant::now())
}

/// The next result, handed on: what was opened, for which generation.
fn next(opener: &mut Opener, inbox: &Receiver<Done>) -> Option<(u64, Result<Opened, Unavailable>)> {
    let done = inbox.recv_timeout(PATIENCE).unwrap();
    opener.finished(&done);
    match done.outcome {
        Outcome::Opened { generation, result, .. } => Some((generation.0, result)),
        Outcome::Measured { .. } | Outcome::Closed => None,
    }
}

#[test]
fn memory_is_counted_once_however_often_a_volume_is_tried() {
    let (mut opener, inbox) = opener("/nonexistent".into(), 4096);
    let disk = volume("disk", 4096, VolumeBackend::Memory);
    for generation in 0..3 {
        open(&mut opener, generation, &disk).unwrap();
        assert!(next(&mut opener, &inbox).unwrap().1.is_ok());
    }
    let other = volume("other", 4096, VolumeBackend::Memory);
    assert!(open(&mut opener, 1, &other).is_err());
    opener.cancel(&disk.name);
    open(&mut opener, 1, &other).unwrap();
    assert!(next(&mut opener, &inbox).unwrap().1.is_ok());
}

#[test]
fn a_volume_is_opened_again_only_when_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("disk")).unwrap();
    file.set_len(4096).unwrap();
    let (mut opener, inbox) = opener(directory.path().into(), 0);
    let disk = volume("disk", 4096, VolumeBackend::File { path: "disk".into() });
    open(&mut opener, 1, &disk).unwrap();
    for generation in 1..20 {
        let (opened, unit) = next(&mut opener, &inbox).unwrap();
        assert_eq!(opened, generation);
        // Were these not done in order, the file would be found locked now and then.
        opener.close(&disk.name, unit.ok().unwrap().unit);
        open(&mut opener, generation + 1, &disk).unwrap();
        assert!(next(&mut opener, &inbox).is_none(), "closed");
    }
}

#[test]
fn a_file_system_that_hangs_holds_up_its_own_volume_only() {
    let directory = tempfile::tempdir().unwrap();
    let (hang, held) = channel::<()>();
    let held = Mutex::new(Some(held));
    let (done, inbox) = channel();
    // The first result hangs where the file system would.
    let mut opener = Opener::new(directory.path().into(), 1 << 20, move |d: Done| {
        if d.name.as_str() == "hung"
            && let Some(held) = held.lock().unwrap().take()
        {
            let _ = held.recv();
        }
        done.send(d).unwrap();
    });
    let hung = volume("hung", 4096, VolumeBackend::Null);
    open(&mut opener, 1, &hung).unwrap();
    for n in 0..2 * THREADS_MAX {
        let other = volume(&format!("v{n}"), 512, VolumeBackend::Memory);
        open(&mut opener, 1, &other).unwrap();
    }
    for _ in 0..2 * THREADS_MAX {
        assert!(next(&mut opener, &inbox).unwrap().1.is_ok());
    }
    assert!(open(&mut opener, 2, &hung).is_ok(), "not for long yet");
    let later = Instant::now() + STUCK_AFTER;
    let stuck = opener.open(Generation(3), &hung, None, later).unwrap_err();
    assert!(
        stuck.text.contains("volume hung") && stuck.text.contains("has not answered"),
        "{stuck}"
    );
    drop(hang);
    assert_eq!(next(&mut opener, &inbox).unwrap().0, 1);
    assert_eq!(
        next(&mut opener, &inbox).unwrap().0,
        3,
        "of those that waited the newest"
    );
    assert!(inbox.try_recv().is_err());
}

/// Those of one server, say, while the other volumes are on a disk.
#[test]
fn volumes_that_hang_hold_up_no_other_however_many_they_are() {
    let hung = 2 * THREADS_MAX;
    let (hang, held) = channel::<()>();
    let held = Mutex::new(held);
    let (done, inbox) = channel();
    let mut opener = Opener::new("/nonexistent".into(), 0, move |d: Done| {
        if d.name.as_str().starts_with("hung") {
            let _ = held.lock().unwrap().recv();
        }
        done.send(d).unwrap();
    });
    for n in 0..hung {
        open(&mut opener, 1, &volume(&format!("hung{n}"), 512, VolumeBackend::Null)).unwrap();
    }
    let other = volume("other", 512, VolumeBackend::Null);
    open(&mut opener, 1, &other).unwrap();
    let soon = Duration::from_millis(50);
    assert!(inbox.recv_timeout(soon).is_err(), "all threads are taken");
    let later = Instant::now() + STUCK_AFTER;
    // The core asks again every now and then.
    opener.open(Generation(1), &other, None, later).unwrap();
    opener.open(Generation(1), &other, None, later + STUCK_AFTER).unwrap();
    assert_eq!(inbox.recv_timeout(PATIENCE).unwrap().name, other.name);
    drop(hang);
    let rest = std::iter::from_fn(|| inbox.recv_timeout(PATIENCE).ok()).take(hung);
    assert_eq!(rest.count(), hung, "each had begun, and ends");
}

#[test]
fn what_is_asked_twice_for_a_binding_is_done_once() {
    let (mut opener, inbox) = opener("/nonexistent".into(), 0);
    let disk = volume("disk", 4096, VolumeBackend::Null);
    open(&mut opener, 1, &disk).unwrap();
    open(&mut opener, 1, &disk).unwrap();
    assert_eq!(next(&mut opener, &inbox).unwrap().0, 1);
    assert!(inbox.recv_timeout(Duration::from_millis(50)).is_err());
}

#[test]
fn what_is_cancelled_before_it_began_is_not_opened() {
    let (mut opener, inbox) = opener("/nonexistent".into(), 0);
    let disk = volume("disk", 4096, VolumeBackend::Null);
    open(&mut opener, 1, &disk).unwrap();
    open(&mut opener, 2, &disk).unwrap();
    opener.cancel(&disk.name);
    assert_eq!(next(&mut opener, &inbox).unwrap().0, 1);
    assert!(inbox.recv_timeout(Duration::from_millis(50)).is_err());
}
