//! Sessions leave nothing behind.

use std::process::{Command, Stdio};

use vhost::vhost_user::message::FrontendReq;

use crate::frontend::{Frontend, event_fd, working};

const ALONE: &str = "OUTBOARD_TEST_ALONE";
const NAME: &str = "resources::h17_sessions_leave_no_descriptors_threads_or_mappings";

fn counts() -> (usize, usize, usize) {
    let entries = |path| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let guests = maps.lines().filter(|line| line.contains("memfd:guest")).count();
    (entries("/proc/self/fd"), entries("/proc/self/task"), guests)
}

/// In a process of its own, where no other test opens anything.
#[test]
fn h17_sessions_leave_no_descriptors_threads_or_mappings() {
    if std::env::var_os(ALONE).is_none() {
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--test-threads=1"])
            .env(ALONE, "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        return;
    }
    drop(working().0.close());
    let before = counts();
    for round in 0..300 {
        let (frontend, ram, driver) = working();
        match round % 3 {
            0 => drop(frontend.close()),
            1 => {
                use std::os::fd::AsFd;
                let fds = [event_fd(), event_fd(), event_fd()];
                frontend.send(FrontendReq::SET_OWNER, &[], &fds.each_ref().map(AsFd::as_fd));
                frontend.refused();
            }
            _ => {
                frontend.send_raw(&[1, 0, 0], &[]);
                frontend.stream.shutdown(std::net::Shutdown::Both).unwrap();
                frontend.refused();
            }
        }
        drop((ram, driver));
        drop(Frontend::new().close());
    }
    assert_eq!(counts(), before);
    // Control: a session that stays is seen.
    let kept = working();
    assert_ne!(counts(), before);
    drop(kept.0.close());
}
