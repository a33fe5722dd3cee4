//! What other workers handed over: delivered here, and sent back; and what came back of one's own.

use outboard_controls::{Check, on};
use outboard_ring::Signals;

use crate::{
    burst::{BURST_FRAMES, touch},
    crossing::{Crossing, Exchange, Origin, Target},
    port::Gate,
    reason::DropReason,
    switch::Switch,
    trunk::Carried,
};

impl Switch {
    /// Takes back what is done elsewhere, and delivers what others took: of each sending port at most a burst, as of one whose
    /// queues are here. True if there was anything.
    pub(crate) fn serve_crossings(&mut self, signals: &mut dyn Signals) -> bool {
        // Taken out, so that the rest can be used meanwhile; nothing that is called here asks for it.
        let Some(mut exchange) = self.exchange.take() else {
            return false;
        };
        exchange.breath = exchange.breath.wrapping_add(1);
        let mut worked = self.take_back(&mut exchange, signals);
        let count = exchange.peers.len();
        for step in 0..count {
            let from = (exchange.turn + step) % count;
            worked |= self.take_arrivals(&mut exchange, from);
        }
        exchange.turn = (exchange.turn + 1) % count;
        self.exchange = Some(exchange);
        self.show(signals);
        worked
    }

    /// Takes back crossings that were delivered.
    fn take_back(&mut self, exchange: &mut Exchange, signals: &mut dyn Signals) -> bool {
        let mut worked = false;
        let mut ended = false;
        for peer in exchange.peers.iter_mut().flatten() {
            while let Ok(crossing) = peer.returns.pop() {
                worked = true;
                if crossing.parcel.is_gone()
                    && let Some(sender) = self.locate(crossing.from.sender)
                    && let Some(port) = self.ports.get_mut(sender)
                {
                    port.tally.drop(DropReason::TxMemoryGone);
                }
                let Some(index) = self.locate(crossing.from.device) else {
                    debug_assert!(false, "a port is kept until its queues' frames are back");
                    continue;
                };
                let Some(port) = self.ports.get_mut(index) else {
                    continue;
                };
                touch(&mut self.touched, (index, &mut port.touched));
                port.take_back(crossing, signals);
                ended |= port.gate == Gate::Gone;
            }
        }
        if ended {
            // Places in the order of ports may change.
            self.show(signals);
            self.forget_gone();
        }
        worked
    }

    fn take_arrivals(&mut self, exchange: &mut Exchange, from: usize) -> bool {
        let mut worked = false;
        let breath = exchange.breath;
        let Some(Some(peer)) = exchange.peers.get_mut(from) else {
            return false;
        };
        while peer.takes_back()
            && let Ok(next) = peer.arrivals.peek()
        {
            worked = true;
            let Origin { device, sender } = next.from;
            // Subports share what their device may have.
            let device = self.locate(device);
            let sender = if next.from.is_subport() {
                self.locate(sender)
            } else {
                device
            };
            if let Some(device) = device.and_then(|index| self.ports.get_mut(index))
                && !device.may_arrive(breath, BURST_FRAMES)
            {
                break;
            }
            let Some(mut crossing) = peer.take() else { break };
            let cost = crossing.targets().len() * crossing.parcel.record().packet_count();
            if let Some(device) = device.and_then(|index| self.ports.get_mut(index)) {
                device.count_arrived(cost);
            }
            if self.captures.any() {
                self.deliver_crossing_captured(&mut crossing, sender);
            } else {
                self.deliver_crossing(&mut crossing, sender);
            }
            peer.give_back(crossing);
        }
        worked
    }

    /// Gives a frame to its receivers here. It was decided about where it was taken, under the policy in force then; what has
    /// been shut since is shut all the same.
    pub(crate) fn deliver_crossing(&mut self, crossing: &mut Crossing, sender: Option<usize>) {
        // Of a subport's frame, both may be shut.
        let device = self.locate(crossing.from.device);
        let shut = [sender, device].into_iter().flatten().any(|index| {
            let port = self.ports.get(index);
            port.is_some_and(|port| port.gate != Gate::Open)
        });
        if let Some(port) = sender.and_then(|index| self.ports.get_mut(index))
            && shut
            && on(Check::SilenceFirst)
        {
            return port.tally.drop(DropReason::TxPortShut);
        }
        let (parcel, targets) = crossing.parts();
        for &Target { port: to, pair } in targets {
            let Some(index) = self.locate(to) else {
                // The receiver is gone, and its counters with it.
                if let Some(port) = sender.and_then(|index| self.ports.get_mut(index)) {
                    port.tally.drop(DropReason::UnknownDestination);
                }
                continue;
            };
            let (device, vlan) = match self.policy.carried(index) {
                None => (index, None),
                Some(Carried { parent, vlan }) => (parent.unwrap_or(usize::MAX), Some(vlan)),
            };
            let Some(port) = self.ports.get_mut(index) else {
                continue;
            };
            if vlan.is_some() && port.gate != Gate::Open {
                port.tally.drop(DropReason::PortShut);
                continue;
            }
            // Out of its port, which may be the device too.
            let mut tally = std::mem::take(&mut port.tally);
            let lives = match self.ports.get_mut(device) {
                Some(port) => {
                    touch(&mut self.touched, (device, &mut port.touched));
                    port.receive_parcel((pair, vlan), parcel, &mut self.scratch, &mut tally)
                }
                None => {
                    tally.drop(DropReason::RxNotRunning);
                    true
                }
            };
            if let Some(port) = self.ports.get_mut(index) {
                port.tally = tally;
            }
            if !lives {
                break;
            }
        }
    }
}
