//! A port's burst, in stages: all of its frames pass one before the first of them comes to the next.
//!
//! 1. *Take*: what waits in a transmit queue, parsed, at most as much as the port's share.
//! 2. *Decide*: the layers say of each frame what becomes of it, its fate. What it costs is added up, and the burst ends
//!    where the share does; what is left stays in the queue.
//! 3. *Deliver*: runs of frames for one receiver are given to it in one go.
//! 4. *Show*: the buffers go back, and each queue that was given something publishes it, once.

use std::ops::Range;

use outboard_ring::Signals;
use vhost_net_dpu::{
    deliver::Scratch,
    record::Class,
    tx::{BURST_MAX, TxQueue},
};

use crate::{
    Switch,
    flow::FlowHash,
    layers::{self, Destination, Ingress, Output},
    policy::{PolicySet, Rules},
    port::Port,
    reason::DropReason,
};

/// Frames taken from one port before it is the next one's turn. A copy of a broadcast counts as a frame, and so
/// does each packet that a large frame may have to be cut into.
pub const BURST_FRAMES: usize = 32;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody gets it; counted at the sender.
    Drop(DropReason),
    /// It goes somewhere.
    Output(Output),
}

/// The fates of a burst's frames, by slot.
#[derive(Debug)]
pub(crate) struct Fates([Fate; BURST_MAX]);

impl Default for Fates {
    fn default() -> Self {
        Self([Fate::Drop(DropReason::UnknownDestination); BURST_MAX])
    }
}

/// What the decisions about a burst came to.
#[derive(Debug, Default)]
struct Decided {
    /// Slots that were decided about, from the first on.
    slots: usize,
    /// Bytes of their frames.
    bytes: u64,
    /// What they cost, in frames.
    cost: usize,
}

impl Switch {
    /// Frames from one port, its transmit queues in turn. True if there were any, or it still pays for earlier ones.
    pub(crate) fn burst(&mut self, index: usize, signals: &mut dyn Signals) -> bool {
        let Some(port) = self.ports.get_mut(index).filter(|port| port.serves()) else {
            return false;
        };
        let count = port.tx.len();
        let in_debt = port.debt > 0;
        let share = BURST_FRAMES.saturating_sub(port.debt);
        port.debt = port.debt.saturating_sub(BURST_FRAMES);
        let mut turn = port.tx_turn;
        let mut spent = 0;
        // Queues that had nothing are not asked again in this burst.
        let mut waiting = u64::MAX;
        let mut asked = 0;
        while spent < share && asked < count {
            let place = if turn < count { turn } else { 0 };
            turn = place + 1;
            if waiting & 1 << place == 0 {
                asked += 1;
                continue;
            }
            let most = (share - spent).min(BURST_FRAMES.div_ceil(count));
            let cost = self.serve((index, place), most);
            if cost < most {
                waiting &= !(1 << place);
            }
            asked = 0;
            spent += cost;
        }
        if let Some(port) = self.ports.get_mut(index) {
            port.tx_turn = turn;
            port.debt += spent.saturating_sub(share);
        }
        self.show(signals);
        spent > 0 || in_debt
    }

    /// Frames from the transmit queue at a place, until they cost `most` or there are no more. What they cost, in frames.
    fn serve(&mut self, (index, place): (usize, usize), most: usize) -> usize {
        let (Some(port), Some(rules)) = (self.ports.get_mut(index), self.policy.rules(index)) else {
            return 0;
        };
        let Some(running) = port.tx.at(place) else { return 0 };
        let taken = running.queue.take_burst(most);
        if taken == 0 {
            if running.queue.queue().failed().is_some() {
                touch(&mut self.touched, port, index);
            }
            return 0;
        }
        let decided = decide((&self.policy, rules, index), &running.queue, &mut self.fates, most);
        let frames = decided.slots as u64;
        running.count(frames, decided.bytes);
        port.tally.sent(frames, decided.bytes);
        touch(&mut self.touched, port, index);
        self.deliver((index, place), decided.slots);
        if let Some(running) = self.ports.get_mut(index).and_then(|port| port.tx.at(place)) {
            running.queue.give_back_burst(decided.slots);
        }
        decided.cost
    }

    /// Gives the frames of a burst, whose fates are known, to their receivers.
    fn deliver(&mut self, from: (usize, usize), slots: usize) {
        let mut slot = 0;
        while let Some(fate) = self.fates.0.get(..slots).and_then(|fates| fates.get(slot)).copied() {
            let run = slot + 1 + self.alike(slot + 1..slots, fate);
            match fate {
                Fate::Drop(reason) => {
                    if let Some(port) = self.ports.get_mut(from.0) {
                        (slot..run).for_each(|_| port.tally.drop(reason));
                    }
                }
                Fate::Output(Output::Port(receiver)) => {
                    let parts = (&mut self.touched, &self.flows, &mut self.scratch);
                    hand_over(&mut self.ports, from, receiver, slot..run, parts);
                }
                Fate::Output(Output::Flood) => (slot..run).for_each(|slot| self.flood(from, slot)),
            }
            slot = run;
        }
    }

    /// How many slots from the first on have the same fate.
    #[inline]
    fn alike(&self, slots: Range<usize>, fate: Fate) -> usize {
        let fates = self.fates.0.get(slots).unwrap_or_default();
        fates.iter().take_while(|other| **other == fate).count()
    }

    /// Gives a frame to every other port of its sender's network.
    fn flood(&mut self, from: (usize, usize), slot: usize) {
        let members = self.policy.rules(from.0).map(|rules| self.policy.members(rules));
        for &receiver in members.unwrap_or_default() {
            let parts = (&mut self.touched, &self.flows, &mut self.scratch);
            if receiver != from.0 && !hand_over(&mut self.ports, from, receiver, slot..slot + 1, parts) {
                break;
            }
        }
    }

    /// Shows what the burst gave to whom it was given.
    fn show(&mut self, signals: &mut dyn Signals) {
        for index in self.touched.drain(..) {
            if let Some(port) = self.ports.get_mut(index) {
                port.touched = false;
                port.flush(signals);
            }
        }
    }
}

/// Asks the layers about each frame of a burst, until together they cost `most`.
fn decide((policy, rules, port): (&PolicySet, &Rules, usize), tx: &TxQueue, fates: &mut Fates, most: usize) -> Decided {
    let mut decided = Decided::default();
    let mut last = Destination::default();
    for ((slot, record), fate) in tx.records().iter().enumerate().zip(&mut fates.0) {
        let ingress = Ingress {
            port,
            rules,
            policy,
            record,
            head: tx.head_of(slot),
        };
        let outcome = match record.class {
            Class::Refused => Err(tx.refusal(slot).map_or(DropReason::MalformedChain, Into::into)),
            _ => layers::decide(&ingress, &mut last),
        };
        decided.slots = slot + 1;
        decided.bytes += u64::from(record.len);
        let copies = match outcome {
            Err(reason) => {
                *fate = Fate::Drop(reason);
                decided.cost += 1;
                if decided.cost >= most {
                    break;
                }
                continue;
            }
            Ok(output) => {
                *fate = Fate::Output(output);
                match output {
                    Output::Port(_) => 1,
                    Output::Flood => policy.members(rules).len(),
                }
            }
        };
        decided.cost += copies.saturating_mul(record.packet_count());
        if decided.cost >= most {
            break;
        }
    }
    decided
}

/// Notes that a port has something to show.
#[inline]
fn touch(touched: &mut Vec<usize>, port: &mut Port, index: usize) {
    if !port.touched {
        port.touched = true;
        touched.push(index);
    }
}

/// Gives frames from a place of one port to another port. False if the sender's memory is gone.
fn hand_over(
    ports: &mut [Port],
    (index, place): (usize, usize),
    receiver: usize,
    slots: Range<usize>,
    (touched, flows, scratch): (&mut Vec<usize>, &FlowHash, &mut Scratch),
) -> bool {
    let Ok([sender, port]) = ports.get_disjoint_mut([index, receiver]) else {
        return true;
    };
    let Some(running) = sender.tx.at(place) else {
        return true;
    };
    touch(touched, port, receiver);
    let mut gone = 0;
    port.receive(&running.queue, slots, flows, scratch, || gone += 1);
    if gone > 0 {
        running.queue.fail_memory();
        (0..gone).for_each(|_| sender.tally.drop(DropReason::TxMemoryGone));
    }
    gone == 0
}
