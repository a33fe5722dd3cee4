//! The frames: Ethernet, IPv4, UDP or TCP, with a sequence number that is worth the same in any checksum.
//!
//! The sequence number is followed by its complement, so that both together add 0 (or 0xffff) to a ones' complement sum:
//! a new number needs no new checksum, and says of itself whether it is one.

use std::net::Ipv4Addr;

use crate::args::{L4, NetArgs};

/// Length of Ethernet and IPv4 headers.
pub const L4_AT: usize = 34;
const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;
/// Length of the frame check sequence, which no ring carries.
pub const FCS_LEN: usize = 4;
/// Source ports of flows begin here.
const SOURCE_PORT_FIRST: u32 = 1024;
const SOURCE_PORT_COUNT: u32 = 65_536 - SOURCE_PORT_FIRST;
/// Destination ports that flows use.
pub const PORT_COUNT: u32 = 1024;
/// Connections that can be told apart by their ports.
pub const CONNECTION_COUNT: u64 = SOURCE_PORT_COUNT as u64 * PORT_COUNT as u64;
/// TCP flags.
pub const TCP_SYN: u8 = 0x02;
/// TCP flags.
pub const TCP_ACK: u8 = 0x10;
/// TCP flags.
pub const TCP_PSH: u8 = 0x08;
const TCP_WINDOW: u16 = 0xffff;

/// One end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Data with this sequence number.
    Data(u32),
    /// Makes a flow known, or a path.
    Prime(u32),
    /// To the port that must be denied.
    Denied(u32),
}

/// How the ports of a flow follow from its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Source ports first, then the destination ports that are allowed.
    Allowed,
    /// Any source and destination port.
    Anywhere,
}

/// Frames of one direction.
#[derive(Debug, Clone, Copy)]
pub struct Frames {
    /// Who sends.
    pub from: Station,
    /// Who receives.
    pub to: Station,
    /// From A to B? Otherwise ports are swapped: these are the answers of the same flows.
    pub forward: bool,
    /// Transport.
    pub l4: L4,
    /// Bytes in the ring.
    pub len: usize,
    /// How many flows.
    pub flows: u32,
    /// Their ports.
    pub spread: Spread,
    port: u16,
    deny_port: u16,
}

impl Frames {
    /// Frames from A to B, and from B to A.
    pub fn pair(args: &NetArgs) -> [Self; 2] {
        let a = Station {
            mac: args.mac_a.0,
            ip: args.ip_a,
        };
        let b = Station {
            mac: args.mac_b.0,
            ip: args.ip_b,
        };
        let forward = Self {
            from: a,
            to: b,
            forward: true,
            l4: args.l4,
            len: usize::from(args.frame).saturating_sub(FCS_LEN),
            flows: args.flows,
            spread: Spread::Allowed,
            port: args.port,
            deny_port: args.deny_port,
        };
        [
            forward,
            Self {
                from: b,
                to: a,
                forward: false,
                ..forward
            },
        ]
    }

    /// The same of so many other flows.
    #[must_use]
    pub fn of_flows(self, flows: u32, spread: Spread) -> Self {
        Self { flows, spread, ..self }
    }

    /// The smallest that hold a sequence number.
    pub fn len_min(l4: L4) -> usize {
        word_at(l4) + 8
    }

    /// Where the sequence number is.
    pub fn word_at(&self) -> usize {
        word_at(self.l4)
    }

    /// Where the checksum of the transport is, in its header.
    pub fn checksum_at(&self) -> usize {
        match self.l4 {
            L4::Udp => L4_AT + 6,
            L4::Tcp => L4_AT + 16,
        }
    }

    /// The flow of a sequence number: any, as long as both ends agree.
    #[inline(always)]
    pub fn flow_of(&self, sequence: u32) -> u32 {
        if self.flows == 1 {
            return 0;
        }
        let mut hash = sequence.wrapping_mul(0x9e37_79b1);
        hash ^= hash >> 15;
        hash = hash.wrapping_mul(0x85eb_ca77);
        hash ^= hash >> 13;
        // Less than `flows`.
        u32::try_from((u64::from(hash) * u64::from(self.flows)) >> 32).unwrap_or(0)
    }

    /// Source and destination port of a flow, as they are in frames of this direction.
    #[inline(always)]
    pub fn ports(&self, flow: u32) -> (u16, u16) {
        if self.spread == Spread::Anywhere {
            return (low16(flow >> 16), low16(flow));
        }
        let initiator = SOURCE_PORT_FIRST + flow % SOURCE_PORT_COUNT;
        let responder = u32::from(self.port) + flow / SOURCE_PORT_COUNT % PORT_COUNT;
        let [initiator, responder] = [initiator, responder].map(low16);
        if self.forward {
            (initiator, responder)
        } else {
            (responder, initiator)
        }
    }

    /// The flow that `ports`, as in a frame of this direction, belong to, as far as ports tell.
    pub fn flow_of_ports(&self, (source, destination): (u16, u16)) -> Option<u32> {
        let (initiator, responder) = if self.forward {
            (source, destination)
        } else {
            (destination, source)
        };
        let initiator = u32::from(initiator).checked_sub(SOURCE_PORT_FIRST)?;
        let responder = responder.checked_sub(self.port)?;
        Some(u32::from(responder) * SOURCE_PORT_COUNT + initiator)
    }

    /// The port that frames to be denied go to.
    pub fn deny_port(&self) -> u16 {
        self.deny_port
    }

    /// A frame as a whole: a function of nothing else, so that the receiver knows each byte.
    pub fn build(&self, kind: Kind, frame: &mut Vec<u8>) {
        let (seed, flow, word) = match kind {
            Kind::Data(n) => (n, self.flow_of(n), word(n)),
            Kind::Prime(n) => (n, n, mark(n)),
            Kind::Denied(n) => (!n, self.flow_of(n), mark(n)),
        };
        let (source, mut destination) = self.ports(flow);
        if matches!(kind, Kind::Denied(_)) {
            destination = self.deny_port;
        }
        let at = self.word_at();
        frame.clear();
        frame.resize(at, 0);
        frame.extend(word.to_be_bytes());
        fill(frame, self.len.max(at + 8), seed);
        self.headers(frame, source, destination);
        if self.l4 == L4::Tcp {
            tcp_header(frame, 1, 1, TCP_PSH | TCP_ACK);
        }
        finish_l4(frame);
    }

    /// The frame of a flow to another address and port than those of the receiver.
    pub fn build_to(&self, (ip, port): (Ipv4Addr, u16), flow: u32, frame: &mut Vec<u8>) {
        let mut other = *self;
        other.to.ip = ip;
        other.build(Kind::Prime(flow), frame);
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        finish_l4(frame);
    }

    /// Ethernet, IPv4 and ports; the transport's length and type.
    fn headers(&self, frame: &mut [u8], source: u16, destination: u16) {
        let ip_len = u16::try_from(frame.len() - 14).unwrap_or(u16::MAX);
        let protocol = match self.l4 {
            L4::Udp => 17,
            L4::Tcp => 6,
        };
        frame[..6].copy_from_slice(&self.to.mac);
        frame[6..12].copy_from_slice(&self.from.mac);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[14..34].copy_from_slice(&ipv4_header(ip_len, protocol, self.from.ip, self.to.ip));
        frame[34..36].copy_from_slice(&source.to_be_bytes());
        frame[36..38].copy_from_slice(&destination.to_be_bytes());
        if self.l4 == L4::Udp {
            frame[38..40].copy_from_slice(&(ip_len - 20).to_be_bytes());
        }
    }

    /// A TCP segment without payload, or a datagram with `sequence` in it, of a connection that may be new.
    pub fn build_connection(&self, flow: u32, (sequence, acknowledged, flags): (u32, u32, u8), frame: &mut Vec<u8>) {
        let (source, destination) = self.ports(flow);
        frame.clear();
        match self.l4 {
            L4::Udp => {
                frame.resize(L4_AT + UDP_LEN, 0);
                frame.extend(word(sequence).to_be_bytes());
                frame.push(flags);
                // What pads a frame to the least on Ethernet is the datagram's own.
                frame.resize(self.len.max(frame.len()), 0);
                self.headers(frame, source, destination);
                finish_l4(frame);
            }
            L4::Tcp => {
                frame.resize(L4_AT + TCP_LEN, 0);
                self.headers(frame, source, destination);
                tcp_header(frame, sequence, acknowledged, flags);
                finish_l4(frame);
                frame.resize(60, 0);
            }
        }
    }

    /// What a receiver sees of [`Frames::build_connection`]: sequence, acknowledged, flags.
    pub fn parse_connection(&self, frame: &[u8]) -> Option<(u32, (u32, u32, u8))> {
        let wanted = match self.l4 {
            L4::Udp => 17,
            L4::Tcp => 6,
        };
        if frame.len() < L4_AT + UDP_LEN + 9 || frame[12..14] != [0x08, 0x00] || frame[23] != wanted {
            return None;
        }
        let word32 = |at: usize| {
            frame
                .get(at..at + 4)
                .and_then(|b| b.try_into().ok())
                .map(u32::from_be_bytes)
        };
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let flow = self.flow_of_ports((port(34), port(36)))?;
        match self.l4 {
            L4::Udp => {
                let (n, complement) = (word32(42)?, word32(46)?);
                (n == !complement).then_some((flow, (n, 0, frame[50])))
            }
            L4::Tcp => Some((flow, (word32(38)?, word32(42)?, *frame.get(47)?))),
        }
    }
}

/// Where a sequence number is: at a multiple of 8 of a frame that begins where a cache line does.
fn word_at(l4: L4) -> usize {
    match l4 {
        L4::Udp => 48,
        L4::Tcp => 56,
    }
}

/// A sequence number and its complement.
#[inline(always)]
pub fn word(sequence: u32) -> u64 {
    u64::from(sequence) << 32 | u64::from(!sequence)
}

/// The sequence number in a word, if it is one.
#[inline(always)]
pub fn sequence(word: u64) -> Option<u32> {
    let [high, low] = halves(word);
    (high == !low).then_some(high)
}

/// A number that is no sequence number.
fn mark(n: u32) -> u64 {
    u64::from(n) << 32 | u64::from(n)
}

/// The number of a frame that bears no sequence number.
pub fn marked(word: u64) -> Option<u32> {
    let [high, low] = halves(word);
    (high == low).then_some(high)
}

#[inline(always)]
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

#[inline(always)]
fn low16(value: u32) -> u16 {
    let [_, _, high, low] = value.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// Pads with bytes that depend on `seed` (xorshift32, Marsaglia 2003).
fn fill(frame: &mut Vec<u8>, len: usize, seed: u32) {
    let mut state = seed ^ 0x6d2b_79f5;
    if state == 0 {
        state = 1;
    }
    while frame.len() < len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let take = (len - frame.len()).min(4);
        frame.extend_from_slice(&state.to_ne_bytes()[..take]);
    }
}

/// An IPv4 header without options (RFC 791), checksummed.
pub fn ipv4_header(len: u16, protocol: u8, from: Ipv4Addr, to: Ipv4Addr) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&len.to_be_bytes());
    // Don't fragment: the identification may then be 0 (RFC 6864).
    header[6] = 0x40;
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let checksum = finish(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// Sequence numbers, flags and window of a TCP header without options.
pub fn tcp_header(frame: &mut [u8], sequence: u32, acknowledged: u32, flags: u8) {
    frame[38..42].copy_from_slice(&sequence.to_be_bytes());
    frame[42..46].copy_from_slice(&acknowledged.to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, flags]);
    frame[48..50].copy_from_slice(&TCP_WINDOW.to_be_bytes());
}

/// Ones' complement sum of the pseudo header (RFC 768, RFC 9293 §3.1) of the frame's datagram.
pub fn pseudo_sum(frame: &[u8]) -> u32 {
    let l4_len = u32::try_from(frame.len() - L4_AT).unwrap_or(0);
    // At most 64 KiB: no overflow of 32 bits.
    sum(&frame[26..34]) + u32::from(frame[23]) + (l4_len & 0xffff) + (l4_len >> 16)
}

/// Puts the transport's checksum in.
fn finish_l4(frame: &mut [u8]) {
    let at = if frame[23] == 17 { L4_AT + 6 } else { L4_AT + 16 };
    frame[at..at + 2].fill(0);
    let checksum = l4_checksum(frame[23], pseudo_sum(frame) + sum(&frame[L4_AT..]));
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// A checksum from a sum; UDP has no checksum of 0 (RFC 768).
#[inline(always)]
pub fn l4_checksum(protocol: u8, sum: u32) -> u16 {
    match finish(sum) {
        0 if protocol == 17 => 0xffff,
        checksum => checksum,
    }
}

/// Ones' complement sum of big-endian words (RFC 1071), not folded. For at most 64 KiB.
pub fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2);
    let last = words.remainder().first().map_or(0, |byte| u32::from(*byte) << 8);
    words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum::<u32>()
        + last
}

#[inline(always)]
fn finish(sum: u32) -> u16 {
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !low16(folded)
}

/// A broadcast that says where an address is (RFC 5227 §1.1, announcement).
pub fn announcement(station: Station) -> Vec<u8> {
    arp([0xff; 6], 1, station, ([0; 6], station.ip))
}

/// The answer to an ARP request for `station`'s address, if that is what `frame` is (RFC 826).
pub fn arp_answer(frame: &[u8], station: Station) -> Option<Vec<u8>> {
    let request = frame.get(12..42)?;
    if request[..10] != [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1] || request[26..30] != station.ip.octets() {
        return None;
    }
    let mac: [u8; 6] = request[10..16].try_into().ok()?;
    let ip: [u8; 4] = request[16..20].try_into().ok()?;
    // Its own announcement is no question.
    (ip != station.ip.octets()).then(|| arp(mac, 2, station, (mac, ip.into())))
}

fn arp(to: [u8; 6], operation: u8, from: Station, target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut frame = [&to[..], &from.mac, &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]].concat();
    frame.extend([&from.mac[..], &from.ip.octets(), &target.0, &target.1.octets()].concat());
    frame.resize(60, 0);
    frame
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
