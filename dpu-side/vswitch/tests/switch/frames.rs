//! Frames, built by hand or by etherparse.

use std::net::Ipv6Addr;

use etherparse::PacketBuilder;
use vhost_net_dpu::checksum::{Sum, for_field, pseudo_header};
use vhost_net_dpu::packet::{IP_PROTOCOL_ICMPV6, IpAddresses};

pub const BROADCAST: [u8; 6] = [0xff; 6];

/// The last byte of a MAC made by the rig says whose it is.
fn v4(mac: [u8; 6]) -> [u8; 4] {
    [10, 0, 0, mac[5]]
}

pub fn v6(mac: [u8; 6]) -> [u8; 16] {
    let [.., last] = mac;
    Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, u16::from(last)).octets()
}

pub fn ping(source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(source, destination).ipv4(v4(source), v4(destination), 64);
    let mut frame = Vec::new();
    builder
        .icmpv4_echo_request(7, 1)
        .write(&mut frame, b"a ping that is sixty bytes")
        .expect("it fits");
    frame
}

/// UDP over IPv4 with everything to choose.
pub fn udp(macs: ([u8; 6], [u8; 6]), addresses: ([u8; 4], [u8; 4]), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(addresses.0, addresses.1, 64);
    let mut frame = Vec::new();
    builder
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .expect("it fits");
    frame
}

/// UDP over IPv6 with everything to choose.
pub fn udp6(macs: ([u8; 6], [u8; 6]), addresses: ([u8; 16], [u8; 16]), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1).ipv6(addresses.0, addresses.1, 64);
    let mut frame = Vec::new();
    builder
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .expect("it fits");
    frame
}

/// TCP from one of the rig's guests to another, complete.
pub fn tcp(v6_packet: bool, source: [u8; 6], destination: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(source, destination);
    let ip = match v6_packet {
        true => ethernet.ipv6(v6(source), v6(destination), 64),
        false => ethernet.ipv4(v4(source), v4(destination), 64),
    };
    let mut frame = Vec::new();
    ip.tcp(40_000, 80, 1_000, 500)
        .ack(77)
        .psh()
        .write(&mut frame, payload)
        .expect("it fits");
    frame
}

/// An ARP message; `sender` and `target` are MAC and address.
pub fn arp(operation: u8, source: [u8; 6], sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let header: [&[u8]; 4] = [&BROADCAST, &source, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, operation]];
    [
        header.concat(),
        [&sender.0[..], &sender.1, &target.0, &target.1].concat(),
    ]
    .concat()
}

/// An ICMPv6 message, checksummed; `body` starts with the type.
pub fn icmpv6(macs: ([u8; 6], [u8; 6]), addresses: ([u8; 16], [u8; 16]), hop_limit: u8, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    let len = u32::try_from(body.len()).expect("short");
    let mut sum = Sum::default();
    let addresses_of = IpAddresses::V6(addresses.0.into(), addresses.1.into());
    sum.add_word(pseudo_header(addresses_of, IP_PROTOCOL_ICMPV6, len));
    sum.add(&body);
    if body.len() >= 4 {
        body[2..4].copy_from_slice(&for_field(sum, IP_PROTOCOL_ICMPV6).to_be_bytes());
    }
    ipv6(macs, addresses, IP_PROTOCOL_ICMPV6, hop_limit, &body)
}

/// An IPv6 packet with any body.
pub fn ipv6(
    macs: ([u8; 6], [u8; 6]),
    addresses: ([u8; 16], [u8; 16]),
    next: u8,
    hop_limit: u8,
    body: &[u8],
) -> Vec<u8> {
    let len = u16::try_from(body.len()).expect("short").to_be_bytes();
    let header: [&[u8]; 6] = [
        &macs.1,
        &macs.0,
        &[0x86, 0xdd, 0x60, 0, 0, 0],
        &len,
        &[next, hop_limit],
        &addresses.0,
    ];
    [header.concat(), addresses.1.to_vec(), body.to_vec()].concat()
}

/// A neighbour solicitation or advertisement.
pub fn neighbour(kind: u8, target: [u8; 16], options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target, options].concat()
}

/// A link-layer address option.
pub fn link_layer(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}
