//! Which ICMP messages are questions, answers and errors (RFC 792, RFC 950, RFC 4443, RFC 4620).

/// The protocol number of ICMP.
pub const ICMP: u8 = 1;
/// The protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// What an ICMP message is to the connection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A question with an identifier: it opens a connection. The type is its own.
    Request(u8),
    /// The answer to a question: it belongs to the connection that a request of the given type opened.
    Reply(u8),
    /// An error about another packet, part of which it carries: ask [`Table::related`](crate::Table::related).
    Error,
    /// Anything else, among it neighbour discovery: no connection is tracked for it.
    Other,
}

/// What a message of `kind` is, for `protocol` [`ICMP`] or [`ICMPV6`]. Any other protocol has no ICMP messages: `Other`.
#[inline]
pub const fn class(protocol: u8, kind: u8) -> Class {
    match (protocol, kind) {
        (ICMP, 8 | 13 | 15 | 17) | (ICMPV6, 128 | 139) => Class::Request(kind),
        (ICMP, 0) => Class::Reply(8),
        (ICMP, 14 | 16 | 18) | (ICMPV6, 129 | 140) => Class::Reply(kind - 1),
        (ICMP, 3 | 4 | 5 | 11 | 12) | (ICMPV6, 1..=4) => Class::Error,
        _ => Class::Other,
    }
}
