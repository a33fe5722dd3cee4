//! Opening and closing volumes where it holds nobody up: a file system may take long, or never answer.
//!
//! What has to be done to one volume is done in order, one thing after the other, each on a thread of its own; so a
//! volume whose file system hangs holds up itself alone. Results go where [`Opener::new`] is told, and whoever gets
//! them hands each to [`Opener::finished`].

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use outboard_protocol::{
    desired::{Volume, VolumeBackend},
    id::{Generation, Name},
    refusal::{Code, Refusal},
};
use vhost_blk_dpu::BlkUnit;

use crate::volumes::{Opened, Unavailable, measure_volume, open_volume, unavailable};

/// Volumes that are opened or closed at the same time, not counting those that are stuck; more wait.
pub const THREADS_MAX: usize = 16;
/// The same, those that are stuck included: their threads come back only when their file systems answer.
pub const THREADS_STUCK_MAX: usize = 256;
/// A file system that has not answered for this long is told to the operator.
pub const STUCK_AFTER: Duration = Duration::from_secs(4);

/// Something that was done.
pub struct Done {
    /// The volume.
    pub name: Name,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of opening or closing a volume.
pub enum Outcome {
    /// The volume as it was described was opened for this binding, or could not be.
    Opened {
        /// The binding.
        generation: Generation,
        /// What was opened.
        volume: Volume,
        /// The device, ready to serve.
        result: Result<Opened, Unavailable>,
    },
    /// What is below the volume as it was described was measured.
    Measured {
        /// The binding.
        generation: Generation,
        /// What was measured.
        volume: Volume,
        /// Whether it has the room.
        result: Result<(), Refusal>,
    },
    /// A device was closed: its file is free.
    Closed,
}

enum Job {
    /// To be opened for a binding whose guest has had so many bytes.
    Open(Generation, Volume, Option<u64>),
    Measure(Generation, Volume),
    Close(Box<BlkUnit>),
}

/// What is to be done to a volume, and what is being done.
struct Line {
    /// Since when a thread is at it; none if it waits for one.
    since: Option<Instant>,
    next: VecDeque<Job>,
}

impl Line {
    fn is_stuck(&self, now: Instant) -> bool {
        self.since
            .is_some_and(|since| now.saturating_duration_since(since) >= STUCK_AFTER)
    }
}

/// Opens volumes' backends, within bounds.
pub struct Opener {
    volume_dir: PathBuf,
    memory_bytes_max: u64,
    /// Volumes in memory that are set up.
    in_memory: Vec<(Name, u64)>,
    lines: BTreeMap<Name, Line>,
    threads: usize,
    report: Arc<dyn Fn(Done) + Send + Sync>,
}

impl Opener {
    /// An opener of files in `volume_dir`, and of at most `memory_bytes_max` bytes in memory.
    pub fn new(volume_dir: PathBuf, memory_bytes_max: u64, report: impl Fn(Done) + Send + Sync + 'static) -> Self {
        Self {
            volume_dir,
            memory_bytes_max,
            in_memory: Vec::new(),
            lines: BTreeMap::new(),
            threads: 0,
            report: Arc::new(report),
        }
    }

    /// Begins to open a volume's backend for a binding, whose guest has had `served_bytes` of it, after what is being
    /// done to it. Never waits.
    ///
    /// # Errors
    /// No memory is left for it, or its file system has not answered for long.
    pub fn open(
        &mut self,
        generation: Generation,
        volume: &Volume,
        served_bytes: Option<u64>,
        now: Instant,
    ) -> Result<(), Refusal> {
        if volume.backend == VolumeBackend::Memory {
            self.reserve_memory(&volume.name, volume.size_bytes)?;
        }
        let mut stuck = false;
        if let Some(line) = self.lines.get_mut(&volume.name) {
            // The newest of them is the one that counts.
            line.next.retain(|job| matches!(job, Job::Close(_)));
            stuck = line.is_stuck(now);
        }
        self.add(&volume.name, Job::Open(generation, volume.clone(), served_bytes), now);
        if stuck {
            Err(stuck_refusal(&volume.name))
        } else {
            Ok(())
        }
    }

    /// Begins to find out whether a volume can have its size; the answer comes after what is being done to it.
    ///
    /// # Errors
    /// No memory is left for it.
    pub fn measure(&mut self, generation: Generation, volume: &Volume) -> Result<(), Refusal> {
        if volume.backend == VolumeBackend::Memory {
            self.reserve_memory(&volume.name, volume.size_bytes)?;
        }
        if let Some(line) = self.lines.get_mut(&volume.name) {
            line.next.retain(|job| !matches!(job, Job::Measure(..)));
        }
        self.add(&volume.name, Job::Measure(generation, volume.clone()), Instant::now());
        Ok(())
    }

    /// Begins to close a device: closing a file may take long.
    pub fn close(&mut self, name: &Name, unit: Box<BlkUnit>) {
        self.cancel(name);
        self.add(name, Job::Close(unit), Instant::now());
    }

    /// The volume is not wanted any more; what is being opened is to be closed when it is there.
    pub fn cancel(&mut self, name: &Name) {
        self.in_memory.retain(|(n, _)| n != name);
        if let Some(line) = self.lines.get_mut(name) {
            line.next.retain(|job| matches!(job, Job::Close(_)));
        }
    }

    /// A result has arrived: goes on with what waits. What was asked again for the same binding meanwhile is answered.
    pub fn finished(&mut self, done: &Done) {
        self.threads = self.threads.saturating_sub(1);
        if let Some(line) = self.lines.get_mut(&done.name) {
            line.since = None;
            if let Outcome::Opened { generation, .. } = &done.outcome {
                line.next
                    .retain(|job| !matches!(job, Job::Open(g, ..) if g == generation));
            }
            if line.next.is_empty() {
                self.lines.remove(&done.name);
            }
        }
        self.go_on(Instant::now());
    }

    fn add(&mut self, name: &Name, job: Job, now: Instant) {
        let empty = || Line {
            since: None,
            next: VecDeque::new(),
        };
        self.lines.entry(name.clone()).or_insert_with(empty).next.push_back(job);
        self.go_on(now);
    }

    /// Gives threads to volumes that wait for one, as far as there are any. Those of volumes that are stuck are not
    /// missed: a server that is gone must not hold up the volumes that are elsewhere.
    fn go_on(&mut self, now: Instant) {
        let waits = |(name, line): (&Name, &Line)| line.since.is_none().then(|| name.clone());
        let stuck = self.lines.values().filter(|line| line.is_stuck(now)).count();
        while self.threads < THREADS_STUCK_MAX
            && self.threads.saturating_sub(stuck) < THREADS_MAX
            && let Some(name) = self.lines.iter().find_map(waits)
            && self.begin(&name)
        {}
    }

    /// False if there is no thread; it is tried again with what comes next, at the latest when the core asks again.
    fn begin(&mut self, name: &Name) -> bool {
        let Some(line) = self.lines.get_mut(name) else {
            return false;
        };
        let Some(job) = line.next.pop_front() else {
            return false;
        };
        // Shared only until the thread runs: if there is none, the job is taken back.
        let job = Arc::new(Mutex::new(Some(job)));
        let (volume_dir, report) = (self.volume_dir.clone(), Arc::clone(&self.report));
        let (named, given) = (name.clone(), Arc::clone(&job));
        let run = move || {
            if let Some(job) = take(&given) {
                let outcome = job.run(&volume_dir);
                report(Done { name: named, outcome });
            }
        };
        match std::thread::Builder::new().name("volume".into()).spawn(run) {
            Ok(_) => {
                line.since = Some(Instant::now());
                self.threads += 1;
                true
            }
            Err(e) => {
                tracing::warn!(
                    "volume {name}: no thread to open or close it: {e}; fix: raise the limit on processes (ulimit -u)"
                );
                line.next.extend(take(&job));
                line.next.rotate_right(1);
                false
            }
        }
    }

    fn reserve_memory(&mut self, name: &Name, size_bytes: u64) -> Result<(), Refusal> {
        // Not what it has itself, or an attempt that came to nothing left.
        let others = self.in_memory.iter().filter(|(n, _)| n != name);
        let used: u64 = others.map(|(_, size)| size).sum();
        if used
            .checked_add(size_bytes)
            .is_none_or(|sum| sum > self.memory_bytes_max)
        {
            let max = self.memory_bytes_max;
            let text = format!(
                "{size_bytes} bytes of memory are wanted, {used} of {max} are in use: raise limits.memory_volume_bytes in \
                 the DPU's configuration, or use a file"
            );
            return Err(unavailable(name, &text));
        }
        self.in_memory.retain(|(n, _)| n != name);
        self.in_memory.push((name.clone(), size_bytes));
        Ok(())
    }
}

fn take(job: &Mutex<Option<Job>>) -> Option<Job> {
    job.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl Job {
    fn run(self, volume_dir: &Path) -> Outcome {
        match self {
            Self::Open(generation, volume, served_bytes) => Outcome::Opened {
                result: open_volume(volume_dir, &volume, served_bytes),
                generation,
                volume,
            },
            Self::Measure(generation, volume) => Outcome::Measured {
                result: measure_volume(volume_dir, &volume),
                generation,
                volume,
            },
            Self::Close(unit) => {
                drop(unit);
                Outcome::Closed
            }
        }
    }
}

fn stuck_refusal(name: &Name) -> Refusal {
    let text = format!(
        "volume {name}: its file system has not answered for {} s: check the disk or server that its file is on",
        STUCK_AFTER.as_secs()
    );
    Refusal::new(Code::Unavailable, text)
}

#[cfg(test)]
#[path = "opener_tests.rs"]
mod tests;
