//! What is available and was looked at, but not taken.

use crate::descriptor::Descriptor;

/// Entries that are looked at ahead.
pub(crate) const AHEAD_MAX: u16 = 32;

/// A chain, or a descriptor of a packed ring, that was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub(crate) head: u16,
    /// Where its region is, if the chain is one buffer in one region, and in order.
    pub(crate) place: Option<u16>,
    pub(crate) first: Descriptor,
}

/// What is available and was looked at, but not taken.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) entries: Box<[Seen; AHEAD_MAX as usize]>,
    /// The one to take next; those before it were taken.
    pub(crate) next: u16,
    /// Where they end.
    pub(crate) end: u16,
}

impl Ahead {
    pub(crate) fn new() -> Self {
        Self {
            entries: Box::new([Seen::default(); AHEAD_MAX as usize]),
            next: 0,
            end: 0,
        }
    }

    /// The one to take next.
    #[inline]
    pub(crate) fn peek(&self) -> Option<&Seen> {
        if self.next == self.end {
            return None;
        }
        self.entries.get(usize::from(self.next))
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<&Seen> {
        if self.next == self.end {
            return None;
        }
        let place = usize::from(self.next);
        self.next += 1;
        self.entries.get(place)
    }

    /// The `count` that were taken last are to be taken again.
    pub(crate) fn unpop(&mut self, count: u16) {
        match self.next.checked_sub(count) {
            Some(last) => self.next = last,
            // They were of a former look.
            None => (self.next, self.end) = (0, 0),
        }
    }
}
