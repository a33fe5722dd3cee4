//! Sizes as people write them: `4GiB`, `512 MiB`, `1048576`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::schema::text_schema;

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A number of bytes. Written as text with the largest unit that divides it, read as text or as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number followed by a unit.
    #[error("'{0}' is not a size; write a whole number of KiB, MiB, GiB or TiB, such as \"4GiB\", or of bytes")]
    Form(String),
    /// More than 2^64 - 1 bytes.
    #[error("'{0}' is more bytes than 64 bits can count")]
    Range(String),
}

impl FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let trimmed = text.trim();
        let (digits, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| trimmed.strip_suffix(unit).map(|digits| (digits.trim_end(), *factor)))
            .unwrap_or((trimmed, 1));
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SizeError::Form(text.to_owned()));
        }
        let count: u64 = digits.parse().map_err(|_| SizeError::Range(text.to_owned()))?;
        count
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| SizeError::Range(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor))
        {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => self.0.fmt(f),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"4GiB\", or a number of bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map(Size)
                    .map_err(|_| E::custom(SizeError::Form(bytes.to_string())))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

text_schema!(
    Size,
    "A whole number of KiB, MiB, GiB or TiB; a plain number counts bytes.",
    "4GiB"
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("1KiB", 1024),
            ("3 MiB", 3 << 20),
            ("4GiB", 4 << 30),
            ("2TiB", 2 << 40),
            ("512", 512),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "4G", "4GB", "-1", "1.5GiB", "0x10", "4 gib", "٣GiB"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Form(_))), "{text}");
        }
        for text in ["99999999999999999999", "16777216TiB"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Range(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn printing_and_parsing_agree(bytes: u64) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = text.parse::<Size>();
        }
    }
}
