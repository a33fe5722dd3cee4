//! What of a packet names its connection, and what a connection's entry remembers of the judgement about it.

use outboard_conntrack::{Address, Packet, Reason, Segment, Tuple};
use outboard_firewall::Flow;
use vhost_net_dpu::{
    packet::{Fragment, IP_PROTOCOL_TCP, IpAddresses},
    record::Record,
};

/// Protocols beside TCP and UDP whose header begins with two ports: DCCP, SCTP, UDP-Lite.
const OTHERS_WITH_PORTS: [u8; 3] = [33, 132, 136];

/// The tuple of an IP packet in a zone; `head` are its frame's first bytes.
#[inline]
pub(crate) fn tuple(record: &Record, head: &[u8], zone: u32) -> Tuple {
    let (source, destination) = match record.addresses(head) {
        Some(IpAddresses::V4(source, destination)) => (source.into(), destination.into()),
        Some(IpAddresses::V6(source, destination)) => (source.into(), destination.into()),
        None => (Address::default(), Address::default()),
    };
    let (mut source_port, mut destination_port) = (record.source_port, record.destination_port);
    if OTHERS_WITH_PORTS.contains(&record.protocol) && record.fragment != Fragment::Later {
        let ports = record.transport(head).first_chunk().copied().unwrap_or_default();
        let [s0, s1, d0, d1] = ports;
        (source_port, destination_port) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
    }
    Tuple {
        zone,
        protocol: record.protocol,
        source,
        destination,
        source_port,
        destination_port,
    }
}

/// What matters of a packet, besides its tuple, to its connection.
#[inline]
pub(crate) fn packet<'a>(record: &Record, head: &'a [u8]) -> Result<Packet<'a>, Reason> {
    if record.protocol != IP_PROTOCOL_TCP {
        return Ok(Packet::Other);
    }
    let len = usize::from(record.transport_len);
    // Padding behind the segment is not of it.
    let bytes = record.transport(head);
    let bytes = bytes.get(..len).unwrap_or(bytes);
    Segment::read(bytes, len).map(Packet::Tcp).map_err(|_| Reason::Header)
}

/// A connection's first packet as rules see it.
pub(crate) fn flow(tuple: &Tuple) -> Flow {
    let (source, destination) = (tuple.source, tuple.destination);
    if source.is_v4() && destination.is_v4() {
        #[expect(clippy::cast_possible_truncation, reason = "IPv4 lies in the lower 32 bits")]
        let (source, destination) = (source.0 as u32, destination.0 as u32);
        return Flow::v4(source, destination, tuple.protocol, tuple.destination_port);
    }
    Flow::v6(source.0, destination.0, tuple.protocol, tuple.destination_port)
}

/// From which port to which a connection's first packet went, and the epochs of their policy when it was judged: while
/// they are the same, so is the judgement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) from: End,
    pub(crate) to: End,
}

/// A port as the firewall knows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct End {
    /// Its number.
    pub(crate) port: u32,
    /// The epoch of its policy.
    pub(crate) epoch: u64,
}

impl Pair {
    /// The same seen from the other end.
    #[inline]
    pub(crate) fn reverse(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
        }
    }

    /// As an entry keeps it.
    #[inline]
    pub(crate) fn to_words(self) -> [u64; 3] {
        let ports = u64::from(self.from.port) << 32 | u64::from(self.to.port);
        [self.from.epoch, self.to.epoch, ports]
    }

    /// Are the ports of these words the same ones?
    pub(crate) fn has_ports_of(self, words: [u64; 3]) -> bool {
        let [.., ours] = self.to_words();
        let [.., theirs] = words;
        ours == theirs
    }
}
