//! Moving queue pairs from a worker that has much to do to one that has little: the decision, and who carries it out.
//!
//! What a worker has to do is counted in frames of its queue pairs in the last interval; volumes are not counted.

use std::{collections::BTreeMap, time::Duration};

use outboard_protocol::id::Name;

use crate::workers::Workers;

/// How often it is looked at.
const INTERVAL: Duration = Duration::from_secs(2);
/// A worker that has less to do than this in an interval keeps what it has, in frames: a tenth of a core, roughly.
const FRAMES_MIN: u64 = 1_000_000;
/// By how much the busiest worker has to be relieved for a move to be worth it, in hundredths.
const GAIN_MIN: u64 = 10;

/// What a queue pair did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairLoad {
    /// Its port.
    pub port: Name,
    /// The pair.
    pub pair: u16,
    /// The worker that has it.
    pub worker: usize,
    /// Frames that passed it.
    pub frames: u64,
}

/// A pair that is to go to another worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Its port.
    pub port: Name,
    /// The pair.
    pub pair: u16,
    /// Where it is to go.
    pub to: usize,
}

/// The one move that relieves the busiest of so many workers most, if there is one that is worth it.
pub fn decide(workers: usize, pairs: &[PairLoad]) -> Option<Move> {
    let mut loads = vec![0u64; workers];
    for pair in pairs {
        *loads.get_mut(pair.worker)? += pair.frames;
    }
    let (busiest, most) = loads.iter().copied().enumerate().max_by_key(|(_, load)| *load)?;
    let (idlest, least) = loads.iter().copied().enumerate().min_by_key(|(_, load)| *load)?;
    if most < FRAMES_MIN {
        return None;
    }
    // The busier one of both afterwards.
    let after = |pair: &PairLoad| (most - pair.frames).max(least + pair.frames);
    let best = pairs
        .iter()
        .filter(|pair| pair.worker == busiest)
        .min_by_key(|pair| after(pair))?;
    let gain = most.saturating_sub(after(best));
    (gain.saturating_mul(100) >= most.saturating_mul(GAIN_MIN)).then(|| Move {
        port: best.port.clone(),
        pair: best.pair,
        to: idlest,
    })
}

/// What pairs did since the last time.
fn since(totals: Vec<PairLoad>, before: &mut BTreeMap<(Name, u16), u64>) -> Vec<PairLoad> {
    let former = std::mem::take(before);
    let load = |total: PairLoad| {
        let key = (total.port.clone(), total.pair);
        // One that was started anew begins at 0.
        let frames = match former.get(&key) {
            Some(former) if *former <= total.frames => total.frames - former,
            Some(_) => total.frames,
            None => 0,
        };
        before.insert(key, total.frames);
        PairLoad { frames, ..total }
    };
    totals.into_iter().map(load).collect()
}

/// Balances until the datapath ends. One worker has nobody to give to.
pub fn run(workers: &Workers) {
    let mut before = BTreeMap::new();
    while workers.count() > 1 {
        std::thread::sleep(INTERVAL);
        let Ok(totals) = workers.all(|datapath, _| datapath.pair_totals()) else {
            return;
        };
        let totals = totals.into_iter().enumerate().flat_map(|(worker, pairs)| {
            let load = move |(port, pair, frames)| PairLoad {
                port,
                pair,
                worker,
                frames,
            };
            pairs.into_iter().map(load)
        });
        let Some(Move { port, pair, to }) = decide(workers.count(), &since(totals.collect(), &mut before)) else {
            continue;
        };
        match workers.relocate(&port, pair, to) {
            Ok(true) => tracing::info!("queue pair {pair} of port {port} goes on in worker {to}, which has less to do"),
            Ok(false) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1_000_000;

    fn load(port: &str, pair: u16, worker: usize, frames: u64) -> PairLoad {
        PairLoad {
            port: port.parse().expect("a name"),
            pair,
            worker,
            frames,
        }
    }

    fn decided(workers: usize, pairs: &[PairLoad]) -> Option<(String, u16, usize)> {
        decide(workers, pairs).map(|decided| (decided.port.to_string(), decided.pair, decided.to))
    }

    #[test]
    fn the_pair_goes_that_evens_out_most() {
        let pairs = [load("a", 0, 0, 8 * M), load("b", 0, 0, 5 * M), load("c", 0, 1, M)];
        assert_eq!(decided(2, &pairs), Some(("b".into(), 0, 1)));
        let pairs = [load("a", 0, 2, 4 * M), load("a", 1, 2, 4 * M), load("b", 0, 0, M)];
        assert_eq!(
            decided(3, &pairs),
            Some(("a".into(), 0, 1)),
            "to the one that has nothing"
        );
    }

    #[test]
    fn nothing_goes_to_and_fro() {
        // A single pair is as much for one worker as for another.
        assert_eq!(decided(2, &[load("a", 0, 0, 8 * M)]), None);
        assert_eq!(decided(2, &[load("a", 0, 0, 8 * M), load("b", 0, 1, 7 * M)]), None);
        // What would gain little stays.
        let pairs = [load("a", 0, 0, 8 * M), load("b", 0, 0, M / 2), load("c", 0, 1, 6 * M)];
        assert_eq!(decided(2, &pairs), None);
        // Nobody has much to do.
        assert_eq!(decided(2, &[load("a", 0, 0, 1000), load("b", 0, 0, 1000)]), None);
        assert_eq!(decided(2, &[]), None);
    }

    #[test]
    fn what_is_decided_leaves_nothing_to_be_decided() {
        let mut pairs: Vec<_> = (0..8)
            .map(|pair| load("a", pair, 0, M + u64::from(pair) * 1000))
            .collect();
        let mut moves = 0;
        while let Some(Move { pair, to, .. }) = decide(2, &pairs) {
            pairs[usize::from(pair)].worker = to;
            moves += 1;
            assert!(moves <= 4);
        }
        let first: u64 = pairs
            .iter()
            .filter(|pair| pair.worker == 0)
            .map(|pair| pair.frames)
            .sum();
        assert!((3 * M..6 * M).contains(&first), "{first}");
    }

    #[test]
    fn loads_are_of_the_last_interval() {
        let mut before = BTreeMap::new();
        assert_eq!(since(vec![load("a", 0, 0, 100)], &mut before), [load("a", 0, 0, 0)]);
        assert_eq!(since(vec![load("a", 0, 1, 150)], &mut before), [load("a", 0, 1, 50)]);
        assert_eq!(
            since(vec![load("a", 0, 1, 20)], &mut before),
            [load("a", 0, 1, 20)],
            "it began anew"
        );
        assert_eq!(since(vec![], &mut before), []);
        assert!(before.is_empty(), "what is gone is forgotten");
    }
}
