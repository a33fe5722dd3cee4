//! Frames of one burst that are of one flow share a lookup: each is judged all the same.

use outboard_firewall::{Direction, EgressDefault, PortSpec, Protocol};
use outboard_vswitch::DropReason;
use vhost_net_dpu::header::NetHeader;

use crate::{
    firewall::{ACK, Filtered, RST, SYN, datagram, group, rule, segment},
    rig::{got, sent},
};

const PORTS: (u16, u16) = (40_000, 80);

fn guests() -> Filtered {
    let open = |protocol| rule(Direction::Ingress, protocol, PortSpec::Range(80, 80));
    let rules = vec![open(Protocol::TCP), open(Protocol::UDP)];
    let groups = vec![group("web", EgressDefault::Deny, rules)];
    Filtered::new(groups, &[None, Some(&["web"])])
}

/// Guest a sends all of these in one burst; what b gets of them.
fn burst(guests: &mut Filtered, frames: &[&[u8]]) -> Vec<Vec<u8>> {
    guests.rig.settle();
    let a = &mut guests.rig.guests[0];
    frames.iter().for_each(|frame| a.queue(NetHeader::default(), frame));
    a.tx.publish();
    guests.rig.breathe();
    let received = guests.rig.guests[1].received();
    guests.rig.guests[1].repost();
    received.into_iter().map(|(_, frame)| frame).collect()
}

fn bytes(frames: &[Vec<u8>]) -> usize {
    frames.iter().map(Vec::len).sum()
}

#[test]
fn a_burst_of_mixed_flows_gets_what_each_frame_alone_would_get() {
    let mut guests = guests();
    let (one, other, bad) = (
        datagram(1, 2, PORTS),
        datagram(1, 2, (7, 80)),
        datagram(1, 2, (40_000, 81)),
    );
    let frames = [&one, &one, &bad, &bad, &one, &other, &other, &one, &bad];
    let received = burst(&mut guests, &frames.map(Vec::as_slice));
    assert_eq!(received, [&one, &one, &one, &other, &other, &one].map(Clone::clone));
    let sent_bytes = frames.iter().map(|frame| frame.len()).sum();
    let missed = got(6, bytes(&received)).dropped(DropReason::IngressNoRule, 3);
    guests.rig.expect(&[sent(9, sent_bytes), missed]);
}

#[test]
fn a_follower_in_the_other_direction_or_protocol_is_none() {
    let mut guests = guests();
    let there = datagram(1, 2, (80, 80));
    assert_eq!(burst(&mut guests, &[&there, &there]).len(), 2);
    // The same ports by TCP: no SYN was seen.
    let tcp = segment((1, 2), (80, 80), ACK, (1, 1));
    let received = burst(&mut guests, &[&there, &tcp, &there]);
    assert_eq!(received, [there.clone(), there.clone()]);
    let sent_bytes = 2 * there.len() + tcp.len();
    let sender = sent(3, sent_bytes).dropped(DropReason::CtInvalid, 1);
    guests.rig.expect(&[sender, got(2, 2 * there.len())]);
}

#[test]
fn each_segment_of_a_run_is_held_against_the_window() {
    let mut guests = guests();
    let answer = |flags, numbers| segment((2, 1), (PORTS.1, PORTS.0), flags, numbers);
    assert_eq!(guests.send(0, &segment((1, 2), PORTS, SYN, (100, 0))), Ok(vec![1]));
    assert_eq!(guests.send(1, &answer(SYN | ACK, (500, 101))), Ok(vec![0]));
    let good = segment((1, 2), PORTS, ACK, (101, 501));
    let beyond = segment((1, 2), PORTS, ACK, (0x7000_0000, 501));
    let reset = segment((1, 2), PORTS, RST, (0x7000_0000, 0));
    let received = burst(&mut guests, &[&good, &good, &beyond, &good, &reset, &good]);
    assert_eq!(received, [&good, &good, &good, &good].map(Clone::clone));
    let sender = sent(6, 6 * good.len()).dropped(DropReason::CtInvalid, 2);
    guests.rig.expect(&[sender, got(4, 4 * good.len())]);
}

#[test]
fn a_reset_in_a_run_ends_the_connection_for_what_follows_it() {
    let mut guests = guests();
    let answer = segment((2, 1), (PORTS.1, PORTS.0), SYN | ACK, (500, 101));
    assert_eq!(guests.send(0, &segment((1, 2), PORTS, SYN, (100, 0))), Ok(vec![1]));
    assert_eq!(guests.send(1, &answer), Ok(vec![0]));
    let good = segment((1, 2), PORTS, ACK, (101, 501));
    let reset = segment((1, 2), PORTS, RST, (101, 0));
    let syn = segment((1, 2), PORTS, SYN, (9_000, 0));
    // After the reset a new connection may begin, in the same burst.
    let received = burst(&mut guests, &[&good, &reset, &syn]);
    assert_eq!(received, [good, reset, syn]);
    let late = segment((1, 2), PORTS, ACK, (102, 501));
    assert!(burst(&mut guests, &[&late, &late]).is_empty());
}
