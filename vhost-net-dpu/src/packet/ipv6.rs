//! IPv6 and its extension headers (RFC 8200).

use std::net::Ipv6Addr;

use outboard_controls::{Check, on};

use super::{ETHERNET_HEADER_LEN, Flaw, Fragment, IpAddresses, IpPacket, ParseError, View, transport_header_len_min};

/// IPv6's own header, in bytes.
const HEADER_LEN: usize = 40;
/// Extension headers walked before a packet is refused; RFC 8200 §4.1 has seven places.
pub const EXTENSION_HEADERS_MAX: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

pub(super) fn parse(view: View<'_>) -> Result<IpPacket, ParseError> {
    let parsed = parse_inner(view);
    if parsed.is_err()
        && !on(Check::WellFormedIp)
        && let Some(packet) = believed(view)
    {
        return Ok(packet);
    }
    parsed
}

/// What one would make of the packet who looks at its addresses only: for the control of [`Check::WellFormedIp`].
fn believed(view: View<'_>) -> Option<IpPacket> {
    let [_, _, _, _, _, _, protocol, hop_limit, addresses @ ..] = view.bytes::<HEADER_LEN>(ETHERNET_HEADER_LEN)?;
    let (source, destination) = addresses.split_at(16);
    let transport_offset = ETHERNET_HEADER_LEN + HEADER_LEN;
    Some(IpPacket {
        addresses: IpAddresses::V6(address(source), address(destination)),
        hop_limit: *hop_limit,
        protocol: *protocol,
        transport_offset,
        transport_len: view.frame_len - transport_offset,
        fragment: Fragment::Later,
        identification: 0,
        routed: false,
    })
}

fn parse_inner(view: View<'_>) -> Result<IpPacket, ParseError> {
    let header = view
        .bytes::<HEADER_LEN>(ETHERNET_HEADER_LEN)
        .ok_or(ParseError::Ipv6(Flaw::Truncated))?;
    let [first, _, _, _, l0, l1, next, hop_limit, addresses @ ..] = *header;
    if first >> 4 != 6 {
        return Err(ParseError::Ipv6(Flaw::Version));
    }
    let start = ETHERNET_HEADER_LEN + HEADER_LEN;
    // A jumbogram (RFC 2675: length 0 and a hop-by-hop option) fails as the option's header lies beyond the packet.
    let end = start + usize::from(u16::from_be_bytes([l0, l1]));
    if end > view.frame_len {
        return Err(ParseError::Ipv6(Flaw::TotalLength));
    }
    let chain = walk(view, next, start, end)?;
    let transport_len = end - chain.offset;
    if chain.fragment != Fragment::Later && transport_len < transport_header_len_min(chain.protocol) {
        let flaw = if chain.fragment == Fragment::First {
            Flaw::Fragment
        } else {
            Flaw::Truncated
        };
        return Err(ParseError::Ipv6(flaw));
    }
    if chain.offset + transport_header_len_min(chain.protocol) > view.head.len() && chain.fragment != Fragment::Later {
        return Err(ParseError::HeadersTooLong);
    }
    let (source, destination) = addresses.split_at(16);
    Ok(IpPacket {
        addresses: IpAddresses::V6(address(source), address(destination)),
        hop_limit,
        protocol: chain.protocol,
        transport_offset: chain.offset,
        transport_len,
        fragment: chain.fragment,
        identification: chain.identification,
        routed: chain.routed,
    })
}

fn address(bytes: &[u8]) -> Ipv6Addr {
    bytes
        .first_chunk::<16>()
        .map_or(Ipv6Addr::UNSPECIFIED, |octets| Ipv6Addr::from_octets(*octets))
}

/// Where the walk over the extension headers ended.
struct Chain {
    protocol: u8,
    offset: usize,
    fragment: Fragment,
    identification: u32,
    routed: bool,
}

/// Walks the extension headers. The whole chain must lie in the first fragment (RFC 8200 §4.5, RFC 7112), and in the
/// inspected bytes; a second fragment header or a hop-by-hop header that is not first has no honest use.
fn walk(view: View<'_>, next: u8, start: usize, end: usize) -> Result<Chain, ParseError> {
    let mut chain = Chain {
        protocol: next,
        offset: start,
        fragment: Fragment::No,
        identification: 0,
        routed: false,
    };
    let mut fragmented = false;
    for place in 0..=EXTENSION_HEADERS_MAX {
        let kind = chain.protocol;
        if !matches!(
            kind,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        ) {
            return Ok(chain);
        }
        if place == EXTENSION_HEADERS_MAX {
            break;
        }
        if chain.offset + 8 > end {
            return Err(ParseError::Ipv6(Flaw::Truncated));
        }
        let header = view.bytes::<8>(chain.offset).ok_or(ParseError::HeadersTooLong)?;
        let [next, len, o0, o1, i @ ..] = *header;
        let header_len = match kind {
            FRAGMENT => 8,
            AUTHENTICATION => (usize::from(len) + 2) * 4,
            _ => (usize::from(len) + 1) * 8,
        };
        if kind == HOP_BY_HOP && place != 0 || kind == FRAGMENT && fragmented {
            return Err(ParseError::Ipv6(Flaw::HeaderChain));
        }
        chain.offset += header_len;
        if chain.offset > end {
            return Err(ParseError::Ipv6(Flaw::HeaderLength));
        }
        if chain.offset > view.head.len() {
            return Err(ParseError::HeadersTooLong);
        }
        chain.protocol = next;
        chain.routed |= kind == ROUTING;
        if kind == FRAGMENT {
            fragmented = true;
            chain.identification = u32::from_be_bytes(i);
            chain.fragment = fragment(u16::from_be_bytes([o0, o1]), end - chain.offset)?;
            if chain.fragment == Fragment::Later {
                return Ok(chain);
            }
        }
    }
    Err(ParseError::HeadersTooLong)
}

/// Which fragment it is. An "atomic" fragment (RFC 6946: offset 0, none to follow) counts as a first one, so that it
/// is as suspect as any other where fragments are forbidden.
fn fragment(word: u16, data_len: usize) -> Result<Fragment, ParseError> {
    let more = word & 1 != 0;
    let offset = usize::from(word & 0xfff8);
    if data_len == 0 || more && !data_len.is_multiple_of(8) || offset + data_len > usize::from(u16::MAX) {
        return Err(ParseError::Ipv6(Flaw::Fragment));
    }
    Ok(if offset == 0 { Fragment::First } else { Fragment::Later })
}
