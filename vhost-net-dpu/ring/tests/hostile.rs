//! Guests that break the rules of a split ring. Each attack comes with legitimate chains before and beside it, and
//! with a control: without the one check that stops it, it succeeds.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use outboard_controls::{Check, Off};
use outboard_ring::{
    Chain, ChainFault, ConfigFault, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, GuestMemory, MemoryError,
    RingConfig, RingError, RingFormat, Segment, SplitRing,
    driver::{Driver, GuestRam, RAM_START},
};

const SIZE: u16 = 8;
const INDIRECT: u64 = 1 << 28;
const RAM_LEN: u64 = 1 << 20;

struct Rig {
    ram: GuestRam,
    driver: Driver,
    ring: SplitRing,
}

impl Rig {
    fn new(features: u64) -> Self {
        let ram = GuestRam::new(RAM_LEN);
        // The ring is not at the very start, where a buffer may begin outside of memory.
        ram.alloc(4096, 1);
        let driver = Driver::new(&ram, SIZE, features);
        let ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
        Self { ram, driver, ring }
    }

    fn round(&mut self) {
        let added = self.driver.add_bytes(&[b"ping"], &[4]).unwrap();
        self.driver.publish();
        let mut chain = Chain::new();
        assert_eq!(self.ring.pop(&mut chain), Ok(true));
        chain.write_at(self.ring.memory(), 0, b"pong").unwrap();
        self.ring.push_used(&chain, 4).unwrap();
        self.ring.publish().unwrap();
        assert_eq!(self.driver.used(), Some((added.head, 4)));
        assert_eq!(self.driver.read(added.writable[0].0, 4), b"pong");
    }

    fn buffer(&self) -> Descriptor {
        Descriptor {
            addr: self.driver.buffer(0),
            len: 16,
            flags: 0,
            next: 0,
        }
    }

    /// Write descriptors from index 0 and make the first one available.
    fn offer(&mut self, descriptors: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(descriptors) {
            self.driver.set_descriptor(index, *descriptor);
        }
        self.driver.offer(0);
        self.driver.publish();
    }

    /// Write a table of descriptors and make a chain of it available.
    fn offer_table(&mut self, entries: &[Descriptor], len: u32) {
        let table = self.driver.table(0);
        for (at, entry) in (table..).step_by(16).zip(entries) {
            self.driver.write(at, &entry.to_bytes());
        }
        self.offer(&[Descriptor {
            addr: table,
            len,
            flags: DESC_F_INDIRECT,
            next: 0,
        }]);
    }
}

/// Run an attack beside a ring that behaves. Returns the error and, from the control, the chain that the attack
/// obtains when `check` is off.
fn attack(features: u64, check: Check, script: impl Fn(&mut Rig)) -> (RingError, Chain) {
    let mut neighbour = Rig::new(features);
    let mut rig = Rig::new(features);
    neighbour.round();
    rig.round();
    script(&mut rig);
    let mut chain = Chain::new();
    let error = rig.ring.pop(&mut chain).expect_err("the attack is noticed");
    // Once, and then nothing for ever, whatever the guest does.
    assert_eq!(rig.ring.broken(), Some(&error));
    rig.driver.add_bytes(&[b"more"], &[]).unwrap();
    rig.driver.publish();
    for _ in 0..3 {
        assert_eq!(rig.ring.pop(&mut chain), Ok(false));
        assert_eq!(rig.ring.enable_kicks(), Ok(false));
    }
    assert!(error.to_string().starts_with("guest "), "{error}");
    neighbour.round();
    // A reset device is a new ring, which works.
    Rig::new(features).round();

    let _off = Off::here(check);
    let mut rig = Rig::new(features);
    rig.round();
    script(&mut rig);
    let mut chain = Chain::new();
    assert_eq!(
        rig.ring.pop(&mut chain),
        Ok(true),
        "without {check:?} the attack succeeds"
    );
    (error, chain)
}

fn fault(error: RingError) -> ChainFault {
    match error {
        RingError::Chain { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn h19_loop_rejects_whole_chain() {
    let (error, chain) = attack(0, Check::WholeChain, |rig| {
        let step = |next| Descriptor {
            flags: DESC_F_NEXT,
            next,
            ..rig.buffer()
        };
        let steps = [step(1), step(2), step(0)];
        rig.offer(&steps);
    });
    assert_eq!(fault(error), ChainFault::TooLong { max: SIZE });
    assert_eq!(
        chain.readable().len(),
        usize::from(SIZE),
        "truncated, as an iterator that just ends would"
    );
}

#[test]
fn h19_descriptor_that_names_itself_rejects_whole_chain() {
    let (error, _) = attack(0, Check::WholeChain, |rig| {
        let own = Descriptor {
            flags: DESC_F_NEXT,
            next: 0,
            ..rig.buffer()
        };
        rig.offer(&[own]);
    });
    assert_eq!(fault(error), ChainFault::TooLong { max: SIZE });
}

#[test]
fn h19_bad_next_rejects_whole_chain() {
    for next in [SIZE, 255, u16::MAX] {
        let (error, chain) = attack(0, Check::WholeChain, |rig| {
            let first = Descriptor {
                flags: DESC_F_NEXT,
                next: 1,
                ..rig.buffer()
            };
            let second = Descriptor {
                flags: DESC_F_NEXT,
                next,
                ..rig.buffer()
            };
            rig.offer(&[first, second]);
        });
        assert_eq!(
            fault(error),
            ChainFault::NextOutOfRange {
                index: 1,
                next,
                count: SIZE
            }
        );
        assert_eq!(chain.readable_len(), 32);
    }
}

#[test]
fn h19_bad_next_in_a_table_rejects_whole_chain() {
    let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
        let entry = Descriptor {
            flags: DESC_F_NEXT,
            next: 2,
            ..rig.buffer()
        };
        rig.offer_table(&[entry, entry], 32);
    });
    assert_eq!(
        fault(error),
        ChainFault::NextOutOfRange {
            index: 0,
            next: 2,
            count: 2
        }
    );
}

#[test]
fn h19_loop_in_a_table_rejects_whole_chain() {
    let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
        let entry = |next| Descriptor {
            flags: DESC_F_NEXT,
            next,
            ..rig.buffer()
        };
        let entries = [entry(1), entry(0)];
        rig.offer_table(&entries, 32);
    });
    assert_eq!(fault(error), ChainFault::TooLong { max: SIZE });
}

#[test]
fn h19_nested_indirect_rejects_whole_chain() {
    let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
        let nested = Descriptor {
            flags: DESC_F_INDIRECT,
            ..rig.buffer()
        };
        rig.offer_table(&[nested], 16);
    });
    assert_eq!(fault(error), ChainFault::NestedIndirect { index: 0 });
}

#[test]
fn h19_indirect_that_was_not_negotiated_rejects_whole_chain() {
    let (error, _) = attack(0, Check::WholeChain, |rig| {
        let entry = rig.buffer();
        rig.offer_table(&[entry], 16);
    });
    assert_eq!(fault(error), ChainFault::IndirectNotNegotiated { index: 0 });
}

#[test]
fn h19_indirect_with_next_rejects_whole_chain() {
    let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
        let table = Descriptor {
            len: 16,
            flags: DESC_F_INDIRECT | DESC_F_NEXT,
            next: 1,
            ..rig.buffer()
        };
        rig.offer(&[table, rig.buffer()]);
    });
    assert_eq!(fault(error), ChainFault::IndirectWithNext { index: 0 });
}

#[test]
fn h19_more_than_4_gib_rejects_whole_chain() {
    const GIB: u32 = 1 << 30;
    let run = |last_len: u32| {
        let ram = GuestRam::new(2 << 30);
        let mut driver = Driver::new(&ram, SIZE, 0);
        let big = ram.alloc(GIB.into(), 4096);
        let mut ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
        driver
            .add(
                &[(big, GIB), (big, GIB), (big, GIB), (big, GIB - 1), (big, last_len)],
                &[],
            )
            .unwrap();
        driver.publish();
        let mut chain = Chain::new();
        ring.pop(&mut chain).map(|_| chain.readable_len())
    };
    assert_eq!(run(1), Ok(1 << 32), "the limit itself is legal");
    assert_eq!(fault(run(2).unwrap_err()), ChainFault::TooManyBytes);
    let _off = Off::here(Check::WholeChain);
    assert_eq!(run(2), Ok((1 << 32) - 1), "truncated");
}

#[test]
fn h20_head_that_is_in_flight_is_refused() {
    let offer_twice = |rig: &mut Rig| {
        let buffer = rig.buffer();
        rig.offer(&[buffer]);
        let mut chain = Chain::new();
        assert_eq!(rig.ring.pop(&mut chain), Ok(true));
        rig.driver.offer(0);
        rig.driver.publish();
    };
    let (error, chain) = attack(0, Check::HeadInFlight, offer_twice);
    assert_eq!(error, RingError::HeadInFlight { head: 0 });
    assert_eq!(chain.head(), 0);
}

#[test]
fn h21_indirect_table_that_claims_too_much_is_refused() {
    // 65,535 entries, one more than the queue's size, none, and half a one.
    for len in [65_535 * 16, u32::from(SIZE + 1) * 16, 0, 24, u32::MAX] {
        let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
            let entry = rig.buffer();
            rig.offer_table(&[entry], len);
        });
        assert_eq!(fault(error), ChainFault::IndirectLen { len, max: SIZE });
    }
}

#[test]
fn h21_indirect_table_outside_of_memory_is_refused() {
    for addr in [RAM_START + RAM_LEN - 8, 0, u64::MAX - 8] {
        let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
            rig.offer(&[Descriptor {
                addr,
                len: 16,
                flags: DESC_F_INDIRECT,
                next: 0,
            }]);
        });
        assert_eq!(
            fault(error),
            ChainFault::IndirectUnmapped(MemoryError::Unmapped { addr, len: 16 })
        );
    }
}

#[test]
fn h22_avail_index_that_jumps_is_refused() {
    for jump in [SIZE + 1, 1000, u16::MAX] {
        let (error, _) = attack(0, Check::AvailIndex, |rig| {
            let buffer = rig.buffer();
            rig.offer(&[buffer]);
            rig.driver.set_avail_idx(1u16.wrapping_add(jump));
        });
        let idx = 1u16.wrapping_add(jump);
        assert_eq!(
            error,
            RingError::AvailIndexJump {
                idx,
                next_avail: 1,
                size: SIZE
            }
        );
    }
}

#[test]
fn h23_head_beyond_the_queue_is_refused() {
    for head in [SIZE, 0x8000, u16::MAX] {
        let (error, chain) = attack(0, Check::HeadInRange, |rig| {
            let buffer = rig.buffer();
            for index in 0..SIZE {
                rig.driver.set_descriptor(index, buffer);
            }
            rig.driver.offer(head);
            rig.driver.publish();
        });
        assert_eq!(error, RingError::HeadOutOfRange { head, size: SIZE });
        assert_eq!(chain.head(), head % SIZE);
    }
}

#[test]
fn h24_buffers_that_are_unmapped_or_wrap_are_refused() {
    let end = RAM_START + RAM_LEN;
    for (addr, len) in [
        (0, 1),
        (RAM_START - 1, 2),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 2),
        (u64::MAX - 15, 16),
    ] {
        let (error, chain) = attack(0, Check::DescriptorRange, |rig| {
            rig.offer(&[Descriptor {
                addr,
                len,
                flags: 0,
                next: 0,
            }]);
        });
        assert_eq!(fault(error), ChainFault::Unmapped { addr, len });
        assert_eq!(chain.readable(), [Segment { addr, len }]);
    }
}

#[test]
fn h24_buffers_of_length_0_are_refused_mapped_or_not() {
    for addr in [0, RAM_START, u64::MAX] {
        let (error, chain) = attack(0, Check::WholeChain, |rig| {
            rig.offer(&[Descriptor {
                addr,
                len: 0,
                flags: DESC_F_WRITE,
                next: 0,
            }]);
        });
        assert_eq!(fault(error), ChainFault::EmptyBuffer { addr });
        assert!(chain.writable().is_empty());
    }
}

#[test]
fn h25_a_racing_guest_gets_one_snapshot_or_an_error() {
    let ram = GuestRam::new(RAM_LEN);
    let driver = Driver::new(&ram, SIZE, INDIRECT);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let good = Descriptor {
                addr: driver.buffer(0),
                len: 64,
                flags: 0,
                next: 0,
            };
            let bad = [
                Descriptor {
                    addr: u64::MAX - 3,
                    ..good
                },
                Descriptor { len: u32::MAX, ..good },
                Descriptor {
                    flags: DESC_F_NEXT,
                    next: 1,
                    ..good
                },
                Descriptor {
                    flags: DESC_F_INDIRECT,
                    len: 32,
                    ..good
                },
                good,
            ];
            while !stop.load(Ordering::Relaxed) {
                for descriptor in bad {
                    driver.set_descriptor(0, descriptor);
                    driver.set_descriptor(
                        1,
                        Descriptor {
                            flags: DESC_F_WRITE,
                            ..descriptor
                        },
                    );
                }
            }
        });
        let mut chain = Chain::new();
        let (mut good, mut refused) = (0u32, 0u32);
        let deadline = Instant::now() + Duration::from_secs(60);
        // Each ring takes the one entry before index 0, which names descriptor 0.
        while (good < 10_000 || refused < 10_000) && Instant::now() < deadline {
            let config = RingConfig {
                base: 65_535,
                ..driver.config()
            };
            let mut ring = SplitRing::new(config, ram.memory().clone()).unwrap();
            match ring.pop(&mut chain) {
                Ok(taken) => {
                    assert!(taken);
                    good += 1;
                    let all = chain.readable().iter().chain(chain.writable());
                    assert!(all.clone().all(|s| ram.memory().check(s.addr, s.len as usize).is_ok()));
                    let total: u64 = all.map(|s| u64::from(s.len)).sum();
                    assert_eq!(total, chain.readable_len() + chain.writable_len());
                }
                Err(_) => refused += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(good > 0 && refused > 0, "both happened: {good} good, {refused} refused");
    });
}

/// Every field that the device reads flips, ring headers and an indirect table included.
#[test]
fn h25_racing_headers_entries_and_tables_are_each_read_once() {
    let ram = GuestRam::new(RAM_LEN);
    let mut driver = Driver::new(&ram, SIZE, INDIRECT);
    let (config, table) = (driver.config(), driver.table(0));
    let head = driver
        .add_indirect(&[(driver.buffer(0), 64)], &[(driver.buffer(1), 64)])
        .unwrap();
    driver.publish();
    let good = driver.read(table, 32);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 1u64;
            while !stop.load(Ordering::Relaxed) {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let noise = (random >> 16).to_le_bytes();
                let pick = random >> 60;
                match pick {
                    // avail.flags, avail.idx, the entry that is taken, and the table's descriptors.
                    0 => driver.write(config.avail, &noise[..2]),
                    1 => driver.write(config.avail + 2, &noise[..2]),
                    2 => driver.write(config.avail + 4, &noise[..2]),
                    3..=6 => driver.write(table + 4 * (pick - 3), &noise[..4]),
                    7..=9 => driver.write(table + 16 + 4 * (pick - 7), &noise[..4]),
                    10 | 11 => driver.write(table, &good),
                    12 => driver.write(config.avail + 4, &head.to_le_bytes()),
                    _ => driver.write(config.avail + 2, &1u16.to_le_bytes()),
                }
            }
        });
        let mut chain = Chain::new();
        let (mut taken, mut refused, mut differs) = (0u32, 0u32, 0u32);
        let deadline = Instant::now() + Duration::from_secs(60);
        while (taken < 10_000 || refused < 10_000 || differs < 100) && Instant::now() < deadline {
            let mut ring = SplitRing::new(config, ram.memory().clone()).unwrap();
            match ring.pop(&mut chain) {
                Ok(true) => {
                    taken += 1;
                    assert!(chain.head() < SIZE);
                    let all = || chain.readable().iter().chain(chain.writable());
                    assert!(all().all(|s| ram.memory().check(s.addr, s.len as usize).is_ok()));
                    let total: u64 = all().map(|s| u64::from(s.len)).sum();
                    assert_eq!(total, chain.readable_len() + chain.writable_len());
                    ring.push_used(&chain, 0).unwrap();
                    // Memory says something else by now: whoever read it again would use what nobody checked.
                    let first = all().next().unwrap();
                    differs += u32::from(driver.read(table, 8) != first.addr.to_le_bytes());
                }
                Ok(false) => {}
                Err(_) => refused += 1,
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(
            taken > 0 && refused > 0 && differs > 0,
            "{taken} taken, {refused} refused, {differs} differ"
        );
    });
}

#[test]
fn h26_readable_after_writable_rejects_whole_chain() {
    let (error, chain) = attack(0, Check::WholeChain, |rig| {
        let writable = Descriptor {
            flags: DESC_F_WRITE | DESC_F_NEXT,
            next: 1,
            ..rig.buffer()
        };
        rig.offer(&[writable, rig.buffer()]);
    });
    assert!(matches!(fault(error), ChainFault::ReadableAfterWritable { .. }));
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 16));
}

#[test]
fn h27_parts_of_a_ring_that_overlap_are_refused() {
    let ram = GuestRam::new(RAM_LEN);
    let config = Driver::new(&ram, SIZE, 0).config();
    let new = |config| SplitRing::new(config, ram.memory().clone()).map(|_| ());
    let overlap = |first, second| Err(RingError::Config(ConfigFault::Overlap { first, second }));
    let cases = [
        (
            RingConfig {
                avail: config.desc + 126,
                ..config
            },
            overlap("descriptor table", "available ring"),
        ),
        (
            RingConfig {
                used: config.desc,
                ..config
            },
            overlap("descriptor table", "used ring"),
        ),
        (
            RingConfig {
                avail: config.used + 4,
                ..config
            },
            overlap("available ring", "used ring"),
        ),
    ];
    for (config, expected) in cases {
        assert_eq!(new(config), expected);
        let _off = Off::here(Check::RingOverlap);
        assert_eq!(new(config), Ok(()));
    }
    // What only touches is fine.
    assert_eq!(
        new(RingConfig {
            avail: config.desc + 128,
            used: config.desc + 128 + 20,
            ..config
        }),
        Ok(())
    );
    assert_eq!(new(config), Ok(()));
}

#[test]
fn h27_rings_that_are_misaligned_unmapped_or_of_a_wrong_size_are_refused() {
    let ram = GuestRam::new(RAM_LEN);
    let config = Driver::new(&ram, SIZE, 0).config();
    let fault = |config| match SplitRing::new(config, ram.memory().clone()) {
        Err(RingError::Config(fault)) => fault,
        other => panic!("{other:?}"),
    };
    for size in [0, 3, 65_535] {
        assert_eq!(fault(RingConfig { size, ..config }), ConfigFault::Size { size });
    }
    for config in [
        RingConfig {
            desc: config.desc + 8,
            ..config
        },
        RingConfig {
            avail: config.avail + 1,
            ..config
        },
        RingConfig {
            used: config.used + 2,
            ..config
        },
    ] {
        assert!(matches!(fault(config), ConfigFault::Misaligned { .. }));
    }
    let end = RAM_START + RAM_LEN;
    for addr in [0, end - 16, end, u64::MAX - 15] {
        for config in [
            RingConfig { desc: addr, ..config },
            RingConfig { avail: addr, ..config },
            RingConfig { used: addr, ..config },
        ] {
            assert!(matches!(fault(config), ConfigFault::Unmapped { .. }));
        }
    }
    assert_eq!(
        fault(RingConfig {
            features: 1 << 34,
            ..config
        }),
        ConfigFault::Format {
            format: RingFormat::Packed
        }
    );
    // Without any memory there is no ring.
    assert!(SplitRing::new(config, Arc::new(GuestMemory::default())).is_err());
}

#[test]
fn h28_buffers_over_the_ring_itself_are_refused() {
    for part in 0..3 {
        let place = |rig: &Rig| {
            let config = rig.driver.config();
            [config.desc + 120, config.avail - 4, config.used + 60][part]
        };
        let (error, _) = attack(0, Check::RingOverlap, |rig| {
            rig.offer(&[Descriptor {
                addr: place(rig),
                len: 16,
                flags: DESC_F_WRITE,
                next: 0,
            }]);
        });
        assert!(matches!(fault(error), ChainFault::InRing { len: 16, .. }));
    }
}

#[test]
fn h28_indirect_tables_over_the_ring_itself_are_refused() {
    let (error, _) = attack(INDIRECT, Check::RingOverlap, |rig| {
        let entry = rig.buffer();
        let own = rig.driver.config().desc;
        rig.offer(&[
            Descriptor {
                addr: own + 16,
                len: 16,
                flags: DESC_F_INDIRECT,
                next: 0,
            },
            entry,
        ]);
    });
    assert!(matches!(fault(error), ChainFault::InRing { .. }));
}

#[test]
fn a_long_legal_chain_passes() {
    // As many descriptors as the queue has, direct and in a table (virtio 1.3 §2.7.5.3.1).
    let mut rig = Rig::new(INDIRECT);
    let buffers = vec![(rig.driver.buffer(0), 1); usize::from(SIZE)];
    let mut chain = Chain::new();
    rig.driver.add(&buffers, &[]).unwrap();
    rig.driver.publish();
    assert_eq!(rig.ring.pop(&mut chain), Ok(true));
    assert_eq!(chain.readable_len(), 8);
    rig.ring.push_used(&chain, 0).unwrap();
    rig.ring.publish().unwrap();
    rig.driver.used().unwrap();
    rig.driver.add_indirect(&buffers[..4], &buffers[4..]).unwrap();
    rig.driver.publish();
    assert_eq!(rig.ring.pop(&mut chain), Ok(true));
    assert_eq!((chain.readable().len(), chain.writable().len()), (4, 4));
    assert_eq!(rig.ram.memory().region_count(), 1);
}

#[test]
fn direct_descriptors_may_come_before_an_indirect_one() {
    // virtio 1.3 §2.7.5.3.2; and the WRITE flag of the indirect one means nothing.
    let mut rig = Rig::new(INDIRECT);
    let table = rig.driver.table(1);
    let entry = Descriptor {
        flags: DESC_F_WRITE,
        ..rig.buffer()
    };
    rig.driver.write(table, &entry.to_bytes());
    let first = Descriptor {
        flags: DESC_F_NEXT,
        next: 1,
        ..rig.buffer()
    };
    let second = Descriptor {
        addr: table,
        len: 16,
        flags: DESC_F_INDIRECT | DESC_F_WRITE,
        next: 0,
    };
    rig.offer(&[first, second]);
    let mut chain = Chain::new();
    assert_eq!(rig.ring.pop(&mut chain), Ok(true));
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 16));
}
