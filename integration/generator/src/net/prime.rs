//! Before anything is measured: the path is tried, and every flow made known both ways.

use std::time::{Duration, Instant};

use crate::{
    error::Error,
    net::{
        frames::{Kind, announcement},
        link::Link,
    },
};

/// Between two attempts to get through.
const TRY_AGAIN: Duration = Duration::from_millis(2);
/// Nothing is on its way any more when nothing came for this long. Some switches hand the first frames to a slow path.
const QUIET: Duration = Duration::from_millis(10);
/// A network that never falls silent is not waited for.
const QUIET_LIMIT: Duration = Duration::from_millis(200);
/// How long a batch of flows may take to arrive before the next is sent all the same.
const BATCH_LIMIT: Duration = Duration::from_millis(5);

/// Announces both stations, and sends until a frame of each arrived at the other.
///
/// # Errors
/// None did within `patience`.
pub fn find_path(link: &mut Link, patience: Duration) -> Result<(), Error> {
    let start = Instant::now();
    let mut frame = Vec::new();
    while start.elapsed() < patience {
        for from in [0, 1] {
            let sends = link.plans[from].frames;
            sends.build(Kind::Prime(0), &mut frame);
            link.send_one(from, &announcement(sends.from))?;
            link.send_one(from, &frame)?;
        }
        let again = Instant::now() + TRY_AGAIN;
        while Instant::now() < again {
            link.receive(0)?;
            link.receive(1)?;
            if link.checkers.iter().all(|checker| checker.counts().primed > 0) {
                return quiet_down(link);
            }
            std::thread::yield_now();
        }
    }
    let silent = usize::from(link.checkers[1].counts().primed > 0);
    let path = |end: usize| link.ports[end].path().to_owned();
    // checkers[0] counts what B sent and A received.
    let (from, to) = if silent == 1 {
        (path(1), path(0))
    } else {
        (path(0), path(1))
    };
    Err(Error::NoPath {
        from,
        to,
        seconds: patience.as_secs(),
    })
}

/// Takes what else was sent to find the path: it must not count as something sent later.
fn quiet_down(link: &mut Link) -> Result<(), Error> {
    let start = Instant::now();
    let mut last = start;
    while last.elapsed() < QUIET && start.elapsed() < QUIET_LIMIT {
        if link.receive(0)? + link.receive(1)? > 0 {
            last = Instant::now();
        }
    }
    Ok(())
}

/// Sends a frame of each flow from A to B, and then back.
///
/// # Errors
/// A device broke its ring.
pub fn make_known(link: &mut Link, flows: u32, burst: u16) -> Result<(), Error> {
    let mut first = 0;
    while first < flows {
        let count = u32::from(burst).min(flows - first);
        for from in [0, 1] {
            let to = 1 - from;
            let want = link.checkers[to].counts().primed + u64::from(count);
            let limit = Instant::now() + BATCH_LIMIT;
            let mut sent = 0;
            while Instant::now() < limit && link.checkers[to].counts().primed < want {
                sent += link.send_primes(from, first + sent, count - sent)?;
                link.receive(to)?;
            }
        }
        first += count;
    }
    Ok(())
}
