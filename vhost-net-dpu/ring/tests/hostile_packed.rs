//! Guests that break the rules of a packed ring. Each attack comes with legitimate chains before and beside it, and
//! with a control: without the one check that stops it, it succeeds.

use outboard_controls::{Check, Off};
use outboard_ring::{
    Chain, ChainFault, ConfigFault, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, PackedRing, RingConfig,
    RingError,
    driver::{Driver, GuestRam},
};

const SIZE: u16 = 8;
const PACKED: u64 = 1 << 34;
const INDIRECT: u64 = 1 << 28;
/// Flags of a descriptor that is available, or used, in the first lap.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 7 | 1 << 15;
/// The slot that an attack begins in: those before were used.
const FIRST: u16 = 2;

struct Rig {
    ram: GuestRam,
    driver: Driver,
    ring: PackedRing,
}

impl Rig {
    fn new(features: u64) -> Self {
        let ram = GuestRam::new(1 << 20);
        ram.alloc(4096, 1);
        let driver = Driver::new(&ram, SIZE, PACKED | features);
        let ring = PackedRing::new(driver.config(), ram.memory().clone()).unwrap();
        Self { ram, driver, ring }
    }

    /// A chain of two descriptors, there and back.
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

    fn buffer(&self, flags: u16) -> Descriptor {
        Descriptor {
            addr: self.driver.buffer(0),
            len: 16,
            flags: flags | AVAILABLE,
            next: 0,
        }
    }

    /// Write descriptors from the next slot on, as they are.
    fn offer(&mut self, descriptors: &[Descriptor]) {
        for (slot, descriptor) in (FIRST..).zip(descriptors) {
            self.driver.set_descriptor(slot % SIZE, *descriptor);
        }
    }

    /// A table of descriptors, and one that names it.
    fn offer_table(&mut self, entries: &[Descriptor], len: u32) {
        let table = self.driver.table(0);
        for (at, entry) in (table..).step_by(16).zip(entries) {
            self.driver.write(at, &entry.to_packed_bytes());
        }
        self.offer(&[Descriptor {
            addr: table,
            len,
            flags: DESC_F_INDIRECT | AVAILABLE,
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
fn h19_a_chain_round_the_ring_is_rejected_whole() {
    let (error, chain) = attack(0, Check::WholeChain, |rig| {
        // Each slot goes on, those of the next lap too.
        let next = [rig.buffer(DESC_F_NEXT); SIZE as usize];
        rig.offer(&next);
        for slot in 0..FIRST {
            let flags = DESC_F_NEXT | 1 << 15;
            rig.driver.set_descriptor(slot, Descriptor { flags, ..next[0] });
        }
    });
    assert_eq!(fault(error), ChainFault::TooLong { max: SIZE });
    assert_eq!(chain.readable().len(), usize::from(SIZE));
}

#[test]
fn h19_a_chain_goes_on_only_at_what_is_available() {
    for flags in [0, USED, 1 << 15] {
        let (error, chain) = attack(0, Check::WrapBits, |rig| {
            let (first, second) = (rig.buffer(DESC_F_NEXT), rig.buffer(0));
            rig.offer(&[first, Descriptor { flags, ..second }]);
        });
        let slot = FIRST + 1;
        assert_eq!(fault(error), ChainFault::NotAvailable { slot, flags });
        assert_eq!(
            chain.readable().len(),
            2,
            "it has what the device, or nobody, left there"
        );
    }
}

#[test]
fn what_is_not_available_is_not_taken() {
    for flags in [0, USED, 1 << 15] {
        let mut rig = Rig::new(0);
        rig.round();
        let buffer = rig.buffer(0);
        rig.offer(&[Descriptor { flags, ..buffer }]);
        assert_eq!(rig.ring.pop(&mut Chain::new()), Ok(false), "{flags:#x}");
        assert_eq!(rig.ring.enable_kicks(), Ok(false));
        rig.round();
    }
}

#[test]
fn h20_an_id_that_is_in_flight_is_refused() {
    let two = |rig: &mut Rig| {
        let buffer = rig.buffer(0);
        rig.offer(&[buffer, buffer]);
        assert_eq!(rig.ring.pop(&mut Chain::new()), Ok(true));
    };
    let (error, chain) = attack(0, Check::HeadInFlight, two);
    assert_eq!(error, RingError::HeadInFlight { head: 0 });
    assert_eq!(chain.head(), 0, "the device would finish two requests as one");
}

#[test]
fn h23_an_id_beyond_the_queue_is_refused() {
    for next in [SIZE, u16::MAX] {
        let (error, chain) = attack(0, Check::HeadInRange, |rig| {
            let buffer = rig.buffer(0);
            rig.offer(&[Descriptor { next, ..buffer }]);
        });
        assert_eq!(error, RingError::HeadOutOfRange { head: next, size: SIZE });
        assert_eq!(chain.head(), next % SIZE);
    }
}

#[test]
fn h22_more_than_the_ring_has_is_refused() {
    let (error, _) = attack(0, Check::AvailIndex, |rig| {
        // The device has all, and the slot after it says that there is more.
        for n in 0..SIZE {
            let slot = (FIRST + n) % SIZE;
            let lap = if FIRST + n < SIZE { AVAILABLE } else { 1 << 15 };
            let buffer = rig.buffer(0);
            let flags = buffer.flags & !AVAILABLE | lap;
            rig.driver.set_descriptor(
                slot,
                Descriptor {
                    flags,
                    next: n,
                    ..buffer
                },
            );
            assert_eq!(rig.ring.pop(&mut Chain::new()), Ok(true));
        }
        let buffer = rig.buffer(0);
        let flags = 1 << 15;
        // Without the check on ids that are in flight it would be another one of a chain that is.
        rig.ring.unpop(0);
        rig.driver.set_descriptor(
            FIRST,
            Descriptor {
                flags,
                next: 0,
                ..buffer
            },
        );
        give_back_privately(rig);
    });
    assert_eq!(error, RingError::Overrun { size: SIZE });
}

/// The device is done with the first chain, which the driver does not know yet: its id may not come again.
fn give_back_privately(rig: &mut Rig) {
    rig.ring.push_used(&outboard_ring::driver::chain_of(0), 0).unwrap();
}

#[test]
fn h21_indirect_tables_are_bounded() {
    let max = SIZE;
    for len in [0, 15, 17, 16 * (u32::from(SIZE) + 1), 65_535 * 16, u32::MAX] {
        let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
            let entry = rig.buffer(0);
            rig.offer_table(&[entry; SIZE as usize], len);
        });
        assert_eq!(fault(error), ChainFault::IndirectLen { len, max });
    }
}

#[test]
fn h19_nested_and_wrongly_flagged_tables_are_refused() {
    let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
        let (good, nested) = (rig.buffer(0), rig.buffer(DESC_F_INDIRECT));
        rig.offer_table(&[good, nested], 32);
    });
    assert_eq!(fault(error), ChainFault::NestedIndirect { index: 1 });

    let (error, _) = attack(INDIRECT, Check::WholeChain, |rig| {
        let both = rig.buffer(DESC_F_INDIRECT | DESC_F_NEXT);
        rig.offer(&[both]);
    });
    assert_eq!(fault(error), ChainFault::IndirectWithNext { index: 0 });

    let (error, _) = attack(0, Check::WholeChain, |rig| {
        let entry = rig.buffer(0);
        rig.offer_table(&[entry], 16);
    });
    assert_eq!(fault(error), ChainFault::IndirectNotNegotiated { index: 0 });
}

#[test]
fn in_a_table_next_means_nothing() {
    let mut rig = Rig::new(INDIRECT);
    rig.round();
    let (go_on, last) = (rig.buffer(DESC_F_NEXT), rig.buffer(DESC_F_WRITE | DESC_F_NEXT));
    rig.offer_table(&[go_on, last], 32);
    let mut chain = Chain::new();
    assert_eq!(rig.ring.pop(&mut chain), Ok(true));
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 1));
}

#[test]
fn h26_h24_buffers_are_in_memory_and_in_order() {
    let (error, _) = attack(0, Check::WholeChain, |rig| {
        let (write, read) = (rig.buffer(DESC_F_WRITE | DESC_F_NEXT), rig.buffer(0));
        rig.offer(&[write, read]);
    });
    assert!(matches!(fault(error), ChainFault::ReadableAfterWritable { .. }));

    for (addr, len) in [(0, 16), (u64::MAX - 7, 16), (u64::MAX, u32::MAX)] {
        let (error, chain) = attack(0, Check::DescriptorRange, |rig| {
            let buffer = rig.buffer(0);
            rig.offer(&[Descriptor { addr, len, ..buffer }]);
        });
        assert_eq!(fault(error), ChainFault::Unmapped { addr, len });
        assert_eq!((chain.readable()[0].addr, chain.readable()[0].len), (addr, len));
    }
}

#[test]
fn h28_a_buffer_over_the_ring_or_an_event_area_is_refused() {
    for part in 0..3 {
        let (error, _) = attack(0, Check::RingOverlap, |rig| {
            let config = rig.driver.config();
            let addr = [config.desc + 16 * u64::from(SIZE) - 1, config.avail + 3, config.used][part];
            let buffer = rig.buffer(DESC_F_WRITE);
            rig.offer(&[Descriptor { addr, ..buffer }]);
        });
        assert!(matches!(fault(error), ChainFault::InRing { .. }));
    }
}

#[test]
fn h27_overlapping_misaligned_or_unmapped_parts_are_refused() {
    let rig = Rig::new(0);
    let config = rig.driver.config();
    let new = |config| PackedRing::new(config, rig.ram.memory().clone()).map(|_| ());
    let overlaps: [(RingConfig, [&str; 2]); 3] = [
        (
            RingConfig {
                avail: config.desc + 16 * u64::from(SIZE) - 4,
                ..config
            },
            ["descriptor ring", "driver event suppression"],
        ),
        (
            RingConfig {
                used: config.desc,
                ..config
            },
            ["descriptor ring", "device event suppression"],
        ),
        (
            RingConfig {
                used: config.avail,
                ..config
            },
            ["driver event suppression", "device event suppression"],
        ),
    ];
    assert_eq!(new(config), Ok(()));
    for (config, [first, second]) in overlaps {
        assert_eq!(
            new(config),
            Err(RingError::Config(ConfigFault::Overlap { first, second }))
        );
        let _off = Off::here(Check::RingOverlap);
        assert_eq!(new(config), Ok(()));
    }
    for (config, part) in [
        (
            RingConfig {
                desc: config.desc + 8,
                ..config
            },
            "descriptor ring",
        ),
        (
            RingConfig {
                avail: config.avail + 2,
                ..config
            },
            "driver event suppression",
        ),
        (
            RingConfig {
                used: config.used + 2,
                ..config
            },
            "device event suppression",
        ),
    ] {
        match new(config) {
            Err(RingError::Config(ConfigFault::Misaligned { part: found, .. })) => assert_eq!(found, part),
            other => panic!("{part}: {other:?}"),
        }
    }
    for config in [
        RingConfig { desc: 0, ..config },
        RingConfig { avail: 0, ..config },
        RingConfig { used: 0, ..config },
    ] {
        assert!(matches!(
            new(config),
            Err(RingError::Config(ConfigFault::Unmapped { .. }))
        ));
    }
}
