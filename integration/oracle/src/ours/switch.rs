//! The whole datapath: a switch with a guest at each port.

use std::sync::Arc;

use outboard_conntrack::{Config, Table};
use outboard_firewall::{Policy, limits::PORTS_MAX};
use outboard_ring::{CallFd, Signals};
use outboard_vswitch::{DropReason, PortCounters, PortPolicy, Switch};
use vhost_net_dpu::QueueKind;

use super::{broken, guest::Guest, spec, spec::NETWORK};
use crate::{
    Failure, PORT_COUNT, Side, Verdict, frame,
    packet::Packet,
    rules::{Family, Rules, address, port_name},
};

const CONNECTIONS: u32 = 4096;
/// From packet to packet: the answers to rejected packets that a port may get are bounded by time.
const PACKET_NS: u64 = 2_000_000;
/// From case to case, so that nothing of one is remembered in the next.
const CASE_NS: u64 = 3600 * 1_000_000_000;
/// Rounds in which a packet and what comes of it are dealt with.
const BREATHS_MAX: usize = 100;

struct Silent;

impl Signals for Silent {
    fn signal(&mut self, _: &CallFd) {}
}

/// A switch, its guests, and the time there.
pub struct Datapath {
    switch: Switch,
    guests: [Guest; PORT_COUNT],
    policy: Arc<Policy>,
    now: u64,
    before: Vec<PortCounters>,
    why: Option<String>,
}

impl Datapath {
    /// With open ports that run.
    pub fn new() -> Result<Self, Failure> {
        let mut guests: [Guest; PORT_COUNT] = std::array::from_fn(|_| Guest::new());
        let mut switch = Switch::new();
        switch.set_ports(ports());
        for (port, guest) in guests.iter_mut().enumerate() {
            let [rx, tx] = guest.queues().map_err(|source| Failure::Kernel {
                action: "make a guest's queues",
                source,
            })?;
            switch.open(port_name(port));
            for (kind, queue) in [(QueueKind::Rx { pair: 0 }, rx), (QueueKind::Tx { pair: 0 }, tx)] {
                let started = switch.start_queue(port_name(port), kind.index(), queue);
                started.map_err(|error| broken(error.to_string()))?;
            }
        }
        let mut datapath = Self {
            switch,
            guests,
            policy: Arc::default(),
            now: CASE_NS,
            before: Vec::new(),
            why: None,
        };
        datapath.settle()?;
        Ok(datapath)
    }

    fn settle(&mut self) -> Result<(), Failure> {
        let (switch, now) = (&mut self.switch, self.now);
        let rest = (0..BREATHS_MAX).any(|_| !switch.breathe_at(now, &mut Silent));
        self.before = switch.counters();
        if rest {
            Ok(())
        } else {
            Err(broken("the switch does not come to rest".into()))
        }
    }

    fn obey(&mut self, policy: Policy) {
        self.policy = Arc::new(policy);
        self.switch.set_policy(ports(), self.policy.clone());
    }

    /// A port's guest sends frames, whatever they are. How many frames each guest got then.
    pub fn inject(&mut self, from: usize, frames: &[Vec<u8>]) -> Result<[usize; PORT_COUNT], Failure> {
        self.now += PACKET_NS;
        for frame in frames {
            self.guests[from].send(frame);
        }
        let before = std::mem::take(&mut self.before);
        self.settle()?;
        self.why = self.reasons(&before);
        let mut received = [0; PORT_COUNT];
        for (guest, count) in self.guests.iter_mut().zip(&mut received) {
            *count = guest.received().len();
        }
        Ok(received)
    }

    /// The reasons of what was dropped since these counters.
    fn reasons(&self, before: &[PortCounters]) -> Option<String> {
        let mut words = Vec::new();
        for (now, before) in self.before.iter().zip(before) {
            for reason in DropReason::ALL {
                let count = now.drops[reason as usize] - before.drops[reason as usize];
                if count != 0 {
                    words.push(format!("port {}: {} ({count})", now.name, reason.name()));
                }
            }
        }
        (!words.is_empty()).then(|| words.join(", "))
    }
}

impl Side for Datapath {
    fn begin(&mut self, rules: &Rules) -> Result<(), Failure> {
        self.now += CASE_NS;
        let config = Config {
            entries: CONNECTIONS,
            ports: u32::try_from(PORTS_MAX).unwrap_or(u32::MAX),
            ..Config::default()
        };
        self.switch.set_connections(Arc::new(Table::new(&config)), CONNECTIONS);
        let spec = spec(rules).map_err(|error| broken(error.to_string()))?;
        self.obey(Policy::compile(&spec).map_err(|error| broken(error.to_string()))?);
        Ok(())
    }

    fn change(&mut self, rules: &Rules) -> Result<(), Failure> {
        let spec = spec(rules).map_err(|error| broken(error.to_string()))?;
        self.obey(self.policy.follow(&spec).map_err(|error| broken(error.to_string()))?);
        Ok(())
    }

    fn send(&mut self, packet: &Packet, number: u16) -> Result<Verdict, Failure> {
        let frames = frame::frames(packet, number, mac(packet.from), mac(packet.to));
        let received = self.inject(packet.from, &frames)?;
        let delivered = received[packet.to];
        let answered = received[packet.from];
        if received.iter().sum::<usize>() != delivered + answered {
            return Err(broken(format!("a packet {packet} came out where it should not")));
        }
        Ok(match (delivered, answered) {
            (0, 0) => Verdict::Drop,
            (0, _) => Verdict::Reject,
            (all, 0) if all == frames.len() => Verdict::Pass,
            _ => Verdict::Partly,
        })
    }

    fn why(&self) -> Option<String> {
        self.why.clone()
    }
}

/// The MAC of a port's guest.
pub fn mac(port: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, u8::try_from(port + 1).unwrap_or(u8::MAX)]
}

fn ports() -> Vec<PortPolicy> {
    let port = |port| PortPolicy {
        name: port_name(port).into(),
        network: NETWORK.into(),
        mac: mac(port),
        addresses: [Family::V4, Family::V6].map(|family| address(port, family)).into(),
        trunk: None,
    };
    (0..PORT_COUNT).map(port).collect()
}
