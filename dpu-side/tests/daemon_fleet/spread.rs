//! What only several workers do: queues of two guests in two workers, a worker woken by another one, and silence on both.

use std::time::Duration;

use outboard_protocol::desired::VolumeBackend;

use crate::{
    fixture::{Card, Change, PATIENCE, desired, port, two_ports, volume},
    guest::{BLK_T_IN, BLK_T_OUT, BlkGuest, NetGuest, frame},
};

/// Longer than a worker polls in vain before it sleeps.
const NAP: Duration = Duration::from_millis(20);

#[test]
fn frames_cross_between_workers_that_sleep_in_between() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    for n in 0..50u8 {
        std::thread::sleep(NAP);
        let there = frame(1, 2, &[n; 300]);
        assert!(vm1.send(&there));
        assert_eq!(vm2.receive(PATIENCE), Some(there));
        let back = frame(2, 1, &[n; 40]);
        assert!(vm2.send(&back));
        assert_eq!(vm1.receive(PATIENCE), Some(back));
    }
    daemon.stop();
}

#[test]
fn bursts_cross_whole_and_in_order() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    for round in 0..200u8 {
        let frames: Vec<_> = (0..16u8).map(|n| frame(1, 2, &[round, n, 7, 7])).collect();
        assert!(frames.iter().all(|frame| vm1.send(frame)));
        for frame in frames {
            assert_eq!(vm2.receive(PATIENCE), Some(frame));
        }
    }
    daemon.stop();
}

#[test]
fn guests_come_and_go_while_others_send_to_them() {
    let card = Card::holding(two_ports());
    let daemon = card.start();
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    for n in 0..20u8 {
        let mut vm2 = NetGuest::start(host.open(&port("vm2")));
        let hello = frame(1, 2, &[n; 60]);
        assert!(vm1.send(&hello));
        assert_eq!(vm2.receive(PATIENCE), Some(hello));
        // Under way when it goes, for nobody.
        assert!((0..8).all(|_| vm1.send(&frame(1, 2, b"late"))));
        drop(vm2);
    }
    daemon.stop();
}

#[test]
fn a_volume_and_a_port_have_a_worker_each() {
    let state = desired(1, 2)
        .with("disk", 1 << 20, VolumeBackend::Memory)
        .grant(port("vm1"), 1)
        .grant(port("vm2"), 1)
        .grant(volume("disk"), 1);
    let card = Card::holding(state);
    let daemon = card.start();
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut disk = BlkGuest::start(host.open(&volume("disk")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    for n in 0..20u8 {
        assert_eq!(disk.request(BLK_T_OUT, u64::from(n), &[n; 512], 0).0, 0);
        let hello = frame(2, 1, &[n; 60]);
        assert!(vm2.send(&hello));
        assert_eq!(vm1.receive(PATIENCE), Some(hello));
        assert_eq!(disk.request(BLK_T_IN, u64::from(n), &[], 512), (0, vec![n; 512]));
    }
    daemon.stop();
}
