//! The layers a frame passes, in order. Each looks at the frame's private bytes and their parse, and answers
//! [`Verdict`]; the first answer but `Continue` counts. What no layer sends anywhere is dropped.

mod l2;
mod source_guard;

use vhost_net_dpu::record::Record;

use crate::{
    policy::{PolicySet, Rules},
    reason::DropReason,
};

/// A frame from a port, as the layers see it.
#[derive(Debug, Clone, Copy)]
pub struct Ingress<'a> {
    /// The port it came from.
    pub port: usize,
    /// That port's policy.
    pub rules: &'a Rules,
    /// All ports' policy.
    pub policy: &'a PolicySet,
    /// What the frame is.
    pub record: &'a Record,
    /// Its first bytes, private: all of it, or as many as are inspected.
    pub head: &'a [u8],
}

/// A layer's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Ask the next layer.
    Continue,
    /// Drop the frame.
    Deny(DropReason),
    /// Send it.
    Output(Output),
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// To one port.
    Port(usize),
    /// To every other port of the sender's network.
    Flood,
}

/// The last destination that was looked up: a burst is often for one.
#[derive(Debug, Clone, Copy)]
pub struct Destination {
    /// The MAC, as a number.
    mac: u64,
    /// The port that has it.
    port: usize,
}

impl Default for Destination {
    fn default() -> Self {
        Self { mac: u64::MAX, port: 0 }
    }
}

/// Asks the layers, in order. `last` is of this port's last frames.
#[inline]
pub fn decide(ingress: &Ingress<'_>, last: &mut Destination) -> Result<Output, DropReason> {
    walk(ingress, last, |_, _| {})
}

/// Asks the layers, and tells what each said. The guard comes first: nothing after it sees a forged source.
#[inline]
pub fn walk(
    ingress: &Ingress<'_>,
    last: &mut Destination,
    mut told: impl FnMut(&'static str, Verdict),
) -> Result<Output, DropReason> {
    let verdict = source_guard::decide(ingress);
    told("source guard", verdict);
    if let Verdict::Deny(reason) = verdict {
        return Err(reason);
    }
    if ingress.record.destination == last.mac {
        return Ok(Output::Port(last.port));
    }
    let verdict = l2::decide(ingress);
    told("L2", verdict);
    match verdict {
        Verdict::Continue => Err(DropReason::UnknownDestination),
        Verdict::Deny(reason) => Err(reason),
        Verdict::Output(output) => {
            if let Output::Port(port) = output {
                *last = Destination {
                    mac: ingress.record.destination,
                    port,
                };
            }
            Ok(output)
        }
    }
}
