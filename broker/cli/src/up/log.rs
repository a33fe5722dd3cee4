//! Daemons' logs: kept over runs, bounded, and quoted when a daemon dies.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// A log longer than this when its daemon starts is put aside, as `NAME.log.old`. In bytes.
const LOG_LEN_MAX: u64 = 16 << 20;

/// How much of a log's end is looked at, in bytes.
const TAIL_LEN_MAX: u64 = 16 << 10;

/// Lines quoted of a daemon that died.
const TAIL_LINES_MAX: usize = 15;

/// A daemon's log of this run.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
    /// Where this run's part begins, in bytes.
    start: u64,
}

impl Log {
    /// Opens a log to append to it.
    ///
    /// # Errors
    /// It cannot be made, or put aside.
    pub fn open(path: &Path) -> io::Result<(Self, File)> {
        if std::fs::metadata(path).is_ok_and(|found| found.len() > LOG_LEN_MAX) {
            std::fs::rename(path, path.with_extension("log.old"))?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let start = file.metadata()?.len();
        Ok((
            Self {
                path: path.to_owned(),
                start,
            },
            file,
        ))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last lines of this run, without colours; what cannot be read is left out.
    pub fn tail(&self) -> Vec<String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(&self.path)?;
            let len = file.metadata()?.len();
            file.seek(SeekFrom::Start(self.start.max(len.saturating_sub(TAIL_LEN_MAX))))?;
            let mut text = Vec::new();
            file.take(TAIL_LEN_MAX).read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().unwrap_or_default();
        let text = plain(&String::from_utf8_lossy(&text));
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES_MAX)..]
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}

/// Leaves out terminal control sequences (ECMA-48 CSI) and other control characters.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.next_if_eq(&'[').is_some() {
            chars.find(|c| ('@'..='~').contains(c));
        } else if c == '\n' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_this_runs_last_lines_are_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.log");
        std::fs::write(&path, "of the run before\n").expect("written");
        let (log, mut file) = Log::open(&path).expect("opened");
        assert_eq!(log.tail(), Vec::<String>::new());
        for i in 0..20 {
            writeln!(file, "\u{1b}[31mline {i}\u{1b}[0m\u{7}\n").expect("written");
        }
        let tail = log.tail();
        assert_eq!(
            (tail.len(), tail[0].as_str(), tail[14].as_str()),
            (15, "line 5", "line 19")
        );
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.log");
        File::create(&path)
            .and_then(|f| f.set_len(LOG_LEN_MAX + 1))
            .expect("made");
        let (log, _) = Log::open(&path).expect("opened");
        assert_eq!((log.start, dir.path().join("x.log.old").exists()), (0, true));
    }
}
