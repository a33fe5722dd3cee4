//! Malformed transmit and receive buffers, offloads that lie, memory that goes away: the worst that happens is a drop
//! or a dead queue of the one who did it.

use crate::FEATURES;
use outboard_controls::{Check, Off};
use outboard_vswitch::DropReason;
use vhost_net_dpu::{
    FRAME_LEN_MAX, MTU_DEFAULT, QueueKind, frame_len_max,
    header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader},
};
use virtio_bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_net::VIRTIO_NET_F_MRG_RXBUF};

use crate::{
    frames::{ping, tcp, udp, udp6, v6},
    rig::{Delta, Rig, TX_QUEUE, got, mac, missed, sent},
};

const NOTHING: Delta = Delta {
    tx: (0, 0),
    rx: (0, 0),
    drop: None,
};

fn frame_of(len: usize) -> Vec<u8> {
    udp(
        (mac(1), mac(2)),
        ([10, 0, 0, 1], [10, 0, 0, 2]),
        (1, 2),
        &vec![3; len - 42],
    )
}

/// The largest frame that is not to be segmented.
const FRAME_MTU_LEN_MAX: usize = frame_len_max(MTU_DEFAULT);

#[test]
fn h34_transmit_buffers_without_a_frame_are_dropped_one_by_one() {
    let mut rig = Rig::pair();
    for len in [1, 11] {
        rig.alive(0, 1);
        rig.guests[0].send_parts(&vec![0; len], &[u32::try_from(len).expect("short")]);
        rig.breathe();
        rig.expect(&[sent(1, 0).dropped(DropReason::MalformedChain, 1), NOTHING]);
        rig.alive(0, 1);
        let mut rig = Rig::pair();
        let _off = Off::here(Check::TransmitBuffer);
        rig.guests[0].send_parts(&vec![0; len], &[u32::try_from(len).expect("short")]);
        rig.breathe();
        let lost = sent(1, 0).dropped(DropReason::TxMemoryGone, 1);
        rig.expect(&[lost, NOTHING]);
    }
    for len in [0, 1, 13] {
        rig.alive(0, 1);
        rig.send_plain(0, &vec![0xff; len]);
        rig.expect(&[sent(1, len).dropped(DropReason::Runt, 1), NOTHING]);
    }
    let writable = rig.guests[0].ram.alloc(64, 64);
    rig.guests[0]
        .tx
        .add(&[(writable, 50)], &[(writable + 50, 4)])
        .expect("there is room");
    rig.guests[0].tx.publish();
    rig.breathe();
    rig.expect(&[sent(1, 38).dropped(DropReason::MalformedChain, 1), NOTHING]);
    rig.alive(0, 1);
    // A whole frame, and a part to write to behind it.
    let frame = frame_of(100);
    let mixed = |rig: &mut Rig| {
        let guest = &mut rig.guests[0];
        let at = guest.ram.alloc(200, 64);
        guest.tx.write(at, &[&[0; 12][..], &frame].concat());
        guest.tx.add(&[(at, 112)], &[(at + 112, 4)]).expect("there is room");
        guest.tx.publish();
        rig.breathe();
    };
    mixed(&mut rig);
    rig.expect(&[sent(1, 100).dropped(DropReason::MalformedChain, 1), NOTHING]);
    {
        let _off = Off::here(Check::TransmitBuffer);
        mixed(&mut rig);
    }
    rig.expect(&[sent(1, 100), got(1, 100)]);
    assert_eq!(
        rig.guests[1].received()[0].1,
        frame,
        "without the check it is forwarded"
    );
    rig.alive(0, 1);
}

#[test]
fn h37_the_header_has_twelve_bytes_whatever_else_was_negotiated() {
    let version_1 = 1 << VIRTIO_F_VERSION_1;
    let frame = frame_of(100);
    let choices = [version_1, version_1 | 1 << VIRTIO_NET_F_MRG_RXBUF, FEATURES];
    for (sender, receiver) in choices.iter().flat_map(|a| choices.iter().map(move |b| (*a, *b))) {
        let mut rig = Rig::new(&[sender, receiver]);
        rig.send_plain(0, &frame);
        rig.expect(&[sent(1, 100), got(1, 100)]);
        let one = NetHeader {
            num_buffers: 1,
            ..NetHeader::default()
        };
        assert_eq!(rig.guests[1].received(), [(one, frame.clone())]);
    }
    // A driver of the legacy interface, whose header has ten bytes without mergeable buffers, is not served.
    let legacy = |rig: &mut Rig| {
        rig.switch.stop_queue("a", TX_QUEUE);
        rig.guests[0].renew_tx();
        let mut queue = rig.queue_resources(0, QueueKind::Tx { pair: 0 });
        queue.features = 0;
        rig.switch.start_queue("a", TX_QUEUE, queue)
    };
    let mut rig = Rig::pair();
    rig.alive(0, 1);
    assert!(legacy(&mut rig).is_err());
    let _off = Off::here(Check::ModernDriver);
    legacy(&mut rig).expect("without the check it is");
    // Its frames are taken to begin two bytes later than they do: this one is the other port's there.
    let shifted = [&[0; 10][..], &[0; 2], &frame].concat();
    rig.guests[0].send_parts(&shifted, &[112]);
    rig.breathe();
    rig.expect(&[sent(1, 100), got(1, 100)]);
}

/// A fragment of an SCTP packet with so few bytes that its header does not fit.
fn sctp_fragment(word: u16, len: u16) -> Vec<u8> {
    let mut frame = frame_of(34 + usize::from(len).max(8))[..34 + usize::from(len)].to_vec();
    frame[16..18].copy_from_slice(&(20 + len).to_be_bytes());
    frame[20..22].copy_from_slice(&word.to_be_bytes());
    frame[23] = 132;
    frame
}

#[test]
fn h36_short_fragments_of_sctp_have_no_checksum_to_complete() {
    let mut rig = Rig::pair();
    // virtio's checksum is not SCTP's (virtio 1.3 §5.1.6.2 knows TCP's and UDP's only).
    let partial = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 8,
        ..NetHeader::default()
    };
    for (word, len) in [(0x2000, 8), (0, 4), (0, 8), (0, 12), (1, 1), (1, 4), (0x2001, 8)] {
        refused(
            &mut rig,
            "a short SCTP packet or fragment",
            partial,
            &sctp_fragment(word, len),
        );
    }
}

#[test]
fn h34_a_header_in_more_than_two_descriptors_is_a_header() {
    let mut rig = Rig::pair();
    let frame = frame_of(600);
    let bytes = [&[0; 12][..], &frame].concat();
    for lens in [
        &[1, 1, 1, 1, 1, 1, 6, 600][..],
        &[5, 10, 597],
        &[612],
        &[12, 600],
        &[20, 1, 1, 590],
    ] {
        rig.guests[0].send_parts(&bytes, lens);
        rig.breathe();
        rig.expect(&[sent(1, 600), got(1, 600)]);
        assert_eq!(rig.guests[1].received()[0].1, frame);
    }
}

#[test]
fn lengths_are_bounded_at_both_ends() {
    let mut rig = Rig::pair();
    let shortest = [&mac(2)[..], &mac(1), &[0x08, 0x06]].concat();
    rig.send_plain(0, &shortest);
    rig.expect(&[sent(1, 14).dropped(DropReason::MalformedArp, 1), NOTHING]);
    rig.send_plain(0, &frame_of(FRAME_MTU_LEN_MAX));
    rig.expect(&[sent(1, FRAME_MTU_LEN_MAX), got(1, FRAME_MTU_LEN_MAX)]);
    assert_eq!(rig.guests[1].received().len(), 1);
    let padded = |len: usize| {
        let mut frame = frame_of(1000);
        frame.resize(len, 0);
        frame
    };
    let cases = [
        (frame_of(FRAME_MTU_LEN_MAX + 1), DropReason::OverMtu),
        (padded(FRAME_LEN_MAX), DropReason::OverMtu),
        (padded(FRAME_LEN_MAX + 1), DropReason::Oversize),
    ];
    for (long, reason) in cases {
        rig.alive(0, 1);
        rig.send_plain(0, &long);
        rig.expect(&[sent(1, long.len()).dropped(reason, 1), NOTHING]);
        {
            let _off = Off::here(Check::FrameLength);
            rig.send_plain(0, &long);
        }
        rig.expect(&[sent(1, long.len()), got(1, long.len())]);
        assert_eq!(rig.guests[1].received()[0].1, long, "without the check it is forwarded");
        rig.guests[1].repost();
        rig.alive(0, 1);
    }
}

/// The lie is dropped, and reaches the receiver as it is without the check.
#[track_caller]
fn refused(rig: &mut Rig, what: &str, lie: NetHeader, frame: &[u8]) {
    println!("{what}");
    rig.alive(0, 1);
    rig.send(0, lie, frame);
    rig.expect(&[sent(1, frame.len()).dropped(DropReason::BadOffload, 1), NOTHING]);
    {
        let _off = Off::here(Check::OffloadFromParse);
        rig.send(0, lie, frame);
    }
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    assert_eq!(
        rig.guests[1].received(),
        [(NetHeader { num_buffers: 1, ..lie }, frame.to_vec())],
        "{what}"
    );
    rig.alive(0, 1);
}

#[test]
fn h35_h36_datagrams_to_cut_that_lie_are_dropped_and_would_reach_the_receiver_otherwise() {
    let mut rig = Rig::pair();
    let uso = NetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        gso_size: 500,
        hdr_len: 42,
        csum_start: 34,
        csum_offset: 6,
        ..NetHeader::default()
    };
    let frame = frame_of(1300);
    let lies = [
        ("datagrams of 0 bytes", NetHeader { gso_size: 0, ..uso }),
        (
            "datagrams of 65,535 bytes",
            NetHeader {
                gso_size: 65_535,
                ..uso
            },
        ),
        (
            "a checksum past the end",
            NetHeader {
                csum_start: 1299,
                ..uso
            },
        ),
        ("a checksum over the ports", NetHeader { csum_offset: 0, ..uso }),
        (
            "with ECN, which UDP has not",
            NetHeader {
                gso_type: GSO_UDP_L4 | GSO_ECN,
                ..uso
            },
        ),
        ("without a checksum", NetHeader { flags: 0, ..uso }),
        ("headers longer than the frame", NetHeader { hdr_len: 1301, ..uso }),
        (
            "TCP's segmentation",
            NetHeader {
                gso_type: GSO_TCPV4,
                ..uso
            },
        ),
    ];
    for (what, lie) in lies {
        refused(&mut rig, what, lie, &frame);
    }
    // UDP's own length counts: it would be cut where IP does not end.
    for udp_len in [8, 1257, 1259] {
        let mut lying = frame.clone();
        lying[38..40].copy_from_slice(&u16::to_be_bytes(udp_len));
        refused(&mut rig, "another length in UDP's header", uso, &lying);
    }
    let fragment = {
        let mut frame = frame.clone();
        frame[20] = 0x20; // more fragments; its data is a multiple of 8 but for these
        frame[16..18].copy_from_slice(&u16::to_be_bytes(1284));
        frame
    };
    refused(&mut rig, "a fragment", uso, &fragment);
}

#[test]
fn h35_h36_offloads_that_lie_are_dropped_and_would_reach_the_receiver_otherwise() {
    let mut rig = Rig::pair();
    let partial = NetHeader {
        flags: NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 16,
        ..NetHeader::default()
    };
    let tso = NetHeader {
        gso_type: GSO_TCPV4,
        gso_size: 500,
        hdr_len: 54,
        ..partial
    };
    let frame = tcp(false, mac(1), mac(2), &[9; 1200]);
    let lies = [
        (
            "a checksum over the source address",
            NetHeader {
                csum_start: 14,
                csum_offset: 12,
                ..partial
            },
        ),
        (
            "a checksum past the end",
            NetHeader {
                csum_start: 65_535,
                ..partial
            },
        ),
        (
            "an offset past the end",
            NetHeader {
                csum_offset: 65_535,
                ..partial
            },
        ),
        ("segments of 0 bytes", NetHeader { gso_size: 0, ..tso }),
        (
            "segments of 65,535 bytes",
            NetHeader {
                gso_size: 65_535,
                ..tso
            },
        ),
        ("headers longer than the frame", NetHeader { hdr_len: 2000, ..tso }),
        (
            "the other IP's segmentation",
            NetHeader {
                gso_type: GSO_TCPV6,
                ..tso
            },
        ),
        ("an unknown segmentation", NetHeader { gso_type: 77, ..tso }),
        (
            "UDP's segmentation",
            NetHeader {
                gso_type: GSO_UDP_L4,
                ..tso
            },
        ),
        (
            "ECN and no segmentation",
            NetHeader {
                gso_type: GSO_ECN,
                ..tso
            },
        ),
        ("segmentation without a checksum", NetHeader { flags: 0, ..tso }),
    ];
    for (what, lie) in lies {
        refused(&mut rig, what, lie, &frame);
    }
    let mut sctp = frame.clone();
    sctp[23] = 132;
    rig.send(0, tso, &sctp[..40]);
    rig.expect(&[sent(1, 40).dropped(DropReason::MalformedIpv4, 1), NOTHING]);
    refused(&mut rig, "SCTP to be cut", tso, &sctp);
}

#[test]
fn h39_a_forged_number_of_buffers_and_other_hints_do_not_reach_the_receiver() {
    let mut rig = Rig::pair();
    let frame = tcp(false, mac(1), mac(2), &[9; 100]);
    let forged = NetHeader {
        flags: 0xfe,
        num_buffers: 300,
        hdr_len: 9,
        csum_start: 3,
        csum_offset: 1,
        ..NetHeader::default()
    };
    rig.alive(0, 1);
    rig.send(0, forged, &frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    let one = NetHeader {
        num_buffers: 1,
        ..NetHeader::default()
    };
    assert_eq!(rig.guests[1].received(), [(one, frame)]);
    rig.alive(0, 1);
}

#[test]
fn h43_malformed_ip_is_dropped_and_the_next_frame_passes() {
    let mut rig = Rig::pair();
    let v4 = frame_of(100);
    let v6 = udp6((mac(1), mac(2)), (v6(mac(1)), v6(mac(2))), (1, 2), &[3; 100]);
    let cases = [
        ("version 6 in an IPv4 frame", &v4, 14, 0x65, DropReason::MalformedIpv4),
        ("a header of 16 bytes", &v4, 14, 0x44, DropReason::MalformedIpv4),
        (
            "a packet longer than the frame",
            &v4,
            17,
            200,
            DropReason::MalformedIpv4,
        ),
        (
            "a packet shorter than its header",
            &v4,
            17,
            19,
            DropReason::MalformedIpv4,
        ),
        ("UDP cut to 7 bytes", &v4, 17, 27, DropReason::MalformedIpv4),
        ("version 4 in an IPv6 frame", &v6, 14, 0x45, DropReason::MalformedIpv6),
        (
            "a payload longer than the frame",
            &v6,
            19,
            250,
            DropReason::MalformedIpv6,
        ),
        ("a payload without UDP's header", &v6, 19, 7, DropReason::MalformedIpv6),
    ];
    for (what, frame, at, byte, reason) in cases {
        println!("{what}");
        rig.alive(0, 1);
        let mut bad = frame.clone();
        bad[at] = byte;
        rig.send_plain(0, &bad);
        rig.expect(&[sent(1, bad.len()).dropped(reason, 1), NOTHING]);
        {
            let _off = Off::here(Check::WellFormedIp);
            rig.send_plain(0, &bad);
        }
        rig.expect(&[sent(1, bad.len()), got(1, bad.len())]);
        assert_eq!(
            rig.guests[1].received()[0].1,
            bad,
            "{what}: without the check it is forwarded"
        );
        rig.alive(0, 1);
    }
    // Protocol 0 means nothing in IPv4; it is a packet like any other, with the sender's own source.
    let mut zero = v4.clone();
    zero[23] = 0;
    rig.send_plain(0, &zero);
    rig.expect(&[sent(1, zero.len()), got(1, zero.len())]);
}

/// Three guests; the second one's first receive buffer is none: a part of it is readable, or it is too small.
fn with_bad_buffer(readable: bool) -> Rig {
    let mut rig = Rig::without_buffers(&[FEATURES, FEATURES, FEATURES]);
    rig.guests[0].post(4, 1526);
    rig.guests[2].post(4, 1526);
    if readable {
        let at = rig.guests[1].ram.alloc(2000, 64);
        rig.guests[1]
            .rx
            .add(&[(at, 100)], &[(at + 100, 1900)])
            .expect("there is room");
        rig.guests[1].rx.publish();
    } else {
        rig.guests[1].post(1, 11);
    }
    rig.guests[1].post(4, 1526);
    rig
}

#[test]
fn h39_a_receive_buffer_that_holds_no_header_kills_that_queue_only() {
    for readable in [false, true] {
        let mut rig = with_bad_buffer(readable);
        rig.alive(0, 2);
        let frame = frame_of(100);
        rig.send_plain(0, &frame);
        rig.send_plain(0, &frame);
        rig.expect(&[sent(2, 200), missed(DropReason::RxBroken, 2), NOTHING]);
        assert_eq!(rig.guests[1].rx.used(), None, "nothing was written to it");
        rig.alive(0, 2);
        // Without the check it is written to, and the guest is told of a frame in it.
        let mut rig = with_bad_buffer(readable);
        {
            let _off = Off::here(Check::ReceiveBuffer);
            rig.send_plain(0, &frame);
        }
        rig.expect(&[sent(1, 100), got(1, 100), NOTHING]);
        let used = std::iter::from_fn(|| rig.guests[1].rx.used()).count();
        assert_eq!(used, if readable { 1 } else { 2 });
    }
}

#[test]
fn memory_that_vanishes_kills_queues_of_its_guest_only() {
    let mut rig = Rig::new(&[FEATURES; 4]);
    let frame = frame_of(1400);
    // The sender's, before its frame is read. Its ring is in that memory too.
    rig.guests[0].queue(NetHeader::default(), &frame);
    rig.guests[0].tx.publish();
    rig.guests[0].ram.file().set_len(0).expect("ftruncate");
    rig.breathe();
    assert_eq!(rig.guests[1].received(), []);
    rig.expect(&[NOTHING; 4]);
    rig.alive(1, 2);
    // The receiver's.
    rig.guests[2].ram.file().set_len(0).expect("ftruncate");
    let frame = udp((mac(2), mac(3)), ([10, 0, 0, 2], [10, 0, 0, 3]), (1, 2), &[3; 100]);
    rig.send_plain(1, &frame);
    rig.send_plain(1, &frame);
    rig.expect(&[
        NOTHING,
        sent(2, 2 * frame.len()),
        missed(DropReason::RxBroken, 2),
        NOTHING,
    ]);
    rig.alive(1, 3);
}

#[test]
fn a_payload_that_vanishes_is_the_senders_loss() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    let frame = frame_of(1400);
    let guest = &mut rig.guests[0];
    // Ring, header and head stay, the rest of the frame is in pages that go.
    let at = guest.ram.alloc(4096, 4096);
    let far = (64 << 20) - 4096;
    guest.tx.write(at, &[&[0; 12][..], &frame[..300]].concat());
    guest
        .tx
        .add(&[(at, 312), (outboard_ring::driver::RAM_START + far, 1100)], &[])
        .expect("there is room");
    guest.tx.publish();
    guest.ram.file().set_len(far).expect("ftruncate");
    rig.breathe();
    rig.expect(&[sent(1, 1400).dropped(DropReason::TxMemoryGone, 1), NOTHING, NOTHING]);
    assert_eq!(rig.guests[1].received(), []);
    rig.alive(1, 2);
    // The receiver's buffers were not lost by it.
    for _ in 0..63 {
        rig.send_plain(2, &ping(mac(3), mac(2)));
    }
    assert_eq!(rig.guests[1].received().len(), 63);
}
