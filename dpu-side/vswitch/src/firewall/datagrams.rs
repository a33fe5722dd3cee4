//! Datagrams in fragments, whose first fragment was allowed.
//!
//! Only a datagram's first fragment has ports and can be judged. What is said of it is remembered here for its later
//! fragments, under what all of them have in common: addresses, protocol and identification (RFC 791 §2.3, RFC 8200
//! §4.5). They are never remembered themselves. A later fragment that reaches into the first one (RFC 1858, RFC 3128,
//! RFC 5722) would rewrite what was judged, and is not of the datagram.
//!
//! Each port has a table of its own, of fixed size, for what its guest sends: a flood of first fragments pushes out the
//! guest's own datagrams and nobody else's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use outboard_conntrack::Tuple;
use vhost_net_dpu::{
    packet::ETHERNET_HEADER_LEN,
    record::{Class, Record},
};

use super::tracked::Pair;
use crate::seed::Seed;

/// Datagrams that are remembered of each port's guest.
pub(crate) const DATAGRAMS_MAX: usize = 256;
/// Of those, how many may have one hash.
const WAYS: usize = 4;
/// How long later fragments may come after the first, in nanoseconds (as long as Linux waits to put them together).
pub(crate) const DATAGRAM_LIFETIME_NS: u64 = 30_000_000_000;

#[derive(Debug, Clone, Copy, Default)]
struct Datagram {
    source: u128,
    destination: u128,
    identification: u32,
    protocol: u8,
    /// Bytes of the first fragment.
    first_len: u16,
    /// From whom to whom, and the policy under which the first one passed.
    pair: Pair,
    /// When it is forgotten, in nanoseconds; 0 if there is none.
    until: u64,
}

/// The datagrams of a port's guest.
#[derive(Debug, Default)]
pub(crate) struct Datagrams {
    seed: Seed,
    /// Locked for an instant, for fragments only: those of one datagram may pass different workers.
    table: Mutex<Sets>,
}

/// Datagrams by hash.
type Sets = Box<[[Datagram; WAYS]]>;

impl Datagrams {
    /// Takes its memory, if it has not yet: until then it remembers nothing.
    pub(crate) fn prepare(&self) {
        let mut table = self.lock();
        if table.is_empty() {
            *table = vec![[Datagram::default(); WAYS]; DATAGRAMS_MAX / WAYS].into();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sets> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, record: &Record, tuple: &Tuple) -> usize {
        let mut hash = self
            .seed
            .mix(u64::from(record.datagram) << 8 | u64::from(protocol(record)));
        for address in [tuple.source.0, tuple.destination.0] {
            #[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart")]
            let (high, low) = ((address >> 64) as u64, address as u64);
            hash = self.seed.mix(self.seed.mix(hash ^ high) ^ low);
        }
        usize::try_from(hash % (DATAGRAMS_MAX / WAYS) as u64).unwrap_or(0)
    }

    fn is(datagram: &Datagram, record: &Record, tuple: &Tuple) -> bool {
        datagram.identification == record.datagram
            && datagram.protocol == protocol(record)
            && datagram.source == tuple.source.0
            && datagram.destination == tuple.destination.0
    }

    /// A first fragment passed.
    pub(crate) fn allow(&self, record: &Record, tuple: &Tuple, pair: Pair, now: u64) {
        let set = self.set(record, tuple);
        let mut table = self.lock();
        let Some(ways) = table.get_mut(set) else { return };
        let same = ways.iter().position(|way| Self::is(way, record, tuple));
        let oldest = (0..WAYS).min_by_key(|way| ways.get(*way).map_or(0, |way| way.until));
        if let Some(way) = same.or(oldest).and_then(|way| ways.get_mut(way)) {
            *way = Datagram {
                source: tuple.source.0,
                destination: tuple.destination.0,
                identification: record.datagram,
                protocol: protocol(record),
                first_len: record.transport_len,
                pair,
                until: now.saturating_add(DATAGRAM_LIFETIME_NS),
            };
        }
    }

    /// A first fragment did not pass: its datagram's later ones do not either.
    pub(crate) fn forget(&self, record: &Record, tuple: &Tuple) {
        let set = self.set(record, tuple);
        let mut table = self.lock();
        let ways = table.get_mut(set).into_iter().flatten();
        for way in ways.filter(|way| Self::is(way, record, tuple)) {
            *way = Datagram::default();
        }
    }

    /// Did the first fragment of this one's datagram pass, between these ports and under this policy? `offset` is where
    /// in the datagram it starts, in bytes.
    pub(crate) fn allows(&self, record: &Record, tuple: &Tuple, offset: u32, pair: Pair, now: u64) -> bool {
        let table = self.lock();
        let ways = table.get(self.set(record, tuple)).into_iter().flatten();
        ways.filter(|way| Self::is(way, record, tuple))
            .any(|way| way.until > now && way.pair == pair && offset >= u32::from(way.first_len))
    }
}

/// What a datagram's protocol is known by: in IPv6 it is behind headers that only the first fragment has, and not needed,
/// since all protocols have one sequence of identifications (RFC 8200 §4.5).
fn protocol(record: &Record) -> u8 {
    match record.class {
        Class::Ipv4 => record.protocol,
        _ => 0,
    }
}

/// Where in its datagram a fragment starts, in bytes. `head` are its frame's first bytes.
pub(crate) fn offset(record: &Record, head: &[u8]) -> u32 {
    let word = |at: usize| {
        let bytes = head.get(at..).and_then(|rest| rest.first_chunk::<2>());
        bytes.map_or(0, |bytes| u32::from(u16::from_be_bytes(*bytes)))
    };
    match record.class {
        Class::Ipv4 => (word(ETHERNET_HEADER_LEN + 6) & 0x1fff) * 8,
        // Of a later fragment, the fragment header is the last one that is walked.
        Class::Ipv6 => word(usize::from(record.transport_offset).saturating_sub(6)) & 0xfff8,
        _ => 0,
    }
}
