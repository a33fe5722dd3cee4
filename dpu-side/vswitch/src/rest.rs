//! Whether a worker sleeps, agreed on by itself and those who give it something.
//!
//! Whoever gives puts the thing where it is looked for, and then asks here; whoever sleeps says so here, and then looks. One
//! of both sees the other: two fences order each one's store before its load. That is all there is to prove, and `loom`
//! does, over all interleavings that the memory model allows: `RUSTFLAGS="--cfg loom" cargo test -p outboard-vswitch --lib
//! rest`.

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// The state of one worker.
#[derive(Debug)]
pub(crate) struct Rest {
    asleep: AtomicBool,
}

impl Rest {
    /// It is awake.
    pub(crate) fn new() -> Self {
        Self {
            asleep: AtomicBool::new(false),
        }
    }

    /// It is going to sleep, unless it finds something in what it looks at after this.
    pub(crate) fn lie_down(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        // The wish to be woken is seen before we look for what came in the meantime.
        fence(Ordering::SeqCst);
    }

    /// It is awake.
    pub(crate) fn get_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Something was put where it looks. True if it may sleep and has to be woken: by whoever is told so, once.
    pub(crate) fn disturb(&self) -> bool {
        // What was put there is seen before we look whether anybody sleeps.
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

#[cfg(all(test, loom))]
mod proof {
    use loom::{
        sync::{Arc, atomic::AtomicUsize},
        thread,
    };

    use super::*;

    /// A worker, what it was given, and how often it was woken.
    struct Worker {
        rest: Rest,
        given: AtomicUsize,
        woken: AtomicUsize,
    }

    fn give(worker: &Worker) {
        // As a ring does: the thing is published by a store, and no more.
        worker.given.fetch_add(1, Ordering::Release);
        if worker.rest.disturb() {
            worker.woken.fetch_add(1, Ordering::Release);
        }
    }

    /// Lies down once. True if it goes to sleep: then it saw nothing.
    fn sleeps(worker: &Worker, seen: usize) -> bool {
        worker.rest.lie_down();
        worker.given.load(Ordering::Acquire) == seen
    }

    fn check(givers: usize) {
        loom::model(move || {
            let worker = Arc::new(Worker {
                rest: Rest::new(),
                given: AtomicUsize::new(0),
                woken: AtomicUsize::new(0),
            });
            let threads: Vec<_> = (0..givers)
                .map(|_| {
                    let worker = worker.clone();
                    thread::spawn(move || give(&worker))
                })
                .collect();
            let asleep = sleeps(&worker, 0);
            for thread in threads {
                thread.join().expect("it ends");
            }
            let woken = worker.woken.load(Ordering::Acquire);
            assert!(!asleep || woken > 0, "whoever sleeps over something is woken");
            assert!(woken <= 1, "and once for each time that it lay down");
        });
    }

    #[test]
    fn nobody_sleeps_over_what_it_was_given() {
        check(1);
    }

    #[test]
    fn of_two_givers_one_wakes() {
        check(2);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeper_is_woken_and_once() {
        let rest = Rest::new();
        assert!(!rest.disturb(), "awake");
        rest.lie_down();
        assert!(rest.disturb());
        assert!(!rest.disturb(), "it was woken already");
        rest.lie_down();
        rest.get_up();
        assert!(!rest.disturb(), "it got up by itself");
    }
}
