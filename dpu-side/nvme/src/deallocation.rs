//! Dataset Management commands that are being carried out, range by range.

use outboard_storage::RANGE_LEN_MAX;

use crate::{
    namespace::LBA_LEN,
    spec::{RANGE_COUNT_MAX, Range},
};

/// Commands that are carried out at once. More wait: discarding is nobody's hurry.
const JOB_COUNT: usize = 8;
/// Blocks that are discarded by one request to the backend.
const PIECE_BLOCKS_MAX: u64 = RANGE_LEN_MAX / LBA_LEN;

/// Room for the commands, allocated once.
pub(crate) struct Deallocations(Box<[Job]>);

/// A command, and how far it is.
struct Job {
    cid: Option<u16>,
    ranges: [Range; RANGE_COUNT_MAX],
    count: usize,
    /// The range that is being done.
    index: usize,
    /// Blocks of it that are done, or in a request.
    done: u64,
}

/// A piece of a range, for one request to the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) slba: u64,
    pub(crate) block_count: u64,
}

impl Deallocations {
    pub(crate) fn new() -> Self {
        let job = || Job {
            cid: None,
            ranges: [Range::default(); RANGE_COUNT_MAX],
            count: 0,
            index: 0,
            done: 0,
        };
        Self((0..JOB_COUNT).map(|_| job()).collect())
    }

    /// Is there room for one more command?
    pub(crate) fn has_room(&self) -> bool {
        self.0.iter().any(|job| job.cid.is_none())
    }

    /// Begin a command, whose ranges were checked. Its first piece; none if no range has a block, and then it is over.
    pub(crate) fn begin(&mut self, cid: u16, ranges: &[Range]) -> Option<Piece> {
        let job = self.0.iter_mut().find(|job| job.cid.is_none())?;
        let count = ranges.len().min(RANGE_COUNT_MAX);
        job.ranges[..count].copy_from_slice(&ranges[..count]);
        (job.count, job.index, job.done) = (count, 0, 0);
        job.cid = Some(cid);
        self.next(cid)
    }

    /// The next piece of a command. None: it is over.
    pub(crate) fn next(&mut self, cid: u16) -> Option<Piece> {
        let job = self.0.iter_mut().find(|job| job.cid == Some(cid))?;
        let piece = job.next();
        if piece.is_none() {
            job.cid = None;
        }
        piece
    }

    /// Give a command up.
    pub(crate) fn end(&mut self, cid: u16) {
        if let Some(job) = self.0.iter_mut().find(|job| job.cid == Some(cid)) {
            job.cid = None;
        }
    }
}

impl Job {
    fn next(&mut self) -> Option<Piece> {
        while let Some(range) = self.ranges[..self.count].get(self.index) {
            let left = u64::from(range.block_count) - self.done;
            if left == 0 {
                (self.index, self.done) = (self.index + 1, 0);
                continue;
            }
            let piece = Piece {
                slba: range.slba + self.done,
                block_count: left.min(PIECE_BLOCKS_MAX),
            };
            self.done += piece.block_count;
            return Some(piece);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(jobs: &mut Deallocations, cid: u16, ranges: &[Range]) -> Vec<Piece> {
        let mut pieces: Vec<_> = jobs.begin(cid, ranges).into_iter().collect();
        if !pieces.is_empty() {
            pieces.extend(std::iter::from_fn(|| jobs.next(cid)));
        }
        pieces
    }

    #[test]
    fn there_is_room_for_so_many_and_again_when_they_are_over() {
        let mut jobs = Deallocations::new();
        let range = Range {
            slba: 0,
            block_count: 1,
        };
        for cid in 0..8 {
            assert!(jobs.has_room() && jobs.begin(cid, &[range]).is_some());
        }
        assert!(!jobs.has_room());
        assert_eq!(jobs.next(3), None);
        assert!(jobs.has_room());
        assert!(jobs.begin(3, &[range]).is_some() && !jobs.has_room());
        jobs.end(5);
        assert!(jobs.has_room());
        assert_eq!(jobs.begin(9, &[Range::default(); 256]), None);
        assert!(jobs.has_room(), "a command without blocks is over at once");
    }

    proptest! {
        /// The pieces are the ranges, in order, none of them long.
        #[test]
        fn pieces_are_the_ranges(ranges in proptest::collection::vec(
            (0u64..1 << 40, prop_oneof![0u32..10, 0u32..1_000_000]), 1..256,
        )) {
            let ranges: Vec<Range> =
                ranges.into_iter().map(|(slba, block_count)| Range { slba, block_count }).collect();
            let mut jobs = Deallocations::new();
            let mut pieces = pieces(&mut jobs, 7, &ranges).into_iter();
            for range in ranges {
                let (mut slba, mut left) = (range.slba, u64::from(range.block_count));
                while left > 0 {
                    let piece = pieces.next().expect("all of it is done");
                    prop_assert!(piece.slba == slba && (1..=65_536).contains(&piece.block_count));
                    slba += piece.block_count;
                    left -= piece.block_count;
                }
            }
            prop_assert_eq!(pieces.next(), None);
            prop_assert!(jobs.has_room());
        }
    }
}
