//! Bytes to messages and back: CBOR (RFC 8949) in one spelling only, bounded, and length-prefixed frames.
//!
//! A message is accepted only if encoding it again gives the same bytes. That refuses long integer forms, trailing
//! bytes and, because a field this version does not know would be missing from the second encoding, unknown fields:
//! every field is critical.

use minicbor::{Decode, Encode};
use outboard_controls::{Check, on};

use crate::refusal::{Code, Refusal};

/// Deepest nesting of arrays in a message.
pub const NESTING_DEPTH_MAX: usize = 12;
/// Most items in one array.
pub const ARRAY_ITEMS_MAX: u64 = 65_536;
/// Longest text string, in bytes.
pub const TEXT_LEN_MAX: u64 = 4096;
/// Longest byte string, in bytes.
pub const BYTES_LEN_MAX: u64 = 16_384;
/// Length of the big-endian byte count before each frame, in bytes.
pub const FRAME_HEADER_LEN: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the channel allows.
    #[error("the peer sent a message of {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Its length.
        len: usize,
        /// The channel's bound.
        max: usize,
    },
    /// The message ends inside an item.
    #[error("the peer sent a message that ends too soon")]
    Truncated,
    /// Bytes follow the message.
    #[error("the peer sent {0} bytes behind the end of a message")]
    Trailing(usize),
    /// Arrays inside arrays beyond [`NESTING_DEPTH_MAX`].
    #[error("the peer sent a message nested deeper than {NESTING_DEPTH_MAX}")]
    TooDeep,
    /// An array, text or byte string beyond its bound.
    #[error("the peer sent a message with an item of length {0}, which is more than allowed")]
    TooLarge(u64),
    /// A kind of item that this protocol does not use: indefinite lengths, maps, tags, negative numbers, floats.
    #[error("the peer sent a message with an item of initial byte {0:#04x}, which this protocol does not use")]
    Unused(u8),
    /// Well-formed, but no message of this type.
    #[error("the peer sent a message that is not understood: {0}")]
    NotUnderstood(String),
    /// Decodes, but encodes to other bytes: a field that is not known here, or a second spelling.
    #[error("the peer sent a message with unknown fields or not in canonical form")]
    NotCanonical,
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        Self::new(Code::Malformed, error.to_string())
    }
}

/// The one encoding of a message.
pub fn encode<T: Encode<()>>(message: &T) -> Vec<u8> {
    minicbor::to_vec(message).expect("a Vec takes every byte, and no message type makes an error of its own")
}

/// The message that `bytes` spell, if they do so canonically and within bounds; `len_max` is the channel's bound.
pub fn decode<T>(bytes: &[u8], len_max: usize) -> Result<T, DecodeError>
where
    T: Encode<()> + for<'b> Decode<'b, ()>,
{
    if bytes.len() > len_max && on(Check::MessageSize) {
        return Err(DecodeError::TooLong {
            len: bytes.len(),
            max: len_max,
        });
    }
    check_shape(bytes)?;
    let message: T = minicbor::decode(bytes).map_err(|e| DecodeError::NotUnderstood(e.to_string()))?;
    if encode(&message) != bytes && on(Check::CanonicalOnly) {
        return Err(DecodeError::NotCanonical);
    }
    Ok(message)
}

/// Walks the items without building anything: exactly one item, bounded in depth, counts and lengths.
fn check_shape(bytes: &[u8]) -> Result<(), DecodeError> {
    let mut rest = bytes;
    // How many items are still due at each open nesting level; the outermost is the message itself.
    let mut due = [0_u64; NESTING_DEPTH_MAX + 1];
    let mut depth = 0;
    due[0] = 1;
    loop {
        while due[depth] == 0 {
            if depth == 0 {
                return if rest.is_empty() {
                    Ok(())
                } else {
                    Err(DecodeError::Trailing(rest.len()))
                };
            }
            depth -= 1;
        }
        due[depth] -= 1;
        match read_item(&mut rest)? {
            Item::Leaf => {}
            Item::Array(len) => {
                depth += 1;
                *due.get_mut(depth).ok_or(DecodeError::TooDeep)? = len;
            }
        }
    }
}

enum Item {
    Leaf,
    Array(u64),
}

/// Takes one item's head, and the content of a string, off the front (RFC 8949 §3).
fn read_item(rest: &mut &[u8]) -> Result<Item, DecodeError> {
    let (&initial, tail) = rest.split_first().ok_or(DecodeError::Truncated)?;
    *rest = tail;
    let (major, info) = (initial >> 5, initial & 0x1f);
    // False, true and null are the only simple values in use.
    if major == 7 {
        return if matches!(info, 20..=22) {
            Ok(Item::Leaf)
        } else {
            Err(DecodeError::Unused(initial))
        };
    }
    let argument = match info {
        0..=23 => u64::from(info),
        24..=27 => read_argument(rest, 1 << (info - 24))?,
        _ => return Err(DecodeError::Unused(initial)),
    };
    match major {
        0 => Ok(Item::Leaf),
        2 => skip(rest, argument, BYTES_LEN_MAX),
        3 => skip(rest, argument, TEXT_LEN_MAX),
        4 if argument > ARRAY_ITEMS_MAX => Err(DecodeError::TooLarge(argument)),
        // Each item takes at least a byte, so a count beyond what is left is a lie.
        4 if argument > rest.len() as u64 => Err(DecodeError::Truncated),
        4 => Ok(Item::Array(argument)),
        _ => Err(DecodeError::Unused(initial)),
    }
}

fn read_argument(rest: &mut &[u8], len: usize) -> Result<u64, DecodeError> {
    let (bytes, tail) = rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *rest = tail;
    Ok(bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn skip(rest: &mut &[u8], len: u64, len_max: u64) -> Result<Item, DecodeError> {
    if len > len_max {
        return Err(DecodeError::TooLarge(len));
    }
    let len = usize::try_from(len).map_err(|_| DecodeError::TooLarge(len))?;
    *rest = rest.get(len..).ok_or(DecodeError::Truncated)?;
    Ok(Item::Leaf)
}

/// A message with its length before it, ready for a stream.
pub fn encode_frame<T: Encode<()>>(message: &T) -> Vec<u8> {
    let body = encode(message);
    let len = u32::try_from(body.len()).expect("no message reaches 4 GiB");
    let mut frame = Vec::with_capacity(FRAME_HEADER_LEN + body.len());
    frame.extend_from_slice(&len.to_be_bytes());
    frame.extend_from_slice(&body);
    frame
}

/// Cuts a byte stream into frames: push what was read, then take frames until there is none.
///
/// Memory is taken for bytes that arrived, never for a length that was only announced. A length beyond the bound is
/// an error for good: nothing after it can be trusted.
#[derive(Debug)]
pub struct FrameDecoder {
    len_max: usize,
    buffer: Vec<u8>,
    taken: usize,
}

impl FrameDecoder {
    /// A decoder for frames of at most `len_max` bytes each.
    pub fn new(len_max: usize) -> Self {
        Self {
            len_max,
            buffer: Vec::new(),
            taken: 0,
        }
    }

    /// Adds bytes read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's content, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`] when the peer announces more than the bound; close the connection.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, DecodeError> {
        let rest = &self.buffer[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*header) as usize;
        if len > self.len_max && on(Check::MessageSize) {
            return Err(DecodeError::TooLong { len, max: self.len_max });
        }
        if rest.len() < len {
            return Ok(None);
        }
        let begin = self.taken + FRAME_HEADER_LEN;
        self.taken = begin + len;
        Ok(Some(&self.buffer[begin..self.taken]))
    }

    /// The next whole message, or `None` until more bytes are pushed.
    ///
    /// # Errors
    /// Whatever [`decode`] or [`FrameDecoder::next_frame`] refuse; close the connection.
    pub fn next_message<T>(&mut self) -> Result<Option<T>, DecodeError>
    where
        T: Encode<()> + for<'b> Decode<'b, ()>,
    {
        let len_max = self.len_max;
        self.next_frame()?.map(|frame| decode(frame, len_max)).transpose()
    }

    /// True if part of a frame has arrived: a stream that ends now was cut off.
    pub fn is_mid_frame(&self) -> bool {
        self.taken < self.buffer.len()
    }
}

/// The highest version that both sides speak, each given as lowest and highest.
///
/// # Errors
/// [`Code::Version`] if there is none.
pub fn negotiate(theirs: (u16, u16), ours: (u16, u16)) -> Result<u16, Refusal> {
    let version = theirs.1.min(ours.1);
    if version >= theirs.0.max(ours.0) {
        return Ok(version);
    }
    let text = format!(
        "the peer speaks versions {} to {}, this side {} to {}: upgrade the older of the two",
        theirs.0, theirs.1, ours.0, ours.1
    );
    Err(Refusal::new(Code::Version, text))
}

#[cfg(test)]
mod tests;
