//! What the DPU must not forget: desired state, bindings and high-water marks, as one checksummed file.
//!
//! Every save has a number, and a second, tiny file holds the highest number that was saved. So a file that is whole
//! but old (a backup put back, a disk that lost a write) is told from the newest one and refused like a damaged one: it
//! could name grants that were revoked since.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use outboard_protocol::card_side::RECORD_LEN_MAX;

use crate::{
    durable::{self, Steps},
    tls::sha256,
};

/// Largest state, in bytes.
pub const STATE_LEN_MAX: usize = RECORD_LEN_MAX;

const STATE_MAGIC: &[u8; 22] = b"outboard-dpu state v1\n";
const MARK_MAGIC: &[u8; 22] = b"outboard-dpu mark  v1\n";
const MAGIC_LEN: usize = 22;
const SEQ_LEN: usize = 8;
const CHECKSUM_LEN: usize = 32;
const OVERHEAD_LEN: usize = MAGIC_LEN + SEQ_LEN + CHECKSUM_LEN;

/// Why a state file is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Too short, another magic, or a checksum that is not that of the content.
    #[error("it is truncated or its checksum is wrong")]
    Checksum,
    /// Longer than any state.
    #[error("it is longer than {STATE_LEN_MAX} bytes")]
    TooLong,
    /// Older than the newest state that was saved.
    #[error("it is save number {found}, but number {newest} was made: an old copy was put back")]
    RolledBack {
        /// Number of the file.
        found: u64,
        /// Number of the newest save.
        newest: u64,
    },
    /// The file that tells the newest save's number cannot be used.
    #[error("the file that tells which save is the newest is missing or damaged")]
    NoMark,
    /// Whole, but not understood.
    #[error("its content is not understood: {0}")]
    Content(String),
}

/// What was found at start.
#[derive(Debug, PartialEq, Eq)]
pub enum Loaded {
    /// No state was ever saved here.
    Fresh,
    /// The newest state.
    State(Vec<u8>),
    /// A file that is not used.
    Damaged(Damage),
}

/// The state file of one state directory.
#[derive(Debug)]
pub struct StateFile {
    state_path: PathBuf,
    mark_path: PathBuf,
    seq: u64,
}

impl StateFile {
    /// Reads what `directory` holds. Errors are of the disk only; a file that cannot be used is no error.
    pub fn open(directory: &Path) -> io::Result<(Self, Loaded)> {
        let (state_path, mark_path) = (directory.join("state"), directory.join("state.mark"));
        let (state, mark) = (read(&state_path)?, read(&mark_path)?);
        let (seq, loaded) = judge(state.as_deref(), mark.as_deref());
        Ok((
            Self {
                state_path,
                mark_path,
                seq,
            },
            loaded,
        ))
    }

    /// Makes `payload` the state that the next start finds. After an error the old one or the new one may be found.
    pub fn save(&mut self, payload: &[u8]) -> io::Result<()> {
        if payload.len() > STATE_LEN_MAX {
            return Err(io::Error::other(format!(
                "a state of {} bytes is more than {STATE_LEN_MAX}",
                payload.len()
            )));
        }
        // A number is used once, even if saving fails half-way.
        self.seq = self.seq.saturating_add(1);
        let (state_path, mark_path) = (&self.state_path, &self.mark_path);
        save(
            &mut durable::OnDisk::new(state_path)?,
            &mut durable::OnDisk::new(mark_path)?,
            self.seq,
            payload,
        )
    }

    /// Keeps a file that is not used for whoever wants to look at it. Where it is now.
    pub fn set_aside(&self, unix_s: u64) -> io::Result<PathBuf> {
        let aside = self.state_path.with_file_name(format!("state.damaged-{unix_s}"));
        match fs::rename(&self.state_path, &aside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(aside),
        }
    }

    /// Where the state is.
    pub fn path(&self) -> &Path {
        &self.state_path
    }
}

/// First the state, then the mark: a crash in between leaves a state that is newer than its mark, which is fine.
fn save(state: &mut impl Steps, mark: &mut impl Steps, seq: u64, payload: &[u8]) -> io::Result<()> {
    durable::replace(state, &seal(STATE_MAGIC, seq, payload))?;
    durable::replace(mark, &seal(MARK_MAGIC, seq, &[]))
}

fn seal(magic: &[u8; MAGIC_LEN], seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OVERHEAD_LEN + payload.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&seq.to_be_bytes());
    bytes.extend_from_slice(payload);
    let checksum = sha256(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

fn unseal<'a>(magic: &[u8; MAGIC_LEN], bytes: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM_LEN)?)?;
    if sha256(content) != *checksum {
        return None;
    }
    let (seq, payload) = content.strip_prefix(magic)?.split_first_chunk::<SEQ_LEN>()?;
    Some((u64::from_be_bytes(*seq), payload))
}

/// The highest number in use, and what to make of the files.
fn judge(state: Option<&[u8]>, mark: Option<&[u8]>) -> (u64, Loaded) {
    let marked = mark.and_then(|bytes| unseal(MARK_MAGIC, bytes)).map(|(seq, _)| seq);
    let newest = marked.unwrap_or(0);
    let Some(bytes) = state else {
        // A state that was saved once and is gone is a damaged one: the marks in it are lost.
        let loaded = if mark.is_none() {
            Loaded::Fresh
        } else {
            Loaded::Damaged(Damage::Checksum)
        };
        return (newest, loaded);
    };
    if bytes.len() > STATE_LEN_MAX + OVERHEAD_LEN {
        return (newest, Loaded::Damaged(Damage::TooLong));
    }
    let Some((seq, payload)) = unseal(STATE_MAGIC, bytes) else {
        return (newest, Loaded::Damaged(Damage::Checksum));
    };
    match marked {
        // The very first save was cut off before its mark.
        None if mark.is_none() && seq == 1 => (seq, Loaded::State(payload.to_vec())),
        None => (seq, Loaded::Damaged(Damage::NoMark)),
        Some(newest) if seq < newest => (newest, Loaded::Damaged(Damage::RolledBack { found: seq, newest })),
        Some(_) => (seq, Loaded::State(payload.to_vec())),
    }
}

/// The file's bytes, one more than allowed at most; none if there is no file.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut bytes = Vec::new();
    let bound = STATE_LEN_MAX + OVERHEAD_LEN + 1;
    file.take(bound as u64).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
#[path = "state_file_tests.rs"]
mod tests;
