//! `outboard up` starts daemons again that died, lets a new DPU program take over, and gives up what dies at once.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use outboard_integration::{
    binaries::Binaries,
    frontend::{BlkGuest, NetGuest},
    stack::Stack,
    wait,
};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

const LIMIT: Duration = Duration::from_secs(60);

const TOPOLOGY: &str = "\
[[network]]
name = \"blue\"
subnets = [\"10.0.0.0/24\"]

[[volume]]
name = \"disk1\"
size = \"1MiB\"
backend = { memory = true }

[[port]]
name = \"vm1\"
network = \"blue\"
mac = \"52:54:00:00:00:01\"
addresses = [\"10.0.0.1\"]
";

struct Scene {
    stack: Stack,
    folder: tempfile::TempDir,
}

/// A stack from programs of its own, which a test may replace.
fn scene() -> Outcome<Scene> {
    let folder = tempfile::tempdir()?;
    let binaries = Binaries::build()?.copy_to(folder.path())?;
    let topology = folder.path().join("t.toml");
    fs::write(&topology, TOPOLOGY)?;
    let stack = Stack::up(&binaries, &topology, folder.path(), |_| ())?;
    Ok(Scene { stack, folder })
}

impl Scene {
    fn up(&self) -> u32 {
        self.stack.pid("up").expect("told")
    }

    /// The daemon's processes, as the kernel has them.
    fn processes(&self, daemon: &str) -> Vec<u32> {
        let up = self.up();
        let children = fs::read_to_string(format!("/proc/{up}/task/{up}/children")).unwrap_or_default();
        let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.filter(|pid| name(pid).trim() == format!("outboard-{daemon}"))
            .collect()
    }

    /// The one process of a daemon, once that is another one than `old`.
    fn successor(&self, daemon: &str, old: u32) -> Outcome<u32> {
        let one = || match self.processes(daemon)[..] {
            [pid] if pid != old => Some(pid),
            _ => None,
        };
        wait::until(LIMIT, one).ok_or_else(|| format!("no other outboard-{daemon} than {old}").into())
    }

    /// Do broker, DPU and shim know of each other, and do the devices await their VMMs?
    fn whole(&self) -> bool {
        let connected = || Some(self.stack.json(&["card", "list"]).ok()?[0]["state"] == "connected");
        let list = |_: ()| {
            let output = Command::new(self.stack.program("outboard-shim"))
                .args(["list", "--json", "--api"])
                .arg(self.stack.run_dir().join("shim.sock"))
                .output()
                .ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            Some(text.matches("waiting-for-vmm").count() == 2)
        };
        connected() == Some(true) && list(()) == Some(true)
    }

    fn becomes_whole(&self) -> bool {
        wait::until(LIMIT, || self.whole().then_some(())).is_some()
    }

    fn signal(&self, pid: u32, signal: Signal) -> Outcome {
        Ok(kill(Pid::from_raw(pid.try_into()?), signal)?)
    }

    /// Puts another program in the place of the DPU's, in one step, as installers do.
    fn replace_dpu(&self, script: &str) -> Outcome {
        let part = self.folder.path().join("part");
        fs::write(&part, script)?;
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
        Ok(fs::rename(part, self.folder.path().join("outboard-dpu"))?)
    }

    fn said(&self) -> String {
        fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }
}

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn each_daemon_that_dies_is_started_again() -> Outcome {
    let scene = scene()?;
    assert!(scene.becomes_whole(), "control: all is well before");
    for daemon in ["dpu", "broker", "shim"] {
        let old = scene.stack.pid(daemon).ok_or("not told")?;
        scene.signal(old, Signal::SIGKILL)?;
        scene.successor(daemon, old)?;
        assert!(scene.becomes_whole(), "after {daemon} died: {}", scene.said());
    }
    let dpu = scene.processes("dpu")[0];
    scene.stack.stop()?;
    assert!(!exists(dpu), "those that were started again are stopped too");
    Ok(())
}

#[test]
fn an_upgrade_takes_over_and_a_program_that_cannot_start_leaves_the_old_one_serving() -> Outcome {
    let scene = scene()?;
    let old = scene.stack.pid("dpu").ok_or("not told")?;
    scene.signal(scene.up(), Signal::SIGUSR1)?;
    let new = scene.successor("dpu", old)?;
    assert!(scene.becomes_whole());

    let marker = scene.folder.path().join("tried");
    scene.replace_dpu(&format!(
        "#!/bin/sh\n: > {}\necho 'error: broken' >&2\nexit 3\n",
        marker.display()
    ))?;
    scene.signal(scene.up(), Signal::SIGUSR1)?;
    wait::until(LIMIT, || marker.exists().then_some(())).ok_or("the new program was not tried")?;
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.processes("dpu"), [new], "the old one goes on");
    assert!(scene.becomes_whole());

    // Once it dies, nothing but the broken program is left.
    let killed = Instant::now();
    scene.signal(new, Signal::SIGKILL)?;
    let up = scene.up();
    let given_up = wait::until(LIMIT, || scene.said().contains("daemon_given_up").then_some(()));
    assert!(given_up.is_some(), "{}", scene.said());
    assert!(killed.elapsed() > Duration::from_secs(2), "it paused in between");
    let text = scene.said();
    assert!(text.contains("exit status: 3") && text.contains("6th time"), "{text}");
    assert!(scene.stack.stop().is_err(), "it ended with an error");
    assert!(!exists(up));
    Ok(())
}

#[test]
fn a_dpu_that_somebody_else_started_makes_way() -> Outcome {
    let scene = scene()?;
    let old = scene.stack.pid("dpu").ok_or("not told")?;
    let mut other = Command::new(scene.stack.program("outboard-dpu"))
        .args(["run", "--take-over", "--config"])
        .arg(scene.stack.run_dir().join("dpu.toml"))
        .spawn()?;
    scene.successor("dpu", old)?;
    let ended = wait::until(LIMIT, || other.try_wait().ok().flatten());
    if ended.is_none() {
        other.kill()?;
    }
    assert!(ended.is_some(), "it was asked to stop");
    assert!(scene.becomes_whole());
    scene.stack.stop()?;
    Ok(())
}

/// Everything works for a user who may do nothing special: `nobody`, where these tests run as root.
#[test]
fn up_needs_no_root() -> Outcome {
    const NOBODY: u32 = 65534;
    let folder = tempfile::tempdir()?;
    // where that user may read them
    let binaries = Binaries::build()?.copy_to(folder.path())?;
    let topology = folder.path().join("t.toml");
    fs::write(&topology, TOPOLOGY)?;
    if geteuid().is_root() {
        chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
    }
    let stack = Stack::up(&binaries, &topology, folder.path(), |up| {
        if geteuid().is_root() {
            up.uid(NOBODY).gid(NOBODY);
        }
    })?;
    for daemon in ["broker", "dpu", "shim"] {
        let pid = stack.pid(daemon).ok_or("not told")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let uids = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .ok_or("no uids")?;
        assert!(
            !uids.split_whitespace().any(|uid| uid == "0"),
            "outboard-{daemon} is root: {uids}"
        );
    }
    let guest = wait::until(LIMIT, || NetGuest::start(&stack.port_socket("vm1")).ok());
    let disk = wait::until(LIMIT, || BlkGuest::start(&stack.volume_socket("disk1")).ok());
    let (_guest, mut disk) = guest.zip(disk).ok_or("the devices do not start")?;
    disk.write(0, &[7; 512])?;
    assert_eq!(disk.read(0, 512)?, [7; 512]);
    for (kind, name) in [("port", "vm1"), ("volume", "disk1")] {
        assert!(stack.wait_binding(kind, name, "active", LIMIT), "{kind} {name}");
    }
    stack.stop()?;
    Ok(())
}
