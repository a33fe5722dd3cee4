//! This project's own daemons, as `outboard up` starts them: broker, DPU and shim.
//!
//! The DPU's worker is pinned to the backend's core, and its other threads share that core. The shim and the broker
//! are there too, so that nothing of ours is on a core that is not counted, but their CPU time is the host's.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    Backend, CONNECTIONS_MAX, Context, READY_LIMIT, Setting,
    store::{self, VOLUME_LEN_BYTES},
};
use crate::{
    cases::Store,
    error::Failure,
    generator::{ADDRESSES, ALLOWED_PORT_RANGE, MACS, Role, Target, VICTIM_ADDRESSES, VICTIM_MACS},
    launch::{Launch, Running},
    storm::{Policies, RULES, rule},
};

const WHO: &str = "outboard";
const PORTS: [&str; 2] = ["a", "b"];
/// The second pair.
const VICTIMS: [&str; 2] = ["c", "d"];
const VOLUME: &str = "disk";
/// Of the two ports, where there is a firewall.
const GROUPS: [&str; 2] = ["client", "server"];

/// A running `outboard up`.
pub struct Outboard {
    up: Running,
    dpu: u32,
    target: Target,
    policies: Option<Policies>,
}

impl Outboard {
    /// Writes a topology, starts everything, and waits until it is ready.
    pub fn start(context: &Context, setting: Setting, folder: &Path) -> Result<Self, Failure> {
        let topology = match setting {
            Setting::Switch | Setting::Segments => network_topology(None),
            Setting::Firewall | Setting::Connections => network_topology(Some(GROUPS)) + &groups(),
            Setting::ManyRules => network_topology(Some(GROUPS)) + &groups() + &more_rules(0),
            Setting::TwoPairs => network_topology(Some(GROUPS)) + &ports(PAIR, Some(GROUPS)) + &groups(),
            Setting::Volume(store) => volume_topology(context, store)?,
        };
        let file = folder.join("bench.toml");
        fs::write(&file, topology).map_err(|e| Failure::io(WHO, file.display(), &e, "check the space left in /tmp"))?;
        let other = folder.join("other.toml");
        if setting == Setting::ManyRules {
            let topology = network_topology(Some(GROUPS)) + &groups() + &more_rules(1);
            fs::write(&other, topology)
                .map_err(|e| Failure::io(WHO, other.display(), &e, "check the space left in /tmp"))?;
        }
        let run_dir = folder.join("run");
        let core = context.machine.backend_core;
        // Each of the two ports has half of them.
        let connections = (CONNECTIONS_MAX * 2).to_string();
        let limits = match setting {
            Setting::Connections => vec!["--tracked-connections", &connections],
            _ => Vec::new(),
        };
        let mut up = Launch::new(WHO, context.programs.path("outboard"), core)
            .args(["--json", "up"])
            .arg(&file)
            .arg("--run-dir")
            .arg(&run_dir)
            .args(["--core", &core.to_string()])
            .args(limits)
            .read_stdout()
            .start(&folder.join("up.log"))?;
        let ready = first_line(&mut up)?;
        let dpu = dpu_pid(&ready).ok_or_else(|| up.failure("told no process id of the DPU", "report this"))?;
        let socket = |kind: &str, name: &str| run_dir.join(kind).join(format!("{name}.sock"));
        let target = match setting {
            Setting::Volume(_) => Target::Blk(socket("volumes", VOLUME)),
            _ => Target::Net {
                role: Role::Connect,
                a: socket("ports", PORTS[0]),
                b: socket("ports", PORTS[1]),
                victim: (setting == Setting::TwoPairs).then(|| VICTIMS.map(|name| socket("ports", name))),
            },
        };
        let policies = (setting == Setting::ManyRules).then(|| {
            let broker = run_dir.join("broker.sock");
            let apply = |file: &Path| {
                let program = context.programs.path("outboard");
                let words: [&OsStr; 6] = [
                    program.as_ref(),
                    "--socket".as_ref(),
                    broker.as_ref(),
                    "apply".as_ref(),
                    "-f".as_ref(),
                    file.as_ref(),
                ];
                words.map(OsStr::to_owned).into()
            };
            Policies {
                commands: [apply(&file), apply(&other)],
                environment: vec![],
            }
        });
        Ok(Self {
            up,
            dpu,
            target,
            policies,
        })
    }
}

/// The one line that `up --json` prints when everything is ready. Its end comes when `up` ends.
fn first_line(up: &mut Running) -> Result<String, Failure> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = up.take_stdout() {
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            // an empty line means that it ended, which the receiver sees for itself
            let _ = reader.read_line(&mut line);
            let _ = sender.send(line);
            // whoever writes into a pipe that nobody reads is killed
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
        });
    }
    match receiver.recv_timeout(READY_LIMIT) {
        Ok(line) if !line.trim().is_empty() => Ok(line),
        _ => Err(up.failure(format!("was not ready within {READY_LIMIT:?}"), "see what it said")),
    }
}

fn dpu_pid(ready: &str) -> Option<u32> {
    let object: Value = serde_json::from_str(ready).ok()?;
    object.get("pids")?.get("dpu")?.as_u64()?.try_into().ok()
}

/// `groups`: those of the ports; without any, they are not filtered.
fn network_topology(groups: Option<[&str; 2]>) -> String {
    "[[network]]\nname = \"bench\"\nsubnets = [\"10.0.0.0/24\"]\n".to_owned() + &ports([PORTS, MACS, ADDRESSES], groups)
}

/// Names, MACs and addresses of the second pair.
const PAIR: [[&str; 2]; 3] = [VICTIMS, VICTIM_MACS, VICTIM_ADDRESSES];

fn ports([names, macs, addresses]: [[&str; 2]; 3], groups: Option<[&str; 2]>) -> String {
    let mut text = String::new();
    for (index, ((name, mac), address)) in names.into_iter().zip(macs).zip(addresses).enumerate() {
        let _ = write!(
            text,
            "\n[[port]]\nname = \"{name}\"\nnetwork = \"bench\"\nmac = \"{mac}\"\naddresses = [\"{address}\"]\n\
             card = \"local\"\n"
        );
        if let Some(group) = groups.and_then(|groups| groups.get(index).copied()) {
            let _ = writeln!(text, "groups = [\"{group}\"]");
        }
    }
    text
}

/// Connections may be opened from the first port to the allowed destination ports, and what belongs to one passes.
fn groups() -> String {
    let (first, last) = ALLOWED_PORT_RANGE;
    let [client, server] = GROUPS;
    let mut text = format!("\n[[group]]\nname = \"{client}\"\n\n[[group]]\nname = \"{server}\"\negress = \"deny\"\n");
    for protocol in ["udp", "tcp"] {
        let _ = write!(
            text,
            "[[group.rule]]\ndirection = \"ingress\"\nprotocol = \"{protocol}\"\nports = \"{first}-{last}\"\n"
        );
    }
    text
}

/// Many more rules of the last group, none of which matters to the generator's frames. `policy`: one of two.
fn more_rules(policy: usize) -> String {
    let mut text = String::new();
    for n in 0..RULES {
        let (from, port) = rule(policy, n);
        let _ = write!(
            text,
            "[[group.rule]]\ndirection=\"ingress\"\nprotocol=\"udp\"\nports=\"{port}\"\nfrom=\"{from}/32\"\n"
        );
    }
    text
}

fn volume_topology(context: &Context, store: Store) -> Result<String, Failure> {
    let backend = match store {
        Store::Null => "{ null = true }".to_owned(),
        Store::Memory => "{ memory = true }".to_owned(),
        Store::File | Store::Disk | Store::Encrypted => {
            let path: PathBuf = store::file(WHO, context, store)?;
            format!("{{ file = {:?} }}", path.display().to_string())
        }
    };
    Ok(format!(
        "[[volume]]\nname = \"{VOLUME}\"\nsize = \"{}MiB\"\nbackend = {backend}\ncard = \"local\"\n",
        VOLUME_LEN_BYTES >> 20
    ))
}

impl Backend for Outboard {
    fn target(&self) -> Target {
        self.target.clone()
    }

    fn processes(&self) -> BTreeSet<u32> {
        [self.dpu].into()
    }

    fn pollers(&self) -> BTreeSet<u32> {
        // its worker sleeps when there is nothing to do
        BTreeSet::new()
    }

    fn check(&mut self) -> Result<(), Failure> {
        match self.up.ended() {
            None => Ok(()),
            Some(status) => Err(self.up.failure(format!("ended with {status}"), "see what it said")),
        }
    }

    fn policies(&self) -> Option<Policies> {
        self.policies.clone()
    }

    fn version(&self) -> String {
        format!("Outboard {}", env!("CARGO_PKG_VERSION"))
    }
}

impl Drop for Outboard {
    fn drop(&mut self) {
        self.up.stop(Signal::SIGINT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_tells_the_process_id_of_the_dpu() {
        assert_eq!(dpu_pid("{\"pids\":{\"up\":1,\"dpu\":4711}}\n"), Some(4711));
        assert_eq!(dpu_pid("{\"pids\":{}}"), None);
    }

    #[test]
    fn ports_have_the_generators_addresses() {
        let text = network_topology(None);
        assert!(!text.contains("group"), "{text}");
        for word in MACS.into_iter().chain(ADDRESSES) {
            assert!(text.contains(&format!("\"{word}\"")), "{text}");
        }
    }

    #[test]
    fn the_firewall_lets_connections_begin_on_one_side_only() {
        let text = network_topology(Some(GROUPS)) + &groups();
        assert!(
            text.contains("groups = [\"client\"]") && text.contains("groups = [\"server\"]"),
            "{text}"
        );
        assert_eq!(text.matches("ports = \"5120-6143\"").count(), 2, "{text}");
    }
}
