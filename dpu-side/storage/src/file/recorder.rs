//! A record, beside a volume's file, of what was written to it and what a successful `fdatasync` covered. In test
//! builds only, and there only where `OUTBOARD_RECORD` names a folder for it.
//!
//! What survives when the power fails cannot be seen from a process that was killed, because the page cache outlives
//! it. From the record a test rebuilds the volume out of those writes alone that a sync covered.
//!
//! One file per opening, `NAME.NNNN` in their order. An entry is a letter, seven zeros, and two little-endian words:
//! `W`, first byte, length, then the data: a write that is completed, noted before the guest can learn of it · `Z`, first
//! byte, length: a range that reads as zeros · `S`: a sync begins · `D`: that sync ended well. A process that is killed
//! may leave half an entry at the end.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crate::Request;

/// Notes what happens to one volume.
pub(super) struct Recorder(Option<File>);

impl Recorder {
    /// No record.
    pub(super) fn off() -> Self {
        Self(None)
    }

    /// A record for the volume in `path`, if records are asked for.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let Some(folder) = env::var_os("OUTBOARD_RECORD") else {
            return Ok(Self(None));
        };
        fs::create_dir_all(&folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for number in 0..u32::MAX {
            let file = Path::new(&folder).join(format!("{name}.{number:06}"));
            match File::options().append(true).create_new(true).open(file) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return opened.map(|file| Self(Some(file))),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The request's data is in the file.
    pub(super) fn written(&mut self, request: &Request) {
        if self.0.is_none() {
            return;
        }
        let len = request.buffer.len();
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        match request.buffer.read_at(0, &mut data) {
            Ok(()) => self.note(b'W', request.offset, len, &data),
            Err(error) => self.fail(&error.to_string()),
        }
    }

    /// The range reads as zeros.
    pub(super) fn zeroed(&mut self, offset: u64, len: u64) {
        self.note(b'Z', offset, len, &[]);
    }

    /// A sync begins.
    pub(super) fn sync_begins(&mut self) {
        self.note(b'S', 0, 0, &[]);
    }

    /// It ended.
    pub(super) fn sync_ended(&mut self, well: bool) {
        if well {
            self.note(b'D', 0, 0, &[]);
        }
    }

    fn note(&mut self, kind: u8, offset: u64, len: u64, data: &[u8]) {
        let Some(file) = &mut self.0 else { return };
        let head = [
            &[kind, 0, 0, 0, 0, 0, 0, 0][..],
            &offset.to_le_bytes(),
            &len.to_le_bytes(),
        ]
        .concat();
        if let Err(error) = file.write_all(&[&head, data].concat()) {
            self.fail(&error.to_string());
        }
    }

    /// Stop recording: whoever reads the record finds that writes are missing.
    fn fail(&mut self, why: &str) {
        tracing::error!(why, "the record of a volume ends here");
        self.0 = None;
    }
}
