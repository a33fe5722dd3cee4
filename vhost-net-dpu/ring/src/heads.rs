//! Which heads the device holds.

/// One bit a head.
#[derive(Debug)]
pub(crate) struct Heads {
    bits: Box<[u64]>,
    count: u16,
}

impl Heads {
    pub(crate) fn new(size: u16) -> Self {
        Self {
            bits: vec![0; usize::from(size).div_ceil(64)].into(),
            count: 0,
        }
    }

    /// How many heads are held.
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// Note that `head` is held. False if it was already, or is no head.
    #[inline]
    pub(crate) fn insert(&mut self, head: u16) -> bool {
        match self.bits.get_mut(usize::from(head) / 64) {
            Some(word) if *word & 1 << (head % 64) == 0 => {
                *word |= 1 << (head % 64);
                self.count += 1;
                true
            }
            _ => false,
        }
    }

    /// Note that `head` is given back. False if it was not held.
    #[inline]
    pub(crate) fn remove(&mut self, head: u16) -> bool {
        match self.bits.get_mut(usize::from(head) / 64) {
            Some(word) if *word & 1 << (head % 64) != 0 => {
                *word &= !(1 << (head % 64));
                self.count -= 1;
                true
            }
            _ => false,
        }
    }
}
