//! The MTU that a VMM tells: of the sender's port, of the receiver's, and of drivers that did not take the feature.

use crate::FEATURES;
use outboard_vhost_user::DeviceError;
use outboard_vswitch::DropReason;
use vhost_net_dpu::{
    MTU_MIN,
    header::{GSO_UDP_L4, NEEDS_CSUM, NetHeader},
};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_MTU};

use crate::{
    frames::udp,
    rig::{Delta, Rig, TX_QUEUE, got, mac, missed, sent},
};

const IDLE: Delta = Delta {
    tx: (0, 0),
    rx: (0, 0),
    drop: None,
};

/// The longest frame that IP fills.
const PACKET_LEN_MAX: usize = 65_535 + 14;

fn frame_of(len: usize) -> Vec<u8> {
    let addresses = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let mut frame = udp(
        (mac(1), mac(2)),
        addresses,
        (1, 2),
        &vec![3; len.min(PACKET_LEN_MAX) - 42],
    );
    frame.resize(len, 0);
    frame
}

/// The longest frame that passes from a to b, and what becomes of the next longer one.
#[track_caller]
fn longest(rig: &mut Rig, len: usize, next: [Delta; 2]) {
    rig.settle();
    rig.send_plain(0, &frame_of(len));
    rig.expect(&[sent(1, len), got(1, len)]);
    rig.send_plain(0, &frame_of(len + 1));
    rig.expect(&next);
    rig.guests[1].received();
    rig.guests[1].repost();
}

fn at_sender(len: usize) -> [Delta; 2] {
    [sent(1, len + 1).dropped(DropReason::OverMtu, 1), IDLE]
}

fn at_receiver(len: usize) -> [Delta; 2] {
    [sent(1, len + 1), missed(DropReason::RxOverMtu, 1)]
}

#[test]
fn each_side_is_held_to_its_own_mtu_to_the_byte() {
    let mut rig = Rig::pair();
    longest(&mut rig, 1514, at_sender(1514));
    rig.switch.set_mtu("a", Some(9000)).expect("a is declared");
    longest(&mut rig, 1514, at_receiver(1514));
    rig.switch.set_mtu("b", Some(8000)).expect("b is declared");
    longest(&mut rig, 8014, at_receiver(8014));
    rig.switch.set_mtu("a", Some(576)).expect("a is declared");
    longest(&mut rig, 590, at_sender(590));
    // It holds for queues that start later as well.
    rig.switch.stop_queue("a", TX_QUEUE);
    rig.guests[0].renew_tx();
    let queue = rig.queue_resources(0, vhost_net_dpu::QueueKind::Tx { pair: 0 });
    rig.switch.start_queue("a", TX_QUEUE, queue).expect("it was stopped");
    longest(&mut rig, 590, at_sender(590));
    rig.switch.set_mtu("a", None).expect("a is declared");
    longest(&mut rig, 1514, at_sender(1514));
}

#[test]
fn a_driver_that_does_not_know_of_it_is_held_to_ethernets() {
    let without = FEATURES & !(1 << VIRTIO_NET_F_MTU);
    let mut rig = Rig::new(&[FEATURES, without]);
    for port in ["a", "b"] {
        rig.switch.set_mtu(port, Some(9000)).expect("both are declared");
    }
    longest(&mut rig, 1514, at_receiver(1514));
    let mut rig = Rig::new(&[without, FEATURES]);
    rig.switch.set_mtu("a", Some(576)).expect("a is declared");
    longest(&mut rig, 1514, at_sender(1514));
}

#[test]
fn segments_are_held_to_the_senders_mtu_and_to_the_receivers_where_they_are_cut() {
    let header = |gso_size: u16| NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        gso_size,
        hdr_len: 42,
        csum_start: 34,
        csum_offset: 6,
        ..NetHeader::default()
    };
    let cutting = FEATURES & !(1 << VIRTIO_NET_F_GUEST_USO4);
    let mut rig = Rig::new(&[FEATURES, FEATURES, cutting]);
    rig.switch.set_mtu("a", Some(9000)).expect("a is declared");
    let frame = frame_of(20_000);
    rig.send(0, header(9000 - 28 + 1), &frame);
    rig.expect(&[sent(1, frame.len()).dropped(DropReason::BadOffload, 1), IDLE, IDLE]);
    // Uncut, it is the receiver's to cut, or to take as it is.
    rig.send(0, header(9000 - 28), &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len()), IDLE]);
    let to_c = udp((mac(1), mac(3)), ([10, 0, 0, 1], [10, 0, 0, 3]), (1, 2), &[3; 20_000]);
    rig.send(0, header(1500 - 28), &to_c);
    let count = 20_000usize.div_ceil(1472);
    rig.expect(&[sent(1, to_c.len()), IDLE, got(count as u64, 20_000 + 42 * count)]);
    // Thirteen of 1,473 bytes, and a rest.
    rig.send(0, header(1500 - 28 + 1), &to_c);
    let rest = 20_000 - 13 * 1473;
    rig.expect(&[
        sent(1, to_c.len()),
        IDLE,
        got(1, rest + 42).dropped(DropReason::RxOverMtu, 13),
    ]);
}

#[test]
fn an_mtu_that_no_device_has_is_refused() {
    let mut rig = Rig::pair();
    let error = rig.switch.set_mtu("a", Some(MTU_MIN - 1)).expect_err("too small");
    assert!(error.to_string().contains("host told an MTU of 67 bytes"), "{error}");
    assert!(matches!(
        rig.switch.set_mtu("x", Some(1500)),
        Err(DeviceError::NotGranted { .. })
    ));
    longest(&mut rig, 1514, at_sender(1514));
    for (mtu, len) in [(MTU_MIN, 82), (u16::MAX, PACKET_LEN_MAX)] {
        rig.switch.set_mtu("a", Some(mtu)).expect("the least and the most");
        rig.switch.set_mtu("b", Some(mtu)).expect("the least and the most");
        longest(&mut rig, len, at_sender(len));
    }
}
