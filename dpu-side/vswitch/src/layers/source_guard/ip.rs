//! IPv4 and IPv6 sources; what only a router may say; source routes, which would have the receiver pass a packet on as if
//! it were a router; and DHCP: there is no DHCP server in this version, so a client's call is dropped with a
//! reason that says so, and an answer to one comes from nobody who may give it.

use vhost_net_dpu::{
    packet::{Fragment, IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6, IP_PROTOCOL_UDP},
    record::Record,
};

use super::{Ingress, nd};
use crate::reason::DropReason;

/// UDP ports of DHCP (RFC 2131 §4.1) and of the DHCPv6 client (RFC 8415 §7.2).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
/// ICMP types of routers (RFC 792, RFC 1256).
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;

#[inline]
pub(super) fn check_v4(ingress: &Ingress<'_>) -> Result<(), DropReason> {
    let record = ingress.record;
    let (source, _) = record.v4(ingress.head).ok_or(DropReason::MalformedIpv4)?;
    let port = udp_destination(record);
    if source.is_unspecified() && port == Some(DHCP_SERVER) {
        return Err(DropReason::DhcpWithoutServer);
    }
    if !ingress.rules.owns_v4(source) {
        return Err(DropReason::SpoofedIpv4);
    }
    if record.protocol == IP_PROTOCOL_ICMP && record.fragment != Fragment::Later {
        let [kind, _] = record.destination_port.to_be_bytes();
        if matches!(kind, ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT) {
            return Err(DropReason::RouterMessage);
        }
    }
    if port == Some(DHCP_CLIENT) {
        return Err(DropReason::RogueDhcp);
    }
    not_routed(record)
}

pub(super) fn check_v6(ingress: &Ingress<'_>) -> Result<(), DropReason> {
    let record = ingress.record;
    let (source, destination) = record.v6(ingress.head).ok_or(DropReason::MalformedIpv6)?;
    let own = ingress.rules.owns_v6(source);
    if record.protocol == IP_PROTOCOL_ICMPV6 && record.fragment != Fragment::Later {
        nd::check(ingress, (source, destination), own)?;
        return not_routed(record);
    }
    if !own {
        return Err(DropReason::SpoofedIpv6);
    }
    if udp_destination(record) == Some(DHCPV6_CLIENT) {
        return Err(DropReason::RogueDhcp);
    }
    not_routed(record)
}

#[inline]
fn not_routed(record: &Record) -> Result<(), DropReason> {
    if record.routed {
        return Err(DropReason::SourceRouted);
    }
    Ok(())
}

/// UDP's destination port, where there is one: the parser saw to it that a first fragment holds it.
#[inline]
fn udp_destination(record: &Record) -> Option<u16> {
    (record.protocol == IP_PROTOCOL_UDP && record.fragment != Fragment::Later).then_some(record.destination_port)
}
