//! TCP conversations: mostly what two stacks would say, sometimes what an attacker or a broken stack would.

use outboard_integration::random::Random;

use super::{chance, pick};
use crate::packet::{Tcp, flag};

/// Of a hundred segments, about this many are not what a stack would say.
const STRANGE_PERCENT: usize = 10;

/// One end.
#[derive(Debug, Clone, Copy)]
struct End {
    port: u16,
    /// Next sequence number.
    next: u32,
    /// Its SYN was sent.
    opened: bool,
    /// Its FIN was sent.
    closed: bool,
    /// Whatever the other end said up to here, it has seen.
    seen: u32,
    window: u16,
    scale: Option<u8>,
    sack: bool,
}

/// Two ends and what they said.
#[derive(Debug)]
pub(super) struct Conversation {
    /// The one that opens first.
    ends: [End; 2],
    said: Vec<(usize, Tcp)>,
    /// One end has ended it at once.
    reset: bool,
}

impl Conversation {
    pub(super) fn new(random: &mut Random, source_port: u16, destination_port: u16) -> Self {
        let mut end = |port| End {
            port,
            // often soon to wrap
            next: pick(random, &[1000, u32::MAX - 700, 0x7fff_fc00, 5_000_000]),
            opened: false,
            closed: false,
            seen: 0,
            window: pick(random, &[65_535, 29_200, 1000, 8]),
            scale: pick(random, &[None, None, Some(0), Some(7), Some(14)]),
            sack: chance(random, 40),
        };
        Self {
            ends: [end(source_port), end(destination_port)],
            said: Vec::new(),
            reset: false,
        }
    }

    /// What comes next, and from which end.
    pub(super) fn next(&mut self, random: &mut Random) -> (usize, Tcp) {
        let (from, mut segment) = if !self.said.is_empty() && chance(random, 7) {
            self.said[random.below(self.said.len())]
        } else {
            self.proper(random)
        };
        if chance(random, STRANGE_PERCENT) {
            strange(random, &mut segment);
        }
        self.said.push((from, segment));
        (from, segment)
    }

    /// What a stack would say.
    fn proper(&mut self, random: &mut Random) -> (usize, Tcp) {
        let over = self.ends.iter().all(|end| end.opened && end.closed);
        if self.reset || over && chance(random, 50) {
            self.reset = false;
            // The same ports again.
            for end in &mut self.ends {
                (end.opened, end.closed) = (false, false);
                end.next = end.next.wrapping_add(pick(random, &[1, 100_000, 0x4000_0000]));
            }
        }
        let from = match (self.ends[0].opened, self.ends[1].opened) {
            // rarely both at once
            (false, _) => usize::from(chance(random, 3)),
            (true, false) => usize::from(!chance(random, 10)),
            (true, true) => random.below(2),
        };
        let answered = self.ends[1 - from].opened;
        let heard = self.ends[1 - from].next;
        let end = &mut self.ends[from];
        if answered && !chance(random, 10) {
            end.seen = heard;
        }
        let mut segment = Tcp {
            source_port: end.port,
            destination_port: 0,
            flags: if answered { flag::ACK } else { 0 },
            seq: end.next,
            ack: if answered { end.seen } else { 0 },
            window: end.window,
            window_scale: None,
            sack_permitted: false,
            sack: None,
            len: 0,
        };
        if !end.opened {
            segment.flags |= flag::SYN;
            (segment.window_scale, segment.sack_permitted) = (end.scale, end.sack);
            end.opened = true;
            end.next = end.next.wrapping_add(1);
        } else if answered {
            match random.below(20) {
                0 => {
                    segment.flags |= flag::RST;
                    self.reset = true;
                }
                1 | 2 => {
                    segment.flags |= flag::FIN;
                    if !end.closed {
                        end.next = end.next.wrapping_add(1);
                    }
                    end.closed = true;
                }
                3..=9 => {}
                10 => {
                    segment.sack = end
                        .sack
                        .then(|| (end.seen.wrapping_add(100), end.seen.wrapping_add(200)))
                }
                _ => {
                    segment.flags |= flag::PSH;
                    segment.len = pick(random, &[1, 100, 600]);
                    end.next = end.next.wrapping_add(segment.len.into());
                }
            }
        } else {
            // The SYN once more, or, as few would, data before an answer.
            segment.seq = end.next.wrapping_sub(1);
            segment.flags |= flag::SYN;
            (segment.window_scale, segment.sack_permitted) = (end.scale, end.sack);
        }
        segment.destination_port = self.ends[1 - from].port;
        (from, segment)
    }
}

/// Makes a segment one that no honest stack would send.
fn strange(random: &mut Random, segment: &mut Tcp) {
    const AWAY: [u32; 12] = [
        1,
        u32::MAX,
        10,
        1000,
        u32::MAX - 1000,
        66_000,
        70_000,
        200_000,
        u32::MAX - 66_000,
        u32::MAX - 200_000,
        0x4000_0000,
        0x8000_0000,
    ];
    match random.below(6) {
        0 | 1 => segment.seq = segment.seq.wrapping_add(pick(random, &AWAY)),
        2 => segment.ack = segment.ack.wrapping_add(pick(random, &AWAY)),
        3 => segment.flags = pick(random, &ODD_FLAGS),
        4 => segment.window = pick(random, &[0, 1, 65_535]),
        _ => {
            segment.flags = pick(random, &[flag::RST, flag::RST | flag::ACK]);
            segment.seq = segment.seq.wrapping_add(pick(random, &AWAY));
        }
    }
}

const ODD_FLAGS: [u8; 12] = [
    0,
    flag::SYN,
    flag::SYN | flag::ACK,
    flag::ACK,
    flag::FIN | flag::ACK,
    flag::RST,
    flag::RST | flag::ACK,
    flag::SYN | flag::FIN,
    flag::SYN | flag::RST,
    flag::FIN,
    flag::URG | flag::ACK,
    flag::FIN | flag::PSH | flag::URG,
];
