//! A switch of several workers, each driven by hand, with guests whose queue pairs are spread over them.

use std::collections::BTreeMap;

use outboard_ring::Signals;
use outboard_vhost_user::QueueResources;
use outboard_vswitch::{PortCounters, PortPolicy, Switch};
use vhost_net_dpu::{QueueKind, header::NetHeader};

use crate::rig::{Calls, Delta, Guest, delta, mac, policy, resources};

/// The workers, the guests, and which worker has which pair of which guest.
pub struct Fleet {
    pub workers: Vec<Switch>,
    pub guests: Vec<Guest>,
    pub homes: BTreeMap<(usize, usize), usize>,
    pub calls: Calls,
    before: Vec<PortCounters>,
}

impl Fleet {
    /// Guests a, b, … in one network; for each its features, and the worker of each of its pairs.
    pub fn new(workers: usize, guests: &[(u64, &[usize])]) -> Self {
        let mut fleet = Self::bare(workers, guests);
        for guest in &mut fleet.guests {
            guest.post(64, 1526);
        }
        fleet
    }

    /// The same without receive buffers.
    pub fn bare(workers: usize, guests: &[(u64, &[usize])]) -> Self {
        let names = ["a", "b", "c", "d", "e", "f"];
        let mut fleet = Self {
            workers: Switch::fleet(workers).expect("there are descriptors"),
            guests: (1..)
                .zip(names.iter().zip(guests))
                .map(|(n, (name, (features, pairs)))| Guest::new(name, mac(n), *features, pairs.len()))
                .collect(),
            homes: BTreeMap::new(),
            calls: Calls::default(),
            before: Vec::new(),
        };
        fleet.set_ports(&[]);
        for (n, (_, pairs)) in guests.iter().enumerate() {
            fleet.on_all(|worker, guests| worker.open(guests[n].name));
            for (pair, worker) in pairs.iter().enumerate() {
                fleet.start(n, pair, *worker);
            }
        }
        fleet.tell();
        fleet.breathe();
        fleet.settle();
        fleet
    }

    /// Declares the guests' ports, and others.
    pub fn set_ports(&mut self, others: &[PortPolicy]) {
        let own = (1..).zip(&self.guests).map(|(n, guest)| policy(guest.name, n));
        let all: Vec<_> = own.chain(others.iter().cloned()).collect();
        self.workers.iter_mut().for_each(|worker| worker.set_ports(all.clone()));
    }

    pub fn on_all(&mut self, mut act: impl FnMut(&mut Switch, &[Guest])) {
        let guests = &self.guests;
        self.workers.iter_mut().for_each(|worker| act(worker, guests));
    }

    /// Starts both queues of a pair in a worker.
    pub fn start(&mut self, n: usize, pair: usize, worker: usize) {
        for kind in kinds(pair) {
            let queue = self.resources_of(n, kind);
            self.workers[worker]
                .start_queue(self.guests[n].name, kind.index(), queue)
                .expect("the queue can be served");
        }
        self.homes.insert((n, pair), worker);
    }

    fn resources_of(&self, n: usize, kind: QueueKind) -> QueueResources {
        let guest = &self.guests[n];
        let driver = match kind {
            QueueKind::Rx { pair } => &guest.pairs[usize::from(pair)].rx,
            QueueKind::Tx { pair } => &guest.pairs[usize::from(pair)].tx,
        };
        resources(driver, guest.ram.memory(), guest.features)
    }

    /// Tells all workers which receive queues the others have.
    pub fn tell(&mut self) {
        for (me, worker) in self.workers.iter_mut().enumerate() {
            for (n, guest) in self.guests.iter().enumerate() {
                let of_it = self
                    .homes
                    .iter()
                    .filter(|((guest, _), home)| *guest == n && **home != me);
                let elsewhere = of_it.map(|((_, pair), home)| (u16::try_from(*pair).expect("few"), *home));
                worker.set_elsewhere(guest.name, elsewhere.collect());
            }
        }
    }

    /// Until nobody has anything to do.
    pub fn breathe(&mut self) {
        let calls = &mut self.calls;
        for _ in 0..1000 {
            let worked = self
                .workers
                .iter_mut()
                .fold(false, |worked, worker| worked | worker.breathe(calls));
            if !worked {
                return;
            }
        }
        panic!("the workers come to rest");
    }

    /// Once, of one worker.
    pub fn breath_of(&mut self, worker: usize) -> bool {
        self.workers[worker].breathe(&mut self.calls)
    }

    /// Queues a frame in a pair of a guest and shows it.
    pub fn offer(&mut self, n: usize, pair: usize, frame: &[u8]) {
        self.guests[n].queue_on(pair, NetHeader::default(), frame);
        self.guests[n].pairs[pair].tx.publish();
    }

    /// Shows a frame as often as `count` says, in one descriptor each.
    pub fn offer_many(&mut self, n: usize, pair: usize, frame: &[u8], count: usize) {
        let (ram, pairs) = self.guests[n].split();
        for _ in 0..count {
            pairs[pair].send_at(ram, NetHeader::default(), frame);
        }
    }

    /// So many breaths of one worker.
    pub fn breaths_of(&mut self, worker: usize, count: usize) {
        for _ in 0..count {
            self.breath_of(worker);
        }
    }

    /// The same, and it is dealt with.
    pub fn send(&mut self, n: usize, pair: usize, frame: &[u8]) {
        self.offer(n, pair, frame);
        self.breathe();
    }

    /// The frames that a guest got since the last call.
    pub fn received(&mut self, n: usize) -> Vec<Vec<u8>> {
        self.guests[n].received().into_iter().map(|(_, frame)| frame).collect()
    }

    /// Frames pass between two guests: the system is alive.
    #[track_caller]
    pub fn alive(&mut self, from: usize, to: usize) {
        for (from, to) in [(from, to), (to, from)] {
            let frame = crate::frames::ping(self.guests[from].mac, self.guests[to].mac);
            self.send(from, 0, &frame);
            assert_eq!(self.received(to), [frame]);
        }
        self.settle();
    }

    /// The counters of all ports, of all workers together.
    pub fn counters(&self) -> Vec<PortCounters> {
        let mut workers = self.workers.iter().map(Switch::counters);
        let mut sum = workers.next().expect("a worker");
        for counters in workers {
            assert_eq!(sum.len(), counters.len());
            for (sum, more) in sum.iter_mut().zip(&counters) {
                assert_eq!(sum.name, more.name, "all declare the same");
                sum.add(more);
            }
        }
        sum
    }

    pub fn settle(&mut self) {
        self.before = self.counters();
    }

    /// Asserts what the counters of *all* ports changed by since the last time.
    #[track_caller]
    pub fn expect(&mut self, want: &[Delta]) {
        let now = self.counters();
        let got: Vec<_> = self
            .before
            .iter()
            .zip(&now)
            .map(|(before, now)| delta(before, now))
            .collect();
        assert_eq!(got, want);
        self.before = now;
    }

    /// Moves a pair to another worker, as an operator's process does: nobody takes frames until it is there.
    pub fn relocate(&mut self, n: usize, pair: usize, to: usize) {
        let from = self.homes[&(n, pair)];
        let index = u16::try_from(pair).expect("few");
        self.on_all(|worker, _| worker.hold(true));
        self.breathe();
        assert!(self.workers.iter().all(Switch::is_quiet));
        let name = self.guests[n].name;
        let moved = self.workers[from].take_pair(name, index).expect("it runs there");
        self.workers[to].put_pair(name, moved).expect("the port is there");
        self.homes.insert((n, pair), to);
        self.tell();
        self.on_all(|worker, _| worker.hold(false));
    }
}

/// The queues of a pair.
pub fn kinds(pair: usize) -> [QueueKind; 2] {
    let pair = u16::try_from(pair).expect("few");
    [QueueKind::Rx { pair }, QueueKind::Tx { pair }]
}

/// Calls nobody.
pub struct Silent;

impl Signals for Silent {
    fn signal(&mut self, _: &outboard_ring::CallFd) {}
}
