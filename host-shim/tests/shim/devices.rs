//! Attach, detach, list, health, and who may ask.

use std::{io::Write, os::unix::net::UnixStream};

use host_shim::{api::Allowed, client::ClientError};
use outboard_shim_api::{DeviceKind, DeviceSpec, DeviceState, Release, Role};
use rustix::process::geteuid;

use crate::{
    fake_dpu::FakeDpu,
    world::{TestShim, bring_up, connect, shim_with_vm1, wait_for},
};

fn spec(name: &str) -> DeviceSpec {
    DeviceSpec {
        kind: DeviceKind::Port,
        name: name.to_owned(),
        socket: None,
        role: Role::Listen,
        uid: None,
    }
}

fn refused(answer: Result<impl std::fmt::Debug, ClientError>) -> outboard_shim_api::ErrorDetail {
    match answer {
        Err(ClientError::Refused(detail)) => detail,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_port_is_attached_listed_and_detached() {
    let (shim, dpu) = shim_with_vm1();
    assert!(shim.block_on(shim.client.health()).unwrap().healthy);
    let view = shim.view("vm1");
    assert_eq!(
        (view.kind, view.role, view.generation),
        (DeviceKind::Port, Role::Listen, Some(1))
    );
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    let detached = shim.block_on(shim.client.detach(DeviceKind::Port, "vm1")).unwrap();
    assert_eq!(detached.release, Release::Done);
    assert_eq!(dpu.released(), [("vm1".to_owned(), 1)]);
    assert!(!shim.socket("vm1").exists() && shim.block_on(shim.client.list()).unwrap().devices.is_empty());
    wait_for("the session to end", || (dpu.sessions() == 0).then_some(()));
    // While the grant stands it may be had again, as a new binding.
    shim.attach("vm1");
    shim.until_open("vm1");
    assert_eq!(shim.view("vm1").generation, Some(2));
}

#[test]
fn attach_and_detach_work_while_the_dpu_is_away() {
    let shim = TestShim::start();
    assert_eq!(shim.attach("vm1").state, DeviceState::WaitingForGrant);
    let health = shim.block_on(shim.client.health()).unwrap();
    assert!(!health.healthy && health.link.problem.is_some());
    assert!(!shim.socket("vm1").exists());
    let dpu = FakeDpu::start(&shim.link_path());
    let problem = wait_for("a refusal", || shim.view("vm1").problem);
    assert!(
        problem.error.contains("port vm1") && problem.remedy.contains("grant"),
        "{problem}"
    );
    dpu.grant("vm1");
    shim.until_open("vm1");
    let dpu = dpu.restart(|| {
        wait_for("the link to go", || {
            (!shim.block_on(shim.client.health()).unwrap().link.connected).then_some(())
        });
        let detached = shim.block_on(shim.client.detach(DeviceKind::Port, "vm1")).unwrap();
        assert_eq!(detached.release, Release::Pending);
        let leaving = refused(shim.block_on(shim.client.attach(&spec("vm1"))));
        assert_eq!(
            (leaving.code.as_str(), leaving.object.as_str()),
            ("leaving", "port vm1")
        );
    });
    wait_for("the release", || {
        (dpu.released() == [("vm1".to_owned(), 1)]).then_some(())
    });
    wait_for("attaching again", || {
        shim.block_on(shim.client.attach(&spec("vm1"))).ok()
    });
}

#[test]
fn a_path_in_use_is_reported_and_taken_once_it_is_free() {
    let shim = TestShim::start();
    let dpu = FakeDpu::start(&shim.link_path());
    dpu.grant("vm1");
    std::fs::create_dir(shim.folder.path().join("ports")).unwrap();
    let live = std::os::unix::net::UnixListener::bind(shim.socket("vm1")).unwrap();
    shim.attach("vm1");
    let view = shim.until("vm1", DeviceState::Failed);
    let problem = view.problem.unwrap();
    assert!(
        problem.error.contains("another process listens") && problem.error.contains("vm1.sock"),
        "{problem}"
    );
    // Its name stays behind: stale, and taken over.
    drop(live);
    assert!(shim.socket("vm1").exists());
    shim.until("vm1", DeviceState::WaitingForVmm);
    bring_up(&mut connect(&shim, "vm1"), true);
}

#[test]
fn mistakes_are_refused_with_object_and_remedy() {
    let (shim, _dpu) = shim_with_vm1();
    let cases = [
        (
            DeviceSpec {
                role: Role::Connect,
                ..spec("vm1")
            },
            "already_attached",
            "port vm1",
        ),
        (
            DeviceSpec {
                socket: Some(shim.socket("vm1")),
                ..spec("vm2")
            },
            "socket_taken",
            "port vm2",
        ),
        (
            DeviceSpec {
                socket: Some("vm2.sock".into()),
                ..spec("vm2")
            },
            "bad_device",
            "port vm2",
        ),
        (spec("../vm2"), "bad_device", "port ../vm2"),
    ];
    for (spec, code, object) in cases {
        let detail = refused(shim.block_on(shim.client.attach(&spec)));
        assert_eq!((detail.code.as_str(), detail.object.as_str()), (code, object));
        assert!(!detail.remedy.is_empty());
    }
    let detail = refused(shim.block_on(shim.client.detach(DeviceKind::Volume, "vm1")));
    assert_eq!(
        (detail.code.as_str(), detail.object.as_str()),
        ("not_attached", "volume vm1")
    );
    // Repeating an attach is no mistake.
    shim.attach("vm1");
}

/// Sends a request as it is and returns the answer's status line and body.
fn raw_request(shim: &TestShim, request: &str) -> String {
    let mut stream = UnixStream::connect(shim.folder.path().join("api.sock")).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    std::io::read_to_string(stream).unwrap()
}

fn post(body: &str) -> String {
    let len = body.len();
    format!("POST /v1/devices HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}")
}

#[test]
fn bodies_and_paths_that_are_not_understood_are_refused() {
    let shim = TestShim::start();
    let unknown = raw_request(&shim, &post(r#"{"kind":"port","name":"vm1","sockt":"/x"}"#));
    assert!(
        unknown.starts_with("HTTP/1.1 400") && unknown.contains("sockt") && unknown.contains("remedy"),
        "{unknown}"
    );
    for body in ["", "[]", "{\"kind\":\"disk\",\"name\":\"x\"}", &"[".repeat(10_000)] {
        let answer = raw_request(&shim, &post(body));
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("\"malformed\""),
            "{answer}"
        );
    }
    let long = raw_request(&shim, &post(&" ".repeat(20_000)));
    assert!(long.starts_with("HTTP/1.1 413"), "{long}");
    for path in ["GET /v2/devices", "PUT /v1/devices", "DELETE /v1/devices/disk/x"] {
        let answer = raw_request(
            &shim,
            &format!("{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
        );
        assert!(
            answer.starts_with("HTTP/1.1 404") && answer.contains("no_such_path"),
            "{answer}"
        );
    }
    assert!(raw_request(&shim, &post(r#"{"kind":"port","name":"vm1"}"#)).starts_with("HTTP/1.1 201"));
}

#[test]
fn p10_a_uid_that_is_not_listed_may_not_use_the_api() {
    let own = geteuid().as_raw();
    let folder = || tempfile::tempdir().unwrap();
    let shim = TestShim::start_in(folder(), Some(Allowed::only(&[own.wrapping_add(1)])));
    let detail = refused(shim.block_on(shim.client.list()));
    assert_eq!(detail.code, "uid_refused");
    assert!(detail.message.contains(&format!("uid {own}")) && detail.remedy.contains("api_uids"));
    let detail = refused(shim.block_on(shim.client.attach(&spec("vm1"))));
    assert_eq!(detail.code, "uid_refused");
    // Control: the same with its uid listed.
    let shim = TestShim::start_in(folder(), Some(Allowed::only(&[own])));
    shim.attach("vm1");
}

#[test]
fn a_vm_uid_that_is_given_owns_the_socket() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let shim = TestShim::start();
    let dpu = FakeDpu::start(&shim.link_path());
    dpu.grant("vm1");
    let vm = geteuid().as_raw().wrapping_add(4711);
    shim.attach_spec(DeviceSpec {
        uid: Some(vm),
        ..spec("vm1")
    });
    if geteuid().is_root() {
        shim.until_open("vm1");
        let metadata = std::fs::metadata(shim.socket("vm1")).unwrap();
        assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (vm, 0o600));
        // Root, which this test runs as, is served.
        bring_up(&mut connect(&shim, "vm1"), true);
    } else {
        let problem = shim.until("vm1", DeviceState::Failed).problem.unwrap();
        assert!(
            problem.error.contains(&format!("cannot be given to uid {vm}")),
            "{problem}"
        );
    }
}
