//! Nothing is allocated for a request, whatever it is.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use crate::DEFAULT_FEATURES;
use crate::FORMAT;
use outboard_ring::InflightRegion;
use outboard_storage::{Backend, NullBackend, open_file};

use crate::{
    guest::{T_DISCARD, T_FLUSH, T_IN, T_OUT, T_WRITE_ZEROES, header, resources},
    queues::Many,
};

const MIB: u64 = 1 << 20;
const QUEUES: u16 = 4;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

// SAFETY: all calls go to the system's allocator as they came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

/// The buffers of a request: those the device reads, and those it writes.
struct Buffers {
    readable: Vec<(u64, u32)>,
    writable: Vec<(u64, u32)>,
}

/// One request of each kind in the guest's memory, known or not.
fn requests(many: &Many) -> Vec<Buffers> {
    let at = many.ram.alloc(64 << 10, 4096);
    let mut requests = Vec::new();
    for (n, kind) in [T_IN, T_OUT, T_FLUSH, T_DISCARD, T_WRITE_ZEROES, 8, 99]
        .into_iter()
        .enumerate()
    {
        let place = at + 64 * n as u64;
        many.drivers[0].write(place, &header(kind, 8));
        // A range of eight sectors.
        let mut range = [0; 16];
        range[8] = 8;
        many.drivers[0].write(place + 16, &range);
        let data = (at + 4096, 4096);
        let (readable, writable) = match kind {
            T_IN => (vec![(place, 16)], vec![data]),
            T_OUT => (vec![(place, 16), data], vec![]),
            T_DISCARD | T_WRITE_ZEROES => (vec![(place, 32)], vec![]),
            8 => (vec![(place, 16)], vec![(at + 4096, 20)]),
            _ => (vec![(place, 16)], vec![]),
        };
        let writable = [writable, vec![(at + 9000, 1)]].concat();
        requests.push(Buffers { readable, writable });
    }
    requests
}

/// What the device allocates for so many rounds of all kinds of requests on all queues.
fn allocated(many: &mut Many, rounds: usize) -> usize {
    let requests = requests(many);
    let mut allocated = 0;
    for _ in 0..rounds {
        for driver in &mut many.drivers {
            for request in &requests {
                driver.add(&request.readable, &request.writable).expect("there is room");
            }
            driver.publish();
        }
        let mut left = requests.len() * many.drivers.len();
        while left > 0 {
            allocated += allocations(|| {
                if !many.breathe() && !many.unit.before_sleep() {
                    many.unit.after_sleep();
                }
            });
            for driver in &mut many.drivers {
                while driver.used().is_some() {
                    left -= 1;
                }
            }
        }
    }
    allocated
}

#[test]
fn no_request_is_worth_an_allocation() {
    assert_eq!(allocations(|| drop(vec![1u8])), 2, "the count counts");
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MIB).expect("its size");
    let backends: [Box<dyn Backend>; 2] = [
        Box::new(NullBackend::new(MIB, false)),
        Box::new(open_file(file.path(), MIB, false).expect("it opens")),
    ];
    for backend in backends {
        let mut many = Many::new(backend, MIB, QUEUES, DEFAULT_FEATURES);
        // With a log of what is in flight, too.
        let inflight = InflightRegion::create(FORMAT, QUEUES, 64).expect("a memfd");
        let len = InflightRegion::len_needed(FORMAT, QUEUES, 64);
        for index in 0..QUEUES {
            many.unit.stop_queue(index, Box::new(|_| {}));
            let region = InflightRegion::map(&inflight, 0, len, FORMAT, (QUEUES, 64)).expect("in order");
            let log = region.queue(index).expect("it has that queue");
            let config = many.drivers[usize::from(index)].config();
            let ring = outboard_ring::Ring::with_inflight(config, many.ram.memory().clone(), log);
            let resources = resources(ring.expect("in order"), config.features);
            many.unit.start_queue(index, resources).expect("it was stopped");
        }
        // The first of them may make room that is used from then on.
        allocated(&mut many, 20);
        assert_eq!(allocated(&mut many, 50), 0);
    }
}
