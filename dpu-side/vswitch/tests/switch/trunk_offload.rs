//! Trunks and what senders leave to be done: checksums, segments and lengths are right for the tag's four bytes more or less.

use crate::FEATURES;
use outboard_vswitch::{CaptureSpec, CaptureWay, DropReason};
use proptest::prelude::*;
use vhost_net_dpu::header::NetHeader;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};

use crate::{
    frames::{tcp, udp},
    offload::{partial, payload, same_but_for_the_sum, unsummed, verified},
    rig::{Rig, mac},
    trunk::{GREEN_AT_A, GREEN_AT_D, tag, trunks_of},
};

const TSO: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const POOR: u64 = FEATURES & !TSO & !(1 << VIRTIO_NET_F_GUEST_CSUM);

/// Who sends to whom: guest, MAC, and VLAN id if it is a subport. All are on network green.
type Station = (usize, u8, Option<u16>);
const A: Station = (0, 1, Some(GREEN_AT_A));
const B: Station = (1, 2, None);
const D: Station = (3, 4, Some(GREEN_AT_D));
const WAYS: [(Station, Station); 3] = [(A, B), (B, A), (A, D)];

fn with_tag(frame: &[u8], station: Station) -> Vec<u8> {
    station.2.map_or_else(|| frame.to_vec(), |vlan| tag(frame, vlan))
}

/// The virtio header for the frame as that station has it.
fn moved(header: NetHeader, station: Station) -> NetHeader {
    let by = if station.2.is_some() { 4 } else { 0 };
    NetHeader {
        csum_start: header.csum_start + by,
        hdr_len: if header.hdr_len == 0 { 0 } else { header.hdr_len + by },
        ..header
    }
}

/// Sends a frame and its header, told without tags, and gives back what was received, still with its tags.
fn send(rig: &mut Rig, (from, to): (Station, Station), header: NetHeader, frame: &[u8]) -> Vec<(NetHeader, Vec<u8>)> {
    rig.send(from.0, moved(header, from), &with_tag(frame, from));
    rig.guests[to.0].received()
}

/// The frame without the tag that the station's frames have.
#[track_caller]
fn without_tag(frame: &[u8], station: Station) -> Vec<u8> {
    let Some(vlan) = station.2 else { return frame.to_vec() };
    let [high, low] = vlan.to_be_bytes();
    assert_eq!(frame[12..16], [0x81, 0, high, low]);
    [&frame[..12], &frame[16..]].concat()
}

#[test]
fn a_large_frame_stays_one_and_its_header_counts_the_tag() {
    for (v6, way) in [false, true].into_iter().flat_map(|v6| WAYS.map(|way| (v6, way))) {
        for features in [FEATURES, FEATURES & !MERGEABLE] {
            let (from, to) = way;
            let mut rig = trunks_of(&[features; 4]);
            let header = partial(v6, 1400);
            let frame = unsummed(tcp(v6, mac(from.1), mac(to.1), &payload(60_000)), header);
            let received = send(&mut rig, way, header, &frame);
            let [(told, bytes)] = &received[..] else {
                panic!("one frame")
            };
            let want = NetHeader {
                num_buffers: told.num_buffers,
                ..moved(header, to)
            };
            assert_eq!(*told, want);
            let got = without_tag(bytes, to);
            same_but_for_the_sum(&got, &frame, header);
        }
    }
}

#[test]
fn a_large_frame_is_cut_and_summed_for_a_receiver_that_cannot_take_it() {
    for (v6, way) in [false, true].into_iter().flat_map(|v6| WAYS.map(|way| (v6, way))) {
        for features in [FEATURES & !TSO, POOR] {
            let (from, to) = way;
            let mut all = [FEATURES; 4];
            all[to.0] = features;
            let mut rig = trunks_of(&all);
            let sent = payload(30_000);
            // Full packets: 1500 bytes of IP, and the tag beyond them.
            let mss = if v6 { 1440 } else { 1460 };
            let header = partial(v6, mss);
            let frame = unsummed(tcp(v6, mac(from.1), mac(to.1), &sent), header);
            let received = send(&mut rig, way, header, &frame);
            assert_eq!(received.len(), sent.len().div_ceil(usize::from(mss)));
            let mut joined = Vec::new();
            for (told, bytes) in &received {
                let packet = without_tag(bytes, to);
                assert!(packet.len() <= 1514);
                if features == POOR {
                    assert_eq!(told.flags, 0);
                    joined.extend(verified(&packet));
                } else {
                    assert_eq!(told.csum_start, moved(header, to).csum_start);
                    joined.extend(&packet[usize::from(header.hdr_len)..]);
                }
            }
            assert_eq!(joined, sent);
        }
    }
}

#[test]
fn a_partial_checksum_is_told_or_completed() {
    for (v6, way) in [false, true].into_iter().flat_map(|v6| WAYS.map(|way| (v6, way))) {
        for len in [0, 1, 700, 1400] {
            let (from, to) = way;
            let header = partial(v6, 0);
            let frame = unsummed(tcp(v6, mac(from.1), mac(to.1), &payload(len)), header);
            let mut rig = trunks_of(&[FEATURES; 4]);
            let received = send(&mut rig, way, header, &frame);
            let want = NetHeader {
                num_buffers: 1,
                ..moved(header, to)
            };
            assert_eq!(received[0].0, want);
            same_but_for_the_sum(&without_tag(&received[0].1, to), &frame, header);
            let mut all = [FEATURES; 4];
            all[to.0] = POOR;
            let mut rig = trunks_of(&all);
            let received = send(&mut rig, way, header, &frame);
            assert_eq!(received[0].0.flags, 0);
            assert_eq!(verified(&without_tag(&received[0].1, to)), payload(len));
        }
    }
}

#[test]
fn a_checksum_at_another_place_is_refused_with_a_tag_too() {
    let mut rig = trunks_of(&[FEATURES; 4]);
    let header = partial(false, 0);
    let frame = unsummed(tcp(false, mac(1), mac(2), b"x"), header);
    let good = moved(header, A);
    // Where it would be without the tag, in the tag, and before it.
    for csum_start in [header.csum_start, 16, 3, 0, u16::MAX] {
        let bad = NetHeader { csum_start, ..good };
        rig.send(0, bad, &tag(&frame, GREEN_AT_A));
        assert_eq!(rig.guests[1].received(), []);
        let counters = rig.switch.port_counters("a-green").expect("declared");
        let dropped: Vec<_> = counters.dropped().map(|(reason, _)| reason).collect();
        assert_eq!(dropped, [DropReason::BadOffload]);
    }
    rig.send(0, good, &tag(&frame, GREEN_AT_A));
    assert_eq!(rig.guests[1].received().len(), 1, "control");
}

#[test]
fn the_mtu_does_not_count_the_tag() {
    for (from, to) in WAYS {
        let mut rig = trunks_of(&[FEATURES; 4]);
        let addresses = ([10, 0, 0, from.1], [10, 0, 0, to.1]);
        let of_len = |len: usize| udp((mac(from.1), mac(to.1)), addresses, (7, 8), &vec![0; len - 42]);
        let full = of_len(1514);
        let received = send(&mut rig, (from, to), NetHeader::default(), &full);
        assert_eq!(without_tag(&received[0].1, to), full);
        assert_eq!(send(&mut rig, (from, to), NetHeader::default(), &of_len(1515)), []);
        let drops: Vec<_> = rig
            .switch
            .counters()
            .iter()
            .flat_map(|p| p.dropped().collect::<Vec<_>>())
            .collect();
        assert_eq!(drops, [(DropReason::OverMtu, 1)]);
        // The receiver's counts for its subports.
        let name = rig.guests[to.0].name;
        rig.switch.set_mtu(name, Some(576)).expect("declared");
        assert_eq!(send(&mut rig, (from, to), NetHeader::default(), &of_len(591)), []);
        let received = send(&mut rig, (from, to), NetHeader::default(), &of_len(590));
        assert_eq!(without_tag(&received[0].1, to), of_len(590));
    }
}

#[test]
fn a_capture_shows_a_subports_frames_without_their_tags() {
    let mut rig = trunks_of(&[FEATURES; 4]);
    let begin = |port: &str| CaptureSpec {
        port: port.into(),
        filter: Box::new(|_| true),
        snaplen: 2000,
        frames_max: 9,
        time_max: std::time::Duration::from_secs(99),
        unread_max: std::time::Duration::from_secs(99),
        len_max: 1 << 16,
    };
    let ids = ["a-green", "a", "b"].map(|port| rig.switch.open_capture(begin(port)).expect("it begins"));
    // Longer than what is inspected, so that its rest is read behind its tag.
    let addresses = |from: u8, to: u8| ([10, 0, 0, from], [10, 0, 0, to]);
    let there = udp((mac(1), mac(2)), addresses(1, 2), (7, 8), &payload(900));
    let back = udp((mac(2), mac(1)), addresses(2, 1), (8, 7), &payload(800));
    send(&mut rig, (A, B), NetHeader::default(), &there);
    send(&mut rig, (B, A), NetHeader::default(), &back);
    rig.send_plain(0, &tag(&there, 9));
    let seen = ids.map(|id| {
        let read = rig.switch.read_capture(id, 0, 1 << 16).expect("it runs");
        let frames = read.frames.into_iter();
        frames
            .map(|frame| (frame.way, frame.bytes, frame.dropped))
            .collect::<Vec<_>>()
    });
    use CaptureWay::{FromGuest, ToGuest};
    let [green, parent, other] = seen;
    let want = |there_way, back_way| vec![(there_way, there.clone(), None), (back_way, back.clone(), None)];
    assert_eq!(green, want(FromGuest, ToGuest));
    assert_eq!(other, want(ToGuest, FromGuest));
    assert_eq!(parent, [(FromGuest, there.clone(), Some(DropReason::UnknownVlan))]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Frames of any length, in any mix of VLANs in one burst, arrive whole, in order and where they belong.
    #[test]
    fn any_mix_of_tagged_frames_arrives_whole(
        frames in prop::collection::vec((0..4usize, 0..1400usize), 1..40), features in prop::sample::select(vec![FEATURES, POOR]),
    ) {
        let mut rig = trunks_of(&[features; 4]);
        // To b (green) and d-green from a-green, to c (red) from a-red, to d (blue) from a.
        let ways = [(1, 2, Some(GREEN_AT_A), 1), (1, 4, Some(GREEN_AT_A), 3), (5, 3, Some(200), 2), (1, 4, None, 3)];
        let mut wanted = vec![Vec::new(); 4];
        for (way, len) in frames {
            let (from, to, vlan, guest) = ways[way];
            let frame = udp((mac(from), mac(to)), ([10, 0, 0, from], [10, 0, 0, to]), (7, 8), &payload(len));
            let sent = vlan.map_or_else(|| frame.clone(), |vlan| tag(&frame, vlan));
            rig.guests[0].queue(NetHeader::default(), &sent);
            let got = if way == 1 { tag(&frame, GREEN_AT_D) } else { frame };
            wanted[guest].push(got);
        }
        rig.guests[0].tx.publish();
        rig.breathe();
        for (guest, wanted) in rig.guests.iter_mut().zip(wanted) {
            let got: Vec<_> = guest.received().into_iter().map(|(_, frame)| frame).collect();
            prop_assert_eq!(got, wanted);
        }
        let drops = rig.switch.counters().iter().map(|port| port.dropped().count()).sum::<usize>();
        prop_assert_eq!(drops, 0);
    }
}
