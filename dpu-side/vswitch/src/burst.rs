//! A port's burst, in stages: all of its frames pass one before the first of them comes to the next.
//!
//! 1. *Take*: what waits in a transmit queue, parsed, at most as much as the port's share.
//! 2. *Decide*: the layers say of each frame what becomes of it, its fate. What it costs is added up, and the burst ends
//!    where the share does; what is left stays in the queue.
//! 3. *Deliver*: runs of frames for one receiver are given to it in one go.
//! 4. *Show*: the buffers go back, and each queue that was given something publishes it, once.

use std::ops::Range;

use outboard_controls::{Check, on};
use outboard_ring::Signals;
use vhost_net_dpu::{
    deliver::Scratch,
    record::{Class, Record},
    tx::{BURST_MAX, TxQueue},
};

use crate::{
    Switch,
    crossing::{Exchange, Origin, Target},
    firewall::{self, Denial},
    flow::FlowHash,
    layers::{self, Destination, Ingress, Output},
    policy::{PolicySet, Rules},
    port::{Lane, LaneAt, Port},
    queues::Running,
    reason::DropReason,
    trunk::{self, Carried, Run},
};

/// Frames taken from one port before it is the next one's turn. A copy of a broadcast counts as a frame, and so
/// does each packet that a large frame may have to be cut into.
pub const BURST_FRAMES: usize = 32;

/// Where frames come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct From {
    /// The port whose device they were taken from, and the place of the queue.
    pub(crate) device: usize,
    pub(crate) place: usize,
    /// The port that sent them: the same, or one of its subports.
    pub(crate) port: usize,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody gets it; counted at the sender.
    Drop(DropReason),
    /// It goes somewhere.
    Output(Output),
    /// It goes there if the firewall lets it.
    Ask(Output),
    /// The firewall is against it.
    Refused {
        reason: DropReason,
        /// The port that counts it.
        at: usize,
        /// The sender is told.
        reject: bool,
    },
}

/// The fates of a burst's frames, by slot.
#[derive(Debug)]
pub(crate) struct Fates([Fate; BURST_MAX]);

impl Default for Fates {
    fn default() -> Self {
        Self([Fate::Drop(DropReason::UnknownDestination); BURST_MAX])
    }
}

impl Fates {
    /// What becomes of the frame in a slot.
    pub(crate) fn get(&self, slot: usize) -> Option<Fate> {
        self.0.get(slot).copied()
    }
}

/// What the decisions about frames of a burst came to.
#[derive(Debug, Default)]
struct Decided {
    /// How many were decided about.
    slots: usize,
    /// Bytes of their frames.
    bytes: u64,
    /// What they cost, in frames.
    cost: usize,
    /// The firewall is to be asked about some.
    asks: bool,
}

impl Decided {
    /// Only so many slots are dealt with; what is behind them is left in the queue for the next time.
    fn shorten(&mut self, slots: usize, records: &[Record]) {
        if slots >= self.slots {
            return;
        }
        for record in records.get(slots..self.slots).unwrap_or_default() {
            self.bytes -= u64::from(record.len);
            self.cost = self.cost.saturating_sub(record.packet_count());
        }
        self.slots = slots;
    }
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
            let (cost, more) = self.serve((index, place), most);
            if !more {
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

    /// Frames from the transmit queue at a place, until they cost `most` or there are no more. What they cost, in frames, and
    /// whether there may be more.
    fn serve(&mut self, (index, place): (usize, usize), most: usize) -> (usize, bool) {
        let Some(Port { tx, touched, .. }) = self.ports.get_mut(index) else {
            return (0, false);
        };
        let Some(running) = tx.at(place) else {
            return (0, false);
        };
        // What is taken and cannot be seen to was looked at in vain.
        let wanted = most.div_ceil(running.weight.max(1));
        let taken = running.queue.take_burst(wanted);
        if taken == 0 {
            if running.queue.queue().failed().is_some() {
                touch(&mut self.touched, (index, touched));
            }
            return (0, false);
        }
        touch(&mut self.touched, (index, touched));
        let untagged = running.queue.tagged() == 0;
        let (mut done, mut cost) = (0, 0);
        while done < taken && cost < most {
            let mut run = Run {
                port: index,
                refused: None,
                slots: taken,
            };
            if !untagged {
                run = self.next_run((index, place), done);
            }
            let from = From {
                device: index,
                place,
                port: run.port,
            };
            let (slots, more) = self.serve_run(from, done..done + run.slots, run.refused, most - cost);
            done += slots;
            cost += more;
            if slots < run.slots {
                break;
            }
        }
        if let Some(running) = self.ports.get_mut(index).and_then(|port| port.tx.at(place)) {
            running.queue.give_back_burst(done);
        }
        // Where nothing could be seen to, asking again would not help.
        (cost, cost > 0 && taken == wanted)
    }

    /// Who sent the frames from a slot on, and how many of them.
    #[cold]
    fn next_run(&self, (device, place): (usize, usize), first: usize) -> Run {
        let queue = self.ports.get(device).and_then(|port| port.tx.get(place));
        let records = queue.map(|tx| tx.queue.records()).unwrap_or_default();
        let gate = |port: usize| self.ports.get(port).map(|port| port.gate);
        trunk::run(&self.policy, device, records.get(first..).unwrap_or_default(), gate)
    }

    /// The frames in these slots, which one port sent: how many were seen to, and what that cost, which ends it at `most`.
    fn serve_run(
        &mut self,
        from: From,
        slots: Range<usize>,
        refused: Option<DropReason>,
        most: usize,
    ) -> (usize, usize) {
        let Some(rules) = self.policy.rules(from.port) else {
            return (0, 0);
        };
        // The sender's queue, and what is the sending port's own.
        let mut other = None;
        let device = if from.device == from.port {
            self.ports.get_mut(from.device)
        } else {
            let ports = self.ports.get_disjoint_mut([from.device, from.port]);
            ports.ok().map(|[device, port]| {
                other = Some((&mut port.tally, &port.commons));
                device
            })
        };
        let Some(Port { tx, tally, commons, .. }) = device else {
            return (0, 0);
        };
        let (tally, commons) = other.unwrap_or((tally, commons));
        let Some(running) = tx.at(from.place) else {
            return (0, 0);
        };
        let first = slots.start;
        let (queue, fates) = (&running.queue, &mut self.fates);
        let mut decided = match refused {
            None => decide((&self.policy, rules, from.port), queue, fates, slots, most),
            Some(reason) => refuse(reason, queue, fates, slots, most),
        };
        let weight = decided.cost.checked_div(decided.slots).unwrap_or(1);
        if decided.asks {
            let burst = firewall::Burst {
                policy: &self.policy,
                from: rules,
                index: from.port,
                tx: &running.queue,
                first,
                datagrams: &commons.datagrams,
                now: self.now,
            };
            let fates = self.fates.0.get_mut(first..first + decided.slots).unwrap_or_default();
            let (done, more) = self.firewall.resolve(burst, fates);
            decided.shorten(done, running.queue.records().get(first..).unwrap_or_default());
            decided.cost += if on(Check::WorkCharged) { more } else { 0 };
        }
        let frames = decided.slots as u64;
        running.count(frames, decided.bytes);
        running.weight = weight;
        tally.sent(frames, decided.bytes);
        let end = first + decided.slots;
        if self.captures.any() {
            self.deliver_captured(from, first..end);
        } else {
            self.deliver(from, first..end);
        }
        // Of frames for a group, each receiver's rules are asked when it is given its copy.
        let asked = self.firewall.take_cost();
        let cost = decided.cost + if on(Check::WorkCharged) { asked } else { 0 };
        (decided.slots, cost)
    }

    /// Gives the frames of a burst, whose fates are known, to their receivers.
    pub(crate) fn deliver(&mut self, from: From, slots: Range<usize>) {
        let Range { start: mut slot, end } = slots;
        while let Some(fate) = self.fates.0.get(..end).and_then(|fates| fates.get(slot)).copied() {
            let run = slot + 1 + self.alike(slot + 1..end, fate);
            match fate {
                Fate::Drop(reason) => self.count_drops(from.port, reason, run - slot),
                // What nobody sends anywhere is dropped.
                Fate::Ask(_) => self.count_drops(from.port, DropReason::UnknownDestination, run - slot),
                Fate::Output(Output::Port(receiver)) => {
                    let to = (receiver, self.policy.carried(receiver));
                    let mut parts = Parts {
                        touched: &mut self.touched,
                        flows: &self.flows,
                        scratch: &mut self.scratch,
                        exchange: self.exchange.as_deref_mut(),
                        group: false,
                    };
                    hand_over(&mut self.ports, from, to, slot..run, &mut parts);
                }
                Fate::Refused { reason, at, reject } => {
                    self.count_drops(at, reason, run - slot);
                    if reject {
                        (slot..run).for_each(|slot| self.reply(from, slot));
                    }
                }
                Fate::Output(Output::Flood) => (slot..run).for_each(|slot| self.flood(from, slot)),
            }
            slot = run;
        }
    }

    fn count_drops(&mut self, port: usize, reason: DropReason, count: usize) {
        if let Some(port) = self.ports.get_mut(port) {
            (0..count).for_each(|_| port.tally.drop(reason));
        }
    }

    /// How many slots from the first on have the same fate.
    #[inline]
    fn alike(&self, slots: Range<usize>, fate: Fate) -> usize {
        let fates = self.fates.0.get(slots).unwrap_or_default();
        fates.iter().take_while(|other| **other == fate).count()
    }

    /// Gives a frame to every other port of its sender's network.
    fn flood(&mut self, from: From, slot: usize) {
        let Some(rules) = self.policy.rules(from.port) else {
            return;
        };
        let filters = self.policy.filters(rules);
        for &receiver in self.policy.members(rules) {
            if receiver == from.port {
                continue;
            }
            if filters && let Err(denial) = self.admit(from, slot, receiver) {
                if let Some(port) = self.ports.get_mut(receiver) {
                    port.tally.drop(denial.reason);
                }
                continue;
            }
            let to = (receiver, self.policy.carried(receiver));
            let mut parts = Parts {
                touched: &mut self.touched,
                flows: &self.flows,
                scratch: &mut self.scratch,
                exchange: self.exchange.as_deref_mut(),
                group: true,
            };
            if !hand_over(&mut self.ports, from, to, slot..slot + 1, &mut parts) {
                break;
            }
        }
        if let Some(exchange) = &mut self.exchange {
            close(exchange, &mut self.ports, from, slot);
        }
    }

    /// Does the firewall let a receiver get a frame for a group?
    fn admit(&self, from: From, slot: usize, receiver: usize) -> Result<(), Denial> {
        let tx = self.ports.get(from.device).and_then(|port| port.tx.get(from.place));
        let (Some(tx), Some(rules)) = (tx, self.policy.rules(receiver)) else {
            return Ok(());
        };
        match tx.queue.records().get(slot) {
            Some(record) if rules.filter.filtered && firewall::is_judged(record) => {
                self.firewall.admits(record, tx.queue.head_of(slot), rules)
            }
            _ => Ok(()),
        }
    }

    /// Tells the sender of a frame that it was rejected, if an answer is due.
    fn reply(&mut self, from: From, slot: usize) {
        if from.device == from.port {
            if let Some(port) = self.ports.get_mut(from.port) {
                port.reply(from.place, slot, &self.flows, self.now);
            }
        } else if let Ok([device, port]) = self.ports.get_disjoint_mut([from.device, from.port]) {
            let vlan = self.policy.carried(from.port).map(|carried| carried.vlan);
            let answered = device.answer((from.place, slot), vlan, &self.flows, (&port.commons, self.now));
            if let Some(len) = answered {
                port.tally.received(1, len);
            }
        }
    }

    /// Shows what the burst gave to whom it was given.
    pub(crate) fn show(&mut self, signals: &mut dyn Signals) {
        for index in self.touched.drain(..) {
            if let Some(port) = self.ports.get_mut(index) {
                port.touched = false;
                port.flush(signals);
            }
        }
    }
}

/// Drops each frame in these slots of a burst, for a reason that all of them have and that nobody is asked about.
#[cold]
fn refuse(reason: DropReason, tx: &TxQueue, fates: &mut Fates, slots: Range<usize>, most: usize) -> Decided {
    let mut decided = Decided::default();
    for slot in slots.take(most) {
        let (Some(record), Some(fate)) = (tx.records().get(slot), fates.0.get_mut(slot)) else {
            break;
        };
        // One that is no frame has a reason of its own.
        *fate = Fate::Drop(tx.refusal(slot).map_or(reason, Into::into));
        decided.slots += 1;
        decided.bytes += u64::from(record.len);
        decided.cost += 1;
    }
    decided
}

/// Asks the layers about each frame in these slots of a burst, until together they cost `most`.
fn decide(
    (policy, rules, port): (&PolicySet, &Rules, usize),
    tx: &TxQueue,
    fates: &mut Fates,
    slots: Range<usize>,
    most: usize,
) -> Decided {
    let mut decided = Decided::default();
    let mut last = Destination::default();
    let first = slots.start;
    let records = tx.records().get(slots.clone()).unwrap_or_default();
    let fates = fates.0.get_mut(slots).unwrap_or_default();
    for ((index, record), fate) in records.iter().enumerate().zip(fates) {
        let slot = first + index;
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
        decided.slots = index + 1;
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
                *fate = if firewall_asks(&ingress, output) {
                    decided.asks = true;
                    Fate::Ask(output)
                } else {
                    Fate::Output(output)
                };
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

/// Does the firewall have anything to say about a frame that goes there?
#[inline]
fn firewall_asks(ingress: &Ingress<'_>, output: Output) -> bool {
    // Where no port is filtered, that is all that is asked of the frame.
    if !ingress.policy.filters(ingress.rules) {
        return false;
    }
    let receiver = match output {
        Output::Port(port) => ingress.policy.rules(port),
        Output::Flood => None,
    };
    let filtered = match output {
        Output::Port(_) => receiver.is_some_and(|rules| rules.filter.filtered),
        Output::Flood => true,
    };
    (ingress.rules.filter.filtered || filtered) && firewall::is_judged(ingress.record)
}

/// Notes that a port has something to show.
#[inline]
pub(crate) fn touch(touched: &mut Vec<usize>, (index, is): (usize, &mut bool)) {
    if !*is {
        *is = true;
        touched.push(index);
    }
}

/// What handing frames over takes.
pub(crate) struct Parts<'a> {
    pub(crate) touched: &'a mut Vec<usize>,
    pub(crate) flows: &'a FlowHash,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) exchange: Option<&'a mut Exchange>,
    /// The frame is for a group: it goes to all its receivers in one worker together, and is sent off by [`close`].
    pub(crate) group: bool,
}

/// Gives frames of a burst to another port. False if the sender's memory is gone.
fn hand_over(
    ports: &mut [Port],
    from: From,
    (receiver, carried): (usize, Option<Carried>),
    slots: Range<usize>,
    parts: &mut Parts<'_>,
) -> bool {
    if carried.is_some() || from.device != from.port {
        return trunk::carry(ports, from, (receiver, carried), slots, parts);
    }
    let Ok([sender, port]) = ports.get_disjoint_mut([from.device, receiver]) else {
        return true;
    };
    let origin = Origin::of(sender.reference(from.device));
    let Some(running) = sender.tx.at(from.place) else {
        return true;
    };
    touch(parts.touched, (receiver, &mut port.touched));
    let mut gone = 0;
    if port.is_here() {
        port.receive(&running.queue, slots, parts.flows, parts.scratch, || gone += 1);
    } else {
        gone = spread((origin, running), (receiver, port), slots, parts);
    }
    if gone > 0 {
        running.queue.fail_memory();
        (0..gone).for_each(|_| sender.tally.drop(DropReason::TxMemoryGone));
    }
    gone == 0
}

/// The same where other workers have receive queues of the port. How many frames could not be read any more.
#[inline(never)]
fn spread(
    (from, running): (Origin, &mut Running<TxQueue>),
    (index, port): (usize, &mut Port),
    slots: Range<usize>,
    parts: &mut Parts<'_>,
) -> usize {
    if let Some(reason) = port.closed() {
        slots.for_each(|_| port.tally.drop(reason));
        return 0;
    }
    let to = port.reference(index);
    let mut gone = 0;
    for slot in slots {
        let Some(record) = running.queue.records().get(slot) else {
            continue;
        };
        let lane = port.lane(record, running.queue.head_of(slot), parts.flows);
        let sent = match (lane, &mut parts.exchange) {
            (
                Some(Lane {
                    at: LaneAt::Here(place),
                    ..
                }),
                _,
            ) => {
                let lives = port.receive_at(place, (&running.queue, slot), parts.scratch);
                gone += usize::from(!lives);
                Ok(())
            }
            (
                Some(Lane {
                    pair,
                    at: LaneAt::There(worker),
                }),
                Some(exchange),
            ) => {
                let target = (worker, Target { port: to, pair });
                match parts.group {
                    true => exchange.gather((from, running), slot, target),
                    false => exchange.send((from, running), slot, target),
                }
            }
            _ => Err(DropReason::RxNotRunning),
        };
        if let Err(reason) = sent {
            port.tally.drop(reason);
        }
    }
    gone
}

/// Sends a frame for a group off to other workers.
fn close(exchange: &mut Exchange, ports: &mut [Port], from: From, slot: usize) {
    // Those who miss it are told after the sender's queue was seen to.
    let mut lost = Vec::new();
    if let Some(running) = ports.get_mut(from.device).and_then(|port| port.tx.at(from.place)) {
        exchange.close(running, slot, |target| lost.push(target.port.index));
    }
    for port in lost {
        if let Some(port) = ports.get_mut(port) {
            port.tally.drop(DropReason::RxWorkerBusy);
        }
    }
}
