//! Several queues of one volume.

use crate::{DEFAULT_FEATURES, FORMAT};
use outboard_ring::RingFormat;
use outboard_ring::{
    DESC_F_NEXT, Descriptor, Ring,
    driver::{Added, Driver, GuestRam},
};
use outboard_storage::{Backend, MemoryBackend, NullBackend, recording::Recording};
use outboard_vhost_user::DeviceError;
use vhost_blk_dpu::{BlkUnit, QUEUE_COUNT, WRITEBACK_OFFSET};

use crate::guest::{Calls, F_EVENT_IDX, Guest, S_OK, T_FLUSH, T_IN, T_OUT, add, config, resources, status};

const MIB: u64 = 1 << 20;

/// A guest with a driver for each of several queues of one volume.
pub struct Many {
    pub ram: GuestRam,
    pub drivers: Vec<Driver>,
    pub unit: BlkUnit,
    pub calls: Calls,
}

impl Many {
    pub fn new(backend: Box<dyn Backend>, size_bytes: u64, queues: u16, features: u64) -> Self {
        let ram = GuestRam::new(32 << 20);
        let drivers = (0..queues).map(|_| Driver::new(&ram, 64, features)).collect();
        let mut many = Self {
            ram,
            drivers,
            unit: BlkUnit::new(config(size_bytes), backend),
            calls: Calls::default(),
        };
        for index in 0..queues {
            many.start(index);
        }
        many
    }

    /// Start a queue where it was used up to.
    pub fn start(&mut self, index: u16) {
        let driver = &self.drivers[usize::from(index)];
        let config = outboard_ring::RingConfig {
            base: driver.base(),
            ..driver.config()
        };
        let ring = Ring::new(config, self.ram.memory().clone()).expect("a ring in order");
        self.unit
            .start_queue(index, resources(ring, config.features))
            .expect("it is not running");
    }

    pub fn add(&mut self, queue: usize, kind: u32, sector: u64, data: &[u8], read_len: u32) -> Added {
        add(&mut self.drivers[queue], kind, sector, data, read_len)
    }

    pub fn breathe(&mut self) -> bool {
        self.unit.breathe(&mut self.calls)
    }

    /// Wait for the next answer on one queue.
    pub fn wait_used(&mut self, queue: usize) -> u16 {
        for _ in 0..200_000 {
            if let Some((head, _)) = self.drivers[queue].used() {
                return head;
            }
            if !self.breathe() {
                std::thread::yield_now();
            }
        }
        panic!("the device never answered on queue {queue}");
    }
}

fn memory() -> Box<dyn Backend> {
    Box::new(MemoryBackend::new(MIB, false))
}

/// What is written by one queue is read by all; each is answered where it asked.
#[test]
fn all_queues_serve_the_same_volume_at_once() {
    let recording = Recording::new(MIB, false);
    let backend = Box::new(recording.shuffled_backend(9));
    let mut many = Many::new(backend, MIB, QUEUE_COUNT, DEFAULT_FEATURES);
    let queues = usize::from(QUEUE_COUNT);
    for round in 0..20u8 {
        let writes: Vec<Added> = (0..queues)
            .map(|queue| many.add(queue, T_OUT, queue as u64, &[queue as u8 ^ round; 512], 0))
            .collect();
        for (queue, added) in writes.iter().enumerate() {
            assert_eq!(many.wait_used(queue), added.head);
            assert_eq!(status(&many.drivers[queue], added), S_OK);
        }
        let reads: Vec<Added> = (0..queues)
            .map(|queue| many.add(queue, T_IN, (queue as u64 + 5) % 16, &[], 512))
            .collect();
        for (queue, added) in reads.iter().enumerate() {
            assert_eq!(many.wait_used(queue), added.head);
            let expected = ((queue + 5) % 16) as u8 ^ round;
            assert_eq!(many.drivers[queue].read(added.writable[0].0, 512), [expected; 512]);
        }
    }
    assert!(many.drivers.iter_mut().all(|driver| driver.used().is_none()));
    let counters = many.unit.counters();
    assert_eq!((counters.writes, counters.reads), (320, 320));
    let ring = Ring::new(many.drivers[0].config(), many.ram.memory().clone()).expect("in order");
    let refused = many.unit.start_queue(QUEUE_COUNT, resources(ring, DEFAULT_FEATURES));
    assert!(matches!(refused, Err(DeviceError::NoSuchQueue { index: 16, .. })));
}

#[test]
fn a_broken_queue_and_a_stopped_one_leave_the_others() {
    let mut many = Many::new(memory(), MIB, 4, DEFAULT_FEATURES);
    let wraps = Descriptor {
        addr: u64::MAX - 8,
        len: 16,
        flags: DESC_F_NEXT,
        next: 1,
    };
    many.drivers[1].offer_chain(&[wraps]);
    many.drivers[1].publish();
    let beginning = many.drivers[2].base();
    many.unit
        .stop_queue(2, Box::new(move |base| assert_eq!(base, Some(beginning))));
    for round in 0..3 {
        for queue in [0, 3] {
            let added = many.add(queue, T_OUT, queue as u64, &[round; 512], 0);
            assert_eq!(many.wait_used(queue), added.head);
        }
    }
    assert_eq!(many.unit.counters().broken_queues, 1);
    assert_eq!(many.drivers[1].used(), None);
    let added = many.add(2, T_IN, 3, &[], 512);
    for _ in 0..10 {
        many.breathe();
    }
    assert_eq!(many.drivers[2].used(), None, "it was stopped");
    many.start(2);
    assert_eq!(many.wait_used(2), added.head);
    assert_eq!(many.drivers[2].read(added.writable[0].0, 512), [2; 512]);
    assert!(!many.unit.before_sleep());
    assert_eq!(many.unit.wake_fds().len(), 3, "all but the broken one");
}

/// Keep as many requests in a queue as it holds: how many were answered.
fn keep_full(many: &mut Many, queue: usize, buffer: u64, read_len: u32) -> usize {
    let driver = &mut many.drivers[queue];
    let mut answered = 0;
    while driver.used().is_some() {
        answered += 1;
    }
    while driver
        .add_indirect(&[(buffer, 16)], &[(buffer + 16, read_len), (buffer + 16, 1)])
        .is_some()
    {}
    driver.publish();
    answered
}

/// What each queue gets in so many breaths, if all have more to do than can be done.
fn shares(read_lens: &[u32], breaths: usize) -> Vec<usize> {
    let backend = Box::new(NullBackend::new(64 * MIB, false));
    let queues = u16::try_from(read_lens.len()).expect("few");
    let mut many = Many::new(backend, 64 * MIB, queues, DEFAULT_FEATURES);
    let buffer = many.ram.alloc(4 * MIB, 4096);
    let mut answered = vec![0; read_lens.len()];
    for _ in 0..breaths {
        for (queue, &read_len) in read_lens.iter().enumerate() {
            // A header of zeros reads at sector 0.
            answered[queue] += keep_full(&mut many, queue, buffer, read_len);
        }
        many.breathe();
    }
    answered
}

#[test]
fn queues_that_ask_for_the_same_get_the_same() {
    let answered = shares(&[4096; 16], 160);
    let (least, most) = (answered.iter().min(), answered.iter().max());
    let (least, most) = (*least.expect("16"), *most.expect("16"));
    assert!(least > 100 && most - least <= most / 8, "{answered:?}");
}

#[test]
fn a_queue_of_large_requests_leaves_a_queue_of_small_ones_its_share_of_bytes() {
    let answered = shares(&[1 << 20, 4096], 200);
    let bytes = [answered[0] << 20, answered[1] << 12];
    assert!(answered[0] > 20, "{answered:?}");
    assert!(bytes[1] >= bytes[0] / 8, "{answered:?}");
    assert!(answered[1] >= 200 * 16, "it has its turn in each breath: {answered:?}");
}

#[test]
fn with_event_idx_a_driver_is_called_when_its_event_is_passed() {
    let mut guest = Guest::new(config(MIB), memory(), DEFAULT_FEATURES);
    assert_ne!(DEFAULT_FEATURES & F_EVENT_IDX, 0);
    // Of a packed ring it is a descriptor, and each of these requests has two.
    let each = if FORMAT == RingFormat::Packed { 2 } else { 1 };
    guest.driver.set_used_event(2 * each);
    guest.breathe();
    assert_eq!(guest.calls.0, 1, "when it starts, whatever the driver wants");
    guest.breathe();
    for (n, calls) in [(0, 1), (1, 1), (2, 2), (3, 2)] {
        assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
        assert_eq!(guest.calls.0, calls, "after answer {n}");
    }
    // And the device is kicked when its own is.
    assert!(!guest.unit.before_sleep());
    let _ = guest.driver.needs_kick();
    guest.unit.after_sleep();
    guest.add(T_FLUSH, 0, &[], 0);
    // A device that is awake can say of a packed ring that it wants none.
    let asked = guest.driver.needs_kick();
    assert_eq!(asked, FORMAT == RingFormat::Split, "it asked for the next one");
    guest.add(T_FLUSH, 0, &[], 0);
    assert!(!guest.driver.needs_kick(), "and for no more");
    guest.wait_used();
    guest.wait_used();
}

fn set_writeback(unit: &mut BlkUnit, byte: u8) -> Result<(), DeviceError> {
    unit.write_config(u32::try_from(WRITEBACK_OFFSET).expect("small"), &[byte])
}

/// Switching the cache off holds for all queues at once and for whatever is taken from then on.
#[test]
fn the_cache_mode_holds_for_all_queues_until_it_is_switched_or_reset() {
    let recording = Recording::new(MIB, false);
    let mut many = Many::new(Box::new(recording.backend()), MIB, 3, DEFAULT_FEATURES);
    let write = |many: &mut Many| {
        let before = recording.syncs();
        for queue in 0..3 {
            many.add(queue, T_OUT, queue as u64, &[1; 512], 0);
            many.wait_used(queue);
        }
        recording.syncs() - before
    };
    assert_eq!(many.unit.config_space()[WRITEBACK_OFFSET], 1);
    assert_eq!(write(&mut many), 0);
    set_writeback(&mut many.unit, 0).expect("it may");
    assert_eq!(many.unit.config_space()[WRITEBACK_OFFSET], 0);
    assert_eq!(write(&mut many), 3, "each write is durable");
    // Pausing a VM stops its queues and is no reset.
    many.unit.stop_queue(1, Box::new(|_| {}));
    many.start(1);
    assert_eq!(write(&mut many), 3);
    set_writeback(&mut many.unit, 1).expect("it may");
    assert_eq!(write(&mut many), 0);
    set_writeback(&mut many.unit, 0).expect("it may");
    for queue in 0..3 {
        many.unit.stop_queue(queue, Box::new(|_| {}));
    }
    many.unit.reset();
    assert_eq!(many.unit.config_space()[WRITEBACK_OFFSET], 1);
}

#[test]
fn nothing_but_the_cache_mode_is_written() {
    let mut many = Many::new(memory(), MIB, 1, DEFAULT_FEATURES);
    let space = many.unit.config_space();
    for (offset, data) in [
        (0, &[0xff; 8][..]),
        (WRITEBACK_OFFSET as u32, &[2]),
        (WRITEBACK_OFFSET as u32, &[0, 1]),
        (WRITEBACK_OFFSET as u32, &[]),
        (WRITEBACK_OFFSET as u32 + 1, &[0]),
        (59, &[0, 0]),
        (60, &[0]),
        (u32::MAX, &[0; 256]),
    ] {
        let refused = many.unit.write_config(offset, data);
        assert!(
            matches!(refused, Err(DeviceError::ConfigNotWritable { .. })),
            "{offset}: {refused:?}"
        );
    }
    assert_eq!(many.unit.config_space(), space);
    // A front-end that writes all of it, as it was but for the mode.
    let mut changed = space;
    changed[WRITEBACK_OFFSET] = 0;
    many.unit.write_config(0, &changed).expect("only the mode differs");
    assert_eq!(many.unit.config_space(), changed);
}

/// A guest sees its volume grow while it uses it.
#[test]
fn a_volume_is_resized_under_its_guest() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MIB).expect("its size");
    let backend = outboard_storage::open_file(file.path(), MIB, false).expect("it opens");
    let mut guest = Guest::new(config(MIB), Box::new(backend), DEFAULT_FEATURES);
    let capacity = |guest: &Guest| u64::from_le_bytes(*guest.unit.config_space().first_chunk().expect("8 bytes"));
    assert_eq!(guest.run(T_OUT, 2047, &[1; 512], 0).0, S_OK);
    assert_ne!(guest.run(T_OUT, 2048, &[2; 512], 0).0, S_OK);
    let refused = guest
        .unit
        .resize(2 * MIB)
        .expect_err("the file is as it was")
        .to_string();
    assert!(refused.contains("enlarge it first"), "{refused}");
    assert_eq!(capacity(&guest), 2048);

    let in_flight = guest.add(T_OUT, 0, &[3; 512], 0);
    guest.breathe();
    file.as_file().set_len(2 * MIB).expect("it may grow");
    assert_eq!(guest.unit.resize(2 * MIB), Ok(true));
    assert_eq!(guest.unit.resize(2 * MIB), Ok(false), "nothing to tell");
    assert_eq!(capacity(&guest), 4096);
    assert_eq!(guest.wait_used().0, in_flight.head);
    assert_eq!(guest.run(T_OUT, 4095, &[2; 512], 0).0, S_OK);

    assert_eq!(guest.unit.resize(MIB), Ok(true));
    assert_ne!(guest.run(T_IN, 4095, &[], 512).0, S_OK, "it ends before");
    assert_eq!(guest.run(T_IN, 2047, &[], 512), (S_OK, 513, vec![1; 512]));
}
