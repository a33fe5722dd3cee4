//! How a file's ranges are discarded and zeroed, by what its file system can do.

use nix::{errno::Errno, libc};

use crate::Op;

/// A way to discard or zero a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Means {
    /// Give the range's room back: it reads as zeros from then on (`FALLOC_FL_PUNCH_HOLE`).
    Punch,
    /// Let the file system make zeros of it and keep its room (`FALLOC_FL_ZERO_RANGE`).
    ZeroRange,
    /// Write zeros.
    Zeros,
}

/// What a file can do, as far as it is known. Everything, until the kernel says otherwise.
#[derive(Debug)]
pub(super) struct Abilities {
    punch: bool,
    zero_range: bool,
}

impl Means {
    /// The mode of `fallocate`; none if it is not that call.
    pub(super) fn mode(self) -> Option<i32> {
        match self {
            Self::Punch => Some(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Self::ZeroRange => Some(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
            Self::Zeros => None,
        }
    }
}

impl Abilities {
    pub(super) fn new() -> Self {
        Self {
            punch: true,
            zero_range: true,
        }
    }

    /// How to begin. None: there is nothing that could be done, which is enough for a discard.
    pub(super) fn first(&self, op: Op) -> Option<Means> {
        self.best(op, &[Means::Punch, Means::ZeroRange, Means::Zeros])
    }

    /// How to go on after `failed` did with `errno`.
    ///
    /// # Errors
    /// Nothing else would help: it is no matter of what the file can do.
    pub(super) fn next(&mut self, op: Op, failed: Means, errno: Errno) -> Result<Option<Means>, Errno> {
        match errno {
            // What it never can, it is not asked again.
            Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV => match failed {
                Means::Punch => self.punch = false,
                Means::ZeroRange => self.zero_range = false,
                Means::Zeros => return Err(errno),
            },
            // A range that a block device's larger blocks do not fit.
            Errno::EINVAL if failed != Means::Zeros => {}
            errno => return Err(errno),
        }
        Ok(match failed {
            Means::Punch => self.best(op, &[Means::ZeroRange, Means::Zeros]),
            Means::ZeroRange | Means::Zeros => self.best(op, &[Means::Zeros]),
        })
    }

    fn best(&self, op: Op, means: &[Means]) -> Option<Means> {
        means.iter().copied().find(|means| match (means, op) {
            (Means::Punch, Op::Discard { .. } | Op::WriteZeroes { unmap: true, .. }) => self.punch,
            // Room that was not to be given back might not be there when it is written again.
            (Means::Punch, _) => false,
            (Means::ZeroRange, Op::WriteZeroes { .. }) => self.zero_range,
            (Means::Zeros, Op::WriteZeroes { .. }) => true,
            _ => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISCARD: Op = Op::Discard { len: 512 };

    fn zeroes(unmap: bool) -> Op {
        Op::WriteZeroes {
            len: 512,
            unmap,
            durable: false,
        }
    }

    #[test]
    fn a_file_that_can_do_nothing_is_asked_once_and_written() {
        let mut file = Abilities::new();
        assert_eq!(file.first(zeroes(true)), Some(Means::Punch));
        assert_eq!(
            file.next(zeroes(true), Means::Punch, Errno::EOPNOTSUPP),
            Ok(Some(Means::ZeroRange))
        );
        assert_eq!(
            file.next(zeroes(true), Means::ZeroRange, Errno::EOPNOTSUPP),
            Ok(Some(Means::Zeros))
        );
        assert_eq!(file.first(zeroes(true)), Some(Means::Zeros));
        assert_eq!(file.first(zeroes(false)), Some(Means::Zeros));
        assert_eq!(file.first(DISCARD), None, "which is all a discard promises");
    }

    #[test]
    fn room_is_given_back_only_where_that_was_asked_for() {
        let mut file = Abilities::new();
        assert_eq!(file.first(zeroes(false)), Some(Means::ZeroRange));
        // As on tmpfs.
        assert_eq!(
            file.next(zeroes(false), Means::ZeroRange, Errno::EOPNOTSUPP),
            Ok(Some(Means::Zeros))
        );
        assert_eq!(file.first(zeroes(true)), Some(Means::Punch));
        assert_eq!(file.first(DISCARD), Some(Means::Punch));
    }

    #[test]
    fn a_range_that_does_not_fit_says_nothing_about_the_next_one() {
        let mut file = Abilities::new();
        assert_eq!(file.next(DISCARD, Means::Punch, Errno::EINVAL), Ok(None));
        assert_eq!(
            file.next(zeroes(false), Means::ZeroRange, Errno::EINVAL),
            Ok(Some(Means::Zeros))
        );
        assert_eq!(file.first(DISCARD), Some(Means::Punch));
    }

    #[test]
    fn an_error_of_the_disk_is_an_error() {
        let mut file = Abilities::new();
        for errno in [Errno::EIO, Errno::ENOSPC, Errno::EINTR] {
            assert_eq!(file.next(zeroes(true), Means::Punch, errno), Err(errno));
        }
        assert_eq!(
            file.next(zeroes(true), Means::Zeros, Errno::EOPNOTSUPP),
            Err(Errno::EOPNOTSUPP)
        );
    }
}
