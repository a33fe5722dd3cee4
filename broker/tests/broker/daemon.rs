//! The program: what it says when it cannot start, what it logs, how it stops.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use outboard_broker::{
    clock::unix_now_s,
    identity::{Authority, CARD_CERT_TTL_S},
};

use crate::support::{
    Client,
    card::{csr, enrol},
};

const WAIT: Duration = Duration::from_secs(60);

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_outboard-broker"));
    program
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    program
}

fn configured(directory: &Path, more: &str) -> PathBuf {
    let path = directory.join("broker.toml");
    let shown = directory.display();
    let text =
        format!("state_dir = '{shown}/state'\napi_socket = '{shown}/api.sock'\ncard_listen = '127.0.0.1:0'\n{more}");
    std::fs::write(&path, text).unwrap();
    path
}

/// Standard error of a start that must fail.
fn fails(config: &Path) -> String {
    let output = program().args(["run", "--config"]).arg(config).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{error}");
    assert!(
        error.contains("error: ") && error.contains("\n  fix: ") && !error.contains("panicked"),
        "{error}"
    );
    error
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(directory: &Path, config: &Path) -> Self {
        let told = directory.join("state/card_address");
        let _ = std::fs::remove_file(&told);
        let child = program()
            .args(["--log-format", "json", "run", "--config"])
            .arg(config)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !told.exists() {
            assert!(begun.elapsed() < WAIT, "the broker does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child }
    }

    /// Sends a signal; returns whether the exit was clean, and the log.
    fn end(mut self, signal: Signal) -> (bool, String) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().success(), log)
    }
}

#[test]
fn a_start_that_fails_says_what_and_how_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    let error = fails(&directory.path().join("nowhere.toml"));
    assert!(error.contains("nowhere.toml"), "{error}");
    let error = fails(&configured(directory.path(), "surprise = 1\n"));
    assert!(error.contains("surprise"), "{error}");

    let config = configured(directory.path(), "");
    let daemon = Daemon::start(directory.path(), &config);
    let error = fails(&config);
    assert!(error.contains("another broker has it open"), "{error}");
    let elsewhere = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let state = format!("state_dir = '{}'", elsewhere.path().join("state").display());
    let other = elsewhere.path().join("broker.toml");
    std::fs::write(&other, text.replacen(text.lines().next().unwrap(), &state, 1)).unwrap();
    let error = fails(&other);
    assert!(error.contains("api.sock is in use"), "{error}");
    assert!(daemon.end(Signal::SIGTERM).0);

    let store = directory.path().join("state/broker.redb");
    let whole = std::fs::read(&store).unwrap();
    std::fs::write(&store, &whole[..whole.len() / 2]).unwrap();
    let error = fails(&config);
    assert!(error.contains("broker.redb") && error.contains("backup"), "{error}");
    std::fs::write(&store, &whole).unwrap();
    assert!(Daemon::start(directory.path(), &config).end(Signal::SIGINT).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_it_has_what_it_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let config = configured(directory.path(), "");
    let api = Client::of(&directory.path().join("api.sock"));
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let daemon = Daemon::start(directory.path(), &config);
        for name in &acknowledged {
            api.get(&format!("/v1/networks/{name}")).await;
        }
        for n in 0..5 {
            let name = format!("net{round}-{n}");
            api.change(
                "PUT",
                &format!("/v1/networks/{name}"),
                &format!(r#"{{"name":"{name}"}}"#),
            )
            .await;
            acknowledged.push(name);
        }
        assert!(!daemon.end(Signal::SIGKILL).0);
    }
    let daemon = Daemon::start(directory.path(), &config);
    assert_eq!(
        api.get("/v1/networks").await.as_array().unwrap().len(),
        acknowledged.len()
    );
    let (clean, _) = daemon.end(Signal::SIGTERM);
    assert!(clean && !directory.path().join("api.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_a_card_whose_certificate_has_expired_and_tells_what_to_run() {
    let directory = tempfile::tempdir().unwrap();
    let config = configured(directory.path(), "");
    let daemon = Daemon::start(directory.path(), &config);
    let api = Client::of(&directory.path().join("api.sock"));
    let token = api.token("local", "SN1").await;
    let mut identity = enrol(&token, "SN1").await.unwrap();
    let authority = Authority::load_or_create(&directory.path().join("state"), unix_now_s()).unwrap();
    let long_ago = unix_now_s() - CARD_CERT_TTL_S - 60;
    identity.certificate = authority
        .issue_card(&identity.card, &csr(&identity.key), long_ago)
        .unwrap()
        .certificate;
    assert!(identity.connect().await.unwrap().try_receive().await.is_err());
    let (clean, log) = daemon.end(Signal::SIGTERM);
    let line = log
        .lines()
        .find(|l| l.contains("has expired"))
        .unwrap_or_else(|| panic!("{log}"));
    assert!(
        clean && line.contains("card local") && line.contains("`outboard card enrol local`"),
        "{line}"
    );
    // No secret is ever logged.
    assert!(!log.contains(&token[5..]), "{log}");
}
