//! The table: looking up, following, opening and ending connections.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use outboard_controls::{Check, on};

use crate::{
    account::{Account, Budget, PortCounters},
    entry::{Cold, Entry, EntryRef, Identity, Image, NONE, generation},
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
/// How many entries one insertion looks at for one to evict.
const EVICTION_STEPS_MAX: u32 = 16;
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

    /// Open a connection with its first packet and the caller's `words`.
    ///
    /// A TCP connection opens with a SYN, an ICMP one with a question; see [`Laxness::pick_up`] for the exception.
    pub fn open(
        &self,
        key: &Key,
        ports: Ports,
        packet: &Packet<'_>,
        words: [u64; 3],
        now_ns: u64,
    ) -> Result<Opened, Refused> {
        let now = tick(now_ns);
        let (image, last) = self.first(key, packet, words, now).map_err(Refused::Invalid)?;
        let Some(account) = self.accounts.get(ports.from as usize) else {
            return Err(Refused::PortFull);
        };
        if !account.has_room() && on(Check::ConnectionBudget) {
            self.make_room(account)?;
        }
        let opened = self.insert(key, ports, &image, last, now)?;
        if let Opened::New(at) = opened {
            account.opened.fetch_add(1, Ordering::Relaxed);
            if let Some(oldest) = account.enqueue(at.to_bits(), |bits| self.is_half_open(bits)) {
                self.evict(account, oldest);
            }
        }
        Ok(opened)
    }

    /// What [`Table::open`] would say to a packet of no connection, without opening one.
    ///
    /// # Errors
    /// As there; that something would have to give way is not one.
    pub fn preview_open(&self, key: &Key, from: u32, packet: &Packet<'_>, now_ns: u64) -> Result<(), Refused> {
        self.first(key, packet, [0; 3], tick(now_ns))
            .map_err(Refused::Invalid)?;
        let account = self.accounts.get(from as usize).ok_or(Refused::PortFull)?;
        let has_room = account.has_room() || account.counters().half_open > 0 || !on(Check::ConnectionBudget);
        has_room.then_some(()).ok_or(Refused::PortFull)
    }

    /// What the first packet makes of a connection.
    fn first(&self, key: &Key, packet: &Packet<'_>, words: [u64; 3], now: u32) -> Result<(Image, [u32; 2]), Reason> {
        let protocol_number = key.canonical.protocol();
        let (state, protocol, last, timeout) = match (protocol_number, packet) {
            (TCP, Packet::Tcp(segment)) => {
                let (state, tracked) = tcp::open(segment, self.tcp)?;
                let (protocol, last) = tracked.to_words();
                let timeout = if state == State::SynSent {
                    self.timeouts.syn_sent
                } else {
                    self.timeouts.established.min(self.timeouts.unacknowledged)
                };
                (state, protocol, last, timeout)
            }
            (TCP, Packet::Other) | (_, Packet::Tcp(_)) => return Err(Reason::Header),
            (number, Packet::Other) => {
                if matches!(number, icmp::ICMP | icmp::ICMPV6) && !key.canonical.is_question() {
                    return Err(Reason::NotOpening);
                }
                let protocol = [u64::from(now), 0, 0, 0, 0];
                (
                    State::Unreplied,
                    protocol,
                    [0; 2],
                    self.timeout_of(number, State::Unreplied),
                )
            }
        };
        let deadline = timeout.deadline(now, 0);
        let life = Life {
            state,
            replied: false,
            assured: false,
            deadline,
        };
        Ok((Image { life, words, protocol }, last))
    }

    fn insert(&self, key: &Key, ports: Ports, image: &Image, last: [u32; 2], now: u32) -> Result<Opened, Refused> {
        let mut shard = self.shard(self.index.shard(key.hash));
        if let Some((index, found)) = self
            .index
            .find(key.hash, |e| self.found_at(e, key, now).map(|f| (e, f)))
        {
            match found {
                Some(found) => return Ok(Opened::Exists(found)),
                None => self.remove_expired(&mut shard, index, now),
            }
        }
        let Some(index) = shard.take_free(&self.cold).or_else(|| self.evict_any(&mut shard, now)) else {
            self.totals.full.fetch_add(1, Ordering::Relaxed);
            return Err(Refused::TableFull);
        };
        if let Some(next) = shard.next_free() {
            self.touch(next);
        }
        if self.index.insert(key.hash, index, |e| self.hash_of(e)).is_err() {
            let gave_way = self
                .index
                .neighbours(key.hash)
                .find(|&e| self.give_way(&mut shard, e, now));
            if gave_way.is_none() || self.index.insert(key.hash, index, |e| self.hash_of(e)).is_err() {
                shard.give_back(&self.cold, index);
                self.totals.full.fetch_add(1, Ordering::Relaxed);
                return Err(Refused::TableFull);
            }
        }
        let cold = &self.cold[index as usize];
        cold.to.store(ports.to, Ordering::Relaxed);
        cold.opened.store(now, Ordering::Relaxed);
        self.set_last(index, last);
        let account = &self.accounts[ports.from as usize];
        account.entries.fetch_add(1, Ordering::Relaxed);
        account.half_open.fetch_add(1, Ordering::Relaxed);
        let identity = Identity {
            canonical: key.canonical,
            from: ports.from,
        };
        let generation = self.entries[index as usize].occupy(&identity, image);
        shard.arm(&self.cold, index, image.life.deadline);
        Ok(Opened::New(EntryRef { index, generation }))
    }

    /// Have the oldest half-open connection of a port give way.
    fn make_room(&self, account: &Account) -> Result<(), Refused> {
        let (oldest, ahead) = account.oldest(|bits| self.is_half_open(bits));
        if let Some(oldest) = oldest {
            self.evict(account, oldest);
        }
        self.touch_ahead(ahead);
        if account.has_room() {
            return Ok(());
        }
        account.refused.fetch_add(1, Ordering::Relaxed);
        Err(Refused::PortFull)
    }

    /// Bring an entry near.
    fn touch(&self, index: u32) {
        let (entry, cold) = (&self.entries[index as usize], &self.cold[index as usize]);
        std::hint::black_box(entry.touch() ^ u64::from(cold.next.load(Ordering::Relaxed)));
    }

    /// Bring near what evicting those will need that are next in line: under a flood one follows the other, and each
    /// would wait for half a dozen cache misses in turn.
    fn touch_ahead(&self, [near, far]: [Option<u64>; 2]) {
        if let Some(bits) = far {
            self.touch(EntryRef::from_bits(bits).index);
        }
        if let Some(bits) = near {
            let index = EntryRef::from_bits(bits).index;
            let cold = &self.cold[index as usize];
            let mut sum = self.index.touch(self.hash_of(index));
            for neighbour in [&cold.next, &cold.previous] {
                if let Some(neighbour) = self.cold.get(neighbour.load(Ordering::Relaxed) as usize) {
                    sum ^= u64::from(neighbour.list.load(Ordering::Relaxed));
                }
            }
            std::hint::black_box(sum);
        }
    }

    fn is_half_open(&self, bits: u64) -> bool {
        let at = EntryRef::from_bits(bits);
        self.entries[at.index as usize]
            .image_of(at)
            .is_some_and(|(_, image)| !image.life.assured)
    }

    fn evict(&self, account: &Account, bits: u64) {
        if self.remove(EntryRef::from_bits(bits), |life| !life.assured) {
            account.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An entry of this shard whose time is up, or else a half-open one, among the next few.
    fn evict_any(&self, shard: &mut Shard, now: u32) -> Option<u32> {
        for _ in 0..EVICTION_STEPS_MAX.min(shard.len) {
            let index = shard.base + shard.cursor;
            shard.cursor = (shard.cursor + 1) % shard.len;
            if self.give_way(shard, index, now) {
                return shard.take_free(&self.cold);
            }
        }
        None
    }

    fn give_way(&self, shard: &mut Shard, index: u32, now: u32) -> bool {
        let entry = &self.entries[index as usize];
        let from = entry.opened_by();
        let gave_way = entry.generation().is_some_and(|generation| {
            self.remove_locked(shard, EntryRef { index, generation }, |life| {
                !life.assured || life.is_over(now)
            })
        });
        if gave_way {
            self.accounts[from as usize].evicted.fetch_add(1, Ordering::Relaxed);
        }
        gave_way
    }

    fn remove_expired(&self, shard: &mut Shard, index: u32, now: u32) {
        let generation = self.entries[index as usize].generation();
        if generation.is_some_and(|generation| {
            self.remove_locked(shard, EntryRef { index, generation }, |life| life.is_over(now))
        }) {
            self.totals.expired.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// End a connection. False if it was gone already.
    pub fn close(&self, at: EntryRef) -> bool {
        let is_removed = self.remove(at, |_| true);
        if is_removed {
            self.totals.ended.fetch_add(1, Ordering::Relaxed);
        }
        is_removed
    }

    pub(crate) fn remove(&self, at: EntryRef, when: impl Fn(Life) -> bool) -> bool {
        let mut shard = self.shard_of(at.index);
        self.remove_locked(&mut shard, at, when)
    }

    fn remove_locked(&self, shard: &mut Shard, at: EntryRef, when: impl Fn(Life) -> bool) -> bool {
        let entry = &self.entries[at.index as usize];
        let (hash, from) = (self.hash_of(at.index), entry.opened_by());
        let Some(life) = entry.vacate(at.generation, when) else {
            return false;
        };
        self.index.remove(hash, at.index);
        shard.disarm(&self.cold, at.index);
        shard.give_back(&self.cold, at.index);
        let account = &self.accounts[from as usize];
        account.entries.fetch_sub(1, Ordering::Relaxed);
        if !life.assured {
            account.half_open.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    /// Clear away connections whose time is up, looking at no more than `budget` entries. Cheap when nothing is due:
    /// call it between bursts. Returns how many it looked at.
    pub fn expire(&self, now_ns: u64, budget: u32) -> u32 {
        let now = tick(now_ns);
        if self.done.load(Ordering::Relaxed) == now {
            return 0;
        }
        let mut left = budget;
        for _ in 0..self.shards.len() {
            let turn = self.turn.load(Ordering::Relaxed) as usize % self.shards.len();
            // A shard in use is another worker's at work: it can wait for its next turn.
            if let Ok(mut shard) = self.shards[turn].try_lock() {
                while left > 0 {
                    let Some(index) = shard.due(&self.cold, now) else { break };
                    left -= 1;
                    self.look_at(&mut shard, index, now);
                }
            }
            if left == 0 {
                return budget;
            }
            self.turn.fetch_add(1, Ordering::Relaxed);
        }
        self.done.store(now, Ordering::Relaxed);
        budget - left
    }

    /// The wheel came by an entry.
    fn look_at(&self, shard: &mut Shard, index: u32, now: u32) {
        let entry = &self.entries[index as usize];
        let Some((_, life)) = entry.read(Entry::life) else {
            return;
        };
        if life.is_over(now) {
            self.remove_expired(shard, index, now);
            if entry.generation().is_none() {
                return;
            }
        }
        shard.arm(&self.cold, index, entry.life().deadline);
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
