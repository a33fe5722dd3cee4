//! IPv4 and IPv6 sources; what only a router may say; source routes, which would have the receiver pass a packet on as if
//! it were a router; and DHCP: there is no DHCP server in this version, so a client's call is dropped with a
//! reason that says so, and an answer to one comes from nobody who may give it.

use std::net::{Ipv4Addr, Ipv6Addr};

use vhost_net_dpu::packet::{Fragment, IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6, IP_PROTOCOL_UDP, IpAddresses, IpPacket};

use super::{Ingress, nd};
use crate::reason::DropReason;

/// UDP ports of DHCP (RFC 2131 §4.1) and of the DHCPv6 client (RFC 8415 §7.2).
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
/// ICMP types of routers (RFC 792, RFC 1256).
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER_ADVERTISEMENT: u8 = 9;

pub(super) fn check(ingress: &Ingress<'_>, packet: &IpPacket) -> Result<(), DropReason> {
    match packet.addresses {
        IpAddresses::V4(source, _) => check_v4(ingress, packet, source)?,
        IpAddresses::V6(source, _) => check_v6(ingress, packet, source)?,
    }
    if packet.routed {
        return Err(DropReason::SourceRouted);
    }
    Ok(())
}

fn check_v4(ingress: &Ingress<'_>, packet: &IpPacket, source: Ipv4Addr) -> Result<(), DropReason> {
    let port = udp_destination(ingress, packet);
    if source.is_unspecified() && port == Some(DHCP_SERVER) {
        return Err(DropReason::DhcpWithoutServer);
    }
    if !ingress.rules.owns_v4(source) {
        return Err(DropReason::SpoofedIpv4);
    }
    if packet.protocol == IP_PROTOCOL_ICMP && packet.fragment != Fragment::Later {
        let kind = ingress.head.get(packet.transport_offset);
        if matches!(kind, Some(&(ICMP_REDIRECT | ICMP_ROUTER_ADVERTISEMENT))) {
            return Err(DropReason::RouterMessage);
        }
    }
    if port == Some(DHCP_CLIENT) {
        return Err(DropReason::RogueDhcp);
    }
    Ok(())
}

fn check_v6(ingress: &Ingress<'_>, packet: &IpPacket, source: Ipv6Addr) -> Result<(), DropReason> {
    let own = ingress.rules.owns_v6(source);
    if packet.protocol == IP_PROTOCOL_ICMPV6 && packet.fragment != Fragment::Later {
        return nd::check(ingress, packet, own);
    }
    if !own {
        return Err(DropReason::SpoofedIpv6);
    }
    if udp_destination(ingress, packet) == Some(DHCPV6_CLIENT) {
        return Err(DropReason::RogueDhcp);
    }
    Ok(())
}

/// UDP's destination port, where there is one: the parser saw to it that a first fragment holds it.
fn udp_destination(ingress: &Ingress<'_>, packet: &IpPacket) -> Option<u16> {
    if packet.protocol != IP_PROTOCOL_UDP || packet.fragment == Fragment::Later {
        return None;
    }
    let ports = ingress.head.get(packet.transport_offset..)?.first_chunk::<4>()?;
    Some(u16::from_be_bytes([ports[2], ports[3]]))
}
