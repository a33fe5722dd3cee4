//! CPU time: of the backend, of the generator, of everything else; and whether the first two got their cores.
//!
//! The scheduler's own nanosecond counts are read from `/proc/PID/task/TID/schedstat`: time run, and time waited for a
//! core. Threads that io_uring makes for a process are among its tasks. A kernel thread on the backend's core works
//! for the backend, since nothing else is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

/// The measured part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its length.
    pub measured: Duration,
}

/// Share of the measured time that a stretch between two samples must have: samples are taken a quarter of it apart.
const WINDOW_SHARE: f64 = 0.7;

/// Whom a thread works for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Backend,
    Generator,
    /// A kernel thread that last ran on the backend's core.
    BackendKernel,
    /// Everything else but this program.
    Host,
}

/// What one thread has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    side: Side,
    run: Duration,
    waited: Duration,
}

/// All threads of the machine at one moment.
#[derive(Debug, Clone)]
pub struct Sample {
    at: Instant,
    threads: BTreeMap<u32, Used>,
    /// Time that the hypervisor took from the cores of backend and generator.
    stolen: Duration,
}

/// Who is who on the machine.
#[derive(Debug, Clone)]
pub struct Roles {
    /// Processes of the backend.
    pub backend: BTreeSet<u32>,
    /// The generator.
    pub generator: u32,
    /// The backend's core.
    pub backend_core: usize,
    /// The generator's core.
    pub generator_core: usize,
}

/// Shares of CPU over a window.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Shares {
    /// All threads of the backend, and kernel threads on its core; of one core.
    pub backend_pct: f64,
    /// Everything on this machine that is neither backend nor generator nor this program; of one core.
    pub host_pct: f64,
    /// The generator; of one core.
    pub generator_pct: f64,
    /// The least share of its core that either of them could have had: what others took away is missing.
    pub obtained_pct: f64,
}

impl Sample {
    /// Reads all threads. Costs about ten microseconds a thread.
    pub fn take(roles: &Roles) -> Self {
        let own = std::process::id();
        let mut threads = BTreeMap::new();
        let at = Instant::now();
        for pid in numbers("/proc") {
            if pid != own {
                read_process(pid, roles, &mut threads);
            }
        }
        Self {
            at,
            threads,
            stolen: stolen(&[roles.backend_core, roles.generator_core]),
        }
    }
}

fn read_process(pid: u32, roles: &Roles, threads: &mut BTreeMap<u32, Used>) {
    let side = if roles.backend.contains(&pid) {
        Side::Backend
    } else if pid == roles.generator {
        Side::Generator
    } else {
        let Some(stat) = fs::read_to_string(format!("/proc/{pid}/stat")).ok() else {
            return;
        };
        match parse_stat(&stat) {
            Some((2, core)) if core == roles.backend_core => Side::BackendKernel,
            _ => Side::Host,
        }
    };
    for tid in numbers(&format!("/proc/{pid}/task")) {
        // a thread may end between the listing and the reading
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).unwrap_or_default();
        if let Some((run, waited)) = parse_schedstat(&text) {
            threads.insert(tid, Used { side, run, waited });
        }
    }
}

/// Parent and last core of a process, from `/proc/PID/stat`: fields 4 and 39 (proc(5)).
fn parse_stat(text: &str) -> Option<(u32, usize)> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(36)?.parse().ok()?))
}

fn parse_schedstat(text: &str) -> Option<(Duration, Duration)> {
    let mut fields = text.split_whitespace().map(str::parse);
    let (run, waited) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some((Duration::from_nanos(run), Duration::from_nanos(waited)))
}

fn numbers(folder: &str) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn stolen(cores: &[usize]) -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = cores.iter().filter_map(|core| parse_stolen(&text, *core)).max();
    // USER_HZ is 100 on every architecture that Rust knows Linux on
    Duration::from_millis(10 * ticks.unwrap_or(0))
}

/// Ticks stolen from a core: the eighth number of its line in `/proc/stat` (proc(5)).
fn parse_stolen(text: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core}");
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(&name))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

impl Shares {
    /// Between two samples.
    pub fn between(from: &Sample, to: &Sample) -> Self {
        let wall = to.at.saturating_duration_since(from.at);
        let mut run = BTreeMap::from([("backend", Duration::ZERO), ("host", Duration::ZERO)]);
        let (mut generator, mut generator_waited) = (Duration::ZERO, Duration::ZERO);
        let mut busiest = (Duration::ZERO, Duration::ZERO);
        for (tid, used) in &to.threads {
            let before = from.threads.get(tid).filter(|before| before.run <= used.run);
            let spent = used
                .run
                .saturating_sub(before.map_or(Duration::ZERO, |before| before.run));
            let waited = used
                .waited
                .saturating_sub(before.map_or(Duration::ZERO, |before| before.waited));
            match used.side {
                Side::Generator => {
                    generator += spent;
                    generator_waited += waited;
                }
                Side::Backend if spent >= busiest.0 => {
                    busiest = (spent, waited);
                    *run.entry("backend").or_default() += spent;
                }
                Side::Backend | Side::BackendKernel => *run.entry("backend").or_default() += spent,
                Side::Host => *run.entry("host").or_default() += spent,
            }
        }
        // What the backend's busiest thread waited for its own siblings is the backend's own doing.
        let siblings = run["backend"].saturating_sub(busiest.0);
        let backend_lost = busiest.1.saturating_sub(siblings);
        let stolen = to.stolen.saturating_sub(from.stolen);
        let lost = backend_lost.max(generator_waited) + stolen;
        let pct = |part: Duration| 100.0 * part.as_secs_f64() / wall.as_secs_f64().max(1e-9);
        Self {
            backend_pct: pct(run["backend"]),
            host_pct: pct(run["host"]),
            generator_pct: pct(generator),
            obtained_pct: (100.0 - pct(lost)).max(0.0),
        }
    }

    /// Over the measured part of a run, whose beginning nobody tells: the generator connects first, and it takes leave in
    /// the end. So it is the stretch of that length in which both worked most; the load is even while it lasts. What they
    /// lost to others counts until the end.
    pub fn of_window(samples: &[Sample], window: Window) -> Option<Self> {
        let last = samples.last()?;
        let length = window.measured.mul_f64(WINDOW_SHARE);
        let stretches = samples.iter().enumerate().filter_map(|(index, from)| {
            let later = samples.get(index + 1..)?;
            let to = later
                .iter()
                .find(|to| to.at.saturating_duration_since(from.at) >= length)?;
            Some((from, to))
        });
        let worked = |(from, to): &(&Sample, &Sample)| {
            let shares = Self::between(from, to);
            shares.backend_pct + shares.generator_pct
        };
        let (from, to) = stretches.max_by(|one, two| worked(one).total_cmp(&worked(two)))?;
        let wall = |to: &Sample| to.at.saturating_duration_since(from.at).as_secs_f64();
        let until_end = Self::between(from, last);
        let lost_pct = (100.0 - until_end.obtained_pct) * wall(last) / wall(to).max(1e-9);
        Some(Self {
            obtained_pct: (100.0 - lost_pct).max(0.0),
            ..Self::between(from, to)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(value: u64) -> Duration {
        Duration::from_millis(value)
    }

    fn sample(at: Instant, threads: &[(u32, Side, u64, u64)], stolen: Duration) -> Sample {
        let threads = threads.iter().map(|(tid, side, run, waited)| {
            let used = Used {
                side: *side,
                run: ms(*run),
                waited: ms(*waited),
            };
            (*tid, used)
        });
        Sample {
            at,
            threads: threads.collect(),
            stolen,
        }
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 0.01
    }

    #[test]
    fn shares_are_of_the_window_and_by_side() {
        let at = Instant::now();
        let from = [
            (1, Side::Backend, 5000, 100),
            (2, Side::Backend, 10, 0),
            (3, Side::Generator, 700, 7),
            (4, Side::Host, 90, 0),
            (5, Side::BackendKernel, 40, 0),
        ];
        let to = [
            (1, Side::Backend, 5950, 150),
            (2, Side::Backend, 20, 0),
            (3, Side::Generator, 1690, 17),
            (4, Side::Host, 93, 0),
            (5, Side::BackendKernel, 60, 0),
            (6, Side::Host, 4, 0),
        ];
        let shares = Shares::between(&sample(at, &from, ms(0)), &sample(at + SECOND, &to, ms(0)));
        assert!(near(shares.backend_pct, 98.0), "{shares:?}");
        assert!(near(shares.host_pct, 0.7), "{shares:?}");
        assert!(near(shares.generator_pct, 99.0), "{shares:?}");
        // its busiest thread waited 50 ms, of which it ran 30 elsewhere on that core itself
        assert!(near(shares.obtained_pct, 98.0), "{shares:?}");
    }

    #[test]
    fn what_others_and_the_hypervisor_took_is_missing() {
        let at = Instant::now();
        let from = [(1, Side::Backend, 0, 0), (3, Side::Generator, 0, 0)];
        let to = [(1, Side::Backend, 600, 400), (3, Side::Generator, 990, 10)];
        let lost = Shares::between(&sample(at, &from, ms(0)), &sample(at + SECOND, &to, ms(0)));
        assert!(near(lost.obtained_pct, 60.0), "{lost:?}");
        let to = [(1, Side::Backend, 1000, 0), (3, Side::Generator, 1000, 0)];
        let stolen = Shares::between(&sample(at, &from, ms(0)), &sample(at + SECOND, &to, ms(50)));
        assert!(near(stolen.obtained_pct, 95.0), "{stolen:?}");
    }

    #[test]
    fn a_thread_id_that_was_used_again_counts_from_nothing() {
        let at = Instant::now();
        let from = [(9, Side::Host, 800, 0)];
        let to = [(9, Side::Host, 30, 0)];
        let shares = Shares::between(&sample(at, &from, ms(0)), &sample(at + SECOND, &to, ms(0)));
        assert!(near(shares.host_pct, 3.0), "{shares:?}");
    }

    #[test]
    fn the_window_is_where_the_work_was() {
        let start = Instant::now();
        // connecting for a second, working for one, taking leave for half
        let runs = [0, 10, 20, 260, 510, 760, 1010, 1015, 1020];
        let samples = |waited: u64| -> Vec<Sample> {
            let threads = runs.iter().zip(0u32..);
            threads
                .map(|(run, index)| {
                    let waited = if index > 6 { waited } else { 0 };
                    sample(start + ms(250) * index, &[(1, Side::Backend, *run, waited)], ms(0))
                })
                .collect()
        };
        let window = Window { measured: SECOND };
        let shares = Shares::of_window(&samples(0), window).unwrap_or_default();
        assert!(
            near(shares.backend_pct, 100.0) && near(shares.obtained_pct, 100.0),
            "{shares:?}"
        );
        // what was lost after the stretch that was chosen counts as if it had been in it
        let shares = Shares::of_window(&samples(75), window).unwrap_or_default();
        assert!(
            near(shares.backend_pct, 100.0) && shares.obtained_pct < 95.0,
            "{shares:?}"
        );
        assert_eq!(Shares::of_window(&samples(0)[..1], window), None);
    }

    #[test]
    fn the_kernels_formats_are_read() {
        let stat = "4242 (a (odd) name) S 2 0 0 0 -1 2129984 0 0 0 0 7 11 0 0 20 0 1 0 32 0 0 18446744073709551615 0 0 0 0 0 \
                    0 0 2147483647 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0";
        assert_eq!(parse_stat(stat), Some((2, 1)));
        assert_eq!(
            parse_schedstat("1500000 2000 7\n"),
            Some((Duration::from_micros(1500), Duration::from_micros(2)))
        );
        assert_eq!(parse_schedstat(""), None);
        let text = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4 5 6 7 18 0 0\n";
        assert_eq!(parse_stolen(text, 1), Some(18));
        assert_eq!(parse_stolen(text, 4), None);
    }

    #[test]
    fn this_machine_can_be_sampled() {
        let mut child = std::process::Command::new("sleep").arg("5").spawn().ok();
        let pid = child.as_ref().map_or(0, std::process::Child::id);
        let roles = Roles {
            backend: [pid].into(),
            generator: 0,
            backend_core: 0,
            generator_core: 0,
        };
        let first = Sample::take(&roles);
        assert_eq!(first.threads.get(&pid).map(|used| used.side), Some(Side::Backend));
        assert!(!first.threads.contains_key(&std::process::id()));
        let _ = child.as_mut().map(std::process::Child::kill);
        let _ = child.as_mut().map(std::process::Child::wait);
    }
}
