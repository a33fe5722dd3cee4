//! The systems that are measured: how each is set up, where it is reached, which of its processes count.

mod dpdk_io;
mod outboard;
mod ovs_dpdk;
mod qsd;
mod raw;
mod spdk;
mod spdk_rpc;
mod store;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;

pub use self::{raw::fio_load, store::VOLUME_LEN_BYTES};
use crate::{
    cases::{Case, NetMode, Store, System, Work},
    error::Failure,
    generator::Target,
    launch::signal_pid,
    machine::Machine,
    programs::Programs,
    storm::Policies,
};

/// How long a system may take until its sockets are there.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// What all systems are given.
#[derive(Debug)]
pub struct Context {
    /// Folder for sockets, configuration and logs.
    pub folder: PathBuf,
    /// Folder on tmpfs, for volumes that are files in memory.
    pub memory_folder: PathBuf,
    /// Folder on a disk, for volumes that are not.
    pub disk_folder: PathBuf,
    /// This machine.
    pub machine: Machine,
    /// Our own programs.
    pub programs: Programs,
    /// SPDK's vhost program.
    pub spdk: Option<PathBuf>,
}

/// In which way a system is set up. Cases of one setting share a running system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Two ports of one network.
    Switch,
    /// Two ports with a stateful firewall between them.
    Firewall,
    /// The same, with room for all connections that a run can open.
    Connections,
    /// The same, with many rules more.
    ManyRules,
    /// Two pairs of ports with a firewall between.
    TwoPairs,
    /// Two ports, with segmentation left to whoever needs it.
    Segments,
    /// A volume.
    Volume(Store),
}

/// Connections of all ports together where an attack opens them: what a card of this project follows unless told otherwise.
const CONNECTIONS_ATTACKED: u32 = 2_000_000;
/// Connections that the port which opens them may have, in every system that keeps state of them.
const CONNECTIONS_MAX: u32 = 12_000_000;

impl Setting {
    /// That of a case; tunnels have none yet.
    pub fn of(case: &Case) -> Option<Self> {
        match case.work {
            Work::Net(net) if net.mode == NetMode::NewConnections => Some(Self::Connections),
            Work::Net(net) if net.mode == NetMode::Storm => Some(Self::ManyRules),
            Work::Net(net) if matches!(net.mode, NetMode::Victim(_)) => Some(Self::TwoPairs),
            Work::Net(net) if net.firewall => Some(Self::Firewall),
            Work::Net(net) if net.mode == NetMode::Segments => Some(Self::Segments),
            Work::Net(_) => Some(Self::Switch),
            Work::Blk(blk) => Some(Self::Volume(blk.store)),
            Work::Tunnel => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Switch => "l2",
            Self::Firewall => "fw",
            Self::Connections => "newconn",
            Self::ManyRules => "storm",
            Self::TwoPairs => "victim",
            Self::Segments => "tso",
            Self::Volume(Store::Null) => "null",
            Self::Volume(Store::Memory) => "mem",
            Self::Volume(Store::File) => "file",
            Self::Volume(Store::Disk) => "disk",
            Self::Volume(Store::Encrypted) => "xts",
        }
    }
}

/// A system that runs. Dropping it ends it.
pub trait Backend {
    /// Where the generator reaches it.
    fn target(&self) -> Target;

    /// The processes whose CPU time is the backend's.
    fn processes(&self) -> BTreeSet<u32>;

    /// The processes that poll also when there is nothing to do, and are stopped while others are measured.
    fn pollers(&self) -> BTreeSet<u32>;

    /// It still runs.
    fn check(&mut self) -> Result<(), Failure>;

    /// Its version, as it says itself.
    fn version(&self) -> String;

    /// How its rules are replaced, in the setting that has many.
    fn policies(&self) -> Option<Policies> {
        None
    }
}

/// Starts a system.
pub fn start(system: System, setting: Setting, context: &Context) -> Result<Box<dyn Backend>, Failure> {
    let folder = context.folder.join(format!("{}-{}", system.name(), setting.name()));
    let unwritable = |e| Failure::io(system.name(), folder.display(), &e, "check the space left in /tmp");
    // left by an earlier start in this run
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(unwritable)?;
    }
    std::fs::create_dir_all(&folder).map_err(unwritable)?;
    Ok(match (system, setting) {
        (System::Outboard, _) => Box::new(outboard::Outboard::start(context, setting, &folder)?),
        (System::DpdkIo, _) => Box::new(dpdk_io::DpdkIo::start(context, &folder)?),
        (System::OvsDpdk, _) => Box::new(ovs_dpdk::OvsDpdk::start(context, setting, &folder)?),
        (System::Qsd, Setting::Volume(store)) => Box::new(qsd::Qsd::start(context, store, &folder)?),
        (System::Spdk, Setting::Volume(store)) => Box::new(spdk::Spdk::start(context, store, &folder)?),
        (System::Raw, Setting::Volume(store)) => Box::new(raw::Raw::prepare(context, store)?),
        (System::Qsd | System::Spdk | System::Raw, _) => {
            let what = format!("has no setting {}", setting.name());
            return Err(Failure::new(system.name(), what, "report this"));
        }
    })
}

/// Lets the pollers of a backend sleep, or go on.
pub fn rest(backend: &dyn Backend, asleep: bool) {
    let signal = if asleep { Signal::SIGSTOP } else { Signal::SIGCONT };
    for pid in backend.pollers() {
        signal_pid(pid, signal);
    }
}

/// Memory of DPDK programs: huge pages where there are enough, else ordinary ones.
fn dpdk_memory(machine: &Machine, megabytes: u32) -> Vec<String> {
    let kind: &[&str] = if machine.huge_pages {
        // huge pages without a mounted filesystem, in one file: clients can pass few descriptors
        &["--in-memory", "--single-file-segments"]
    } else {
        &["--no-huge", "--legacy-mem", "--no-shconf"]
    };
    let mut words: Vec<String> = kind.iter().map(|word| (*word).to_owned()).collect();
    words.extend(["--no-pci".into(), "-m".into(), megabytes.to_string()]);
    words
}

/// Version of the package that brings a program, from the package manager; empty where there is none.
fn package_version(package: &str) -> String {
    let output = std::process::Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", package])
        .output();
    let said = output.ok().filter(|output| output.status.success());
    said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}

/// Is somebody listening there? Without connecting: a backend may take that for its one client.
fn listens(socket: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    listed(&table, &socket.to_string_lossy())
}

/// In `/proc/net/unix`, a socket that listens has the flag `__SO_ACCEPTCON` (0x10000).
fn listed(table: &str, path: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(7) == Some(&path) && fields.get(3) == Some(&"00010000")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_told_from_a_connected_one_of_the_same_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000: 00000002 00000000 00010000 0001 01 4711 /run/a.sock\n\
                     0000: 00000003 00000000 00000000 0001 03 4712 /run/b.sock\n";
        assert!(listed(table, "/run/a.sock"));
        assert!(!listed(table, "/run/b.sock"));
        assert!(!listed(table, "/run/a"));
    }

    #[test]
    fn a_socket_of_this_machine_is_seen() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("s.sock");
        assert!(!listens(&path));
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        assert!(listens(&path));
        drop(listener);
        assert!(!listens(&path));
        Ok(())
    }
}
