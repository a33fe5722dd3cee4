//! The program itself: how it starts, is killed, and ends.

use std::{
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use outboard_protocol::{desired::VolumeBackend, link::Reply, refusal::Code};

use crate::{
    fixture::{Card, Change, desired, eventually, port, two_ports, volume},
    guest::{BLK_T_IN, BLK_T_OUT, BlkGuest, NetGuest},
    host::{Host, hello},
};

pub fn config_of(card: &Card) -> PathBuf {
    let path = card.path().join("dpu.toml");
    let config = &card.config;
    let text = format!(
        "state_dir = '{}'\nserial = 'SN1'\nlink_socket = '{}'\nvolume_dir = '{}'\n",
        config.state_dir.display(),
        config.link_socket.display(),
        config.volume_dir.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

pub fn command(card: &Card) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboard-dpu"));
    command
        .arg("run")
        .arg("--config")
        .arg(config_of(card))
        .stdin(Stdio::null());
    command
}

/// Starts it and waits until it serves.
pub fn start(card: &Card) -> Child {
    let child = command(card)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the link listens", || {
        let reply = Host::try_connect(&card.config.link_socket)?.ask(hello(1), &[]);
        reply.filter(|reply| matches!(reply, Reply::Welcome { .. }))
    });
    child
}

fn fails(card: &Card) -> String {
    let Output { status, stderr, .. } = command(card).output().unwrap();
    assert_eq!(status.code(), Some(1));
    String::from_utf8(stderr).unwrap()
}

#[test]
fn a_start_that_fails_says_why_and_what_to_do() {
    let card = Card::new();
    std::fs::remove_file(dpu_side::identity::path(&card.config.state_dir)).unwrap();
    let text = fails(&card);
    let lines: Vec<_> = text.lines().rev().take(2).collect();
    assert!(lines[1].starts_with("error: this card is not enrolled"), "{text}");
    assert!(
        lines[0].starts_with("  fix: ") && lines[0].contains("outboard card enrol"),
        "{text}"
    );

    let version = Command::new(env!("CARGO_BIN_EXE_outboard-dpu"))
        .arg("--version")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        concat!("outboard-dpu ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn a_host_that_locked_itself_out_is_let_in_by_its_operator() {
    let card = Card::holding(two_ports());
    let epoch = |epoch| Host::connect(&card.config.link_socket).ask(hello(epoch), &[]);
    let forget = || {
        let config = config_of(&card);
        let mut command = Command::new(env!("CARGO_BIN_EXE_outboard-dpu"));
        command.arg("forget-host-epoch").arg("--config").arg(config);
        command.output().unwrap()
    };
    let mut child = start(&card);
    let binding = card.host().attach(&port("vm1"));
    assert!(matches!(epoch(u64::MAX), Some(Reply::Welcome { .. })));
    assert!(matches!(epoch(2), Some(Reply::Refused { refusal }) if refusal.code == Code::Stale));
    let running = forget();
    assert!(!running.status.success(), "not while the daemon runs");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());

    let done = forget();
    assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains(&u64::MAX.to_string()));
    let mut child = start(&card);
    assert!(matches!(epoch(2), Some(Reply::Welcome { .. })));
    let mut host = Host::connect(&card.config.link_socket);
    assert!(matches!(host.ask(hello(2), &[]), Some(Reply::Welcome { .. })));
    assert_eq!(host.attach(&port("vm1")), binding, "what was attached stays so");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_host_in_a_foreign_pid_namespace_is_served() {
    let namespaces = ["--user", "--map-root-user", "--pid", "--fork", "--kill-child"];
    if !Command::new("unshare")
        .args(namespaces)
        .arg("true")
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("not tested: this machine permits no namespaces");
        return;
    }
    let card = Card::holding(two_ports());
    let mut inside = Command::new("unshare");
    let program = command(&card);
    inside
        .args(namespaces)
        .arg(program.get_program())
        .args(program.get_args());
    let mut child = inside.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Seen from in there, this process has no id.
    eventually("the link serves", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        let reply = Host::try_connect(&card.config.link_socket)?.ask(hello(1), &[]);
        reply.filter(|reply| matches!(reply, Reply::Welcome { .. }))
    });
    card.host().attach(&port("vm1"));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a process holds: descriptors, threads, mappings and KiB of memory.
fn held(pid: u32) -> [usize; 4] {
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let text = |what: &str| std::fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let status = text("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident_kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
    [
        entries("fd"),
        entries("task"),
        text("maps").lines().count(),
        resident_kib,
    ]
}

/// More by `OUTBOARD_RECONNECTS`: 10,000 of each take some four minutes, since connections are accepted at a bounded rate.
#[test]
fn h17_reconnects_leave_nothing_behind() {
    let card = Card::holding(two_ports());
    let mut child = start(&card);
    let mut host = card.host();
    let binding = host.attach(&port("vm1"));
    let mut cycle = |rounds: u32| {
        for _ in 0..rounds {
            drop(Host::try_connect(&card.config.link_socket));
        }
        for round in 0..rounds {
            let device = eventually("the last session is over", || {
                host.connect_device(&port("vm1"), binding).ok()
            });
            if round % 10 == 0 {
                drop(NetGuest::start(device));
            }
        }
    };
    let quiet = || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        held(child.id())
    };
    let rounds = std::env::var("OUTBOARD_RECONNECTS").map_or(200, |n| n.parse().expect("a number"));
    // Memory is not given back to the last page: 4 MiB are less than a tenth of what 10,000 sessions leak at 5 KiB each.
    let slack = [0, 0, 4, 4 << 10];
    // What an allocator takes for good it takes once, and how early depends on the load; a leak grows in every turn.
    cycle(50);
    let mut before = quiet();
    let mut now = before;
    let settled = (0..5).any(|_| {
        before = now;
        cycle(rounds);
        (0..50).any(|_| {
            now = quiet();
            (0..4).all(|n| now[n] <= before[n] + slack[n])
        })
    });
    assert!(
        settled,
        "descriptors, threads, mappings, KiB: {before:?} before and {now:?} after {rounds} reconnects"
    );
    eprintln!("descriptors, threads, mappings, KiB: {before:?} before and {now:?} after {rounds} reconnects");
    // Control: one that stays is seen.
    let _kept = card.host();
    eventually("a descriptor more is held", || {
        (held(child.id())[0] > now[0]).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_termination_signal_ends_it_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let card = Card::holding(two_ports());
        let mut child = start(&card);
        let _session = card.host().open(&port("vm1"));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!card.config.link_socket.exists());
    }
}

#[test]
fn killed_at_any_moment_it_comes_back_with_what_was_answered() {
    let mib = 1 << 20;
    let disk = |state: outboard_protocol::desired::DesiredState| {
        state
            .with("disk", mib, VolumeBackend::File { path: "disk".into() })
            .grant(volume("disk"), 1)
    };
    let card = Card::holding(disk(desired(1, 1).grant(port("vm1"), 1)));
    std::fs::File::create(card.volume_path("disk"))
        .unwrap()
        .set_len(mib)
        .unwrap();
    let mut binding = None;
    for round in 1..=5u8 {
        let mut child = start(&card);
        let mut host = card.host();
        let attached = host.attach(&port("vm1"));
        assert_eq!(
            *binding.get_or_insert(attached),
            attached,
            "what was answered once is so for good"
        );
        let mut vm = BlkGuest::start(host.open(&volume("disk")));
        let before = vm.request(BLK_T_IN, 0, &[], 512);
        assert_eq!(before, (0, vec![round - 1; 512]));
        assert_eq!(vm.request(BLK_T_OUT, 0, &[round; 512], 0).0, 0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(card.config.link_socket.exists(), "nobody cleaned up");
    }
}
