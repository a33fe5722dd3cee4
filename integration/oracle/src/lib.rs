//! The firewall against an oracle: random security groups and sequences of packets, and for each packet the verdict of
//! our datapath beside that of Linux, nftables with conntrack in a network namespace of its own.
//!
//! A [`Case`] is a set of rules and what is then sent; it is made from a seed ([`generate::case`]), run on two
//! [`Side`]s ([`case::compare`]), and where they disagree made as small as it goes ([`shrink::smallest`]) and printed.
//! The rules that both obey are one model ([`rules::Rules`]): one side gets it as an nftables ruleset, the other as
//! records of groups.
//!
//! # What is compared, and what is not
//!
//! Both sides see the same IP packets, one at a time: TCP with options, UDP, ICMP and ICMPv6 queries and errors,
//! protocols without ports, whole or in fragments, with IPv6 extension headers. What differs on purpose is left out or
//! mapped:
//!
//! - Linux routes between the ports, since its bridges have no conntrack without a module that few kernels have; we
//!   switch. Hop limits and what a router alone does (redirects, "time exceeded") are therefore not compared.
//! - Linux runs with `nf_conntrack_tcp_loose=0` and `nf_conntrack_tcp_be_liberal=0`: a connection is known from its SYN
//!   on, and windows are checked. With looseness configured we differ from that on purpose.
//! - Linux reassembles datagrams before it looks at them; we let later fragments follow a first one. So fragments come
//!   in order and not overlapping here, and a datagram counts as passed if any of it is delivered. TCP segments
//!   come whole: of one in fragments we count the first fragment's data only. What else fragments can be is for the
//!   tests of the switch.
//! - Checksums are right: Linux calls a packet with a wrong one invalid, we leave that to the receiver.
//! - SCTP, DCCP and GRE have trackers of their own in Linux; here they would be protocols without ports.
//! - Linux answers rejected packets only of protocols whose checksum it knows; so of others it is not compared whether
//!   their sender is told.
//! - ICMP errors: Linux lets one pass from whomever it comes, if an entry has the connection that it is about. We want it
//!   from the port that the quoted packet was let through to, and of TCP about a segment in flight. So of an error we
//!   may drop what Linux lets pass, unless it comes from the receiver of a packet without sequence numbers that passed.
//! - Resets before a connection is established: Linux takes one that acknowledges the end of a segment it has noted,
//!   whatever its sequence number is, and has noted 0 of most; we note more, and want the flag with the number. So a case
//!   ends at a reset of a connection that no two segments after the handshake show to be established.
//! - Time: all of a case happens within the shortest of timeouts.
//! - What a port may use as its sources, ARP, neighbour discovery, redirects and what else routers say: Linux knows no
//!   source guard here.
//! - A packet between two ports without any group is not tracked by either.
//! - After a change of rules Linux would let an established connection pass for ever; its ruleset here judges each
//!   packet of a connection by the rules in force and the connection's first packet, and forgets a connection that is
//!   not allowed any more, as we do.
#![forbid(unsafe_code)]

pub mod case;
pub mod frame;
pub mod generate;
pub mod linux;
pub mod namespace;
pub mod ours;
pub mod packet;
pub mod rules;
pub mod shrink;

use std::fmt;

pub use case::{Case, Mismatch, Step};
use packet::Packet;
use rules::Rules;

/// Ports of a case: `a`, `b` and `c`.
pub const PORT_COUNT: usize = 3;

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Delivered to its port.
    Pass,
    /// Not delivered, and its sender is told nothing.
    Drop,
    /// Not delivered, and its sender was answered.
    Reject,
    /// Of its fragments only some were delivered, or it was delivered and answered as well.
    Partly,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Partly => "pass in part",
        })
    }
}

/// A firewall between the ports of a case.
pub trait Side {
    /// Forgets all connections, and obeys these rules.
    fn begin(&mut self, rules: &Rules) -> Result<(), Failure>;
    /// Obeys these rules from now on.
    fn change(&mut self, rules: &Rules) -> Result<(), Failure>;
    /// Sends a packet from its port. `number` is another one for each packet of a case.
    fn send(&mut self, packet: &Packet, number: u16) -> Result<Verdict, Failure>;
    /// What the side says about the last packet's fate, where it says anything.
    fn why(&self) -> Option<String> {
        None
    }
}

/// A side could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A program could not be run, or ended with an error.
    #[error("{program} failed: {said}; `cargo verify` installs what the tests need")]
    Program {
        /// Its name.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// The kernel refused what a namespace of one's own permits.
    #[error("could not {action}: {source}")]
    Kernel {
        /// What was wanted.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A kernel setting could not be made.
    #[error("could not set {name}: {source}; the kernel needs IPv6, nftables and conntrack in namespaces")]
    Setting {
        /// Below `/proc/sys`.
        name: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A packet went where none should go, or a marker never came.
    #[error("the {side} side is not what the comparison takes it for: {what}")]
    Broken {
        /// Which side.
        side: &'static str,
        /// What happened.
        what: String,
    },
}

impl Failure {
    fn kernel(action: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |error| Self::Kernel {
            action,
            source: error.into(),
        }
    }
}
