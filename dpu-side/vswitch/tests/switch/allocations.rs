//! Nothing is allocated for a frame, whatever becomes of it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use crate::FEATURES;
use outboard_firewall::{Action, Direction, EgressDefault, PortSpec, Protocol, Rule};
use outboard_vswitch::DropReason;
use vhost_net_dpu::header::{GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4,
};

use crate::{
    firewall::{Filtered, datagram, group, rule, v4_packet},
    frames::{BROADCAST, arp, icmpv6, neighbour, ping, tcp, udp, v6},
    rig::{Rig, mac},
};

/// Takes whole checksums and single packets only.
const POOR: u64 =
    FEATURES & !(1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6);
/// Takes checksums to complete, but has UDP cut.
const CUTTING: u64 = FEATURES & !(1 << VIRTIO_NET_F_GUEST_USO4);

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

// SAFETY: all calls go to the system's allocator as they came; counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn no_frame_is_worth_an_allocation() {
    assert_eq!(allocations(|| drop(vec![1u8])), 2, "the count counts");
    let checksum = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let large = NetHeader {
        gso_type: GSO_TCPV4,
        gso_size: 1400,
        hdr_len: 54,
        ..checksum
    };
    let datagrams = NetHeader {
        gso_type: GSO_UDP_L4,
        gso_size: 1400,
        hdr_len: 42,
        csum_offset: 6,
        ..checksum
    };
    let plain = NetHeader::default();
    let own = v6(mac(1));
    let traffic: Vec<(NetHeader, Vec<u8>)> = [2, 3, 4]
        .into_iter()
        .flat_map(|to| {
            [
                (plain, ping(mac(1), mac(to))),
                (checksum, tcp(false, mac(1), mac(to), &[7; 1000])),
                (large, tcp(false, mac(1), mac(to), &[7; 6000])),
                (
                    plain,
                    udp((mac(9), mac(to)), ([10, 0, 0, 1], [10, 0, 0, 2]), (1, 2), b"forged"),
                ),
                (checksum, ping(mac(1), mac(to))),
                (
                    datagrams,
                    udp((mac(1), mac(to)), ([10, 0, 0, 1], [10, 0, 0, to]), (1, 2), &[7; 6000]),
                ),
            ]
        })
        .chain([
            (plain, arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2]))),
            (plain, udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (1, 2), b"x")),
            (
                plain,
                icmpv6((mac(1), mac(2)), (own, own), 255, &neighbour(136, own, &[])),
            ),
            (plain, ping(mac(1), mac(77))),
            (
                plain,
                udp((mac(1), mac(4)), ([10, 0, 0, 1], [10, 0, 0, 4]), (1, 2), &[7; 1400]),
            ),
            (
                datagrams,
                udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (1, 2), &[7; 6000]),
            ),
            (plain, vec![0; 5]),
        ])
        .collect();
    let mut rig = Rig::with_pairs(&[FEATURES, FEATURES, POOR, CUTTING], 4);
    rig.switch.set_mtu("d", Some(1400)).expect("d is declared");
    for _ in 0..20 {
        for (n, (header, frame)) in traffic.iter().enumerate() {
            rig.guests[0].queue_on(n % 4, *header, frame);
        }
        rig.guests[0].pairs.iter_mut().for_each(|pair| pair.tx.publish());
        let count = allocations(|| {
            rig.breathe();
            rig.switch.before_sleep();
            rig.switch.after_sleep();
        });
        assert_eq!(count, 0);
        // In the later rounds nobody gives buffers, and frames are lost.
        rig.guests.iter_mut().for_each(|guest| drop(guest.received()));
    }
    let counters = rig.switch.counters();
    assert_eq!(counters[0].tx_frames, 20 * traffic.len() as u64);
    assert!(counters[1..].iter().all(|port| port.rx_frames >= 20));
    let lost = |port: usize, reason: DropReason| counters[port].drops[reason as usize];
    assert!(lost(1, DropReason::RxFull) > 0 && lost(2, DropReason::RxFull) > 0);
    assert_eq!(
        (lost(0, DropReason::SpoofedMac), lost(0, DropReason::BadOffload)),
        (60, 60)
    );
    assert!(
        lost(3, DropReason::RxOverMtu) >= 20,
        "a frame of each round, and datagrams"
    );
}

#[test]
fn no_connection_is_worth_one_either() {
    let dns = rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(53, 53));
    let reject = Rule {
        action: Action::Reject,
        ..rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(54, 54))
    };
    let groups = vec![
        group("in", EgressDefault::Deny, vec![dns, reject]),
        group("out", EgressDefault::Allow, vec![]),
    ];
    let mut guests = Filtered::new(groups, &[Some(&["out"]), Some(&["in"])]);
    let first = [0, 5, 0, 53, 0, 24, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7];
    for round in 0..20u16 {
        let frames = [
            datagram(1, 2, (1000 + round, 53)),
            datagram(1, 2, (1, 53)),
            datagram(1, 2, (1, 54)),
            datagram(1, 2, (1, 55)),
            v4_packet(1, 2, 17, 0x2000, round, &first),
            v4_packet(1, 2, 17, 2, round, &[0; 8]),
            v4_packet(1, 2, 17, 2, 999, &[0; 8]),
        ];
        let rig = &mut guests.rig;
        frames
            .iter()
            .for_each(|frame| rig.guests[0].queue(NetHeader::default(), frame));
        rig.guests[0].tx.publish();
        rig.guests[1].queue(NetHeader::default(), &datagram(2, 1, (53, 1)));
        rig.guests[1].tx.publish();
        assert_eq!(allocations(|| rig.breathe()), 0);
        for guest in &mut rig.guests {
            guest.received();
            guest.repost();
        }
    }
    let counters = guests.rig.switch.counters();
    assert_eq!(counters[1].rx_frames, 20 * 4);
    assert_eq!(counters[1].drops[DropReason::IngressRejected as usize], 20);
}
