//! Any choice of features on both sides: each frame arrives with the right content, checksum and header, or is dropped
//! for the right reason, by a model of its own that knows the feature bits and nothing of the code.

use crate::FEATURES;
use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use outboard_vswitch::DropReason;
use proptest::{prelude::*, sample::Index};
use vhost_net_dpu::header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, NetHeader};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MTU,
    },
};

use crate::{
    frames::{BROADCAST, v6},
    rig::{Delta, LARGE_BUFFER_LEN, Rig, mac},
};

/// Receive buffers of each queue: as many as the worst frame below needs.
const BUFFER_COUNT: usize = 120;
const SMALL_BUFFER_LEN: usize = 1526;

/// A frame that a guest sends to another.
#[derive(Debug, Clone)]
struct Spec {
    tcp: bool,
    v6: bool,
    len: usize,
    /// The checksum is left to the device.
    partial: bool,
    /// Payload of each segment, if it is to be cut.
    gso: Option<u16>,
    /// CWR in TCP's header, and what the virtio header says about it.
    cwr: (bool, bool),
    group: bool,
    pair: Index,
}

impl Spec {
    fn headers_len(&self) -> usize {
        self.csum_start() + if self.tcp { 20 } else { 8 }
    }

    fn csum_start(&self) -> usize {
        if self.v6 { 54 } else { 34 }
    }

    fn csum_offset(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    fn payload(&self) -> Vec<u8> {
        (0..self.len)
            .map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1].wrapping_mul(31))
            .collect()
    }

    fn frame(&self) -> Vec<u8> {
        let destination = if self.group { BROADCAST } else { mac(2) };
        let ethernet = PacketBuilder::ethernet2(mac(1), destination);
        let ip = if self.v6 {
            ethernet.ipv6(v6(mac(1)), v6(mac(2)), 64)
        } else {
            ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let mut frame = Vec::new();
        if self.tcp {
            let mut tcp = etherparse::TcpHeader::new(40_000, 80, 1_000, 500);
            (tcp.ack, tcp.psh, tcp.cwr) = (true, true, self.cwr.0);
            ip.tcp_header(tcp).write(&mut frame, &self.payload()).expect("it fits");
        } else {
            ip.udp(40_000, 443).write(&mut frame, &self.payload()).expect("it fits");
        }
        if self.partial {
            let at = self.csum_start() + self.csum_offset();
            frame[at..at + 2].fill(0xaa);
        }
        frame
    }

    fn gso_type(&self, ecn: bool) -> u8 {
        let base = match (self.tcp, self.v6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            (false, _) => GSO_UDP_L4,
        };
        base | if ecn { GSO_ECN } else { 0 }
    }

    fn asked(&self) -> NetHeader {
        let short = |n: usize| u16::try_from(n).expect("short");
        let mut header = NetHeader::default();
        if self.partial {
            header.flags = NEEDS_CSUM;
            (header.csum_start, header.csum_offset) = (short(self.csum_start()), short(self.csum_offset()));
        }
        if let Some(size) = self.gso {
            header.gso_type = self.gso_type(self.tcp && self.cwr.1);
            (header.gso_size, header.hdr_len) = (size, short(self.headers_len()));
        }
        header
    }
}

fn has(features: u64, bits: &[u32]) -> bool {
    bits.iter().all(|bit| features & 1 << bit != 0)
}

/// The largest frame that is not to be segmented.
fn frame_len_max(features: u64, mtu: Option<u16>) -> usize {
    14 + usize::from(mtu.filter(|_| has(features, &[VIRTIO_NET_F_MTU])).unwrap_or(1500))
}

/// Is it cut, by sender and receiver, at all? Frames of one segment's payload are whole.
fn to_cut(spec: &Spec) -> Option<usize> {
    spec.gso.map(usize::from).filter(|size| spec.len > *size)
}

/// Why the sender's port refuses the frame, if so.
fn refusal(spec: &Spec, features: u64, len_max: usize) -> Option<DropReason> {
    let tso = if spec.v6 {
        VIRTIO_NET_F_HOST_TSO6
    } else {
        VIRTIO_NET_F_HOST_TSO4
    };
    let bad = if spec.partial && !has(features, &[VIRTIO_NET_F_CSUM]) {
        true
    } else if let Some(size) = spec.gso {
        let negotiated = if spec.tcp {
            has(features, &[tso]) && (!spec.cwr.1 || has(features, &[VIRTIO_NET_F_HOST_ECN]))
        } else {
            has(features, &[VIRTIO_NET_F_HOST_USO])
        };
        let most = if spec.group { 128 } else { 2048 };
        !spec.partial
            || !negotiated
            || spec.tcp && spec.group
            || spec.headers_len() + usize::from(size) > len_max
            || spec.len.div_ceil(usize::from(size)) > most
    } else {
        false
    };
    let over = spec.headers_len() + spec.len > len_max && to_cut(spec).is_none();
    match (bad, over) {
        (true, _) => Some(DropReason::BadOffload),
        (false, true) => Some(DropReason::OverMtu),
        (false, false) => None,
    }
}

/// Does the receiver take the frame uncut?
fn takes_uncut(spec: &Spec, features: u64) -> bool {
    let kind = match (spec.tcp, spec.v6) {
        (true, false) => VIRTIO_NET_F_GUEST_TSO4,
        (true, true) => VIRTIO_NET_F_GUEST_TSO6,
        (false, false) => VIRTIO_NET_F_GUEST_USO4,
        (false, true) => VIRTIO_NET_F_GUEST_USO6,
    };
    has(features, &[VIRTIO_NET_F_GUEST_CSUM, kind])
        && !(spec.tcp && spec.cwr.0 && !has(features, &[VIRTIO_NET_F_GUEST_ECN]))
}

/// What the receiver is to get: the header (but for `num_buffers`), and which part of the payload.
fn expected(spec: &Spec, features: u64) -> Vec<(NetHeader, std::ops::Range<usize>)> {
    let asked = spec.asked();
    let checksum = if spec.partial && has(features, &[VIRTIO_NET_F_GUEST_CSUM]) {
        NetHeader {
            flags: NEEDS_CSUM,
            csum_start: asked.csum_start,
            csum_offset: asked.csum_offset,
            ..NetHeader::default()
        }
    } else {
        NetHeader::default()
    };
    match to_cut(spec) {
        None => vec![(checksum, 0..spec.len)],
        Some(_) if takes_uncut(spec, features) => {
            let gso_type = spec.gso_type(spec.tcp && spec.cwr.0);
            vec![(NetHeader { gso_type, ..asked }, 0..spec.len)]
        }
        Some(size) => (0..spec.len)
            .step_by(size)
            .map(|start| (checksum, start..spec.len.min(start + size)))
            .collect(),
    }
}

/// Checks a packet by an independent parser, its checksum completed first where the header says so. Its payload, and
/// whether CWR is set.
fn verified(header: NetHeader, packet: &[u8]) -> (Vec<u8>, bool) {
    let mut packet = packet.to_vec();
    if header.flags & NEEDS_CSUM != 0 {
        let start = usize::from(header.csum_start);
        let at = start + usize::from(header.csum_offset);
        let words = packet[start..].chunks(2);
        let mut sum: u32 = words
            .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
            .sum();
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        packet[at..at + 2].copy_from_slice(&(!sum).to_be_bytes()[2..]);
    }
    let headers = PacketHeaders::from_ethernet_slice(&packet).expect("a well-formed packet");
    let payload = headers.payload.slice().to_vec();
    let sums = match (headers.net, headers.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), Some(transport)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len) + 14, packet.len());
            match transport {
                TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv4(&ip, &payload), tcp.cwr),
                TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv4(&ip, &payload), false),
                other => panic!("{other:?}"),
            }
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(transport)) => {
            assert_eq!(usize::from(ip.payload_length) + 54, packet.len());
            match transport {
                TransportHeader::Tcp(tcp) => (tcp.checksum, tcp.calc_checksum_ipv6(&ip, &payload), tcp.cwr),
                TransportHeader::Udp(udp) => (udp.checksum, udp.calc_checksum_ipv6(&ip, &payload), false),
                other => panic!("{other:?}"),
            }
        }
        other => panic!("TCP or UDP over IP, not {other:?}"),
    };
    assert_eq!(Ok(sums.0), sums.1.map_err(|_| ()), "the checksum is right");
    (payload, sums.2)
}

fn spec() -> impl Strategy<Value = Spec> {
    let len = prop_oneof![2 => 1usize..1400, 1 => 1400usize..1600, 3 => 1600usize..20_000];
    let gso = proptest::option::weighted(0.6, prop_oneof![4 => 200u16..1500, 1 => 1500u16..9000]);
    let offload = (prop::bool::weighted(0.8), gso);
    (
        any::<(bool, bool)>(),
        len,
        offload,
        any::<(bool, bool)>(),
        prop::bool::weighted(0.15),
        any::<Index>(),
    )
        .prop_map(|((tcp, v6), len, (partial, gso), cwr, group, pair)| Spec {
            tcp,
            v6,
            len,
            partial,
            gso,
            cwr,
            group,
            pair,
        })
}

/// VERSION_1 and any of the other features that are offered; often all but a few.
fn features() -> impl Strategy<Value = u64> {
    let some = any::<u64>();
    let most = proptest::collection::vec(0u32..64, 0..4)
        .prop_map(|off| off.iter().fold(u64::MAX, |all, bit| all & !(1 << bit)));
    prop_oneof![some, most].prop_map(|mask| FEATURES & mask | 1 << VIRTIO_F_VERSION_1)
}

fn mtu() -> impl Strategy<Value = Option<u16>> {
    proptest::option::of(prop_oneof![Just(1500u16), 576u16..9000])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn every_frame_arrives_as_it_should_or_is_dropped_for_the_right_reason(
        (sender, receiver) in (features(), features()),
        (sender_mtu, receiver_mtu) in (mtu(), mtu()),
        pairs in 1usize..=3,
        specs in proptest::collection::vec(spec(), 1..8),
    ) {
        let mut rig = Rig::bare(&[sender, receiver], pairs);
        let buffer_len = match has(receiver, &[VIRTIO_NET_F_MRG_RXBUF]) {
            true => SMALL_BUFFER_LEN,
            false => LARGE_BUFFER_LEN as usize,
        };
        rig.guests[1].post(BUFFER_COUNT, u32::try_from(buffer_len).expect("short"));
        rig.switch.set_mtu("a", sender_mtu).expect("a is declared");
        rig.switch.set_mtu("b", receiver_mtu).expect("b is declared");
        for spec in &specs {
            let frame = spec.frame();
            let pair = spec.pair.index(pairs);
            rig.guests[0].queue_on(pair, spec.asked(), &frame);
            rig.guests[0].pairs[pair].tx.publish();
            rig.breathe();
            let received = rig.guests[1].received();
            rig.guests[1].pairs.iter_mut().for_each(|pair| pair.repost());
            let sent = (1, frame.len() as u64);
            if let Some(reason) = refusal(spec, sender, frame_len_max(sender, sender_mtu)) {
                prop_assert_eq!(received, []);
                rig.expect(&[Delta { tx: sent, drop: Some((reason, 1)), ..Delta::default() }, Delta::default()]);
                continue;
            }
            let packets = expected(spec, receiver);
            let len_max = frame_len_max(receiver, receiver_mtu);
            let fits = |(header, part): &(NetHeader, std::ops::Range<usize>)| {
                header.gso_type != 0 || spec.headers_len() + part.len() <= len_max
            };
            let count = packets.len();
            let first_fits = fits(&packets[0]);
            let packets: Vec<_> = packets.into_iter().filter(fits).collect();
            let payload = spec.payload();
            prop_assert_eq!(received.len(), packets.len());
            for (n, ((header, part), (got, packet))) in packets.iter().zip(&received).enumerate() {
                let num_buffers = u16::try_from((12 + packet.len()).div_ceil(buffer_len)).expect("few");
                prop_assert_eq!(*got, NetHeader { num_buffers, ..*header });
                let (bytes, cwr) = verified(*got, packet);
                prop_assert!(bytes == payload[part.clone()], "the payload is the sender's");
                prop_assert_eq!(cwr, spec.tcp && spec.cwr.0 && n == 0 && first_fits);
            }
            let bytes: usize = received.iter().map(|(_, packet)| packet.len()).sum();
            let lost = (count - packets.len()) as u64;
            rig.expect(&[
                Delta { tx: sent, ..Delta::default() },
                Delta {
                    rx: (packets.len() as u64, bytes as u64),
                    drop: (lost != 0).then_some((DropReason::RxOverMtu, lost)),
                    ..Delta::default()
                },
            ]);
        }
        prop_assert_eq!(rig.guests[0].pairs.iter_mut().map(|pair| pair.given_back()).sum::<usize>(), specs.len());
    }
}
