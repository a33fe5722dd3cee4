//! Listing and removing connections by what they are.

use std::sync::atomic::Ordering;

use crate::{
    entry::EntryRef,
    state::{Life, State},
    table::Table,
    tcp::{Tracked, window::Flag},
    time::{ns_of, tick},
    tuple::{Address, Tuple},
};

/// One connection, for people and for [`Table::flush`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Which connection.
    pub entry: EntryRef,
    /// The tuple of the packet that opened it.
    pub tuple: Tuple,
    /// Where it stands.
    pub state: State,
    /// Was it ever answered?
    pub replied: bool,
    /// Only half-open: it gives way when its port's budget is used up.
    pub half_open: bool,
    /// The port that opened it.
    pub from: u32,
    /// The port on the other side, as given when it was opened.
    pub to: u32,
    /// How long ago it was opened, in nanoseconds, to a tick (134 ms).
    pub age_ns: u64,
    /// How long it will live without another packet, in nanoseconds, to a tick. 0: its time is up.
    pub left_ns: u64,
    /// TCP: each end's window scale, if both offered one; original end first.
    pub scales: Option<[u16; 2]>,
    /// The caller's words, as last published.
    pub words: [u64; 3],
}

/// Where a listing goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor(u32);

/// Which connections; what is `None` doesn't matter. Addresses and ports are those of either end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this zone.
    pub zone: Option<u32>,
    /// From or to this port of the switch.
    pub switch_port: Option<u32>,
    /// Of this IP protocol.
    pub protocol: Option<u8>,
    /// With this address at one end.
    pub address: Option<Address>,
    /// With this other address at the other end.
    pub other_address: Option<Address>,
    /// With this TCP or UDP port at one end, or this ICMP identifier.
    pub port: Option<u16>,
}

impl Filter {
    /// Does it take in `connection`?
    pub fn matches(&self, connection: &Connection) -> bool {
        let Connection { tuple, from, to, .. } = connection;
        let ends = [tuple.source, tuple.destination];
        let is_port = |port| tuple.source_port == port || (!tuple.is_icmp() && tuple.destination_port == port);
        let are_ends = |a, b| ends == [a, b] || ends == [b, a];
        self.zone.is_none_or(|zone| tuple.zone == zone)
            && self.switch_port.is_none_or(|port| port == *from || port == *to)
            && self.protocol.is_none_or(|protocol| tuple.protocol == protocol)
            && self.port.is_none_or(is_port)
            && match (self.address, self.other_address) {
                (None, None) => true,
                (Some(a), None) | (None, Some(a)) => ends.contains(&a),
                (Some(a), Some(b)) => are_ends(a, b),
            }
    }
}

/// How many entries one call looks at, at most: some 10 ms.
const STEP: u32 = 1 << 16;

impl Table {
    /// Connections that `wanted` (such as [`Filter::matches`]) says yes to, `limit` of them at most, added to `list`, and
    /// where to go on: `None` at the end. One call looks at 65,536 entries at most, so it may add none and yet not be
    /// at the end. Takes no lock. What is opened or ends meanwhile may be listed or not.
    pub fn list(
        &self,
        from: Cursor,
        limit: usize,
        now_ns: u64,
        wanted: impl Fn(&Connection) -> bool,
        list: &mut Vec<Connection>,
    ) -> Option<Cursor> {
        let mut room = limit;
        self.walk(from, |index| {
            if let Some(connection) = self.connection(index, now_ns).filter(&wanted) {
                list.push(connection);
                room -= 1;
            }
            room > 0
        })
    }

    /// Remove the connections that `unwanted` says yes to. Returns how many it removed, and where to go on, as
    /// [`Table::list`] does.
    pub fn flush(&self, from: Cursor, now_ns: u64, unwanted: impl Fn(&Connection) -> bool) -> (usize, Option<Cursor>) {
        let mut removed = 0;
        let on = self.walk(from, |index| {
            let connection = self.connection(index, now_ns).filter(&unwanted);
            removed += usize::from(connection.is_some_and(|c| self.remove(c.entry, |_| true)));
            true
        });
        self.totals.flushed.fetch_add(removed as u64, Ordering::Relaxed);
        (removed, on)
    }

    /// Flush the whole table: as [`Table::flush`], to the end.
    pub fn flush_all(&self, now_ns: u64, unwanted: impl Fn(&Connection) -> bool) -> usize {
        let mut sum = 0;
        let mut cursor = Some(Cursor::default());
        while let Some(from) = cursor {
            let (removed, on) = self.flush(from, now_ns, &unwanted);
            sum += removed;
            cursor = on;
        }
        sum
    }

    #[expect(clippy::cast_possible_truncation, reason = "entries are counted in 32 bits")]
    fn walk(&self, from: Cursor, mut look: impl FnMut(u32) -> bool) -> Option<Cursor> {
        let end = self.entries.len() as u32;
        let stop = from.0.saturating_add(STEP).min(end);
        let on = (from.0..stop).find(|&index| !look(index)).map_or(stop, |last| last + 1);
        (on < end).then_some(Cursor(on))
    }

    fn connection(&self, index: u32, now_ns: u64) -> Option<Connection> {
        let (entry, cold) = (&self.entries[index as usize], &self.cold[index as usize]);
        let (control, (identity, image, to, opened)) = entry.read(|e| {
            (
                e.identity(),
                e.image(),
                cold.to.load(Ordering::Relaxed),
                cold.opened.load(Ordering::Relaxed),
            )
        })?;
        let (
            now,
            Life {
                state,
                replied,
                assured,
                deadline,
            },
        ) = (tick(now_ns), image.life);
        let is_tcp = !matches!(state, State::Unreplied | State::Replied | State::Stream);
        let ends = is_tcp.then(|| Tracked::from_words(image.protocol, [0; 2]).ends);
        Some(Connection {
            entry: EntryRef {
                index,
                generation: crate::entry::generation(control),
            },
            tuple: identity.canonical.tuple(),
            state,
            replied,
            half_open: !assured,
            from: identity.from,
            to,
            age_ns: ns_of(now.saturating_sub(opened)),
            left_ns: ns_of((deadline + 1).saturating_sub(now)),
            scales: ends
                .filter(|e| e.iter().all(|end| end.is(Flag::Scales)))
                .map(|e| e.map(|end| end.scale())),
            words: image.words,
        })
    }
}
