//! Random packets: a few flows that cross, so that packets meet the state that others left.

use outboard_integration::random::Random;

use super::{
    chance, pick,
    rules::{self, PORTLESS, SERVICES},
    tcp::Conversation,
};
use crate::{
    PORT_COUNT, Step,
    packet::{Body, Packet},
    rules::{Family, Rules},
};

const FLOWS_MAX: usize = 5;
const STEPS_MIN: usize = 20;
const STEPS_MAX: usize = 60;
const CLIENT_PORTS: [u16; 4] = [1024, 40_000, 40_001, 80];

/// What two ports say to one another.
struct Flow {
    /// The one that begins, and the other.
    ends: [usize; 2],
    family: Family,
    talk: Talk,
}

enum Talk {
    Tcp(Conversation),
    Udp { source_port: u16, destination_port: u16 },
    Query { kind: u8, answer: u8, id: u16 },
    Portless { protocol: u8 },
}

pub(super) fn steps(random: &mut Random, rules: &Rules) -> Vec<Step> {
    let mut flows: Vec<Flow> = (0..1 + random.below(FLOWS_MAX)).map(|_| flow(random)).collect();
    let count = STEPS_MIN + random.below(STEPS_MAX - STEPS_MIN);
    let changes = chance(random, 40);
    let mut rules = rules.clone();
    let mut sent: Vec<Packet> = Vec::new();
    let mut steps = Vec::new();
    while steps.len() < count {
        if changes && chance(random, 4) {
            rules = rules::changed(random, &rules);
            steps.push(Step::Change(rules.clone()));
            continue;
        }
        let mut packet = if !sent.is_empty() && chance(random, 7) {
            error(random, &sent)
        } else {
            let flow = random.below(flows.len());
            flows[flow].next(random)
        };
        packet.extension = packet.family == Family::V6 && chance(random, 5);
        if chance(random, 4) && fits_fragments(&packet.body) {
            packet.fragments = pick(random, &[2, 3]);
        }
        sent.push(packet.clone());
        steps.push(Step::Send(packet));
    }
    steps
}

/// A packet by which a connection may begin.
pub(super) fn opening(random: &mut Random) -> Packet {
    loop {
        let packet = flow(random).next(random);
        if packet.opens() {
            return packet;
        }
    }
}

/// Is there something to cut after its headers?
fn fits_fragments(body: &Body) -> bool {
    match body {
        Body::Udp { len, .. } | Body::Icmp { len, .. } | Body::Other { len, .. } => *len >= 200,
        Body::Tcp(_) | Body::Error { .. } => false,
    }
}

fn flow(random: &mut Random) -> Flow {
    let begins = random.below(PORT_COUNT);
    let other = (begins + 1 + random.below(PORT_COUNT - 1)) % PORT_COUNT;
    let family = pick(random, &[Family::V4, Family::V4, Family::V6]);
    let source_port = pick(random, &CLIENT_PORTS);
    let destination_port = pick(random, &SERVICES);
    let talk = match random.below(10) {
        0..=4 => Talk::Tcp(Conversation::new(random, source_port, destination_port)),
        5 | 6 => Talk::Udp {
            source_port,
            destination_port,
        },
        7 | 8 => {
            let (kind, answer) = match family {
                Family::V4 => pick(
                    random,
                    &[(8, 0), (8, 0), (8, 0), (13, 14), (15, 16), (17, 18), (42, 43)],
                ),
                Family::V6 => pick(
                    random,
                    &[(128, 129), (128, 129), (128, 129), (139, 140), (160, 161), (200, 201)],
                ),
            };
            Talk::Query {
                kind,
                answer,
                id: pick(random, &[1, 2]),
            }
        }
        _ => Talk::Portless {
            protocol: pick(random, &PORTLESS),
        },
    };
    Flow {
        ends: [begins, other],
        family,
        talk,
    }
}

impl Flow {
    fn next(&mut self, random: &mut Random) -> Packet {
        let from = random.below(2);
        let len = pick(random, &[0, 8, 100, 600, 1000]);
        let (from, body) = match &mut self.talk {
            Talk::Tcp(conversation) => {
                let (from, tcp) = conversation.next(random);
                (from, Body::Tcp(tcp))
            }
            Talk::Udp {
                source_port,
                destination_port,
            } => {
                let (source_port, destination_port) = match from {
                    0 => (*source_port, *destination_port),
                    _ => (*destination_port, *source_port),
                };
                let body = Body::Udp {
                    source_port,
                    destination_port,
                    len,
                };
                (from, body)
            }
            Talk::Query { kind, answer, id } => {
                // seldom both ask, or the wrong one answers
                let kind = if (from == 0) != chance(random, 8) {
                    *kind
                } else {
                    *answer
                };
                let code = if chance(random, 5) { 1 } else { 0 };
                let id = *id;
                (from, Body::Icmp { kind, code, id, len })
            }
            Talk::Portless { protocol } => {
                let (protocol, len) = (*protocol, len.max(40));
                (from, Body::Other { protocol, len })
            }
        };
        Packet {
            from: self.ends[from],
            to: self.ends[1 - from],
            family: self.family,
            body,
            extension: false,
            fragments: 1,
        }
    }
}

/// An error about a packet that was sent before: as its receiver would send it, or not quite.
fn error(random: &mut Random, sent: &[Packet]) -> Packet {
    let mut about = sent[random.below(sent.len())].clone();
    (about.fragments, about.extension) = (1, false);
    let (mut from, mut to) = (about.to, about.from);
    if chance(random, 20) {
        // by somebody between the two, to either
        from = (0..PORT_COUNT)
            .find(|port| *port != about.to && *port != about.from)
            .unwrap_or(from);
        to = pick(random, &[about.from, about.from, about.to]);
    } else if chance(random, 10) {
        (from, to) = (about.from, about.to);
    }
    if chance(random, 20) {
        tampered(random, &mut about);
    }
    let (kind, code) = match about.family {
        Family::V4 => pick(random, &[(3, 3), (3, 1), (3, 4), (11, 0), (12, 0), (4, 0)]),
        Family::V6 => pick(random, &[(1, 4), (1, 0), (2, 0), (3, 0), (4, 1)]),
    };
    Packet {
        from,
        to,
        family: about.family,
        body: Body::Error {
            kind,
            code,
            about: Box::new(about),
            quoted_len: pick(random, &[8, 8, 28, 500]),
        },
        extension: false,
        fragments: 1,
    }
}

/// Quotes what nobody sent.
fn tampered(random: &mut Random, about: &mut Packet) {
    match &mut about.body {
        Body::Tcp(tcp) => match random.below(3) {
            0 => tcp.source_port ^= 1,
            1 => tcp.destination_port ^= 1,
            _ => tcp.seq = tcp.seq.wrapping_add(0x4000_0000),
        },
        Body::Udp { source_port, .. } => *source_port ^= 1,
        Body::Icmp { id, .. } => *id ^= 4,
        Body::Other { protocol, .. } => *protocol = 253,
        Body::Error { .. } => {}
    }
}
