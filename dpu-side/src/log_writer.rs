//! Log lines go out on a thread of their own: whoever reads standard error may stop reading, and the worker that serves
//! all guests must not wait for him. Lines that find no room are lost, and their number is told.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant},
};

/// Lines that may wait. They are short; one is written by each event.
pub const LINES_MAX: usize = 4096;
/// Longest wait for the last lines when the program ends.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const FLUSH_RETRY: Duration = Duration::from_millis(10);

enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// Where log lines are written to; never waits.
#[derive(Clone)]
pub struct LogWriter {
    items: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl LogWriter {
    /// Lines go to `sink`.
    pub fn start(sink: impl Write + Send + 'static) -> io::Result<Self> {
        let (items, inbox) = sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&inbox, sink, &counted))?;
        Ok(Self { items, lost })
    }

    /// Waits until what was logged is written, but not for ever.
    pub fn flush_all(&self) {
        let end = Instant::now() + FLUSH_TIMEOUT;
        let (done, written) = sync_channel(1);
        let mut item = Item::Flush(done);
        while let Err(TrySendError::Full(back)) = self.items.try_send(item) {
            if Instant::now() >= end {
                return;
            }
            item = back;
            std::thread::sleep(FLUSH_RETRY);
        }
        // Who does not read loses the last lines.
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(inbox: &Receiver<Item>, mut sink: impl Write, lost: &AtomicU64) {
    for item in inbox {
        // There is nobody to tell if the log itself cannot be written.
        match item {
            Item::Line(line) => drop(sink.write_all(&line)),
            Item::Flush(done) => drop((sink.flush(), done.try_send(()))),
        }
        let lines = lost.swap(0, Ordering::Relaxed);
        if lines > 0 {
            let _ = writeln!(sink, "{lines} log lines were lost: they were written faster than read");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    #[test]
    fn a_reader_that_stops_holds_up_nobody_and_learns_what_it_missed() {
        let (reader, pipe) = io::pipe().unwrap();
        let mut log = LogWriter::start(pipe).unwrap();
        let line = [b'x'; 99].into_iter().chain([b'\n']).collect::<Vec<_>>();
        let (start, written) = (Instant::now(), 3 * LINES_MAX);
        for _ in 0..written {
            assert_eq!(log.write(&line).unwrap(), line.len());
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(log.lost.load(Ordering::Relaxed) > 0, "nobody reads");
        let reading =
            std::thread::spawn(move || BufReader::new(reader).lines().map(Result::unwrap).collect::<Vec<_>>());
        log.flush_all();
        drop(log);
        let lines = reading.join().unwrap();
        let told = |line: &String| {
            line.split_once(" log lines were lost")
                .map(|(n, _)| n.parse::<usize>().unwrap())
        };
        let lost: usize = lines.iter().filter_map(told).sum();
        let whole = lines.iter().filter(|line| line.len() == 99).count();
        assert_eq!(whole + lost, written);
    }

    #[test]
    fn the_last_lines_are_written_before_the_end_unless_nobody_reads() {
        let (reader, pipe) = io::pipe().unwrap();
        let mut log = LogWriter::start(pipe).unwrap();
        log.write_all(b"last\n").unwrap();
        log.flush_all();
        let mut line = String::new();
        BufReader::new(&reader).read_line(&mut line).unwrap();
        assert_eq!(line, "last\n");
        for _ in 0..2 * LINES_MAX {
            log.write_all(&[b'x'; 100]).unwrap();
        }
        let start = Instant::now();
        log.flush_all();
        assert!(start.elapsed() < 2 * FLUSH_TIMEOUT);
    }
}
