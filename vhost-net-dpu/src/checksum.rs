//! The Internet checksum (RFC 1071) and the pseudo-headers of TCP and UDP (RFC 9293 §3.1, RFC 768, RFC 8200 §8.1).

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::packet::{IP_PROTOCOL_UDP, IpAddresses};

/// A running sum of 16-bit big-endian words, not yet folded. Bytes may come in pieces of any length, odd ones too.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    total: u64,
    odd: bool,
}

impl Sum {
    /// Adds bytes that follow the ones already added. Sums of up to 2^32 bytes are exact.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.odd
            && let Some((first, tail)) = rest.split_first()
        {
            self.total += u64::from(*first);
            self.odd = false;
            rest = tail;
        }
        // Eight bytes at a time as 32-bit halves: one's-complement addition does not mind how words are grouped.
        let (chunks, tail) = rest.as_chunks::<8>();
        for chunk in chunks {
            let word = u64::from_be_bytes(*chunk);
            self.total += (word >> 32) + (word & 0xffff_ffff);
        }
        let (pairs, last) = tail.as_chunks::<2>();
        for pair in pairs {
            self.total += u64::from(u16::from_be_bytes(*pair));
        }
        if let [byte] = last {
            self.total += u64::from(*byte) << 8;
            self.odd = true;
        }
    }

    /// Adds one 16-bit word. Only between words: after an even number of bytes.
    pub fn add_word(&mut self, word: u16) {
        debug_assert!(!self.odd, "a word is added between words");
        self.total += u64::from(word);
    }

    /// The sum folded to 16 bits, not complemented: what a partial checksum field holds.
    pub fn folded(self) -> u16 {
        let mut sum = self.total;
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let [.., high, low] = sum.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// The checksum: the folded sum's complement.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Checksum of an IPv4 header whose checksum field is zero, or check of one that is complete (then it is 0).
pub fn ipv4_header(header: &[u8]) -> u16 {
    let mut sum = Sum::default();
    sum.add(header);
    sum.checksum()
}

/// Folded sum of the pseudo-header for `len` bytes of transport header and payload.
pub fn pseudo_header(addresses: IpAddresses, protocol: u8, len: u32) -> u16 {
    let mut sum = Sum::default();
    match addresses {
        IpAddresses::V4(source, destination) => add_v4(&mut sum, source, destination),
        IpAddresses::V6(source, destination) => add_v6(&mut sum, source, destination),
    }
    sum.add(&len.to_be_bytes());
    sum.add_word(u16::from(protocol));
    sum.folded()
}

fn add_v4(sum: &mut Sum, source: Ipv4Addr, destination: Ipv4Addr) {
    sum.add(&source.octets());
    sum.add(&destination.octets());
}

fn add_v6(sum: &mut Sum, source: Ipv6Addr, destination: Ipv6Addr) {
    sum.add(&source.octets());
    sum.add(&destination.octets());
}

/// Turns a folded sum over pseudo-header, transport header and payload into what the field carries. UDP has no zero:
/// it would mean "no checksum" (RFC 768, RFC 8200 §8.1).
pub fn for_field(sum: Sum, protocol: u8) -> u16 {
    match sum.checksum() {
        0 if protocol == IP_PROTOCOL_UDP => 0xffff,
        checksum => checksum,
    }
}

/// Completes a partial checksum. `head[start..]` and then `payload` are the transport header and its payload, to the
/// byte; the field, `offset` bytes after `start`, holds the folded pseudo-header sum. Does nothing if the field is not
/// in `head`.
pub fn complete(head: &mut [u8], start: usize, offset: usize, payload: &[u8], protocol: u8) {
    let Some(transport) = head.get_mut(start..) else { return };
    let mut sum = Sum::default();
    sum.add(transport);
    sum.add(payload);
    if let Some(field) = transport.get_mut(offset..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *field = for_field(sum, protocol).to_be_bytes();
    }
}

#[cfg(test)]
#[path = "checksum_tests.rs"]
mod tests;
