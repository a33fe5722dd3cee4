//! Paths in use, modes and owners, and who is let in.

use std::os::unix::fs::PermissionsExt;

use outboard_controls::{Check, Off};
use rustix::process::geteuid;

use super::*;

const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

#[test]
fn a_socket_is_private_from_the_first_moment_and_goes_with_its_listener() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ports/vm1.sock");
    let listener = Listener::bind(&path, PRIVATE, None).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(listener.accept().unwrap().is_none());
    let _client = connect_to(&path).unwrap();
    assert!(listener.accept().unwrap().is_some());
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_taken_over_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm1.sock");
    // A listener that went without removing its name.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let live = Listener::bind(&path, PRIVATE, None).unwrap();
    let refused = Listener::bind(&path, PRIVATE, None).unwrap_err();
    assert!(matches!(refused, SocketError::InUse(_)), "{refused}");
    assert!(refused.problem().error.contains("vm1.sock"));
    // The live one was not harmed, and gives way when it ends.
    connect_to(&path).unwrap();
    drop(live);
    Listener::bind(&path, PRIVATE, None).unwrap();
}

#[test]
fn a_live_listener_with_a_full_backlog_is_in_use_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm1.sock");
    let _live = Listener::bind(&path, PRIVATE, None).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = connect_to(&path) {
        waiting.push(stream);
        assert!(waiting.len() < 100);
    }
    assert!(matches!(
        Listener::bind(&path, PRIVATE, None),
        Err(SocketError::InUse(_))
    ));
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").unwrap();
    assert!(matches!(
        Listener::bind(&path, PRIVATE, None),
        Err(SocketError::NotASocket(_))
    ));
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(
        Listener::bind(&link, PRIVATE, None),
        Err(SocketError::NotASocket(_))
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    let long = folder.path().join("x".repeat(120));
    assert!(matches!(
        Listener::bind(&long, PRIVATE, None),
        Err(SocketError::TooLong(_))
    ));
}

#[test]
fn another_listeners_name_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm1.sock");
    let first = Listener::bind(&path, PRIVATE, None).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _second = Listener::bind(&path, PRIVATE, None).unwrap();
    drop(first);
    connect_to(&path).unwrap();
}

#[test]
fn the_socket_belongs_to_the_vms_uid_or_the_shim_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm1.sock");
    let vm = geteuid().as_raw().wrapping_add(4711);
    match Listener::bind(&path, PRIVATE, Some(vm)) {
        Ok(_listener) => {
            assert!(geteuid().is_root());
            assert_eq!(std::fs::metadata(&path).unwrap().uid(), vm);
        }
        Err(error) => {
            assert!(
                !geteuid().is_root() && matches!(error, SocketError::Owner { .. }),
                "{error}"
            );
            assert!(!path.exists());
        }
    }
}

#[test]
fn a_peer_of_another_uid_is_refused() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let (own, path) = (geteuid().as_raw(), Path::new("/run/vm1.sock"));
    check_peer(&ours, &[own], path).unwrap();
    let other = own.wrapping_add(1);
    let refused = check_peer(&ours, &[other], path).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("uid {own}")) && refused.contains(&other.to_string()),
        "{refused}"
    );
    let _off = Off::here(Check::PeerUid);
    check_peer(&ours, &[other], path).unwrap();
}
