//! Starting, stopping and revoking while requests are in flight.

use std::sync::{
    Arc,
    mpsc::{self, Receiver},
};

use crate::{DEFAULT_FEATURES, FORMAT};
use outboard_ring::RingFormat;
use outboard_ring::{CallFd, KickFd};
use outboard_storage::{MemoryBackend, recording::Recording};
use outboard_vhost_user::{DeviceError, QueueResources};
use rustix::event::{EventfdFlags, eventfd};
use vhost_blk_dpu::{BlkUnit, VolumeCounters};

use crate::gated::gated;
use crate::guest::{F_EVENT_IDX, Guest, S_OK, T_FLUSH, T_IN, T_OUT, UNTOUCHED, config};

const MIB: u64 = 1 << 20;

/// Ask the queue to stop; what it says comes by the channel.
pub fn stop(unit: &mut BlkUnit) -> Receiver<Option<u32>> {
    let (done, stopped) = mpsc::channel();
    unit.stop_queue(0, Box::new(move |base| done.send(base).expect("the test listens")));
    stopped
}

#[test]
fn a_queue_stops_once_its_requests_are_answered_and_its_memory_is_free() {
    let (backend, gate) = gated(8);
    let mut guest = Guest::new(config(MIB), backend, DEFAULT_FEATURES);
    let ours = Arc::strong_count(guest.ram.memory());
    let first = guest.add(T_OUT, 0, &[1; 512], 0);
    let second = guest.add(T_IN, 0, &[], 512);
    guest.breathe();

    let stopped = stop(&mut guest.unit);
    let again = stop(&mut guest.unit);
    let never_taken = guest.add(T_FLUSH, 0, &[], 0);
    guest.breathe();
    assert!(stopped.try_recv().is_err(), "two requests are in flight");
    gate.send(()).expect("the backend listens");
    guest.breathe();
    assert_eq!(
        guest.driver.used(),
        Some((first.head, 1)),
        "requests in flight are answered"
    );
    assert!(stopped.try_recv().is_err(), "one request is in flight");
    gate.send(()).expect("the backend listens");
    guest.breathe();
    assert_eq!(guest.driver.used(), Some((second.head, 513)));
    assert_eq!(guest.driver.read(second.writable[0].0, 512), [1; 512]);
    let base = guest.driver.base();
    assert_eq!((stopped.try_recv(), again.try_recv()), (Ok(Some(base)), Ok(Some(base))));
    assert!(
        Arc::strong_count(guest.ram.memory()) < ours,
        "it let go of the guest's memory"
    );
    assert_eq!(stop(&mut guest.unit).try_recv(), Ok(None), "it does not run any more");
    assert!(guest.unit.wake_fds().is_empty());

    // It goes on where it stopped.
    guest.start(base);
    gate.send(()).expect("the backend listens");
    assert_eq!(guest.wait_used().0, never_taken.head);
    assert_eq!(guest.status(&never_taken), S_OK);
}

#[test]
fn a_revoked_volume_is_silent_and_takes_nothing() {
    let (backend, gate) = gated(8);
    let mut guest = Guest::new(config(MIB), backend, DEFAULT_FEATURES);
    gate.send(()).expect("the backend listens");
    assert_eq!(guest.run(T_OUT, 0, &[1; 512], 0).0, S_OK, "served before");
    let calls = guest.calls.0;
    let in_flight = guest.add(T_OUT, 1, &[2; 512], 0);
    guest.breathe();

    guest.unit.shut();
    let late = guest.add(T_OUT, 2, &[3; 512], 0);
    let stopped = stop(&mut guest.unit);
    assert!(stopped.try_recv().is_err(), "its memory is still in use");
    gate.send(()).expect("the backend listens");
    gate.send(()).expect("the backend listens");
    for _ in 0..10 {
        guest.breathe();
    }
    let each = u32::try_from(in_flight.readable.len() + in_flight.writable.len()).expect("few");
    let base = match FORMAT {
        RingFormat::Split => 2,
        // The second is used, and nobody is told.
        RingFormat::Packed => 0x8000_8000 + (each << 16) + 2 * each,
    };
    assert_eq!(stopped.try_recv(), Ok(Some(base)), "the third was never taken");
    assert_eq!(
        (guest.driver.used(), guest.calls.0),
        (None, calls),
        "not a word to the guest"
    );
    assert_eq!((guest.status(&in_flight), guest.status(&late)), (UNTOUCHED, UNTOUCHED));
    let expected = VolumeCounters {
        writes: 1,
        written_bytes: 512,
        silenced: 1,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
    assert!(!guest.unit.before_sleep());

    let resources = || {
        let fd = || eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        QueueResources {
            ring: outboard_ring::Ring::new(guest.driver.config(), guest.ram.memory().clone()).expect("in order"),
            kick: Some(KickFd::new(fd()).expect("an eventfd")),
            call: Some(CallFd::new(fd()).expect("an eventfd")),
            features: DEFAULT_FEATURES,
            log: None,
        }
    };
    let refused = guest.unit.start_queue(0, resources());
    assert!(matches!(refused, Err(DeviceError::NotGranted { object }) if object == "volume disk1"));
    let (backend, _gate) = gated(8);
    let mut fresh = BlkUnit::new(config(MIB), backend);
    assert!(matches!(
        fresh.start_queue(16, resources()),
        Err(DeviceError::NoSuchQueue {
            index: 16,
            queue_count: 16
        })
    ));
    let legacy = QueueResources {
        features: DEFAULT_FEATURES & !(1 << 32),
        ..resources()
    };
    let unkickable = QueueResources {
        kick: None,
        ..resources()
    };
    for (lacking, says) in [(legacy, "VIRTIO_F_VERSION_1"), (unkickable, "no kick descriptor")] {
        let refused = fresh
            .start_queue(0, lacking)
            .expect_err("something is lacking")
            .to_string();
        assert!(refused.contains(says), "{refused}");
    }
    assert!(fresh.start_queue(0, resources()).is_ok(), "granted anew, it is served");
    assert!(matches!(
        fresh.start_queue(0, resources()),
        Err(DeviceError::QueueRuns { index: 0 })
    ));
}

/// With the backend full nothing is taken from the ring, and the worker may sleep.
#[test]
fn a_full_backend_holds_the_queue_back() {
    let (backend, gate) = gated(4);
    let mut guest = Guest::new(config(MIB), backend, DEFAULT_FEATURES);
    let heads: Vec<u16> = (0..10).map(|n| guest.add(T_OUT, n, &[n as u8; 512], 0).head).collect();
    for _ in 0..5 {
        guest.breathe();
        assert_eq!(guest.unit.in_flight(), 4);
    }
    assert!(!guest.unit.before_sleep(), "nothing can be done before a completion");
    guest.unit.after_sleep();
    for head in heads {
        gate.send(()).expect("the backend listens");
        assert_eq!(guest.wait_used(), (head, 1));
    }
    assert_eq!(guest.unit.in_flight(), 0);
}

#[test]
fn kicks_are_asked_for_before_sleeping_only() {
    let features = DEFAULT_FEATURES & !F_EVENT_IDX;
    let mut guest = Guest::new(config(MIB), Box::new(MemoryBackend::new(MIB, false)), features);
    guest.add(T_FLUSH, 0, &[], 0);
    assert!(!guest.driver.needs_kick(), "the worker polls");
    assert!(guest.unit.before_sleep(), "a request is waiting");
    guest.unit.after_sleep();
    guest.wait_used();
    assert!(!guest.breathe(), "there is nothing to do");
    assert!(!guest.unit.before_sleep());
    assert_eq!(guest.unit.wake_fds().len(), 1);
    guest.add(T_FLUSH, 0, &[], 0);
    assert!(guest.driver.needs_kick());
}

#[test]
fn a_failed_backend_fails_the_request_and_the_volume_goes_on() {
    let recording = Recording::new(MIB, false);
    let mut guest = Guest::new(config(MIB), Box::new(recording.backend()), DEFAULT_FEATURES);
    recording.fail_writes(1);
    assert_eq!(guest.run(T_OUT, 0, &[1; 512], 0).0, 1);
    assert_eq!(guest.run(T_OUT, 0, &[2; 512], 0).0, S_OK);
    let expected = VolumeCounters {
        failed: 1,
        writes: 1,
        written_bytes: 512,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
}

/// The host takes the guest's memory away: the queue is broken, the process lives, others are served.
#[test]
fn memory_that_vanishes_breaks_the_queue_only() {
    let mut guest = Guest::new(config(MIB), Box::new(MemoryBackend::new(MIB, false)), DEFAULT_FEATURES);
    let mut neighbour = Guest::new(config(MIB), Box::new(MemoryBackend::new(MIB, false)), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
    guest.add(T_IN, 0, &[], 512);
    guest.ram.file().set_len(0).expect("the host may truncate it");
    for _ in 0..10 {
        guest.breathe();
    }
    assert_eq!(guest.unit.counters().broken_queues, 1);
    assert_eq!(guest.unit.in_flight(), 0);
    assert!(matches!(stop(&mut guest.unit).try_recv(), Ok(Some(_))));
    assert_eq!(neighbour.run(T_FLUSH, 0, &[], 0).0, S_OK);
}
