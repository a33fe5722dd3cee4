//! Suites, cases and systems. Their names are kept: results of different versions are compared by them.

use serde::Serialize;

/// What a case measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// Frames between two guests.
    Net,
    /// Requests of a guest to its disk.
    Blk,
    /// Frames between a guest and the wire.
    Tunnel,
}

impl Suite {
    /// As in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Blk => "blk",
            Self::Tunnel => "tunnel",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Broker, DPU and shim of this project, started by `outboard up`.
    Outboard,
    /// DPDK's testpmd, which forwards between two vhost ports without looking at a frame.
    DpdkIo,
    /// Open vSwitch with its userspace datapath.
    OvsDpdk,
    /// qemu-storage-daemon with its vhost-user-blk export.
    Qsd,
    /// SPDK's vhost target.
    Spdk,
    /// fio on the file itself, without any virtio device: what the storage below can do.
    Raw,
}

impl System {
    /// As in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outboard => "outboard",
            Self::DpdkIo => "dpdk-io",
            Self::OvsDpdk => "ovs-dpdk",
            Self::Qsd => "qsd",
            Self::Spdk => "spdk",
            Self::Raw => "raw",
        }
    }

    /// All of them, in the order of tables.
    pub const ALL: [Self; 6] = [
        Self::Outboard,
        Self::DpdkIo,
        Self::OvsDpdk,
        Self::Qsd,
        Self::Spdk,
        Self::Raw,
    ];
}

/// How the generator drives a pair of network devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetMode {
    /// From one device to the other, as fast as it goes.
    OneWay,
    /// Both ways at once.
    BothWays,
    /// One frame at a time, answered.
    PingPong,
    /// Every frame is the first of its connection.
    NewConnections,
    /// TCP segments of 64 KiB, cut and checksummed by nobody.
    Segments,
    /// Nothing: queues that run and rest.
    Idle,
    /// A pair of ports beside another one that attacks.
    Victim(Attack),
    /// One frame at a time, answered, while the rules of the firewall are replaced again and again.
    Storm,
}

/// What the attacker beside a victim sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Datagrams from any port to any port.
    Tuples,
    /// Datagrams each of which makes a cache of masked flows keep another mask.
    Masks,
    /// Datagrams that are allowed, each of a connection of its own.
    Connections,
}

impl Attack {
    /// The generator's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tuples => "tuples",
            Self::Masks => "masks",
            Self::Connections => "connections",
        }
    }
}

impl NetMode {
    /// The generator's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneWay => "oneway",
            Self::BothWays => "bidir",
            Self::PingPong => "pingpong",
            Self::NewConnections => "newconn",
            Self::Segments => "tso",
            Self::Idle => "idle",
            Self::Victim(_) => "victim",
            Self::Storm => "pingpong",
        }
    }
}

/// A network case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetWork {
    /// How frames are sent.
    pub mode: NetMode,
    /// Frame length with its check sequence, in bytes.
    pub frame_len_bytes: u32,
    /// Different UDP flows.
    pub flows: u32,
    /// The switch keeps state of connections and refuses what the rules do not allow.
    pub firewall: bool,
}

/// Where the blocks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Nowhere: the cost of the device alone.
    Null,
    /// Memory of the backend.
    Memory,
    /// A file on tmpfs.
    File,
    /// A file on a disk, past the page cache.
    Disk,
    /// Encrypted (XTS-AES-256) over memory or tmpfs.
    Encrypted,
}

impl Store {
    const ALL: [Self; 5] = [Self::Null, Self::Memory, Self::File, Self::Disk, Self::Encrypted];

    fn prefix(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Memory => "mem",
            Self::File => "file",
            Self::Disk => "disk",
            Self::Encrypted => "xts",
        }
    }
}

/// A block case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkWork {
    /// Where the blocks are.
    pub store: Store,
    /// The generator's and fio's word for the operation.
    pub operation: &'static str,
    /// Request length, in bytes.
    pub block_len_bytes: u32,
    /// Requests in flight.
    pub depth: u32,
}

/// What the backend has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Frames between two devices.
    Net(NetWork),
    /// Requests to one device.
    Blk(BlkWork),
    /// Frames between a device and an encapsulated wire.
    Tunnel,
}

/// One line of comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its suite.
    pub suite: Suite,
    /// Its name, unique in the suite.
    pub name: String,
    /// What the backend has to do.
    pub work: Work,
}

impl Case {
    /// Unit of the results.
    pub fn unit(&self) -> &'static str {
        match self.work {
            Work::Net(net) => match net.mode {
                NetMode::OneWay | NetMode::BothWays => "Mpps",
                NetMode::NewConnections => "Mconn/s",
                NetMode::PingPong | NetMode::Storm => "us",
                NetMode::Idle | NetMode::Victim(_) => "%",
                NetMode::Segments => "Gbit/s",
            },
            Work::Blk(_) => "kIOPS",
            Work::Tunnel => "Mpps",
        }
    }

    /// Round trips: less is better, and the 99th percentile is told too.
    pub fn is_latency(&self) -> bool {
        matches!(self.work, Work::Net(net) if matches!(net.mode, NetMode::PingPong | NetMode::Storm))
    }

    /// Large segments: told in parts of what one thread copies.
    pub fn is_segments(&self) -> bool {
        matches!(self.work, Work::Net(net) if net.mode == NetMode::Segments)
    }

    /// The CPU time of a backend with nothing to do.
    pub fn is_idle(&self) -> bool {
        matches!(self.work, Work::Net(net) if net.mode == NetMode::Idle)
    }

    /// Less is better.
    pub fn less_is_better(&self) -> bool {
        self.is_latency() || self.is_idle()
    }

    /// The peer that this project is compared with first.
    pub fn yardstick(&self) -> System {
        match self.suite {
            Suite::Net | Suite::Tunnel => System::OvsDpdk,
            Suite::Blk => System::Qsd,
        }
    }
}

/// Whether a system takes part in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It is measured.
    Takes,
    /// It will be measured one day; said in the table, with what is missing.
    NotYet(&'static str),
    /// It has no such thing.
    None,
}

/// Part of `system` in `case`.
pub fn part(system: System, case: &Case) -> Part {
    match case.work {
        Work::Net(net) => net_part(system, net),
        Work::Blk(blk) => blk_part(system, blk.store),
        Work::Tunnel => match system {
            System::Outboard => Part::NotYet("not in this version: tunnels"),
            System::OvsDpdk => Part::NotYet("not in this version: the generator sends no encapsulated frames"),
            _ => Part::None,
        },
    }
}

fn net_part(system: System, net: NetWork) -> Part {
    let stateful = net.firewall || net.mode == NetMode::NewConnections;
    match system {
        System::Outboard | System::OvsDpdk => Part::Takes,
        System::DpdkIo if matches!(net.mode, NetMode::Victim(_) | NetMode::Storm) => {
            Part::NotYet("not supported by this system: it has no rules")
        }
        // It forwards whatever comes: there are no connections, and it knows no offloads in this role.
        System::DpdkIo if stateful || net.mode == NetMode::Segments => Part::None,
        System::DpdkIo => Part::Takes,
        System::Qsd | System::Spdk | System::Raw => Part::None,
    }
}

fn blk_part(system: System, store: Store) -> Part {
    match (system, store) {
        (System::Outboard, Store::Disk) => Part::NotYet("not in this version: direct I/O"),
        (System::Outboard, Store::Encrypted) => Part::NotYet("not in this version: encryption"),
        (System::Outboard, _) => Part::Takes,
        (System::Qsd, Store::Memory) => Part::None,
        (System::Qsd, _) => Part::Takes,
        (System::Spdk, Store::File) => Part::None,
        (System::Spdk, _) => Part::Takes,
        (System::Raw, Store::File | Store::Disk) => Part::Takes,
        (System::Raw | System::DpdkIo | System::OvsDpdk, _) => Part::None,
    }
}

fn net(name: &str, mode: NetMode, frame_len_bytes: u32, flows: u32, firewall: bool) -> Case {
    Case {
        suite: Suite::Net,
        name: name.to_owned(),
        work: Work::Net(NetWork {
            mode,
            frame_len_bytes,
            flows,
            firewall,
        }),
    }
}

/// All cases of a suite.
pub fn cases(suite: Suite) -> Vec<Case> {
    match suite {
        Suite::Net => {
            use NetMode::{BothWays, Idle, NewConnections, OneWay, PingPong, Segments, Storm, Victim};
            vec![
                net("l2-64", OneWay, 64, 1, false),
                net("l2-1518", OneWay, 1518, 1, false),
                net("l2-64-bi", BothWays, 64, 1, false),
                net("l2-64-100k", OneWay, 64, 100_000, false),
                net("rtt-l2", PingPong, 64, 1, false),
                net("tso", Segments, 65_549, 1, false),
                net("fw-64", OneWay, 64, 1, true),
                net("fw-64-100k", OneWay, 64, 100_000, true),
                net("fw-64-1m", OneWay, 64, 1_000_000, true),
                net("fw-1518", OneWay, 1518, 1, true),
                net("rtt-fw", PingPong, 64, 1, true),
                net("newconn", NewConnections, 64, 1, true),
                net("rtt-fw-storm", Storm, 64, 1, true),
                net("victim-tuples", Victim(Attack::Tuples), 64, 1, true),
                net("victim-masks", Victim(Attack::Masks), 64, 1, true),
                net("victim-connections", Victim(Attack::Connections), 64, 1, true),
                net("idle", Idle, 64, 1, false),
            ]
        }
        Suite::Blk => Store::ALL.into_iter().flat_map(blk_cases).collect(),
        Suite::Tunnel => ["vxlan-encap-64", "vxlan-decap-64", "geneve-encap-64", "esp-vxlan-1400"]
            .map(|name| Case {
                suite,
                name: name.to_owned(),
                work: Work::Tunnel,
            })
            .into(),
    }
}

fn blk_cases(store: Store) -> impl Iterator<Item = Case> {
    let kinds = [
        ("4k-randread-qd1", "randread", 4 << 10, 1),
        ("4k-randread-qd32", "randread", 4 << 10, 32),
        ("4k-randread-qd128", "randread", 4 << 10, 128),
        ("4k-randwrite-qd32", "randwrite", 4 << 10, 32),
        ("128k-read-qd8", "read", 128 << 10, 8),
    ];
    kinds
        .into_iter()
        .map(move |(name, operation, block_len_bytes, depth)| Case {
            suite: Suite::Blk,
            name: format!("{}-{name}", store.prefix()),
            work: Work::Blk(BlkWork {
                store,
                operation,
                block_len_bytes,
                depth,
            }),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(suite: Suite) -> Vec<String> {
        cases(suite).into_iter().map(|case| case.name).collect()
    }

    #[test]
    fn names_of_cases_are_those_that_results_are_compared_by() {
        let mut net = names(Suite::Net);
        net.sort();
        let kept = "fw-1518 fw-64 fw-64-100k fw-64-1m idle l2-1518 l2-64 l2-64-100k l2-64-bi newconn rtt-fw rtt-fw-storm \
                    rtt-l2 tso victim-connections victim-masks victim-tuples";
        assert_eq!(net.join(" "), kept);
        let blk = names(Suite::Blk);
        assert_eq!(blk.len(), 25);
        for prefix in ["null-", "mem-", "file-", "disk-", "xts-"] {
            for kind in [
                "4k-randread-qd1",
                "4k-randread-qd32",
                "4k-randread-qd128",
                "4k-randwrite-qd32",
                "128k-read-qd8",
            ] {
                assert!(blk.contains(&format!("{prefix}{kind}")), "{prefix}{kind}");
            }
        }
        let tunnel = "vxlan-encap-64 vxlan-decap-64 geneve-encap-64 esp-vxlan-1400";
        assert_eq!(names(Suite::Tunnel).join(" "), tunnel);
    }

    #[test]
    fn names_of_systems_are_those_that_results_are_compared_by() {
        let names = System::ALL.map(System::name).join(" ");
        assert_eq!(names, "outboard dpdk-io ovs-dpdk qsd spdk raw");
        for system in System::ALL {
            let json = serde_json::to_value(system).unwrap_or_default();
            assert_eq!(json, system.name());
        }
    }

    #[test]
    fn what_is_to_come_is_said_for_outboard_and_measured_for_its_peers() {
        let takes = |suite, name: &str, system| {
            let case = cases(suite).into_iter().find(|case| case.name == name);
            case.map(|case| part(system, &case))
        };
        for name in ["fw-64", "fw-64-100k", "fw-64-1m", "fw-1518", "rtt-fw", "newconn"] {
            assert_eq!(takes(Suite::Net, name, System::Outboard), Some(Part::Takes), "{name}");
            assert_eq!(takes(Suite::Net, name, System::OvsDpdk), Some(Part::Takes), "{name}");
            assert_eq!(takes(Suite::Net, name, System::DpdkIo), Some(Part::None), "{name}");
        }
        assert_eq!(takes(Suite::Net, "l2-64", System::Outboard), Some(Part::Takes));
        assert_eq!(takes(Suite::Blk, "file-128k-read-qd8", System::Raw), Some(Part::Takes));
        assert_eq!(takes(Suite::Blk, "null-128k-read-qd8", System::Raw), Some(Part::None));
        assert!(matches!(
            takes(Suite::Tunnel, "vxlan-encap-64", System::Outboard),
            Some(Part::NotYet(_))
        ));
    }

    #[test]
    fn every_case_has_somebody_in_it_and_a_system_has_only_cases_of_its_kind() {
        for suite in [Suite::Net, Suite::Blk, Suite::Tunnel] {
            for case in cases(suite) {
                assert_ne!(part(System::Outboard, &case), Part::None, "{}", case.name);
                let storage = [System::Qsd, System::Spdk, System::Raw];
                let network = [System::DpdkIo, System::OvsDpdk];
                let strangers = if suite == Suite::Blk {
                    &network[..]
                } else {
                    &storage[..]
                };
                for system in strangers {
                    assert_eq!(part(*system, &case), Part::None, "{} {}", system.name(), case.name);
                }
            }
        }
    }
}
