//! Where entries are found: buckets of one cache line, two of which a connection may be in.
//!
//! A bucket has seven slots, each with 32 bits of the hash and the entry's number, and a word that counts the entries
//! which belong here but had to go to their second bucket. So a lookup reads one line, a second one only where the first
//! ever overflowed, and never more, whatever was inserted. At the table's capacity a bucket holds four on average.

use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: usize = 7;
const AVERAGE_AT_CAPACITY: usize = 4;

#[repr(align(64))]
struct Bucket {
    /// Fingerprint in the upper half, entry's number plus one in the lower; 0 is empty.
    slots: [AtomicU64; SLOTS],
    moved_on: AtomicU64,
}

impl Bucket {
    const fn new() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            moved_on: AtomicU64::new(0),
        }
    }

    fn empty_slot(&self) -> Option<&AtomicU64> {
        self.slots.iter().find(|s| s.load(Ordering::Relaxed) == 0)
    }

    fn slot_of(&self, content: u64) -> Option<&AtomicU64> {
        self.slots.iter().find(|s| s.load(Ordering::Relaxed) == content)
    }
}

/// All buckets of a table. Each shard has its own, a power of two of them, so that one lock covers both buckets.
pub(crate) struct Index {
    buckets: Box<[Bucket]>,
    /// How many of the hash's upper bits choose the shard.
    shard_bits: u32,
    /// Buckets of a shard minus one.
    mask: usize,
}

/// There was no room in either bucket.
pub(crate) struct NoRoom;

impl Index {
    pub fn new(shard_bits: u32, entries_of_shard: usize) -> Self {
        let of_shard = (entries_of_shard / AVERAGE_AT_CAPACITY).next_power_of_two().max(2);
        let buckets = (0..of_shard << shard_bits).map(|_| Bucket::new()).collect();
        Self {
            buckets,
            shard_bits,
            mask: of_shard - 1,
        }
    }

    #[inline]
    pub const fn shard(&self, hash: u64) -> usize {
        // Two shifts, because one by all 64 bits is none.
        (hash >> 1 >> (63 - self.shard_bits)) as usize
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    const fn first(&self, hash: u64) -> usize {
        self.shard(hash) * (self.mask + 1) + (hash as usize & self.mask)
    }

    /// Never the first one: it differs by an odd number.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "masked")]
    const fn second(&self, hash: u64) -> usize {
        let apart = (hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32 | 1;
        self.shard(hash) * (self.mask + 1) + ((hash ^ apart) as usize & self.mask)
    }

    /// Bring the first bucket near. Returns something of it, so that the load is not for nothing.
    #[inline]
    pub fn touch(&self, hash: u64) -> u64 {
        self.buckets[self.first(hash)].moved_on.load(Ordering::Relaxed)
    }

    /// The first entry in the first bucket whose fingerprint is that of `hash`.
    #[inline]
    pub fn guess(&self, hash: u64) -> Option<u32> {
        self.in_bucket(self.first(hash), hash, Some)
    }

    /// What `check` says of the first entry that it says something of, among those whose fingerprint is that of `hash`.
    #[inline]
    pub fn find<R>(&self, hash: u64, check: impl Fn(u32) -> Option<R>) -> Option<R> {
        let first = self.first(hash);
        let found = self.in_bucket(first, hash, &check);
        if found.is_some() {
            return found;
        }
        // An entry is put into its second bucket before it leaves its first and is counted before that: Acquire sees both.
        if self.buckets[first].moved_on.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.in_bucket(self.second(hash), hash, check)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half of a slot")]
    fn in_bucket<R>(&self, bucket: usize, hash: u64, check: impl Fn(u32) -> Option<R>) -> Option<R> {
        let print = hash >> 32;
        let slots = &self.buckets[bucket].slots;
        let contents: [u64; SLOTS] = std::array::from_fn(|i| slots[i].load(Ordering::Acquire));
        let mut hits = contents
            .iter()
            .enumerate()
            .fold(0_u32, |hits, (i, &c)| hits | u32::from(c >> 32 == print) << i);
        while hits != 0 {
            let entry = contents[hits.trailing_zeros() as usize] as u32;
            hits &= hits - 1;
            // Zero is an empty slot; a fingerprint may be zero too.
            if entry != 0
                && let Some(found) = check(entry - 1)
            {
                return Some(found);
            }
        }
        None
    }

    /// Put an entry in. `hash_of` gives the hash of an entry that is in already: one may have to move on for it.
    /// Only under the shard's lock.
    pub fn insert(&self, hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) -> Result<(), NoRoom> {
        let (first, second) = (self.first(hash), self.second(hash));
        if let Some(slot) = self.buckets[first].empty_slot() {
            slot.store(content(hash, entry), Ordering::Release);
            return Ok(());
        }
        if self.move_on(hash, entry, first, second) {
            return Ok(());
        }
        // Only from first to second bucket: a reader, who looks in that order, then misses nothing.
        for slot in &self.buckets[first].slots {
            let resident = resident(slot);
            let its_hash = hash_of(resident);
            if self.first(its_hash) == first && self.move_on(its_hash, resident, first, self.second(its_hash)) {
                slot.store(content(hash, entry), Ordering::Release);
                return Ok(());
            }
        }
        Err(NoRoom)
    }

    fn move_on(&self, hash: u64, entry: u32, first: usize, second: usize) -> bool {
        let Some(slot) = self.buckets[second].empty_slot() else {
            return false;
        };
        slot.store(content(hash, entry), Ordering::Release);
        self.buckets[first].moved_on.fetch_add(1, Ordering::Release);
        true
    }

    /// Take an entry out. Only under the shard's lock.
    pub fn remove(&self, hash: u64, entry: u32) {
        let content = content(hash, entry);
        let first = self.first(hash);
        if let Some(slot) = self.buckets[first].slot_of(content) {
            slot.store(0, Ordering::Release);
        } else if let Some(slot) = self.buckets[self.second(hash)].slot_of(content) {
            slot.store(0, Ordering::Release);
            self.buckets[first].moved_on.fetch_sub(1, Ordering::Release);
        }
    }

    /// The entries in both buckets. Only under the shard's lock.
    pub fn neighbours(&self, hash: u64) -> impl Iterator<Item = u32> + '_ {
        [self.first(hash), self.second(hash)]
            .into_iter()
            .flat_map(|b| &self.buckets[b].slots)
            .filter(|slot| slot.load(Ordering::Relaxed) != 0)
            .map(resident)
    }
}

const fn content(hash: u64, entry: u32) -> u64 {
    hash >> 32 << 32 | (entry + 1) as u64
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of a slot")]
fn resident(slot: &AtomicU64) -> u32 {
    (slot.load(Ordering::Relaxed) as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash whose first bucket is the first of two, and whose fingerprint is `print`.
    const fn hash(print: u32) -> u64 {
        (print as u64) << 32
    }

    fn find(index: &Index, entry: u32) -> Option<u32> {
        index.find(hash(entry), |found| (found == entry).then_some(found))
    }

    #[test]
    fn what_overflows_is_found_in_the_second_bucket_and_no_further() {
        let index = Index::new(0, 8);
        assert_eq!(index.mask, 1, "two buckets");
        for entry in 0..14 {
            assert!(index.insert(hash(entry), entry, hash).is_ok(), "{entry}");
        }
        assert!((0..14).all(|entry| find(&index, entry) == Some(entry)));
        assert!(index.insert(hash(14), 14, hash).is_err(), "both are full");
        assert_eq!(index.neighbours(hash(0)).count(), 14);

        for entry in (0..14).rev() {
            index.remove(hash(entry), entry);
            index.remove(hash(entry), entry);
            assert_eq!(find(&index, entry), None);
            assert!((0..entry).all(|entry| find(&index, entry) == Some(entry)));
        }
        assert!(index.buckets.iter().all(|b| b.moved_on.load(Ordering::Relaxed) == 0));
        assert_eq!(index.neighbours(hash(0)).count(), 0);
    }

    #[test]
    fn one_moves_on_where_both_buckets_of_another_are_full() {
        // Eight buckets. Fill the first and second of one hash; one in the first can move to a third bucket.
        let index = Index::new(0, 32);
        let with = |first: usize, second: usize| {
            (1..u32::MAX)
                .map(move |print| hash(print) | first as u64)
                .filter(move |&h| index_second(h) == second)
        };
        fn index_second(hash: u64) -> usize {
            Index {
                buckets: Box::default(),
                shard_bits: 0,
                mask: 7,
            }
            .second(hash)
        }
        let mut hashes: Vec<u64> = with(0, 3)
            .take(1)
            .chain(with(0, 5).take(6))
            .chain(with(5, 0).take(7))
            .collect();
        hashes.push(with(0, 5).nth(6).expect("there are enough"));
        for (entry, &hash) in (0..).zip(&hashes) {
            assert!(index.insert(hash, entry, |e| hashes[e as usize]).is_ok(), "{entry}");
        }
        for (entry, &hash) in (0..).zip(&hashes) {
            assert_eq!(index.find(hash, |found| (found == entry).then_some(found)), Some(entry));
        }
        assert_eq!(
            index.buckets[3]
                .slots
                .iter()
                .filter(|s| s.load(Ordering::Relaxed) != 0)
                .count(),
            1,
            "it moved"
        );
        for (entry, &hash) in (0..).zip(&hashes) {
            index.remove(hash, entry);
        }
        assert!(index.buckets.iter().all(|b| b.moved_on.load(Ordering::Relaxed) == 0));
    }
}
