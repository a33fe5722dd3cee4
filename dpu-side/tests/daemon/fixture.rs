//! A card with a state directory of its own, and desired states for it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use dpu_side::{clock, config::Config, daemon::Daemon, identity::Identity, state_file::StateFile, state_lock::IfHeld};
use outboard_protocol::{
    card_side::{CardCore, Effect, Input},
    desired::{DesiredState, Grant, Port, Volume, VolumeBackend},
    id::{BrokerEpoch, Generation, Incarnation, MacAddr, Name, ObjectKind, ObjectRef, Revision},
};

use crate::{WORKERS, broker::Authority, host::Host};

pub const CARD: &str = "local";

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub fn port(text: &str) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: name(text),
    }
}

pub fn volume(text: &str) -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Volume,
        name: name(text),
    }
}

/// How long something may take that is only to happen at all. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what happens on other threads.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A desired state with ports `vm1`, `vm2`, … of one network, without grants.
pub fn desired(revision: u64, ports: u8) -> DesiredState {
    let described = |n: u8| Port {
        name: name(&format!("vm{n}")),
        network: name("blue"),
        mac: MacAddr([0x52, 0x54, 0, 0, 0, n]),
        addresses: vec![[10, 0, 0, n].into()],
        groups: None,
        trunk: None,
    };
    DesiredState {
        broker_epoch: BrokerEpoch(1),
        revision: Revision(revision),
        ports: (1..=ports).map(described).collect(),
        ..DesiredState::default()
    }
}

pub trait Change {
    /// With a volume.
    fn with(self, volume: &str, size_bytes: u64, backend: VolumeBackend) -> Self;
    /// With a grant to this card's host.
    fn grant(self, object: ObjectRef, generation: u64) -> Self;
}

impl Change for DesiredState {
    fn with(mut self, volume: &str, size_bytes: u64, backend: VolumeBackend) -> Self {
        self.volumes.push(Volume {
            name: name(volume),
            size_bytes,
            backend,
            read_only: false,
        });
        self
    }

    fn grant(mut self, object: ObjectRef, generation: u64) -> Self {
        self.grants.push(Grant {
            object,
            host: name(CARD),
            generation: Generation(generation),
            incarnation: Incarnation(generation),
            expires_unix_s: None,
        });
        self
    }
}

/// Two ports, both granted.
pub fn two_ports() -> DesiredState {
    desired(1, 2).grant(port("vm1"), 1).grant(port("vm2"), 1)
}

/// The record of a card that holds `state`.
pub fn record(state: DesiredState) -> Vec<u8> {
    let (mut core, _) = CardCore::start(name(CARD), None, clock::now());
    let effects = core.handle(Input::Desired(state), clock::now());
    let persisted = effects.into_iter().find_map(|effect| match effect {
        Effect::Persist(record) => Some(record),
        _ => None,
    });
    persisted.expect("a desired state is made durable")
}

/// An enrolled card in a directory of its own.
pub struct Card {
    directory: tempfile::TempDir,
    pub authority: Authority,
    pub config: Config,
}

impl Card {
    /// Enrolled with a broker that is away.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new();
        let at = |file: &str| directory.path().join(file).display().to_string();
        let text = format!(
            "state_dir = '{}'\nserial = 'SN1'\nlink_socket = '{}'\nvolume_dir = '{}'\nworkers = {WORKERS}\n",
            at("state"),
            at("link"),
            at("volumes")
        );
        let config = Config::parse(&text).expect("a configuration");
        std::fs::create_dir_all(&config.state_dir).expect("a directory");
        std::fs::create_dir_all(&config.volume_dir).expect("a directory");
        // Port 1 answers nobody.
        authority
            .identity(CARD, "127.0.0.1:1")
            .save(&config.state_dir)
            .expect("saved");
        Self {
            directory,
            authority,
            config,
        }
    }

    /// That holds a desired state from an earlier life.
    pub fn holding(state: DesiredState) -> Self {
        let card = Self::new();
        let (mut file, _) = StateFile::open(&card.config.state_dir).expect("readable");
        file.save(&record(state)).expect("saved");
        card
    }

    pub fn identity(&self, address: &str) -> Identity {
        self.authority.identity(CARD, address)
    }

    pub fn start(&self) -> Daemon {
        Daemon::start(&self.config, IfHeld::Fail).expect("the daemon starts")
    }

    /// A connection of the host, greeted.
    pub fn host(&self) -> Host {
        Host::greeted(&self.config.link_socket)
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn volume_path(&self, file: &str) -> PathBuf {
        self.config.volume_dir.join(file)
    }
}

/// The control of a negative test: with `check` off, in a process of its own, the attack succeeds, and so the test
/// fails where it says so.
pub fn fails_without(check: &str, test: &str, told: &str) {
    let myself = std::env::current_exe().expect("this program");
    let run = std::process::Command::new(myself)
        .args(["--exact", test, "--nocapture"])
        .env("OUTBOARD_CHECKS_OFF", check)
        .output()
        .expect("this program runs");
    let output = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(output.contains("running 1 test"), "there is no test {test}");
    assert!(
        !run.status.success() && output.contains(told),
        "without {check} nothing changes: {output}"
    );
}
