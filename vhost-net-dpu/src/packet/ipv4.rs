//! IPv4 (RFC 791).

use std::net::Ipv4Addr;

use outboard_controls::{Check, on};

use super::{ETHERNET_HEADER_LEN, Flaw, Fragment, IpAddresses, IpPacket, ParseError, View, transport_header_len_min};

/// IPv4's header without options, in bytes.
const HEADER_LEN_MIN: usize = 20;
/// Options (RFC 791 §3.1).
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;
/// Flag and mask of the flags-and-offset word.
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

pub(super) fn parse(view: View<'_>) -> Result<IpPacket, ParseError> {
    let parsed = parse_inner(view).map_err(ParseError::Ipv4);
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
    let [.., protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *view.bytes::<HEADER_LEN_MIN>(ETHERNET_HEADER_LEN)?;
    let transport_offset = ETHERNET_HEADER_LEN + HEADER_LEN_MIN;
    Some(IpPacket {
        addresses: IpAddresses::V4(Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3)),
        hop_limit: 0,
        protocol,
        transport_offset,
        transport_len: view.frame_len - transport_offset,
        fragment: Fragment::Later,
        identification: 0,
        routed: false,
    })
}

fn parse_inner(view: View<'_>) -> Result<IpPacket, Flaw> {
    let header = view
        .bytes::<HEADER_LEN_MIN>(ETHERNET_HEADER_LEN)
        .ok_or(Flaw::Truncated)?;
    let [
        first,
        _,
        l0,
        l1,
        i0,
        i1,
        f0,
        f1,
        ttl,
        protocol,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = *header;
    if first >> 4 != 4 {
        return Err(Flaw::Version);
    }
    let header_len = usize::from(first & 0xf) * 4;
    let total_len = usize::from(u16::from_be_bytes([l0, l1]));
    if header_len < HEADER_LEN_MIN {
        return Err(Flaw::HeaderLength);
    }
    if total_len < header_len || total_len > view.frame_len - ETHERNET_HEADER_LEN {
        return Err(Flaw::TotalLength);
    }
    let transport_len = total_len - header_len;
    let transport_offset = ETHERNET_HEADER_LEN + header_len;
    let options = view.head.get(ETHERNET_HEADER_LEN + HEADER_LEN_MIN..transport_offset);
    let routed = source_routed(options.ok_or(Flaw::Truncated)?)?;
    let fragment = fragment(u16::from_be_bytes([f0, f1]), transport_len)?;
    if fragment != Fragment::Later && transport_len < transport_header_len_min(protocol) {
        return Err(if fragment == Fragment::First {
            Flaw::Fragment
        } else {
            Flaw::Truncated
        });
    }
    Ok(IpPacket {
        addresses: IpAddresses::V4(Ipv4Addr::new(s0, s1, s2, s3), Ipv4Addr::new(d0, d1, d2, d3)),
        hop_limit: ttl,
        protocol,
        transport_offset,
        transport_len,
        fragment,
        identification: u16::from_be_bytes([i0, i1]).into(),
        routed,
    })
}

/// Walks the options (RFC 791 §3.1) to their end: is one a source route?
fn source_routed(options: &[u8]) -> Result<bool, Flaw> {
    let mut rest = options;
    let mut routed = false;
    while let Some((kind, after)) = rest.split_first() {
        rest = match *kind {
            OPTION_END => break,
            OPTION_NOP => after,
            kind => {
                let len = usize::from(*after.first().ok_or(Flaw::HeaderLength)?);
                routed |= matches!(kind, LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE);
                rest.get(len..).filter(|_| len >= 2).ok_or(Flaw::HeaderLength)?
            }
        };
    }
    Ok(routed)
}

/// Which fragment it is; impossible ones (not a multiple of 8 with more to come, ending past 65,535) are refused.
fn fragment(word: u16, data_len: usize) -> Result<Fragment, Flaw> {
    let more = word & MORE_FRAGMENTS != 0;
    let offset = usize::from(word & OFFSET_MASK) * 8;
    if !more && offset == 0 {
        return Ok(Fragment::No);
    }
    if data_len == 0 || more && !data_len.is_multiple_of(8) || offset + data_len > usize::from(u16::MAX) {
        return Err(Flaw::Fragment);
    }
    Ok(if offset == 0 { Fragment::First } else { Fragment::Later })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_walked_to_their_end() {
        let cases: [(&[u8], Result<bool, Flaw>); 7] = [
            (&[], Ok(false)),
            (&[1, 148, 4, 0, 0], Ok(false)),
            (&[1, 131, 3, 4], Ok(true)),
            (&[148, 4, 0, 0, 137, 3, 4, 0], Ok(true)),
            (&[0, 131, 3, 4], Ok(false)), // after the end there are none
            (&[148, 0, 0, 0], Err(Flaw::HeaderLength)),
            (&[1, 1, 1, 131], Err(Flaw::HeaderLength)),
        ];
        for (options, want) in cases {
            assert_eq!(source_routed(options), want, "{options:?}");
        }
        assert_eq!(
            source_routed(&[131, 9, 4, 0]),
            Err(Flaw::HeaderLength),
            "beyond the header"
        );
    }
}
