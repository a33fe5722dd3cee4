//! The switch itself: bursts from the ports in turn, layers, delivery.

use std::collections::HashMap;

use outboard_ring::{CallFd, RingLog, Signals};
use outboard_vhost_user::{DeviceError, QueueResources};
use vhost_net_dpu::{
    deliver::Scratch,
    tx::{Frame, Taken},
};

use crate::{
    counters::PortCounters,
    layers::{self, Ingress, Output},
    policy::{PolicySet, PortPolicy},
    port::{Gate, Port},
    reason::DropReason,
};

/// Frames taken from one port before it is the next one's turn. A copy of a broadcast counts as a frame, and so
/// does each packet that a large frame may have to be cut into.
pub const BURST_FRAMES: usize = 32;

/// A switch and all its ports.
#[derive(Debug, Default)]
pub struct Switch {
    policy: PolicySet,
    /// Those that have a policy come first, at their policy's index; then those that are gone.
    ports: Vec<Port>,
    index: HashMap<String, usize>,
    scratch: Scratch,
    /// Whose burst comes first in the next breath.
    turn: usize,
}

impl Switch {
    /// A switch without ports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares all ports, in one step: each frame sees the old policy or the new one. A port that is kept, by name,
    /// keeps its queues, its counters, and whether it is open. A new port is shut until [`Switch::open`]. A port that is
    /// no longer named is shut at once; its queues stay to be stopped with [`Switch::stop_queue`].
    pub fn set_ports(&mut self, policies: Vec<PortPolicy>) {
        let mut former: HashMap<String, Port> = self.ports.drain(..).map(|port| (port.name.clone(), port)).collect();
        for policy in &policies {
            let mut port = former
                .remove(&policy.name)
                .unwrap_or_else(|| Port::new(policy.name.clone()));
            if port.gate == Gate::Gone {
                port.gate = Gate::Shut;
            }
            self.ports.push(port);
        }
        for mut port in former.into_values().filter(Port::has_queues) {
            port.gate = Gate::Gone;
            self.ports.push(port);
        }
        self.policy = PolicySet::compile(&policies);
        self.reindex();
    }

    fn reindex(&mut self) {
        self.index = self
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| (port.name.clone(), index))
            .collect();
        self.turn = 0;
    }

    /// Nothing goes in or out of the port from now on: its grant was revoked.
    pub fn shut(&mut self, name: &str) {
        self.set_gate(name, Gate::Shut);
    }

    /// Frames may pass as policy says: the port is granted.
    pub fn open(&mut self, name: &str) {
        self.set_gate(name, Gate::Open);
    }

    fn set_gate(&mut self, name: &str, gate: Gate) {
        if let Some(port) = self.port_mut(name)
            && port.gate != Gate::Gone
        {
            port.gate = gate;
        }
    }

    /// Serves a queue of a port: [`vhost_net_dpu::RX_QUEUE`] or [`vhost_net_dpu::TX_QUEUE`]. What waits in it is looked at in the next breath.
    ///
    /// # Errors
    /// The port is not declared, it has no such queue, the queue runs already, or its driver cannot be served.
    pub fn start_queue(&mut self, name: &str, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        match self.port_mut(name) {
            Some(port) if port.gate != Gate::Gone => port.start_queue(index, queue),
            _ => Err(not_granted(name)),
        }
    }

    /// Stops a queue: nothing of it is in flight afterwards. The index at which its available ring goes on; `None` if
    /// it did not run.
    pub fn stop_queue(&mut self, name: &str, index: u16) -> Option<u16> {
        let port = self.port_mut(name)?;
        let next_avail = port.stop_queue(index);
        if port.gate == Gate::Gone && !port.has_queues() {
            // The others keep their places: those that are gone come last.
            self.ports.retain(|port| port.gate != Gate::Gone || port.has_queues());
            self.reindex();
        }
        next_avail
    }

    /// Calls the driver of a running queue by another descriptor from now on, and once in the next breath.
    ///
    /// # Errors
    /// The port is not declared, or the queue does not run.
    pub fn set_call(&mut self, name: &str, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.port_mut(name)
            .ok_or_else(|| not_granted(name))?
            .set_call(index, call)
    }

    /// Logs the writes of a running queue in this way from now on, or not at all.
    ///
    /// # Errors
    /// The port is not declared, or the queue does not run.
    pub fn set_log(&mut self, name: &str, index: u16, log: Option<RingLog>) -> Result<(), DeviceError> {
        self.port_mut(name)
            .ok_or_else(|| not_granted(name))?
            .set_log(index, log)
    }

    /// One round over all ports: a burst from each, then used entries and calls. True if there was anything to do.
    pub fn breathe(&mut self, signals: &mut dyn Signals) -> bool {
        let count = self.ports.len();
        let mut worked = false;
        for step in 0..count {
            worked |= self.burst((self.turn + step) % count);
        }
        self.turn = (self.turn + 1).checked_rem(count).unwrap_or(0);
        for port in &mut self.ports {
            worked |= port.has_to_flush();
            port.flush(signals);
        }
        worked
    }

    /// Asks all open ports' guests for kicks. True if there is work already: do not sleep.
    pub fn before_sleep(&mut self) -> bool {
        let mut waiting = false;
        for port in &mut self.ports {
            waiting |= port.before_sleep() | port.has_to_flush();
        }
        waiting
    }

    /// Takes off the kicks that came, and asks for no more while awake.
    pub fn after_sleep(&mut self) {
        for port in &mut self.ports {
            port.after_sleep();
        }
    }

    /// Counters of all declared ports.
    pub fn counters(&self) -> Vec<PortCounters> {
        let declared = self.ports.iter().filter(|port| port.gate != Gate::Gone);
        declared.map(|port| port.tally.snapshot(&port.name)).collect()
    }

    /// Writes the same over those of an earlier time; allocates only where a port has come or gone since.
    pub fn counters_into(&self, counters: &mut Vec<PortCounters>) {
        let declared = self.ports.iter().filter(|port| port.gate != Gate::Gone);
        let mut count = 0;
        for port in declared {
            match counters.get_mut(count) {
                Some(former) => port.tally.write_over(&port.name, former),
                None => counters.push(port.tally.snapshot(&port.name)),
            }
            count += 1;
        }
        counters.truncate(count);
    }

    fn port_mut(&mut self, name: &str) -> Option<&mut Port> {
        self.index.get(name).and_then(|index| self.ports.get_mut(*index))
    }

    /// Frames from one port. True if there were any.
    fn burst(&mut self, index: usize) -> bool {
        let mut budget = BURST_FRAMES;
        let mut worked = false;
        while budget > 0 {
            let Some(Port {
                gate: Gate::Open,
                tx: Some(tx),
                tally,
                ..
            }) = self.ports.get_mut(index)
            else {
                break;
            };
            let cost = match tx.take() {
                Taken::Nothing => break,
                Taken::Refused { len, refusal } => {
                    tally.traffic.sent(len);
                    tally.drop(refusal.into());
                    1
                }
                Taken::Frame(frame) => {
                    tally.traffic.sent(frame.len as u64);
                    self.forward(index, &frame)
                }
            };
            if let Some(Port { tx: Some(tx), .. }) = self.ports.get_mut(index) {
                tx.give_back();
            }
            budget = budget.saturating_sub(cost);
            worked = true;
        }
        worked
    }

    /// Decides about the frame that a port's transmit queue holds, and delivers it. What it cost, in frames.
    fn forward(&mut self, index: usize, frame: &Frame) -> usize {
        let Some(Port {
            tx: Some(tx), tally, ..
        }) = self.ports.get_mut(index)
        else {
            return 1;
        };
        let Some(rules) = self.policy.rules(index) else {
            return 1;
        };
        let ingress = Ingress {
            port: index,
            rules,
            policy: &self.policy,
            packet: &frame.packet,
            head: tx.head(),
            frame_len: frame.len,
        };
        let one;
        let receivers = match layers::decide(&ingress) {
            Err(reason) => {
                tally.drop(reason);
                return 1;
            }
            Ok(Output::Port(port)) => {
                one = [port];
                &one[..]
            }
            Ok(Output::Flood) => self.policy.members(rules),
        };
        for &receiver in receivers.iter().filter(|receiver| **receiver != index) {
            if !hand_over(&mut self.ports, &mut self.scratch, (index, receiver), frame) {
                break;
            }
        }
        receivers.len().saturating_mul(frame.offload.packet_count(frame.len))
    }
}

/// Delivers the frame that a port holds to one other. False if the sender's memory is gone.
fn hand_over(ports: &mut [Port], scratch: &mut Scratch, (from, to): (usize, usize), frame: &Frame) -> bool {
    let Ok([sender, receiver]) = ports.get_disjoint_mut([from, to]) else {
        return true;
    };
    let Some(tx) = &mut sender.tx else { return true };
    let lives = receiver.receive(tx, frame, scratch);
    if !lives {
        tx.fail_memory();
        sender.tally.drop(DropReason::TxMemoryGone);
    }
    lives
}

fn not_granted(name: &str) -> DeviceError {
    DeviceError::NotGranted {
        object: format!("port {name}"),
    }
}
