//! Forged sources of every kind. Each attack is dropped, with its reason, at the attacker; with the source guard off it
//! reaches the victim; and honest traffic passes before and after.

use crate::FEATURES;
use outboard_controls::{Check, Off};
use outboard_vswitch::{DropReason, link_local};

use crate::{
    frames::{BROADCAST, arp, icmpv6, ipv6, link_layer, neighbour, ping, udp, udp6, v6},
    rig::{Rig, got, mac, sent},
};

const OWN: [u8; 4] = [10, 0, 0, 1];
const VICTIM: [u8; 4] = [10, 0, 0, 2];
const ZERO: [u8; 4] = [0; 4];
const UNSPECIFIED: [u8; 16] = [0; 16];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const SOLICITED_NODE: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1];

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// The attack is stopped, counted once at the attacker's port, and succeeds without the guard.
#[track_caller]
fn stopped(rig: &mut Rig, what: &str, frame: &[u8], reason: DropReason) {
    println!("{what}");
    rig.alive(0, 1);
    rig.send_plain(0, frame);
    assert_eq!(rig.guests[1].received(), [], "{what}: the victim sees nothing");
    rig.expect(&[sent(1, frame.len()).dropped(reason, 1), got(0, 0)]);
    {
        let _off = Off::here(Check::SourceGuard);
        rig.send_plain(0, frame);
    }
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    let received = rig.guests[1].received();
    assert_eq!(received[0].1, frame, "{what}: without the guard the attack succeeds");
    rig.alive(0, 1);
    // What this took: a buffer for each `alive`, and one for the attack.
    rig.guests[0].received();
    rig.guests[0].post(2, 1526);
    rig.guests[1].post(3, 1526);
}

/// The frame passes, as it is.
#[track_caller]
fn passes(rig: &mut Rig, what: &str, frame: &[u8]) {
    println!("{what}");
    rig.send_plain(0, frame);
    rig.expect(&[sent(1, frame.len()), got(1, frame.len())]);
    assert_eq!(rig.guests[1].received()[0].1, frame, "{what}");
    rig.guests[1].post(1, 1526);
}

fn macs() -> ([u8; 6], [u8; 6]) {
    (mac(1), mac(2))
}

fn own_link_local() -> [u8; 16] {
    link_local(mac(1)).octets()
}

#[test]
fn h40_p02_a_forged_mac_goes_nowhere() {
    let mut rig = Rig::pair();
    let frame = udp((mac(3), mac(2)), (OWN, VICTIM), (1, 2), b"x");
    stopped(&mut rig, "another's MAC", &frame, DropReason::SpoofedMac);
    let frame = udp((BROADCAST, mac(2)), (OWN, VICTIM), (1, 2), b"x");
    stopped(&mut rig, "a broadcast MAC", &frame, DropReason::SpoofedMac);
}

#[test]
fn h40_p02_a_forged_ipv4_source_goes_nowhere() {
    let mut rig = Rig::pair();
    for source in [VICTIM, [10, 0, 0, 77], [127, 0, 0, 1], [255; 4], ZERO] {
        let frame = udp(macs(), (source, VICTIM), (1, 2), b"x");
        stopped(&mut rig, "another's address", &frame, DropReason::SpoofedIpv4);
    }
    // A later fragment has no ports, but a source.
    let mut fragment = udp(macs(), ([10, 0, 0, 77], VICTIM), (1, 2), b"sixteen bytes...");
    fragment[20..22].copy_from_slice(&[0, 2]);
    stopped(&mut rig, "a forged fragment", &fragment, DropReason::SpoofedIpv4);
    passes(&mut rig, "its own", &udp(macs(), (OWN, VICTIM), (1, 2), b"x"));
}

#[test]
fn h40_p02_a_forged_ipv6_source_goes_nowhere() {
    let mut rig = Rig::pair();
    let (own, victim) = (v6(mac(1)), v6(mac(2)));
    let foreign_link_local = link_local(mac(2)).octets();
    for source in [victim, foreign_link_local, UNSPECIFIED, ALL_NODES] {
        let frame = udp6(macs(), (source, victim), (1, 2), b"x");
        stopped(&mut rig, "another's address", &frame, DropReason::SpoofedIpv6);
        let echo = icmpv6(macs(), (source, victim), 64, &[128, 0, 0, 0, 0, 1, 0, 1]);
        stopped(&mut rig, "an echo request from it", &echo, DropReason::SpoofedIpv6);
        let extended = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &[0, 1, 0, 2, 0, 8, 0, 0]].concat();
        let frame = ipv6(macs(), (source, victim), 60, 64, &extended);
        stopped(&mut rig, "behind an extension header", &frame, DropReason::SpoofedIpv6);
    }
    passes(&mut rig, "its own", &udp6(macs(), (own, victim), (1, 2), b"x"));
    passes(
        &mut rig,
        "its link-local address",
        &udp6(macs(), (own_link_local(), victim), (1, 2), b"x"),
    );
    passes(
        &mut rig,
        "an echo request",
        &icmpv6(macs(), (own, victim), 64, &[128, 0, 0, 0, 0, 1, 0, 1]),
    );
}

#[test]
fn h40_p02_vlan_tags_and_unknown_protocols_go_nowhere() {
    let mut rig = Rig::pair();
    let plain = ping(mac(1), mac(2));
    // What 802.1Q tags (0x8100) do is in the tests of trunks.
    for tag in [[0x88, 0xa8], [0x91, 0]] {
        let frame = [&plain[..12], &tag, &[0, 5], &plain[12..]].concat();
        stopped(&mut rig, "a VLAN tag", &frame, DropReason::VlanTagged);
    }
    for ethertype in [[0x88, 0x47], [0x80, 0x35], [0x88, 0xcc], [0x00, 0x26]] {
        let frame = [&plain[..12], &ethertype, &plain[14..]].concat();
        stopped(
            &mut rig,
            "MPLS, RARP, LLDP, spanning tree",
            &frame,
            DropReason::UnknownEthertype,
        );
    }
}

#[test]
fn h40_p02_forged_arp_goes_nowhere() {
    let mut rig = Rig::pair();
    let own = (mac(1), OWN);
    let nobody = [0; 6];
    let spoofs = [
        (
            "a reply for the victim's address",
            arp(2, mac(1), (mac(1), VICTIM), (mac(2), VICTIM)),
        ),
        (
            "a reply with another's MAC",
            arp(2, mac(1), (mac(2), OWN), (mac(2), VICTIM)),
        ),
        (
            "a request from another's address",
            arp(1, mac(1), (mac(1), VICTIM), (nobody, OWN)),
        ),
        (
            "a probe for another's address",
            arp(1, mac(1), (mac(1), ZERO), (nobody, VICTIM)),
        ),
        ("a reply from no address", arp(2, mac(1), (mac(1), ZERO), (nobody, OWN))),
    ];
    for (what, frame) in spoofs {
        stopped(&mut rig, what, &frame, DropReason::SpoofedArp);
    }
    let good = arp(1, mac(1), own, (nobody, VICTIM));
    for (what, at, byte) in [
        ("hardware type 6", 15, 6),
        ("protocol type IPv6", 17, 6),
        ("a long MAC", 18, 8),
        ("a long address", 19, 16),
        ("reverse ARP", 21, 3),
        ("operation 257", 20, 1),
    ] {
        let mut frame = good.clone();
        frame[at] = byte;
        stopped(&mut rig, what, &frame, DropReason::MalformedArp);
    }
    stopped(&mut rig, "cut short", &good[..41], DropReason::MalformedArp);
    let long = [&good[..], &[0; 300]].concat();
    stopped(
        &mut rig,
        "longer than what is looked at",
        &long,
        DropReason::MalformedArp,
    );
    passes(&mut rig, "a request", &good);
    passes(&mut rig, "a padded request", &[&good[..], &[0; 18]].concat());
    passes(&mut rig, "a reply", &arp(2, mac(1), own, (mac(2), VICTIM)));
    passes(
        &mut rig,
        "a probe for its own address",
        &arp(1, mac(1), (mac(1), ZERO), (nobody, OWN)),
    );
    passes(&mut rig, "an announcement", &arp(1, mac(1), own, (nobody, OWN)));
}

#[test]
fn h40_p02_forged_neighbour_discovery_goes_nowhere() {
    let mut rig = Rig::pair();
    let (own, victim) = (v6(mac(1)), v6(mac(2)));
    let nd = |source: [u8; 16], body: &[u8]| icmpv6((mac(1), ALL_NODES_MAC), (source, ALL_NODES), 255, body);
    let spoofs = [
        (
            "an advertisement of the victim's address",
            nd(own, &neighbour(ADVERTISEMENT, victim, &link_layer(2, mac(1)))),
        ),
        (
            "one of its link-local address",
            nd(own, &neighbour(ADVERTISEMENT, link_local(mac(2)).octets(), &[])),
        ),
        (
            "an advertisement with another's MAC",
            nd(own, &neighbour(ADVERTISEMENT, own, &link_layer(2, mac(2)))),
        ),
        (
            "a solicitation with another's MAC",
            nd(own, &neighbour(SOLICITATION, victim, &link_layer(1, mac(3)))),
        ),
        ("another's MAC in the second option", {
            let options = [link_layer(1, mac(1)), link_layer(1, mac(3))].concat();
            nd(own, &neighbour(SOLICITATION, victim, &options))
        }),
        ("a router solicitation with another's MAC", {
            nd(
                own,
                &[&[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &link_layer(1, mac(3))].concat(),
            )
        }),
        (
            "address detection of the victim's address",
            nd(UNSPECIFIED, &neighbour(SOLICITATION, victim, &[])),
        ),
    ];
    for (what, frame) in spoofs {
        stopped(&mut rig, what, &frame, DropReason::SpoofedNd);
    }
    let sourceless = nd(UNSPECIFIED, &neighbour(ADVERTISEMENT, own, &[]));
    stopped(
        &mut rig,
        "an advertisement from no address",
        &sourceless,
        DropReason::SpoofedIpv6,
    );
    let foreign = nd(victim, &neighbour(SOLICITATION, victim, &[]));
    stopped(
        &mut rig,
        "a solicitation from the victim's address",
        &foreign,
        DropReason::SpoofedIpv6,
    );
    let unicast = icmpv6(macs(), (UNSPECIFIED, victim), 255, &neighbour(SOLICITATION, own, &[]));
    stopped(
        &mut rig,
        "a solicitation from no address to one host",
        &unicast,
        DropReason::SpoofedIpv6,
    );
    for kind in [ROUTER_ADVERTISEMENT, REDIRECT] {
        let frame = nd(own_link_local(), &[&[kind, 0, 0, 0][..], &[0; 36]].concat());
        stopped(&mut rig, "a router's message", &frame, DropReason::RouterMessage);
    }
    passes(
        &mut rig,
        "a solicitation",
        &nd(own, &neighbour(SOLICITATION, victim, &link_layer(1, mac(1)))),
    );
    passes(
        &mut rig,
        "an advertisement",
        &nd(own, &neighbour(ADVERTISEMENT, own, &link_layer(2, mac(1)))),
    );
    let detection = icmpv6(
        (mac(1), ALL_NODES_MAC),
        (UNSPECIFIED, SOLICITED_NODE),
        255,
        &neighbour(SOLICITATION, own, &[]),
    );
    passes(&mut rig, "address detection of its own address", &detection);
    passes(
        &mut rig,
        "a router solicitation",
        &nd(UNSPECIFIED, &[ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]),
    );
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 0]].concat();
    passes(
        &mut rig,
        "a listener report",
        &ipv6((mac(1), ALL_NODES_MAC), (UNSPECIFIED, ALL_NODES), 0, 1, &report),
    );
}

#[test]
fn h40_p02_malformed_neighbour_discovery_goes_nowhere() {
    let mut rig = Rig::pair();
    let (own, victim) = (v6(mac(1)), v6(mac(2)));
    let nd = |source: [u8; 16], hop_limit: u8, body: &[u8]| {
        icmpv6((mac(1), ALL_NODES_MAC), (source, ALL_NODES), hop_limit, body)
    };
    let good = neighbour(ADVERTISEMENT, own, &link_layer(2, mac(1)));
    let fragmented = |kind: u8| {
        let header = [
            &[58, 0, 0, 1, 0, 0, 0, 9][..],
            &neighbour(kind, victim, &link_layer(2, mac(3))),
        ]
        .concat();
        ipv6((mac(1), ALL_NODES_MAC), (own, ALL_NODES), 44, 255, &header)
    };
    let atomic = [&[58, 0, 0, 0, 0, 0, 0, 9][..], &good].concat();
    let mut code = good.clone();
    code[1] = 1;
    let attacks = [
        ("a hop limit that says it was routed", nd(own, 254, &good)),
        (
            "an option of length 0",
            nd(own, 255, &neighbour(ADVERTISEMENT, own, &[2, 0, 0, 0, 0, 0, 0, 0])),
        ),
        (
            "an option beyond the end",
            nd(own, 255, &neighbour(ADVERTISEMENT, own, &[2, 255, 0, 0, 0, 0, 0, 0])),
        ),
        (
            "an option of one byte",
            nd(own, 255, &neighbour(ADVERTISEMENT, own, &[2])),
        ),
        (
            "a MAC of 14 bytes",
            nd(
                own,
                255,
                &neighbour(ADVERTISEMENT, own, &[&[2, 2][..], &mac(1), &[0; 8]].concat()),
            ),
        ),
        ("no target", nd(own, 255, &good[..20])),
        (
            "a multicast target",
            nd(own, 255, &neighbour(SOLICITATION, ALL_NODES, &[])),
        ),
        ("a code", nd(own, 255, &code)),
        (
            "a MAC from no address",
            nd(UNSPECIFIED, 255, &neighbour(SOLICITATION, own, &link_layer(1, mac(1)))),
        ),
        ("a fragmented advertisement", fragmented(ADVERTISEMENT)),
        ("a fragmented router advertisement", fragmented(ROUTER_ADVERTISEMENT)),
        (
            "a fragment that is whole",
            ipv6((mac(1), ALL_NODES_MAC), (own, ALL_NODES), 44, 255, &atomic),
        ),
    ];
    for (what, frame) in attacks {
        stopped(&mut rig, what, &frame, DropReason::MalformedNd);
    }
    let nonces: Vec<u8> = std::iter::repeat_n([14, 1, 0, 0, 0, 0, 0, 0], 30).flatten().collect();
    let long = nd(own, 255, &neighbour(ADVERTISEMENT, own, &nonces));
    stopped(
        &mut rig,
        "options longer than what is looked at",
        &long,
        DropReason::HeadersTooLong,
    );
    let hidden = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &neighbour(ADVERTISEMENT, victim, &[])].concat();
    let hidden = ipv6((mac(1), ALL_NODES_MAC), (own, ALL_NODES), 60, 255, &hidden);
    stopped(&mut rig, "behind an extension header", &hidden, DropReason::SpoofedNd);
    passes(&mut rig, "in order", &nd(own, 255, &good));
}

/// A packet of IPv4 with options, which are a multiple of 4 bytes.
fn with_options(protocol: u8, destination: ([u8; 6], [u8; 4]), options: &[u8], body: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let total = u16::try_from(header_len + body.len()).expect("short").to_be_bytes();
    let first = 0x40 | u8::try_from(header_len / 4).expect("short");
    let mut header = [
        &[first, 0][..],
        &total,
        &[0, 0, 0, 0, 1, protocol, 0, 0],
        &OWN,
        &destination.1,
        options,
    ]
    .concat();
    let sum = vhost_net_dpu::checksum::ipv4_header(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&destination.0[..], &mac(1), &[8, 0], &header, body].concat()
}

#[test]
fn h40_p02_a_port_is_no_router() {
    let mut rig = Rig::pair();
    let to = (mac(2), VICTIM);
    let gateway = [10, 0, 0, 254];
    let quoted = [&with_options(17, to, &[], &[0; 8])[14..], &[]].concat();
    let redirect = [&[5, 1, 0, 0][..], &gateway, &quoted].concat();
    stopped(
        &mut rig,
        "an ICMP redirect",
        &with_options(1, to, &[], &redirect),
        DropReason::RouterMessage,
    );
    let mut fragment = with_options(1, to, &[], &redirect[..24]);
    fragment[20] = 0x20;
    stopped(&mut rig, "the start of one", &fragment, DropReason::RouterMessage);
    let advertisement = [&[9, 0, 0, 0, 1, 2, 7, 8][..], &OWN, &[0; 4]].concat();
    let advertisement = with_options(1, to, &[], &advertisement);
    stopped(
        &mut rig,
        "an ICMP router advertisement",
        &advertisement,
        DropReason::RouterMessage,
    );
    for (what, kind) in [("a loose source route", 131), ("a strict one", 137)] {
        let route = [&[1, kind, 7, 4][..], &gateway].concat();
        let frame = with_options(17, to, &route, &[0, 1, 0, 2, 0, 8, 0, 0]);
        stopped(&mut rig, what, &frame, DropReason::SourceRouted);
    }
    for (what, kind) in [("a routing header of type 0", 0), ("of segment routing", 4)] {
        let header = [
            &[17, 2, kind, 1, 0, 0, 0, 0][..],
            &v6(mac(3)),
            &[0, 1, 0, 2, 0, 8, 0, 0],
        ]
        .concat();
        let frame = ipv6(macs(), (v6(mac(1)), v6(mac(2))), 43, 64, &header);
        stopped(&mut rig, what, &frame, DropReason::SourceRouted);
    }
}

#[test]
fn p02_what_hosts_say_to_groups_passes() {
    let mut rig = Rig::pair();
    let unreachable = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &[0x45; 28]].concat();
    passes(
        &mut rig,
        "ICMP port unreachable",
        &with_options(1, (mac(2), VICTIM), &[], &unreachable),
    );
    let group = ([1, 0, 0x5e, 0, 0, 22], [224, 0, 0, 22]);
    let report = [0x22, 0, 0xf9, 2, 0, 0, 0, 1, 4, 0, 0, 0, 224, 1, 2, 3];
    passes(
        &mut rig,
        "an IGMPv3 report with router alert",
        &with_options(2, group, &[148, 4, 0, 0], &report),
    );
    let listener = [&[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0][..], &ALL_NODES].concat();
    let listener = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &listener].concat();
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 22];
    for source in [UNSPECIFIED, own_link_local()] {
        let frame = ipv6((mac(1), [0x33, 0x33, 0, 0, 0, 22]), (source, routers), 0, 1, &listener);
        passes(&mut rig, "an MLDv2 report behind a hop-by-hop header", &frame);
    }
    // Queries too, from the guest's own addresses.
    let all_systems = ([1, 0, 0x5e, 0, 0, 1], [224, 0, 0, 1]);
    let query = [0x11, 100, 0xee, 0x9b, 0, 0, 0, 0];
    passes(
        &mut rig,
        "an IGMPv2 query",
        &with_options(2, all_systems, &[148, 4, 0, 0], &query),
    );
    let frame = listener_query(own_link_local());
    passes(&mut rig, "an MLD query", &frame);
    let announced = arp(2, mac(1), (mac(1), OWN), (BROADCAST, OWN));
    passes(&mut rig, "a gratuitous ARP reply", &announced);
    rig.alive(0, 1);
}

/// An MLD query (RFC 2710) behind a router alert.
fn listener_query(source: [u8; 16]) -> Vec<u8> {
    let query = [
        &[58, 0, 5, 2, 0, 0, 1, 0][..],
        &[130, 0, 0, 0, 0x27, 0x10, 0, 0],
        &UNSPECIFIED,
    ]
    .concat();
    ipv6((mac(1), ALL_NODES_MAC), (source, ALL_NODES), 0, 1, &query)
}

#[test]
fn h40_p02_a_query_for_group_members_comes_from_nobody_else() {
    let mut rig = Rig::pair();
    let query = [0x11, 100, 0xee, 0x9b, 0, 0, 0, 0];
    for (what, source) in [("from no address", ZERO), ("from the victim's", VICTIM)] {
        let mut frame = with_options(2, ([1, 0, 0x5e, 0, 0, 1], [224, 0, 0, 1]), &[148, 4, 0, 0], &query);
        frame[26..30].copy_from_slice(&source);
        stopped(
            &mut rig,
            &format!("an IGMP query {what}"),
            &frame,
            DropReason::SpoofedIpv4,
        );
    }
    for (what, source) in [
        ("from no address", UNSPECIFIED),
        ("from the victim's", link_local(mac(2)).octets()),
    ] {
        let frame = listener_query(source);
        stopped(
            &mut rig,
            &format!("an MLD query {what}"),
            &frame,
            DropReason::SpoofedIpv6,
        );
    }
}

#[test]
fn h40_p02_dhcp_is_neither_asked_nor_answered() {
    let mut rig = Rig::pair();
    let discover = udp((mac(1), BROADCAST), (ZERO, [255; 4]), (68, 67), &[1; 240]);
    stopped(&mut rig, "a client's call", &discover, DropReason::DhcpWithoutServer);
    let offer = udp(macs(), (OWN, VICTIM), (67, 68), &[2; 240]);
    stopped(&mut rig, "a rogue server's offer", &offer, DropReason::RogueDhcp);
    let mut fragment = offer.clone();
    fragment[20] = 0x20;
    stopped(&mut rig, "the same in a fragment", &fragment, DropReason::RogueDhcp);
    let forged = udp(macs(), (VICTIM, VICTIM), (67, 68), &[2; 240]);
    stopped(&mut rig, "with a forged source too", &forged, DropReason::SpoofedIpv4);
    let advertise = udp6(macs(), (own_link_local(), v6(mac(2))), (547, 546), &[2; 40]);
    stopped(&mut rig, "a rogue DHCPv6 server", &advertise, DropReason::RogueDhcp);
}

#[test]
fn h40_p02_a_sender_that_changes_its_frame_meanwhile_gains_nothing() {
    use std::sync::atomic::{AtomicBool, Ordering};

    use vhost_net_dpu::header::HEADER_LEN;

    let mut rig = Rig::new(&[FEATURES; 2]);
    let frame = udp(macs(), (OWN, VICTIM), (1, 2), &[0; 1000]);
    let bytes = [&[0; HEADER_LEN][..], &frame].concat();
    let len = u32::try_from(bytes.len()).expect("short");
    let (memory, at) = (rig.guests[0].ram.memory().clone(), rig.guests[0].tx_buffer());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The last byte of the MAC and of the address, honest and forged by turns.
            while !stop.load(Ordering::Relaxed) {
                for number in [9, 1] {
                    memory.write(at + 12 + 11, &[number]).expect("mapped");
                    memory.write(at + 12 + 29, &[number]).expect("mapped");
                }
            }
        });
        let (mut delivered, mut rounds) = (0, 0);
        while (delivered < 200 || rounds < 1000) && rounds < 100_000 {
            rounds += 1;
            rig.guests[0].send_parts(&bytes, &[len]);
            rig.breathe();
            for (_, got) in rig.guests[1].received() {
                assert_eq!((&got[6..12], &got[26..30]), (&mac(1)[..], &OWN[..]));
                delivered += 1;
                rig.guests[1].post(1, 1526);
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(delivered >= 200, "honest moments pass: {delivered} of {rounds}");
    });
}

#[test]
fn h41_a_mac_or_a_vlan_that_a_guest_gives_itself_is_nobodys() {
    let mut rig = Rig::new(&[FEATURES; 3]);
    let own_choice = mac(9);
    // What a control queue would set (virtio 1.3 §5.1.6.5): another MAC, a VLAN filter, promiscuous mode. With the tag of
    // 802.1Q the same is tried in `p02_a_vlan_tag_gives_a_port_without_subports_nothing`.
    let tagged = [
        &ping(mac(1), mac(2))[..12],
        &[0x88, 0xa8, 0, 7],
        &ping(mac(1), mac(2))[12..],
    ]
    .concat();
    for (frame, reason) in [
        (
            udp((own_choice, mac(2)), (OWN, VICTIM), (1, 2), b"x"),
            DropReason::SpoofedMac,
        ),
        (tagged, DropReason::VlanTagged),
    ] {
        rig.alive(0, 1);
        rig.send_plain(0, &frame);
        rig.expect(&[sent(1, frame.len()).dropped(reason, 1), got(0, 0), got(0, 0)]);
        {
            let _off = Off::here(Check::SourceGuard);
            rig.send_plain(0, &frame);
        }
        rig.expect(&[sent(1, frame.len()), got(1, frame.len()), got(0, 0)]);
        assert_eq!(
            rig.guests[1].received()[0].1,
            frame,
            "without the guard the attack succeeds"
        );
    }
    // Nobody gets what is for that MAC, and who is not spoken to hears nothing, whatever filter its guest has set.
    let to_it = udp((mac(2), own_choice), (VICTIM, OWN), (1, 2), b"x");
    rig.send_plain(1, &to_it);
    rig.expect(&[
        got(0, 0),
        sent(1, to_it.len()).dropped(DropReason::UnknownDestination, 1),
        got(0, 0),
    ]);
    rig.alive(0, 1);
    assert_eq!(rig.guests[2].received(), []);
}
