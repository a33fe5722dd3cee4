//! What names a connection: a packet's addresses and ports, brought into the one order that both directions share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::icmp::{self, Class};

/// An IP address as 128 bits in host order; IPv4 is mapped (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u128);

impl Address {
    const MAPPED: u128 = 0xffff << 32;

    /// An IPv4 address, from its 32 bits in host order.
    #[inline]
    pub const fn v4(bits: u32) -> Self {
        Self(Self::MAPPED | bits as u128)
    }

    /// Is it IPv4?
    #[inline]
    pub const fn is_v4(self) -> bool {
        self.0 >> 32 == 0xffff
    }

    /// As the standard library has it, IPv4 unmapped.
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from_bits(self.0).to_canonical()
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::v4(address.to_bits())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.to_bits())
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => a.into(),
            IpAddr::V6(a) => a.into(),
        }
    }
}

/// What a packet says about the connection that it belongs to.
///
/// | protocol | `source_port` | `destination_port` |
/// |---|---|---|
/// | TCP, UDP, SCTP, DCCP, UDP-Lite | source port | destination port |
/// | ICMP, ICMPv6 | the identifier (0 where the type has none) | type × 256 + code, as in the packet |
/// | others | 0 | 0 |
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Connections of different zones never meet. One zone per network.
    pub zone: u32,
    /// The IP protocol number.
    pub protocol: u8,
    /// Who sent the packet.
    pub source: Address,
    /// To whom.
    pub destination: Address,
    /// See the table above.
    pub source_port: u16,
    /// See the table above.
    pub destination_port: u16,
}

impl Tuple {
    /// Is it ICMP or ICMPv6?
    pub const fn is_icmp(&self) -> bool {
        is_icmp(self.protocol)
    }

    /// The tuple of a packet in the other direction. An ICMP question becomes its answer and the reverse.
    #[must_use]
    pub const fn reverse(&self) -> Self {
        let mut back = Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            ..*self
        };
        if is_icmp(self.protocol) {
            let [kind, code] = self.destination_port.to_be_bytes();
            let kind = match icmp::class(self.protocol, kind) {
                Class::Request(8) => 0,
                Class::Request(asked) => asked + 1,
                Class::Reply(asked) => asked,
                Class::Error | Class::Other => kind,
            };
            back.source_port = self.source_port;
            back.destination_port = u16::from_be_bytes([kind, code]);
        }
        back
    }
}

const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, icmp::ICMP | icmp::ICMPV6)
}

/// Which way a packet of a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the packet that opened it.
    Original,
    /// The other way.
    Reply,
}

impl Direction {
    /// The other one.
    #[inline]
    #[must_use]
    pub const fn reverse(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }

    #[inline]
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// A tuple in canonical order: the end with the lower address (then port) first, so that both directions give the same.
///
/// Which end is first can't be left to a commutative hash: for IPv4 the sum or exclusive-or of two hashed ends
/// collides for ends that a guest can choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Canonical {
    /// Low end's address, high end's address (each as two words), then ports and zone.
    pub words: [u64; 5],
    /// Protocol, ICMP question's type, and whether the high end asked.
    pub tag: u32,
    /// The packet's source is the high end.
    pub reversed: bool,
}

impl Canonical {
    #[inline]
    pub fn of(tuple: &Tuple) -> Self {
        let (source, destination) = (tuple.source.0, tuple.destination.0);
        let (reversed, ports, tag) = if is_icmp(tuple.protocol) {
            icmp_parts(tuple)
        } else {
            let (from, to) = (tuple.source_port, tuple.destination_port);
            let reversed = source > destination || (source == destination && from > to);
            let (low, high) = if reversed { (to, from) } else { (from, to) };
            (reversed, (low, high), u32::from(tuple.protocol))
        };
        let (low, high) = if reversed {
            (destination, source)
        } else {
            (source, destination)
        };
        let ports = u64::from(ports.0) << 48 | u64::from(ports.1) << 32;
        Self {
            words: [
                upper(low),
                lower(low),
                upper(high),
                lower(high),
                ports | u64::from(tuple.zone),
            ],
            tag,
            reversed,
        }
    }

    /// The tuple of a packet that is `reversed`: what [`Canonical::of`] was given, for an ICMP request or reply too.
    pub fn tuple(&self) -> Tuple {
        let [low_upper, low_lower, high_upper, high_lower, rest] = self.words;
        let [p0, p1, p2, p3, z0, z1, z2, z3] = rest.to_be_bytes();
        let low = Address(u128::from(low_upper) << 64 | u128::from(low_lower));
        let high = Address(u128::from(high_upper) << 64 | u128::from(high_lower));
        let [_, asked_by_high, kind, protocol] = self.tag.to_be_bytes();
        let (low_port, high_port) = (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([p2, p3]));
        let (source, destination) = if self.reversed { (high, low) } else { (low, high) };
        let (mut source_port, mut destination_port) = if self.reversed {
            (high_port, low_port)
        } else {
            (low_port, high_port)
        };
        if is_icmp(protocol) {
            // Written as the question is; a reply is the question's reverse.
            source_port = low_port;
            destination_port = u16::from_be_bytes([kind, p3]);
        }
        let tuple = Tuple {
            zone: u32::from_be_bytes([z0, z1, z2, z3]),
            protocol,
            source,
            destination,
            source_port,
            destination_port,
        };
        if is_icmp(protocol) && (asked_by_high == 1) != self.reversed {
            let answer = tuple.reverse();
            return Tuple {
                source,
                destination,
                ..answer
            };
        }
        tuple
    }
}

/// For ICMP the identifier names both ends, so it isn't an end's port: who asked is kept instead.
fn icmp_parts(tuple: &Tuple) -> (bool, (u16, u16), u32) {
    let [kind, code] = tuple.destination_port.to_be_bytes();
    let (asked, is_reply) = match icmp::class(tuple.protocol, kind) {
        Class::Reply(asked) => (asked, true),
        Class::Request(_) | Class::Error | Class::Other => (kind, false),
    };
    let reversed = tuple.source > tuple.destination || (tuple.source == tuple.destination && is_reply);
    let asked_by_high = reversed != is_reply;
    let tag = u32::from_be_bytes([0, u8::from(asked_by_high), asked, tuple.protocol]);
    (reversed, (tuple.source_port, u16::from(code)), tag)
}

#[expect(clippy::cast_possible_truncation, reason = "half of a word")]
const fn lower(word: u128) -> u64 {
    word as u64
}

const fn upper(word: u128) -> u64 {
    lower(word >> 64)
}
