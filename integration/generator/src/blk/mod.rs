//! The block driver.

pub mod content;
pub mod disk;
pub mod places;
pub mod run;

use crate::{args::BlkArgs, error::Error, meter, report::Report};

/// Bytes of a sector (virtio 1.3 §5.2).
pub const SECTOR_LEN: u64 = 512;
const BLOCK_MAX: u32 = 4 << 20;
const DEPTH_MAX: u16 = 1024;

/// Runs `blk`.
///
/// # Errors
/// There is no result.
pub fn run(args: &BlkArgs) -> Result<(Report, Option<Error>), Error> {
    check(args)?;
    if let Some(core) = args.common.core {
        meter::pin(core)?;
    }
    run::run(args, disk::Disk::open(args)?)
}

fn check(args: &BlkArgs) -> Result<(), Error> {
    let usage = |text: String| Err(Error::Usage(text));
    if args.block == 0 || !u64::from(args.block).is_multiple_of(SECTOR_LEN) || args.block > BLOCK_MAX {
        return usage(format!("--block must be a multiple of {SECTOR_LEN}, up to {BLOCK_MAX}"));
    }
    if args.depth == 0 || args.depth > DEPTH_MAX {
        return usage(format!("--depth must be 1 to {DEPTH_MAX}"));
    }
    if !args.queue_size.is_power_of_two() || args.queue_size < 4 || args.queue_size > 32_768 {
        return usage("--queue-size must be a power of two, 4 to 32768".into());
    }
    if args.verify && args.block < 512 {
        return usage("--verify needs blocks of at least 512 bytes".into());
    }
    Ok(())
}
