//! Files that volumes are on: written once, so that no read meets a hole.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use super::Context;
use crate::{cases::Store, error::Failure};

/// Length of every volume: too long for the processor's caches, short enough to be written in a few seconds.
pub const VOLUME_LEN_BYTES: u64 = 512 << 20;
const CHUNK_LEN_BYTES: usize = 1 << 20;

/// The file for `store`, made if it is not there.
pub fn file(who: &str, context: &Context, store: Store) -> Result<PathBuf, Failure> {
    let folder = match store {
        Store::Disk => &context.disk_folder,
        _ => &context.memory_folder,
    };
    let path = folder.join("volume.raw");
    let remedy = format!("free {} MiB in {}", VOLUME_LEN_BYTES >> 20, folder.display());
    written(&path).map_err(|e| Failure::io(who, path.display(), &e, &remedy))?;
    Ok(path)
}

fn written(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|found| found.len() == VOLUME_LEN_BYTES) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path)?;
    let mut chunk = vec![0; CHUNK_LEN_BYTES];
    for number in 0..VOLUME_LEN_BYTES >> 20 {
        scramble(&mut chunk, number);
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

/// Content that no storage can compress or deduplicate (xorshift64, Marsaglia 2003).
fn scramble(chunk: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in chunk.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_differ_and_hold_no_zeros() {
        let (mut one, mut two) = (vec![0; 4096], vec![0; 4096]);
        scramble(&mut one, 1);
        scramble(&mut two, 2);
        assert_ne!(one, two);
        assert!(one.chunks(8).all(|word| word != [0; 8]));
    }
}
