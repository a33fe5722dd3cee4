//! A test runs itself again in a network namespace of its own, as root there.

use std::{
    env,
    process::{Command, Stdio},
};

const INSIDE: &str = "OUTBOARD_ORACLE_INSIDE";

/// True in the namespace. Outside, the test of this name was run in there, and has passed; or the machine permits no
/// namespaces, which is said.
///
/// # Panics
/// The test failed in there.
pub fn enter(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = ["--user", "--map-root-user", "--net"];
    let permitted = Command::new("unshare")
        .args(unshare)
        .arg("true")
        .stderr(Stdio::null())
        .status();
    if !permitted.is_ok_and(|status| status.success()) {
        eprintln!("not tested: this machine permits no network namespaces");
        return false;
    }
    let inside = Command::new("unshare")
        .args(unshare)
        .arg(env::current_exe().expect("a test knows its file"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "yes")
        .output()
        .expect("unshare was there just now");
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(
        said.contains("1 passed") || !inside.status.success(),
        "no test is called {test}"
    );
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&inside.stderr));
    assert!(inside.status.success(), "{test} failed in its namespace, see above");
    false
}
