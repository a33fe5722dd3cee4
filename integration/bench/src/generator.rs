//! The load generator: `outboard-generator`, one process on a core of its own, which plays the guest's drivers.

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::{
    accounting::{Roles, Sample, Shares, Window},
    cases::{BlkWork, NetMode, NetWork},
    error::Failure,
    launch::Launch,
};

/// How long beyond its warm-up and measurement a run may take: to connect, and to show each of a million flows once.
const EXTRA_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at whether it ended.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Samples of CPU time taken in the length of the measurement.
const SAMPLES: u32 = 4;

/// Which end listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The backend listens.
    Connect,
    /// The generator listens, and the backend comes.
    Listen,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Listen => "listen",
        }
    }
}

/// Where a backend is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Two network devices.
    Net {
        /// Who listens.
        role: Role,
        /// Socket of the first.
        a: PathBuf,
        /// Socket of the second.
        b: PathBuf,
        /// Sockets of another pair, where there is one.
        victim: Option<[PathBuf; 2]>,
    },
    /// A block device.
    Blk(PathBuf),
    /// No device: a file, for fio.
    File {
        /// The file.
        path: PathBuf,
        /// Past the page cache.
        direct: bool,
    },
}

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Measured seconds.
    pub seconds: f64,
    /// Seconds before.
    pub warmup: f64,
}

/// What the generator says. What a mode does not have is missing.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Frames per second that arrived, or connections, or round trips.
    pub pps: Option<f64>,
    /// Gigabits per second that arrived.
    pub gbit_s: Option<f64>,
    /// Median latency.
    pub p50_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
    /// Requests per second.
    pub iops: Option<f64>,
    /// Negotiated virtio features.
    pub features: Option<String>,
    /// Negotiated vhost-user protocol features.
    pub protocol_features: Option<String>,
    /// Share of polls that found nothing.
    pub empty_polls_pct: Option<f64>,
    /// Share of attempts to send that found the ring full.
    pub ring_full_pct: Option<f64>,
    /// Frames per second of a victim beside legal frames; `pps` is that beside an attack.
    pub legal_pps: Option<f64>,
    /// What is left of it.
    pub victim_pct: Option<f64>,
    /// Attacking frames per second.
    pub attack_pps: Option<f64>,
    /// Frames that must be denied: sent.
    pub denied_sent: Option<u64>,
    /// Frames that must be denied: arrived all the same.
    pub denied_received: Option<u64>,
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What the generator, or fio, counted.
    pub report: Report,
    /// Who used the CPU.
    pub shares: Shares,
    /// How often a second the rules were replaced meanwhile.
    pub changes_per_s: Option<f64>,
}

/// A command that loads a backend and says what it counted on its standard output.
#[derive(Debug)]
pub struct Load {
    launch: Launch,
    window: Window,
    limit: Duration,
    is_backend: bool,
    read: fn(&str) -> Option<Report>,
}

impl Load {
    /// One run of any such command; `read` finds the result in what it printed.
    pub fn new(launch: Launch, timing: Timing, read: fn(&str) -> Option<Report>) -> Self {
        let measured = Duration::from_secs_f64(timing.seconds);
        Self {
            launch,
            window: Window { measured },
            limit: measured + Duration::from_secs_f64(timing.warmup) + EXTRA_LIMIT,
            is_backend: false,
            read,
        }
    }

    /// It is the backend too: there is no other process.
    #[must_use]
    pub fn is_backend(mut self) -> Self {
        self.is_backend = true;
        self
    }

    /// Runs it, and watches meanwhile who uses the CPU. `roles` gets the generator's process id here.
    pub fn run(self, mut roles: Roles, folder: &Path) -> Result<Outcome, Failure> {
        let mut running = self.launch.read_stdout().start(&folder.join("generator.log"))?;
        if self.is_backend {
            roles.backend.insert(running.pid());
            roles.backend_core = roles.generator_core;
        } else {
            roles.generator = running.pid();
        }
        let remedy = "look at the log of the backend; with --verbose the run folder is kept";
        let mut stdout = running.take_stdout();
        let begun = Instant::now();
        let between = self.window.measured / SAMPLES;
        let mut samples = vec![Sample::take(&roles)];
        let mut due = begun + between;
        // The result is one line and fits the pipe, so it can be read once it has ended.
        let status = loop {
            if let Some(status) = running.ended() {
                break status;
            }
            if begun.elapsed() > self.limit {
                let failure = running.failure(format!("did not end within {:?}", self.limit), remedy);
                running.stop(Signal::SIGTERM);
                return Err(failure);
            }
            if Instant::now() >= due {
                samples.push(Sample::take(&roles));
                due = Instant::now() + between;
            }
            thread::sleep(POLL_INTERVAL);
        };
        samples.push(Sample::take(&roles));
        let mut text = String::new();
        let read = stdout.as_mut().map(|pipe| pipe.read_to_string(&mut text));
        if !status.success() {
            return Err(running.failure(format!("ended with {status}"), remedy));
        }
        let report = read.and_then(|read| read.ok()).and_then(|_| (self.read)(&text));
        let report = report.ok_or_else(|| running.failure(format!("printed no result: {:?}", text.trim()), remedy))?;
        Ok(Outcome {
            report,
            shares: Shares::of_window(&samples, self.window).unwrap_or_default(),
            changes_per_s: None,
        })
    }
}

/// Reads the generator's line.
pub fn parse(text: &str) -> Option<Report> {
    serde_json::from_str(text.lines().rev().find(|line| line.starts_with('{'))?).ok()
}

/// The two stations: what every backend is told, and the generator too.
pub const MACS: [&str; 2] = ["52:54:00:00:00:0a", "52:54:00:00:00:0b"];
/// Their addresses.
pub const ADDRESSES: [&str; 2] = ["10.0.0.10", "10.0.0.11"];
/// The stations of the second pair, which the generator knows by itself.
pub const VICTIM_MACS: [&str; 2] = ["52:54:00:00:00:0c", "52:54:00:00:00:0d"];
/// Their addresses.
pub const VICTIM_ADDRESSES: [&str; 2] = ["10.0.0.12", "10.0.0.13"];
/// First destination port of the flows, as `value/mask`: what a firewall has to allow.
pub const ALLOWED_PORTS: (u16, &str) = (5120, "0x1400/0xfc00");
/// The same, first and last one.
pub const ALLOWED_PORT_RANGE: (u16, u16) = (0x1400, 0x1400 | !0xfc00);
/// Different connections that are opened before the first one comes again.
const NEW_FLOWS: u32 = 10_000_000;

/// The sockets of the second pair.
pub fn victim_arguments(victim: &[PathBuf; 2]) -> Vec<OsString> {
    let [a, b] = victim;
    vec!["--victim-a".into(), a.into(), "--victim-b".into(), b.into()]
}

/// Frames between two devices.
pub fn net_arguments(role: Role, a: &Path, b: &Path, work: NetWork, timing: Timing) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["net".into(), "--a".into(), a.into(), "--b".into(), b.into()];
    let flows = if work.mode == NetMode::NewConnections {
        NEW_FLOWS
    } else {
        work.flows
    };
    let (frame, flows, port) = (
        work.frame_len_bytes.to_string(),
        flows.to_string(),
        ALLOWED_PORTS.0.to_string(),
    );
    arguments.extend(["--role", role.name(), "--mode", work.mode.name(), "--flows", &flows].map(OsString::from));
    if work.mode != NetMode::Segments {
        arguments.extend(["--frame", &frame].map(OsString::from));
    }
    arguments.extend(["--mac-a", MACS[0], "--mac-b", MACS[1]].map(OsString::from));
    arguments.extend(["--ip-a", ADDRESSES[0], "--ip-b", ADDRESSES[1], "--port", &port].map(OsString::from));
    let notify = if work.mode == NetMode::Idle { "eventfd" } else { "poll" };
    arguments.extend(["--notify", notify, "--json"].map(OsString::from));
    if let NetMode::Victim(attack) = work.mode {
        arguments.extend(["--attack", attack.name()].map(OsString::from));
    }
    if work.firewall && work.mode == NetMode::OneWay {
        arguments.extend(["--deny-percent", "1"].map(OsString::from));
    }
    push_timing(&mut arguments, timing);
    arguments
}

/// Requests to one device. The guest sleeps until it is called, as guests do.
pub fn blk_arguments(socket: &Path, work: BlkWork, span_bytes: u64, timing: Timing) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["blk".into(), "--socket".into(), socket.into()];
    let (block, depth) = (work.block_len_bytes.to_string(), work.depth.to_string());
    // three descriptors a request where a backend takes no indirect ones
    let queue = (work.depth * 3).next_power_of_two().max(256).to_string();
    let span = span_bytes.to_string();
    arguments.extend(["--role", "connect", "--op", work.operation, "--block", &block].map(OsString::from));
    arguments.extend(["--depth", &depth, "--queue-size", &queue, "--span", &span].map(OsString::from));
    arguments.extend(["--notify", "eventfd", "--json"].map(OsString::from));
    push_timing(&mut arguments, timing);
    arguments
}

/// The generator alone, with a thread on the backend's core that only moves frames. None where a case has no such thing.
pub fn ceiling_arguments(work: NetWork, backend_core: usize, seconds: f64) -> Option<Vec<OsString>> {
    let mode = match work.mode {
        NetMode::OneWay | NetMode::Segments => work.mode.name(),
        _ => return None,
    };
    let (flows, core, seconds) = (work.flows.to_string(), backend_core.to_string(), seconds.to_string());
    let words = [
        "ceiling",
        "--mode",
        mode,
        "--flows",
        &flows,
        "--peer-core",
        &core,
        "--seconds",
        &seconds,
        "--json",
    ];
    let mut arguments: Vec<OsString> = words.map(OsString::from).into();
    if work.mode != NetMode::Segments {
        arguments.extend(["--frame".into(), work.frame_len_bytes.to_string().into()]);
    }
    Some(arguments)
}

fn push_timing(arguments: &mut Vec<OsString>, timing: Timing) {
    let (seconds, warmup) = (timing.seconds.to_string(), timing.warmup.to_string());
    arguments.extend(["--seconds", &seconds, "--warmup", &warmup].map(OsString::from));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_firewall_is_sent_what_it_must_deny_and_nobody_else_is() {
        let arguments = |firewall, mode| {
            let work = NetWork {
                mode,
                frame_len_bytes: 64,
                flows: 1,
                firewall,
            };
            let timing = Timing {
                seconds: 3.0,
                warmup: 0.5,
            };
            let words = net_arguments(Role::Listen, Path::new("/a"), Path::new("/b"), work, timing);
            words.join(" ".as_ref()).to_string_lossy().into_owned()
        };
        let plain = arguments(false, NetMode::OneWay);
        assert!(
            plain.starts_with("net --a /a --b /b --role listen --mode oneway --flows 1 --frame 64 "),
            "{plain}"
        );
        assert!(
            plain.ends_with("--notify poll --json --seconds 3 --warmup 0.5"),
            "{plain}"
        );
        assert!(!plain.contains("--deny-percent"));
        assert!(arguments(true, NetMode::OneWay).contains("--deny-percent 1"));
        assert!(arguments(true, NetMode::NewConnections).contains("--flows 10000000"));
    }

    #[test]
    fn a_queue_holds_three_descriptors_for_each_request() {
        let work = BlkWork {
            store: crate::cases::Store::Null,
            operation: "randread",
            block_len_bytes: 4096,
            depth: 128,
        };
        let timing = Timing {
            seconds: 1.0,
            warmup: 1.0,
        };
        let words = blk_arguments(Path::new("/s"), work, 1 << 20, timing);
        let text = words.join(" ".as_ref()).to_string_lossy().into_owned();
        assert!(
            text.contains("--depth 128 --queue-size 512 --span 1048576 --notify eventfd"),
            "{text}"
        );
    }

    #[test]
    fn the_result_is_the_last_object_and_fields_may_be_missing() {
        let text = "path up\n{\"mode\":\"oneway\",\"pps\":16800000.0,\"gbit_s\":8.6,\"features\":\"0x130008000\"}\n";
        let report = parse(text).unwrap_or_default();
        assert_eq!((report.pps, report.iops), (Some(16.8e6), None));
        assert_eq!(report.features.as_deref(), Some("0x130008000"));
        assert_eq!(parse("nothing"), None);
        assert_eq!(parse("{\"pps\":\"fast\"}"), None);
    }
}
