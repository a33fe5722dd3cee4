//! What the guest was told is stored, is stored: it survives a power cut at any moment.
//!
//! A guest writes and flushes at random, on several queues, while a backend carries requests out in any order and loses, when the power
//! goes, whatever no successful sync covered, or any part of it. Afterwards every sector must hold what was written to
//! it before the last flush that was answered, or something written later. What was written while the cache was off must
//! be there too, however often it is switched. With the flush answered without a sync, the same test finds losses.

use std::collections::BTreeMap;

use crate::DEFAULT_FEATURES;
use crate::{
    guest::{Guest, S_OK, T_FLUSH, T_IN, T_OUT, config, status},
    queues::Many,
};
use outboard_controls::{Check, Off};
use outboard_storage::recording::{Keep, Random, Recording};
use vhost_blk_dpu::WRITEBACK_OFFSET;

const F_FLUSH: u64 = 1 << 9;
const SECTORS: usize = 24;
const SIZE_BYTES: u64 = SECTORS as u64 * 512;
const SEEDS: std::ops::Range<u64> = 0..60;

/// A sector that holds something older than what the guest was told is there.
#[derive(Debug, PartialEq)]
struct Loss {
    sector: usize,
    promised: usize,
    found: usize,
}

/// What a request in flight is.
enum InFlight {
    /// The `n`th write to a sector, and whether the cache was off all the time since it was submitted
    /// (virtio 1.3 §5.2.6.2).
    Write { sector: usize, n: usize, through: bool },
    /// A flush, and how many writes to each sector had been answered when it was submitted.
    Flush { answered: Vec<usize> },
}

/// A guest and what it knows. The `n`th write to a sector stores `n` in it; there is at most one in flight to each.
struct Trial {
    guest: Many,
    random: Random,
    in_flight: BTreeMap<(usize, u16), (outboard_ring::driver::Added, InFlight)>,
    submitted: Vec<usize>,
    answered: Vec<usize>,
    /// What must be there after a power cut.
    promised: Vec<usize>,
    /// Each answered write is promised at once.
    write_through: bool,
    how: How,
}

/// What the driver negotiated, and what it does.
#[derive(Debug, Clone, Copy)]
struct How {
    features: u64,
    queues: u16,
    /// It switches the cache off and on.
    switches: bool,
}

impl How {
    fn with(features: u64) -> Self {
        Self {
            features,
            queues: 4,
            switches: false,
        }
    }
}

impl Trial {
    fn new(recording: &Recording, seed: u64, how: How) -> Self {
        let backend = Box::new(recording.shuffled_backend(seed));
        Self {
            guest: Many::new(backend, SIZE_BYTES, how.queues, how.features),
            random: Random(!seed),
            in_flight: BTreeMap::new(),
            submitted: vec![0; SECTORS],
            answered: vec![0; SECTORS],
            promised: vec![0; SECTORS],
            write_through: how.features & F_FLUSH == 0,
            how,
        }
    }

    fn step(&mut self) {
        let may_flush = self.how.features & F_FLUSH != 0;
        match self.random.below(8) {
            0 if may_flush => self.flush(),
            0..=4 => self.write(),
            5 if self.how.switches && self.random.below(4) == 0 => self.switch(),
            _ => {}
        }
        self.guest.breathe();
        for queue in 0..usize::from(self.how.queues) {
            while let Some((head, _)) = self.guest.drivers[queue].used() {
                self.on_answer(queue, head);
            }
        }
    }

    fn switch(&mut self) {
        self.write_through = !self.write_through;
        let offset = u32::try_from(WRITEBACK_OFFSET).expect("small");
        let writeback = u8::from(!self.write_through);
        self.guest.unit.write_config(offset, &[writeback]).expect("it may");
        if !self.write_through {
            for (_, what) in self.in_flight.values_mut() {
                if let InFlight::Write { through, .. } = what {
                    *through = false;
                }
            }
        }
    }

    fn flush(&mut self) {
        if self.in_flight.len() < 8 {
            let queue = self.random.below(usize::from(self.how.queues));
            let added = self.guest.add(queue, T_FLUSH, 0, &[], 0);
            let answered = self.answered.clone();
            self.in_flight
                .insert((queue, added.head), (added, InFlight::Flush { answered }));
        }
    }

    fn write(&mut self) {
        let sector = self.random.below(SECTORS);
        if self.submitted[sector] == self.answered[sector] && self.in_flight.len() < 8 {
            let n = self.submitted[sector] + 1;
            self.submitted[sector] = n;
            let data = (n as u64).to_le_bytes().repeat(64);
            let queue = self.random.below(usize::from(self.how.queues));
            let added = self.guest.add(queue, T_OUT, sector as u64, &data, 0);
            let through = self.write_through;
            self.in_flight
                .insert((queue, added.head), (added, InFlight::Write { sector, n, through }));
        }
    }

    fn on_answer(&mut self, queue: usize, head: u16) {
        let (added, what) = self.in_flight.remove(&(queue, head)).expect("it was in flight");
        assert_eq!(status(&self.guest.drivers[queue], &added), S_OK);
        match what {
            InFlight::Write { sector, n, through } => {
                self.answered[sector] = n;
                if through {
                    self.promised[sector] = n;
                }
            }
            InFlight::Flush { answered } => {
                for (promised, answered) in self.promised.iter_mut().zip(answered) {
                    *promised = answered.max(*promised);
                }
            }
        }
    }
}

/// Write and flush for a while, cut the power, open the volume again and look. Returns how many writes were promised.
fn trial(seed: u64, how: How) -> Result<usize, Loss> {
    let recording = Recording::new(SIZE_BYTES, false);
    let mut trial = Trial::new(&recording, seed, how);
    let steps = 20 + trial.random.below(400);
    for _ in 0..steps {
        trial.step();
    }
    let keep = match trial.random.below(3) {
        0 => Keep::Nothing,
        1 => Keep::Prefix(trial.random.next_u64() % (recording.writes() + 1)),
        _ => Keep::Subset(trial.random.next_u64()),
    };
    let Trial {
        guest,
        promised,
        submitted,
        ..
    } = trial;
    drop(guest);
    recording.power_loss(keep);

    let mut after = Guest::new(config(SIZE_BYTES), Box::new(recording.backend()), DEFAULT_FEATURES);
    for sector in 0..SECTORS {
        let (status, _, data) = after.run(T_IN, sector as u64, &[], 512);
        assert_eq!(status, S_OK);
        let numbers: Vec<u64> = data
            .as_chunks()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
            .collect();
        assert!(numbers.iter().all(|&n| n == numbers[0]), "sector {sector} is torn");
        let found = usize::try_from(numbers[0]).expect("small");
        assert!(
            found <= submitted[sector],
            "sector {sector} holds what was never written"
        );
        if found < promised[sector] {
            return Err(Loss {
                sector,
                promised: promised[sector],
                found,
            });
        }
    }
    Ok(promised.iter().sum())
}

fn trials(how: How) -> Vec<Result<usize, Loss>> {
    SEEDS.map(|seed| trial(seed, how)).collect()
}

fn assert_nothing_is_lost(how: How) {
    let results = trials(how);
    for (seed, result) in SEEDS.zip(&results) {
        assert!(result.is_ok(), "seed {seed}: {result:?}");
    }
    let promised: usize = results.into_iter().flatten().sum();
    assert!(promised > 1000, "the test promises something: {promised}");
}

fn assert_losses_are_found(how: How) {
    let _off = Off::here(Check::DurableFlush);
    let losses = trials(how).iter().filter(|result| result.is_err()).count();
    assert!(losses > 10, "only {losses} trials lost something that was promised");
}

#[test]
fn what_was_written_before_an_answered_flush_survives_a_power_cut() {
    assert_nothing_is_lost(How::with(DEFAULT_FEATURES));
}

#[test]
fn control_a_flush_that_is_answered_without_a_sync_loses_writes() {
    assert_losses_are_found(How::with(DEFAULT_FEATURES));
}

#[test]
fn without_the_flush_feature_every_answered_write_survives_a_power_cut() {
    assert_nothing_is_lost(How::with(DEFAULT_FEATURES & !F_FLUSH));
}

#[test]
fn control_writes_that_are_not_forced_to_the_medium_are_lost() {
    assert_losses_are_found(How::with(DEFAULT_FEATURES & !F_FLUSH));
}

#[test]
fn what_was_written_while_the_cache_was_off_survives_a_power_cut() {
    for features in [DEFAULT_FEATURES, DEFAULT_FEATURES & !F_FLUSH] {
        assert_nothing_is_lost(How {
            switches: true,
            ..How::with(features)
        });
    }
}

#[test]
fn control_a_cache_that_cannot_be_switched_off_loses_writes() {
    // Without flushes, so that only the mode promises anything.
    assert_losses_are_found(How {
        switches: true,
        ..How::with(DEFAULT_FEATURES & !F_FLUSH)
    });
}

/// After a failed sync Linux may have dropped the data and forgotten the failure: a later flush must not succeed.
#[test]
fn a_failed_flush_is_never_followed_by_one_that_succeeds() {
    let recording = Recording::new(SIZE_BYTES, false);
    let mut guest = Guest::new(config(SIZE_BYTES), Box::new(recording.backend()), DEFAULT_FEATURES);
    let data = [7; 512];
    assert_eq!(guest.run(T_OUT, 3, &data, 0).0, S_OK);
    recording.fail_syncs(1);
    assert_ne!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
    assert_ne!(
        guest.run(T_FLUSH, 0, &[], 0).0,
        S_OK,
        "the data of the first write is gone: this must not succeed"
    );
    assert_ne!(guest.run(T_OUT, 4, &data, 0).0, S_OK);
    assert_eq!(guest.run(T_IN, 3, &[], 512).0, S_OK, "reads go on");
    assert_eq!(recording.syncs(), 0);

    // Opened anew, it serves again, with what is really there.
    drop(guest);
    recording.power_loss(Keep::Nothing);
    let mut guest = Guest::new(config(SIZE_BYTES), Box::new(recording.backend()), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_IN, 3, &[], 512), (S_OK, 513, vec![0; 512]));
    assert_eq!(guest.run(T_OUT, 3, &data, 0).0, S_OK);
    assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
    assert_eq!((recording.syncs(), recording.sector(3)), (1, data));
}
