//! Ethernet switching from a static table: a port is where its record says, and nothing a guest sends teaches the
//! switch anything.

use super::{Ingress, Output, Verdict};
use crate::reason::DropReason;

/// IEEE 802.1D-2004 §7.12.6: 01:80:c2:00:00:00 to …:0f stay on their link.
const RESERVED: u64 = 0x0180_c200_0000;
const RESERVED_MASK: u64 = 0xffff_ffff_fff0;

#[inline]
pub(super) fn decide(ingress: &Ingress<'_>) -> Verdict {
    let destination = ingress.record.destination;
    if ingress.record.is_group() {
        return group(ingress);
    }
    match ingress.policy.station(ingress.rules, destination) {
        Some(port) if port == ingress.port => Verdict::Deny(DropReason::ToItself),
        Some(port) => Verdict::Output(Output::Port(port)),
        None => Verdict::Continue,
    }
}

fn group(ingress: &Ingress<'_>) -> Verdict {
    if ingress.record.destination & RESERVED_MASK == RESERVED {
        return Verdict::Deny(DropReason::ReservedMulticast);
    }
    match ingress.policy.members(ingress.rules) {
        [] | [_] => Verdict::Deny(DropReason::NoReceiver),
        _ => Verdict::Output(Output::Flood),
    }
}
