//! The layers a frame passes, in order. Each looks at the frame's private bytes and their parse, and answers
//! [`Verdict`]; the first answer but `Continue` counts. What no layer sends anywhere is dropped.

mod l2;
mod source_guard;

use vhost_net_dpu::packet::Packet;

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
    pub packet: &'a Packet,
    /// Its first bytes, private: all of it, or as many as are inspected.
    pub head: &'a [u8],
    /// Its whole length in bytes.
    pub frame_len: usize,
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

/// A layer.
type Layer = fn(&Ingress<'_>) -> Verdict;

/// The order. The guard comes first: nothing after it sees a forged source.
const LAYERS: [(&str, Layer); 2] = [("source guard", source_guard::decide), ("L2", l2::decide)];

/// Asks the layers.
pub fn decide(ingress: &Ingress<'_>) -> Result<Output, DropReason> {
    walk(ingress, |_, _| {})
}

/// Asks the layers, and tells what each said.
#[inline]
pub fn walk(ingress: &Ingress<'_>, mut told: impl FnMut(&'static str, Verdict)) -> Result<Output, DropReason> {
    for (name, layer) in LAYERS {
        let verdict = layer(ingress);
        told(name, verdict);
        match verdict {
            Verdict::Continue => {}
            Verdict::Deny(reason) => return Err(reason),
            Verdict::Output(output) => return Ok(output),
        }
    }
    Err(DropReason::UnknownDestination)
}
