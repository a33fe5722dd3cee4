//! A device that is killed between any two stores, and another one that takes over.

use std::{collections::VecDeque, fs::File, os::unix::fs::FileExt};

use outboard_controls::Off;
use proptest::prelude::*;

use super::*;
use crate::{
    Chain, InflightRegion, PackedRing, RingConfig, RingError, cut,
    driver::{Driver, GuestRam, chain_of},
    layout::RingFormat::Packed,
};

const SIZE: u16 = 8;
const PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;
const INDIRECT: u64 = 1 << 28;

fn region() -> File {
    InflightRegion::create(Packed, 2, SIZE).unwrap()
}

fn log(file: &File) -> InflightLog {
    let len = InflightRegion::len_needed(Packed, 2, SIZE);
    let region = InflightRegion::map(file, 0, len, Packed, (2, SIZE)).unwrap();
    region.queue(1).unwrap()
}

/// Where the second queue's part begins.
const PART: u64 = 320;

fn write(file: &File, offset: usize, bytes: &[u8]) {
    file.write_all_at(bytes, PART + offset as u64).unwrap();
}

/// How a log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Entries,
    Position,
}

/// A guest, a device that is killed now and then, and what should be.
struct Model {
    kept: Kept,
    ram: GuestRam,
    driver: Driver,
    file: File,
    ring: PackedRing,
    /// Made available and never popped, or popped and put back.
    available: VecDeque<u16>,
    /// Popped from this ring, in that order, without what was put back.
    popped: Vec<u16>,
    /// Of those, what was not given back.
    held: Vec<u16>,
    /// Given back and not published.
    staged: Vec<u16>,
    /// Popped, in that order, and not published.
    in_flight: Vec<u16>,
    /// Of those, how many were so when the ring started and were not popped again yet.
    to_replay: usize,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    /// So many readable buffers, indirect or not.
    Add(usize, bool),
    Pop,
    Unpop,
    Push(usize),
    /// All that is held, as one.
    PushAll,
    Publish,
    /// The device is killed after so many stores of what it does next.
    Kill(usize, Doing),
}

#[derive(Debug, Clone, Copy)]
enum Doing {
    Nothing,
    Pop,
    Unpop,
    Publish,
    /// Taking over.
    Recover,
}

fn op() -> impl Strategy<Value = Op> {
    let doing = prop_oneof![
        1 => Just(Doing::Nothing),
        1 => Just(Doing::Pop),
        1 => Just(Doing::Unpop),
        3 => Just(Doing::Publish),
        1 => Just(Doing::Recover),
    ];
    prop_oneof![
        5 => (1usize..4, any::<bool>()).prop_map(|(count, indirect)| Op::Add(count, indirect)),
        5 => Just(Op::Pop),
        1 => Just(Op::Unpop),
        3 => (0usize..8).prop_map(Op::Push),
        1 => Just(Op::PushAll),
        2 => Just(Op::Publish),
        2 => (0usize..24, doing).prop_map(|(stores, doing)| Op::Kill(stores, doing)),
    ]
}

fn start(kept: Kept, config: RingConfig, ram: &GuestRam, file: &File) -> Result<PackedRing, RingError> {
    match kept {
        Kept::Entries => PackedRing::with_inflight(config, ram.memory().clone(), log(file)),
        Kept::Position => PackedRing::with_position(config, ram.memory().clone(), log(file)),
    }
}

impl Model {
    fn new(kept: Kept, position: u16, features: u64) -> Self {
        let ram = GuestRam::new(1 << 17);
        let driver = Driver::new(&ram, SIZE, PACKED | INDIRECT | features).starting_at(position);
        let file = region();
        let ring = start(kept, driver.config(), &ram, &file).unwrap();
        assert_eq!((ring.base(), ring.to_replay()), (driver.config().base, 0));
        Self {
            kept,
            ram,
            driver,
            file,
            ring,
            available: VecDeque::new(),
            popped: Vec::new(),
            held: Vec::new(),
            staged: Vec::new(),
            in_flight: Vec::new(),
            to_replay: 0,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Add(count, false) => {
                let added = self.driver.add_bytes(&vec![&b"x"[..]; count], &[]);
                self.available.extend(added.map(|added| added.head));
                self.driver.publish();
            }
            Op::Add(count, true) => {
                let buffer = (self.driver.buffer(0), 1);
                self.available
                    .extend(self.driver.add_indirect(&vec![buffer; count], &[]));
                self.driver.publish();
            }
            Op::Pop => self.pop(),
            Op::Unpop => self.unpop(),
            Op::Push(nth) => drop(self.push(nth)),
            Op::PushAll => {
                let chains: Vec<_> = self.held.drain(..).map(chain_of).collect();
                self.ring.push_used_burst(&chains).unwrap();
                self.staged.extend(chains.iter().map(Chain::head));
            }
            Op::Publish => {
                self.ring.publish().unwrap();
                self.published();
            }
            Op::Kill(stores, doing) => self.kill(stores, doing),
        }
        assert_eq!(usize::from(self.ring.to_replay()), self.to_replay);
        assert_eq!(usize::from(self.ring.in_flight()), self.held.len());
    }

    fn pop(&mut self) {
        let mut chain = Chain::new();
        let expected = if self.to_replay > 0 {
            let nth = self.in_flight.len() - self.to_replay;
            self.to_replay -= 1;
            Some(self.in_flight[nth])
        } else {
            let head = self.available.pop_front();
            self.in_flight.extend(head);
            head
        };
        assert_eq!(self.ring.pop(&mut chain), Ok(expected.is_some()));
        if let Some(head) = expected {
            assert_eq!(chain.head(), head);
            assert_eq!(
                self.driver.read_segments(chain.readable()).len() as u64,
                chain.readable_len()
            );
            self.popped.push(head);
            self.held.push(head);
        }
    }

    /// Only what was popped last and is held still can be put back.
    fn can_unpop(&self) -> bool {
        !self.popped.is_empty() && self.held.last() == self.popped.last()
    }

    fn unpop(&mut self) {
        if !self.can_unpop() {
            return;
        }
        let was = self.ring.to_replay();
        self.ring.unpop(1);
        let head = self.held.pop().unwrap();
        self.popped.pop();
        if self.ring.to_replay() > was {
            self.to_replay += 1;
        } else {
            assert_eq!(self.in_flight.pop(), Some(head));
            self.available.push_front(head);
        }
    }

    fn push(&mut self, nth: usize) -> Option<u16> {
        let nth = match self.kept {
            Kept::Entries => nth.checked_rem(self.held.len())?,
            // Such a device keeps the order.
            Kept::Position => (!self.held.is_empty()).then_some(0)?,
        };
        let head = self.held.remove(nth);
        self.ring.push_used(&chain_of(head), 0).unwrap();
        self.staged.push(head);
        Some(head)
    }

    /// All that was staged was shown.
    fn published(&mut self) {
        for head in std::mem::take(&mut self.staged) {
            assert_eq!(self.driver.used(), Some((head, 0)));
            self.in_flight.retain(|&h| h != head);
        }
        assert_eq!(self.driver.used(), None, "nothing else was published");
    }

    fn kill(&mut self, stores: usize, doing: Doing) {
        let known = |model: &Self| (model.in_flight.clone(), model.available.clone());
        // What is in flight if nothing of it happened, and if all did.
        let (before, mut after) = (known(self), known(self));
        match doing {
            Doing::Nothing | Doing::Recover => {}
            Doing::Pop => {
                if self.to_replay == 0 {
                    cut::after(stores, || self.ring.pop(&mut Chain::new())).0.unwrap();
                    after.0.extend(after.1.pop_front());
                }
            }
            Doing::Unpop => {
                if self.can_unpop() && self.popped.len() > self.ring.replayed {
                    cut::after(stores, || self.ring.unpop(1));
                    let head = after.0.pop().unwrap();
                    after.1.push_front(head);
                }
            }
            Doing::Publish => {
                cut::after(stores, || self.ring.publish()).0.unwrap();
            }
        }
        // A VMM says anything for the base; the log overrides it.
        let told = RingConfig {
            base: [0x8000, 0x8003_8003, 0x0002_0002][stores % 3],
            ..self.driver.config()
        };
        if let Doing::Recover = doing {
            let _cut = cut::after(stores, || start(self.kept, told, &self.ram, &self.file).map(drop));
        }
        self.ring = start(self.kept, told, &self.ram, &self.file).unwrap();
        let replays = usize::from(self.ring.to_replay());
        // A publication shows all or nothing.
        if matches!(doing, Doing::Publish) && !self.staged.is_empty() {
            match self.driver.used() {
                None => {}
                Some(first) => {
                    assert_eq!(first, (self.staged[0], 0));
                    self.in_flight.retain(|&h| h != first.0);
                    self.staged.remove(0);
                    self.published();
                }
            }
        } else {
            let chosen = match replays == before.0.len() || self.kept == Kept::Position {
                true => before,
                false => after,
            };
            (self.in_flight, self.available) = chosen;
            assert_eq!(self.driver.used(), None, "nothing was published");
        }
        (self.popped, self.held, self.staged) = (Vec::new(), Vec::new(), Vec::new());
        if self.kept == Kept::Position {
            // All is taken again.
            for head in std::mem::take(&mut self.in_flight).into_iter().rev() {
                self.available.push_front(head);
            }
        }
        self.to_replay = self.in_flight.len();
    }
}

fn check(kept: Kept, position: u16, features: u64, ops: Vec<Op>) {
    let mut model = Model::new(kept, position, features);
    for op in ops {
        model.run(op);
    }
    // In the end each chain was given back once: `published` compares them one by one.
    model.run(Op::Kill(0, Doing::Nothing));
    while model.to_replay > 0 || !model.available.is_empty() {
        model.run(Op::Pop);
    }
    while model.push(0).is_some() {}
    model.run(Op::Publish);
    assert!(model.in_flight.is_empty());
    let base = model.ring.base();
    assert_eq!(base >> 16, base & 0xffff);
}

fn positions() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(SIZE - 1), Just(2 * SIZE - 3), any::<u16>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// However often the device is killed, and between whichever stores: what it had taken and not published it gets
    /// again, once and in the same order, then what comes after; what it had published it does not get again.
    #[test]
    fn what_was_in_flight_is_done_again_and_nothing_else(
        position in positions(),
        ops in prop::collection::vec(op(), 1..100),
    ) {
        check(Kept::Entries, position, 0, ops);
    }

    /// The same of a device that takes again from the ring, with batches and without.
    #[test]
    fn what_was_not_used_is_taken_again_and_nothing_else(
        position in positions(),
        in_order in any::<bool>(),
        ops in prop::collection::vec(op(), 1..100),
    ) {
        check(Kept::Position, position, if in_order { IN_ORDER } else { 0 }, ops);
    }

    /// Whatever a host writes into a region: an error, or chains that are inside memory.
    #[test]
    fn any_region_is_refused_or_gives_chains_in_order(
        header in prop::collection::vec(0u16..12, 8),
        wraps in any::<[u8; 2]>(),
        entries in prop::collection::vec((0u8..3, 0u16..10, 0u16..10, 0u16..4, any::<[u16; 5]>()), 8),
        position in 0u16..16,
        by_entries in any::<bool>(),
    ) {
        let ram = GuestRam::new(1 << 17);
        let driver = Driver::new(&ram, SIZE, PACKED | INDIRECT).starting_at(position);
        let file = region();
        for (n, word) in header.iter().enumerate().skip(6) {
            write(&file, 2 * n, &word.to_ne_bytes());
        }
        let version = u16::from(header[0] > 0) * header[0].clamp(1, 2);
        write(&file, VERSION_OFFSET, &version.to_ne_bytes());
        write(&file, DESC_NUM_OFFSET, &if header[1] > 0 { SIZE } else { 3 }.to_ne_bytes());
        for n in 0..2 {
            write(&file, POSITION_OFFSET + 2 * n, &(header[2 + n] % 9).to_ne_bytes());
            write(&file, POSITION_OFFSET + 4 + n, &[wraps[n] % 2]);
        }
        for (index, (flag, next, last, num, rest)) in (0u16..).zip(&entries) {
            write(&file, entry(index), &[*flag]);
            for (at, word) in [(NEXT_OFFSET, next), (LAST_OFFSET, last), (NUM_OFFSET, num)] {
                write(&file, entry(index) + at, &word.to_ne_bytes());
            }
            let words: Vec<u8> = rest.iter().flat_map(|word| word.to_ne_bytes()).collect();
            write(&file, entry(index) + TAIL_OFFSET, &words);
        }
        let kept = if by_entries { Kept::Entries } else { Kept::Position };
        if let Ok(mut ring) = start(kept, driver.config(), &ram, &file) {
            prop_assert!(ring.to_replay() <= SIZE);
            let mut chain = Chain::new();
            while ring.pop(&mut chain) == Ok(true) {
                prop_assert!(chain.head() < SIZE);
                let mut segments = chain.readable().iter().chain(chain.writable());
                let inside = segments.all(|segment| ram.memory().slice(segment.addr, segment.len as usize).is_ok());
                prop_assert!(inside);
            }
        }
    }
}

/// A device with three chains in flight, killed; then the host changes the region.
fn changed(kept: Kept, change: impl Fn(&Model)) -> Result<PackedRing, RingError> {
    let mut model = Model::new(kept, 0, 0);
    for op in [
        Op::Add(2, false),
        Op::Add(1, false),
        Op::Add(1, true),
        Op::Pop,
        Op::Pop,
        Op::Pop,
    ] {
        model.run(op);
    }
    change(&model);
    start(kept, model.driver.config(), &model.ram, &model.file)
}

#[test]
fn h08_a_region_that_was_changed_is_refused() {
    let word = |offset: usize, value: u16| move |model: &Model| write(&model.file, offset, &value.to_ne_bytes());
    let entries = |change: &dyn Fn(&Model)| changed(Kept::Entries, change);
    assert!(entries(&|_| ()).is_ok_and(|ring| ring.to_replay() == 3));
    let cases: [(&str, usize, u16); 11] = [
        ("version", VERSION_OFFSET, 2),
        ("number of descriptors", DESC_NUM_OFFSET, SIZE + 1),
        ("free entry", OLD_FREE_HEAD_OFFSET, SIZE + 1),
        ("used index", POSITION_OFFSET, SIZE),
        ("used index", POSITION_OFFSET + 4, 2),
        ("free entry", entry(4) + NEXT_OFFSET, 4),
        ("in-flight flag", entry(0) + INFLIGHT_OFFSET, 2),
        ("number of descriptors in flight", entry(0) + NUM_OFFSET, SIZE + 1),
        ("number of descriptors in flight", entry(0) + NUM_OFFSET, 0),
        ("last entry", entry(0) + LAST_OFFSET, 5),
        (
            "number of entries that are free or in flight",
            entry(0) + INFLIGHT_OFFSET,
            0,
        ),
    ];
    for (field, offset, value) in cases {
        match entries(&word(offset, value)) {
            Err(RingError::Inflight(InflightError::Value { field: found, .. })) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    // A chain that goes on in another's entry.
    let result = entries(&word(entry(0) + NEXT_OFFSET, 0));
    assert!(matches!(
        result,
        Err(RingError::Inflight(InflightError::Value {
            field: "next entry",
            ..
        }))
    ));
}

#[test]
fn h08_a_batch_of_more_than_the_ring_has_is_refused() {
    for kept in [Kept::Entries, Kept::Position] {
        let moved = |used| {
            changed(kept, |model| {
                let raw = Positions { used, old: 0 }.to_raw(Laps::new(SIZE));
                write(&model.file, POSITION_OFFSET, &raw.to_ne_bytes());
            })
        };
        assert!(matches!(
            moved(SIZE + 1),
            Err(RingError::Inflight(InflightError::Value {
                field: "used index",
                ..
            }))
        ));
        if kept == Kept::Entries {
            let _off = Off::here(Check::InflightRegion);
            // The control: the flags of slots are written that the device has no business with.
            assert!(moved(SIZE + 1).is_ok());
        }
    }
}

#[test]
fn h08_a_batch_that_the_host_made_up_is_refused() {
    let made_up = |count: u16, tail: UsedTail| {
        changed(Kept::Position, |model| {
            write(&model.file, entry(0) + NUM_OFFSET, &count.to_ne_bytes());
            write(&model.file, entry(0) + TAIL_OFFSET, &tail_to_raw(tail).to_ne_bytes());
            let raw = Positions { used: 2, old: 0 }.to_raw(Laps::new(SIZE));
            write(&model.file, POSITION_OFFSET, &raw.to_ne_bytes());
        })
    };
    let good = UsedTail {
        len: 0,
        id: 1,
        flags: Laps::new(SIZE).used(0),
    };
    assert!(made_up(2, good).is_ok_and(|ring| ring.base() >> 16 == 0x8002));
    let bad_id = UsedTail { id: SIZE, ..good };
    let bad_flags = UsedTail {
        flags: Laps::new(SIZE).available(0),
        ..good
    };
    for (count, tail) in [(0, good), (3, good), (2, bad_id), (2, bad_flags)] {
        let error = made_up(count, tail).unwrap_err();
        assert!(
            matches!(error, RingError::Inflight(InflightError::Value { .. })),
            "{error}"
        );
    }
    let _off = Off::here(Check::InflightRegion);
    assert!(
        made_up(2, bad_id).is_ok(),
        "the driver would be given an id that it does not have"
    );
}

#[test]
fn a_region_of_the_other_kind_is_refused() {
    let ram = GuestRam::new(1 << 17);
    let file = region();
    let split = Driver::new(&ram, SIZE, 0);
    let error = crate::SplitRing::with_inflight(split.config(), ram.memory().clone(), log(&file)).unwrap_err();
    assert_eq!(error, RingError::Inflight(InflightError::Format { region: Packed }));
}

#[test]
fn a_ring_goes_on_where_the_log_says_unless_that_is_forgotten() {
    let mut model = Model::new(Kept::Entries, 0, 0);
    for op in [
        Op::Add(1, false),
        Op::Pop,
        Op::Push(0),
        Op::Publish,
        Op::Add(1, false),
        Op::Pop,
    ] {
        model.run(op);
    }
    // A VMM that is told nothing when a device goes says what it knew last.
    let driver = Driver::new(&model.ram, SIZE, PACKED);
    let ring = start(Kept::Entries, driver.config(), &model.ram, &model.file).unwrap();
    assert_eq!((ring.to_replay(), ring.base()), (1, 0x8001_8002));
    // The driver was reset.
    log(&model.file).forget().unwrap();
    let ring = start(Kept::Entries, driver.config(), &model.ram, &model.file).unwrap();
    assert_eq!((ring.to_replay(), ring.base()), (0, 0x8000_8000));
}
