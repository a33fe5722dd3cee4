//! Which block is next.

/// Blocks one after another, or at random.
#[derive(Debug, Clone)]
pub struct Places {
    count: u64,
    next: u64,
    random: Option<u64>,
}

impl Places {
    /// Of `count` blocks, at least 1.
    pub fn new(count: u64, random: bool) -> Self {
        // Any seed but 0: runs are to be alike.
        Self {
            count,
            next: 0,
            random: random.then_some(0x2545_f491_4f6c_dd1d),
        }
    }

    /// The next one.
    pub fn pick(&mut self) -> u64 {
        match &mut self.random {
            // xorshift64 (Marsaglia 2003); the upper bits of the product are in range and nearly even.
            Some(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                let product = u128::from(*state) * u128::from(self.count);
                u64::try_from(product >> 64).unwrap_or(0)
            }
            None => {
                let block = self.next;
                self.next = (block + 1) % self.count;
                block
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequential_places_begin_again() {
        let mut places = Places::new(3, false);
        let seen: Vec<u64> = (0..7).map(|_| places.pick()).collect();
        assert_eq!(seen, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn random_places_reach_everything() {
        let mut places = Places::new(100, true);
        let mut seen = [0u32; 100];
        for _ in 0..10_000 {
            seen[usize::try_from(places.pick()).expect("small")] += 1;
        }
        assert!(seen.iter().all(|count| (50..200).contains(count)), "{seen:?}");
    }
}
