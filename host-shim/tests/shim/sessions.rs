//! Sessions of real `vhost` front ends through the shim to a DPU that the test plays.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    time::Duration,
};

use outboard_shim_api::{DeviceKind, DeviceSpec, DeviceState, Role};
use vhost::{
    VhostBackend,
    vhost_user::{
        Frontend, VhostUserFrontend,
        message::{VhostUserConfigFlags, VhostUserInflight, VhostUserProtocolFeatures},
    },
};

use crate::{
    fake_dpu::{FakeDpu, GREETING},
    world::{PATIENCE, TestShim, bring_up, connect, shim_with_vm1, wait_for},
};

/// True when the other end has closed.
fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    matches!(stream.read(&mut [0]), Ok(0))
        || stream
            .read(&mut [0])
            .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
}

fn raw(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap();
    let head = [request, flags, size].into_iter().flat_map(u32::to_le_bytes);
    head.chain(payload.iter().copied()).collect()
}

#[test]
fn a_session_reaches_the_dpu_whole_with_and_without_acknowledgements() {
    for reply_ack in [true, false] {
        let (shim, dpu) = shim_with_vm1();
        let mut vmm = connect(&shim, "vm1");
        let _memory = bring_up(&mut vmm, reply_ack);
        assert_eq!(shim.until("vm1", DeviceState::Connected).problem, None);
        // Without acknowledgements the VMM runs ahead.
        wait_for("the last request", || (dpu.seen().last()?.request == 18).then_some(()));
        let requests: Vec<u32> = dpu.seen().iter().map(|seen| seen.request).collect();
        // Before the first ring starts, a region for what is in flight.
        let said = [2, 5, 8, 9, 10, 13, 32, 12, 18];
        assert_eq!(requests, [&GREETING[..], &said[..]].concat());
        for seen in dpu.seen() {
            // Acknowledged from the negotiation on, whatever the VMM wants.
            let asked = !matches!(seen.request, 1 | 15 | 16 | 17 | 24 | 36);
            assert_eq!(seen.need_reply, asked, "{seen:?}");
            assert_eq!(
                seen.descriptors,
                usize::from(matches!(seen.request, 5 | 12 | 13 | 21 | 32)),
                "{seen:?}"
            );
        }
        let accepted = dpu.seen().into_iter().find(|seen| seen.request == 16).unwrap().payload;
        assert_eq!(
            accepted[0] & 8,
            8,
            "the shim negotiates REPLY_ACK even if the VMM does not"
        );
        assert_eq!(accepted[1] & 1, 0, "post-copy is not offered");
        // The VMM goes: the DPU's stream closes, and the device waits for the next one.
        drop(vmm);
        wait_for("the DPU's session to end", || (dpu.sessions() == 0).then_some(()));
        shim.until("vm1", DeviceState::WaitingForVmm);
    }
}

#[test]
fn answers_configuration_and_descriptors_come_back() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    assert_eq!(vmm.get_queue_num().unwrap(), 2);
    assert_eq!(vmm.get_max_mem_slots().unwrap(), 2);
    let (_, config) = vmm.get_config(0, 12, VhostUserConfigFlags::WRITABLE, &[9; 12]).unwrap();
    assert_eq!(config, [9; 12]);
    vmm.set_config(0, VhostUserConfigFlags::WRITABLE, &[1; 12]).unwrap();
    let (inflight, file) = vmm.get_inflight_fd(&VhostUserInflight::new(4096, 0, 2, 256)).unwrap();
    assert_eq!(inflight.queue_size, 256);
    vmm.set_inflight_fd(&inflight, file.as_raw_fd()).unwrap();
    assert_eq!(vmm.get_vring_base(0).unwrap(), 0);
    let seen = dpu.seen();
    assert_eq!(seen.iter().find(|s| s.request == 32).unwrap().descriptors, 1);
    assert_eq!(seen.last().unwrap().request, 11);
}

#[test]
fn the_dpus_refusal_reaches_a_vmm_that_asks_and_ends_the_session_of_one_that_does_not() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    dpu.refuse(8);
    assert!(vmm.set_vring_num(0, 128).is_err());
    assert_eq!(vmm.get_queue_num().unwrap(), 2);
    drop(vmm);
    shim.until("vm1", DeviceState::WaitingForVmm);

    let vmm = connect(&shim, "vm1");
    vmm.set_owner().unwrap();
    vmm.get_features().unwrap();
    let mut vmm = vmm;
    vmm.get_protocol_features().unwrap();
    vmm.set_protocol_features(VhostUserProtocolFeatures::CONFIG).unwrap();
    vmm.set_vring_num(0, 128).unwrap();
    let view = shim.until("vm1", DeviceState::Failed);
    assert!(view.problem.unwrap().error.contains("the DPU refused SET_VRING_NUM"));
}

#[test]
fn a_vmm_that_listens_is_connected_to_for_ever() {
    let shim = TestShim::start();
    let dpu = FakeDpu::start(&shim.link_path());
    dpu.grant("vm1");
    let path = shim.folder.path().join("qemu.sock");
    shim.attach_spec(DeviceSpec {
        kind: DeviceKind::Port,
        name: "vm1".to_owned(),
        socket: Some(path.clone()),
        role: Role::Connect,
        uid: None,
    });
    shim.until("vm1", DeviceState::WaitingForVmm);
    for round in 1..=3 {
        // The VMM comes late, after tries have failed; and again, after it went.
        std::thread::sleep(Duration::from_millis(150));
        let listener = UnixListener::bind(&path).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut vmm = Frontend::from_stream(stream, 2);
        bring_up(&mut vmm, true);
        wait_for("the session to be counted", || {
            let view = shim.view("vm1");
            assert!(view.sessions <= round, "more sessions than VMMs");
            (view.state == DeviceState::Connected && view.sessions == round).then_some(())
        });
        // Nothing listens any more when the session ends, or the shim would be quick enough to connect once again.
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        drop(vmm);
        shim.until("vm1", DeviceState::WaitingForVmm);
    }
}

#[test]
fn a_shim_that_restarts_takes_its_bindings_up_again() {
    let (shim, dpu) = shim_with_vm1();
    let folder = shim.stop();
    let shim = TestShim::start_in(folder, None);
    shim.attach("vm1");
    shim.until_open("vm1");
    assert_eq!(shim.view("vm1").generation, Some(1));
    bring_up(&mut connect(&shim, "vm1"), true);
    assert_eq!(dpu.released(), []);
}

#[test]
fn what_is_detached_while_the_dpu_is_away_is_given_back_by_the_next_shim() {
    let (shim, dpu) = shim_with_vm1();
    let mut folder = None;
    let dpu = dpu.restart(|| {
        wait_for("the socket to go", || (!shim.socket("vm1").exists()).then_some(()));
        shim.block_on(shim.client.detach(DeviceKind::Port, "vm1")).unwrap();
        folder = Some(shim.stop());
    });
    let _shim = TestShim::start_in(folder.unwrap(), None);
    wait_for("the release", || {
        (dpu.released() == [("vm1".to_owned(), 1)]).then_some(())
    });
}

#[test]
fn p08_a_port_revoked_while_the_link_was_down_is_noticed() {
    let (shim, dpu) = shim_with_vm1();
    let stream = UnixStream::connect(shim.socket("vm1")).unwrap();
    let mut vmm = Frontend::from_stream(stream.try_clone().unwrap(), 2);
    bring_up(&mut vmm, true);
    let _dpu = dpu.restart_without("vm1");
    assert!(is_closed(&stream), "no session outlives its grant");
    let problem = shim.until("vm1", DeviceState::WaitingForGrant).problem.unwrap();
    // The DPU says only that there is no grant, and so does the shim.
    assert!(problem.error.contains("has no grant of port vm1"), "{problem}");
    wait_for("the socket to go", || (!shim.socket("vm1").exists()).then_some(()));
}

#[test]
fn p08_a_revoked_ports_session_and_socket_are_closed_until_it_is_granted_anew() {
    let (shim, dpu) = shim_with_vm1();
    let stream = UnixStream::connect(shim.socket("vm1")).unwrap();
    let mut vmm = Frontend::from_stream(stream.try_clone().unwrap(), 2);
    bring_up(&mut vmm, true);
    dpu.revoke("vm1");
    assert!(is_closed(&stream));
    let view = shim.until("vm1", DeviceState::Revoked);
    assert!(
        view.problem
            .unwrap()
            .error
            .contains("the grant of port vm1 was revoked")
    );
    wait_for("the socket to go", || (!shim.socket("vm1").exists()).then_some(()));
    dpu.grant("vm1");
    shim.until_open("vm1");
    assert_eq!(shim.view("vm1").generation, Some(2));
    bring_up(&mut connect(&shim, "vm1"), true);
}

#[test]
fn a_vmm_without_shared_memory_is_told_so_and_a_good_one_clears_it() {
    let (shim, dpu) = shim_with_vm1();
    let table = [1_u32.to_le_bytes().to_vec(), vec![0; 4 + 32]].concat();
    // QEMU without shared memory sends no region, or regions without files, or goes on to the rings.
    for message in [raw(5, 1, &[0; 8]), raw(5, 1, &table), raw(9, 1, &[0; 40])] {
        let mut stream = UnixStream::connect(shim.socket("vm1")).unwrap();
        stream.write_all(&message).unwrap();
        assert!(is_closed(&stream));
        let problem = shim.until("vm1", DeviceState::Failed).problem.unwrap();
        assert!(
            problem.error.starts_with("VM of port vm1 has no shared memory"),
            "{problem}"
        );
        assert!(
            problem.remedy.contains("memory-backend-memfd") && problem.remedy.contains("share=on"),
            "{problem}"
        );
        let health = shim.block_on(shim.client.health()).unwrap();
        assert!(!health.healthy && health.link.connected);
    }
    assert!(dpu.seen().iter().all(|seen| GREETING.contains(&seen.request)));
    bring_up(&mut connect(&shim, "vm1"), true);
    wait_for("the problem to go", || shim.view("vm1").problem.is_none().then_some(()));
}

#[test]
fn a_driver_that_is_ready_without_memory_is_reported_while_its_session_lives() {
    let (shim, _dpu) = shim_with_vm1();
    let vmm = connect(&shim, "vm1");
    vmm.set_owner().unwrap();
    let features = vmm.get_features().unwrap();
    vmm.set_features(features).unwrap();
    let problem = wait_for("a report", || shim.view("vm1").problem);
    assert!(problem.error.contains("has no shared memory"), "{problem}");
    assert_eq!(shim.view("vm1").state, DeviceState::Connected);
    // The session goes on, and memory that does come puts it right.
    let mut vmm = vmm;
    bring_up(&mut vmm, true);
    wait_for("the problem to go", || shim.view("vm1").problem.is_none().then_some(()));
}

#[test]
fn p11_hostile_messages_end_only_their_own_session() {
    let (shim, dpu) = shim_with_vm1();
    dpu.grant("vm2");
    shim.attach("vm2");
    shim.until_open("vm2");
    let mut neighbour = connect(&shim, "vm2");
    bring_up(&mut neighbour, true);
    let sized = |size: u32| {
        [2_u32, 1, size]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<u8>>()
    };
    let hostile = [
        sized(4097),
        sized(u32::MAX),
        raw(2, 1, &[]),
        raw(1, 0, &[]),
        raw(1, 0xffff_ffff, &[]),
        raw(0, 1, &[]),
        raw(22, 1, &[0; 8]),
        raw(99, 1, &[]),
        raw(1, 5, &[0; 8]),
        raw(16, 1, &u64::MAX.to_le_bytes()),
        raw(12, 1, &[0; 8]),
    ];
    for message in hostile {
        let before = dpu.seen().len();
        let mut stream = UnixStream::connect(shim.socket("vm1")).unwrap();
        stream.write_all(&message).unwrap();
        assert!(is_closed(&stream), "{message:?}");
        let problem = shim.until("vm1", DeviceState::Failed).problem.unwrap();
        assert!(problem.error.contains("vm1"), "{problem}");
        let seen = dpu.seen();
        let greeted = seen[before..].iter().all(|seen| GREETING.contains(&seen.request));
        assert!(greeted, "the DPU saw {message:?}");
        assert_eq!(neighbour.get_queue_num().unwrap(), 2);
    }
    // Control: a legitimate VMM is served, before (the neighbour) and after.
    bring_up(&mut connect(&shim, "vm1"), true);
}

#[test]
fn a_stalled_or_dripping_vmm_holds_only_its_own_session() {
    let (shim, dpu) = shim_with_vm1();
    let mut stalled = UnixStream::connect(shim.socket("vm1")).unwrap();
    stalled.write_all(&raw(1, 1, &[])[..7]).unwrap();
    shim.until("vm1", DeviceState::Connected);
    for index in 2..6 {
        let name = format!("vm{index}");
        dpu.grant(&name);
        shim.attach(&name);
        shim.until_open(&name);
        bring_up(&mut connect(&shim, &name), true);
    }
    // Byte by byte it is a request all the same.
    for byte in &raw(1, 1, &[])[7..] {
        stalled.write_all(&[*byte]).unwrap();
    }
    let mut answer = [0; 20];
    stalled.read_exact(&mut answer).unwrap();
    // And a VMM that asks and asks without reading an answer does not keep the shim from detaching it.
    stalled.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    while stalled.write_all(&raw(1, 1, &[])).is_ok() {}
    shim.block_on(shim.client.detach(DeviceKind::Port, "vm1")).unwrap();
    wait_for("the DPU's session to end", || (dpu.sessions() == 0).then_some(()));
}

#[test]
fn while_the_dpu_is_silent_the_vmm_may_leave() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    drop(vmm);
    shim.until("vm1", DeviceState::WaitingForVmm);
    dpu.mute(1);
    let mut stream = UnixStream::connect(shim.socket("vm1")).unwrap();
    stream.write_all(&raw(1, 1, &[])).unwrap();
    wait_for("the request to arrive", || {
        (dpu.seen().last()?.request == 1).then_some(())
    });
    stream.shutdown(Shutdown::Both).unwrap();
    wait_for("the DPU's session to end", || (dpu.sessions() == 0).then_some(()));
}

#[test]
fn a_second_vmm_waits_for_the_first_and_is_sent_away() {
    let (shim, _dpu) = shim_with_vm1();
    let mut first = connect(&shim, "vm1");
    bring_up(&mut first, true);
    let second = UnixStream::connect(shim.socket("vm1")).unwrap();
    assert!(is_closed(&second));
    assert_eq!(first.get_queue_num().unwrap(), 2);
    // One that comes just before the first one goes is served.
    let third = connect(&shim, "vm1");
    drop(first);
    let mut third = third;
    bring_up(&mut third, true);
}
