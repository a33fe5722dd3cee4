//! What a guest may rely on about its disk: for each block, the version that was acknowledged last, and the one that a
//! flush acknowledged.
//!
//! A block's bytes tell which block it is and which version, so that whatever is read later can be judged: a version that
//! was never written there, a torn block, or one older than what was promised is a loss.

/// Bytes in a block.
pub const BLOCK_LEN: usize = 4096;

/// Versions of every block of a volume. Version 0 is zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger(Vec<Versions>);

/// What is known about one block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Versions {
    /// Submitted last; every lower number was submitted too.
    submitted: u64,
    /// The last whose write was acknowledged.
    acknowledged: u64,
    /// The last that a flush covered which was acknowledged.
    flushed: u64,
}

/// What a flush covers that begins now.
#[derive(Debug, Clone)]
pub struct Covered(Vec<u64>);

/// A block does not hold what was promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Its bytes are no version of this block.
    #[error("block {block} is torn or belongs elsewhere: it begins with {begins:02x?}")]
    Torn {
        /// The block.
        block: usize,
        /// Its first bytes.
        begins: Vec<u8>,
    },
    /// It holds an older version than was promised, or one that was never written.
    #[error("block {block} holds version {found}; {least} was promised and {most} is the newest that was written")]
    Version {
        /// The block.
        block: usize,
        /// The version found.
        found: u64,
        /// The least that it may be.
        least: u64,
        /// The most that it may be.
        most: u64,
    },
}

impl Ledger {
    /// A volume of `blocks` blocks of zeros.
    pub fn new(blocks: usize) -> Self {
        Self(vec![Versions::default(); blocks])
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        self.0.len()
    }

    /// The bytes of the next version of a block, which is about to be written.
    pub fn submit(&mut self, block: usize) -> Vec<u8> {
        self.0[block].submitted += 1;
        bytes(block, self.0[block].submitted)
    }

    /// The write submitted last to this block was acknowledged.
    pub fn acknowledge(&mut self, block: usize) {
        self.0[block].acknowledged = self.0[block].submitted;
    }

    /// What a flush covers that is submitted now.
    pub fn begin_flush(&self) -> Covered {
        Covered(self.0.iter().map(|block| block.acknowledged).collect())
    }

    /// That flush was acknowledged.
    pub fn acknowledge_flush(&mut self, covered: &Covered) {
        for (block, version) in self.0.iter_mut().zip(&covered.0) {
            block.flushed = block.flushed.max(*version);
        }
    }

    /// How many blocks a flush has covered.
    pub fn flushed_blocks(&self) -> usize {
        self.0.iter().filter(|block| block.flushed > 0).count()
    }

    /// Judges what a read of a block gave, with no write of it in flight since `self` was taken.
    pub fn check_read(&self, block: usize, bytes: &[u8]) -> Result<(), Loss> {
        check(block, bytes, self.0[block].acknowledged, self.0[block].submitted)
    }

    /// Judges what is left of the volume after the power failed: at least what was promised by now, and nothing newer
    /// than what `newest`, which was taken after the failure, says was written.
    pub fn check_survivors(&self, image: &[u8], newest: &Self) -> Result<(), Loss> {
        let versions = self.0.iter().zip(&newest.0);
        for (block, ((promised, newest), bytes)) in versions.zip(image.chunks(BLOCK_LEN)).enumerate() {
            check(block, bytes, promised.flushed, newest.submitted)?;
        }
        Ok(())
    }
}

/// A block's bytes in a version: both numbers, over and over, so that a tear shows.
fn bytes(block: usize, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK_LEN];
    }
    // no platform that this runs on has more than 64 bits of address
    let pair = [(block as u64).to_le_bytes(), version.to_le_bytes()].concat();
    pair.repeat(BLOCK_LEN / pair.len())
}

fn check(block: usize, found: &[u8], least: u64, most: u64) -> Result<(), Loss> {
    let version = found
        .get(8..16)
        .and_then(|word| word.try_into().ok())
        .map_or(0, u64::from_le_bytes);
    if found != bytes(block, version) {
        let begins = found.iter().take(16).copied().collect();
        return Err(Loss::Torn { block, begins });
    }
    if (least..=most).contains(&version) {
        return Ok(());
    }
    Err(Loss::Version {
        block,
        found: version,
        least,
        most,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_promises_what_was_acknowledged_before_it_began() {
        let mut ledger = Ledger::new(2);
        let first = ledger.submit(0);
        ledger.acknowledge(0);
        let covered = ledger.begin_flush();
        let second = ledger.submit(1);
        ledger.acknowledge(1);
        ledger.acknowledge_flush(&covered);
        let zeros = vec![0; BLOCK_LEN];
        let image = |one: &[u8], two: &[u8]| [one, two].concat();
        assert_eq!(ledger.check_survivors(&image(&first, &second), &ledger), Ok(()));
        assert_eq!(ledger.check_survivors(&image(&first, &zeros), &ledger), Ok(()));
        assert!(matches!(
            ledger.check_survivors(&image(&zeros, &second), &ledger),
            Err(Loss::Version {
                block: 0,
                found: 0,
                least: 1,
                ..
            })
        ));
    }

    #[test]
    fn torn_misplaced_and_foreign_blocks_are_told() {
        let mut ledger = Ledger::new(2);
        let mut block = ledger.submit(1);
        ledger.acknowledge(1);
        assert_eq!(ledger.check_read(1, &block), Ok(()));
        assert!(matches!(ledger.check_read(0, &block), Err(Loss::Torn { block: 0, .. })));
        block[BLOCK_LEN - 1] ^= 1;
        assert!(matches!(ledger.check_read(1, &block), Err(Loss::Torn { block: 1, .. })));
        assert!(matches!(
            ledger.check_read(1, &bytes(1, 2)),
            Err(Loss::Version { found: 2, most: 1, .. })
        ));
    }
}
