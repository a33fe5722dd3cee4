//! The table: looking up, following, opening and ending connections.

mod opening;

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::{
    account::{Account, Budget, PortCounters},
    entry::{Cold, Entry, EntryRef, Image, NONE, generation},
    hash::Keys,
    icmp::{self, Class},
    index::Index,
    shard::Shard,
    state::{Life, State},
    tcp::{self, Laxness, Outcome, Reason, Segment, Tracked},
    time::{Ticks, TimeoutTicks, Timeouts, tick},
    tuple::{Canonical, Direction, Tuple},
};

/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;

/// How long both ends of a UDP exchange talk before it is a stream, in ticks of 134 ms: two seconds, as in Linux.
const STREAM_AFTER: u32 = 15;
const SHARDS_MAX_LOG2: u32 = 5;
const ENTRIES_OF_SHARD_MIN: u32 = 1 << 12;

/// What a table is made with; it is never changed after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How many connections fit, at least. Each takes about 180 bytes, all of them taken at the start.
    pub entries: u32,
    /// How many ports there are; a port is named by a number below that.
    pub ports: u32,
    /// How long connections live.
    pub timeouts: Timeouts,
    /// How exact the table is about TCP.
    pub tcp: Laxness,
}

impl Default for Config {
    /// A million connections, 4096 ports, Linux' timeouts, exact.
    fn default() -> Self {
        Self {
            entries: 1 << 20,
            ports: 1 << 12,
            timeouts: Timeouts::default(),
            tcp: Laxness::default(),
        }
    }
}

/// The connection table.
pub struct Table {
    pub(crate) entries: Box<[Entry]>,
    pub(crate) cold: Box<[Cold]>,
    index: Index,
    shards: Box<[Mutex<Shard>]>,
    accounts: Box<[Account]>,
    keys: Keys,
    timeouts: TimeoutTicks,
    tcp: Laxness,
    /// The tick up to which [`Table::expire`] has done everything.
    done: AtomicU32,
    /// The shard at which it goes on.
    turn: AtomicU32,
    pub(crate) totals: Totals,
}

/// What became of connections, counted where it is rare.
#[derive(Default)]
pub(crate) struct Totals {
    expired: AtomicU64,
    ended: AtomicU64,
    pub flushed: AtomicU64,
    full: AtomicU64,
}

/// What the table holds, and what became of connections since it was made. They add up: opened = entries + expired +
/// ended + flushed + evicted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections in the table, those past their time but not yet cleared away among them.
    pub entries: u64,
    /// Of these, half-open ones.
    pub half_open: u64,
    /// Opened, by any port.
    pub opened: u64,
    /// Half-open ones that gave way to others, and in a full table those whose time was up.
    pub evicted: u64,
    /// Refused because a port's budget was used up.
    pub refused: u64,
    /// Refused because the table was full.
    pub full: u64,
    /// Cleared away because their time was up.
    pub expired: u64,
    /// Ended by a packet or by [`Table::close`].
    pub ended: u64,
    /// Removed by [`Table::flush`].
    pub flushed: u64,
}

/// A tuple ready to be looked up: in canonical order, hashed. Good for the table that made it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub(crate) canonical: Canonical,
    pub(crate) hash: u64,
    /// The entry that it probably is.
    guess: u32,
}

/// A connection that a packet belongs to, all of it as it was at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Which connection.
    pub entry: EntryRef,
    /// Which way the packet goes.
    pub direction: Direction,
    /// Where the connection stands, before this packet.
    pub state: State,
    /// Was it ever answered?
    pub replied: bool,
    /// The caller's words, as last published.
    pub words: [u64; 3],
}

/// What of a packet, besides its tuple, matters to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// TCP.
    Tcp(Segment<'a>),
    /// Any other protocol: that there was a packet is all.
    Other,
}

/// What a connection makes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is part of the connection.
    Ok,
    /// It is not: drop it.
    Invalid(Reason),
    /// The connection is over and no longer in the table: the packet opens another, judge it as one of none.
    Reopens,
    /// The connection went away since it was looked up: judge the packet as one of none.
    Gone,
}

/// The ports of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Whose packet opens it: it counts against this port's budget.
    pub from: u32,
    /// Whom the packet goes to, `u32::MAX` for none: only kept, to list by.
    pub to: u32,
}

/// Why no connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The packet doesn't open a connection, such as a TCP segment without SYN: drop it as invalid.
    Invalid(Reason),
    /// The port has used up its budget, and nothing of it is half-open and can give way.
    PortFull,
    /// The table is full, and nothing near is half-open and can give way.
    TableFull,
}

/// A connection that was opened, or was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opened {
    /// It was opened, with the packet taken in.
    New(EntryRef),
    /// Another worker opened it meanwhile: [`Table::observe`] the packet.
    Exists(Found),
}

impl Table {
    /// A table of `config`, empty, every port without a budget. All its memory is taken here.
    pub fn new(config: &Config) -> Self {
        // Hashing spreads connections unevenly over shards: room for that, so that what was promised fits.
        let shard_bits = (config.entries / ENTRIES_OF_SHARD_MIN)
            .max(1)
            .ilog2()
            .min(SHARDS_MAX_LOG2);
        let even = config.entries.clamp(1, 1 << 30).div_ceil(1 << shard_bits);
        let of_shard = if shard_bits == 0 { even } else { even + 6 * even.isqrt() };
        let count = (of_shard as usize) << shard_bits;
        let cold: Box<[Cold]> = (0..count).map(|_| Cold::new()).collect();
        let shards = (0..1 << shard_bits)
            .map(|s| Mutex::new(Shard::new(s * of_shard, of_shard, &cold)))
            .collect();
        Self {
            entries: (0..count).map(|_| Entry::new()).collect(),
            index: Index::new(shard_bits, of_shard as usize),
            shards,
            accounts: (0..config.ports).map(|_| Account::new()).collect(),
            keys: Keys::random(),
            timeouts: TimeoutTicks::from(&config.timeouts),
            tcp: config.tcp,
            done: AtomicU32::new(0),
            turn: AtomicU32::new(0),
            totals: Totals::default(),
            cold,
        }
    }

    /// Give `port` a budget. Allocates: not for the datapath. False if there is no such port.
    pub fn set_budget(&self, port: u32, budget: Budget) -> bool {
        let account = self.accounts.get(port as usize);
        account.is_some_and(|a| {
            a.set(budget);
            true
        })
    }

    /// What `port` has and had.
    pub fn counters(&self, port: u32) -> Option<PortCounters> {
        self.accounts.get(port as usize).map(Account::counters)
    }

    /// What the table holds, and what became of connections. Goes over all ports: not for the datapath.
    pub fn statistics(&self) -> Statistics {
        let count = |total: &AtomicU64| total.load(Ordering::Relaxed);
        let totals = Statistics {
            full: count(&self.totals.full),
            expired: count(&self.totals.expired),
            ended: count(&self.totals.ended),
            flushed: count(&self.totals.flushed),
            ..Statistics::default()
        };
        self.accounts
            .iter()
            .map(Account::counters)
            .fold(totals, |sum, port| Statistics {
                entries: sum.entries + u64::from(port.entries),
                half_open: sum.half_open + u64::from(port.half_open),
                opened: sum.opened + port.opened,
                evicted: sum.evicted + port.evicted,
                refused: sum.refused + port.refused,
                ..sum
            })
    }

    /// Make `tuple` ready to be looked up.
    #[inline]
    pub fn key(&self, tuple: &Tuple) -> Key {
        let canonical = Canonical::of(tuple);
        Key {
            hash: self.keys.hash(&canonical),
            canonical,
            guess: NONE,
        }
    }

    /// Bring what [`Table::lookup`] will read for all of `keys` near, their memory accesses overlapping. For a burst:
    /// look up alone would wait for each in turn.
    #[inline]
    pub fn prepare(&self, keys: &mut [Key]) {
        let mut sum = 0;
        for key in &*keys {
            sum ^= self.index.touch(key.hash);
        }
        for key in keys {
            if let Some(entry) = self.index.guess(key.hash) {
                key.guess = entry;
                sum ^= self.entries[entry as usize].touch();
            }
        }
        std::hint::black_box(sum);
    }

    /// The connection that a packet of `key` belongs to, if its time isn't up. Without a lock.
    #[inline]
    pub fn lookup(&self, key: &Key, now_ns: u64) -> Option<Found> {
        let now = tick(now_ns);
        if key.guess != NONE
            && let Some(found) = self.found_at(key.guess, key, now)
        {
            return found;
        }
        self.index
            .find(key.hash, |entry| self.found_at(entry, key, now))
            .flatten()
    }

    /// `Some(None)`: it is the connection, and its time is up.
    #[inline]
    fn found_at(&self, index: u32, key: &Key, now: u32) -> Option<Option<Found>> {
        let entry = &self.entries[index as usize];
        let (control, found) =
            entry.read(|e| e.holds(&key.canonical).then(|| (e.life(), e.was_reversed(), e.words())))?;
        let (life, was_reversed, words) = found?;
        if life.is_over(now) {
            return Some(None);
        }
        let direction = if was_reversed == key.canonical.reversed {
            Direction::Original
        } else {
            Direction::Reply
        };
        Some(Some(Found {
            entry: EntryRef {
                index,
                generation: generation(control),
            },
            direction,
            state: life.state,
            replied: life.replied,
            words,
        }))
    }

    /// Take in a packet of a connection: its state, windows and deadline.
    #[inline]
    pub fn observe(&self, at: EntryRef, direction: Direction, packet: &Packet<'_>, now_ns: u64) -> Verdict {
        let now = tick(now_ns);
        match packet {
            Packet::Tcp(segment) if self.is_nothing_new(at, direction, segment, now) => Verdict::Ok,
            Packet::Tcp(segment) => self.observe_tcp(at, direction, segment, now),
            Packet::Other => self.observe_other(at, direction, now),
        }
    }

    /// Is it a segment of an established connection that changes nothing, neither windows nor deadline?
    #[inline]
    fn is_nothing_new(&self, at: EntryRef, direction: Direction, segment: &Segment<'_>, now: u32) -> bool {
        let entry = &self.entries[at.index as usize];
        let Some((seen, (life, protocol))) = entry.read(|e| (e.life(), e.protocol())) else {
            return false;
        };
        generation(seen) == at.generation
            && life.state == State::Established
            && life.assured
            && tcp::nothing_new(&protocol, direction, segment, &self.timeouts)
                .is_some_and(|timeout| timeout.deadline(now, life.deadline) == life.deadline)
    }

    fn observe_tcp(&self, at: EntryRef, direction: Direction, segment: &Segment<'_>, now: u32) -> Verdict {
        let entry = &self.entries[at.index as usize];
        loop {
            let Some((seen, (life, protocol))) = entry.read(|e| (e.life(), e.protocol())) else {
                return Verdict::Gone;
            };
            if generation(seen) != at.generation {
                return Verdict::Gone;
            }
            if !is_tcp(life.state) {
                return Verdict::Invalid(Reason::Header);
            }
            let judged = self.judge_tcp(at, life, protocol, direction, segment, now);
            if judged.ends {
                if self.remove(at, |current| current == life) {
                    self.totals.ended.fetch_add(1, Ordering::Relaxed);
                    return judged.verdict;
                }
                continue;
            }
            if (judged.life, judged.protocol) == (life, protocol) && judged.last.is_none() {
                return judged.verdict;
            }
            let is_written = entry.write(seen, |e| {
                e.set_life(judged.life);
                e.set_protocol(judged.protocol);
                if let Some(last) = judged.last {
                    self.set_last(at.index, last);
                }
            });
            if is_written {
                self.after(at, life, judged.life, now);
                return judged.verdict;
            }
        }
    }

    #[inline]
    fn observe_other(&self, at: EntryRef, direction: Direction, now: u32) -> Verdict {
        let entry = &self.entries[at.index as usize];
        loop {
            let seen = entry.read(|e| (e.life(), e.protocol_number(), e.protocol_word()));
            let Some((control, (life, protocol, began))) = seen else {
                return Verdict::Gone;
            };
            if generation(control) != at.generation {
                return Verdict::Gone;
            }
            if is_tcp(life.state) {
                return Verdict::Invalid(Reason::Header);
            }
            let after = self.judge_other(life, protocol, tick_of(began), direction, now);
            if after == life {
                return Verdict::Ok;
            }
            if entry.write(control, |e| e.set_life(after)) {
                self.after(at, life, after, now);
                return Verdict::Ok;
            }
        }
    }

    /// What [`Table::observe`] would say, without taking the packet in.
    pub fn preview(&self, at: EntryRef, direction: Direction, packet: &Packet<'_>, now_ns: u64) -> Verdict {
        let Some((_, Image { life, protocol, .. })) = self.entries[at.index as usize].image_of(at) else {
            return Verdict::Gone;
        };
        match packet {
            Packet::Tcp(segment) if is_tcp(life.state) => {
                self.judge_tcp(at, life, protocol, direction, segment, tick(now_ns))
                    .verdict
            }
            Packet::Other if !is_tcp(life.state) => Verdict::Ok,
            Packet::Tcp(_) | Packet::Other => Verdict::Invalid(Reason::Header),
        }
    }

    #[inline]
    fn judge_tcp(
        &self,
        at: EntryRef,
        mut life: Life,
        protocol: [u64; 5],
        direction: Direction,
        segment: &Segment<'_>,
        now: u32,
    ) -> Judged {
        // An established connection's data and acknowledgements need nothing of the third line.
        let is_plain = life.assured && !segment.has(tcp::SYN | tcp::RST);
        let last = if is_plain { [0; 2] } else { self.last(at.index) };
        let mut tracked = Tracked::from_words(protocol, last);
        let (outcome, timeout) = tracked.step(&mut life, direction, segment, self.tcp, &self.timeouts);
        let (protocol, last_after) = tracked.to_words();
        if let Some(timeout) = timeout {
            life.deadline = timeout.deadline(now, life.deadline);
        }
        let (verdict, ends) = match outcome {
            Outcome::Ok => (Verdict::Ok, false),
            Outcome::Invalid(reason) => (Verdict::Invalid(reason), false),
            Outcome::Reopens => (Verdict::Reopens, true),
            Outcome::Refused => (Verdict::Ok, true),
        };
        let last = (!is_plain && last_after != last).then_some(last_after);
        Judged {
            life,
            protocol,
            last,
            verdict,
            ends,
        }
    }

    #[inline]
    fn judge_other(&self, mut life: Life, protocol: u8, began: u32, direction: Direction, now: u32) -> Life {
        if direction == Direction::Reply && !life.replied {
            life.replied = true;
            life.assured = true;
            life.state = State::Replied;
        }
        if life.state == State::Replied && protocol == UDP && now.saturating_sub(began) > STREAM_AFTER {
            life.state = State::Stream;
        }
        life.deadline = self.timeout_of(protocol, life.state).deadline(now, life.deadline);
        life
    }

    fn timeout_of(&self, protocol: u8, state: State) -> Ticks {
        match protocol {
            UDP if state == State::Stream => self.timeouts.udp_stream,
            UDP => self.timeouts.udp,
            icmp::ICMP | icmp::ICMPV6 => self.timeouts.icmp,
            _ => self.timeouts.other,
        }
    }

    fn last(&self, index: u32) -> [u32; 2] {
        let last = &self.cold[index as usize].last;
        [last[0].load(Ordering::Relaxed), last[1].load(Ordering::Relaxed)]
    }

    fn set_last(&self, index: u32, [end, acknowledged]: [u32; 2]) {
        let last = &self.cold[index as usize].last;
        last[0].store(end, Ordering::Relaxed);
        last[1].store(acknowledged, Ordering::Relaxed);
    }

    /// What a change of an entry's life means outside of it.
    #[inline]
    fn after(&self, at: EntryRef, was: Life, is: Life, now: u32) {
        if !was.assured && is.assured {
            let from = self.entries[at.index as usize].opened_by();
            self.accounts[from as usize].half_open.fetch_sub(1, Ordering::Relaxed);
        }
        if is.deadline < was.deadline && !Shard::is_armed_by(&self.cold[at.index as usize], is.deadline, now) {
            self.rearm(at, is.deadline);
        }
    }

    /// Its time is up sooner than the wheel would look.
    #[cold]
    fn rearm(&self, at: EntryRef, deadline: u32) {
        let mut shard = self.shard_of(at.index);
        if self.entries[at.index as usize].generation() == Some(at.generation) {
            shard.disarm(&self.cold, at.index);
            shard.arm(&self.cold, at.index, deadline);
        }
    }

    /// Replace the caller's words of a connection; a reader sees the former or these. False if it is gone.
    #[inline]
    pub fn publish(&self, at: EntryRef, words: [u64; 3]) -> bool {
        let entry = &self.entries[at.index as usize];
        loop {
            let Some((seen, image)) = entry.image_of(at) else {
                return false;
            };
            if image.words == words || entry.write(seen, |e| e.set_words(words)) {
                return true;
            }
        }
    }

    fn hash_of(&self, index: u32) -> u64 {
        self.keys.hash(&self.entries[index as usize].identity().canonical)
    }

    /// The shard that an entry is of, whatever connection it holds.
    fn shard_of(&self, index: u32) -> MutexGuard<'_, Shard> {
        self.shard(index as usize / (self.entries.len() / self.shards.len()))
    }

    fn shard(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a segment would make of a connection.
struct Judged {
    life: Life,
    protocol: [u64; 5],
    /// What to write of [`Cold::last`].
    last: Option<[u32; 2]>,
    verdict: Verdict,
    /// The connection is over with it.
    ends: bool,
}

const fn is_tcp(state: State) -> bool {
    !matches!(state, State::Unreplied | State::Replied | State::Stream)
}

#[expect(clippy::cast_possible_truncation, reason = "a tick was put there")]
const fn tick_of(word: u64) -> u32 {
    word as u32
}

impl Canonical {
    pub(crate) const fn protocol(&self) -> u8 {
        self.tag.to_be_bytes()[3]
    }

    /// Is the packet an ICMP question?
    fn is_question(&self) -> bool {
        let [_, asked_by_high, kind, protocol] = self.tag.to_be_bytes();
        (asked_by_high == 1) == self.reversed && matches!(icmp::class(protocol, kind), Class::Request(_))
    }
}
