//! ICMPv6: neighbour discovery (RFC 4861) may claim the port's own MAC and addresses only, may not be fragmented
//! (RFC 6980), and has nothing to say for a router. Multicast listener messages are what else may come without a source
//! address (RFC 3590).

use std::net::Ipv6Addr;

use vhost_net_dpu::packet::Fragment;

use super::Ingress;
use crate::reason::DropReason;

const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_V2: u8 = 143;

/// The hop limit that shows that no router forwarded the message (RFC 4861 §3.1).
const HOP_LIMIT: u8 = 255;
/// Where a solicitation's or advertisement's target is, and where the options start, in bytes.
const TARGET_OFFSET: usize = 8;
const NEIGHBOUR_OPTIONS_OFFSET: usize = 24;
const ROUTER_OPTIONS_OFFSET: usize = 8;
/// Options that name a MAC (RFC 4861 §4.6.1).
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// Checks an ICMPv6 packet that is whole or a first fragment, from `source` to `destination`. `own`: its source is the
/// port's.
pub(super) fn check(
    ingress: &Ingress<'_>,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    own: bool,
) -> Result<(), DropReason> {
    let record = ingress.record;
    let transport = record.transport(ingress.head);
    let kind = *transport.first().ok_or(DropReason::MalformedIpv6)?;
    let unsourced = source.is_unspecified() && record.fragment == Fragment::No && destination.is_multicast();
    let may_be_unsourced = matches!(
        kind,
        ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_V2
    );
    if !(own || unsourced && may_be_unsourced) {
        return Err(DropReason::SpoofedIpv6);
    }
    if !(ROUTER_SOLICITATION..=REDIRECT).contains(&kind) {
        return Ok(());
    }
    if record.fragment != Fragment::No || record.hop_limit != HOP_LIMIT {
        return Err(DropReason::MalformedNd);
    }
    if matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT) {
        return Err(DropReason::RouterMessage);
    }
    let message = transport
        .get(..usize::from(record.transport_len))
        .ok_or(DropReason::HeadersTooLong)?;
    check_message(ingress, kind, message, !own)
}

fn check_message(ingress: &Ingress<'_>, kind: u8, message: &[u8], unsourced: bool) -> Result<(), DropReason> {
    let options_offset = if kind == ROUTER_SOLICITATION {
        ROUTER_OPTIONS_OFFSET
    } else {
        NEIGHBOUR_OPTIONS_OFFSET
    };
    let options = message.get(options_offset..).ok_or(DropReason::MalformedNd)?;
    if message.get(1) != Some(&0) {
        return Err(DropReason::MalformedNd);
    }
    if kind != ROUTER_SOLICITATION {
        let target = message.get(TARGET_OFFSET..).and_then(|rest| rest.first_chunk::<16>());
        let target = Ipv6Addr::from_octets(*target.ok_or(DropReason::MalformedNd)?);
        if target.is_multicast() {
            return Err(DropReason::MalformedNd);
        }
        // Whom a solicitation asks for is free; but one without a source is duplicate address detection (RFC 4862
        // §5.4.3), and for somebody else's address it would keep that address from its owner.
        let claims = kind == NEIGHBOUR_ADVERTISEMENT || unsourced;
        if claims && !ingress.rules.owns_v6(target) {
            return Err(DropReason::SpoofedNd);
        }
    }
    check_options(ingress, options, unsourced)
}

/// Options are walked to the end: each has a length (0 would never end), and one that names a MAC names the port's.
fn check_options(ingress: &Ingress<'_>, options: &[u8], unsourced: bool) -> Result<(), DropReason> {
    let mut rest = options;
    while let [kind, units, ..] = *rest {
        let (option, after) = rest
            .split_at_checked(usize::from(units) * 8)
            .ok_or(DropReason::MalformedNd)?;
        let Some(body) = option.get(2..) else {
            return Err(DropReason::MalformedNd);
        };
        if matches!(kind, SOURCE_LINK_LAYER | TARGET_LINK_LAYER) {
            if unsourced || body.len() != 6 {
                return Err(DropReason::MalformedNd);
            }
            if body != ingress.rules.mac {
                return Err(DropReason::SpoofedNd);
            }
        }
        rest = after;
    }
    if rest.is_empty() {
        Ok(())
    } else {
        Err(DropReason::MalformedNd)
    }
}
