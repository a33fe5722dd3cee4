//! Which worker has what: a pure decision, made once when something starts.

use std::collections::BTreeMap;

use outboard_protocol::id::Name;
use vhost_net_dpu::QueueKind;

/// Where a pair of a port's queues is, and which of both run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    worker: usize,
    rx: bool,
    tx: bool,
}

/// Which worker has which queue pair, and which volume. Both queues of a pair are one worker's.
#[derive(Debug)]
pub struct Placement {
    workers: usize,
    pairs: BTreeMap<(Name, u16), Placed>,
    volumes: BTreeMap<Name, usize>,
}

impl Placement {
    /// Nothing, for so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers,
            pairs: BTreeMap::new(),
            volumes: BTreeMap::new(),
        }
    }

    /// The worker that has least: of several, the first.
    fn least(&self) -> usize {
        let mut loads = vec![0usize; self.workers];
        let placed = self.pairs.values().map(|placed| placed.worker);
        for worker in placed.chain(self.volumes.values().copied()) {
            if let Some(load) = loads.get_mut(worker) {
                *load += 1;
            }
        }
        let least = loads.iter().enumerate().min_by_key(|(_, load)| **load);
        least.map_or(0, |(worker, _)| worker)
    }

    /// A queue of a port is to start: in this worker, where the other one of its pair is, if that runs.
    pub fn for_queue(&self, port: &Name, pair: u16) -> usize {
        let placed = self.pairs.get(&(port.clone(), pair));
        placed.map_or_else(|| self.least(), |placed| placed.worker)
    }

    /// It has started there.
    pub fn started(&mut self, port: &Name, kind: QueueKind, worker: usize) {
        let (QueueKind::Rx { pair } | QueueKind::Tx { pair }) = kind;
        let placed = self.pairs.entry((port.clone(), pair)).or_insert(Placed {
            worker,
            rx: false,
            tx: false,
        });
        *placed.running(kind) = true;
    }

    /// A queue of a port is to stop, or is asked for: which worker has it, if it runs.
    pub fn of_queue(&self, port: &Name, kind: QueueKind) -> Option<usize> {
        let (QueueKind::Rx { pair } | QueueKind::Tx { pair }) = kind;
        let mut placed = *self.pairs.get(&(port.clone(), pair))?;
        placed.running(kind).then_some(placed.worker)
    }

    /// It is stopped.
    pub fn stopped(&mut self, port: &Name, kind: QueueKind) {
        let (QueueKind::Rx { pair } | QueueKind::Tx { pair }) = kind;
        let key = (port.clone(), pair);
        if let Some(placed) = self.pairs.get_mut(&key) {
            *placed.running(kind) = false;
            if !placed.rx && !placed.tx {
                self.pairs.remove(&key);
            }
        }
    }

    /// A pair goes on in another worker.
    pub fn moved(&mut self, port: &Name, pair: u16, to: usize) {
        if let Some(placed) = self.pairs.get_mut(&(port.clone(), pair)) {
            placed.worker = to;
        }
    }

    /// Which worker has a pair, if one of its queues runs.
    pub fn of_pair(&self, port: &Name, pair: u16) -> Option<usize> {
        Some(self.pairs.get(&(port.clone(), pair))?.worker)
    }

    /// A worker that takes frames from the guest of a port: the first one, if none does.
    pub fn of_port(&self, port: &Name) -> usize {
        let mut own = self.pairs.iter().filter(|((name, _), _)| name == port);
        own.find(|(_, placed)| placed.tx).map_or(0, |(_, placed)| placed.worker)
    }

    /// The receive queues of a port that other workers have than `me`.
    pub fn elsewhere(&self, port: &Name, me: usize) -> Vec<(u16, usize)> {
        let own = self.pairs.iter().filter(|((name, _), _)| name == port);
        let others = own.filter(|(_, placed)| placed.rx && placed.worker != me);
        others.map(|((_, pair), placed)| (*pair, placed.worker)).collect()
    }

    /// The worker of a volume: the same one each time, as long as there is a volume of that name.
    pub fn for_volume(&mut self, volume: &Name) -> usize {
        if let Some(worker) = self.volumes.get(volume) {
            return *worker;
        }
        let worker = self.least();
        self.volumes.insert(volume.clone(), worker);
        worker
    }

    /// The worker of a volume that has one.
    pub fn of_volume(&self, volume: &Name) -> usize {
        self.volumes.get(volume).copied().unwrap_or(0)
    }

    /// There are only these volumes.
    pub fn keep_volumes(&mut self, names: &[Name]) {
        self.volumes.retain(|name, _| names.contains(name));
    }
}

impl Placed {
    fn running(&mut self, kind: QueueKind) -> &mut bool {
        match kind {
            QueueKind::Rx { .. } => &mut self.rx,
            QueueKind::Tx { .. } => &mut self.tx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RX: QueueKind = QueueKind::Rx { pair: 0 };
    const TX: QueueKind = QueueKind::Tx { pair: 0 };

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    fn start(placement: &mut Placement, port: &str, pair: u16) -> usize {
        let worker = placement.for_queue(&name(port), pair);
        for kind in [QueueKind::Rx { pair }, QueueKind::Tx { pair }] {
            assert_eq!(
                placement.for_queue(&name(port), pair),
                worker,
                "both of a pair together"
            );
            placement.started(&name(port), kind, worker);
        }
        worker
    }

    #[test]
    fn ports_pairs_and_volumes_spread() {
        let mut placement = Placement::new(3);
        let ports: Vec<_> = ["a", "b", "c"].map(|port| start(&mut placement, port, 0)).into();
        assert_eq!(ports, [0, 1, 2]);
        assert_eq!(placement.for_volume(&name("disk")), 0);
        let pairs: Vec<_> = (1..4).map(|pair| start(&mut placement, "a", pair)).collect();
        assert_eq!(pairs, [1, 2, 0]);
        assert_eq!(placement.elsewhere(&name("a"), 0), [(1, 1), (2, 2)]);
        assert_eq!(placement.elsewhere(&name("a"), 1), [(0, 0), (2, 2), (3, 0)]);
        assert_eq!(placement.elsewhere(&name("b"), 1), []);
        assert_eq!(placement.for_volume(&name("disk")), 0, "once and for all");
        placement.keep_volumes(&[]);
        assert_eq!(placement.volumes.len(), 0);
    }

    #[test]
    fn a_pair_is_somewhere_while_one_of_its_queues_runs() {
        let mut placement = Placement::new(2);
        let port = name("a");
        start(&mut placement, "a", 0);
        placement.stopped(&port, RX);
        assert_eq!(
            (placement.of_queue(&port, RX), placement.of_queue(&port, TX)),
            (None, Some(0))
        );
        placement.moved(&port, 0, 1);
        assert_eq!((placement.of_pair(&port, 0), placement.of_port(&port)), (Some(1), 1));
        assert_eq!(placement.for_queue(&port, 0), 1);
        placement.stopped(&port, TX);
        assert_eq!((placement.of_pair(&port, 0), placement.of_port(&port)), (None, 0));
    }
}
