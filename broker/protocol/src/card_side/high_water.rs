//! The highest generation seen of every object, so that no older one is ever taken up again.

use std::collections::BTreeMap;

use minicbor::{Decode, Encode};
use outboard_controls::{Check, on};

use super::HIGH_WATER_MAX;
use crate::id::{Generation, ObjectRef};

/// The marks. Objects come and go without bound, so beyond [`HIGH_WATER_MAX`] the lowest mark is merged into a floor
/// that holds for every object without a mark of its own: safe, and the broker, which hears of it, goes above it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct HighWater {
    #[cbor(n(0), with = "marks")]
    marks: BTreeMap<ObjectRef, Generation>,
    #[n(1)]
    floor: Generation,
}

impl HighWater {
    /// The highest generation of the object that may have been seen.
    pub fn of(&self, object: &ObjectRef) -> Generation {
        self.marks.get(object).copied().unwrap_or(self.floor)
    }

    /// Whether a binding of that generation would be a new one.
    pub fn is_new(&self, object: &ObjectRef, generation: Generation) -> bool {
        generation > self.of(object) || !on(Check::HighWater)
    }

    /// Notes that a generation was seen.
    pub fn raise(&mut self, object: &ObjectRef, generation: Generation) {
        let mark = self.marks.entry(object.clone()).or_insert(self.floor);
        *mark = generation.max(*mark);
        if self.marks.len() > HIGH_WATER_MAX {
            self.merge_lowest(object);
        }
    }

    fn merge_lowest(&mut self, but: &ObjectRef) {
        let others = self.marks.iter().filter(|(object, _)| *object != but);
        if let Some(lowest) = others
            .min_by_key(|(_, generation)| **generation)
            .map(|(object, _)| object.clone())
        {
            let merged = self.marks.remove(&lowest).unwrap_or_default();
            self.floor = self.floor.max(merged);
        }
    }
}

/// The marks on disk: an array of pairs, objects ascending and none twice.
mod marks {
    use std::collections::BTreeMap;

    use minicbor::{Decode as _, Decoder, Encode as _, Encoder};

    use crate::id::{Generation, ObjectRef};

    type Marks = BTreeMap<ObjectRef, Generation>;

    pub fn encode<C, W: minicbor::encode::Write>(
        marks: &Marks,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        marks.iter().collect::<Vec<_>>().encode(e, ctx)
    }

    pub fn decode<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<Marks, minicbor::decode::Error> {
        Ok(Vec::<(ObjectRef, Generation)>::decode(d, ctx)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use outboard_controls::Off;

    use super::*;
    use crate::{
        codec::{decode, encode},
        id::ObjectKind,
    };

    fn object(n: usize) -> ObjectRef {
        ObjectRef {
            kind: ObjectKind::Port,
            name: format!("p{n}").parse().unwrap(),
        }
    }

    #[test]
    fn p07_a_generation_once_seen_is_never_new_again() {
        let mut seen = HighWater::default();
        assert!(seen.is_new(&object(1), Generation(5)));
        seen.raise(&object(1), Generation(5));
        seen.raise(&object(1), Generation(3));
        assert!(!seen.is_new(&object(1), Generation(5)) && !seen.is_new(&object(1), Generation(4)));
        assert!(seen.is_new(&object(1), Generation(6)) && seen.is_new(&object(2), Generation(1)));
        let _off = Off::here(Check::HighWater);
        assert!(seen.is_new(&object(1), Generation(4)));
    }

    #[test]
    fn merging_marks_never_makes_an_old_generation_new() {
        let mut seen = HighWater::default();
        for n in 0..HIGH_WATER_MAX + 10 {
            seen.raise(&object(n), Generation(n as u64 + 1));
        }
        assert_eq!(seen.marks.len(), HIGH_WATER_MAX);
        for n in 0..HIGH_WATER_MAX + 10 {
            assert!(!seen.is_new(&object(n), Generation(n as u64 + 1)), "{n}");
        }
        assert_eq!(decode::<HighWater>(&encode(&seen), 1 << 20), Ok(seen));
    }
}
