//! Ports that go and come back under their name.

use crate::FEATURES;
use outboard_controls::{Check, Off};
use outboard_vhost_user::DeviceError;
use outboard_vswitch::DropReason;
use vhost_net_dpu::{QueueKind, header::NetHeader};

use crate::{
    frames::ping,
    rig::{Delta, RX_QUEUE, Rig, TX_QUEUE, base, got, mac, missed, policy, sent},
};

const IDLE: Delta = Delta {
    tx: (0, 0),
    rx: (0, 0),
    drop: None,
};

/// Port a is deleted while its queues run, and declared again and granted, perhaps to another tenant's VM.
fn redeclared() -> Rig {
    let mut rig = Rig::pair();
    rig.alive(0, 1);
    rig.switch.set_mtu("a", Some(9000)).expect("a is declared");
    rig.switch.set_ports(vec![policy("b", 2)]);
    rig.switch.set_ports(vec![policy("a", 1), policy("b", 2)]);
    rig.switch.open("a");
    rig.settle();
    rig
}

#[test]
fn a_port_of_a_former_ones_name_does_not_serve_its_queues() {
    let mut rig = redeclared();
    let frame = ping(mac(1), mac(2));
    let back = ping(mac(2), mac(1));
    let former = &rig.switch.counters()[0];
    assert_eq!((former.tx_frames, former.rx_frames), (0, 0), "it begins anew");
    rig.send_plain(0, &frame);
    assert_eq!(rig.guests[0].given_back(), 1, "that of before it was deleted");
    rig.expect(&[IDLE, IDLE]);
    assert!(!rig.switch.before_sleep(), "nor do they keep anybody awake");
    rig.send_plain(1, &back);
    rig.expect(&[missed(DropReason::RxNotRunning, 1), sent(1, back.len())]);
    assert_eq!(rig.guests[0].received(), []);
    // A session of the new one has to wait until the former one's are stopped.
    for kind in [
        QueueKind::Rx { pair: 0 },
        QueueKind::Tx { pair: 0 },
        QueueKind::Rx { pair: 1 },
    ] {
        let queue = rig.queue_resources(
            0,
            if kind.index() == 1 {
                kind
            } else {
                QueueKind::Rx { pair: 0 }
            },
        );
        assert!(matches!(
            rig.switch.start_queue("a", kind.index(), queue),
            Err(DeviceError::NotGranted { .. })
        ));
    }
    assert!(matches!(
        rig.switch.set_mtu("a", Some(1500)),
        Err(DeviceError::NotGranted { .. })
    ));
    assert_eq!(rig.switch.stop_queue("a", TX_QUEUE), Some(base(1, 2)));
    rig.send_plain(1, &back);
    rig.expect(&[missed(DropReason::RxNotRunning, 1), sent(1, back.len())]);
    assert_eq!(rig.switch.stop_queue("a", RX_QUEUE), Some(base(1, 1)));
    rig.guests[0].given_back();
    rig.guests[0].received();
    rig.start(0);
    rig.breathe();
    rig.settle();
    // Its ring was set up anew from the beginning, so what was sent before is sent again.
    rig.guests[1].received();
    rig.send_plain(0, &frame);
    assert!(!rig.guests[1].received().is_empty());
    let long = [&frame[..], &[0; 3000]].concat();
    rig.settle();
    rig.send_plain(0, &long);
    rig.expect(&[sent(1, long.len()).dropped(DropReason::OverMtu, 1), IDLE]);
}

#[test]
fn without_the_check_the_former_ports_queues_are_served() {
    let mut rig = redeclared();
    let _off = Off::here(Check::StaleQueue);
    let frame = ping(mac(1), mac(2));
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
}

#[test]
fn a_redeclared_port_without_queues_is_like_a_new_one() {
    let mut rig = Rig::with_pairs(&[FEATURES; 2], 2);
    rig.alive(0, 1);
    rig.switch.set_ports(vec![policy("b", 2)]);
    for index in 0..4 {
        assert!(rig.switch.stop_queue("a", index).is_some());
    }
    rig.switch.set_ports(vec![policy("a", 1), policy("b", 2)]);
    assert_eq!(rig.switch.counters()[0].tx_frames, 0);
    rig.start_pair(0, 1);
    rig.switch.open("a");
    rig.settle();
    rig.guests[0].queue_on(1, NetHeader::default(), &ping(mac(1), mac(2)));
    rig.guests[0].pairs[1].tx.publish();
    rig.breathe();
    assert_eq!(rig.guests[1].received().len(), 1);
}
