//! The daemon's configuration file.

mod tracking;

use std::{
    collections::BTreeSet,
    net::ToSocketAddrs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use outboard_protocol::id::Name;
use outboard_vswitch::WORKERS_MAX;
use serde::Deserialize;

use crate::error::Failure;
pub use tracking::{Firewall, TimeoutsS};

/// Longest card serial, in bytes (a PCI VPD field has at most 255; serials are far shorter).
pub const SERIAL_LEN_MAX: usize = 64;
/// Longest path of a unix socket, in bytes (`sockaddr_un`, with its final zero byte).
const SOCKET_PATH_LEN_MAX: usize = 107;
/// How many connections a card may be told to follow: up to some 12 GiB of them.
const TRACKED_CONNECTIONS: RangeInclusive<u32> = 1 << 10..=1 << 26;

/// What `dpu.toml` says. Unknown keys are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Directory of the identity and of the desired state.
    pub state_dir: PathBuf,
    /// The card's name; enrolment tells it, and if it is given here too the two must agree.
    pub card: Option<Name>,
    /// The card's serial, as in its PCI VPD; unique among the broker's cards.
    pub serial: String,
    /// `host:port` of the broker; the enrolment token tells it, this overrides it.
    pub broker: Option<String>,
    /// Where the host's shim connects.
    pub link_socket: PathBuf,
    /// Users who may use the link, beside root and the daemon's own.
    #[serde(default)]
    pub host_uids: Vec<u32>,
    /// Where volumes' files are, unless a path is absolute.
    pub volume_dir: PathBuf,
    /// Core that the datapath's worker is pinned to, where there is one.
    pub worker_core: Option<usize>,
    /// Workers of the datapath: ports' queue pairs and volumes are spread over them.
    #[serde(default = "one")]
    pub workers: usize,
    /// Cores that the workers are pinned to, one each.
    pub worker_cores: Option<Vec<usize>>,
    /// Bounds on what a host can take.
    #[serde(default)]
    pub limits: Limits,
    /// How connections of ports with groups are followed.
    #[serde(default)]
    pub firewall: Firewall,
}

/// Bounds on what a host can take. Beyond them requests are refused, nothing else changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections to the link at a time.
    pub connections: usize,
    /// Device sessions at a time, of all connections together.
    pub sessions: usize,
    /// Requests per second of the host, over all its connections; more are answered late, not refused.
    pub requests_per_s: u32,
    /// Bytes of all volumes held in memory together.
    pub memory_volume_bytes: u64,
    /// Connections that the card follows at a time, of all its ports with groups and those in their networks, in equal
    /// shares. They take some 180 bytes each, from the first port with groups on.
    pub tracked_connections: u32,
    /// How long the worker polls in vain before it sleeps, in microseconds.
    pub spin_us: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16,
            sessions: 256,
            requests_per_s: 1000,
            memory_volume_bytes: 1 << 30,
            // Two ports may have a million each.
            tracked_connections: 1 << 21,
            spin_us: 50,
        }
    }
}

fn one() -> usize {
    1
}

impl Limits {
    /// How long the worker polls in vain before it sleeps.
    pub fn spin(&self) -> Duration {
        Duration::from_micros(u64::from(self.spin_us))
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::io("read the configuration", path, &e, "give the right path with --config"))?;
        Self::parse(&text).map_err(|e| Failure::new(format!("{}: {e}", path.display()), e.fix().to_owned()))
    }

    /// Parses and checks the file's text.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let config: Self = toml::from_str(text).map_err(|e| {
            let what = e.to_string();
            Failure::new(what.trim_end(), "correct the line shown")
        })?;
        config.check()?;
        Ok(config)
    }

    /// The core that a worker is pinned to, if it is.
    pub fn core_of(&self, worker: usize) -> Option<usize> {
        match &self.worker_cores {
            Some(cores) => cores.get(worker).copied(),
            None => self.worker_core,
        }
    }

    fn check_workers(&self) -> Result<(), Failure> {
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return Err(Failure::new(
                format!("workers = {} is out of range", self.workers),
                format!("use 1 to {WORKERS_MAX}, no more than there are cores for them"),
            ));
        }
        if self.worker_core.is_some() && (self.workers > 1 || self.worker_cores.is_some()) {
            return Err(Failure::new(
                "worker_core is for one worker",
                "name a core for each in worker_cores, like [1, 2]",
            ));
        }
        let Some(cores) = &self.worker_cores else { return Ok(()) };
        let distinct: BTreeSet<_> = cores.iter().collect();
        if cores.len() != self.workers || distinct.len() != cores.len() {
            return Err(Failure::new(
                format!(
                    "worker_cores = {cores:?} does not name one core for each of {} workers",
                    self.workers
                ),
                "name as many different cores as there are workers, or leave the key out",
            ));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Failure> {
        self.check_workers()?;
        let printable = |c: char| c.is_ascii_graphic();
        if self.serial.is_empty() || self.serial.len() > SERIAL_LEN_MAX || !self.serial.chars().all(printable) {
            return Err(Failure::new(
                format!("serial = {:?} is no card serial", self.serial),
                format!(
                    "use 1 to {SERIAL_LEN_MAX} printable characters without spaces, as `lspci -vv` shows under [SN]"
                ),
            ));
        }
        let socket_len = self.link_socket.as_os_str().len();
        if socket_len == 0 || socket_len > SOCKET_PATH_LEN_MAX {
            return Err(Failure::new(
                format!("link_socket has {socket_len} bytes: {}", self.link_socket.display()),
                format!("unix socket paths have 1 to {SOCKET_PATH_LEN_MAX} bytes: choose a shorter one"),
            ));
        }
        if let Some(broker) = &self.broker {
            check_address(broker)?;
        }
        let limits = &self.limits;
        if limits.connections == 0 || limits.sessions == 0 || limits.requests_per_s == 0 {
            return Err(Failure::new(
                "a limit of 0 connections, sessions or requests_per_s would serve nobody",
                "leave the key out for the default, or set at least 1",
            ));
        }
        if !TRACKED_CONNECTIONS.contains(&limits.tracked_connections) {
            return Err(Failure::new(
                format!("tracked_connections = {} is out of range", limits.tracked_connections),
                format!(
                    "use {} to {}, or leave the key out for the default",
                    TRACKED_CONNECTIONS.start(),
                    TRACKED_CONNECTIONS.end()
                ),
            ));
        }
        self.firewall.check()
    }
}

/// `host:port`, in form only: the name may well be unresolvable while the network is down.
fn check_address(broker: &str) -> Result<(), Failure> {
    let well_formed = match broker.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0),
        None => false,
    };
    let literal = || broker.to_socket_addrs().is_ok();
    if well_formed && (!broker.starts_with('[') || literal()) {
        return Ok(());
    }
    Err(Failure::new(
        format!("broker = {broker:?} is no address"),
        "write it as host:port, like 192.0.2.1:7471",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "state_dir = '/s'\nserial = 'SN1'\nlink_socket = '/run/l'\nvolume_dir = '/v'\n";

    fn error(text: &str) -> String {
        let failure = Config::parse(text).expect_err("refused");
        assert!(!failure.fix().is_empty());
        failure.to_string()
    }

    #[test]
    fn a_minimal_file_gets_the_defaults() {
        let config = Config::parse(MINIMAL).unwrap();
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.firewall, Firewall::default());
        assert_eq!((config.workers, config.core_of(0)), (1, None));
        assert_eq!((config.card, config.broker, config.worker_core), (None, None, None));
    }

    #[test]
    fn every_key_is_understood() {
        let all = format!(
            "{MINIMAL}card = 'local'\nbroker = '[::1]:7471'\nhost_uids = [1000]\nworker_core = 1\n[limits]\n\
             connections = 2\nsessions = 3\nrequests_per_s = 4\nmemory_volume_bytes = 5\ntracked_connections = 4096\n\
             spin_us = 6\n[firewall]\ntcp_loose = true\n[firewall.timeouts]\nudp_s = 7\n"
        );
        let config = Config::parse(&all).unwrap();
        assert_eq!(config.card.unwrap().as_str(), "local");
        assert_eq!(config.limits.spin(), Duration::from_micros(6));
        assert!(config.firewall.tcp_loose && config.firewall.timeouts.udp_s == 7);
    }

    #[test]
    fn each_worker_has_its_core() {
        let config = Config::parse(&format!("{MINIMAL}workers = 2\nworker_cores = [3, 5]\n")).unwrap();
        assert_eq!((config.core_of(0), config.core_of(1)), (Some(3), Some(5)));
        let unpinned = Config::parse(&format!("{MINIMAL}workers = 4\n")).unwrap();
        assert_eq!((unpinned.workers, unpinned.core_of(3)), (4, None));
        assert!(error(&format!("{MINIMAL}workers = 0\n")).contains("workers = 0"));
        assert!(error(&format!("{MINIMAL}workers = 17\n")).contains("workers = 17"));
        assert!(error(&format!("{MINIMAL}workers = 2\nworker_core = 1\n")).contains("one worker"));
        assert!(error(&format!("{MINIMAL}workers = 2\nworker_cores = [1]\n")).contains("[1]"));
        assert!(error(&format!("{MINIMAL}workers = 2\nworker_cores = [1, 1]\n")).contains("[1, 1]"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = error(&format!("{MINIMAL}volumes_dir = '/v'\n"));
        assert!(text.contains("volumes_dir") && text.contains("line 5"), "{text}");
        let text = error(&format!("{MINIMAL}[limits]\nconections = 2\n"));
        assert!(text.contains("conections") && text.contains("line 6"), "{text}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert!(error(&MINIMAL.replace("SN1", "")).contains("serial"));
        assert!(error(&MINIMAL.replace("SN1", "a b")).contains("a b"));
        assert!(error(&MINIMAL.replace("/run/l", &"x".repeat(108))).contains("108 bytes"));
        assert!(error(&format!("{MINIMAL}broker = 'here'\n")).contains("here"));
        assert!(error(&format!("{MINIMAL}card = '../etc'\n")).contains("not allowed"));
        assert!(error(&format!("{MINIMAL}[limits]\nsessions = 0\n")).contains("sessions"));
        assert!(error(&format!("{MINIMAL}[firewall.timeouts]\nicmp_s = 0\n")).contains("icmp_s = 0"));
        assert!(error(&format!("{MINIMAL}[limits]\ntracked_connections = 9\n")).contains("tracked_connections = 9"));
    }
}
