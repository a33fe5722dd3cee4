//! `cargo demo`: two real guests on a software DPU, every step shown and every figure in the closing table measured.
#![forbid(unsafe_code)]

use std::{
    error::Error,
    fs,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use nix::sys::signal::{SigSet, Signal};
use outboard_integration::{
    binaries::Binaries,
    guest::{Guest, GuestSpec},
    process::cpu_time,
    setup,
    stack::Stack,
    wait,
};

/// Boot two guests on a software DPU and show what Outboard does for them.
///
/// Installs what is missing (QEMU, iperf3; asks first on a terminal), builds, starts broker, DPU and shim with
/// `outboard up`, boots two guests under QEMU and shows: the allocation of ports, traffic between the guests, a
/// spoofed packet dropped with its reason, a filesystem on a volume, and a port revoked and silent.
/// The exit status tells whether all of it was seen.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo demo           about a minute once everything is built\n  \
    cargo demo --keep    leave everything running afterwards, to look around"
)]
struct Arguments {
    /// Install missing packages without asking.
    #[arg(long)]
    yes: bool,
    /// Leave everything running until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Seconds that iperf3 sends.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    iperf_seconds: u64,
}

const TOPOLOGY: &str = r#"[[network]]
name = "blue"
subnets = ["10.0.0.0/24"]

[[volume]]
name = "disk1"
size = "256MiB"
backend = { file = "disk1.raw" }

[[port]]
name = "vm1"
network = "blue"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.1"]
card = "local"

[[port]]
name = "vm2"
network = "blue"
mac = "52:54:00:00:00:02"
addresses = ["10.0.0.2"]
card = "local"
"#;

/// Size of `disk1` in the topology above.
const VOLUME_LEN_BYTES: u64 = 256 << 20;
/// What the filesystem step writes.
const FILE_LEN_MIB: u64 = 32;
/// Share of a core that the shim may use while traffic flows; it is not on the data path.
const SHIM_CPU_SHARE_MAX: f64 = 0.005;
/// Ordinary limit of a command in a guest.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How many packets the spoofing and the revocation steps send.
const PROBES: u64 = 5;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What was seen, for the closing table.
struct Report {
    started: Instant,
    rows: Vec<[String; 3]>,
    good: bool,
}

impl Report {
    fn say(&self, text: &str) {
        println!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64());
    }

    fn seen(&mut self, what: &str, measured: String, good: bool) {
        self.say(&format!("{} {what}: {measured}", if good { "✔" } else { "✘" }));
        self.good &= good;
        self.rows
            .push([what.into(), measured, if good { "yes".into() } else { "NO".into() }]);
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut report = Report {
        started: Instant::now(),
        rows: Vec::new(),
        good: true,
    };
    if let Err(error) = show(&arguments, &mut report) {
        eprintln!("error: {error}");
        report.good = false;
    }
    let mut table = Table::new();
    table
        .load_style(UTF8_FULL_CONDENSED)
        .set_header(["what", "measured", "as it should be"]);
    table.add_rows(&report.rows);
    println!("{table}");
    report.say(if report.good {
        "demo: everything was seen"
    } else {
        "demo: NOT everything was seen"
    });
    if report.good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn show(arguments: &Arguments, report: &mut Report) -> Outcome<()> {
    report.say("setting up: packages, guest kernel, initramfs");
    setup::packages(arguments.yes)?;
    let image = setup::guest_image()?;
    report.say("building broker, DPU, shim and command line");
    let binaries = Binaries::build()?;

    let folder = tempfile::Builder::new().prefix("outboard-demo.").tempdir()?;
    let topology = folder.path().join("demo.toml");
    fs::write(&topology, TOPOLOGY)?;
    fs::File::create(folder.path().join("disk1.raw"))?.set_len(VOLUME_LEN_BYTES)?;

    report.say("outboard up demo.toml");
    let stack = Stack::up(&binaries, &topology, folder.path(), |_| {})?;
    allocation(&stack, report)?;

    report.say("booting two guests under QEMU (emulated CPU: the first boot takes a while)");
    let booting = Instant::now();
    let mut vm1 = Guest::start(&spec(&stack, "vm1", 1, Some("disk1")), &image, folder.path())?;
    let mut vm2 = Guest::start(&spec(&stack, "vm2", 2, None), &image, folder.path())?;
    vm1.wait_booted()?;
    vm2.wait_booted()?;
    report.seen(
        "two guests booted",
        format!("{:.1} s", booting.elapsed().as_secs_f64()),
        true,
    );

    active(&stack, report)?;
    traffic(&stack, &mut vm1, &mut vm2, arguments.iperf_seconds, report)?;
    spoofing(&stack, &mut vm1, report)?;
    filesystem(&mut vm1, folder.path(), report)?;
    revocation(&stack, &mut vm1, report)?;

    if arguments.keep {
        keep(&stack, report)?;
    }
    drop((vm1, vm2));
    stack.stop()?;
    report.say("guests, shim, DPU and broker stopped");
    Ok(())
}

fn spec(stack: &Stack, name: &str, number: u8, volume: Option<&str>) -> GuestSpec {
    GuestSpec {
        name: name.into(),
        port: Some((stack.port_socket(name), format!("52:54:00:00:00:{number:02x}"))),
        volume: volume.map(|volume| stack.volume_socket(volume)),
        address: Some(format!("10.0.0.{number}/24")),
        memory_mib: 384,
        ..GuestSpec::default()
    }
}

/// Ports and the volume went from reserved to attached before any VM is there.
fn allocation(stack: &Stack, report: &mut Report) -> Outcome<()> {
    print!("{}", stack.outboard(&["binding", "list"])?);
    let attached = [("port", "vm1"), ("port", "vm2"), ("volume", "disk1")]
        .into_iter()
        .filter(|(kind, name)| stack.wait_binding(kind, name, "attached", COMMAND_LIMIT))
        .count();
    report.seen(
        "allocated and attached",
        format!("{attached} of 3 objects"),
        attached == 3,
    );
    Ok(())
}

/// With the guests' rings live the bindings are active.
fn active(stack: &Stack, report: &mut Report) -> Outcome<()> {
    let active = [("port", "vm1"), ("port", "vm2"), ("volume", "disk1")]
        .into_iter()
        .filter(|(kind, name)| stack.wait_binding(kind, name, "active", COMMAND_LIMIT))
        .count();
    report.seen(
        "active: rings live, policy loaded",
        format!("{active} of 3 objects"),
        active == 3,
    );
    print!("{}", stack.outboard(&["binding", "list"])?);
    Ok(())
}

fn traffic(stack: &Stack, vm1: &mut Guest, vm2: &mut Guest, seconds: u64, report: &mut Report) -> Outcome<()> {
    let answered = wait::until(COMMAND_LIMIT, || vm1.run("ping -c 1 -W 1 10.0.0.2", COMMAND_LIMIT).ok());
    let ping = match answered {
        Some(_) => vm1.run("ping -c 10 -i 0.2 10.0.0.2 | tail -n 1", COMMAND_LIMIT)?,
        None => "no answer".into(),
    };
    // busybox prints "round-trip min/avg/max = 0.5/0.8/1.2 ms"
    report.seen("ping vm1 → vm2", ping.clone(), ping.contains("min/avg/max"));

    vm2.run("iperf3 -s -D -1", COMMAND_LIMIT)?;
    let pids = stack.pid("shim").zip(stack.pid("dpu"));
    let (shim, dpu) = pids.ok_or("'outboard up' did not tell its daemons' process ids")?;
    let (shim_before, dpu_before, started) = (cpu_time(shim)?, cpu_time(dpu)?, Instant::now());
    let command = format!("iperf3 -c 10.0.0.2 -t {seconds} -f m | grep receiver");
    let line = vm1.run(&command, COMMAND_LIMIT + Duration::from_secs(seconds))?;
    let elapsed = started.elapsed().as_secs_f64();
    let shim_share = (cpu_time(shim)? - shim_before).as_secs_f64() / elapsed;
    let dpu_share = (cpu_time(dpu)? - dpu_before).as_secs_f64() / elapsed;
    let mut words = line.split_whitespace().rev().skip_while(|word| *word != "Mbits/sec");
    let rate: f64 = words.nth(1).and_then(|rate| rate.parse().ok()).unwrap_or(0.0);
    report.seen(
        "iperf3 vm1 → vm2 (emulated CPUs)",
        format!("{rate:.0} Mbit/s"),
        rate > 0.0,
    );
    // the DPU's share shows that the shim's was measured while there was work
    let measured = format!(
        "{:.3} % of a core (the DPU's: {:.0} %)",
        shim_share * 100.0,
        dpu_share * 100.0
    );
    let good = shim_share < SHIM_CPU_SHARE_MAX && dpu_share > shim_share;
    report.seen("shim's CPU meanwhile", measured, good);
    Ok(())
}

/// Frames that the port dropped for `reason`.
fn dropped(stack: &Stack, port: &str, reason: &str) -> Outcome<u64> {
    Ok(stack.json(&["port", "show", port])?["counters"]["drops"][reason]
        .as_u64()
        .unwrap_or(0))
}

fn spoofing(stack: &Stack, vm1: &mut Guest, report: &mut Report) -> Outcome<()> {
    const REASON: &str = "spoofed_ipv4";
    let before = dropped(stack, "vm1", REASON)?;
    // a second address that the port does not own; the neighbour entry is known, so no ARP is in the way
    vm1.run("ip addr add 10.0.0.66/24 dev eth0", COMMAND_LIMIT)?;
    vm1.run("ping -c 1 -W 1 10.0.0.2", COMMAND_LIMIT)?;
    let (_, answer) = vm1.try_run(
        &format!("ping -c {PROBES} -i 0.2 -W 1 -I 10.0.0.66 10.0.0.2"),
        COMMAND_LIMIT,
    )?;
    vm1.run("ip addr del 10.0.0.66/24 dev eth0", COMMAND_LIMIT)?;
    let counted = wait::until(Duration::from_secs(5), || {
        dropped(stack, "vm1", REASON)
            .ok()
            .map(|now| now - before)
            .filter(|counted| *counted >= PROBES)
    });
    let counted = counted.unwrap_or(0);
    let answered = PROBES - lost(&answer);
    let measured = format!("{counted} of {PROBES} dropped for {REASON}, {answered} answered");
    let good = (counted, answered) == (PROBES, 0);
    report.seen("spoofed packets (10.0.0.66 from vm1)", measured, good);
    let after = vm1.try_run("ping -c 1 -W 2 10.0.0.2", COMMAND_LIMIT)?.0 == 0;
    report.seen(
        "honest ping afterwards",
        if after { "answered" } else { "no answer" }.into(),
        after,
    );
    Ok(())
}

fn filesystem(vm1: &mut Guest, folder: &Path, report: &mut Report) -> Outcome<()> {
    let started = Instant::now();
    vm1.run("mkfs.ext4 -q -F /dev/vda && mount -t ext4 /dev/vda /mnt", COMMAND_LIMIT)?;
    let write = format!("dd if=/dev/urandom of=/mnt/file bs=1M count={FILE_LEN_MIB} 2>/dev/null && sync");
    vm1.run(&write, COMMAND_LIMIT)?;
    let written = vm1.run("sha256sum < /mnt/file", COMMAND_LIMIT)?;
    vm1.run(
        "umount /mnt && echo 3 > /proc/sys/vm/drop_caches && mount -t ext4 /dev/vda /mnt",
        COMMAND_LIMIT,
    )?;
    let read = vm1.run("sha256sum < /mnt/file", COMMAND_LIMIT)?;
    vm1.run("umount /mnt", COMMAND_LIMIT)?;
    // what the guest wrote is in the volume's file: ext4 has its magic 0xEF53 at 1024 + 56
    let mut magic = [0; 2];
    let file = fs::File::open(folder.join("disk1.raw"))?;
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 1080)?;
    let same = written == read && written.len() >= 64 && magic == [0x53, 0xef];
    let digest = written.get(..12).unwrap_or_default();
    let measured = format!(
        "{FILE_LEN_MIB} MiB, sha256 {digest}… twice, {:.1} s",
        started.elapsed().as_secs_f64()
    );
    report.seen("ext4 made, written, remounted, compared", measured, same);
    Ok(())
}

fn revocation(stack: &Stack, vm1: &mut Guest, report: &mut Report) -> Outcome<()> {
    let asked = Instant::now();
    print!("{}", stack.outboard(&["grant", "revoke", "port", "vm2"])?);
    let released = wait::until(COMMAND_LIMIT, || {
        let grants = stack.json(&["grant", "list"]).ok()?;
        let mine = grants.as_array()?.iter().find(|grant| grant["name"] == "vm2")?;
        (mine["revocation"] == "done").then(|| asked.elapsed())
    });
    let measured = released.map_or("still pending".into(), |time| {
        format!("confirmed after {} ms", time.as_millis())
    });
    report.seen("port vm2 revoked", measured, released.is_some());

    let counters = |name| -> Outcome<(u64, u64)> {
        let port = stack.json(&["port", "show", name])?;
        let field = |name: &str| port["counters"][name].as_u64().unwrap_or(0);
        Ok((field("tx_frames"), field("rx_frames")))
    };
    let before = counters("vm2")?;
    let (_, answer) = vm1.try_run(&format!("ping -c {PROBES} -i 0.2 -W 1 10.0.0.2"), COMMAND_LIMIT)?;
    let after = counters("vm2")?;
    let answered = PROBES - lost(&answer);
    let (sent, received) = (after.0 - before.0, after.1 - before.1);
    let measured = format!("{answered} of {PROBES} pings answered; vm2 sent {sent} frames and received {received}");
    report.seen(
        "revoked port is silent",
        measured,
        (answered, sent, received) == (0, 0, 0),
    );
    Ok(())
}

/// How many of [`PROBES`] pings were lost, from ping's own "5 packets transmitted, 0 packets received, 100% packet loss".
fn lost(answer: &str) -> u64 {
    let received = answer
        .split(", ")
        .find_map(|part| part.strip_suffix(" packets received")?.parse().ok());
    PROBES - received.unwrap_or(0u64).min(PROBES)
}

fn keep(stack: &Stack, report: &Report) -> Outcome<()> {
    let mut ending = SigSet::empty();
    ending.add(Signal::SIGINT);
    ending.add(Signal::SIGTERM);
    ending.thread_block()?;
    report.say("kept running until Ctrl-C; look around, for example:");
    let socket = stack.run_dir().join("broker.sock");
    println!(
        "    {} --socket {} status",
        stack.program("outboard").display(),
        socket.display()
    );
    ending.wait()?;
    Ok(())
}
