//! End to end: real guests, real processes, everything between.

use std::{error::Error, fs, path::Path, time::Duration};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_integration::{
    binaries::Binaries,
    guest::{Guest, GuestSpec},
    setup::{self, GuestImage},
    stack::Stack,
    wait,
};
use tempfile::TempDir;

type Outcome = Result<(), Box<dyn Error>>;

const COMMAND_LIMIT: Duration = Duration::from_secs(60);
const STATE_LIMIT: Duration = Duration::from_secs(60);
const VOLUME_LEN_BYTES: u64 = 64 << 20;

/// Ports vm1 and vm2 of network blue, and the volume disk1.
const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24", "fd00:1::/64"]

[[volume]]
name = "disk1"
size = "64MiB"
backend = { file = "disk1.raw" }

[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1", "fd00:1::1"]
card = "local"

[[port]]
name = "vm2"
network = "blue"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.2", "fd00:1::2"]
card = "local"
"#;

struct Scene {
    folder: TempDir,
    image: GuestImage,
    stack: Stack,
}

impl Scene {
    fn new() -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::Builder::new().prefix("outboard.").tempdir()?;
        let topology = folder.path().join("topology.toml");
        fs::write(&topology, TOPOLOGY)?;
        fs::File::create(folder.path().join("disk1.raw"))?.set_len(VOLUME_LEN_BYTES)?;
        let stack = Stack::up(&Binaries::build()?, &topology, folder.path(), |_| {})?;
        Ok(Self {
            folder,
            image: setup::guest_image()?,
            stack,
        })
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn spec(&self, number: u8, volume: bool) -> GuestSpec {
        let name = format!("vm{number}");
        GuestSpec {
            port: Some((self.stack.port_socket(&name), format!("52:54:00:00:00:{number:02x}"))),
            volume: volume.then(|| self.stack.volume_socket("disk1")),
            address: Some(format!("10.0.0.{number}/24")),
            name,
            ..GuestSpec::default()
        }
    }

    fn boot(&self, number: u8, volume: bool) -> Result<Guest, Box<dyn Error>> {
        Ok(Guest::start(&self.spec(number, volume), &self.image, self.folder())?)
    }

    /// Counter `name` of a port; a reason counts as the drops for it.
    fn counter(&self, port: &str, name: &str) -> Result<u64, Box<dyn Error>> {
        let counters = self.stack.json(&["port", "show", port])?["counters"].clone();
        Ok(counters[name]
            .as_u64()
            .or(counters["drops"][name].as_u64())
            .unwrap_or(0))
    }

    /// Counters of vm1 and vm2, taken when both stand still: the DPU reports them twice a second.
    fn settled(&self) -> Result<[serde_json::Value; 2], Box<dyn Error>> {
        let one = |port| {
            self.stack
                .json(&["port", "show", port])
                .map(|port| port["counters"].clone())
        };
        let read = || -> Result<_, Box<dyn Error>> { Ok([one("vm1")?, one("vm2")?]) };
        let mut last = read()?;
        loop {
            std::thread::sleep(Duration::from_millis(1500));
            let now = read()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }
}

fn ping(guest: &mut Guest, options: &str, to: &str) -> Result<bool, Box<dyn Error>> {
    Ok(guest
        .try_run(&format!("ping {options} {to} >/dev/null"), COMMAND_LIMIT)?
        .0
        == 0)
}

fn wait_ping(guest: &mut Guest, to: &str) -> bool {
    wait::until(COMMAND_LIMIT, || {
        ping(guest, "-c 1 -W 1", to).ok().filter(|answered| *answered)
    })
    .is_some()
}

#[test]
fn two_guests_talk_and_one_keeps_its_files() -> Outcome {
    let scene = Scene::new()?;
    let (mut vm1, mut vm2) = (scene.boot(1, true)?, scene.boot(2, false)?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    assert!(wait_ping(&mut vm1, "10.0.0.2"), "vm1 reaches vm2");
    for (kind, name) in [("port", "vm1"), ("port", "vm2"), ("volume", "disk1")] {
        assert!(
            scene.stack.wait_binding(kind, name, "active", STATE_LIMIT),
            "{kind} {name} is active"
        );
    }

    // IPv6 with neighbour discovery, and exact counters for it: every frame that one guest sent the other received
    vm1.run("ip -6 addr add fd00:1::1/64 dev eth0", COMMAND_LIMIT)?;
    vm2.run("ip -6 addr add fd00:1::2/64 dev eth0", COMMAND_LIMIT)?;
    assert!(
        wait::until(COMMAND_LIMIT, || {
            ping(&mut vm1, "-6 -c 1 -W 1", "fd00:1::2")
                .ok()
                .filter(|answered| *answered)
        })
        .is_some()
    );
    let before = scene.settled()?;
    assert!(ping(&mut vm1, "-c 20 -i 0.05", "10.0.0.2")?);
    let after = scene.settled()?;
    let delta =
        |vm: usize, name: &str| after[vm - 1][name].as_u64().unwrap_or(0) - before[vm - 1][name].as_u64().unwrap_or(0);
    assert!(
        delta(1, "tx_frames") >= 20,
        "20 echo requests, perhaps ARP: {before:?} {after:?}"
    );
    for (vm, port) in before.iter().enumerate() {
        assert_eq!(port["drops"], after[vm]["drops"], "nothing is dropped");
    }
    for what in ["frames", "bytes"] {
        let (tx, rx) = (format!("tx_{what}"), format!("rx_{what}"));
        assert_eq!(delta(1, &tx), delta(2, &rx), "{what} from vm1: {before:?} {after:?}");
        assert_eq!(delta(2, &tx), delta(1, &rx), "{what} from vm2: {before:?} {after:?}");
    }

    // large segments: a file over TCP arrives whole
    vm1.run(
        "dd if=/dev/urandom of=/tmp/big bs=1M count=16 2>/dev/null",
        COMMAND_LIMIT,
    )?;
    vm1.run("httpd -p 7000 -h /tmp", COMMAND_LIMIT)?;
    vm2.run("wget -q -O /tmp/big http://10.0.0.1:7000/big", COMMAND_LIMIT)?;
    let sent = vm1.run("sha256sum < /tmp/big", COMMAND_LIMIT)?;
    let came = vm2.run("sha256sum < /tmp/big", COMMAND_LIMIT)?;
    assert_eq!(came, sent, "16 MiB over TCP arrive unchanged");

    // a filesystem, over a restart of the guest
    vm1.run(
        "mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt && cp /tmp/big /mnt/ && sync",
        COMMAND_LIMIT,
    )?;
    drop(vm1);
    assert!(
        scene.stack.wait_binding("volume", "disk1", "attached", STATE_LIMIT),
        "killed VMM: attached again"
    );
    let mut vm1 = scene.boot(1, true)?;
    vm1.wait_booted()?;
    vm1.run("mount -t ext4 /dev/vda /mnt", COMMAND_LIMIT)?;
    assert_eq!(
        vm1.run("sha256sum < /mnt/big", COMMAND_LIMIT)?,
        sent,
        "what was synced before the kill is there"
    );
    assert!(
        wait_ping(&mut vm1, "10.0.0.2"),
        "the new guest on the old port has its network"
    );
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn p02_spoofed_sources_are_dropped_and_counted() -> Outcome {
    let scene = Scene::new()?;
    let (mut vm1, mut vm2) = (scene.boot(1, false)?, scene.boot(2, false)?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    assert!(wait_ping(&mut vm1, "10.0.0.2"), "legitimate traffic before");

    let before = scene.counter("vm1", "spoofed_ipv4")?;
    vm1.run("ip addr add 10.0.0.66/24 dev eth0", COMMAND_LIMIT)?;
    assert!(
        !ping(&mut vm1, "-c 3 -i 0.2 -W 1 -I 10.0.0.66", "10.0.0.2")?,
        "a foreign source gets no answer"
    );
    let counted = wait::until(STATE_LIMIT, || {
        scene.counter("vm1", "spoofed_ipv4").ok().filter(|n| *n >= before + 3)
    });
    assert_eq!(counted, Some(before + 3), "each is counted under its reason");

    vm1.run(
        "ip link set eth0 down && ip link set eth0 address 52:54:00:00:00:02 && ip link set eth0 up",
        COMMAND_LIMIT,
    )?;
    assert!(
        !ping(&mut vm1, "-c 2 -W 1", "10.0.0.2")?,
        "a foreign MAC gets no answer"
    );
    let counted = wait::until(STATE_LIMIT, || {
        scene.counter("vm1", "spoofed_mac").ok().filter(|n| *n > 0)
    });
    assert!(counted.is_some(), "a foreign MAC is counted");

    vm1.run(
        "ip link set eth0 down && ip link set eth0 address 52:54:00:00:00:01 && ip link set eth0 up",
        COMMAND_LIMIT,
    )?;
    vm1.run("ip addr del 10.0.0.66/24 dev eth0", COMMAND_LIMIT)?;
    assert!(wait_ping(&mut vm1, "10.0.0.2"), "legitimate traffic after");
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn p08_revoked_port_is_silent_and_returns_when_granted_again() -> Outcome {
    let scene = Scene::new()?;
    let (mut vm1, mut vm2) = (scene.boot(1, false)?, scene.boot(2, false)?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    assert!(wait_ping(&mut vm1, "10.0.0.2"), "traffic before");
    let first = scene.stack.json(&["port", "show", "vm2"])?["binding"]["generation"].as_u64();

    scene.stack.outboard(&["grant", "revoke", "port", "vm2"])?;
    assert!(!ping(&mut vm1, "-c 3 -i 0.2 -W 1", "10.0.0.2")?, "vm2 is silent");
    assert!(!ping(&mut vm2, "-c 3 -i 0.2 -W 1", "10.0.0.1")?, "and reaches nobody");

    scene.stack.outboard(&["grant", "create", "port", "vm2"])?;
    assert!(
        scene.stack.wait_binding("port", "vm2", "active", COMMAND_LIMIT),
        "QEMU reconnects by itself"
    );
    assert!(wait_ping(&mut vm1, "10.0.0.2"), "traffic after");
    let second = scene.stack.json(&["port", "show", "vm2"])?["binding"]["generation"].as_u64();
    assert!(
        first < second,
        "a new binding has a higher generation: {first:?} {second:?}"
    );
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn traffic_goes_on_while_the_broker_hangs() -> Outcome {
    let scene = Scene::new()?;
    let (mut vm1, mut vm2) = (scene.boot(1, true)?, scene.boot(2, false)?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    assert!(wait_ping(&mut vm1, "10.0.0.2"), "traffic before");
    let broker = Pid::from_raw(scene.stack.pid("broker").ok_or("no pid of the broker")?.try_into()?);
    kill(broker, Signal::SIGSTOP)?;
    let while_away = (|| -> Result<_, Box<dyn Error>> {
        let answered = ping(&mut vm1, "-c 5 -i 0.2 -W 1", "10.0.0.2")?;
        vm1.run(
            "dd if=/dev/zero of=/dev/vda bs=64k count=16 oflag=direct 2>/dev/null",
            COMMAND_LIMIT,
        )?;
        Ok((
            answered,
            scene
                .stack
                .outboard(&["port", "list"])
                .err()
                .map(|error| error.to_string()),
        ))
    })();
    kill(broker, Signal::SIGCONT)?;
    let (answered, refused) = while_away?;
    assert!(answered, "the network needs no broker");
    let refused = refused.ok_or("the command line had an answer from a stopped broker")?;
    assert!(
        refused.contains("broker"),
        "the error names who does not answer: {refused}"
    );
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn a_guest_without_shared_memory_is_named_with_the_remedy() -> Outcome {
    let scene = Scene::new()?;
    let spec = GuestSpec {
        shared_memory: false,
        ..scene.spec(1, false)
    };
    // QEMU may refuse to start or start with a dead device; either way the shim has to tell why.
    let _guest = Guest::start(&spec, &scene.image, scene.folder());
    let api = scene.stack.run_dir().join("shim.sock");
    let told = wait::until(STATE_LIMIT, || {
        let output = std::process::Command::new(Binaries::build().ok()?.path("outboard-shim"))
            .arg("list")
            .arg("--api")
            .arg(&api)
            .output()
            .ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text.contains("shared memory") && text.contains("share=on")).then_some(text)
    });
    assert!(
        told.is_some(),
        "the shim's list names the missing shared memory and the remedy"
    );
    scene.stack.stop()?;
    Ok(())
}
