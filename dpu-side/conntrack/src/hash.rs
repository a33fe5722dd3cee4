//! The keyed hash that says where in the table a connection is looked for.
//!
//! A guest chooses most of a tuple, so it must not be able to say which tuples fall together. Six 64-bit words in
//! canonical order go through NH (the compression of UMAC, RFC 4418 §5.2): the sum of (a + k) × (b + k') over three
//! pairs, modulo 2^128. Over random keys two different tuples give the same sum with a chance of at most 2^-64,
//! whatever the tuples are. One more multiplication with keys of its own spreads the sum over all 64 bits, so that
//! neighbouring ports don't fall into neighbouring buckets. Four multiplications altogether: a few nanoseconds.

use std::hash::{BuildHasher, RandomState};

use outboard_controls::{Check, on};

use crate::tuple::Canonical;

/// The random keys of one table.
#[derive(Clone)]
pub(crate) struct Keys([u64; 8]);

impl Keys {
    /// Keys that no guest can know: what SipHash under the system's random numbers makes of 0 to 7.
    pub fn random() -> Self {
        if !on(Check::KeyedHash) {
            return Self([0; 8]);
        }
        let source = RandomState::new();
        Self(std::array::from_fn(|i| source.hash_one(i)))
    }

    #[inline]
    pub fn hash(&self, of: &Canonical) -> u64 {
        let k = &self.0;
        let [a, b, c, d, e] = of.words;
        let sum = product(a.wrapping_add(k[0]), b.wrapping_add(k[1]))
            .wrapping_add(product(c.wrapping_add(k[2]), d.wrapping_add(k[3])))
            .wrapping_add(product(e.wrapping_add(k[4]), u64::from(of.tag).wrapping_add(k[5])));
        let (low, high) = halves(sum);
        let (low, high) = halves(product(low ^ k[6], high ^ k[7]));
        low ^ high
    }
}

#[inline]
fn product(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the two halves of a word")]
fn halves(word: u128) -> (u64, u64) {
    (word as u64, (word >> 64) as u64)
}
