//! Which pages of a guest were written, for its live migration (vhost-user, "Migration").

use std::{
    fs::File,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    chain::Chain,
    file::{self, FileFault},
    mapping::Area,
};

/// Bytes of guest memory that one bit of a log stands for (vhost-user, "Migration").
pub const LOG_PAGE_LEN: u64 = 4096;
/// Bytes of guest memory that one byte of a log stands for.
const LOG_BYTE_SPAN: u64 = 8 * LOG_PAGE_LEN;
/// The longest log, in bytes: that of guest-physical addresses of 48 bits.
pub const LOG_LEN_MAX: u64 = (1 << 48) / LOG_BYTE_SPAN;

/// Why a dirty log was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// It cannot be mapped.
    #[error("host gave a dirty log that cannot be used: {0}")]
    File(#[from] FileFault),
    /// It has no bytes, or more than [`LOG_LEN_MAX`].
    #[error("host gave a dirty log of {len} bytes: it must have 1 to {LOG_LEN_MAX}")]
    Len {
        /// Its length in bytes.
        len: u64,
    },
    /// It has no bit for some of the memory that is logged.
    #[error("host gave a dirty log of {len} bytes, but memory up to {end:#x} needs {needed}: enlarge the log first")]
    TooSmall {
        /// Its length in bytes.
        len: u64,
        /// The first guest-physical address that need not be logged.
        end: u64,
        /// How long it should be, in bytes.
        needed: u64,
    },
}

/// A bitmap in memory of the host's: one bit for each page of guest-physical memory, from address 0 on.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Area,
}

impl DirtyLog {
    /// Map `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// The file is no memory file, or does not hold so many bytes.
    pub fn map(file: &File, offset: u64, len: u64) -> Result<Self, LogError> {
        if len == 0 || len > LOG_LEN_MAX {
            return Err(LogError::Len { len });
        }
        Ok(Self {
            bits: file::map_area(file, offset, len)?,
        })
    }

    /// Does it have a bit for each page below `end`?
    ///
    /// # Errors
    /// [`LogError::TooSmall`].
    pub fn check_covers(&self, end: u64) -> Result<(), LogError> {
        let (len, needed) = (self.bits.len() as u64, end.div_ceil(LOG_BYTE_SPAN));
        if needed > len {
            return Err(LogError::TooSmall { len, end, needed });
        }
        Ok(())
    }

    /// Mark the pages of `len` bytes from `addr` as written, after they were. What the log has no bit for is passed over.
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(before_end) = len.checked_sub(1) else { return };
        let last = addr.saturating_add(before_end) / LOG_PAGE_LEN;
        let mut page = addr / LOG_PAGE_LEN;
        while page <= last {
            let byte = page / 8;
            let last_here = last.min(8 * byte + 7);
            let mask = (u8::MAX << (page % 8)) & (u8::MAX >> (7 - last_here % 8));
            let Ok(at) = usize::try_from(byte) else { return };
            // Release: whoever takes the bit sees what was written before. Never left out where the bit stands
            // already, since it may be taken, and the page copied, before our bytes are seen.
            if !self.bits.set_bits(at, mask, Ordering::Release) {
                return;
            }
            page = 8 * byte + 8;
        }
    }

    /// Did the host take its memory away? Marks are lost from then on.
    #[inline]
    pub(crate) fn poisoned(&self) -> bool {
        self.bits.poisoned()
    }
}

/// How a ring logs.
#[derive(Debug, Clone)]
pub struct RingLog {
    /// Where.
    pub log: Arc<DirtyLog>,
    /// The guest-physical address under which writes to the used ring itself are logged, if they are.
    pub used_addr: Option<u64>,
}

impl RingLog {
    /// The first `len` writable bytes of a chain were written.
    #[cold]
    pub(crate) fn mark_chain(&self, chain: &Chain, len: u64) {
        let mut left = len;
        for segment in chain.writable() {
            if left == 0 {
                break;
            }
            let piece = left.min(segment.len.into());
            self.log.mark(segment.addr, piece);
            left -= piece;
        }
    }

    /// `len` bytes of the used ring from `offset` were written.
    #[cold]
    pub(crate) fn mark_used(&self, offset: usize, len: usize) {
        if let Some(start) = self.used_addr {
            self.log.mark(start.saturating_add(offset as u64), len as u64);
        }
    }
}

// Miri maps no files.
#[cfg(all(test, not(miri)))]
mod tests;
