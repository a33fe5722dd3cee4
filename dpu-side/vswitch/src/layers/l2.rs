//! Ethernet switching from a static table: a port is where its record says, and nothing a guest sends teaches the
//! switch anything.

use super::{Ingress, Output, Verdict};
use crate::reason::DropReason;

/// IEEE 802.1D-2004 §7.12.6: 01:80:c2:00:00:00 to …:0f stay on their link.
const RESERVED_PREFIX: [u8; 5] = [0x01, 0x80, 0xc2, 0x00, 0x00];

pub(super) fn decide(ingress: &Ingress<'_>) -> Verdict {
    let destination = ingress.packet.destination;
    let [first, .., last] = destination;
    if destination.starts_with(&RESERVED_PREFIX) && last <= 0x0f {
        return Verdict::Deny(DropReason::ReservedMulticast);
    }
    if first & 1 != 0 {
        return match ingress.policy.members(ingress.rules) {
            [] | [_] => Verdict::Deny(DropReason::NoReceiver),
            _ => Verdict::Output(Output::Flood),
        };
    }
    match ingress.policy.station(ingress.rules, destination) {
        Some(port) if port == ingress.port => Verdict::Deny(DropReason::ToItself),
        Some(port) => Verdict::Output(Output::Port(port)),
        None => Verdict::Continue,
    }
}
