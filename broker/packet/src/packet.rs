//! The packet that an expression describes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use outboard_protocol::id::MacAddr;

use crate::{
    error::ExpressionError,
    lexer::{Word, Words},
};

/// TTL or hop limit where none is given: Linux' default.
const TTL_DEFAULT: u8 = 64;
/// Most payload: with all headers the frame fits a message to the card.
const LEN_MAX: u16 = 16_000;
/// Letters of the TCP flags, from the lowest bit on (RFC 9293 §3.1).
const TCP_FLAGS: [(char, u8); 8] = [
    ('F', 0x01),
    ('S', 0x02),
    ('R', 0x04),
    ('P', 0x08),
    ('A', 0x10),
    ('U', 0x20),
    ('E', 0x40),
    ('C', 0x80),
];

/// A packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its Ethernet header, as far as it was given.
    pub link: Link,
    /// What is in it.
    pub payload: Payload,
}

/// An Ethernet header, as far as it was given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    /// Source MAC; of the port, unless given.
    pub source: Option<MacAddr>,
    /// Destination MAC; of whoever has the destination address, unless given.
    pub destination: Option<MacAddr>,
    /// VLAN of an 802.1Q tag.
    pub vlan: Option<u16>,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// ARP for IPv4.
    Arp(Arp),
    /// IPv4 or IPv6, by the addresses, which are of one family.
    Ip {
        /// Where it comes from.
        source: IpAddr,
        /// Where it goes.
        destination: IpAddr,
        /// TTL or hop limit.
        ttl: u8,
        /// Bytes behind the transport header.
        len: u16,
        /// It is a fragment.
        fragment: Option<FragmentKind>,
        /// What is in it.
        transport: Transport,
    },
}

/// An ARP message (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// A reply, and not a request.
    pub reply: bool,
    /// Sender's address.
    pub sender: Ipv4Addr,
    /// Target's address.
    pub target: Ipv4Addr,
}

/// Which fragment of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FragmentKind {
    /// The first, with the transport header.
    First,
    /// A later one, without.
    Later,
}

/// A transport header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP: source and destination port.
    Udp(u16, u16),
    /// ICMP or ICMPv6, by the addresses.
    Icmp(Icmp),
    /// Another protocol, by number, without any header.
    Other(u8),
}

/// A TCP header (RFC 9293 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Control bits.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window.
    pub window: u16,
}

/// An ICMP or ICMPv6 message: type, code and the first word, as echo messages have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier.
    pub id: u16,
    /// Sequence number.
    pub seq: u16,
}

impl FromStr for Packet {
    type Err = ExpressionError;
    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let mut words = Words::of(text, &['>'])?;
        let kinds = "a protocol: tcp, udp, icmp, icmp6, arp or ip";
        let first = words.expect(kinds)?;
        let mut packet = match first.text {
            "arp" => arp(&mut words)?,
            "tcp" | "udp" | "icmp" | "icmp6" | "ip" => ip(first, &mut words)?,
            _ => return Err(first.error(format!("a packet begins with {kinds}"))),
        };
        while let Some(word) = words.next() {
            packet.option(word, &mut words)?;
        }
        Ok(packet)
    }
}

fn arp(words: &mut Words<'_>) -> Result<Packet, ExpressionError> {
    let reply = words.take("reply").is_some();
    if !reply {
        words.take("request");
    }
    let what = "an IPv4 address";
    let sender = words.expect(what)?.parse("IPv4 address, such as 10.0.0.1")?;
    arrow(words)?;
    let target = words.expect(what)?.parse("IPv4 address, such as 10.0.0.1")?;
    Ok(Packet {
        link: Link::default(),
        payload: Payload::Arp(Arp { reply, sender, target }),
    })
}

fn ip(kind: Word<'_>, words: &mut Words<'_>) -> Result<Packet, ExpressionError> {
    let ports = matches!(kind.text, "tcp" | "udp");
    let source_word = words.expect("the source")?;
    let (source, source_port) = end(source_word, ports)?;
    arrow(words)?;
    let destination_word = words.expect("the destination")?;
    let (destination, destination_port) = end(destination_word, ports)?;
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(destination_word.error("source and destination are of different families"));
    }
    if (kind.text == "icmp" && source.is_ipv6()) || (kind.text == "icmp6" && source.is_ipv4()) {
        return Err(source_word.error("icmp is for IPv4, icmp6 for IPv6"));
    }
    let both = (source_port, destination_port);
    let transport = match kind.text {
        "tcp" => Transport::Tcp(Tcp {
            ports: both,
            flags: 0x02,
            seq: 0,
            ack: 0,
            window: 65_535,
        }),
        "udp" => Transport::Udp(both.0, both.1),
        "ip" => Transport::Other(253),
        // Echo requests (RFC 792, RFC 4443 §4.1).
        icmp => Transport::Icmp(Icmp {
            kind: if icmp == "icmp" { 8 } else { 128 },
            code: 0,
            id: 1,
            seq: 1,
        }),
    };
    let payload = Payload::Ip {
        source,
        destination,
        ttl: TTL_DEFAULT,
        len: 0,
        fragment: None,
        transport,
    };
    Ok(Packet {
        link: Link::default(),
        payload,
    })
}

fn arrow(words: &mut Words<'_>) -> Result<(), ExpressionError> {
    let word = words.expect("'>' and the destination")?;
    match word.text {
        ">" => Ok(()),
        _ => Err(word.error("here '>' and the destination are expected")),
    }
}

/// An address and, if it may have one, a port; 0 if it has none.
fn end(word: Word<'_>, port_allowed: bool) -> Result<(IpAddr, u16), ExpressionError> {
    let text = word.text;
    let all = 0..text.len();
    let (address, port) = if let Some(inner) = text.strip_prefix('[') {
        let close = inner
            .find(']')
            .ok_or_else(|| word.error("the bracket is not closed; write [fd00::1]:80"))?;
        let rest = word.part(close + 2..text.len());
        let port = match rest.text.strip_prefix(':') {
            Some(_) => Some(rest.part(1..rest.text.len())),
            None if rest.text.is_empty() => None,
            None => return Err(rest.error("behind the bracket only ':' and a port may follow")),
        };
        (word.part(1..close + 1), port)
    } else {
        match (text.find(':'), text.rfind(':')) {
            // One colon: what is before it is IPv4.
            (Some(colon), Some(last)) if colon == last => (word.part(0..colon), Some(word.part(colon + 1..text.len()))),
            _ => (word.part(all), None),
        }
    };
    let ip: IpAddr = address.parse("IP address, such as 10.0.0.1 or [fd00::1]")?;
    match port {
        Some(port) if !port_allowed => Err(port.error("only tcp and udp have ports")),
        Some(port) => Ok((ip, port.parse("port: a number from 0 to 65535")?)),
        None => Ok((ip, 0)),
    }
}

/// Names an option of [`Packet::option`] by what has it, for messages.
const OPTIONS: &str = "flags, seq, ack, window (tcp), type, code, id, seq (icmp, icmp6), protocol (ip), ttl, len, \
                       fragment, from, to or vlan";

impl Packet {
    /// Takes the option that `word` begins.
    fn option(&mut self, word: Word<'_>, words: &mut Words<'_>) -> Result<(), ExpressionError> {
        let mut value = |what: &str| words.expect(format!("a value for '{}', {what},", word.text));
        match (word.text, &mut self.payload) {
            ("from", _) => self.link.source = Some(value("a MAC")?.parse("MAC address, such as 52:54:00:00:00:01")?),
            ("to", _) => self.link.destination = Some(value("a MAC")?.parse("MAC address, such as 52:54:00:00:00:01")?),
            ("vlan", _) => {
                let value = value("a VLAN")?;
                let vlan: u16 = value.parse("VLAN: a number from 0 to 4095")?;
                if vlan > 4095 {
                    return Err(value.error("this is no VLAN: a number from 0 to 4095"));
                }
                self.link.vlan = Some(vlan);
            }
            ("ttl", Payload::Ip { ttl, .. }) => *ttl = value("a number")?.parse("TTL: a number from 0 to 255")?,
            ("len", Payload::Ip { len, .. }) => {
                let value = value("a number of bytes")?;
                let what = format!("payload length: a number from 0 to {LEN_MAX}");
                *len = value.parse(&what)?;
                if *len > LEN_MAX {
                    return Err(value.error(format!("this is no {what}")));
                }
            }
            ("fragment", Payload::Ip { fragment, .. }) => {
                let value = value("'first' or 'later'")?;
                *fragment = Some(match value.text {
                    "first" => FragmentKind::First,
                    "later" => FragmentKind::Later,
                    _ => return Err(value.error("a fragment is 'first' or 'later'")),
                });
            }
            (
                "protocol",
                Payload::Ip {
                    transport: Transport::Other(number),
                    ..
                },
            ) => {
                *number = value("a number")?.parse("IP protocol: a number from 0 to 255")?;
            }
            (
                _,
                Payload::Ip {
                    transport: Transport::Tcp(tcp),
                    ..
                },
            ) => match word.text {
                "flags" => tcp.flags = flags(value("letters such as SA")?)?,
                "seq" => tcp.seq = value("a number")?.parse("sequence number")?,
                "ack" => tcp.ack = value("a number")?.parse("acknowledgement number")?,
                "window" => tcp.window = value("a number")?.parse("window: a number from 0 to 65535")?,
                _ => return Err(unknown(word)),
            },
            (
                _,
                Payload::Ip {
                    transport: Transport::Icmp(icmp),
                    ..
                },
            ) => match word.text {
                "type" => icmp.kind = value("a number")?.parse("ICMP type: a number from 0 to 255")?,
                "code" => icmp.code = value("a number")?.parse("ICMP code: a number from 0 to 255")?,
                "id" => icmp.id = value("a number")?.parse("identifier: a number from 0 to 65535")?,
                "seq" => icmp.seq = value("a number")?.parse("sequence number: a number from 0 to 65535")?,
                _ => return Err(unknown(word)),
            },
            _ => return Err(unknown(word)),
        }
        Ok(())
    }

    /// The source address, if it is one of IP.
    pub fn source(&self) -> Option<IpAddr> {
        match &self.payload {
            Payload::Arp(_) => None,
            Payload::Ip { source, .. } => Some(*source),
        }
    }

    /// The destination's MAC where the address alone tells it: given, a group's, or everybody's.
    pub fn destination_mac(&self) -> Option<MacAddr> {
        if self.link.destination.is_some() {
            return self.link.destination;
        }
        match &self.payload {
            Payload::Arp(Arp { reply: false, .. }) => Some(BROADCAST),
            Payload::Arp(_) => None,
            Payload::Ip {
                destination: IpAddr::V4(v4),
                ..
            } => group_v4(*v4),
            Payload::Ip {
                destination: IpAddr::V6(v6),
                ..
            } => group_v6(*v6),
        }
    }

    /// The address that its receiver has.
    pub fn destination(&self) -> IpAddr {
        match &self.payload {
            Payload::Arp(arp) => arp.target.into(),
            Payload::Ip { destination, .. } => *destination,
        }
    }
}

const BROADCAST: MacAddr = MacAddr([0xff; 6]);

/// RFC 1112 §6.4.
fn group_v4(address: Ipv4Addr) -> Option<MacAddr> {
    if address.is_broadcast() {
        return Some(BROADCAST);
    }
    let [_, b, c, d] = address.octets();
    address
        .is_multicast()
        .then_some(MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d]))
}

/// RFC 2464 §7.
fn group_v6(address: Ipv6Addr) -> Option<MacAddr> {
    let [.., a, b, c, d] = address.octets();
    address.is_multicast().then_some(MacAddr([0x33, 0x33, a, b, c, d]))
}

fn unknown(word: Word<'_>) -> ExpressionError {
    word.error(format!("this packet has no such option; there are {OPTIONS}"))
}

fn flags(word: Word<'_>) -> Result<u8, ExpressionError> {
    word.text.chars().try_fold(0, |flags, letter| {
        let found = TCP_FLAGS.iter().find(|(known, _)| letter.eq_ignore_ascii_case(known));
        let (_, bit) = found.ok_or_else(|| {
            word.error(
                "TCP flags are letters of FSRPAUEC: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR; write SA for SYN and ACK",
            )
        })?;
        Ok(flags | bit)
    })
}
