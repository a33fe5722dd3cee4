//! One connection's entry: two cache lines of atomics, read without a lock.
//!
//! The first word, *control*, is a generation, a version and a lock bit. The generation is even while the entry holds
//! a connection and goes up when it is taken and when it is freed, so that a reference to an earlier connection is
//! known as stale. Whoever changes anything sets the lock bit by an exchange that fails unless nothing changed since it
//! looked, and clears it with the next version: a reader that finds the same control word before and after has seen one
//! state of the entry.

use std::{
    hint,
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
    thread,
};

use crate::{state::Life, tuple::Canonical};

/// No entry.
pub(crate) const NONE: u32 = u32::MAX;

/// Which connection: good until its entry is freed, and known as stale thereafter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryRef {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl EntryRef {
    pub(crate) const fn to_bits(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

const LOCKED: u64 = 1;
const VERSION: u64 = 2;
const GENERATION_SHIFT: u32 = 32;
const SPINS_BEFORE_YIELD: u32 = 64;

/// The part of an entry that names its connection, and who opened it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub canonical: Canonical,
    /// The port that opened it.
    pub from: u32,
}

/// The part of an entry that changes while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    pub life: Life,
    /// The caller's.
    pub words: [u64; 3],
    /// What the protocol keeps.
    pub protocol: [u64; 5],
}

#[repr(align(128))]
pub(crate) struct Entry {
    control: AtomicU64,
    key: [AtomicU64; 5],
    tag: AtomicU64,
    life: AtomicU64,
    words: [AtomicU64; 3],
    protocol: [AtomicU64; 5],
}

/// What is needed less often, and so lies apart. Links are written under the shard's lock only.
#[repr(align(32))]
pub(crate) struct Cold {
    pub next: AtomicU32,
    pub previous: AtomicU32,
    /// Which list of the wheel it is in, [`NONE`] for none.
    pub list: AtomicU32,
    /// The port on the other side.
    pub to: AtomicU32,
    /// TCP: what the last packet that was let through unexplained would end at, and acknowledged.
    pub last: [AtomicU32; 2],
    /// The tick in which it was opened.
    pub opened: AtomicU32,
}

impl Cold {
    pub const fn new() -> Self {
        Self {
            next: AtomicU32::new(NONE),
            previous: AtomicU32::new(NONE),
            list: AtomicU32::new(NONE),
            to: AtomicU32::new(NONE),
            last: [const { AtomicU32::new(0) }; 2],
            opened: AtomicU32::new(0),
        }
    }
}

const TAG_MASK: u64 = 0x00ff_ffff;
const TAG_REVERSED: u64 = 1 << 24;

impl Entry {
    pub const fn new() -> Self {
        Self {
            control: AtomicU64::new(1 << GENERATION_SHIFT),
            key: [const { AtomicU64::new(0) }; 5],
            tag: AtomicU64::new(0),
            life: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; 3],
            protocol: [const { AtomicU64::new(0) }; 5],
        }
    }

    /// Bring its two lines near. Returns something of both, so that the loads are not for nothing.
    #[inline]
    pub fn touch(&self) -> u64 {
        self.control.load(Ordering::Relaxed) ^ self.words[0].load(Ordering::Relaxed)
    }

    /// Is this entry for `key`? Then its generation, and whether the packet goes the original way.
    /// Without order: the caller's later read of the whole entry decides.
    #[inline]
    pub fn holds(&self, key: &Canonical) -> bool {
        let tag = self.tag.load(Ordering::Relaxed) & TAG_MASK;
        let differs = self
            .key
            .iter()
            .zip(&key.words)
            .fold(tag ^ u64::from(key.tag), |d, (ours, theirs)| {
                d | (ours.load(Ordering::Relaxed) ^ theirs)
            });
        differs == 0
    }

    /// One consistent state of the entry as `read` sees it; `None` if it holds no connection.
    #[inline]
    pub fn read<R>(&self, read: impl Fn(&Self) -> R) -> Option<(u64, R)> {
        let mut spins = 0;
        loop {
            let before = self.control.load(Ordering::Acquire);
            if is_free(before) {
                return None;
            }
            if before & LOCKED == 0 {
                let seen = read(self);
                fence(Ordering::Acquire);
                if self.control.load(Ordering::Relaxed) == before {
                    return Some((before, seen));
                }
            }
            wait(&mut spins);
        }
    }

    /// If nothing changed since control was `seen`: lock, let `write` change, unlock.
    #[inline]
    pub fn write(&self, seen: u64, write: impl FnOnce(&Self)) -> bool {
        if self
            .control
            .compare_exchange(seen, seen | LOCKED, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        // Readers that see any of what follows also see the lock.
        fence(Ordering::Release);
        write(self);
        self.control.store(next_version(seen), Ordering::Release);
        true
    }

    /// The entry `at` as it is now, its control word with it.
    #[inline]
    pub fn image_of(&self, at: EntryRef) -> Option<(u64, Image)> {
        let (seen, image) = self.read(Self::image)?;
        (generation(seen) == at.generation).then_some((seen, image))
    }

    #[inline]
    pub fn image(&self) -> Image {
        Image {
            life: self.life(),
            words: self.words(),
            protocol: load(&self.protocol),
        }
    }

    #[inline]
    pub fn life(&self) -> Life {
        Life::from_bits(self.life.load(Ordering::Relaxed))
    }

    #[inline]
    pub fn set_life(&self, life: Life) {
        self.life.store(life.to_bits(), Ordering::Relaxed);
    }

    #[inline]
    pub fn words(&self) -> [u64; 3] {
        load(&self.words)
    }

    #[inline]
    pub fn set_words(&self, words: [u64; 3]) {
        store(&self.words, words);
    }

    #[inline]
    pub fn protocol(&self) -> [u64; 5] {
        load(&self.protocol)
    }

    /// The first of the protocol's words.
    #[inline]
    pub fn protocol_word(&self) -> u64 {
        self.protocol[0].load(Ordering::Relaxed)
    }

    #[inline]
    pub fn set_protocol(&self, words: [u64; 5]) {
        store(&self.protocol, words);
    }

    /// Was the packet that opened it reversed, in canonical order?
    #[inline]
    pub fn was_reversed(&self) -> bool {
        self.tag.load(Ordering::Relaxed) & TAG_REVERSED != 0
    }

    pub fn identity(&self) -> Identity {
        let tag = self.tag.load(Ordering::Relaxed);
        let canonical = Canonical {
            words: load(&self.key),
            tag: (tag & TAG_MASK) as u32,
            reversed: tag & TAG_REVERSED != 0,
        };
        Identity {
            canonical,
            from: (tag >> 32) as u32,
        }
    }

    /// The protocol it was opened with.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a field of the word")]
    pub fn protocol_number(&self) -> u8 {
        self.tag.load(Ordering::Relaxed) as u8
    }

    /// The port that opened it.
    #[inline]
    pub fn opened_by(&self) -> u32 {
        (self.tag.load(Ordering::Relaxed) >> 32) as u32
    }

    /// Fill a free entry and make it live. Only under the shard's lock, which makes us the only one to do so.
    pub fn occupy(&self, identity: &Identity, image: &Image) -> u32 {
        let generation = generation(self.control.load(Ordering::Relaxed)).wrapping_add(1);
        // Readers of the former connection that see any of what follows also see that it was freed.
        fence(Ordering::Release);
        store(&self.key, identity.canonical.words);
        let reversed = if identity.canonical.reversed { TAG_REVERSED } else { 0 };
        let tag = u64::from(identity.canonical.tag) | reversed | u64::from(identity.from) << 32;
        self.tag.store(tag, Ordering::Relaxed);
        self.set_life(image.life);
        self.set_words(image.words);
        self.set_protocol(image.protocol);
        self.control
            .store(u64::from(generation) << GENERATION_SHIFT, Ordering::Release);
        generation
    }

    /// Free it if `when` says so of its state and it still is of `generation`. Only under the shard's lock.
    pub fn vacate(&self, generation_was: u32, when: impl Fn(Life) -> bool) -> Option<Life> {
        loop {
            let (seen, life) = self.read(Self::life)?;
            if generation(seen) != generation_was || !when(life) {
                return None;
            }
            let free = u64::from(generation_was.wrapping_add(1)) << GENERATION_SHIFT;
            if self
                .control
                .compare_exchange(seen, free, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return Some(life);
            }
        }
    }

    /// The generation of the connection it holds, if it holds one.
    pub fn generation(&self) -> Option<u32> {
        let control = self.control.load(Ordering::Acquire);
        (!is_free(control)).then(|| generation(control))
    }
}

#[inline]
pub(crate) const fn generation(control: u64) -> u32 {
    (control >> GENERATION_SHIFT) as u32
}

#[inline]
const fn is_free(control: u64) -> bool {
    generation(control) & 1 == 1
}

/// The version counts within its 31 bits, unlocked.
#[inline]
const fn next_version(control: u64) -> u64 {
    let low = ((control & u32::MAX as u64) + VERSION) & (u32::MAX as u64 & !LOCKED);
    control >> GENERATION_SHIFT << GENERATION_SHIFT | low
}

#[inline]
fn load<const N: usize>(words: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|i| words[i].load(Ordering::Relaxed))
}

#[inline]
fn store<const N: usize>(words: &[AtomicU64; N], values: [u64; N]) {
    for (word, value) in words.iter().zip(values) {
        word.store(value, Ordering::Relaxed);
    }
}

/// Another worker is in the entry, for some tens of nanoseconds; if it was put off its core, let it run.
#[cold]
fn wait(spins: &mut u32) {
    *spins += 1;
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
        thread::yield_now();
    } else {
        hint::spin_loop();
    }
}
