//! Guests' traffic through the whole daemon, with the broker away.

use std::{io::Write, time::Duration};

use outboard_protocol::{desired::VolumeBackend, id::Generation, link::Reply, refusal::Code};

use crate::{
    fixture::{Card, Change, PATIENCE, desired, eventually, port, two_ports, volume},
    guest::{BLK_T_FLUSH, BLK_T_IN, BLK_T_OUT, BlkGuest, NetGuest, frame},
};

const SILENCE: Duration = Duration::from_millis(200);

#[test]
fn with_the_broker_away_two_granted_ports_exchange_frames() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    for n in 0..200u8 {
        let (there, back) = (frame(1, 2, &[n; 300]), frame(2, 1, &[n; 40]));
        assert!(vm1.send(&there) && vm2.send(&back));
        assert_eq!(vm2.receive(PATIENCE), Some(there));
        assert_eq!(vm1.receive(PATIENCE), Some(back));
    }
    // Another's address does not pass: the policy from the saved state is in force.
    assert!(vm1.send(&frame(3, 2, b"spoofed")));
    assert_eq!(vm2.receive(SILENCE), None);
    daemon.stop();
    assert!(!card.config.link_socket.exists(), "the socket is removed");
}

#[test]
fn a_guest_is_called_when_a_frame_arrives() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    while vm2.0.call(0).read().is_ok() {}
    vm1.send(&frame(1, 2, b"ring"));
    eventually("the guest is called", || vm2.0.call(0).read().ok());
    assert!(vm2.take().is_some(), "a call comes after the frame");
    daemon.stop();
}

#[test]
fn a_port_that_is_not_granted_stays_shut() {
    let card = Card::holding(desired(1, 2).grant(port("vm1"), 1));
    let daemon = card.start();
    let mut host = card.host();
    host.attach(&port("vm1"));
    let refusal = host.redeem(&port("vm2")).unwrap_err();
    assert_eq!(refusal.code, Code::NotGranted);
    daemon.stop();
}

#[test]
fn what_was_attached_is_attached_after_a_restart() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let binding = card.host().attach(&port("vm1"));
    daemon.stop();
    let daemon = card.start();
    let mut host = card.host();
    let stream = eventually("its device is set up again", || {
        host.connect_device(&port("vm1"), binding).ok()
    });
    let mut vm1 = NetGuest::start(stream);
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    assert!(vm1.send(&frame(1, 2, b"hello again")));
    assert!(vm2.receive(PATIENCE).is_some());
    daemon.stop();
}

#[test]
fn a_device_has_one_session_and_can_be_opened_again_after_it() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let binding = host.attach(&port("vm1"));
    let stream = host.connect_device(&port("vm1"), binding).unwrap();
    assert_eq!(host.connect_device(&port("vm1"), binding).unwrap_err().code, Code::Busy);
    drop(stream);
    let stream = eventually("the session is over", || {
        host.connect_device(&port("vm1"), binding).ok()
    });
    NetGuest::start(stream);
    daemon.stop();
}

#[test]
fn a_released_port_is_silent_and_an_older_generation_is_stale() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let binding = host.attach(&port("vm1"));
    let mut vm1 = NetGuest::start(host.connect_device(&port("vm1"), binding).unwrap());
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    assert!(vm1.send(&frame(1, 2, b"before")) && vm2.receive(PATIENCE).is_some());
    assert_eq!(
        host.release(&port("vm1"), Generation(0)),
        Some(Reply::Released),
        "an old one changes nothing"
    );
    assert!(vm1.send(&frame(1, 2, b"still")) && vm2.receive(PATIENCE).is_some());
    assert_eq!(host.release(&port("vm1"), binding.0), Some(Reply::Released));
    vm1.send(&frame(1, 2, b"after"));
    assert_eq!(vm2.receive(SILENCE), None);
    assert_eq!(
        host.connect_device(&port("vm1"), binding).unwrap_err().code,
        Code::NotGranted
    );
    daemon.stop();
}

#[test]
fn a_volume_is_read_written_and_flushed() {
    let mib = 1 << 20;
    let backend = VolumeBackend::File {
        path: "disk1.raw".into(),
    };
    let card = Card::holding(desired(1, 0).with("disk1", mib, backend).grant(volume("disk1"), 1));
    std::fs::File::create(card.volume_path("disk1.raw"))
        .unwrap()
        .set_len(mib)
        .unwrap();
    let daemon = card.start();
    let mut host = card.host();
    let mut vm = BlkGuest::start(host.open(&volume("disk1")));
    assert_eq!(vm.capacity(), mib / 512);
    let data: Vec<u8> = (0..1024u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    assert_eq!(vm.request(BLK_T_OUT, 3, &data, 0).0, 0);
    assert_eq!(vm.request(BLK_T_FLUSH, 0, &[], 0).0, 0);
    assert_eq!(vm.request(BLK_T_IN, 3, &[], 1024), (0, data.clone()));
    assert_eq!(
        vm.request(BLK_T_OUT, mib / 512 - 1, &data, 0).0,
        1,
        "beyond the end is an I/O error"
    );
    daemon.stop();
    let stored = std::fs::read(card.volume_path("disk1.raw")).unwrap();
    assert_eq!(&stored[3 * 512..3 * 512 + 1024], data);
}

#[test]
fn a_volume_in_memory_serves_and_one_beyond_the_limit_does_not() {
    let mut card = Card::holding(
        desired(1, 0)
            .with("small", 1 << 20, VolumeBackend::Memory)
            .with("large", 1 << 30, VolumeBackend::Memory)
            .grant(volume("small"), 1)
            .grant(volume("large"), 1),
    );
    card.config.limits.memory_volume_bytes = 1 << 20;
    let daemon = card.start();
    let mut host = card.host();
    let mut vm = BlkGuest::start(host.open(&volume("small")));
    assert_eq!(vm.request(BLK_T_OUT, 0, &[9; 512], 0).0, 0);
    assert_eq!(vm.request(BLK_T_IN, 0, &[], 512), (0, vec![9; 512]));
    assert_eq!(host.redeem(&volume("large")).unwrap_err().code, Code::Unavailable);
    daemon.stop();
}

#[test]
fn a_damaged_state_grants_nothing_and_is_kept() {
    let card = Card::holding(two_ports());
    let state = card.config.state_dir.join("state");
    let mut bytes = std::fs::read(&state).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::File::create(&state).unwrap().write_all(&bytes).unwrap();
    let daemon = card.start();
    assert_eq!(card.host().redeem(&port("vm1")).unwrap_err().code, Code::NotGranted);
    let kept = std::fs::read_dir(&card.config.state_dir).unwrap().flatten();
    let kept = kept.filter(|f| f.file_name().to_string_lossy().starts_with("state.damaged-"));
    assert_eq!(kept.count(), 1);
    daemon.stop();
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let refused = dpu_side::daemon::Daemon::start(&card.config, dpu_side::state_lock::IfHeld::Fail)
        .err()
        .expect("refused");
    assert!(refused.to_string().contains("another outboard-dpu"), "{refused}");
    daemon.stop();
    card.start().stop();
}
