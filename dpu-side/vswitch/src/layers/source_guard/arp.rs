//! ARP (RFC 826): sender MAC and sender address are the port's. A probe (RFC 5227 §2.1.1: sender address 0.0.0.0) may
//! ask for the port's own addresses only, or it would keep others from using theirs.

use std::net::Ipv4Addr;

use vhost_net_dpu::{HEAD_LEN_MAX, packet::ETHERNET_HEADER_LEN};

use super::Ingress;
use crate::reason::DropReason;

/// An ARP message for IPv4 over Ethernet, in bytes.
const ARP_LEN: usize = 28;
/// Hardware type Ethernet, protocol type IPv4, hardware and protocol address lengths.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

pub(super) fn check(ingress: &Ingress<'_>) -> Result<(), DropReason> {
    let message = ingress
        .head
        .get(ETHERNET_HEADER_LEN..)
        .and_then(|rest| rest.first_chunk::<ARP_LEN>());
    let message = message
        .filter(|_| ingress.record.len as usize <= HEAD_LEN_MAX)
        .ok_or(DropReason::MalformedArp)?;
    let [t0, t1, t2, t3, t4, t5, o0, o1, rest @ ..] = *message;
    let [h0, h1, h2, h3, h4, h5, s0, s1, s2, s3, _, _, _, _, _, _, d0, d1, d2, d3] = rest;
    let operation = [o0, o1];
    if [t0, t1, t2, t3, t4, t5] != ETHERNET_IPV4 || operation != REQUEST && operation != REPLY {
        return Err(DropReason::MalformedArp);
    }
    let sender = Ipv4Addr::new(s0, s1, s2, s3);
    let target = Ipv4Addr::new(d0, d1, d2, d3);
    let own_sender = ingress.rules.owns_v4(sender);
    let own_probe = operation == REQUEST && sender.is_unspecified() && ingress.rules.owns_v4(target);
    if [h0, h1, h2, h3, h4, h5] != ingress.rules.mac || !(own_sender || own_probe) {
        return Err(DropReason::SpoofedArp);
    }
    Ok(())
}
