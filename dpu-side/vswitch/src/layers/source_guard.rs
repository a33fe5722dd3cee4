//! A port sends from its own addresses only: MAC, IPv4, IPv6, ARP and neighbour discovery.
//!
//! Addresses are the record's; beside them the IPv6 link-local address made from the port's MAC. A guest that makes its
//! link-local address otherwise (RFC 7217) is heard only if that address is in the record.
//!
//! Group membership queries (IGMP, MLD) pass from the port's own addresses, as operators know it from Neutron, whose
//! anti-spoofing rules let instances send them. A false querier gains little here: every member of a network is given
//! its groups' frames whether it asked or not, and what it can bring about are reports. From no address, as snooping
//! switches send them (RFC 4541 §2.1.1), or from another's they are forged.

mod arp;
mod ip;
mod nd;

use outboard_controls::{Check, on};
use vhost_net_dpu::record::Class;

use super::{Ingress, Verdict};
use crate::reason::DropReason;

/// EtherTypes of VLAN tags: IEEE 802.1Q, 802.1ad, and what came before 802.1ad. One 802.1Q tag was taken off already.
const VLAN_ETHERTYPES: [u16; 3] = [0x8100, 0x88a8, 0x9100];

#[inline]
pub(super) fn decide(ingress: &Ingress<'_>) -> Verdict {
    if !on(Check::SourceGuard) {
        return Verdict::Continue;
    }
    match check(ingress) {
        Ok(()) => Verdict::Continue,
        Err(reason) => Verdict::Deny(reason),
    }
}

#[inline]
fn check(ingress: &Ingress<'_>) -> Result<(), DropReason> {
    if ingress.record.source != ingress.rules.mac_number {
        return Err(DropReason::SpoofedMac);
    }
    match ingress.record.class {
        Class::Ipv4 => ip::check_v4(ingress),
        Class::Ipv6 => ip::check_v6(ingress),
        Class::Arp => arp::check(ingress),
        Class::Other if VLAN_ETHERTYPES.contains(&ingress.record.ethertype) => Err(DropReason::VlanTagged),
        Class::Other | Class::Refused => Err(DropReason::UnknownEthertype),
    }
}
