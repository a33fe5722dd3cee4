//! A secret number that makes hashes which no sender can foresee.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Mixes values. Two of them mix differently.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0u8))
    }
}

impl Seed {
    /// Every bit of the value shows in every bit of the result (the finalizer of MurmurHash3).
    #[inline]
    pub(crate) fn mix(self, value: u64) -> u64 {
        let mut x = value ^ self.0;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^ (x >> 33)
    }
}

/// For tables of keys that are one number, at a tenth of the price of SipHash. What is looked up may be a guest's choice;
/// what is in such a table is not.
impl BuildHasher for Seed {
    type Hasher = Mixer;

    #[inline]
    fn build_hasher(&self) -> Mixer {
        Mixer { seed: *self, hash: 0 }
    }
}

/// Hashes numbers.
#[derive(Debug)]
pub(crate) struct Mixer {
    seed: Seed,
    hash: u64,
}

impl Hasher for Mixer {
    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.hash = self.seed.mix(self.hash ^ value);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.hash
    }
}
