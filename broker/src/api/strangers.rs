//! Connections whose peer has not shown yet that it is an operator's: few at a time, and the oldest goes first.
//!
//! Whoever can reach the port can open connections. Were the newest turned away when there are too many, a stranger
//! could keep operators out by holding a few; this way he has to be faster than an operator's handshake, all the time.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::task::AbortHandle;

/// Connections that are still strangers'.
#[derive(Default)]
pub struct Strangers {
    waiting: VecDeque<Stranger>,
}

struct Stranger {
    task: AbortHandle,
    known: Known,
}

/// Notes that a peer has shown who it is.
#[derive(Clone, Default)]
pub struct Known(Arc<AtomicBool>);

impl Known {
    /// The peer is no stranger any more.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Strangers {
    /// A connection came, which this task serves. True if another one had to go.
    pub fn add(&mut self, task: AbortHandle, known: Known, count_max: usize) -> bool {
        self.waiting.retain(|s| !s.known.is_noted() && !s.task.is_finished());
        let goes = (self.waiting.len() >= count_max)
            .then(|| self.waiting.pop_front())
            .flatten();
        if let Some(oldest) = &goes {
            oldest.task.abort();
        }
        self.waiting.push_back(Stranger { task, known });
        goes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_stranger_goes_and_those_who_are_known_stay() {
        let mut strangers = Strangers::default();
        let mut tasks = Vec::new();
        for n in 0..4 {
            let (task, known) = (tokio::spawn(std::future::pending::<()>()), Known::default());
            assert_eq!(strangers.add(task.abort_handle(), known.clone(), 2), n == 3);
            if n == 0 {
                known.note();
            }
            tasks.push(task);
        }
        tokio::task::yield_now().await;
        let gone: Vec<bool> = tasks.iter().map(|task| task.is_finished()).collect();
        assert_eq!(gone, [false, true, false, false]);
    }
}
