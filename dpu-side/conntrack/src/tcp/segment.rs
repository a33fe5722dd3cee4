//! A TCP segment's header, as far as tracking a connection needs it (RFC 9293 §3.1).

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK.
pub const ACK: u8 = 0x10;
/// URG.
pub const URG: u8 = 0x20;

const HEADER_LEN_MIN: usize = 20;
/// The largest shift of a window (RFC 7323 §2.3).
const SCALE_MAX: u8 = 14;

/// Why a TCP header can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer than 20 bytes, or fewer than its data offset says.
    #[error("guest gave a TCP header cut short: send whole headers")]
    Short,
    /// The data offset is below 5, or beyond the segment's end.
    #[error("guest gave a TCP data offset outside the segment: check what builds the frame")]
    DataOffset,
    /// A combination of flags that no TCP sends.
    #[error("guest gave TCP flags that contradict each other: check what builds the frame")]
    Flags,
}

/// A TCP segment: its header's fields, and how much data follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    /// [`FIN`] to [`URG`].
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number; means something with [`ACK`] only.
    pub acknowledgement: u32,
    /// The window as sent, not scaled.
    pub window: u16,
    /// Bytes of data; an uncut segment of up to 64 KiB counts whole.
    pub data_len: u32,
    /// The options' bytes.
    pub options: &'a [u8],
}

/// What a SYN's options offer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub scale: Option<u8>,
    pub selective_ack: bool,
}

/// What kind of segment it is, by its flags; the first that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    None = 0,
    Syn = 1,
    SynAck = 2,
    Fin = 3,
    Ack = 4,
    Reset = 5,
}

impl Kind {
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            1 => Self::Syn,
            2 => Self::SynAck,
            3 => Self::Fin,
            4 => Self::Ack,
            5 => Self::Reset,
            _ => Self::None,
        }
    }
}

impl<'a> Segment<'a> {
    /// Read the header in `bytes`, which start with it, of a segment that is `segment_len` bytes long with header and
    /// data (the IP payload). `bytes` may end before the data does, not before the options do.
    #[inline]
    pub fn read(bytes: &'a [u8], segment_len: usize) -> Result<Self, Malformed> {
        let Some((fixed, rest)) = bytes.split_first_chunk::<HEADER_LEN_MIN>() else {
            return Err(Malformed::Short);
        };
        let header_len = usize::from(fixed[12] >> 4) * 4;
        let Some(options_len) = header_len.checked_sub(HEADER_LEN_MIN) else {
            return Err(Malformed::DataOffset);
        };
        let Some(data_len) = segment_len.checked_sub(header_len) else {
            return Err(Malformed::DataOffset);
        };
        let Some(options) = rest.get(..options_len) else {
            return Err(Malformed::Short);
        };
        let flags = fixed[13] & (FIN | SYN | RST | PSH | ACK | URG);
        if !are_sane(flags) {
            return Err(Malformed::Flags);
        }
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        Ok(Self {
            flags,
            sequence: word(4),
            acknowledgement: word(8),
            window: u16::from_be_bytes([fixed[14], fixed[15]]),
            data_len: u32::try_from(data_len).map_err(|_| Malformed::DataOffset)?,
            options,
        })
    }

    pub(crate) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline]
    pub(crate) const fn kind(&self) -> Kind {
        if self.has(RST) {
            Kind::Reset
        } else if self.has(SYN) {
            if self.has(ACK) { Kind::SynAck } else { Kind::Syn }
        } else if self.has(FIN) {
            Kind::Fin
        } else if self.has(ACK) {
            Kind::Ack
        } else {
            Kind::None
        }
    }

    /// The sequence number after its last byte; SYN and FIN count as one each.
    #[inline]
    pub(crate) fn end(&self) -> u32 {
        self.sequence
            .wrapping_add(self.data_len)
            .wrapping_add(u32::from(self.has(SYN)))
            .wrapping_add(u32::from(self.has(FIN)))
    }

    /// What a SYN offers. Options cut short end the list.
    pub(crate) fn offer(&self) -> Offer {
        let mut offer = Offer::default();
        for (kind, value) in Options(self.options) {
            match (kind, value) {
                (4, []) => offer.selective_ack = true,
                (3, [shift]) => offer.scale = Some((*shift).min(SCALE_MAX)),
                _ => {}
            }
        }
        offer
    }

    /// The highest sequence number that it acknowledges, selectively or not (RFC 2018 §3).
    #[inline]
    pub(crate) fn highest_acknowledged(&self) -> u32 {
        // Nearly always: no options, or two of padding and a timestamp.
        if self.options.is_empty() || (self.options.len() == 12 && self.options[..4] == [1, 1, 8, 10]) {
            return self.acknowledgement;
        }
        self.highest_in_options()
    }

    fn highest_in_options(&self) -> u32 {
        let mut highest = self.acknowledgement;
        for (kind, value) in Options(self.options) {
            if kind != 5 || !value.len().is_multiple_of(8) {
                continue;
            }
            for block in value.chunks_exact(8) {
                let right = u32::from_be_bytes([block[4], block[5], block[6], block[7]]);
                if super::window::is_after(right, highest) {
                    highest = right;
                }
            }
        }
        highest
    }
}

const fn are_sane(flags: u8) -> bool {
    matches!(
        flags & !PSH,
        SYN | 0x22 | 0x12 | RST | 0x14 | 0x11 | 0x31 | ACK | 0x30 // SYN+URG, SYN+ACK, RST+ACK, FIN+ACK, FIN+ACK+URG, ACK+URG
    )
}

/// The options of a header, as (kind, value).
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match *self.0 {
                [] | [0, ..] => return None,
                [1, ref rest @ ..] => self.0 = rest,
                [kind, len, ref rest @ ..] => {
                    let value_len = usize::from(len).checked_sub(2)?;
                    let (value, rest) = rest.split_at_checked(value_len)?;
                    self.0 = rest;
                    return Some((kind, value));
                }
                [_] => return None,
            }
        }
    }
}
