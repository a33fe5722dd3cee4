//! Chains by the burst are those that the driver made, in its order, whatever is taken one by one, by the burst, put back
//! or filled at once; and each comes back to the driver once.

use std::{collections::VecDeque, sync::Arc};

use outboard_ring::{
    Chain, GuestMemory, Ring, RingConfig,
    driver::{Driver, GuestRam},
};
use proptest::prelude::*;

const SIZE: u16 = 16;
const RAM_LEN: u64 = 1 << 18;
/// Where the other region begins: behind the first one, so that buffers go on in it.
const IN_ORDER: u64 = 1 << 35;
const PACKED: u64 = 1 << 34;
const INDIRECT: u64 = 1 << 28;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// The driver makes a chain of so many bytes to read, and to write, in an indirect table or not; and shows it or not.
    Add {
        readable: Vec<u32>,
        writable: Vec<u32>,
        indirect: bool,
        shown: bool,
    },
    /// The device takes at most so many.
    Burst(usize),
    /// The device takes one.
    Pop,
    /// The device puts so many back.
    Unpop(usize),
    /// The device gives back so many, the oldest.
    GiveBack(usize),
    /// The device fills one at once.
    Fill(usize),
    /// The device shows what it gave back.
    Publish,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = |max| prop::collection::vec(1u32..3000, 0..max);
    let add = (lens(3), lens(3), any::<bool>(), any::<bool>())
        .prop_filter("a chain has a buffer", |(readable, writable, ..)| {
            readable.len() + writable.len() > 0
        })
        .prop_map(|(readable, writable, indirect, shown)| Step::Add {
            readable,
            writable,
            indirect,
            shown,
        });
    let receive = (1u32..3000).prop_map(|len| Step::Add {
        readable: Vec::new(),
        writable: vec![len],
        indirect: false,
        shown: true,
    });
    let step = prop_oneof![
        4 => add,
        3 => receive,
        2 => (0usize..12).prop_map(Step::Burst),
        1 => Just(Step::Pop),
        1 => (0usize..4).prop_map(Step::Unpop),
        2 => (0usize..12).prop_map(Step::GiveBack),
        3 => (0usize..2000).prop_map(Step::Fill),
        1 => Just(Step::Publish),
    ];
    prop::collection::vec(step, 1..120)
}

/// A chain as the driver made it.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    head: u16,
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

impl Made {
    fn of(chain: &Chain, memory_end: u64) -> Self {
        // A buffer over both regions is two segments, which touch where the first ends.
        let joined = |segments: &[outboard_ring::Segment]| {
            let mut all: Vec<(u64, u32)> = Vec::new();
            for segment in segments {
                match all.last_mut() {
                    Some((addr, len)) if *addr + u64::from(*len) == segment.addr && segment.addr == memory_end => {
                        *len += segment.len;
                    }
                    _ => all.push((segment.addr, segment.len)),
                }
            }
            all
        };
        Self {
            head: chain.head(),
            readable: joined(chain.readable()),
            writable: joined(chain.writable()),
        }
    }
}

struct Bench {
    driver: Driver,
    ring: Ring,
    /// Where the first region ends.
    middle: u64,
    /// Where the next buffer goes.
    next: u64,
    /// Made and not shown, shown and not taken, taken and not given back: oldest first.
    hidden: VecDeque<Made>,
    waiting: VecDeque<Made>,
    held: VecDeque<(Made, Chain)>,
    /// Given back, with what was said to be written.
    done: VecDeque<(u16, u32)>,
}

impl Bench {
    fn new(features: u64) -> Self {
        let ram = GuestRam::new(RAM_LEN);
        let middle = ram.spec().guest_phys_addr + RAM_LEN;
        let other = GuestRam::at(middle, RAM_LEN);
        let driver = Driver::new(&ram, SIZE, features).starting_at(u16::MAX - 20);
        let memory = Arc::new(GuestMemory::map(vec![ram.spec(), other.spec()]).expect("both are memfds"));
        let config: RingConfig = driver.config();
        Self {
            ring: Ring::new(config, memory).expect("it is in order"),
            driver,
            middle,
            next: middle - (1 << 14),
            hidden: VecDeque::new(),
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    /// Buffers around the border of both regions, one after the other.
    fn place(&mut self, len: u32) -> (u64, u32) {
        if self.next + u64::from(len) > self.middle + (1 << 14) {
            self.next = self.middle - (1 << 14);
        }
        // Two that meet at the border would look like one that crosses it.
        if self.next == self.middle {
            self.next += 1;
        }
        let addr = self.next;
        self.next += u64::from(len);
        (addr, len)
    }

    fn add(&mut self, readable: &[u32], writable: &[u32], indirect: bool) {
        let readable: Vec<_> = readable.iter().map(|len| self.place(*len)).collect();
        let writable: Vec<_> = writable.iter().map(|len| self.place(*len)).collect();
        let head = match indirect {
            true => self.driver.add_indirect(&readable, &writable),
            false => self.driver.add(&readable, &writable),
        };
        self.hidden.extend(head.map(|head| Made {
            head,
            readable,
            writable,
        }));
    }

    fn taken(&mut self, chain: Chain) {
        let made = self.waiting.pop_front().expect("no more than were shown");
        assert_eq!(Made::of(&chain, self.middle), made);
        self.held.push_back((made, chain));
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add {
                readable,
                writable,
                indirect,
                shown,
            } => {
                self.add(&readable, &writable, indirect);
                if shown {
                    self.driver.publish();
                    self.waiting.append(&mut self.hidden);
                }
            }
            Step::Burst(most) => {
                let mut chains: Vec<_> = (0..most).map(|_| Chain::new()).collect();
                let (count, failure) = self.ring.pop_burst(&mut chains);
                assert_eq!(failure, None);
                assert!(count == most || count == self.waiting.len() || count > 0);
                chains.truncate(count);
                chains.into_iter().for_each(|chain| self.taken(chain));
            }
            Step::Pop => {
                let mut chain = Chain::new();
                let any = !self.waiting.is_empty();
                assert_eq!(self.ring.pop(&mut chain), Ok(any));
                if any {
                    self.taken(chain);
                }
            }
            Step::Unpop(count) => {
                for _ in 0..count.min(self.held.len()) {
                    let (made, _) = self.held.pop_back().expect("there is one");
                    self.waiting.push_front(made);
                    self.ring.unpop(1);
                }
            }
            Step::GiveBack(count) => {
                let count = count.min(self.held.len());
                let chains: Vec<_> = self.held.drain(..count).map(|(_, chain)| chain).collect();
                self.ring
                    .push_used_burst(&chains)
                    .expect("they are held, and the oldest");
                self.done.extend(chains.iter().map(|chain| (chain.head(), 0)));
            }
            Step::Fill(len) => {
                let bytes: Vec<u8> = (0..len)
                    .map(|n| n.to_le_bytes()[0] ^ self.next.to_le_bytes()[0])
                    .collect();
                let due = self.waiting.front().cloned();
                let filled = self.ring.fill_next(len, |to| {
                    to.copy_from(&bytes);
                    true
                });
                let fits = due
                    .as_ref()
                    .is_some_and(|made| match (&*made.readable, &*made.writable) {
                        ([], [(addr, room)]) => {
                            *room as usize >= len && (addr + u64::from(*room) <= self.middle || *addr >= self.middle)
                        }
                        _ => false,
                    });
                if !filled {
                    return;
                }
                assert!(fits && self.held.is_empty());
                let made = self.waiting.pop_front().expect("there is one");
                let mut back = vec![0; len];
                self.ring
                    .memory()
                    .read(made.writable[0].0, &mut back)
                    .expect("it is mapped");
                assert_eq!(back, bytes);
                self.done.push_back((made.head, u32::try_from(len).expect("short")));
            }
            Step::Publish => self.publish(),
        }
    }

    fn publish(&mut self) {
        assert_eq!(self.driver.used(), None, "nothing is shown before");
        self.ring.publish().expect("the ring's memory is there");
        while let Some(used) = self.driver.used() {
            assert_eq!(Some(used), self.done.pop_front());
        }
        assert!(self.done.is_empty());
    }
}

proptest! {
    #[test]
    fn what_is_taken_is_what_was_made(steps in steps(), in_order in any::<bool>(), packed in any::<bool>()) {
        let order = if in_order { IN_ORDER } else { 0 };
        let mut bench = Bench::new(INDIRECT | order | if packed { PACKED } else { 0 });
        steps.into_iter().for_each(|step| bench.step(step));
        bench.step(Step::Add { readable: vec![1], writable: vec![], indirect: false, shown: true });
        bench.step(Step::GiveBack(usize::MAX));
        while !bench.waiting.is_empty() {
            bench.step(Step::Burst(5));
            bench.step(Step::GiveBack(usize::MAX));
        }
        bench.publish();
        prop_assert_eq!(bench.ring.in_flight(), 0);
    }
}

#[test]
fn a_plain_buffer_is_filled_at_once_and_others_are_not() {
    for format in [0, PACKED] {
        plain_buffers(Bench::new(INDIRECT | IN_ORDER | format));
    }
}

fn plain_buffers(mut bench: Bench) {
    let one = |readable: &[u32], writable: &[u32], indirect| Step::Add {
        readable: readable.into(),
        writable: writable.into(),
        indirect,
        shown: true,
    };
    for (step, filled) in [
        (one(&[], &[100], false), true),
        (one(&[], &[99], false), false),
        (one(&[], &[100], true), false),
        (one(&[100], &[], false), false),
        (one(&[1], &[100], false), false),
        (one(&[], &[50, 50], false), false),
        (one(&[], &[100], false), true),
    ] {
        bench.step(step);
        bench.step(Step::Fill(100));
        assert_eq!(bench.waiting.is_empty(), filled);
        bench.step(Step::Pop);
        if !filled {
            // An older one is in flight.
            bench.step(one(&[], &[100], false));
            bench.step(Step::Fill(100));
            assert_eq!(bench.waiting.len(), 1);
            bench.step(Step::Pop);
        }
        bench.step(Step::GiveBack(2));
        bench.publish();
    }
}
