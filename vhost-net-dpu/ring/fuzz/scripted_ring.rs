//! Any bytes as the script of a guest and of a device on one ring. Whatever the guest does, the device gets chains
//! that are inside the guest's memory and outside of the ring, or one error and then nothing.
//!
//! Part of the fuzz target, of a property test, and of the test that replays the corpus.

use std::{fs::File, sync::Arc};

use outboard_ring::{
    Chain, Descriptor, DirtyLog, InflightRegion, Ring, RingConfig, RingFormat, RingLog,
    driver::{Driver, GuestRam, RAM_START, chain_of},
};

const SIZE: u16 = 8;
const RAM_LEN: u64 = 1 << 16;
/// Bytes of a log up to the end of RAM.
const LOG_LEN: u64 = (RAM_START + RAM_LEN) / 4096 / 8;
/// INDIRECT_DESC and EVENT_IDX.
const FEATURES: [u64; 4] = [0, 1 << 28, 1 << 29, 3 << 28];
const IN_ORDER: u64 = 1 << 35;
const PACKED: u64 = 1 << 34;
/// Chains of a burst, at most.
const BURST_MAX: u8 = 4;

/// Run a script: the first byte has the features, the starting indices and the logs, then come operations.
pub fn run(script: &[u8]) {
    let mut script = Script(script);
    let first = script.byte();
    let ram = GuestRam::new(RAM_LEN);
    ram.alloc(64, 1);
    let start = if first & 4 == 0 { 0 } else { u16::MAX - 3 };
    let in_order = first & 32 != 0;
    let packed = first & 64 != 0;
    let format = if packed { RingFormat::Packed } else { RingFormat::Split };
    let features =
        FEATURES[usize::from(first & 3)] | if in_order { IN_ORDER } else { 0 } | if packed { PACKED } else { 0 };
    let mut driver = Driver::new(&ram, SIZE, features).starting_at(start);
    // Some rings note what is in flight, some log what is written.
    let region = (first & 8 != 0).then(|| InflightRegion::create(format, 1, SIZE).expect("a small region"));
    let dirty = (first & 16 != 0).then(|| GuestRam::new(4096));
    // A packed ring may have a log of its position alone.
    let by_position = packed && region.is_some() && first & 128 != 0;
    let logs = (region.as_ref(), dirty.as_ref().map(GuestRam::file));
    let mut ring = begin(driver.config(), &ram, logs, by_position);
    let mut held: Vec<u16> = Vec::new();
    // Popped and not published, oldest first.
    let mut in_flight: Vec<u16> = Vec::new();
    let mut staged: Vec<u16> = Vec::new();
    // The chain popped last, while it is held.
    let mut last = None;
    let mut broken = false;
    let mut chain = Chain::new();
    while !script.0.is_empty() {
        let op = match script.byte() {
            byte @ 250..=253 => byte - 240,
            byte => byte % 10,
        };
        match op {
            0 => {
                let index = u16::from(script.byte()) % SIZE;
                driver.set_descriptor(index, script.descriptor(&driver));
            }
            1 => {
                let entry = u64::from(script.byte() % 16);
                let descriptor = script.descriptor(&driver);
                driver.write(driver.table(0) + 16 * entry, &descriptor.to_bytes());
            }
            2 => {
                driver.offer(script.index());
                driver.publish();
            }
            3 => driver.set_avail_idx(script.word()),
            4 | 5 => match ring.pop(&mut chain) {
                Ok(true) => {
                    assert!(!broken, "a broken ring yields nothing");
                    assert!(!held.contains(&chain.head()), "a head is held once");
                    check(&ram, &driver, &chain);
                    held.push(chain.head());
                    last = Some(chain.head());
                    if !in_flight.contains(&chain.head()) {
                        in_flight.push(chain.head());
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    assert!(!broken, "an error is told once: {error}");
                    broken = true;
                }
            },
            6 => {
                let head = script.index();
                let place = held.iter().position(|&h| h == head);
                let due = place.filter(|place| *place == 0 || !in_order);
                let was_held = due.map(|at| held.remove(at)).is_some();
                assert_eq!(ring.push_used(&chain_of(head), 0).is_ok(), was_held);
                staged.extend(was_held.then_some(head));
                last = last.filter(|&last| last != head);
            }
            7 => {
                ring.publish().expect("the ring's memory is there");
                in_flight.retain(|head| !staged.contains(head));
                staged.clear();
            }
            8 if script.byte() & 1 == 0 => ring.disable_kicks(),
            8 => match ring.enable_kicks() {
                Ok(_) => {}
                Err(error) => {
                    assert!(!broken, "an error is told once: {error}");
                    broken = true;
                }
            },
            10 => {
                // The device is killed, and another one takes over what it had.
                if region.is_some() {
                    let base = ring.base();
                    ring = begin(
                        RingConfig {
                            base,
                            ..driver.config()
                        },
                        &ram,
                        logs,
                        by_position,
                    );
                    if by_position {
                        in_flight.clear();
                    }
                    // A guest that uses an id again before it was told that it may has two chains of one id; the second is
                    // refused when it is taken again. By heads, as split rings have them, it is one.
                    let count = usize::from(ring.to_replay());
                    assert!(count == in_flight.len() || packed && count > in_flight.len());
                    (held, staged, last, broken) = (Vec::new(), Vec::new(), None, false);
                }
            }
            11 => {
                let count = usize::from(script.byte() % (BURST_MAX + 1));
                let mut chains: Vec<_> = (0..count).map(|_| Chain::new()).collect();
                let (taken, failure) = ring.pop_burst(&mut chains);
                assert!(taken <= count);
                if taken > 0 || failure.is_some() {
                    assert!(!broken, "a broken ring yields nothing");
                }
                for chain in &chains[..taken] {
                    assert!(!held.contains(&chain.head()), "a head is held once");
                    check(&ram, &driver, chain);
                    held.push(chain.head());
                    last = Some(chain.head());
                    if !in_flight.contains(&chain.head()) {
                        in_flight.push(chain.head());
                    }
                }
                broken |= failure.is_some();
            }
            12 => {
                // All that is held, in order: what a driver of either kind gets.
                let chains: Vec<_> = held.iter().map(|head| chain_of(*head)).collect();
                ring.push_used_burst(&chains).expect("it is held, and in order");
                staged.append(&mut held);
                last = None;
            }
            13 => {
                let len = usize::from(script.byte());
                let whole = script.byte() & 1 == 0;
                let filled = ring.fill_next(len, |bytes| {
                    assert_eq!(bytes.len(), len);
                    bytes.copy_from(&[0x5a; 256]);
                    whole
                });
                assert!(!filled || whole && !broken && held.is_empty() && dirty.is_none());
                assert!(!filled || region.is_none() || by_position);
            }
            _ => {
                if let Some(head) = last.take() {
                    let replayed = ring.to_replay();
                    ring.unpop(1);
                    held.retain(|&h| h != head);
                    // What was in flight before this device began still is.
                    if ring.to_replay() == replayed {
                        in_flight.retain(|&h| h != head);
                    }
                }
            }
        }
        assert_eq!(usize::from(ring.in_flight()), held.len());
        assert_eq!(ring.broken().is_some(), broken);
    }
}

/// A device's side of the ring, the first or the next.
fn begin(
    config: RingConfig,
    ram: &GuestRam,
    (region, dirty): (Option<&File>, Option<&File>),
    by_position: bool,
) -> Ring {
    let memory = ram.memory().clone();
    let ring = match region {
        None => Ring::new(config, memory),
        Some(file) => {
            let format = RingFormat::of(config.features);
            let len = InflightRegion::len_needed(format, 1, SIZE);
            let region = InflightRegion::map(file, 0, len, format, (1, SIZE)).expect("a region of our own");
            let log = region.queue(0).expect("its only queue");
            match by_position {
                true => Ring::with_position(config, memory, log),
                false => Ring::with_inflight(config, memory, log),
            }
        }
    };
    let mut ring = ring.expect("the ring itself is in order");
    if let Some(file) = dirty {
        let log = Arc::new(DirtyLog::map(file, 0, LOG_LEN).expect("a log of our own"));
        let used_addr = Some(config.used);
        ring.set_log(Some(RingLog { log, used_addr }));
    }
    ring
}

/// What every chain that is handed out has in common.
fn check(ram: &GuestRam, driver: &Driver, chain: &Chain) {
    let config = driver.config();
    let count = u64::from(SIZE);
    let (avail_len, used_len) = match driver.format() {
        RingFormat::Split => (4 + 2 * count, 4 + 8 * count),
        RingFormat::Packed => (4, 4),
    };
    let own = [
        (config.desc, 16 * count),
        (config.avail, avail_len),
        (config.used, used_len),
    ];
    let all = || chain.readable().iter().chain(chain.writable());
    for segment in all() {
        assert!(segment.len > 0);
        assert!(
            ram.memory().slice(segment.addr, segment.len as usize).is_ok(),
            "{segment:?} is in memory"
        );
        let end = segment.addr + u64::from(segment.len);
        assert!(
            own.iter().all(|&(at, len)| end <= at || segment.addr >= at + len),
            "{segment:?} is not in the ring"
        );
    }
    assert!((1..=usize::from(SIZE)).contains(&all().count()));
    assert_eq!(
        all().map(|s| u64::from(s.len)).sum::<u64>(),
        chain.readable_len() + chain.writable_len()
    );
    assert!(chain.head() < SIZE);
}

/// Bytes that never run out; after the end they are 0.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Mostly a descriptor of the queue, sometimes not.
    fn index(&mut self) -> u16 {
        match self.byte() {
            255 => self.word(),
            small => u16::from(small % 10),
        }
    }

    /// Mostly one that could be good.
    fn descriptor(&mut self, driver: &Driver) -> Descriptor {
        let config = driver.config();
        let near = u64::from(self.byte());
        let addr = match self.byte() % 10 {
            0 => config.desc.wrapping_sub(16).wrapping_add(near),
            1 => config.avail.wrapping_add(near),
            2 => config.used.wrapping_add(near),
            3 => RAM_START.wrapping_sub(near),
            4 => (RAM_START + RAM_LEN).wrapping_sub(near),
            5 => u64::MAX - near,
            6 | 7 => driver.table(0),
            _ => driver.buffer(0) + near,
        };
        let len = match self.byte() {
            0 => 0,
            254 => u32::MAX,
            253 => u32::from(self.word()),
            small if small & 0xf == 0xf => 16 * u32::from(small >> 4),
            small => u32::from(small),
        };
        let byte = u16::from(self.byte());
        Descriptor {
            addr,
            len,
            // What a packed ring tells its state by comes too.
            flags: byte & 7 | (byte & 8) << 4 | (byte & 16) << 11,
            next: self.index(),
        }
    }
}
