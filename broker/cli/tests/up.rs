//! What `outboard up` refuses before it starts anything, and that its children die with their parent. That it works is
//! shown by the end-to-end tests, with all daemons and real guests.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Held while programs are written and while children are started: a child that another test forks just then would
/// inherit the file open for writing, and a file open for writing cannot be run (`ETXTBSY`).
static PROGRAMS: Mutex<()> = Mutex::new(());

fn programs() -> MutexGuard<'static, ()> {
    PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn spawn(command: &mut Command) -> Child {
    let _programs = programs();
    command.spawn().expect("it runs")
}

fn output(command: &mut Command) -> Output {
    spawn(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
    .wait_with_output()
    .expect("it ends")
}

const TOPOLOGY: &str = "\
[[volume]]
name = \"disk1\"
size = \"1MiB\"
backend = { file = \"disk 1.raw\" }
";

fn outboard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outboard"));
    command.env_clear();
    command
}

fn up(dir: &Path, words: &[&str]) -> Output {
    fs::write(dir.join("t.toml"), TOPOLOGY).expect("written");
    let mut command = outboard();
    command
        .arg("up")
        .arg(dir.join("t.toml"))
        .arg("--run-dir")
        .arg(dir.join("run"))
        .args(words);
    output(&mut command)
}

fn stderr(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn a_missing_volume_file_is_named_with_the_command_that_makes_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = stderr(&up(dir.path(), &[]));
    let path = dir.path().join("disk 1.raw");
    assert!(
        text.contains(&format!("volume disk1: there is no file {}", path.display())),
        "{text}"
    );
    assert!(
        text.contains(&format!("fix: make it: truncate -s 1M '{}'", path.display())),
        "{text}"
    );
    assert!(!dir.path().join("run").exists(), "nothing was touched");
}

#[test]
fn the_programs_that_are_missing_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let alone = dir.path().join("outboard");
    {
        let _programs = programs();
        fs::copy(env!("CARGO_BIN_EXE_outboard"), &alone).expect("copied");
    }
    fs::write(
        dir.path().join("t.toml"),
        TOPOLOGY.replace("{ file = \"disk 1.raw\" }", "{ memory = true }"),
    )
    .expect("written");
    let mut command = Command::new(&alone);
    command
        .env_clear()
        .arg("up")
        .arg(dir.path().join("t.toml"))
        .arg("--run-dir")
        .arg(dir.path().join("run"));
    let text = stderr(&output(&mut command));
    assert!(
        text.contains(&format!("there is no {}", dir.path().join("outboard-broker").display())),
        "{text}"
    );
}

/// Programs that stand in for the daemons: shell scripts beside a copy of `outboard`.
fn stand_in(dir: &Path, broker: &str) -> Command {
    use std::os::unix::fs::PermissionsExt;
    let _programs = programs();
    let alone = dir.join("outboard");
    if !alone.exists() {
        fs::copy(env!("CARGO_BIN_EXE_outboard"), &alone).expect("copied");
    }
    let script = dir.join("outboard-broker");
    fs::write(&script, format!("#!/bin/sh\n{broker}\n")).expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("changed");
    fs::write(
        dir.join("t.toml"),
        TOPOLOGY.replace("{ file = \"disk 1.raw\" }", "{ memory = true }"),
    )
    .expect("written");
    let mut command = Command::new(&alone);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .arg("up")
        .arg(dir.join("t.toml"))
        .arg("--run-dir")
        .arg(dir.join("run"));
    command
}

#[test]
fn a_daemon_that_dies_is_quoted() {
    let dir = tempfile::tempdir().expect("a directory");
    let ended = output(&mut stand_in(
        dir.path(),
        "echo 'error: the store is damaged' >&2; exit 3",
    ));
    let text = stderr(&ended);
    assert!(text.contains("  | error: the store is damaged\n"), "{text}");
    assert!(
        text.contains("error: outboard-broker ended (exit status: 3)\n"),
        "{text}"
    );
    assert!(
        text.contains(&dir.path().join("run/log/broker.log").display().to_string()),
        "{text}"
    );
}

/// Waits until `what` holds; a bounded time, generous for a busy machine.
fn eventually(what: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn alive(pid: &str) -> bool {
    // A zombie's command line is empty.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| !text.is_empty())
}

/// Starts an `up` whose broker only waits, and gives the broker's process id.
fn waiting_up(dir: &Path) -> (Child, String) {
    let pid_file = dir.join("pid");
    let script = format!(
        "echo $$ > {0}.part && mv {0}.part {0}; exec sleep 600",
        pid_file.display()
    );
    let up = spawn(stand_in(dir, &script).stderr(Stdio::null()));
    assert!(eventually(|| pid_file.exists()), "the stand-in started");
    let pid = fs::read_to_string(&pid_file).expect("there").trim().to_owned();
    assert!(alive(&pid), "control: it runs");
    (up, pid)
}

#[test]
fn a_second_up_in_the_same_directory_is_refused_and_children_are_stopped_at_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut first, broker) = waiting_up(dir.path());
    let second = output(&mut stand_in(dir.path(), "exit 1"));
    let text = stderr(&second);
    assert!(
        text.contains(&format!("another 'outboard up' (process {})", first.id())),
        "{text}"
    );
    assert!(alive(&broker), "the first goes on");

    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("sent");
    assert!(
        first.wait().expect("ended").success(),
        "asked to stop, it stopped in order"
    );
    assert!(!alive(&broker));

    let third = output(&mut stand_in(dir.path(), "echo third; exit 7"));
    assert!(stderr(&third).contains("exit status: 7"), "the lock is free again");
}

#[test]
fn children_die_with_an_up_that_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut up, broker) = waiting_up(dir.path());
    up.kill().expect("killed");
    up.wait().expect("ended");
    assert!(eventually(|| !alive(&broker)), "the broker died with it");
}

#[test]
fn api_is_for_brokers_elsewhere() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = stderr(&up(dir.path(), &["--api", "https://b:1"]));
    assert!(text.contains("'up' starts a broker of its own"), "{text}");
}
