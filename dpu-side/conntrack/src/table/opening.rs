//! Opening connections, having others give way to them, and ending them.

use std::sync::atomic::Ordering;

use outboard_controls::{Check, on};

use super::{Key, Opened, Packet, Ports, Refused, TCP, Table};
use crate::{
    account::Account,
    entry::{Entry, EntryRef, Identity, Image},
    icmp,
    shard::Shard,
    state::{Life, State},
    tcp::{self, Reason},
    time::tick,
};

/// How many entries one insertion looks at for one to evict.
const EVICTION_STEPS_MAX: u32 = 16;

impl Table {
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
}
