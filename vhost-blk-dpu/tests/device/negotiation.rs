//! Any subset of what is offered works: data, status and notification.

use crate::DEFAULT_FEATURES;
use outboard_ring::driver::Added;
use outboard_storage::{
    Backend, MemoryBackend,
    recording::{Random, Recording},
};
use proptest::prelude::*;
use vhost_blk_dpu::WRITEBACK_OFFSET;

use crate::{
    guest::{F_EVENT_IDX, S_OK, T_DISCARD, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES, UNTOUCHED, header},
    queues::Many,
};

const SECTORS: usize = 256;
const SIZE_BYTES: u64 = SECTORS as u64 * 512;
const F_VERSION_1: u64 = 1 << 32;
const F_INDIRECT: u64 = 1 << 28;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;
const T_GET_ID: u32 = 8;

/// A guest that goes to sleep, before a device that does so too. Whoever forgets to wake the other is found out.
struct Sleepers {
    many: Many,
    features: u64,
    asleep: bool,
}

/// A request that was made, and what is expected of it.
struct Asked {
    queue: usize,
    added: Added,
    status: u8,
    /// What it reads, by sectors; unknown after a discard.
    data: Vec<Option<u8>>,
}

impl Sleepers {
    fn new(backend: Box<dyn Backend>, features: u64) -> Self {
        let queues = if features & F_MQ == 0 { 1 } else { 4 };
        Self {
            many: Many::new(backend, SIZE_BYTES, queues, features),
            features,
            asleep: false,
        }
    }

    /// Make a chain of buffers in the guest's memory, in an indirect table if that is possible and wanted.
    fn ask(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32], indirect: bool) -> Added {
        let driver = &mut self.many.drivers[queue];
        let ram = &self.many.ram;
        let place = |len: u32| (ram.alloc(u64::from(len), 1), len);
        let readable: Vec<_> = readable
            .iter()
            .map(|bytes| {
                let (addr, len) = place(u32::try_from(bytes.len()).expect("short"));
                driver.write(addr, bytes);
                (addr, len)
            })
            .collect();
        let writable: Vec<_> = writable.iter().map(|&len| place(len)).collect();
        for &(addr, len) in &writable {
            driver.write(addr, &vec![UNTOUCHED; len as usize]);
        }
        let head = if indirect && self.features & F_INDIRECT != 0 {
            driver.add_indirect(&readable, &writable)
        } else {
            driver.add(&readable, &writable)
        };
        driver.publish();
        if driver.needs_kick() && self.asleep {
            self.many.unit.after_sleep();
            self.asleep = false;
        }
        Added {
            head: head.expect("there is room"),
            readable,
            writable,
        }
    }

    /// Wait until all are answered, and only when called.
    fn wait(&mut self, asked: &[Asked]) {
        let mut left: Vec<(usize, u16)> = asked.iter().map(|asked| (asked.queue, asked.added.head)).collect();
        for _ in 0..10_000 {
            for (queue, driver) in self.many.drivers.iter_mut().enumerate() {
                while let Some((head, _)) = driver.used() {
                    let at = left.iter().position(|&one| one == (queue, head));
                    left.swap_remove(at.expect("it was asked for, and not answered before"));
                }
                if self.features & F_EVENT_IDX != 0 {
                    driver.set_used_event(driver.published_used());
                }
            }
            if left.is_empty() {
                return;
            }
            self.sleep_until_called();
        }
        panic!("{left:?} were never answered");
    }

    fn sleep_until_called(&mut self) {
        let before = self.many.calls.0;
        while self.many.calls.0 == before {
            assert!(!self.asleep, "both sleep: a call or a kick is missing");
            if !self.many.breathe() && !self.many.unit.before_sleep() {
                self.asleep = true;
            }
        }
        // It may go to sleep after it called.
        if !self.asleep && !self.many.breathe() && !self.many.unit.before_sleep() {
            self.asleep = true;
        }
    }
}

/// Random requests, some at once on different parts of the volume, with what must come of them.
fn converse(features: u64, seed: u64, backend: Box<dyn Backend>) {
    let mut guest = Sleepers::new(backend, features);
    let mut random = Random(seed);
    let mut model: Vec<Option<u8>> = vec![Some(0); SECTORS];
    for round in 0..40u8 {
        if features & F_CONFIG_WCE != 0 && random.below(4) == 0 {
            let offset = u32::try_from(WRITEBACK_OFFSET).expect("small");
            let mode = u8::from(random.below(2) == 0);
            guest.many.unit.write_config(offset, &[mode]).expect("it may");
        }
        let mut asked = Vec::new();
        let parts = 1 + random.below(4);
        for part in 0..parts {
            let queue = random.below(guest.many.drivers.len());
            let sectors = 1 + random.below(12);
            let first = part * 64 + random.below(64 - sectors);
            let outside = random.below(8) == 0;
            let sector = if outside { (SECTORS + part) as u64 } else { first as u64 };
            let range = first..first + sectors;
            let len = u32::try_from(sectors * 512).expect("short");
            // Pieces of any length: what a request is spread over means nothing.
            let cut = 1 + u32::try_from(random.below(sectors * 512 - 1)).expect("short");
            let indirect = random.below(2) == 0;
            let ok = if outside { S_IOERR } else { S_OK };
            let mut one_range = [0; 16];
            one_range[..8].copy_from_slice(&sector.to_le_bytes());
            one_range[8..12].copy_from_slice(&u32::try_from(sectors).expect("few").to_le_bytes());
            let mut ranges = |kind, feature| {
                let readable: [&[u8]; 2] = [&header(kind, 0), &one_range];
                let status = if features & feature == 0 { S_UNSUPP } else { ok };
                (guest.ask(queue, &readable, &[1], indirect), status)
            };
            let (added, status, data) = match random.below(8) {
                0 => (guest.ask(queue, &[&header(T_FLUSH, 0)], &[1], indirect), S_OK, vec![]),
                1 => (
                    guest.ask(queue, &[&header(T_GET_ID, 0)], &[20, 1], indirect),
                    S_OK,
                    vec![],
                ),
                2 => {
                    let (added, status) = ranges(T_DISCARD, F_DISCARD);
                    if status == S_OK {
                        model[range].fill(None);
                    }
                    (added, status, vec![])
                }
                3 => {
                    let (added, status) = ranges(T_WRITE_ZEROES, F_WRITE_ZEROES);
                    if status == S_OK {
                        model[range].fill(Some(0));
                    }
                    (added, status, vec![])
                }
                4 | 5 => {
                    let bytes = vec![round + 1; len as usize];
                    let (one, other) = bytes.split_at(cut as usize);
                    let readable: [&[u8]; 3] = [&header(T_OUT, sector), one, other];
                    let added = guest.ask(queue, &readable, &[1], indirect);
                    if !outside {
                        model[range].fill(Some(round + 1));
                    }
                    (added, ok, vec![])
                }
                _ => {
                    let header = header(T_IN, sector);
                    let added = guest.ask(queue, &[&header], &[cut, len - cut, 1], indirect);
                    let data = if outside { vec![] } else { model[range].to_vec() };
                    (added, ok, data)
                }
            };
            asked.push(Asked {
                queue,
                added,
                status,
                data,
            });
        }
        guest.wait(&asked);
        for Asked {
            queue,
            added,
            status,
            data,
        } in &asked
        {
            let driver = &guest.many.drivers[*queue];
            let mut bytes: Vec<u8> = Vec::new();
            for &(addr, len) in &added.writable {
                bytes.extend(driver.read(addr, len as usize));
            }
            assert_eq!(bytes.pop(), Some(*status), "features {features:#x}");
            for (sector, expected) in bytes.chunks(512).zip(data) {
                if let Some(expected) = expected {
                    assert!(sector.iter().all(|byte| byte == expected), "features {features:#x}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn any_subset_of_the_offered_features_works(subset: u64, seed: u64, shuffled: bool) {
        let backend: Box<dyn Backend> = if shuffled {
            Box::new(Recording::new(SIZE_BYTES, false).shuffled_backend(seed))
        } else {
            Box::new(MemoryBackend::new(SIZE_BYTES, false))
        };
        converse(DEFAULT_FEATURES & subset | F_VERSION_1, seed, backend);
    }
}

/// Each feature alone, and all but one: subsets that chance may pass over.
#[test]
fn each_feature_works_alone_and_can_be_left_out() {
    for bit in (0..64).map(|bit| 1u64 << bit).filter(|bit| DEFAULT_FEATURES & bit != 0) {
        for features in [bit | F_VERSION_1, DEFAULT_FEATURES & !bit | F_VERSION_1] {
            converse(features, bit, Box::new(MemoryBackend::new(SIZE_BYTES, false)));
        }
    }
}
