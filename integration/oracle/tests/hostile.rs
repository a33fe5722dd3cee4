//! Hostile guests against the firewall in the datapath: the attack fails, legitimate traffic passes before and after it,
//! and with the one check that stops it switched off it succeeds.
#![forbid(unsafe_code)]

use std::slice;

use outboard_controls::{Check, Off};
use outboard_oracle::{
    PORT_COUNT, Side, Verdict, frame,
    ours::{Datapath, mac},
    packet::{Body, Packet, Tcp, flag},
    rules::{Action, Direction, Family, Group, PRIORITY_DEFAULT, Peer, Protocol, Rule, Rules},
};

const WEB: u16 = 80;
const FTP: u16 = 21;
const CLOSED: u16 = 81;
const EXPERIMENT: u8 = 253;
const IP: usize = 14;
const TRANSPORT: usize = IP + 20;

fn allow(direction: Direction, protocol: Protocol) -> Rule {
    Rule {
        direction,
        family: None,
        protocol,
        peer: Peer::Any,
        action: Action::Allow,
        priority: PRIORITY_DEFAULT,
    }
}

/// Port b takes what these protocols are; a and c take nothing, and all let everything out.
fn rules(protocols: &[Protocol]) -> Rules {
    let of_b = Group {
        rules: protocols
            .iter()
            .map(|protocol| allow(Direction::Ingress, *protocol))
            .collect(),
        egress_deny: false,
    };
    Rules {
        groups: vec![Group::default(), of_b],
        sets: vec![],
        ports: [Some(vec![0]), Some(vec![1]), Some(vec![0])],
    }
}

fn guarded(protocols: &[Protocol]) -> Datapath {
    let mut datapath = Datapath::new().expect("a switch can be made");
    datapath.begin(&rules(protocols)).expect("the rules make sense");
    datapath
}

fn packet(from: usize, to: usize, body: Body) -> Packet {
    Packet {
        from,
        to,
        family: Family::V4,
        body,
        extension: false,
        fragments: 1,
    }
}

fn udp(source_port: u16, destination_port: u16, len: u16) -> Packet {
    let body = Body::Udp {
        source_port,
        destination_port,
        len,
    };
    packet(0, 1, body)
}

fn segment(from: usize, ports: (u16, u16), flags: u8, (seq, ack): (u32, u32), len: u16) -> Packet {
    let tcp = Tcp {
        source_port: ports.0,
        destination_port: ports.1,
        flags,
        seq,
        ack,
        window: 10_000,
        window_scale: None,
        sack_permitted: false,
        sack: None,
        len,
    };
    packet(from, 1 - from, Body::Tcp(tcp))
}

/// Its one frame.
fn bytes(packet: &Packet) -> Vec<u8> {
    frame::frames(packet, 7, mac(packet.from), mac(packet.to)).remove(0)
}

/// How many of the frames that a sends reach b; none goes elsewhere.
fn reach(datapath: &mut Datapath, frames: &[Vec<u8>]) -> usize {
    let [a, b, c] = datapath.inject(0, frames).expect("the switch rests");
    assert_eq!((a, c), (0, 0), "{:?}", datapath.why());
    b
}

#[track_caller]
fn told(datapath: &mut Datapath, packet: &Packet, want: Verdict) {
    let told = datapath.send(packet, 9).expect("the switch can be asked");
    assert_eq!(told, want, "{packet}: {:?}", datapath.why());
}

/// What is allowed passes, on a flow that nothing else here uses, and what is not does not.
#[track_caller]
fn legitimate(datapath: &mut Datapath, source_port: u16) {
    told(datapath, &udp(source_port, WEB, 100), Verdict::Pass);
    told(datapath, &udp(source_port, CLOSED, 100), Verdict::Drop);
}

/// Writes the IPv4 header's fields and its checksum (RFC 791 section 3.1).
fn with_header(mut frame: Vec<u8>, change: impl Fn(&mut [u8])) -> Vec<u8> {
    let header = &mut frame[IP..TRANSPORT];
    change(header);
    header[10..12].fill(0);
    let sum: u32 = header
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice");
    header[10..12].copy_from_slice(&(!folded).to_be_bytes());
    frame
}

#[test]
fn h43_no_frame_speaks_for_a_flow_that_only_looks_like_it() {
    let datapath = &mut guarded(&[
        Protocol::Udp(Some((WEB, WEB))),
        Protocol::Number(EXPERIMENT),
        Protocol::Number(0),
    ]);
    legitimate(datapath, 1);
    let target = bytes(&udp(5000, CLOSED, 100));
    // The same bytes under other protocols, which are allowed: they pass, and the flow whose ports they show does not.
    for protocol in [EXPERIMENT, 0] {
        let disguised = with_header(target.clone(), |header| header[9] = protocol);
        assert_eq!(
            reach(datapath, &[disguised.clone(), disguised]),
            2,
            "{:?}",
            datapath.why()
        );
        assert_eq!(reach(datapath, slice::from_ref(&target)), 0, "protocol {protocol}");
    }
    // An allowed flow with the ports of the other one behind its end, as padding.
    let mut padded = bytes(&udp(5000, WEB, 0));
    padded.extend(&target[TRANSPORT..]);
    assert_eq!(reach(datapath, &[padded]), 1);
    assert_eq!(reach(datapath, slice::from_ref(&target)), 0);
    // The header says that there are no ports, or fewer bytes than a header.
    for len in [20u16, 24, 19, 0] {
        let short = with_header(bytes(&udp(5000, WEB, 100)), |header| {
            header[2..4].copy_from_slice(&len.to_be_bytes());
        });
        assert_eq!(reach(datapath, &[short]), 0, "length {len}");
        assert_eq!(reach(datapath, slice::from_ref(&target)), 0);
    }
    legitimate(datapath, 2);
    let _off = Off::here(Check::SecurityGroups);
    assert_eq!(reach(datapath, &[target]), 1);
}

/// The same datagram's fragments: from `offset` on, `more` or not.
fn fragment(frame: &[u8], offset: usize, len: usize, more: bool) -> Vec<u8> {
    let payload = &frame[TRANSPORT..];
    let mut piece = frame[..TRANSPORT].to_vec();
    piece.extend((0..len).map(|at| payload.get(offset + at).copied().unwrap_or(0)));
    let total = u16::try_from(20 + len).expect("short");
    let place = u16::try_from(offset / 8).expect("13 bits") | u16::from(more) << 13;
    with_header(piece, |header| {
        header[2..4].copy_from_slice(&total.to_be_bytes());
        header[6..8].copy_from_slice(&place.to_be_bytes());
    })
}

#[test]
fn h45_fragments_that_overlap_are_tiny_or_too_long_go_nowhere() {
    let protocols = [Protocol::Udp(Some((WEB, WEB))), Protocol::Tcp(Some((WEB, WEB)))];
    let datapath = &mut guarded(&protocols);
    let whole = bytes(&udp(5000, WEB, 400));
    let first = |len| fragment(&whole, 0, len, true);
    // In order, as they should be.
    assert_eq!(
        reach(datapath, &[first(80), fragment(&whole, 80, 328, false)]),
        2,
        "{:?}",
        datapath.why()
    );
    // Into the first one, over its ports or behind them (RFC 1858, RFC 5722).
    for offset in [8, 72] {
        let over = fragment(&whole, offset, 80, false);
        assert_eq!(reach(datapath, &[first(80), over.clone()]), 1, "offset {offset}");
        let _off = Off::here(Check::FragmentsOfAllowed);
        assert_eq!(reach(datapath, &[first(80), over]), 2, "offset {offset}");
    }
    // Another first one, with other ports, after one that is allowed.
    let other = fragment(&bytes(&udp(5000, CLOSED, 400)), 0, 80, true);
    let rest = fragment(&whole, 80, 328, false);
    assert_eq!(reach(datapath, &[first(80), other.clone()]), 1);
    assert_eq!(
        reach(datapath, slice::from_ref(&rest)),
        0,
        "what was refused last counts"
    );
    // A first fragment that ends in mid-header: flags that nobody has seen would follow.
    let syn = bytes(&segment(0, (5000, WEB), flag::SYN, (1, 0), 100));
    for len in [8, 16] {
        let pieces = [fragment(&syn, 0, len, true), fragment(&syn, len, 120 - len, false)];
        assert_eq!(reach(datapath, &pieces), 0, "{len} bytes");
    }
    // Beyond the longest datagram there is.
    let long = fragment(&whole, 65_528, 80, false);
    assert_eq!(reach(datapath, &[first(80), long.clone()]), 1);
    legitimate(datapath, 2);
    // Without a first one.
    datapath.begin(&rules(&protocols)).expect("the rules make sense");
    assert_eq!(reach(datapath, slice::from_ref(&rest)), 0);
    let _off = Off::here(Check::FragmentsOfAllowed);
    assert_eq!(reach(datapath, &[rest]), 1);
}

/// a and b exchange a handshake on the FTP port, and then b says something.
fn ftp(datapath: &mut Datapath, says: &[u8]) {
    let ports = (5000, FTP);
    let back = (FTP, 5000);
    told(datapath, &segment(0, ports, flag::SYN, (100, 0), 0), Verdict::Pass);
    told(
        datapath,
        &segment(1, back, flag::SYN | flag::ACK, (500, 101), 0),
        Verdict::Pass,
    );
    told(datapath, &segment(0, ports, flag::ACK, (101, 501), 0), Verdict::Pass);
    let len = u16::try_from(says.len()).expect("short");
    let mut frame = bytes(&segment(0, ports, flag::ACK | flag::PSH, (101, 501), len));
    let at = frame.len() - says.len();
    frame[at..].copy_from_slice(says);
    assert_eq!(reach(datapath, &[frame]), 1);
}

#[test]
fn h46_what_a_payload_says_opens_nothing() {
    let datapath = &mut guarded(&[Protocol::Tcp(Some((FTP, FTP)))]);
    // "Open a connection to me, port 1025", of which helpers of other firewalls make an exception.
    ftp(datapath, b"PORT 10,0,0,1,4,1\r\n");
    let data = segment(1, (20, 1025), flag::SYN, (1, 0), 0);
    told(datapath, &data, Verdict::Drop);
    // The server's side of it, in the other direction.
    told(datapath, &segment(0, (20, 1025), flag::SYN, (1, 0), 0), Verdict::Drop);
    // It would pass if a rule said so.
    let mut open = rules(&[Protocol::Tcp(Some((FTP, FTP)))]);
    open.groups[0]
        .rules
        .push(allow(Direction::Ingress, Protocol::Tcp(Some((1025, 1025)))));
    open.groups[0].rules.push(allow(Direction::Egress, Protocol::Any));
    datapath.change(&open).expect("the rules make sense");
    told(datapath, &data, Verdict::Pass);
}

#[test]
fn h49_a_flood_of_macs_teaches_the_switch_nothing() {
    let datapath = &mut guarded(&[Protocol::Udp(Some((WEB, WEB)))]);
    legitimate(datapath, 1);
    let flood = |datapath: &mut Datapath| {
        let mut reached = 0;
        for number in 0u16..2000 {
            let mut frame = bytes(&udp(5000, WEB, 20));
            frame[6..12].copy_from_slice(&[[0x52, 0x54, 0, 9], [0; 4]].concat()[..6]);
            frame[10..12].copy_from_slice(&number.to_be_bytes());
            // b's own among them
            if number == 1000 {
                frame[6..12].copy_from_slice(&mac(1));
            }
            reached += reach(datapath, &[frame]);
        }
        reached
    };
    assert_eq!(flood(datapath), 0);
    legitimate(datapath, 2);
    {
        let _off = Off::here(Check::SourceGuard);
        assert!(flood(datapath) > 1900);
    }
    // Even so: what is for b goes to b and to nobody else.
    legitimate(datapath, 3);
    let [a, b, c]: [usize; PORT_COUNT] = datapath
        .inject(
            2,
            &[bytes(&Packet {
                from: 2,
                ..udp(6, WEB, 20)
            })],
        )
        .expect("rests");
    assert_eq!((a, b, c), (0, 1, 0));
}
