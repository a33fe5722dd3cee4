//! A worker whose policy is changed while it serves: 10,000 rules are replaced by others, again and again.
//!
//! What it does for a change is what is measured. The policies are compiled before, as the thread that decides does it in the
//! daemon. After each change one frame is sent: it passes only where the rules of that very policy are asked.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use outboard_firewall::{Peer, Policy, Rule};

use crate::{
    Done,
    error::Error,
    frames::UDP_PORT,
    net::{self, Load, Ports, Traffic},
};

/// Rules that each change replaces.
const RULES: u32 = 10_000;
/// A change takes a thousand times as long as a frame.
const OPERATIONS_PER_CHANGE: u64 = 64;

/// Makes a change for every [`OPERATIONS_PER_CHANGE`] operations: so many are what was done.
pub fn run(operations: u64) -> Result<Done, Error> {
    let mut load = Load::new(Traffic::Frames(&[64], 1), Ports::Filtered)?;
    let mut policy = Arc::new(Policy::default());
    let mut done = Done::default();
    for change in 0..operations.div_ceil(OPERATIONS_PER_CHANGE) {
        policy = Arc::new(policy.follow(&net::groups(rules(change))).map_err(net::refused)?);
        done.spent += load.change(policy.clone());
        load.passes(change % 2 == 0)?;
        done.operations += 1;
    }
    Ok(done)
}

/// Those after a change: no two have a rule in common, and every second one lets the frames pass.
fn rules(change: u64) -> impl Iterator<Item = Rule> {
    let parity = u16::from(change % 2 == 1);
    let of_others = (0..RULES).map(move |n| {
        let from = Ipv4Addr::from_bits(Ipv4Addr::new(172, 16, 0, 0).to_bits() + n);
        // Of the thousand ports, each with its neighbour for the other half of the changes.
        let port = 20_000 + u16::try_from(n % 1000).unwrap_or(0) * 2 + parity;
        Rule {
            peer: Peer::Cidr(IpAddr::V4(from).into()),
            ..net::allowing(port)
        }
    });
    of_others.chain((parity == 0).then(|| net::allowing(UDP_PORT)))
}
