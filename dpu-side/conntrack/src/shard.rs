//! What a shard's lock guards: its free entries, and the timer wheel that finds those whose time is up.
//!
//! The wheel has a list of entries for each of the next 1024 ticks (137 s). An entry that lives longer is looked at
//! once in that time and put further on. Packets don't move it: they write the deadline, and the wheel reads it when it
//! comes by.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::entry::{Cold, NONE};

pub(crate) const WHEEL_TICKS: u32 = 1024;

pub(crate) struct Shard {
    lists: Box<[u32]>,
    free: u32,
    /// The tick to be looked at next.
    pub tick: u32,
    /// Where the search for an entry to evict goes on.
    pub cursor: u32,
    /// The first of its entries, and how many it has.
    pub base: u32,
    pub len: u32,
}

impl Shard {
    pub fn new(base: u32, len: u32, cold: &[Cold]) -> Self {
        let mut shard = Self {
            lists: vec![NONE; WHEEL_TICKS as usize].into_boxed_slice(),
            free: NONE,
            tick: 0,
            cursor: 0,
            base,
            len,
        };
        for entry in (base..base + len).rev() {
            shard.give_back(cold, entry);
        }
        shard
    }

    pub fn take_free(&mut self, cold: &[Cold]) -> Option<u32> {
        let entry = self.free;
        (entry != NONE).then(|| {
            self.free = get(&cold[entry as usize].next);
            entry
        })
    }

    pub fn next_free(&self) -> Option<u32> {
        (self.free != NONE).then_some(self.free)
    }

    pub fn give_back(&mut self, cold: &[Cold], entry: u32) {
        set(&cold[entry as usize].next, self.free);
        self.free = entry;
    }

    /// Have the wheel look at `entry` once `deadline` is past, or as far on as it goes; never in the tick in work, whose
    /// list would have no end.
    pub fn arm(&mut self, cold: &[Cold], entry: u32, deadline: u32) {
        let (soonest, latest) = (self.tick.saturating_add(1), self.tick.saturating_add(WHEEL_TICKS - 1));
        let at = deadline.saturating_add(1).clamp(soonest, latest);
        self.link(cold, entry, at % WHEEL_TICKS);
    }

    /// Would [`Shard::arm`] put it where it is already, or later? Asked without the lock: an answer out of date costs
    /// an entry that is cleared away late.
    pub fn is_armed_by(cold: &Cold, deadline: u32, now: u32) -> bool {
        let list = get(&cold.list);
        if list >= WHEEL_TICKS {
            return true;
        }
        let armed_in = list.wrapping_sub(now) % WHEEL_TICKS;
        armed_in <= deadline.saturating_sub(now).saturating_add(1)
    }

    fn link(&mut self, cold: &[Cold], entry: u32, list: u32) {
        let head = &mut self.lists[list as usize];
        let ours = &cold[entry as usize];
        set(&ours.next, *head);
        set(&ours.previous, NONE);
        set(&ours.list, list);
        if *head != NONE {
            set(&cold[*head as usize].previous, entry);
        }
        *head = entry;
    }

    /// Take it from the wheel.
    pub fn disarm(&mut self, cold: &[Cold], entry: u32) {
        let ours = &cold[entry as usize];
        let (next, previous, list) = (get(&ours.next), get(&ours.previous), get(&ours.list));
        if list == NONE {
            return;
        }
        if previous == NONE {
            self.lists[list as usize] = next;
        } else {
            set(&cold[previous as usize].next, next);
        }
        if next != NONE {
            set(&cold[next as usize].previous, previous);
        }
        set(&ours.list, NONE);
    }

    /// The next entry to look at for the ticks up to `now`, disarmed; `None` when there is no more.
    pub fn due(&mut self, cold: &[Cold], now: u32) -> Option<u32> {
        // Ticks that went by more than one turn ago have the same lists as those since.
        self.tick = self.tick.max(now.saturating_sub(WHEEL_TICKS - 1));
        while self.tick <= now {
            let entry = self.lists[(self.tick % WHEEL_TICKS) as usize];
            if entry != NONE {
                self.disarm(cold, entry);
                return Some(entry);
            }
            self.tick += 1;
        }
        None
    }
}

#[inline]
fn get(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

#[inline]
fn set(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Relaxed);
}
