//! Trunks: ports that have no device of their own, and whose frames pass another port's, each with a VLAN tag.
//!
//! Such a *subport* is a port like any other for all that is decided and counted: its network, its source guard, its
//! security groups, its counters. Only where frames are taken from a guest or given to it does its parent's device take its
//! place. A frame's tag is off before the first layer sees it, and a tag is put in as the frame is written, so that what
//! either side sends or gets is no matter of the other: a frame from VLAN 5 of one guest may reach another guest on VLAN 9,
//! or untagged.

use std::ops::Range;

use outboard_controls::{Check, on};
use vhost_net_dpu::{
    deliver::{Scratch, forward_on},
    error::RxDrop,
    record::Record,
};

use crate::{
    burst::{From, Parts, touch},
    counters::Tally,
    crossing::{Origin, Target},
    policy::{PolicySet, Rules},
    port::{Gate, LaneAt, Port},
    queues::Running,
    reason::DropReason,
};

/// VLAN ids that there can be.
const VLAN_IDS: usize = 1 << 12;

/// Whose device carries a subport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Carried {
    /// The port with the device; none if it is not there.
    pub parent: Option<usize>,
    /// The VLAN id there.
    pub vlan: u16,
}

/// The subports of a port, directly by VLAN id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trunk {
    /// A port and one more; 0 is none.
    by_vlan: Box<[u32]>,
}

impl Default for Trunk {
    fn default() -> Self {
        Self {
            by_vlan: vec![0; VLAN_IDS].into(),
        }
    }
}

impl Trunk {
    /// The port has this VLAN id.
    pub fn set(&mut self, vlan: u16, port: usize) {
        if let (Some(place), Ok(port)) = (self.by_vlan.get_mut(usize::from(vlan)), u32::try_from(port + 1)) {
            *place = port;
        }
    }

    /// The port that has a VLAN id.
    pub fn get(&self, vlan: u16) -> Option<usize> {
        let port = *self.by_vlan.get(usize::from(vlan))?;
        (port as usize).checked_sub(1)
    }
}

/// Who sent a frame that a port's guest tagged: one of the port's subports. Else why it is dropped.
pub(crate) fn sender(policy: &PolicySet, device: usize, vlan: u16) -> Result<usize, DropReason> {
    if !on(Check::TrunkTag) {
        // Whoever has that id, wherever.
        let has_it = |(_, rules): &(usize, &Rules)| rules.carried.is_some_and(|c| c.vlan == vlan);
        let found = policy.all().iter().enumerate().find(has_it).map(|(port, _)| port);
        return found.ok_or(DropReason::UnknownVlan);
    }
    let trunk = policy.rules(device).and_then(|rules| rules.trunk.as_deref());
    match trunk {
        _ if vlan == 0 => Err(DropReason::PriorityTagged),
        None => Err(DropReason::VlanTagged),
        Some(trunk) => trunk.get(vlan).ok_or(DropReason::UnknownVlan),
    }
}

/// Who sent the next frames of a burst, and how many of them in a row: the port itself, or one of its subports, or nobody
/// for a reason, which counts at the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) port: usize,
    pub(crate) refused: Option<DropReason>,
    pub(crate) slots: usize,
}

/// The run that the first of these records begins.
pub(crate) fn run(policy: &PolicySet, device: usize, records: &[Record], gate: impl Fn(usize) -> Option<Gate>) -> Run {
    let vlan = records.first().and_then(Record::vlan);
    let slots = records.iter().take_while(|record| record.vlan() == vlan).count();
    let (port, refused) = match vlan.map(|vlan| sender(policy, device, vlan)) {
        None => (device, None),
        Some(Err(reason)) => (device, Some(reason)),
        Some(Ok(port)) => {
            let shut = gate(port) != Some(Gate::Open);
            (port, shut.then_some(DropReason::SubportShut))
        }
    };
    Run { port, refused, slots }
}

/// Gives frames of a burst to a port where one of the two is a subport. False if the sender's memory is gone.
#[inline(never)]
pub(crate) fn carry(
    ports: &mut [Port],
    from: From,
    (receiver, carried): (usize, Option<Carried>),
    slots: Range<usize>,
    parts: &mut Parts<'_>,
) -> bool {
    let vlan = carried.map(|carried| carried.vlan);
    let device = carried.map_or(Some(receiver), |carried| carried.parent);
    // Its own gate is looked at here, its device's with the device.
    let shut = |port: &Port| (port.gate != Gate::Open).then_some(DropReason::PortShut);
    let closed = ports.get(receiver).and_then(shut);
    let closed = closed.or_else(|| match device.and_then(|device| ports.get(device)) {
        Some(device) => device.closed(),
        None => Some(DropReason::RxNotRunning),
    });
    // Out of its port, since that port may be the device too.
    let Some(mut tally) = ports.get_mut(receiver).map(|port| std::mem::take(&mut port.tally)) else {
        return true;
    };
    let gone = match (closed, device) {
        (None, Some(device)) => {
            if let Some(port) = ports.get_mut(device) {
                touch(parts.touched, (device, &mut port.touched));
            }
            let to = (receiver, device, vlan);
            slots
                .filter(|slot| !give(ports, from, to, *slot, parts, &mut tally))
                .count()
        }
        (reason, _) => {
            slots.for_each(|_| tally.drop(reason.unwrap_or(DropReason::RxNotRunning)));
            0
        }
    };
    if let Some(port) = ports.get_mut(receiver) {
        port.tally = tally;
    }
    if gone > 0 {
        if let Some(running) = ports.get_mut(from.device).and_then(|port| port.tx.at(from.place)) {
            running.queue.fail_memory();
        }
        if let Some(port) = ports.get_mut(from.port) {
            (0..gone).for_each(|_| port.tally.drop(DropReason::TxMemoryGone));
        }
    }
    gone == 0
}

/// Gives the frame in a slot to the device of a port, here or in another worker, with a tag if there is a VLAN id. False if
/// it could not be read any more.
fn give(
    ports: &mut [Port],
    from: From,
    (receiver, device, vlan): (usize, usize, Option<u16>),
    slot: usize,
    parts: &mut Parts<'_>,
    tally: &mut Tally,
) -> bool {
    let (Some(sender), Some(to)) = (ports.get(from.device), ports.get(device)) else {
        return true;
    };
    let tx = sender.tx.get(from.place);
    let Some((record, head)) = tx.and_then(|tx| Some((tx.queue.records().get(slot)?, tx.queue.head_of(slot)))) else {
        return true;
    };
    let at = if to.is_here() {
        match to.rx.len() {
            0 => None,
            1 => Some(LaneAt::Here(0)),
            count => Some(LaneAt::Here(parts.flows.queue(record, head, count))),
        }
        .map(|at| (0, at))
    } else {
        to.lane(record, head, parts.flows).map(|lane| (lane.pair, lane.at))
    };
    match at {
        Some((_, LaneAt::Here(place))) => give_here(ports, from, (device, place, vlan), slot, parts.scratch, tally),
        Some((pair, LaneAt::There(worker))) => {
            let reference = |index| {
                ports
                    .get(index)
                    .map(|port: &Port| port.reference(index))
                    .unwrap_or_default()
            };
            let origin = Origin {
                device: reference(from.device),
                sender: reference(from.port),
            };
            let port = reference(receiver);
            let running = ports.get_mut(from.device).and_then(|port| port.tx.at(from.place));
            let sent = match (running, &mut parts.exchange) {
                (Some(running), Some(exchange)) => {
                    let target = (worker, Target { port, pair });
                    match parts.group {
                        true => exchange.gather((origin, running), slot, target),
                        false => exchange.send((origin, running), slot, target),
                    }
                }
                _ => Err(DropReason::RxNotRunning),
            };
            if let Err(reason) = sent {
                tally.drop(reason);
            }
            true
        }
        None => {
            tally.drop(DropReason::RxNotRunning);
            true
        }
    }
}

/// Gives the frame in a slot to a device's receive queue here. False if it could not be read any more.
fn give_here(
    ports: &mut [Port],
    from: From,
    (device, place, vlan): (usize, usize, Option<u16>),
    slot: usize,
    scratch: &mut Scratch,
    tally: &mut Tally,
) -> bool {
    // A device may give to itself: from one of its ports to another.
    let queues = if device == from.device {
        ports
            .get_mut(device)
            .and_then(|port| Some((port.tx.at(from.place)?, port.rx.at(place)?)))
    } else {
        let both = ports.get_disjoint_mut([from.device, device]).ok();
        both.and_then(|[sender, to]| Some((sender.tx.at(from.place)?, to.rx.at(place)?)))
    };
    let Some((tx, rx)) = queues else { return true };
    let Running {
        queue, frames, bytes, ..
    } = rx;
    let mut lives = true;
    forward_on(&tx.queue, slot, (queue, vlan), scratch, |outcome| match outcome {
        Ok(len) => tally.received_by((frames, bytes), len as u64),
        Err(RxDrop::SourceGone) => lives = false,
        Err(drop) => tally.missed(drop),
    });
    lives
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trunk_knows_each_of_its_vlan_ids_and_no_other() {
        let mut trunk = Trunk::default();
        for vlan in [1, 100, 4094] {
            trunk.set(vlan, usize::from(vlan) + 7);
        }
        trunk.set(4096, 1);
        for vlan in 0..=u16::MAX {
            let known = matches!(vlan, 1 | 100 | 4094).then(|| usize::from(vlan) + 7);
            assert_eq!(trunk.get(vlan), known, "{vlan}");
        }
    }
}
