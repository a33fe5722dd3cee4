//! A device that is lost with requests in flight, and the one that comes after it.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    sync::mpsc::{self, TryRecvError},
};

use crate::{DEFAULT_FEATURES, FORMAT};
use outboard_ring::{
    InflightRegion, Ring, RingConfig, RingFormat,
    driver::{Added, Driver, GuestRam},
};
use outboard_storage::recording::{Random, Recording};
use vhost_blk_dpu::{BlkUnit, QUEUE_COUNT};

use crate::{
    gated::gated,
    guest::{Calls, S_OK, T_FLUSH, T_IN, T_OUT, add, config, resources, status},
};

const SECTORS: usize = 24;
const SIZE_BYTES: u64 = SECTORS as u64 * 512;
const MIB: u64 = 1 << 20;
const QUEUES: u16 = 3;
const QUEUE_SIZE: u16 = 128;

/// What a front-end keeps while devices come and go.
struct FrontEnd {
    ram: GuestRam,
    drivers: Vec<Driver>,
    inflight: File,
}

impl FrontEnd {
    fn new() -> Self {
        let ram = GuestRam::new(8 << 20);
        let drivers = (0..QUEUES)
            .map(|_| Driver::new(&ram, QUEUE_SIZE, DEFAULT_FEATURES))
            .collect();
        Self {
            ram,
            drivers,
            inflight: InflightRegion::create(FORMAT, QUEUE_COUNT, QUEUE_SIZE).expect("a memfd"),
        }
    }

    /// All that QEMU, or of a packed ring the shim, knows of a device that is gone.
    fn base(&self, queue: usize) -> u32 {
        let driver = &self.drivers[queue];
        if FORMAT == RingFormat::Split {
            return driver.published_used().into();
        }
        let len = InflightRegion::len_needed(FORMAT, 1, QUEUE_SIZE);
        let mut header = [0; 24];
        self.inflight
            .read_exact_at(&mut header, len * queue as u64)
            .expect("it is there");
        // version, old_used_idx and old_used_wrap_counter (vhost-user, QueueRegionPacked)
        match (header[8], header[18], header[19], header[21]) {
            (0, ..) => driver.config().base,
            (_, low, high, wrap) => {
                let told = u32::from(u16::from_le_bytes([low, high])) | u32::from(wrap) << 15;
                told | told << 16
            }
        }
    }

    fn ring(&self, queue: usize, logged: bool) -> Ring {
        let driver = &self.drivers[queue];
        let config = RingConfig {
            base: self.base(queue),
            ..driver.config()
        };
        let memory = self.ram.memory().clone();
        if !logged {
            return Ring::new(config, memory).expect("in order");
        }
        let len = InflightRegion::len_needed(FORMAT, QUEUE_COUNT, QUEUE_SIZE);
        let region = InflightRegion::map(&self.inflight, 0, len, FORMAT, (QUEUE_COUNT, QUEUE_SIZE)).expect("in order");
        let log = region
            .queue(u16::try_from(queue).expect("few"))
            .expect("it has that queue");
        Ring::with_inflight(config, memory, log).expect("in order")
    }

    fn start(&self, unit: &mut BlkUnit, logged: bool) {
        for queue in 0..QUEUES {
            let ring = self.ring(usize::from(queue), logged);
            unit.start_queue(queue, resources(ring, DEFAULT_FEATURES))
                .expect("it is not running");
        }
    }
}

enum What {
    Write,
    Read { written: u64 },
    Flush,
}

/// How a trial can go wrong.
#[derive(Debug, PartialEq)]
enum Fault {
    /// Answered, though nobody asked, or a second time.
    Answered { queue: usize, head: u16 },
    /// Answered with an error, or with the wrong data.
    Wrong { queue: usize, head: u16 },
    /// Never answered.
    Lost { count: usize },
    /// A sector does not hold what was written to it last.
    Data { sector: usize },
}

/// Write, read and flush on several queues at random; now and then the device is lost and another comes. At most one
/// write to a sector is in flight, and no read beside it.
fn trial(seed: u64, logged: bool) -> Result<usize, Fault> {
    let recording = Recording::new(SIZE_BYTES, false);
    let mut front = FrontEnd::new();
    let mut random = Random(seed);
    let mut calls = Calls::default();
    let mut backend_seed = seed;
    let mut new_unit = |front: &FrontEnd| {
        backend_seed += 1;
        let mut unit = BlkUnit::new(config(SIZE_BYTES), Box::new(recording.shuffled_backend(backend_seed)));
        front.start(&mut unit, logged);
        unit
    };
    let mut unit = new_unit(&front);
    let mut in_flight: BTreeMap<(usize, u16), (Added, usize, What)> = BTreeMap::new();
    let (mut written, mut busy) = ([0u64; SECTORS], [false; SECTORS]);
    let (mut crashes, mut n) = (0, 0);

    for step in 0..600 {
        let draining = step >= 500;
        if !draining && in_flight.len() < 30 {
            let (queue, sector) = (random.below(usize::from(QUEUES)), random.below(SECTORS));
            let driver = &mut front.drivers[queue];
            let (added, what) = match random.below(6) {
                0 => (add(driver, T_FLUSH, 0, &[], 0), What::Flush),
                _ if busy[sector] => continue,
                1 | 2 => {
                    let what = What::Read {
                        written: written[sector],
                    };
                    (add(driver, T_IN, sector as u64, &[], 512), what)
                }
                _ => {
                    n += 1;
                    written[sector] = n;
                    let data = n.to_le_bytes().repeat(64);
                    (add(driver, T_OUT, sector as u64, &data, 0), What::Write)
                }
            };
            if !matches!(what, What::Flush) {
                busy[sector] = true;
            }
            in_flight.insert((queue, added.head), (added, sector, what));
        }
        if random.below(3) == 0 || draining {
            unit.breathe(&mut calls);
        }
        if random.below(25) == 0 && !draining && unit.in_flight() > 0 {
            // What its backend had not done yet is never done by it.
            drop(unit);
            crashes += 1;
            unit = new_unit(&front);
        }
        for queue in 0..usize::from(QUEUES) {
            while let Some((head, _)) = front.drivers[queue].used() {
                let (added, sector, what) = in_flight
                    .remove(&(queue, head))
                    .ok_or(Fault::Answered { queue, head })?;
                let driver = &front.drivers[queue];
                let right = status(driver, &added) == S_OK
                    && match what {
                        What::Read { written } => {
                            driver.read(added.writable[0].0, 512) == written.to_le_bytes().repeat(64)
                        }
                        What::Write | What::Flush => true,
                    };
                if !right {
                    return Err(Fault::Wrong { queue, head });
                }
                if !matches!(what, What::Flush) {
                    busy[sector] = false;
                }
            }
        }
    }
    if !in_flight.is_empty() {
        return Err(Fault::Lost { count: in_flight.len() });
    }
    for (sector, written) in written.iter().enumerate() {
        if recording.sector(sector as u64)[..] != written.to_le_bytes().repeat(64) {
            return Err(Fault::Data { sector });
        }
    }
    Ok(crashes)
}

#[test]
fn each_request_is_answered_once_however_often_the_device_is_lost() {
    let mut crashes = 0;
    for seed in 0..40 {
        match trial(seed, true) {
            Ok(count) => crashes += count,
            Err(fault) => panic!("seed {seed}: {fault:?}"),
        }
    }
    assert!(crashes > 200, "only {crashes}");
}

/// The used index alone does not tell which requests are still to be done.
#[test]
fn control_without_a_log_of_what_is_in_flight_requests_are_lost_or_answered_twice() {
    let faults = (0..40).filter(|&seed| trial(seed, false).is_err()).count();
    assert!(faults > 30, "only {faults} of 40");
}

/// A queue that is to stop when it has just been started tells an index, which stands for all before it.
#[test]
fn a_queue_takes_what_was_in_flight_before_it_stops() {
    let mut front = FrontEnd::new();
    let (backend, _never) = gated(8);
    let mut lost = BlkUnit::new(config(MIB), backend);
    front.start(&mut lost, true);
    let mut calls = Calls::default();
    let added: Vec<Added> = (0..5)
        .map(|n| add(&mut front.drivers[0], T_OUT, n, &[n as u8 + 1; 512], 0))
        .collect();
    while lost.in_flight() < 5 {
        lost.breathe(&mut calls);
    }
    drop(lost);

    let recording = Recording::new(MIB, false);
    let mut unit = BlkUnit::new(config(MIB), Box::new(recording.shuffled_backend(2)));
    front.start(&mut unit, true);
    let late = add(&mut front.drivers[0], T_FLUSH, 0, &[], 0);
    let (done, stopped) = mpsc::channel();
    unit.stop_queue(0, Box::new(move |index| done.send(index).expect("the test listens")));
    assert_eq!(
        stopped.try_recv(),
        Err(TryRecvError::Empty),
        "five are to be done first"
    );
    while stopped
        .try_recv()
        .map_err(|error| assert_eq!(error, TryRecvError::Empty))
        .map(|base| base.is_some())
        != Ok(true)
    {
        unit.breathe(&mut calls);
    }
    let mut heads: Vec<u16> = std::iter::from_fn(|| front.drivers[0].used())
        .map(|(head, _)| head)
        .collect();
    heads.sort_unstable();
    let mut expected: Vec<u16> = added.iter().map(|added| added.head).collect();
    expected.sort_unstable();
    assert_eq!(heads, expected, "and what came after was not taken");
    assert!((0..5).all(|n| recording.sector(n) == [n as u8 + 1; 512]));
    unit.start_queue(0, resources(front.ring(0, true), DEFAULT_FEATURES))
        .expect("it was stopped");
    let answer = (0..100).find_map(|_| {
        unit.breathe(&mut calls);
        front.drivers[0].used()
    });
    assert_eq!(answer, Some((late.head, 1)));
}
