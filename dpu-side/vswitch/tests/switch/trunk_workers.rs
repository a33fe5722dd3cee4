//! Trunks whose devices are in different workers.

use crate::FEATURES;
use outboard_vswitch::DropReason;
use vhost_net_dpu::header::{GSO_TCPV4, NEEDS_CSUM, NetHeader};
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_TSO4;

use crate::{
    fleet::Fleet,
    frames::{arp, tcp, udp},
    offload::verified,
    rig::{Delta, got, mac, missed, sent},
    trunk::{port, tag},
};

/// Ports in the order of their counters: guests a and c have their queues in worker 0, b has its own in worker 1. Each has a
/// subport on green, with VLAN ids 100 to 102.
const A_GREEN: usize = 3;
const B_GREEN: usize = 4;
const C_GREEN: usize = 5;

fn fleet(features: u64) -> Fleet {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0]), (features, &[1]), (FEATURES, &[0])]);
    let ids = [
        ("a-green", "a", 1, 100),
        ("b-green", "b", 2, 101),
        ("c-green", "c", 3, 102),
    ];
    let subports = ids.map(|(name, parent, number, vlan)| port(name, "green", number, Some((parent, vlan))));
    fleet.set_ports(&subports);
    fleet.tell();
    for (name, ..) in ids {
        fleet.on_all(|worker, _| worker.open(name));
    }
    fleet.breathe();
    fleet.settle();
    fleet
}

fn only(changed: &[(usize, Delta)]) -> [Delta; 6] {
    let mut all = [Delta::default(); 6];
    changed.iter().for_each(|(port, delta)| all[*port] = *delta);
    all
}

/// A datagram from a's subport to b's.
fn datagram(len: usize) -> Vec<u8> {
    udp((mac(1), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (7, 8), &vec![5; len])
}

#[track_caller]
fn alive(fleet: &mut Fleet) {
    let frame = datagram(9);
    fleet.send(0, 0, &tag(&frame, 100));
    assert_eq!(fleet.received(1), [tag(&frame, 101)]);
    fleet.expect(&only(&[
        (A_GREEN, sent(1, frame.len())),
        (B_GREEN, got(1, frame.len())),
    ]));
    fleet.guests[1].repost();
}

#[test]
fn tagged_frames_cross_whole_and_count_at_subports() {
    let mut fleet = fleet(FEATURES);
    for len in [0, 1, 200, 213, 214, 215, 216, 217, 218, 219, 1000, 1472] {
        let frame = datagram(len);
        fleet.send(0, 0, &tag(&frame, 100));
        assert_eq!(fleet.received(1), [tag(&frame, 101)], "{len}");
        fleet.guests[1].repost();
        fleet.expect(&only(&[
            (A_GREEN, sent(1, frame.len())),
            (B_GREEN, got(1, frame.len())),
        ]));
    }
    // Within one worker, as ever.
    let near = udp((mac(1), mac(3)), ([10, 0, 0, 1], [10, 0, 0, 3]), (7, 8), b"near");
    fleet.send(0, 0, &tag(&near, 100));
    assert_eq!(fleet.received(2), [tag(&near, 102)]);
    fleet.expect(&only(&[(A_GREEN, sent(1, near.len())), (C_GREEN, got(1, near.len()))]));
    // For a group: one copy here, one in the other worker.
    let query = arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 9]));
    fleet.send(0, 0, &tag(&query, 100));
    assert_eq!(fleet.received(0), Vec::<Vec<u8>>::new());
    assert_eq!(fleet.received(1), [tag(&query, 101)]);
    assert_eq!(fleet.received(2), [tag(&query, 102)]);
    let one = got(1, query.len());
    fleet.expect(&only(&[
        (A_GREEN, sent(1, query.len())),
        (B_GREEN, one),
        (C_GREEN, one),
    ]));
    assert!(fleet.workers.iter().all(|worker| worker.is_quiet()));
}

#[test]
fn large_frames_are_cut_and_tagged_by_the_receivers_worker() {
    let mut fleet = fleet(FEATURES & !(1 << VIRTIO_NET_F_GUEST_TSO4));
    let large = tcp(false, mac(1), mac(2), &[7; 5000]);
    let header = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 58,
        gso_size: 1000,
        csum_start: 38,
        csum_offset: 16,
        ..NetHeader::default()
    };
    fleet.guests[0].queue(header, &tag(&large, 100));
    fleet.guests[0].tx.publish();
    fleet.breathe();
    let received = fleet.guests[1].received();
    assert_eq!(received.len(), 5);
    let mut payload = Vec::new();
    for (header, frame) in &received {
        assert_eq!((header.csum_start, frame[12..16].to_vec()), (38, vec![0x81, 0, 0, 101]));
        payload.extend_from_slice(&frame[58..]);
    }
    assert_eq!(payload, [7; 5000]);
    // To one that completes nothing itself the sums are whole.
    let mut fleet = self::fleet(0x1_0000_0000);
    let frame = tcp(false, mac(1), mac(2), b"summed");
    let header = NetHeader {
        gso_type: 0,
        gso_size: 0,
        hdr_len: 0,
        ..header
    };
    fleet.guests[0].queue(header, &tag(&frame, 100));
    fleet.guests[0].tx.publish();
    fleet.breathe();
    let received = fleet.received(1);
    let untagged = [&received[0][..12], &received[0][16..]].concat();
    assert_eq!(verified(&untagged), b"summed");
}

#[test]
fn p08_what_is_under_way_does_not_arrive_once_a_subport_or_parent_is_shut() {
    for (shut, from_sender) in [("a-green", true), ("a", true), ("b-green", false), ("b", false)] {
        let mut fleet = fleet(FEATURES);
        alive(&mut fleet);
        let frame = datagram(9);
        fleet.offer(0, 0, &tag(&frame, 100));
        fleet.breath_of(0);
        fleet.on_all(|worker, _| worker.shut(shut));
        fleet.breathe();
        assert_eq!(fleet.received(1), Vec::<Vec<u8>>::new(), "{shut}");
        let out = sent(1, frame.len());
        fleet.expect(&only(&if from_sender {
            vec![(A_GREEN, out.dropped(DropReason::TxPortShut, 1))]
        } else {
            vec![(A_GREEN, out), (B_GREEN, missed(DropReason::PortShut, 1))]
        }));
        fleet.on_all(|worker, _| worker.open(shut));
        alive(&mut fleet);
    }
}

#[test]
fn h02_memory_cut_short_under_a_tagged_frame_is_the_subports_loss() {
    let mut fleet = fleet(FEATURES);
    alive(&mut fleet);
    let bytes = tag(&datagram(1358), 100);
    let guest = &mut fleet.guests[0];
    let at = guest.ram.alloc(4096, 4096);
    let far = (64 << 20) - 4096;
    guest.tx.write(at, &[&[0; 12][..], &bytes[..304]].concat());
    guest
        .tx
        .add(&[(at, 316), (outboard_ring::driver::RAM_START + far, 1100)], &[])
        .expect("there is room");
    guest.tx.publish();
    fleet.breath_of(0);
    fleet.guests[0].ram.file().set_len(far).expect("ftruncate");
    fleet.breathe();
    fleet.expect(&only(&[(A_GREEN, sent(1, 1400).dropped(DropReason::TxMemoryGone, 1))]));
}
