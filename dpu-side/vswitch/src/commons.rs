//! What the workers of one switch have in common. None of it is asked for by a frame on which nothing unusual is.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use outboard_conntrack::{Config, Table};
use outboard_firewall::limits::PORTS_MAX;

use crate::{
    firewall::{CONNECTIONS_DEFAULT, allowance::Allowance, datagrams::Datagrams},
    flow::FlowHash,
};

/// Answers to rejected packets that a guest gets in a second; what is rejected beyond them is dropped without a word.
const REPLIES_PER_SECOND: u64 = 1_000;
/// Of those, how many may come at once after a while without.
const REPLY_BURST: u64 = 32;
/// Judgements that are logged in a second, at most, and at once after a while without.
const LOGS_PER_SECOND: u64 = 10;
const LOG_BURST: u64 = 100;

/// What a port is to all workers, whichever of its queues they have.
#[derive(Debug, Default)]
pub(crate) struct PortCommons {
    /// What its guest sends in fragments: the first one of a datagram may pass another worker than the others.
    pub(crate) datagrams: Datagrams,
    /// Answers to rejected packets that its guest may get.
    pub(crate) replies: Allowance<REPLIES_PER_SECOND, REPLY_BURST>,
}

/// What the workers have in common.
pub(crate) struct Commons {
    /// Spreads flows: all workers find the same queue for a flow.
    pub(crate) flows: FlowHash,
    begun: Instant,
    /// What may be logged.
    pub(crate) log: Allowance<LOGS_PER_SECOND, LOG_BURST>,
    table: OnceLock<Arc<Table>>,
    ports: Mutex<HashMap<u64, Weak<PortCommons>>>,
    queues: AtomicU64,
}

impl std::fmt::Debug for Commons {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Commons").finish_non_exhaustive()
    }
}

impl Default for Commons {
    fn default() -> Self {
        Self {
            flows: FlowHash::default(),
            begun: Instant::now(),
            log: Allowance::default(),
            table: OnceLock::new(),
            ports: Mutex::new(HashMap::new()),
            queues: AtomicU64::new(0),
        }
    }
}

impl Commons {
    /// The time since this was made, in nanoseconds; 584 years of them fit.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A number for a queue that is started.
    pub(crate) fn next_queue(&self) -> u64 {
        // Nothing is ordered by it.
        self.queues.fetch_add(1, Ordering::Relaxed)
    }

    /// The connection table of workers that were given none.
    pub(crate) fn table(&self) -> Arc<Table> {
        let make = || {
            Arc::new(Table::new(&Config {
                entries: CONNECTIONS_DEFAULT,
                ports: u32::try_from(PORTS_MAX).unwrap_or(u32::MAX),
                ..Config::default()
            }))
        };
        self.table.get_or_init(make).clone()
    }

    /// What a port has in common, by its number; new if no worker has it.
    pub(crate) fn port(&self, number: u64) -> Arc<PortCommons> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = ports.get(&number).and_then(Weak::upgrade) {
            return port;
        }
        ports.retain(|_, port| port.strong_count() > 0);
        let port = Arc::default();
        ports.insert(number, Arc::downgrade(&port));
        port
    }
}
