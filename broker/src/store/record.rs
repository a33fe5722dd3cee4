//! A record's bytes: one byte of format version, then JSON.

use serde::{Serialize, de::DeserializeOwned};

/// The format that this version writes.
pub const RECORD_FORMAT: u8 = 1;

/// Why stored bytes are not a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No bytes at all.
    #[error("the record is empty")]
    Empty,
    /// Written in a format this version does not read.
    #[error("the record has format {0}, this version reads format {RECORD_FORMAT}")]
    Format(u8),
    /// Not the JSON of such a record.
    #[error("the record does not parse: {0}")]
    Json(#[from] serde_json::Error),
}

/// The bytes of a record.
///
/// # Errors
/// Only if the type cannot be JSON at all, which is an error of this program.
pub fn encode_record<T: Serialize>(record: &T) -> Result<Vec<u8>, RecordError> {
    let mut bytes = vec![RECORD_FORMAT];
    serde_json::to_writer(&mut bytes, record)?;
    Ok(bytes)
}

/// The record that `bytes` spell.
///
/// # Errors
/// Another format, or damaged content.
pub fn decode_record<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordError> {
    match bytes.split_first() {
        None => Err(RecordError::Empty),
        Some((&RECORD_FORMAT, json)) => Ok(serde_json::from_slice(json)?),
        Some((&other, _)) => Err(RecordError::Format(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_round_trip() {
        let bytes = encode_record(&vec!["a", "b"]).unwrap();
        assert_eq!(bytes[0], RECORD_FORMAT);
        assert_eq!(decode_record::<Vec<String>>(&bytes).unwrap(), ["a", "b"]);
    }

    #[test]
    fn an_unknown_format_is_named() {
        assert!(matches!(decode_record::<u8>(&[9, b'1']), Err(RecordError::Format(9))));
        assert!(matches!(decode_record::<u8>(&[]), Err(RecordError::Empty)));
        assert!(matches!(decode_record::<u8>(&[1, b'{']), Err(RecordError::Json(_))));
    }
}
