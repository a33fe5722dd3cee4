//! A trunk with real guests: one network device each, and VLAN devices in the guests' kernels for their subports.

use std::{error::Error, fs, time::Duration};

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

/// vm1 is on blue, and on green and red as subports; vm2 is on green without a tag, and on red as a subport with another
/// VLAN id than vm1's.
const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]

[[network]]
name = "green"
subnets = ["10.0.1.0/24"]
vlan = 100

[[network]]
name = "red"
subnets = ["10.0.2.0/24"]

[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
card = "local"

[[port]]
name = "vm1-green"
network = "green"
mac = "52:54:00:00:00:01"
addresses = ["10.0.1.1"]
trunk = { parent = "vm1" }

[[port]]
name = "vm1-red"
network = "red"
mac = "52:54:00:00:00:01"
addresses = ["10.0.2.1"]
trunk = { parent = "vm1", vlan = 200 }

[[port]]
name = "vm2"
network = "green"
mac = "52:54:00:00:00:02"
addresses = ["10.0.1.2"]
card = "local"

[[port]]
name = "vm2-red"
network = "red"
mac = "52:54:00:00:00:02"
addresses = ["10.0.2.2"]
trunk = { parent = "vm2", vlan = 7 }
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
        let stack = Stack::up(&Binaries::build()?, &topology, folder.path(), |_| {})?;
        Ok(Self {
            folder,
            image: setup::guest_image()?,
            stack,
        })
    }

    fn boot(&self, number: u8, address: &str) -> Result<Guest, Box<dyn Error>> {
        let name = format!("vm{number}");
        let spec = GuestSpec {
            port: Some((self.stack.port_socket(&name), format!("52:54:00:00:00:{number:02x}"))),
            address: Some(format!("{address}/24")),
            name,
            ..GuestSpec::default()
        };
        Ok(Guest::start(&spec, &self.image, self.folder.path())?)
    }

    /// Waits until frames were dropped at a port for a reason.
    fn wait_dropped(&self, port: &str, reason: &str) -> bool {
        wait::until(STATE_LIMIT, || {
            let port = self.stack.json(&["port", "show", port]).ok()?;
            port["counters"]["drops"][reason].as_u64().filter(|frames| *frames > 0)
        })
        .is_some()
    }

    fn wait_active(&self, ports: &[&str]) {
        for port in ports {
            let active = self.stack.wait_binding("port", port, "active", STATE_LIMIT);
            assert!(active, "port {port} is active");
        }
    }
}

/// A VLAN device in a guest, with an address.
fn add_vlan(guest: &mut Guest, name: &str, id: u16, address: &str) -> Outcome {
    let make = format!("ip link add link eth0 name {name} type vlan id {id}");
    let up = format!("ip addr add {address}/24 dev {name} && ip link set {name} up");
    guest.run(&format!("{make} && {up}"), COMMAND_LIMIT)?;
    Ok(())
}

fn ping(guest: &mut Guest, options: &str, to: &str) -> Result<bool, Box<dyn Error>> {
    let (status, _) = guest.try_run(&format!("ping {options} {to} >/dev/null"), COMMAND_LIMIT)?;
    Ok(status == 0)
}

#[track_caller]
fn reaches(guest: &mut Guest, to: &str) {
    let answered = wait::until(COMMAND_LIMIT, || {
        ping(guest, "-c 1 -W 1", to).ok().filter(|answered| *answered)
    });
    assert!(answered.is_some(), "{to} answers");
}

#[test]
fn p02_two_subports_of_a_guest_reach_their_networks_and_nothing_else() -> Outcome {
    let scene = Scene::new()?;
    assert!(
        !scene.stack.port_socket("vm1-green").exists(),
        "a subport has no socket"
    );
    let (mut vm1, mut vm2) = (scene.boot(1, "10.0.0.1")?, scene.boot(2, "10.0.1.2")?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    add_vlan(&mut vm1, "green", 100, "10.0.1.1")?;
    add_vlan(&mut vm1, "red", 200, "10.0.2.1")?;
    add_vlan(&mut vm2, "red", 7, "10.0.2.2")?;
    reaches(&mut vm1, "10.0.1.2");
    reaches(&mut vm1, "10.0.2.2");
    reaches(&mut vm2, "10.0.2.1");
    scene.wait_active(&["vm1", "vm1-green", "vm1-red", "vm2", "vm2-red"]);

    // Large segments, from a VLAN device to one without a tag and back: sums and lengths are right for both.
    let make = "dd if=/dev/urandom of=/tmp/big bs=1M count=8 2>/dev/null";
    vm1.run(make, COMMAND_LIMIT)?;
    vm1.run("httpd -p 7000 -h /tmp", COMMAND_LIMIT)?;
    let sent = vm1.run("sha256sum < /tmp/big", COMMAND_LIMIT)?;
    for server in ["10.0.1.1", "10.0.2.1"] {
        vm2.run(&format!("wget -q -O /tmp/got http://{server}:7000/big"), COMMAND_LIMIT)?;
        assert_eq!(vm2.run("sha256sum < /tmp/got", COMMAND_LIMIT)?, sent, "from {server}");
    }

    // Isolation: another VLAN id, the other network's addresses, and the parent's network.
    add_vlan(&mut vm1, "other", 300, "10.0.3.1")?;
    assert!(!ping(&mut vm1, "-c 2 -W 1", "10.0.3.2")?);
    assert!(scene.wait_dropped("vm1", "unknown_vlan"));
    vm1.run("ip route add 10.0.1.2/32 dev red", COMMAND_LIMIT)?;
    assert!(!ping(&mut vm1, "-c 2 -W 1", "10.0.1.2")?, "green's address on red");
    vm1.run("ip route del 10.0.1.2/32 dev red", COMMAND_LIMIT)?;
    vm1.run("ip route add 10.0.1.2/32 dev eth0", COMMAND_LIMIT)?;
    assert!(!ping(&mut vm1, "-c 2 -W 1", "10.0.1.2")?, "green's address on blue");
    vm1.run("ip route del 10.0.1.2/32 dev eth0", COMMAND_LIMIT)?;
    // A source that is its port's on another VLAN.
    assert!(!ping(&mut vm1, "-c 2 -W 1 -I 10.0.2.1", "10.0.1.2")?);
    assert!(scene.wait_dropped("vm1-green", "spoofed_ipv4"));
    reaches(&mut vm1, "10.0.1.2");

    // Groups are each subport's own.
    scene.stack.outboard(&["port", "set", "vm1-green", "--groups", ""])?;
    // It is in force when the card has it, an instant after the broker.
    let filtered = wait::until(STATE_LIMIT, || {
        ping(&mut vm1, "-c 1 -W 1", "10.0.1.2")
            .ok()
            .filter(|answered| !answered)
    });
    assert!(filtered.is_some(), "filtered");
    reaches(&mut vm1, "10.0.2.2");
    let trace = ["trace", "--port", "vm1-green", "icmp 10.0.1.1 > 10.0.1.2"];
    let traced = scene.stack.outboard(&trace)?;
    assert!(traced.contains("egress_no_rule"), "{traced}");
    scene.stack.outboard(&["port", "set", "vm1-green", "--unfiltered"])?;
    reaches(&mut vm1, "10.0.1.2");
    scene.stack.stop()?;
    Ok(())
}

#[test]
fn p08_a_subport_is_revoked_alone_and_its_parent_with_all_of_its_own() -> Outcome {
    let scene = Scene::new()?;
    let (mut vm1, mut vm2) = (scene.boot(1, "10.0.0.1")?, scene.boot(2, "10.0.1.2")?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    add_vlan(&mut vm1, "green", 100, "10.0.1.1")?;
    add_vlan(&mut vm1, "red", 200, "10.0.2.1")?;
    add_vlan(&mut vm2, "red", 7, "10.0.2.2")?;
    reaches(&mut vm1, "10.0.1.2");
    reaches(&mut vm1, "10.0.2.2");

    let generation = || -> Result<Option<u64>, Box<dyn Error>> {
        Ok(scene.stack.json(&["port", "show", "vm1-red"])?["binding"]["generation"].as_u64())
    };
    let first = generation()?;
    scene.stack.outboard(&["grant", "revoke", "port", "vm1-red"])?;
    assert!(!ping(&mut vm1, "-c 2 -W 1", "10.0.2.2")?, "red is silent");
    reaches(&mut vm1, "10.0.1.2");
    scene.stack.outboard(&["grant", "create", "port", "vm1-red"])?;
    scene.wait_active(&["vm1-red"]);
    reaches(&mut vm1, "10.0.2.2");
    assert!(first < generation()?, "a new binding has a higher generation");

    scene.stack.outboard(&["grant", "revoke", "port", "vm1"])?;
    for address in ["10.0.1.2", "10.0.2.2"] {
        assert!(!ping(&mut vm1, "-c 2 -W 1", address)?, "{address} with its parent");
    }
    let names_parent = || {
        let text = scene.stack.outboard(&["explain", "port/vm1-red"]).ok()?;
        text.contains("its parent, port vm1, is").then_some(())
    };
    assert!(
        wait::until(STATE_LIMIT, names_parent).is_some(),
        "explain names the parent"
    );
    scene.stack.outboard(&["grant", "create", "port", "vm1"])?;
    scene.wait_active(&["vm1", "vm1-green", "vm1-red"]);
    reaches(&mut vm1, "10.0.1.2");
    reaches(&mut vm1, "10.0.2.2");
    scene.stack.stop()?;
    Ok(())
}
