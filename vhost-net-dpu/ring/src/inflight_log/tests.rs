use std::{collections::VecDeque, os::unix::fs::FileExt};

use outboard_controls::Off;
use proptest::prelude::*;
use rustix::fs::fcntl_get_seals;

use super::*;
use crate::{
    Chain, RingError, SplitRing,
    driver::{Driver, GuestRam},
};

const SIZE: u16 = 8;

fn region() -> File {
    InflightRegion::create(RingFormat::Split, 2, SIZE).unwrap()
}

fn log(file: &File) -> InflightLog {
    let len = InflightRegion::len_needed(RingFormat::Split, 2, SIZE);
    InflightRegion::map(file, 0, len, RingFormat::Split, (2, SIZE))
        .unwrap()
        .queue(1)
        .unwrap()
}

/// Where the second queue's part begins.
fn part() -> u64 {
    queue_len(RingFormat::Split, SIZE)
}

fn read16(file: &File, offset: usize) -> u16 {
    let mut bytes = [0; 2];
    file.read_exact_at(&mut bytes, part() + offset as u64).unwrap();
    u16::from_ne_bytes(bytes)
}

fn write16(file: &File, offset: usize, value: u16) {
    file.write_all_at(&value.to_ne_bytes(), part() + offset as u64).unwrap();
}

fn set_flag(file: &File, head: u16, flag: u8) {
    let at = part() + (entry(head) + INFLIGHT_OFFSET) as u64;
    file.write_all_at(&[flag], at).unwrap();
}

/// A guest, a device that is killed now and then, and what should be.
struct Model {
    ram: GuestRam,
    driver: Driver,
    file: File,
    ring: SplitRing,
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

/// Where in an operation the device is killed.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Between,
    /// After the used index was moved and so many flags were cleared.
    InPublish(usize),
    /// Before the head was made the last of the batch.
    InPush(usize),
    /// Before the flag was set.
    InPop,
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Add,
    Pop,
    Unpop,
    Push(usize),
    Publish,
    Kill(Cut),
}

fn op() -> impl Strategy<Value = Op> {
    let cut = prop_oneof![
        Just(Cut::Between),
        (0usize..9).prop_map(Cut::InPublish),
        (0usize..8).prop_map(Cut::InPush),
        Just(Cut::InPop),
    ];
    prop_oneof![
        4 => Just(Op::Add),
        4 => Just(Op::Pop),
        1 => Just(Op::Unpop),
        3 => (0usize..8).prop_map(Op::Push),
        2 => Just(Op::Publish),
        1 => cut.prop_map(Op::Kill),
    ]
}

impl Model {
    fn new(start: u16) -> Self {
        let ram = GuestRam::new(1 << 17);
        let driver = Driver::new(&ram, SIZE, 0).starting_at(start);
        let file = region();
        let ring = SplitRing::with_inflight(driver.config(), ram.memory().clone(), log(&file)).unwrap();
        assert_eq!((ring.next_avail(), ring.to_replay()), (start, 0));
        Self {
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
            Op::Add => {
                if let Some(added) = self.driver.add_bytes(&[b"x"], &[]) {
                    self.available.push_back(added.head);
                }
                self.driver.publish();
            }
            Op::Pop => self.pop(),
            Op::Unpop => self.unpop(),
            Op::Push(nth) => drop(self.push(nth)),
            Op::Publish => self.publish(),
            Op::Kill(cut) => self.kill(cut),
        }
        assert_eq!(self.ring.to_replay(), u16::try_from(self.to_replay).unwrap());
        assert_eq!(self.ring.in_flight(), u16::try_from(self.held.len()).unwrap());
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
            self.popped.push(head);
            self.held.push(head);
        }
    }

    /// Only what was popped last and is held still can be put back.
    fn unpop(&mut self) {
        if self.popped.is_empty() || self.held.last() != self.popped.last() {
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
        let nth = nth.checked_rem(self.held.len())?;
        let head = self.held.remove(nth);
        self.ring.push_used(&crate::driver::chain_of(head), 0).unwrap();
        self.staged.push(head);
        Some(head)
    }

    fn publish(&mut self) {
        self.ring.publish().unwrap();
        for head in std::mem::take(&mut self.staged) {
            assert_eq!(self.driver.used(), Some((head, 0)));
            self.in_flight.retain(|&h| h != head);
        }
        assert_eq!(self.driver.used(), None, "nothing else was published");
    }

    fn kill(&mut self, cut: Cut) {
        match cut {
            Cut::Between => {}
            Cut::InPublish(cleared) => {
                let (used_idx, staged) = (read16(&self.file, USED_IDX_OFFSET), self.staged.clone());
                self.publish();
                write16(&self.file, USED_IDX_OFFSET, used_idx);
                let kept = staged.iter().skip(cleared);
                kept.for_each(|&head| set_flag(&self.file, head, 1));
            }
            Cut::InPush(nth) => {
                let last = read16(&self.file, LAST_BATCH_HEAD_OFFSET);
                self.push(nth);
                write16(&self.file, LAST_BATCH_HEAD_OFFSET, last);
            }
            Cut::InPop => {
                let (fresh, held) = (self.to_replay == 0, self.held.len());
                self.pop();
                if fresh && self.held.len() > held {
                    let head = self.in_flight.pop().unwrap();
                    assert_eq!(self.held.last(), Some(&head));
                    set_flag(&self.file, head, 0);
                    self.available.push_front(head);
                }
            }
        }
        // A VMM says anything for the base; the log overrides it.
        let mut config = self.driver.config();
        config.base = (config.base + 5) & 0xffff;
        self.ring = SplitRing::with_inflight(config, self.ram.memory().clone(), log(&self.file)).unwrap();
        (self.popped, self.held, self.staged) = (Vec::new(), Vec::new(), Vec::new());
        self.to_replay = self.in_flight.len();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// However often the device is killed, and wherever: what it had taken and not published it gets again, once and in
    /// the same order, then what comes after; what it had published it does not get again.
    #[test]
    fn what_was_in_flight_is_done_again_and_nothing_else(
        start in prop_oneof![Just(0), Just(u16::MAX - 7), any::<u16>()],
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut model = Model::new(start);
        for op in ops {
            model.run(op);
        }
        // In the end each head was given back once: `publish` compares them one by one.
        model.run(Op::Kill(Cut::Between));
        while model.to_replay > 0 || !model.available.is_empty() {
            model.run(Op::Pop);
        }
        while model.push(0).is_some() {}
        model.publish();
        prop_assert!(model.in_flight.is_empty());
        prop_assert_eq!(model.ring.next_avail(), model.driver.published_used());
    }
}

/// What a VMM without the log would do: A, B and C in flight, B and C done, so that the used index is 2.
#[test]
fn the_used_index_alone_would_lose_a_and_repeat_c() {
    let kill_after_b_and_c = || {
        let mut model = Model::new(0);
        (0..3).for_each(|_| model.run(Op::Add));
        (0..3).for_each(|_| model.run(Op::Pop));
        let heads = model.held.clone();
        model.run(Op::Push(1));
        model.run(Op::Push(1));
        model.run(Op::Publish);
        (model, heads)
    };
    let (mut model, heads) = kill_after_b_and_c();
    model.run(Op::Kill(Cut::Between));
    assert_eq!((model.ring.to_replay(), model.ring.next_avail()), (1, 3));
    model.run(Op::Pop);
    assert_eq!(model.held, heads[..1]);

    // Control: a ring without the log, from the used index on.
    let (model, heads) = kill_after_b_and_c();
    let mut config = model.driver.config();
    config.base = model.driver.published_used().into();
    let mut ring = SplitRing::new(config, model.ram.memory().clone()).unwrap();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(true));
    assert_eq!(chain.head(), heads[2]);
    assert_eq!(ring.pop(&mut chain), Ok(false));
}

#[test]
fn a_replayed_chain_can_be_put_back() {
    let mut model = Model::new(0);
    (0..3).for_each(|_| model.run(Op::Add));
    (0..2).for_each(|_| model.run(Op::Pop));
    model.run(Op::Kill(Cut::Between));
    (0..3).for_each(|_| model.run(Op::Pop));
    (0..3).for_each(|_| model.run(Op::Unpop));
    assert_eq!(model.ring.to_replay(), 2);
    assert_eq!(
        model.available.len(),
        1,
        "that one is read from the available ring again"
    );
    model.run(Op::Kill(Cut::Between));
    assert_eq!(
        model.ring.to_replay(),
        2,
        "they still are in flight for whoever comes next"
    );
}

#[test]
fn an_index_that_was_reset_with_nothing_in_flight_is_no_error() {
    let mut model = Model::new(0);
    for _ in 0..SIZE + 2 {
        for op in [Op::Add, Op::Pop, Op::Push(0), Op::Publish] {
            model.run(op);
        }
    }
    // The driver was loaded anew.
    let driver = Driver::new(&model.ram, SIZE, 0);
    let ring = SplitRing::with_inflight(driver.config(), model.ram.memory().clone(), log(&model.file)).unwrap();
    assert_eq!((ring.to_replay(), ring.next_avail()), (0, 0));
    assert_eq!(read16(&model.file, USED_IDX_OFFSET), 0);
}

#[test]
fn a_new_region_is_sealed_and_empty_and_laid_out_as_others_do() {
    let file = InflightRegion::create(RingFormat::Split, 3, 128).unwrap();
    // 64 bytes of header and rounding, 16 a descriptor, as in libvhost-user and DPDK.
    assert_eq!(
        InflightRegion::len_needed(RingFormat::Split, 3, 128),
        3 * (64 + 16 * 128)
    );
    assert_eq!(
        file.metadata().unwrap().len(),
        InflightRegion::len_needed(RingFormat::Split, 3, 128)
    );
    let seals = fcntl_get_seals(&file).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    assert!(file.set_len(0).is_err());
    for (queue_count, queue_size) in [(0, 8), (1, 0), (1, QUEUE_SIZE_MAX + 1)] {
        let shape = InflightError::Shape {
            queue_count,
            queue_size,
        };
        assert_eq!(
            InflightRegion::create(RingFormat::Split, queue_count, queue_size).unwrap_err(),
            shape
        );
    }
}

#[test]
fn h08_regions_that_do_not_hold_their_queues_are_refused() {
    let file = region();
    let len = InflightRegion::len_needed(RingFormat::Split, 2, SIZE);
    let map = |offset, len, count, size| {
        InflightRegion::map(&file, offset, len, RingFormat::Split, (count, size)).map(|_| ())
    };
    assert_eq!(map(0, len, 2, SIZE), Ok(()));
    assert_eq!(
        map(0, len - 1, 2, SIZE),
        Err(InflightError::TooSmall {
            len: len - 1,
            needed: len
        })
    );
    assert_eq!(
        map(0, len, 3, SIZE),
        Err(InflightError::TooSmall {
            len,
            needed: len / 2 * 3
        })
    );
    assert_eq!(map(8, len, 2, SIZE), Err(InflightError::Misaligned { offset: 8 }));
    for offset in [16, u64::MAX - 15] {
        assert!(matches!(map(offset, len, 2, SIZE), Err(InflightError::File(_))));
    }
    let region = InflightRegion::map(&file, 0, len, RingFormat::Split, (2, SIZE)).unwrap();
    for index in [2, u16::MAX] {
        assert_eq!(
            region.queue(index).unwrap_err(),
            InflightError::NoSuchQueue { index, queue_count: 2 }
        );
    }
    let ram = GuestRam::new(1 << 17);
    let driver = Driver::new(&ram, 2 * SIZE, 0);
    assert!(matches!(
        SplitRing::with_inflight(driver.config(), ram.memory().clone(), log(&file)),
        Err(RingError::Inflight(InflightError::RingLarger {
            queue_size: 8,
            ring_size: 16
        }))
    ));
}

/// A ring of 4 with a log for 8, one request in flight at head 3, and a field changed by the host.
fn with_field(offset: usize, value: u16) -> Result<u16, RingError> {
    let ram = GuestRam::new(1 << 17);
    let mut driver = Driver::new(&ram, 4, 0);
    let file = region();
    let new = |driver: &Driver| SplitRing::with_inflight(driver.config(), ram.memory().clone(), log(&file));
    let mut ring = new(&driver).unwrap();
    driver.add_bytes(&[b"x"], &[]).unwrap();
    driver.publish();
    ring.pop(&mut Chain::new()).unwrap();
    write16(&file, offset, value);
    new(&driver).map(|mut ring| {
        let popped = ring.pop(&mut Chain::new());
        assert!(popped.is_ok() || ring.broken().is_some());
        ring.to_replay()
    })
}

#[test]
fn h08_what_a_host_writes_to_the_region_is_refused_or_harmless() {
    assert_eq!(
        with_field(LAST_BATCH_HEAD_OFFSET, 65_535),
        Ok(0),
        "no batch was cut off"
    );
    let refused = |offset, value| match with_field(offset, value) {
        Err(RingError::Inflight(InflightError::Value { field, value })) => (field, value),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(VERSION_OFFSET, 2), ("version", 2));
    assert_eq!(refused(DESC_NUM_OFFSET, 9), ("number of descriptors", 9));
    assert_eq!(refused(entry(0), 2), ("in-flight flag", 2));
    // A batch of 65,535 entries, and a list of heads that loops.
    let far = with_field(USED_IDX_OFFSET, 1).unwrap_err();
    let expected = InflightError::UsedIndex { logged: 1, used_idx: 0 };
    assert_eq!(far, RingError::Inflight(expected));
    assert!(
        far.to_string().contains("the guest wrote used.idx"),
        "who it was cannot be told: {far}"
    );
    assert!(with_field(USED_IDX_OFFSET, 65_535).is_ok());
    // A head that the ring does not have.
    assert_eq!(refused(entry(7), 1), ("head in flight", 7));
    let _off = Off::here(Check::InflightRegion);
    assert_eq!(
        with_field(entry(7), 1),
        Ok(1),
        "without the check a head past the ring is taken"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any bytes as a region: an error, or a ring that yields no more than it has.
    #[test]
    fn h08_any_region_is_refused_or_taken(
        header in prop::collection::vec(0u16..12, 8),
        entries in prop::collection::vec((0u8..3, 0u16..10, any::<u64>()), 8),
        used in 0u16..12,
    ) {
        let ram = GuestRam::new(1 << 17);
        let driver = Driver::new(&ram, SIZE, 0).starting_at(used);
        let file = region();
        for (n, word) in header.iter().enumerate() {
            write16(&file, 2 * n, *word);
        }
        write16(&file, VERSION_OFFSET, header[4] % 3);
        write16(&file, DESC_NUM_OFFSET, if header[5] > 1 { SIZE } else { header[5] });
        for (head, &(flag, next, counter)) in (0u16..).zip(&entries) {
            set_flag(&file, head, flag / 2);
            write16(&file, entry(head) + NEXT_OFFSET, next);
            file.write_all_at(&counter.to_ne_bytes(), part() + (entry(head) + COUNTER_OFFSET) as u64).unwrap();
        }
        if let Ok(mut ring) = SplitRing::with_inflight(driver.config(), ram.memory().clone(), log(&file)) {
            prop_assert!(ring.to_replay() <= SIZE);
            prop_assert_eq!(ring.next_avail(), used.wrapping_add(ring.to_replay()));
            let mut chain = Chain::new();
            while ring.pop(&mut chain) == Ok(true) {
                prop_assert!(chain.head() < SIZE);
            }
        }
    }
}
