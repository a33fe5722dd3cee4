//! Reads the record that a test build of `outboard-dpu` leaves beside a volume (`dpu-side/storage/src/file/recorder.rs`
//! has the format), and rebuilds what a power cut would have left of the volume.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Bytes before an entry's data.
const HEAD_LEN: usize = 24;

/// A volume as a power cut would have left it, and what went into that.
#[derive(Debug, Default)]
pub struct Survivors {
    /// The volume's bytes.
    pub image: Vec<u8>,
    /// Writes that were completed.
    pub writes: u64,
    /// Syncs that ended well.
    pub syncs: u64,
    /// How often the volume was opened.
    pub openings: u64,
}

/// The record of one volume, read bit by bit.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    name: String,
    survivors: Survivors,
    pending: Vec<Write>,
}

impl Record {
    /// Of the volume in file `name`, which has `size` bytes and began as zeros; its record is in `folder`.
    pub fn new(folder: &Path, name: &str, size: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            survivors: Survivors {
                image: vec![0; size],
                ..Survivors::default()
            },
            pending: Vec::new(),
        }
    }

    /// Takes in, and deletes, what has been recorded since this was called last: what would have survived a power cut now.
    /// Nobody may be writing it.
    pub fn take(&mut self) -> io::Result<&Survivors> {
        for file in self.read()? {
            fs::remove_file(file)?;
        }
        Ok(&self.survivors)
    }

    /// Reads every file there is, in their order; which they are.
    fn read(&mut self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if file.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with('.')) {
                files.push(path);
            }
        }
        files.sort();
        for file in &files {
            self.survivors.openings += 1;
            replay(file, &mut self.survivors, &mut self.pending)?;
        }
        Ok(files)
    }
}

/// Rebuilds volume `name` of `size` bytes, which began as zeros, from those writes alone that a successful sync covered.
pub fn survivors(folder: &Path, name: &str, size: usize) -> io::Result<Survivors> {
    let mut record = Record::new(folder, name, size);
    record.read()?;
    Ok(record.survivors)
}

/// A completed write that no sync has covered yet.
#[derive(Debug)]
struct Write {
    offset: usize,
    data: Vec<u8>,
}

fn replay(file: &PathBuf, survivors: &mut Survivors, pending: &mut Vec<Write>) -> io::Result<()> {
    let bytes = fs::read(file)?;
    let mut rest = &bytes[..];
    // how many of the pending writes the sync that runs covers
    let mut covered = None;
    // what a process that was killed left of its last entry is no entry
    while let Some((head, after)) = rest.split_first_chunk::<HEAD_LEN>() {
        let word = |at: usize| {
            let word = head[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
            usize::try_from(word).map_err(io::Error::other)
        };
        let (offset, len) = (word(8)?, word(16)?);
        rest = after;
        match head[0] {
            b'W' => {
                let Some((data, after)) = rest.split_at_checked(len) else {
                    break;
                };
                rest = after;
                survivors.writes += 1;
                let data = data.to_vec();
                pending.push(Write { offset, data });
            }
            b'Z' => pending.push(Write {
                offset,
                data: vec![0; len],
            }),
            b'S' => covered = Some(pending.len()),
            b'D' => {
                let covered = covered
                    .take()
                    .ok_or_else(|| io::Error::other("a sync ended that never began"))?;
                survivors.syncs += 1;
                for Write { offset, data } in pending.drain(..covered) {
                    let place = survivors.image.get_mut(offset..offset + data.len());
                    place
                        .ok_or_else(|| io::Error::other("a write beyond the volume"))?
                        .copy_from_slice(&data);
                }
            }
            other => return Err(io::Error::other(format!("{}: entry {other:#x}", file.display()))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u8, offset: u64, data: &[u8]) -> Vec<u8> {
        let len = data.len() as u64;
        [
            &[kind, 0, 0, 0, 0, 0, 0, 0][..],
            &offset.to_le_bytes(),
            &len.to_le_bytes(),
            data,
        ]
        .concat()
    }

    #[test]
    fn only_what_a_sync_covered_survives() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let whole = entry(b'W', 3, &[4]);
        let first = [
            entry(b'W', 0, &[1]),
            entry(b'S', 0, &[]),
            entry(b'W', 1, &[2]),
            entry(b'D', 0, &[]),
            entry(b'W', 2, &[3]),
            whole[..whole.len() - 1].to_vec(),
        ];
        fs::write(folder.path().join("disk.000000"), first.concat())?;
        assert_eq!(survivors(folder.path(), "disk", 4)?.image, [1, 0, 0, 0]);
        // the next process syncs what the first one had written; its own last sync never ended
        let second = [
            entry(b'S', 0, &[]),
            entry(b'D', 0, &[]),
            entry(b'W', 3, &[9]),
            entry(b'S', 0, &[]),
        ];
        fs::write(folder.path().join("disk.000001"), second.concat())?;
        fs::write(folder.path().join("disk2.000000"), entry(b'W', 0, &[7]))?;
        let found = survivors(folder.path(), "disk", 4)?;
        assert_eq!(found.image, [1, 2, 3, 0]);
        assert_eq!((found.writes, found.syncs, found.openings), (4, 2, 2));

        // taken bit by bit it is the same
        let mut record = Record::new(folder.path(), "disk", 4);
        assert_eq!(record.take()?.image, [1, 2, 3, 0]);
        fs::write(
            folder.path().join("disk.000000"),
            [entry(b'S', 0, &[]), entry(b'D', 0, &[])].concat(),
        )?;
        assert_eq!(record.take()?.image, [1, 2, 3, 9]);
        Ok(())
    }
}
