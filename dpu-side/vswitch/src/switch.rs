//! The switch itself: its ports, who may use them, and whose turn it is.

use std::{collections::HashMap, sync::Arc};

use outboard_conntrack::Table;
use outboard_firewall::Policy;

use outboard_ring::{CallFd, RingLog, Signals};
use outboard_vhost_user::{DeviceError, QueueResources};
use vhost_net_dpu::{MTU_MIN, deliver::Scratch, error::MtuError, rx::RxQueue, tx::TxQueue};

use crate::{
    burst::Fates,
    capture::Captures,
    commons::Commons,
    counters::{PortCounters, QueueCounters},
    crossing::Exchange,
    firewall::Firewall,
    flow::FlowHash,
    policy::{PolicySet, PortPolicy, Zones},
    port::{Gate, Port},
    queues::Running,
    stopping::Done,
};

/// How often connections are cleared away whose time is up, in nanoseconds, and how many are looked at each time.
const CLEAR_APART_NS: u64 = 1_000_000;
const CLEAR_COUNT_MAX: u32 = 256;

/// A switch and all its ports.
#[derive(Debug)]
pub struct Switch {
    pub(crate) policy: PolicySet,
    /// Those that have a policy come first, at their policy's index; then those that are gone.
    pub(crate) ports: Vec<Port>,
    index: HashMap<String, usize>,
    pub(crate) scratch: Scratch,
    pub(crate) flows: FlowHash,
    pub(crate) fates: Fates,
    pub(crate) firewall: Firewall,
    zones: Zones,
    pub(crate) commons: Arc<Commons>,
    /// What this worker has of the others, if there are any.
    pub(crate) exchange: Option<Box<Exchange>>,
    /// The number of the port that was declared last.
    last_number: u64,
    /// Nothing is taken from guests for the time being.
    pub(crate) held: bool,
    /// What the clock says, in nanoseconds; looked at once a breath, while connections are followed.
    pub(crate) now: u64,
    /// When connections were last cleared away whose time was up.
    cleared: u64,
    /// Ports to which the burst at hand gave something.
    pub(crate) touched: Vec<usize>,
    /// Whose burst comes first in the next breath.
    turn: usize,
    pub(crate) captures: Captures,
    /// Connections are followed: a port is filtered.
    follows: bool,
    /// Queues may have something to show or to tell that no burst brought about.
    sweep: bool,
}

/// The queues of a pair, on their way from one worker to another.
#[derive(Debug)]
pub struct MovedPair {
    /// The pair.
    pub pair: u16,
    rx: Option<Running<RxQueue>>,
    tx: Option<Running<TxQueue>>,
}

impl Default for Switch {
    fn default() -> Self {
        Self::member(Arc::default(), None)
    }
}

impl Switch {
    /// A switch without ports, of one worker.
    pub fn new() -> Self {
        Self::default()
    }

    /// A worker's part of a switch.
    pub(crate) fn member(commons: Arc<Commons>, exchange: Option<Box<Exchange>>) -> Self {
        Self {
            policy: PolicySet::default(),
            ports: Vec::new(),
            index: HashMap::new(),
            scratch: Scratch::default(),
            flows: commons.flows,
            fates: Fates::default(),
            firewall: Firewall::new(commons.clone()),
            zones: Zones::default(),
            commons,
            exchange,
            last_number: 0,
            held: false,
            now: 0,
            cleared: 0,
            touched: Vec::new(),
            turn: 0,
            captures: Captures::default(),
            follows: false,
            sweep: false,
        }
    }

    /// Declares all ports, in one step: each frame sees the old policy or the new one. A port that is kept, by name,
    /// keeps its queues, its counters, and whether it is open. A new port is shut until [`Switch::open`]. A port that is
    /// no longer named is shut at once; its queues stay to be stopped with [`Switch::stop_queue`]. A port of the same
    /// name that is declared meanwhile is a new one: frames pass, and queues start, when the former one's were stopped.
    pub fn set_ports(&mut self, policies: Vec<PortPolicy>) {
        let mut former: HashMap<String, Port> = self.ports.drain(..).map(|port| (port.name.clone(), port)).collect();
        for policy in &policies {
            // Numbers are given in the order of declarations, which is the same in all workers.
            let number = self.last_number + 1;
            let port = match former.remove(&policy.name) {
                Some(port) if port.gate != Gate::Gone => port,
                gone => {
                    self.last_number = number;
                    let commons = self.commons.port(number);
                    match gone {
                        Some(mut port) => {
                            port.declare(number, commons);
                            port
                        }
                        None => Port::new(policy.name.clone(), number, commons),
                    }
                }
            };
            self.ports.push(port);
        }
        for mut port in former.into_values().filter(Port::has_queues) {
            port.retire();
            self.ports.push(port);
        }
        self.policy = PolicySet::compile(&policies, self.firewall.policy(), &mut self.zones);
        for (port, rules) in self.ports.iter_mut().zip(self.policy.all()) {
            port.set_carried(rules.carried.is_some());
        }
        self.reindex();
        self.share();
    }

    /// The same, and what the firewall allows, in one step: each frame sees both old or both new. The firewall knows ports
    /// by their names; one that it does not know gets nothing through once it has a policy at all. The former policy comes
    /// back, to be dropped where that may take its time.
    pub fn set_policy(&mut self, policies: Vec<PortPolicy>, firewall: Arc<Policy>) -> Arc<Policy> {
        let former = self.firewall.set_policy(firewall);
        self.set_ports(policies);
        former
    }

    /// Another policy of the firewall, of the same ports. The former one comes back.
    pub fn set_firewall(&mut self, firewall: Arc<Policy>) -> Arc<Policy> {
        let former = self.firewall.set_policy(firewall);
        let names = self.ports.iter().map(|port| port.name.as_str());
        self.policy.follow(self.firewall.policy(), names);
        self.share();
        former
    }

    /// Keeps connections in this table, which holds `capacity` of them, from now on; those that were are unknown then.
    /// Without one, the first port that is filtered has the switch make a table for [`CONNECTIONS_DEFAULT`].
    pub fn set_connections(&mut self, table: Arc<Table>, capacity: u32) {
        self.firewall.set_table(table, capacity);
        self.share();
    }

    /// Ports whose connections are followed get their shares of the table.
    fn share(&mut self) {
        let followed = self.policy.all().iter().filter(|rules| self.policy.filters(rules));
        let numbers: Vec<u32> = followed.map(|rules| rules.filter.end.port).collect();
        self.follows = !numbers.is_empty();
        if self.follows {
            let numbers: Vec<u32> = numbers.into_iter().filter(|number| *number != u32::MAX).collect();
            self.firewall.share(&numbers);
            self.ports.iter().for_each(|port| port.commons.datagrams.prepare());
        }
    }

    fn reindex(&mut self) {
        self.index = self
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| (port.name.clone(), index))
            .collect();
        self.turn = 0;
        self.sweep = true;
        self.touched.clear();
        self.touched.reserve(self.ports.len());
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

    /// Serves a queue of a port (see [`vhost_net_dpu::QueueKind`]). What waits in it is looked at in the next breath.
    ///
    /// # Errors
    /// The port is not declared, it has no such queue, the queue runs already, or its driver cannot be served.
    pub fn start_queue(&mut self, name: &str, index: u16, queue: QueueResources) -> Result<(), DeviceError> {
        self.sweep = true;
        let kind = (self.commons.next_queue(), self.exchange.is_some());
        match self.port_mut(name) {
            Some(port) if port.takes_queues() => port.start_queue(index, queue, kind),
            _ => Err(not_granted(name)),
        }
    }

    /// Stops a queue. `done` is called when nothing of it is in flight any more, with the index at which its available ring
    /// goes on, `None` if it did not run: at once, unless other workers have frames of it, and then in the breath in which the
    /// last of them has come back.
    pub fn stop_queue_then(&mut self, name: &str, index: u16, done: Done) {
        let Some(port) = self.port_mut(name) else {
            return done(None);
        };
        port.stop_queue(index, done);
        self.forget_gone();
    }

    /// The same for the only worker of a switch, or for a receive queue: the index.
    pub fn stop_queue(&mut self, name: &str, index: u16) -> Option<u32> {
        let (told, base) = std::sync::mpsc::sync_channel(1);
        // It is there to be heard, and there is room.
        let done = Box::new(move |next| {
            let _ = told.try_send(next);
        });
        self.stop_queue_then(name, index, done);
        base.try_recv().ok().flatten()
    }

    /// Ports that were kept only for their queues go when those are stopped.
    pub(crate) fn forget_gone(&mut self) {
        let is_left = |port: &Port| port.gate != Gate::Gone || port.has_queues();
        if !self.ports.iter().all(is_left) {
            // The others keep their places: those that are gone come last.
            self.ports.retain(is_left);
            self.reindex();
        }
    }

    /// Other workers have these of a port's receive queues: their pairs, and which worker each is in.
    pub fn set_elsewhere(&mut self, name: &str, mut elsewhere: Vec<(u16, usize)>) {
        let known = self.exchange.as_ref().map_or(0, |exchange| exchange.peers.len());
        let me = self.exchange.as_ref().map(|exchange| exchange.me);
        elsewhere.retain(|(_, worker)| *worker < known && Some(*worker) != me);
        if let Some(port) = self.port_mut(name).filter(|port| port.takes_queues()) {
            port.set_elsewhere(elsewhere);
        }
    }

    /// Takes the queues of a pair out, to go on in another worker where they are. None if there are none, if they are not the
    /// port's own, or if other workers have frames of them.
    pub fn take_pair(&mut self, name: &str, pair: u16) -> Option<Box<MovedPair>> {
        let port = self.port_mut(name).filter(|port| port.takes_queues())?;
        if port.lent() > 0 {
            return None;
        }
        let (rx, tx) = port.take_pair(pair);
        (rx.is_some() || tx.is_some()).then(|| Box::new(MovedPair { pair, rx, tx }))
    }

    /// Goes on with queues that were another worker's.
    ///
    /// # Errors
    /// The port takes no queues; they come back.
    pub fn put_pair(&mut self, name: &str, moved: Box<MovedPair>) -> Result<(), Box<MovedPair>> {
        self.sweep = true;
        match self.port_mut(name) {
            Some(port) if port.takes_queues() => {
                port.put_pair(moved.rx, moved.tx);
                Ok(())
            }
            _ => Err(moved),
        }
    }

    /// Calls the driver of a running queue by another descriptor from now on, and once in the next breath.
    ///
    /// # Errors
    /// The port is not declared, or the queue does not run.
    pub fn set_call(&mut self, name: &str, index: u16, call: Option<CallFd>) -> Result<(), DeviceError> {
        self.sweep = true;
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

    /// The VMM told its guest an MTU; with `None`, it has told none, as when a session begins. It bounds the frames of
    /// queues whose driver took the feature, running ones too.
    ///
    /// # Errors
    /// The port is not declared, or no device may have this MTU.
    pub fn set_mtu(&mut self, name: &str, mtu: Option<u16>) -> Result<(), DeviceError> {
        if let Some(mtu) = mtu.filter(|mtu| *mtu < MTU_MIN) {
            return Err(DeviceError::Other(Box::new(MtuError { mtu })));
        }
        match self.port_mut(name) {
            Some(port) if port.takes_queues() => port.set_mtu(mtu),
            _ => return Err(not_granted(name)),
        }
        Ok(())
    }

    /// The names of ports and networks, by the numbers that connections know them by.
    pub(crate) fn numbers(&self) -> (HashMap<u32, String>, HashMap<u32, String>) {
        let ports = self.ports.iter().zip(self.policy.all());
        let ports = ports.map(|(port, rules)| (rules.filter.end.port, port.name.clone()));
        (ports.collect(), self.zones.names())
    }

    /// One round over all ports: a burst from each, then used entries and calls. True if there was anything to do.
    pub fn breathe(&mut self, signals: &mut dyn Signals) -> bool {
        let now = if self.follows { self.commons.now() } else { 0 };
        self.breathe_at(now, signals)
    }

    /// The same at a time of the caller's, in nanoseconds of a clock that never goes back.
    pub fn breathe_at(&mut self, now: u64, signals: &mut dyn Signals) -> bool {
        self.now = now;
        if self.follows && now >= self.cleared + CLEAR_APART_NS {
            self.cleared = now;
            if let Some(table) = self.firewall.table() {
                table.expire(now, CLEAR_COUNT_MAX);
            }
        }
        let mut worked = std::mem::take(&mut self.sweep) && self.flush_all(signals);
        if self.exchange.is_some() {
            worked |= self.serve_crossings(signals);
        }
        let count = if self.held { 0 } else { self.ports.len() };
        // The last port that had something to send, and whether it was the only one for whom anything was done.
        let (mut busy, mut alone) = (None, !worked);
        for step in 0..count {
            let index = self.turn + step;
            let index = if index < count { index } else { index - count };
            if self.burst(index, signals) {
                alone &= busy.replace(index).is_none();
                worked = true;
            }
        }
        // What it had beyond its share was nobody else's.
        if alone && let Some(port) = busy.and_then(|index| self.ports.get_mut(index)) {
            port.debt = 0;
        }
        self.turn = (self.turn + 1).checked_rem(count).unwrap_or(0);
        if let Some(exchange) = &mut self.exchange {
            exchange.ring();
        }
        worked
    }

    /// What time it is for who asks between breaths, in nanoseconds.
    pub(crate) fn now_or_before(&self) -> u64 {
        self.now.max(if self.follows { self.commons.now() } else { 0 })
    }

    fn flush_all(&mut self, signals: &mut dyn Signals) -> bool {
        let mut worked = false;
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
        // A ring that failed when it was asked has to tell it.
        self.sweep = true;
        // After this worker asked to be woken.
        waiting | self.exchange.as_ref().is_some_and(|exchange| exchange.lie_down())
    }

    /// Asks for no more kicks while awake. Those that came are left in their descriptors: whoever sleeps on them wakes at
    /// each new one, so that waking costs no system call for each queue.
    pub fn after_sleep(&mut self) {
        if let Some(exchange) = &self.exchange {
            exchange.get_up();
        }
        for port in &mut self.ports {
            port.after_sleep();
        }
    }

    /// Counters of all declared ports.
    pub fn counters(&self) -> Vec<PortCounters> {
        let declared = self.ports.iter().filter(|port| port.gate != Gate::Gone);
        declared.map(|port| port.tally.snapshot(&port.name)).collect()
    }

    /// Counters of one declared port.
    pub fn port_counters(&self, name: &str) -> Option<PortCounters> {
        self.declared(name).map(|(_, port)| port.tally.snapshot(&port.name))
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

    /// Counters of a port's running queues: those that receive, then those that transmit, by pair.
    pub fn queue_counters(&self, name: &str) -> Vec<QueueCounters> {
        let port = self.index.get(name).and_then(|index| self.ports.get(*index));
        port.map(Port::queue_counters).unwrap_or_default()
    }

    /// Whether the port may exchange frames; none if it is not declared.
    pub fn is_open(&self, name: &str) -> Option<bool> {
        let (index, port) = self.declared(name)?;
        let carries = |parent: usize| self.ports.get(parent).is_some_and(Port::serves);
        Some(match self.policy.carried(index) {
            None => port.serves(),
            Some(carried) => port.gate == Gate::Open && carried.parent.is_some_and(carries),
        })
    }

    /// A declared port and its index.
    pub(crate) fn declared(&self, name: &str) -> Option<(usize, &Port)> {
        let index = *self.index.get(name)?;
        let port = self.ports.get(index).filter(|port| port.gate != Gate::Gone)?;
        Some((index, port))
    }

    /// The port whose device carries a port: itself, or a subport's parent.
    pub(crate) fn device_of(&self, index: usize) -> Option<(usize, &Port)> {
        let device = match self.policy.carried(index) {
            None => index,
            Some(carried) => carried.parent?,
        };
        Some((device, self.ports.get(device)?))
    }

    pub(crate) fn port_at(&self, index: usize) -> Option<&Port> {
        self.ports.get(index)
    }

    pub(crate) fn policy(&self) -> &PolicySet {
        &self.policy
    }

    fn port_mut(&mut self, name: &str) -> Option<&mut Port> {
        self.index.get(name).and_then(|index| self.ports.get_mut(*index))
    }
}

fn not_granted(name: &str) -> DeviceError {
    DeviceError::NotGranted {
        object: format!("port {name}"),
    }
}
