//! Packets, as numbers that can be printed and made smaller.

use std::fmt;

use crate::rules::{Family, address, port_name};

/// TCP's flags.
pub mod flag {
    /// No more data.
    pub const FIN: u8 = 1;
    /// Sequence numbers begin here.
    pub const SYN: u8 = 2;
    /// There is no such connection.
    pub const RST: u8 = 4;
    /// For the application at once.
    pub const PSH: u8 = 8;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 16;
    /// The urgent pointer counts.
    pub const URG: u8 = 32;
}

/// A TCP segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// From.
    pub source_port: u16,
    /// To.
    pub destination_port: u16,
    /// See [`flag`].
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Window, not scaled.
    pub window: u16,
    /// Shift that a SYN offers for the windows of later segments.
    pub window_scale: Option<u8>,
    /// A SYN offers selective acknowledgements.
    pub sack_permitted: bool,
    /// A block that was received out of turn.
    pub sack: Option<(u32, u32)>,
    /// Bytes of data.
    pub len: u16,
}

/// What an IP packet carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A TCP segment.
    Tcp(Tcp),
    /// A UDP datagram.
    Udp {
        /// From.
        source_port: u16,
        /// To.
        destination_port: u16,
        /// Bytes of data.
        len: u16,
    },
    /// An ICMP message that has an identifier, or has four bytes where others have it.
    Icmp {
        /// Type, of the packet's family.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier.
        id: u16,
        /// Bytes of data.
        len: u16,
    },
    /// An ICMP error about a packet.
    Error {
        /// Type, of the packet's family.
        kind: u8,
        /// Code.
        code: u8,
        /// The packet that it is about, of the same family.
        about: Box<Packet>,
        /// How much of that packet's payload it quotes, at most, in bytes.
        quoted_len: u16,
    },
    /// A protocol without ports.
    Other {
        /// Its number.
        protocol: u8,
        /// Bytes of payload.
        len: u16,
    },
}

/// An IP packet from one port to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Sender, by index.
    pub from: usize,
    /// Receiver, by index.
    pub to: usize,
    /// IPv4 or IPv6.
    pub family: Family,
    /// What it carries.
    pub body: Body,
    /// IPv6: with a header of destination options in front of what it carries.
    pub extension: bool,
    /// Cut in so many fragments, if more than one.
    pub fragments: u8,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} ", port_name(self.from), port_name(self.to))?;
        if self.family == Family::V6 {
            write!(f, "ipv6 ")?;
        }
        match &self.body {
            Body::Tcp(tcp) => write!(f, "{tcp}")?,
            Body::Udp {
                source_port,
                destination_port,
                len,
            } => write!(f, "udp {source_port} > {destination_port} len {len}")?,
            Body::Icmp { kind, code, id, len } => write!(f, "icmp type {kind} code {code} id {id} len {len}")?,
            Body::Error {
                kind,
                code,
                about,
                quoted_len,
            } => write!(
                f,
                "icmp type {kind} code {code} quoting {quoted_len} bytes of [{about}]"
            )?,
            Body::Other { protocol, len } => write!(f, "protocol {protocol} len {len}")?,
        }
        if self.extension {
            write!(f, ", after destination options")?;
        }
        if self.fragments > 1 {
            write!(f, ", in {} fragments", self.fragments)?;
        }
        Ok(())
    }
}

impl fmt::Display for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (flag::SYN, "SYN"),
            (flag::FIN, "FIN"),
            (flag::RST, "RST"),
            (flag::PSH, "PSH"),
            (flag::ACK, "ACK"),
            (flag::URG, "URG"),
        ];
        let flags: Vec<&str> = names
            .iter()
            .filter(|(bit, _)| self.flags & bit != 0)
            .map(|(_, n)| *n)
            .collect();
        let flags = if flags.is_empty() {
            "none".to_owned()
        } else {
            flags.join("+")
        };
        write!(
            f,
            "tcp {} > {} {flags} seq {}",
            self.source_port, self.destination_port, self.seq
        )?;
        if self.ack != 0 {
            write!(f, " ack {}", self.ack)?;
        }
        write!(f, " win {}", self.window)?;
        if let Some(scale) = self.window_scale {
            write!(f, " wscale {scale}")?;
        }
        if self.sack_permitted {
            write!(f, " sackOK")?;
        }
        if let Some((left, right)) = self.sack {
            write!(f, " sack {left}-{right}")?;
        }
        write!(f, " len {}", self.len)
    }
}

impl Tcp {
    /// The sequence number after it.
    pub fn end(&self) -> u32 {
        let flags = [flag::SYN, flag::FIN]
            .into_iter()
            .filter(|flag| self.flags & flag != 0)
            .count();
        self.seq
            .wrapping_add(self.len.into())
            .wrapping_add(u32::try_from(flags).unwrap_or(0))
    }
}

impl Packet {
    /// May a connection begin with it?
    pub fn opens(&self) -> bool {
        match &self.body {
            Body::Tcp(tcp) => tcp.flags & (flag::SYN | flag::ACK | flag::FIN | flag::RST) == flag::SYN,
            // queries, of the kinds whose answers are known
            Body::Icmp { kind, .. } => match self.family {
                Family::V4 => [8, 13, 15, 17].contains(kind),
                Family::V6 => [128, 139].contains(kind),
            },
            Body::Udp { .. } | Body::Other { .. } => true,
            Body::Error { .. } => false,
        }
    }

    /// Sender's and receiver's address, as text.
    pub fn addresses(&self) -> String {
        format!(
            "{} > {}",
            address(self.from, self.family),
            address(self.to, self.family)
        )
    }
}
