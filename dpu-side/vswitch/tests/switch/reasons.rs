//! Every reason is documented, and can be brought about.

use std::{collections::HashSet, sync::Arc};

use crate::FEATURES;
use outboard_conntrack::{Config, Table};
use outboard_firewall::{Action, Direction, EgressDefault, Group, Policy, Rule};
use outboard_vswitch::{DropReason, PortPolicy, Trace, TrunkPolicy};
use vhost_net_dpu::header::NetHeader;

use crate::{
    firewall::{compile, datagram, group, v4_packet},
    frames::{BROADCAST, arp, icmpv6, ipv6, neighbour, ping, tcp, udp, udp6, v6},
    rig::{RX_QUEUE, Rig, mac, policy},
};

const OWN: [u8; 4] = [10, 0, 0, 1];
const OTHER: [u8; 4] = [10, 0, 0, 2];

#[test]
fn each_has_a_stable_name_and_a_sentence() {
    let mut names = HashSet::new();
    for (place, reason) in DropReason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, place);
        let name = reason.name();
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{name}"
        );
        assert!(names.insert(name), "{name} is taken");
        assert!(
            reason.describe().ends_with('.') && reason.describe().len() > 20,
            "{name}"
        );
    }
    assert_eq!(names.len(), DropReason::COUNT);
}

/// Gives the first two ports these groups, or none.
fn filter(rig: &mut Rig, from: Option<Vec<Arc<Group>>>, to: Option<Vec<Arc<Group>>>) {
    let ports = [policy("a", 1), policy("b", 2)];
    let all = [from.clone().unwrap_or_default(), to.clone().unwrap_or_default()].concat();
    let of = |groups: &Option<Vec<Arc<Group>>>| {
        groups
            .as_ref()
            .map(|groups| if groups.is_empty() { &[][..] } else { &["g"][..] })
    };
    let compiled = compile(&Policy::default(), all, &[(&ports[0], of(&from)), (&ports[1], of(&to))]);
    rig.switch.set_policy(ports.to_vec(), compiled);
}

/// A group "g" with one rule, about everything.
fn groups(direction: Direction, action: Action) -> Vec<Arc<Group>> {
    let rule = Rule {
        action,
        ..Rule::allow(direction)
    };
    vec![group("g", EgressDefault::Allow, vec![rule])]
}

fn tagged(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat()
}

/// Port b as a subport.
fn subport(parent: &str, vlan: u16) -> PortPolicy {
    let parent = parent.into();
    PortPolicy {
        trunk: Some(TrunkPolicy { parent, vlan }),
        ..policy("b", 2)
    }
}

/// Guest a (or the switch's user) does what `reason` is for; the frame is for guest b. What a trace says of the frame, if
/// the frame alone is the matter.
fn provoke(rig: &mut Rig, reason: DropReason) -> Option<Trace> {
    let macs = (mac(1), mac(2));
    let good = ping(mac(1), mac(2));
    let own6 = v6(mac(1));
    let nd = |hop_limit: u8, body: &[u8]| icmpv6(macs, (own6, v6(mac(2))), hop_limit, body);
    let from = |source: [u8; 6], destination: [u8; 6]| udp((source, destination), (OWN, OTHER), (1, 2), b"x");
    let altered = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let frame = match reason {
        DropReason::MalformedChain => {
            rig.guests[0].send_parts(&[0; 5], &[5]);
            rig.breathe();
            return None;
        }
        DropReason::Runt => vec![0; 13],
        DropReason::Oversize => vec![0; 65_551],
        DropReason::OverMtu => from(mac(1), mac(2)).into_iter().chain([0; 1500]).collect(),
        DropReason::BadOffload => {
            rig.send(
                0,
                NetHeader {
                    flags: 1,
                    ..NetHeader::default()
                },
                &good,
            );
            return None;
        }
        DropReason::HeadersTooLong => {
            let options = [&[17, 31, 1, 4][..], &[0; 252], &[0, 1, 0, 2, 0, 8, 0, 0]].concat();
            ipv6(macs, (own6, own6), 60, 64, &options)
        }
        DropReason::MalformedIpv4 => altered(14, 0x55),
        DropReason::MalformedIpv6 => altered(12, 0x86)
            .into_iter()
            .enumerate()
            .map(|(n, b)| if n == 13 { 0xdd } else { b })
            .collect(),
        DropReason::SpoofedMac => from(mac(7), mac(2)),
        DropReason::VlanTagged => tagged(&good, 1),
        DropReason::UnknownVlan => {
            let sub = subport("a", 7);
            rig.switch.set_ports(vec![policy("a", 1), sub]);
            tagged(&good, 8)
        }
        DropReason::PriorityTagged => tagged(&good, 0),
        DropReason::SubportShut => {
            // It counts at the subport, which is the first one here.
            rig.switch.set_ports(vec![subport("a", 7), policy("a", 1)]);
            rig.switch.shut("b");
            tagged(&good, 7)
        }
        DropReason::UnknownEthertype => altered(12, 0x99),
        DropReason::MalformedArp => arp(9, mac(1), (mac(1), OWN), (mac(2), OTHER)),
        DropReason::SpoofedArp => arp(1, mac(1), (mac(1), OTHER), (mac(2), OTHER)),
        DropReason::SpoofedIpv4 => udp(macs, (OTHER, OTHER), (1, 2), b"x"),
        DropReason::DhcpWithoutServer => udp((mac(1), BROADCAST), ([0; 4], [255; 4]), (68, 67), b"x"),
        DropReason::RogueDhcp => udp(macs, (OWN, OTHER), (67, 68), b"x"),
        DropReason::SpoofedIpv6 => udp6(macs, (v6(mac(2)), v6(mac(2))), (1, 2), b"x"),
        DropReason::MalformedNd => nd(64, &neighbour(136, own6, &[])),
        DropReason::SpoofedNd => nd(255, &neighbour(136, v6(mac(2)), &[])),
        DropReason::RouterMessage => nd(255, &[134, 0, 0, 0, 0, 0, 0, 0]),
        DropReason::SourceRouted => ipv6(macs, (own6, v6(mac(2))), 43, 64, &[59, 0, 3, 0, 0, 0, 0, 0]),
        DropReason::ReservedMulticast => from(mac(1), [0x01, 0x80, 0xc2, 0, 0, 0]),
        DropReason::ToItself => from(mac(1), mac(1)),
        DropReason::NoReceiver => {
            rig.switch.set_ports(vec![
                policy("a", 1),
                PortPolicy {
                    network: "red".into(),
                    ..policy("b", 2)
                },
            ]);
            from(mac(1), BROADCAST)
        }
        DropReason::UnknownDestination => from(mac(1), mac(7)),
        DropReason::TxMemoryGone => {
            let guest = &mut rig.guests[0];
            let far = (64 << 20) - 4096;
            guest
                .tx
                .add(&[(outboard_ring::driver::RAM_START + far, 100)], &[])
                .expect("there is room");
            guest.tx.publish();
            guest.ram.file().set_len(far).expect("ftruncate");
            rig.breathe();
            return None;
        }
        DropReason::CtInvalid => {
            filter(rig, None, Some(groups(Direction::Ingress, Action::Allow)));
            tcp(false, mac(1), mac(2), b"no handshake")
        }
        DropReason::EgressNoRule | DropReason::IngressNoRule => {
            let ends = [Some(vec![]), None];
            let [from, to] = if reason.at_receiver() {
                [None, Some(vec![])]
            } else {
                ends
            };
            filter(rig, from, to);
            good
        }
        DropReason::EgressDenied | DropReason::EgressRejected => {
            let action = if reason == DropReason::EgressDenied {
                Action::Deny
            } else {
                Action::Reject
            };
            filter(rig, Some(groups(Direction::Egress, action)), None);
            good
        }
        DropReason::IngressDenied | DropReason::IngressRejected => {
            let action = if reason == DropReason::IngressDenied {
                Action::Deny
            } else {
                Action::Reject
            };
            filter(rig, None, Some(groups(Direction::Ingress, action)));
            good
        }
        DropReason::FragmentWithoutFirst => {
            filter(rig, None, Some(groups(Direction::Ingress, Action::Allow)));
            v4_packet(1, 2, 17, 3, 1, &[0; 8])
        }
        DropReason::ConnectionBudget | DropReason::ConnectionTableFull => {
            let next = datagram(1, 2, (7, 8));
            if reason == DropReason::ConnectionTableFull {
                // What is in the table besides its own is not for a trace to tell.
                rig.send_plain(0, &next);
                return None;
            }
            next
        }
        DropReason::PortShut => {
            rig.switch.shut("b");
            good
        }
        DropReason::RxNotRunning => {
            rig.switch.stop_queue("b", RX_QUEUE);
            good
        }
        DropReason::RxFull => good,
        DropReason::RxBufferTooSmall => {
            rig.guests[1].post(70, 13);
            udp(macs, (OWN, OTHER), (1, 2), &[0; 1000])
        }
        DropReason::RxOverMtu => {
            rig.guests[1].post(1, 1526);
            rig.switch.set_mtu("b", Some(576)).expect("b is declared");
            from(mac(1), mac(2)).into_iter().chain([0; 600]).collect()
        }
        DropReason::RxBroken => {
            rig.guests[1].post(1, 3);
            good
        }
        // Where there are several workers: see `workers`.
        DropReason::TxPortShut | DropReason::RxWorkerBusy => unreachable!("not of one worker"),
    };
    let trace = rig.switch.trace("a", &frame);
    rig.send_plain(0, &frame);
    trace
}

/// What `reason` needs beforehand: a table with room for one connection, or ports with a share of one, and that is in use.
fn prepare(rig: &mut Rig, reason: DropReason) {
    let (entries, capacity) = match reason {
        DropReason::ConnectionBudget => (64, 2),
        DropReason::ConnectionTableFull => (1, 64),
        _ => return,
    };
    filter(rig, None, Some(groups(Direction::Ingress, Action::Allow)));
    let config = Config {
        entries,
        ports: 2,
        ..Config::default()
    };
    rig.switch.set_connections(Arc::new(Table::new(&config)), capacity);
    rig.guests.iter_mut().for_each(|guest| guest.post(4, 1526));
    rig.send_plain(0, &datagram(1, 2, (5, 6)));
    rig.send_plain(1, &datagram(2, 1, (6, 5)));
}

#[test]
fn each_can_be_brought_about_and_is_counted_where_it_says() {
    let of_several_workers = [DropReason::TxPortShut, DropReason::RxWorkerBusy];
    let reasons = DropReason::ALL.into_iter();
    for reason in reasons.filter(|reason| !of_several_workers.contains(reason)) {
        let mut rig = Rig::without_buffers(&[FEATURES; 2]);
        prepare(&mut rig, reason);
        let before = rig.switch.counters();
        let trace = provoke(&mut rig, reason);
        let counters = rig.switch.counters();
        let expected = |at: bool| if at { vec![(reason, 1)] } else { vec![] };
        let dropped: Vec<Vec<_>> = counters.iter().map(|port| port.dropped().collect()).collect();
        assert_eq!(
            dropped,
            [expected(!reason.at_receiver()), expected(reason.at_receiver())],
            "{}",
            reason.name()
        );
        assert_eq!(
            (counters[0].tx_frames, counters[1].rx_frames),
            (before[0].tx_frames + 1, before[1].rx_frames),
            "{}",
            reason.name()
        );
        // A dry run knows nothing of the receiver's buffers: without any it would have taken the frame.
        let buffers = [DropReason::RxFull, DropReason::RxBufferTooSmall, DropReason::RxBroken];
        if let Some(trace) = trace.filter(|_| !buffers.contains(&reason)) {
            let ends: Vec<_> = trace.ends.iter().map(|end| end.dropped).collect();
            assert_eq!(ends, [Some(reason)], "{}", reason.name());
        }
    }
}
