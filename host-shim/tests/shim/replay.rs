//! DPUs that die, hang and come back under a VMM that sees none of it.

use std::{
    io::Read,
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::{Duration, Instant},
};

use outboard_shim_api::{DeviceKind, DeviceState};
use vhost::{
    VhostBackend,
    vhost_user::{Frontend, VhostUserFrontend, message::VhostUserConfigFlags},
};

use crate::{
    fake_dpu::{FakeDpu, GREETING, VIRTIO_FEATURES},
    world::{PATIENCE, TestShim, bring_up, connect, shim_with_vm1, wait_for},
};

/// What a DPU is told of a VMM that [`bring_up`] brought up, after the greeting.
const REPLAY: [u32; 9] = [2, 32, 5, 8, 10, 9, 12, 13, 18];

fn requests(dpu: &FakeDpu) -> Vec<u32> {
    dpu.seen().iter().map(|seen| seen.request).collect()
}

fn until_replayed(shim: &TestShim, replays: u64) {
    wait_for("a replay", || (shim.view("vm1").replays == replays).then_some(()));
}

#[test]
fn a_dpu_that_closes_the_stream_is_asked_for_another_and_told_everything() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    let before = dpu.seen().len();
    dpu.close_session("vm1");
    until_replayed(&shim, 1);
    assert_eq!(requests(&dpu)[before..], [&GREETING[..], &REPLAY[..]].concat());
    assert_eq!(dpu.sessions_begun(), 2);
    assert_eq!(vmm.get_queue_num().unwrap(), 2);
    vmm.set_vring_enable(0, false).unwrap();
    let view = shim.view("vm1");
    assert_eq!((view.state, view.sessions), (DeviceState::Connected, 1));
}

#[test]
fn a_dpu_that_restarts_finds_the_vmm_where_it_was() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    let dpu = dpu.restart(|| {
        wait_for("the loss", || {
            let health = shim.block_on(shim.client.health()).unwrap();
            (!health.link.connected).then_some(())
        });
        // What the VMM asks is answered from memory.
        assert_eq!(vmm.get_features().unwrap(), VIRTIO_FEATURES);
        assert_eq!(vmm.get_queue_num().unwrap(), 2);
        vmm.get_config(0, 12, VhostUserConfigFlags::WRITABLE, &[0; 12]).unwrap();
        vmm.set_vring_enable(0, false).unwrap();
        let problem = wait_for("a problem to be reported", || shim.view("vm1").problem);
        assert!(problem.error.contains("the DPU has been away for"), "{problem}");
        assert!(
            problem.error.contains("0 requests are in flight; the VM waits"),
            "{problem}"
        );
        assert_eq!(shim.view("vm1").state, DeviceState::Connected);
        let health = shim.block_on(shim.client.health()).unwrap();
        let problem = health.link.problem.unwrap();
        assert!(!health.healthy && problem.remedy.contains("outboard-dpu"), "{problem}");
    });
    until_replayed(&shim, 1);
    assert_eq!(requests(&dpu), [&GREETING[..], &REPLAY[..]].concat());
    assert_eq!(dpu.seen().last().unwrap().payload, [0; 8], "disabled meanwhile");
    let view = shim.view("vm1");
    assert_eq!((view.problem, view.generation), (None, Some(1)));
    vmm.set_vring_enable(0, true).unwrap();
}

#[test]
fn a_restarted_dpu_is_found_within_milliseconds() {
    let (shim, mut dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    let mut gaps = Vec::new();
    for round in 1..=10 {
        let mut back = Instant::now();
        dpu = dpu.restart(|| {
            std::thread::sleep(Duration::from_millis(40));
            back = Instant::now();
        });
        until_replayed(&shim, round);
        gaps.push(back.elapsed());
    }
    gaps.sort();
    // Asking over the API takes its time too, and the machine may be busy.
    assert!(gaps[5] < Duration::from_millis(500), "{gaps:?}");
}

#[test]
fn a_dpu_may_die_at_any_message() {
    let (shim, dpu) = shim_with_vm1();
    for message in 0..24 {
        let mut vmm = connect(&shim, "vm1");
        dpu.close_after(message);
        bring_up(&mut vmm, true);
        assert_eq!(vmm.get_queue_num().unwrap(), 2);
        wait_for("the DPU to know it all", || {
            let seen = requests(&dpu);
            (dpu.sessions() == 1 && seen.ends_with(&[18])).then_some(())
        });
        drop(vmm);
        wait_for("the session to end", || (dpu.sessions() == 0).then_some(()));
    }
}

#[test]
fn a_dpu_that_answers_no_more_is_left_and_its_late_answer_lost() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    vmm.set_config(0, VhostUserConfigFlags::WRITABLE, &[5; 4]).unwrap();
    dpu.mute(24);
    let asked = Instant::now();
    let (_, config) = vmm.get_config(0, 4, VhostUserConfigFlags::WRITABLE, &[9; 4]).unwrap();
    // From memory: the DPU would have said [9; 4].
    assert_eq!(config, [5; 4]);
    assert!(asked.elapsed() >= Duration::from_secs(4), "it was asked first");
    let view = shim.view("vm1");
    assert_eq!(view.state, DeviceState::Connected);
    dpu.unmute();
    until_replayed(&shim, 1);
    let (_, config) = vmm.get_config(0, 4, VhostUserConfigFlags::WRITABLE, &[9; 4]).unwrap();
    assert_eq!(config, [9; 4]);
}

#[test]
fn a_dpu_whose_link_is_silent_loses_its_sessions_to_the_next() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    dpu.hang();
    wait_for("the stream to be closed", || (dpu.sessions() == 0).then_some(()));
    assert_eq!(vmm.get_features().unwrap(), VIRTIO_FEATURES);
    let dpu = dpu.restart(|| ());
    until_replayed(&shim, 1);
    assert_eq!(requests(&dpu), [&GREETING[..], &REPLAY[..]].concat());
}

#[test]
fn a_dpu_that_offers_less_is_named_and_the_vmm_waits_for_another() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    dpu.lack(1 << 32);
    dpu.close_session("vm1");
    let problem = wait_for("a problem to be reported", || shim.view("vm1").problem);
    assert!(
        problem.error.contains("does not offer the virtio features 0x100000000"),
        "{problem}"
    );
    assert_eq!(vmm.get_queue_num().unwrap(), 2);
    dpu.lack(0);
    until_replayed(&shim, 1);
    assert_eq!(shim.view("vm1").problem, None);
}

#[test]
fn a_dpu_that_talks_out_of_turn_is_greeted_anew() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    let unasked: Vec<u8> = [1_u32, 5, 8, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    dpu.blurt("vm1", &unasked);
    until_replayed(&shim, 1);
    assert_eq!(vmm.get_queue_num().unwrap(), 2);
}

#[test]
fn a_vmm_comes_and_goes_while_the_dpu_is_away() {
    let (shim, dpu) = shim_with_vm1();
    let mut first = connect(&shim, "vm1");
    bring_up(&mut first, true);
    let mut second = None;
    let dpu = dpu.restart(|| {
        wait_for("the loss", || {
            let health = shim.block_on(shim.client.health()).unwrap();
            (!health.link.connected).then_some(())
        });
        drop(first);
        // The socket stays, and a VMM that comes is answered.
        std::thread::sleep(Duration::from_millis(1500));
        let mut vmm = connect(&shim, "vm1");
        bring_up(&mut vmm, true);
        assert_eq!(shim.view("vm1").state, DeviceState::Connected);
        second = Some(vmm);
    });
    wait_for("the DPU to be told", || requests(&dpu).ends_with(&[18]).then_some(()));
    assert_eq!(requests(&dpu), [&GREETING[..], &REPLAY[..]].concat());
    assert_eq!(shim.view("vm1").sessions, 2);
    drop(second);
    wait_for("the session to end", || (dpu.sessions() == 0).then_some(()));
}

#[test]
fn a_vmm_reconnects_to_a_shim_that_was_restarted() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    let (inflight, file) = {
        bring_up(&mut vmm, true);
        let asked = vhost::vhost_user::message::VhostUserInflight::new(0, 0, 2, 256);
        vmm.get_inflight_fd(&asked).unwrap()
    };
    drop(vmm);
    let folder = shim.stop();
    let shim = TestShim::start_in(folder, None);
    shim.attach("vm1");
    shim.until_open("vm1");
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    // It brings along the region that the shim before made.
    vmm.set_inflight_fd(&inflight, file.as_raw_fd()).unwrap();
    assert_eq!(dpu.seen().last().unwrap().request, 32);
}

#[test]
fn changes_of_configuration_reach_the_vmm_on_its_channel() {
    let (shim, dpu) = shim_with_vm1();
    let mut vmm = connect(&shim, "vm1");
    bring_up(&mut vmm, true);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    vmm.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    let expected: Vec<u8> = [2_u32, 1, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    let mut message = [0; 12];
    for _ in 0..2 {
        dpu.say_config_changed();
        ours.read_exact(&mut message).unwrap();
        assert_eq!(message[..], expected);
        // As QEMU does then.
        vmm.get_config(0, 4, VhostUserConfigFlags::WRITABLE, &[0; 4]).unwrap();
        dpu.close_session("vm1");
        wait_for("another session", || (dpu.sessions() == 1).then_some(()));
        wait_for("the channel", || (requests(&dpu).ends_with(&[18])).then_some(()));
    }
    // A VMM that reads none of them holds nothing up.
    for _ in 0..20_000 {
        dpu.say_config_changed();
    }
    assert_eq!(vmm.get_queue_num().unwrap(), 2);
    vmm.get_config(0, 4, VhostUserConfigFlags::WRITABLE, &[0; 4]).unwrap();
    drop(ours);
    dpu.say_config_changed();
    vmm.get_config(0, 4, VhostUserConfigFlags::WRITABLE, &[0; 4]).unwrap();
}

#[test]
fn p08_a_port_revoked_while_it_runs_ends_its_session_for_good() {
    let (shim, dpu) = shim_with_vm1();
    let stream = UnixStream::connect(shim.socket("vm1")).unwrap();
    let mut vmm = Frontend::from_stream(stream.try_clone().unwrap(), 2);
    bring_up(&mut vmm, true);
    dpu.close_session("vm1");
    until_replayed(&shim, 1);
    dpu.revoke("vm1");
    shim.until("vm1", DeviceState::Revoked);
    wait_for("nothing to be answered from memory any more", || {
        vmm.get_features().err()
    });
    assert_eq!(dpu.sessions_begun(), 2);
    shim.block_on(shim.client.detach(DeviceKind::Port, "vm1")).unwrap();
}
