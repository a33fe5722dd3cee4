//! Large frames and partial checksums, to receivers that can take them and to those that cannot.

use crate::FEATURES;
use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use outboard_vswitch::DropReason;
use vhost_net_dpu::{
    checksum::pseudo_header,
    header::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHeader},
    packet::IpAddresses,
    rx::MERGED_BUFFERS_MAX,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};

use crate::{
    frames::{BROADCAST, ping, tcp, udp},
    rig::{LARGE_BUFFER_LEN, Rig, got, mac, missed, sent},
};

const TSO: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Takes whole checksums and single packets only.
const POOR: u64 = FEATURES & !TSO & !(1 << VIRTIO_NET_F_GUEST_CSUM);

pub fn payload(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1].wrapping_mul(31))
        .collect()
}

pub fn partial(v6: bool, gso_size: u16) -> NetHeader {
    let (gso_type, csum_start) = if v6 { (GSO_TCPV6, 54) } else { (GSO_TCPV4, 34) };
    NetHeader {
        flags: NEEDS_CSUM,
        gso_type: if gso_size == 0 { GSO_NONE } else { gso_type },
        gso_size,
        hdr_len: if gso_size == 0 { 0 } else { csum_start + 20 },
        csum_start,
        csum_offset: 16,
        num_buffers: 0,
    }
}

/// The frame as a guest sends it: with nothing useful in the checksum field.
pub fn unsummed(mut frame: Vec<u8>, header: NetHeader) -> Vec<u8> {
    let at = usize::from(header.csum_start + header.csum_offset);
    frame[at..at + 2].fill(0xaa);
    frame
}

/// Everything but the checksum field is as it was sent.
#[track_caller]
pub fn same_but_for_the_sum(got: &[u8], want: &[u8], header: NetHeader) {
    let at = usize::from(header.csum_start + header.csum_offset);
    assert_eq!(got.len(), want.len());
    assert!(got[..at] == want[..at] && got[at + 2..] == want[at + 2..]);
}

/// TCP's payload, after an independent parser found all sums and lengths right.
#[track_caller]
pub fn verified(frame: &[u8]) -> Vec<u8> {
    let headers = PacketHeaders::from_ethernet_slice(frame).expect("a well-formed packet");
    let payload = headers.payload.slice().to_vec();
    match (headers.net, headers.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Tcp(tcp))) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, &payload).expect("short"));
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Tcp(tcp))) => {
            assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, &payload).expect("short"));
        }
        (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) => {
            assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, &payload).expect("short"));
        }
        other => panic!("TCP or UDP over IP, not {other:?}"),
    }
    payload
}

#[test]
fn a_large_frame_stays_one_for_a_receiver_that_takes_it() {
    for v6 in [false, true] {
        let header = partial(v6, 1400);
        let frame = unsummed(tcp(v6, mac(1), mac(2), &payload(64_000)), header);
        for features in [FEATURES, FEATURES & !MERGEABLE] {
            let mut rig = Rig::new(&[FEATURES, features]);
            rig.send(0, header, &frame);
            rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
            let received = rig.guests[1].received();
            let [(got, bytes)] = &received[..] else {
                panic!("one frame")
            };
            let buffers = if features & MERGEABLE == 0 {
                1
            } else {
                (12 + frame.len()).div_ceil(1526)
            };
            assert_eq!(
                *got,
                NetHeader {
                    num_buffers: u16::try_from(buffers).expect("few"),
                    ..header
                }
            );
            same_but_for_the_sum(bytes, &frame, header);
        }
    }
}

#[test]
fn a_large_frame_is_cut_for_a_receiver_that_cannot_take_it() {
    for v6 in [false, true] {
        for features in [FEATURES & !TSO, POOR] {
            let mut rig = Rig::new(&[FEATURES, features]);
            let sent_payload = payload(50_000);
            let header = partial(v6, 1400);
            let frame = unsummed(tcp(v6, mac(1), mac(2), &sent_payload), header);
            rig.send(0, header, &frame);
            let received = rig.guests[1].received();
            let count = 50_000usize.div_ceil(1400);
            let headers_len = usize::from(header.hdr_len);
            rig.expect(&[sent(1, frame.len()), got(count as u64, 50_000 + count * headers_len)]);
            let mut joined = Vec::new();
            for (header, bytes) in &received {
                if features == POOR {
                    assert_eq!(
                        *header,
                        NetHeader {
                            num_buffers: 1,
                            ..NetHeader::default()
                        }
                    );
                    joined.extend(verified(bytes));
                } else {
                    assert_eq!(
                        *header,
                        NetHeader {
                            num_buffers: 1,
                            ..partial(v6, 0)
                        }
                    );
                    joined.extend(verified(&completed(bytes, *header)));
                }
            }
            assert!(joined == sent_payload, "the payload arrives whole and in order");
            rig.alive(0, 1);
        }
    }
}

/// Does what a receiver does with a partial checksum: sums from `csum_start` to the end, field included.
fn completed(frame: &[u8], header: NetHeader) -> Vec<u8> {
    let start = usize::from(header.csum_start);
    let at = start + usize::from(header.csum_offset);
    let mut sum: u32 = frame[start..]
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let mut frame = frame.to_vec();
    frame[at..at + 2].copy_from_slice(&(!sum).to_be_bytes()[2..]);
    frame
}

#[test]
fn a_checksum_is_completed_for_a_receiver_that_needs_it() {
    for len in [0, 1, 200, 215, 1000, 1459] {
        let mut rig = Rig::new(&[FEATURES, POOR]);
        let header = partial(false, 0);
        let frame = unsummed(tcp(false, mac(1), mac(2), &payload(len)), header);
        rig.send(0, header, &frame);
        rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
        let received = rig.guests[1].received();
        assert_eq!(
            received[0].0,
            NetHeader {
                num_buffers: 1,
                ..NetHeader::default()
            }
        );
        assert_eq!(verified(&received[0].1), payload(len));
        same_but_for_the_sum(&received[0].1, &frame, header);
    }
}

#[test]
fn padding_is_sent_but_not_summed() {
    let mut rig = Rig::new(&[FEATURES, POOR]);
    let header = partial(false, 0);
    let mut frame = unsummed(tcp(false, mac(1), mac(2), b"x"), header);
    frame.extend([0x55; 20]);
    rig.send(0, header, &frame);
    let received = rig.guests[1].received();
    assert_eq!(received[0].1.len(), frame.len());
    assert_eq!(verified(&received[0].1), b"x");
}

#[test]
fn one_broadcast_serves_rich_and_poor_receivers() {
    let mut rig = Rig::new(&[FEATURES, FEATURES, POOR]);
    let header = NetHeader {
        csum_offset: 6,
        ..partial(false, 0)
    };
    let frame = unsummed(
        udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (5, 6), &payload(900)),
        header,
    );
    rig.send(0, header, &frame);
    let len = frame.len();
    rig.expect(&[sent(1, len), got(1, len), got(1, len)]);
    let rich = rig.guests[1].received();
    assert_eq!(
        rich[0].0,
        NetHeader {
            num_buffers: 1,
            ..header
        }
    );
    assert_eq!(verified(&completed(&rich[0].1, header)), payload(900));
    assert_eq!(verified(&rig.guests[2].received()[0].1), payload(900));
}

#[test]
fn a_frame_is_spread_over_small_buffers() {
    let mut rig = Rig::without_buffers(&[FEATURES, FEATURES]);
    rig.guests[1].post(16, 100);
    let frame = tcp(false, mac(1), mac(2), &payload(1400));
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    let received = rig.guests[1].received();
    assert_eq!(
        received,
        [(
            NetHeader {
                num_buffers: 15,
                ..NetHeader::default()
            },
            frame
        )],
        "12 + 1454 bytes"
    );
}

#[test]
fn buffers_that_are_chains_are_filled_to_the_byte() {
    let mut rig = Rig::without_buffers(&[FEATURES, FEATURES & !MERGEABLE]);
    let guest = &mut rig.guests[1];
    let at = guest.ram.alloc(4096, 64);
    // The header over three descriptors, the frame over two, in no order.
    let parts = [
        (at + 2000, 5),
        (at + 1000, 6),
        (at, 1),
        (at + 500, 100),
        (at + 3000, 1000),
    ];
    let head = guest.rx.add(&[], &parts).expect("there is room");
    guest.rx.publish();
    let frame = tcp(false, mac(1), mac(2), &payload(700));
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    let guest = &mut rig.guests[1];
    let total = 12 + frame.len();
    assert_eq!(guest.rx.used(), Some((head, u32::try_from(total).expect("short"))));
    let bytes: Vec<u8> = parts
        .iter()
        .flat_map(|(at, len)| guest.rx.read(*at, *len as usize))
        .take(total)
        .collect();
    assert_eq!(bytes[12..], frame);
    let rest = guest.rx.read(at + 3000, 1000);
    assert!(
        rest[total - 112..].iter().all(|byte| *byte == 0),
        "nothing is written beyond the frame"
    );
}

#[test]
fn a_frame_that_finds_too_few_buffers_leaves_them_all_for_the_next() {
    let mut rig = Rig::without_buffers(&[FEATURES, FEATURES]);
    rig.guests[1].post(10, 1526);
    let header = partial(false, 1400);
    let large = unsummed(tcp(false, mac(1), mac(2), &payload(40_000)), header);
    rig.send(0, header, &large);
    rig.expect(&[sent(1, large.len()), missed(DropReason::RxFull, 1)]);
    let small = ping(mac(1), mac(2));
    for _ in 0..10 {
        rig.send_plain(0, &small);
    }
    rig.expect(&[sent(10, 10 * small.len()), got(10, 10 * small.len())]);
    rig.send_plain(0, &small);
    rig.expect(&[sent(1, small.len()), missed(DropReason::RxFull, 1)]);
    rig.guests[1].received();
    rig.guests[1].post(30, 1526);
    rig.send(0, header, &large);
    rig.expect(&[sent(1, large.len()), got(1, large.len())]);
}

#[test]
fn segments_that_find_no_buffer_are_lost_one_by_one() {
    let mut rig = Rig::without_buffers(&[FEATURES, POOR]);
    rig.guests[1].post(3, 1526);
    let header = partial(false, 1000);
    let large = unsummed(tcp(false, mac(1), mac(2), &payload(5000)), header);
    rig.send(0, header, &large);
    rig.expect(&[sent(1, large.len()), got(3, 3 * 1054).dropped(DropReason::RxFull, 2)]);
}

#[test]
fn buffers_too_small_for_a_frame_are_kept_for_smaller_ones() {
    let mut rig = Rig::without_buffers(&[FEATURES, FEATURES & !MERGEABLE]);
    rig.guests[1].post(1, 200);
    let frame = tcp(false, mac(1), mac(2), &payload(500));
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), missed(DropReason::RxBufferTooSmall, 1)]);
    let small = ping(mac(1), mac(2));
    rig.send_plain(0, &small);
    rig.expect(&[sent(1, small.len()), got(1, small.len())]);
    rig.guests[0].post(1, 1526);
    rig.guests[1].received();
    rig.guests[1].post(1, LARGE_BUFFER_LEN);
    rig.alive(0, 1);
}

#[test]
fn a_frame_over_more_buffers_than_are_merged_is_dropped() {
    let mut rig = Rig::without_buffers(&[FEATURES, FEATURES]);
    rig.guests[1].post(MERGED_BUFFERS_MAX + 6, 16);
    let most = 16 * MERGED_BUFFERS_MAX - 12 - 54;
    let frame = tcp(false, mac(1), mac(2), &payload(most + 1));
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), missed(DropReason::RxBufferTooSmall, 1)]);
    let frame = tcp(false, mac(1), mac(2), &payload(most));
    rig.send_plain(0, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
}

#[test]
fn a_tunnelled_packets_checksum_is_completed_for_everybody() {
    // VXLAN: the guest's stack leaves the sum of the inner packet, which has other addresses.
    let inner = tcp(false, mac(8), mac(9), &payload(401));
    let header = NetHeader {
        csum_start: 14 + 20 + 8 + 8 + 34,
        ..partial(false, 0)
    };
    let mut unsummed_inner = inner.clone();
    let addresses = IpAddresses::V4([10, 0, 0, 8].into(), [10, 0, 0, 9].into());
    unsummed_inner[50..52].copy_from_slice(&pseudo_header(addresses, 6, 421).to_be_bytes());
    let outer = |inner: &[u8]| {
        let body = [&[8, 0, 0, 0, 0, 0, 42, 0][..], inner].concat();
        let mut frame = udp((mac(1), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (50_000, 4789), &body);
        frame[40..42].fill(0); // as VXLAN over IPv4 has it
        frame
    };
    for receiver in [FEATURES, POOR] {
        let mut rig = Rig::new(&[FEATURES, receiver]);
        let frame = outer(&unsummed_inner);
        // Padding, of a frame that is longer than its packet, is not summed.
        for padding in [&[][..], &[9; 5]] {
            let sent_frame = [&frame, padding].concat();
            rig.send(0, header, &sent_frame);
            rig.expect(&[sent(1, sent_frame.len()), got(1, sent_frame.len())]);
            let (told, received) = rig.guests[1].received().remove(0);
            assert_eq!((told.flags, told.gso_type, told.csum_start), (0, 0, 0));
            assert_eq!(received, [&outer(&inner)[..], padding].concat());
            assert_eq!(verified(&received[50..frame.len()]), payload(401));
        }
        // Over the tunnel's own header, or without its whole packet, it stays refused.
        let lies = [
            NetHeader {
                csum_start: 65_535,
                csum_offset: 65_535,
                ..header
            },
            NetHeader {
                csum_start: 34,
                csum_offset: 0,
                ..header
            },
            NetHeader {
                csum_start: 40,
                csum_offset: 0,
                ..header
            },
            NetHeader {
                csum_offset: 460,
                ..header
            },
            NetHeader {
                gso_type: 1,
                gso_size: 100,
                ..header
            },
        ];
        for lie in lies {
            rig.send(0, lie, &frame);
            rig.expect(&[sent(1, frame.len()).dropped(DropReason::BadOffload, 1), got(0, 0)]);
        }
        // TCP carries no packets.
        rig.send(
            0,
            NetHeader {
                csum_start: 60,
                ..header
            },
            &inner_free(),
        );
        rig.expect(&[
            sent(1, inner_free().len()).dropped(DropReason::BadOffload, 1),
            got(0, 0),
        ]);
    }
}

fn inner_free() -> Vec<u8> {
    tcp(false, mac(1), mac(2), &payload(200))
}
