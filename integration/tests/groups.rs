//! Security groups that change while real guests send: what stays allowed flows on, what is forbidden stops, established
//! or not, and what is allowed again may begin anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    time::Duration,
};

use outboard_integration::{
    binaries::Binaries,
    guest::{Guest, GuestSpec},
    setup::{self, GuestImage},
    stack::Stack,
    wait,
};
use tempfile::TempDir;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const COMMAND_LIMIT: Duration = Duration::from_secs(120);
const STATE_LIMIT: Duration = Duration::from_secs(60);
/// How long iperf3 sends while groups change, in seconds.
const SENDING_S: u32 = 10;

/// vm2 serves iperf3; vm1 is its client.
const TOPOLOGY: &str = r#"
[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]

[[group]]
name = "client"

[[group]]
name = "server"
egress = "deny"
[[group.rule]]
name = "ping"
direction = "ingress"
protocol = "icmp"
[[group.rule]]
name = "iperf"
direction = "ingress"
protocol = "tcp"
ports = "5201"

[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
groups = ["client"]
card = "local"

[[port]]
name = "vm2"
network = "blue"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.2"]
groups = ["server"]
card = "local"
"#;

struct Scene {
    folder: TempDir,
    image: GuestImage,
    stack: Stack,
}

impl Scene {
    fn new() -> Outcome<Self> {
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

    fn boot(&self, number: u8) -> Outcome<Guest> {
        let name = format!("vm{number}");
        let spec = GuestSpec {
            port: Some((self.stack.port_socket(&name), format!("52:54:00:00:00:{number:02x}"))),
            address: Some(format!("10.0.0.{number}/24")),
            name,
            ..GuestSpec::default()
        };
        Ok(Guest::start(&spec, &self.image, self.folder.path())?)
    }

    fn rule(&self, change: &str, rule: &[&str]) -> Outcome {
        self.stack
            .outboard(&[&["group", "rule", change, "server"], rule].concat())?;
        Ok(())
    }

    /// Frames that were dropped at a port, by reason, as the card told last.
    fn dropped(&self, port: &str, reason: &str) -> Outcome<u64> {
        let counters = self.stack.json(&["port", "show", port])?["counters"].clone();
        Ok(counters["drops"][reason].as_u64().unwrap_or(0))
    }

    /// Frames of both ports that were dropped, by port and reason.
    fn drops(&self) -> Outcome<BTreeMap<(String, String), u64>> {
        let mut all = BTreeMap::new();
        for port in ["vm1", "vm2"] {
            let counters = self.stack.json(&["port", "show", port])?["counters"].clone();
            for (reason, frames) in counters["drops"].as_object().ok_or("no drops")? {
                all.insert((port.into(), reason.clone()), frames.as_u64().unwrap_or(0));
            }
        }
        // A guest that is slow to take what it gets is nobody's policy.
        all.retain(|(_, reason), frames| *frames > 0 && reason != "rx_full");
        Ok(all)
    }

    /// The same when they stand still: the card tells them twice a second.
    fn settled_drops(&self) -> Outcome<BTreeMap<(String, String), u64>> {
        let mut last = self.drops()?;
        loop {
            std::thread::sleep(Duration::from_millis(1500));
            let now = self.drops()?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
    }
}

fn pings(guest: &mut Guest) -> Outcome<bool> {
    Ok(guest.try_run("ping -c 1 -W 1 10.0.0.2 >/dev/null", COMMAND_LIMIT)?.0 == 0)
}

fn send(guest: &mut Guest, seconds: u32) -> Outcome<i32> {
    let command = format!("iperf3 -c 10.0.0.2 -t {seconds} --connect-timeout 5000 >/tmp/once 2>&1");
    Ok(guest.try_run(&command, COMMAND_LIMIT)?.0)
}

#[test]
fn groups_change_under_traffic_of_real_guests() -> Outcome {
    let scene = Scene::new()?;
    let (mut vm1, mut vm2) = (scene.boot(1)?, scene.boot(2)?);
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    let reached = wait::until(COMMAND_LIMIT, || pings(&mut vm1).ok().filter(|answered| *answered));
    assert!(reached.is_some(), "vm2 answers");
    // What guests say of their multicast groups (MLD) is not allowed here, and dropped now and then.
    for guest in [&mut vm1, &mut vm2] {
        guest.run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", COMMAND_LIMIT)?;
    }
    let before = scene.settled_drops()?;
    vm2.run("iperf3 -s -D", COMMAND_LIMIT)?;

    // Changes that leave the traffic allowed: no second without it, no error, and nothing dropped.
    vm1.start_in_background(&format!("iperf3 -c 10.0.0.2 -t {SENDING_S} -i 1 -f k"), "/tmp/through")?;
    let mut changes = 0;
    let begin = std::time::Instant::now();
    while begin.elapsed() < Duration::from_secs(u64::from(SENDING_S)) {
        let port = (6000 + changes).to_string();
        let other = [
            "--direction",
            "ingress",
            "--protocol",
            "udp",
            "--ports",
            &port,
            "--name",
            "other",
        ];
        scene.rule("add", &other)?;
        // The rule that decides is another one in between, and the connection is judged anew by it.
        scene.rule(
            "add",
            &["--direction", "ingress", "--protocol", "tcp", "--name", "all-tcp"],
        )?;
        scene.rule("remove", &["iperf"])?;
        let iperf = [
            "--direction",
            "ingress",
            "--protocol",
            "tcp",
            "--ports",
            "5201",
            "--name",
            "iperf",
        ];
        scene.rule("add", &iperf)?;
        scene.rule("remove", &["all-tcp"])?;
        scene.rule("remove", &["other"])?;
        changes += 6;
    }
    let (status, output) = vm1.finish_background("/tmp/through", COMMAND_LIMIT)?;
    assert_eq!(status, 0, "{output}");
    let seconds = output
        .lines()
        .filter(|line| line.contains("Kbits/sec") && !line.contains("er"));
    let silent: Vec<_> = seconds.filter(|line| line.contains(" 0.00 Kbits/sec")).collect();
    assert!(silent.is_empty(), "{silent:?}");
    assert!(changes >= 6, "groups changed meanwhile");
    assert_eq!(scene.settled_drops()?, before, "after {changes} changes");

    // A change that forbids it: an established connection ends, and no other begins; what is allowed goes on.
    // The server may take an instant to be done with the former client.
    let flows = wait::until(COMMAND_LIMIT, || {
        vm1.start_in_background("iperf3 -c 10.0.0.2 -t 60 -i 1 -f k --forceflush", "/tmp/cut")
            .ok()?;
        wait::until(Duration::from_secs(5), || {
            let seconds = vm1.run("grep Kbits/sec /tmp/cut || true", COMMAND_LIMIT).ok()?;
            seconds.lines().any(|line| !line.contains(" 0.00 ")).then_some(())
        })
    });
    assert!(flows.is_some(), "it sends");
    let listed = scene.stack.outboard(&["flow", "list", "--port", "vm2", "tcp"])?;
    assert!(
        listed.contains("10.0.0.2:5201"),
        "its connections are followed: {listed}"
    );
    scene.rule("remove", &["iperf"])?;
    let denied = wait::until(STATE_LIMIT, || {
        scene
            .dropped("vm2", "ingress_no_rule")
            .ok()
            .filter(|frames| *frames > 0)
    });
    assert!(denied.is_some(), "its packets are denied");
    // The client says so itself: whole seconds in which nothing goes out any more.
    let stopped = wait::until(STATE_LIMIT, || {
        let count = vm1
            .run("grep -c ' 0.00 Kbits/sec' /tmp/cut || true", COMMAND_LIMIT)
            .ok()?;
        count.trim().parse::<u32>().ok().filter(|silent| *silent >= 2)
    });
    assert!(
        stopped.is_some(),
        "an established connection stops: {}",
        vm1.run("cat /tmp/cut", COMMAND_LIMIT)?
    );
    assert!(pings(&mut vm1)?, "control: what is allowed passes");
    assert_ne!(send(&mut vm1, 1)?, 0, "no other connection begins");
    let more: BTreeSet<_> = scene
        .settled_drops()?
        .into_iter()
        .filter(|(at, frames)| before.get(at) != Some(frames))
        .map(|((_, reason), _)| reason)
        .collect();
    let known = ["ct_invalid", "ingress_no_rule"].map(String::from);
    assert!(more.is_subset(&known.into()), "{more:?}");

    // Allowed again: what begins anew passes.
    vm1.run("killall iperf3", COMMAND_LIMIT)?;
    vm2.run("killall iperf3; iperf3 -s -D", COMMAND_LIMIT)?;
    scene.rule(
        "add",
        &[
            "--direction",
            "ingress",
            "--protocol",
            "tcp",
            "--ports",
            "5201",
            "--name",
            "iperf",
        ],
    )?;
    let again = wait::until(STATE_LIMIT, || send(&mut vm1, 1).ok().filter(|status| *status == 0));
    assert!(again.is_some(), "and is allowed again");
    println!("{changes} changes under traffic; cut and allowed again");
    drop((vm1, vm2));
    scene.stack.stop()?;
    Ok(())
}
