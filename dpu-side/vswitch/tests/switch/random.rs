//! Arbitrary bytes for a frame: no panic, each frame accounted for, and nothing delivered with a foreign source.

use crate::FEATURES;
use etherparse::{LaxPacketHeaders, NetHeaders};
use outboard_vswitch::link_local;
use proptest::{prelude::*, sample::Index};
use vhost_net_dpu::header::NetHeader;
use virtio_bindings::virtio_net::VIRTIO_NET_F_GUEST_CSUM;

use crate::{
    frames::{arp, icmpv6, link_layer, neighbour, ping, tcp, udp6, v6},
    rig::{Rig, mac},
};

/// Honest frames to begin with.
fn seeds() -> Vec<Vec<u8>> {
    let macs = (mac(1), mac(2));
    let addresses = (v6(mac(1)), v6(mac(2)));
    vec![
        ping(mac(1), mac(2)),
        tcp(false, mac(1), mac(2), &[5; 900]),
        tcp(true, mac(1), mac(2), &[5; 30]),
        udp6(macs, addresses, (5, 6), &[1; 40]),
        arp(1, mac(1), (mac(1), [10, 0, 0, 1]), ([0; 6], [10, 0, 0, 2])),
        icmpv6(
            macs,
            addresses,
            255,
            &neighbour(135, v6(mac(2)), &link_layer(1, mac(1))),
        ),
        icmpv6(
            macs,
            addresses,
            255,
            &neighbour(136, v6(mac(1)), &link_layer(2, mac(1))),
        ),
    ]
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let noise = proptest::collection::vec(any::<u8>(), 0..400);
    let addressed =
        proptest::collection::vec(any::<u8>(), 0..400).prop_map(|tail| [&mac(2)[..], &mac(1), &tail].concat());
    let mutated = (
        any::<Index>(),
        proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4),
        any::<Index>(),
        any::<bool>(),
    )
        .prop_map(|(which, changes, cut, shorten)| {
            let seeds = seeds();
            let mut frame = seeds[which.index(seeds.len())].clone();
            for (at, byte) in changes {
                // The headers are where it hurts.
                let at = at.index(frame.len().min(90));
                frame[at] = byte;
            }
            if shorten {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        });
    prop_oneof![1 => noise, 2 => addressed, 5 => mutated]
}

fn header() -> impl Strategy<Value = NetHeader> {
    let wild = any::<[u8; 12]>().prop_map(|bytes| NetHeader::parse(&bytes));
    let likely = (
        0u8..2,
        prop_oneof![Just(0u8), Just(1), Just(4), Just(5), Just(0x81)],
        0u16..1500,
        prop_oneof![Just(34u16), Just(54)],
        prop_oneof![Just(6u16), Just(16)],
    )
        .prop_map(|(flags, gso_type, gso_size, csum_start, csum_offset)| NetHeader {
            flags,
            gso_type,
            gso_size,
            csum_start,
            csum_offset,
            ..NetHeader::default()
        });
    prop_oneof![2 => Just(NetHeader::default()), 1 => wild, 3 => likely]
}

/// What an independent parser makes of a delivered frame must be the sender's own.
fn check_source(frame: &[u8]) {
    assert_eq!(frame[6..12], mac(1));
    if frame[12..14] == [8, 6] {
        assert_eq!(frame[22..28], mac(1), "ARP's sender MAC");
        assert!([[10, 0, 0, 1], [0; 4]].contains(frame[28..].first_chunk().expect("an address")));
        return;
    }
    let headers = LaxPacketHeaders::from_ethernet(frame).expect("an Ethernet header");
    match headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => assert_eq!(ip.source, [10, 0, 0, 1]),
        Some(NetHeaders::Ipv6(ip, _)) => {
            let own = [v6(mac(1)), link_local(mac(1)).octets(), [0; 16]];
            assert!(own.contains(&ip.source), "{:?}", ip.source);
        }
        other => panic!("nothing but ARP and IP is delivered, not {other:?}"),
    }
}

proptest! {
    #[test]
    fn whatever_a_guest_sends_nothing_comes_from_somebody_else(frames in proptest::collection::vec((header(), frame()), 1..12), poor: bool) {
        let features = if poor { FEATURES & !(1 << VIRTIO_NET_F_GUEST_CSUM) } else { FEATURES };
        let mut rig = Rig::new(&[FEATURES, features]);
        for (header, frame) in &frames {
            rig.send(0, *header, frame);
        }
        let received = rig.guests[1].received();
        for (header, frame) in &received {
            check_source(frame);
            prop_assert!(!poor || header.flags == 0 && header.gso_type == 0);
        }
        let counters = rig.switch.counters();
        let dropped: u64 = counters.iter().flat_map(|port| port.dropped()).map(|(_, count)| count).sum();
        prop_assert_eq!(counters[0].tx_frames, frames.len() as u64);
        prop_assert_eq!(rig.guests[0].given_back(), frames.len());
        prop_assert_eq!(counters[1].rx_frames, received.len() as u64);
        // A frame that was cut counts once for each packet; any other is given or dropped, once.
        prop_assert!(dropped + counters[1].rx_frames >= counters[0].tx_frames);
        if !poor {
            prop_assert_eq!(dropped + counters[1].rx_frames, counters[0].tx_frames);
        }
        rig.guests[1].post(2, 1526);
        rig.alive(0, 1);
    }
}
