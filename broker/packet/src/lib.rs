//! Packets as people write them, and the frames that they stand for.
//!
//! `tcp 10.0.0.1:1234 > 10.0.0.2:80` is parsed by [`Packet`]'s `FromStr`, and [`Packet::frame`] makes it the bytes that a
//! guest would send: complete headers and checksums, padded to what Ethernet asks for at least.
//!
//! ```text
//! packet   = "tcp" end ">" end option* | "udp" end ">" end option* | "icmp" ip ">" ip option* | "icmp6" ip ">" ip option*
//!          | "arp" [ "request" | "reply" ] ipv4 ">" ipv4 option*  | "ip" ip ">" ip option*
//! end      = ipv4 [ ":" port ] | ipv6 | "[" ipv6 "]" [ ":" port ]
//! option   = "flags" letters | "seq" n | "ack" n | "window" n          tcp
//!          | "type" n | "code" n | "id" n | "seq" n                    icmp, icmp6
//!          | "protocol" n                                              ip
//!          | "ttl" n | "len" n | "fragment" ( "first" | "later" )      all but arp
//!          | "from" mac | "to" mac | "vlan" n                          all
//! ```
//!
//! [`parse_filter`] reads filters, for captures and flows.
//!
//! # What it doesn't implement
//!
//! IPv4 options, IPv6 extension headers other than the fragment header, TCP options, payloads with a meaning.
#![forbid(unsafe_code)]

mod build;
mod error;
mod filter;
mod lexer;
mod packet;

pub use error::{EXPRESSION_LEN_MAX, ExpressionError};
pub use filter::parse_filter;
pub use packet::{Arp, FragmentKind, Icmp, Link, Packet, Payload, Tcp, Transport};
