//! Two pairs of guests at one switch: an attacker and who takes its frames, and a victim that sends its full share to a
//! peer. What is counted is what the worker executes for each frame of the victim, the attacker's share included: as the
//! worker does nothing else, the victim's rate under an attack is to its rate beside legal traffic as the one figure is
//! to the other.

use std::{net::IpAddr, sync::Arc};

use outboard_firewall::{
    self as firewall, Action, AddressSet, Cidr, Direction, EgressDefault, Peer, Policy, PortSpec, Protocol, Rule,
};
use outboard_generator::{
    features::{NET_MRG_RXBUF, VERSION_1},
    raw::LINE_LEN,
    ring::{DESC_WRITE, Descriptor, Ring, ring_len},
};
use outboard_vswitch::{BURST_FRAMES, PortPolicy, Switch};

use crate::{
    Done,
    error::Error,
    frames::{HEADER_LEN, UDP_PORT, short, udp},
    guest::{Calls, Guest},
    net::timed_breath,
};

const FEATURES: u64 = VERSION_1 | NET_MRG_RXBUF;
const QUEUE_SIZE: u16 = 1024;
const ROOM: usize = 2048;
/// Bytes of the frames, without the frame check sequence.
const FRAME_LEN: usize = 60;
/// Connections that legal traffic has.
const FLOWS: u16 = 64;
/// A breath in which the attacker has to wait is a cheap one: an operation more or less of it must not matter.
const OPERATIONS_FACTOR: u64 = 16;
const NAMES: [&str; 4] = ["attacker", "friend", "victim", "peer"];
/// Where fields of a frame are, behind the virtio header.
const DESTINATION_MAC_AT: usize = HEADER_LEN;
const SOURCE_MAC_AT: usize = HEADER_LEN + 6;
const IP_AT: usize = HEADER_LEN + 14;
const PORTS_AT: usize = IP_AT + 20;

/// What the attacker sends, as much as it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Frames of connections that are open: what all others are compared with.
    Legal,
    /// Each frame opens a connection, from and to what no other frame names; older ones give way.
    NewConnections,
    /// Each frame is of a connection that no rule allows, named by no other frame.
    Denied,
    /// The same under as many groups, rules and named peers as a port may have: tuple-space explosion.
    Explosion,
    /// Each frame is rejected, and its sender to be told.
    Rejected,
    /// TCP segments of no connection.
    Strays,
    /// First fragments of ever new datagrams, and later ones of datagrams that have no first one.
    Fragments,
    /// Frames to everybody.
    Broadcast,
    /// Frames from and to ever new MACs.
    Macs,
}

/// The victim sends at least so many frames after at least `warm_up`, in a table of so many connections.
pub fn run(attack: Attack, warm_up: u64, operations: u64) -> Result<Done, Error> {
    let mut load = Load::new(attack)?;
    load.prime()?;
    load.send(warm_up * OPERATIONS_FACTOR)?;
    load.send(operations * OPERATIONS_FACTOR)
}

struct Load {
    attack: Attack,
    switch: Switch,
    calls: Calls,
    attacker: Source,
    victim: Source,
    sinks: Vec<Sink>,
    random: Random,
}

impl Load {
    fn new(attack: Attack) -> Result<Self, Error> {
        let mut switch = Switch::new();
        let policies: Vec<PortPolicy> = (1..).zip(NAMES).map(|(number, name)| policy(number, name)).collect();
        let filter = Policy::compile(&spec(attack, &policies)).map_err(|error| Error::wrong(error.to_string()))?;
        switch.set_policy(policies, Arc::new(filter));
        let mut sources = Vec::new();
        let mut sinks = Vec::new();
        for (number, name) in (1..).zip(NAMES) {
            switch.open(name);
            let mut guest = Guest::new(4 * ring_len(QUEUE_SIZE) + 2 * usize::from(QUEUE_SIZE) * (ROOM + LINE_LEN))?;
            // Odd ones send to the next even one.
            let source = Source::new(&mut guest, |index| frame(number, number + 1, index % FLOWS))?;
            let sink = Sink::new(&mut guest)?;
            switch.start_queue(name, 0, guest.device_end(&sink.ring, FEATURES)?)?;
            switch.start_queue(name, 1, guest.device_end(&source.ring, FEATURES)?)?;
            sources.push(source);
            sinks.push(sink);
        }
        let mut sources = sources.into_iter();
        let (Some(attacker), Some(_), Some(victim)) = (sources.next(), sources.next(), sources.next()) else {
            return Err(Error::wrong("there are no guests"));
        };
        Ok(Self {
            attack,
            switch,
            calls: Calls::default(),
            attacker,
            victim,
            sinks,
            random: Random(0x9e37_79b9_7f4a_7c15),
        })
    }

    /// The victim opens its connections, for which it pays as anybody does.
    fn prime(&mut self) -> Result<(), Error> {
        self.victim.publish(QUEUE_SIZE);
        while timed_breath(&mut self.switch, &mut self.calls).0 {
            self.sinks.iter_mut().try_for_each(Sink::recycle)?;
        }
        self.victim.take_back()?;
        Ok(())
    }

    /// The victim sends at least `frames`, a burst each breath, and the attacker has a full queue.
    fn send(&mut self, frames: u64) -> Result<Done, Error> {
        let before = self.delivered()?;
        let burst = short(BURST_FRAMES);
        let mut done = Done::default();
        while done.operations < frames {
            let (attack, random) = (self.attack, &mut self.random);
            self.attacker
                .refill(|frame, index| attack.forge(frame, index, random))?;
            self.victim.publish(burst);
            done.spent += timed_breath(&mut self.switch, &mut self.calls).1;
            // In a breath of its own each port is served its whole share, whatever others do.
            if self.victim.take_back()? != burst {
                return Err(Error::wrong("the victim was not served its share in a breath"));
            }
            for sink in &mut self.sinks {
                sink.recycle()?;
            }
            done.operations += u64::from(burst);
        }
        let after = self.delivered()?;
        done.bytes = (done.operations * FRAME_LEN as u64).max(1);
        if after.0 - before.0 != done.operations {
            return Err(Error::wrong(format!(
                "{} of the victim's {} frames arrived",
                after.0 - before.0,
                done.operations
            )));
        }
        if after.1 == before.1 {
            return Err(Error::wrong("the attacker was not served at all"));
        }
        Ok(done)
    }

    /// Frames that the victim's peer got from it, and those that the attacker sent.
    fn delivered(&self) -> Result<(u64, u64), Error> {
        let counters = self.switch.counters();
        let [attacker, _, victim, peer] = counters.as_slice() else {
            return Err(Error::wrong("the switch lost a port"));
        };
        let flooded = if self.attack == Attack::Broadcast {
            attacker.tx_frames
        } else {
            0
        };
        if victim.dropped().chain(peer.dropped()).count() > 0 {
            return Err(Error::wrong(format!("the switch dropped the victim's: {counters:?}")));
        }
        Ok((peer.rx_frames - flooded, attacker.tx_frames))
    }
}

impl Attack {
    /// Makes the attacker's next frame of the last one in the same buffer.
    fn forge(self, frame: &mut [u8], index: u64, random: &mut Random) {
        let (number, more) = (random.next().to_be_bytes(), random.next().to_be_bytes());
        let put = |frame: &mut [u8], at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
        let somebody = [10, 0, number[0], number[1]];
        match self {
            Self::Legal => {}
            Self::NewConnections => {
                put(frame, IP_AT + 16, &somebody);
                put(frame, PORTS_AT, &number[2..4]);
            }
            Self::Denied | Self::Rejected | Self::Explosion => {
                put(frame, IP_AT + 16, &number[4..8]);
                // Any port but the one that is allowed.
                put(frame, PORTS_AT, &number[..4]);
                frame[PORTS_AT + 2] |= 0x80;
                if self == Self::Explosion {
                    put(frame, IP_AT + 16, &more[..4]);
                }
            }
            Self::Strays => {
                frame[IP_AT + 9] = 6;
                put(frame, PORTS_AT, &number[..2]);
                // To the allowed port; sequence, acknowledgement, header of 20 bytes with ACK alone.
                put(frame, PORTS_AT + 4, &more);
                put(frame, PORTS_AT + 12, &[0x50, 0x10]);
            }
            Self::Fragments => {
                put(frame, IP_AT + 4, &number[..2]);
                let first = index.is_multiple_of(2);
                put(frame, IP_AT + 6, if first { &[0x20, 0] } else { &[0, 0x20] });
                // A first fragment has a multiple of eight bytes.
                put(frame, IP_AT + 2, &[0, 44]);
            }
            Self::Broadcast => put(frame, DESTINATION_MAC_AT, &[0xff; 6]),
            Self::Macs => {
                put(
                    frame,
                    DESTINATION_MAC_AT,
                    &[0x52, 0x54, number[0], number[1], number[2], number[3]],
                );
                // Half of them from a port's own.
                if index.is_multiple_of(2) {
                    put(frame, SOURCE_MAC_AT, &[0x52, 0x54, more[0], more[1], more[2], more[3]]);
                } else {
                    put(frame, SOURCE_MAC_AT, &mac(1));
                }
            }
        }
    }
}

/// Virtio header and frame from one guest to another.
fn frame(from: u8, to: u8, flow: u16) -> Vec<u8> {
    let mut frame = udp(FRAME_LEN, flow);
    frame[DESTINATION_MAC_AT..SOURCE_MAC_AT].copy_from_slice(&mac(to));
    frame[SOURCE_MAC_AT..SOURCE_MAC_AT + 6].copy_from_slice(&mac(from));
    frame[IP_AT + 12..IP_AT + 20].copy_from_slice(&[10, 0, 0, from, 10, 0, 0, to]);
    frame
}

fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

fn policy(number: u8, name: &str) -> PortPolicy {
    PortPolicy {
        name: name.into(),
        network: "blue".into(),
        mac: mac(number),
        addresses: vec![IpAddr::from([10, 0, 0, number])],
        trunk: None,
    }
}

fn rule(ports: (u16, u16)) -> Rule {
    Rule {
        protocol: Protocol::UDP,
        ports: PortSpec::Range(ports.0, ports.1),
        ..Rule::allow(Direction::Ingress)
    }
}

/// All ports let UDP to one port and TCP to the same in. The attacker and its friend have what makes the attack dear.
fn spec(attack: Attack, policies: &[PortPolicy]) -> firewall::Spec {
    let open = firewall::Group {
        name: "open".into(),
        egress: EgressDefault::Allow,
        rules: vec![
            rule((UDP_PORT, UDP_PORT)),
            Rule {
                protocol: Protocol::TCP,
                ..rule((UDP_PORT, UDP_PORT))
            },
        ],
    };
    let rejecting = firewall::Group {
        name: "rejecting".into(),
        egress: EgressDefault::Allow,
        rules: vec![Rule {
            action: Action::Reject,
            priority: u16::MAX,
            ..rule((0, u16::MAX))
        }],
    };
    let (mut groups, mut sets) = (vec![open, rejecting], Vec::new());
    let mut dear = vec!["open".into()];
    match attack {
        Attack::Rejected => dear.push("rejecting".into()),
        Attack::Explosion => {
            let (more, named) = explosion();
            groups.truncate(1);
            dear.extend(more.iter().map(|group| group.name.clone()));
            groups.extend(more);
            sets = named;
        }
        _ => {}
    }
    let ports = policies.iter().enumerate().map(|(index, policy)| {
        Arc::new(firewall::Port {
            name: policy.name.as_str().into(),
            network: policy.network.as_str().into(),
            addresses: policy.addresses.clone(),
            groups: Some(if index < 2 { dear.clone() } else { vec!["open".into()] }),
        })
    });
    firewall::Spec {
        groups: groups.into_iter().map(Arc::new).collect(),
        address_sets: sets.into_iter().map(Arc::new).collect(),
        ports: ports.collect(),
        ..firewall::Spec::default()
    }
}

/// As many groups and named peers as a port may have, with rules of many shapes in both directions. None allows.
fn explosion() -> (Vec<firewall::Group>, Vec<AddressSet>) {
    use outboard_firewall::limits::{GROUPS_PER_PORT_MAX, PEERS_PER_PORT_MAX};
    const RULES: u16 = 300;
    let mut random = Random(88_172_645_463_325_252);
    let named = |n: usize| format!("set{n}").as_str().into();
    let sets = (0..PEERS_PER_PORT_MAX).map(|n| AddressSet {
        name: named(n),
        entries: (0..1000).map(|_| IpAddr::from(random.bytes()).into()).collect(),
    });
    let sets: Vec<AddressSet> = sets.collect();
    let groups = (1..GROUPS_PER_PORT_MAX).map(|n| {
        let rules = (0..RULES).map(|m| {
            let [a, b, c, d] = random.bytes();
            let (one, other) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            let range = Cidr::new(random.bytes().into(), 8 + (m % 25).to_be_bytes()[1]);
            let peer = match (m % 2, range) {
                (0, Ok(range)) => Peer::Cidr(range),
                _ => Peer::AddressSet(named(2 * n + usize::from(m / 2 % 2))),
            };
            Rule {
                action: Action::Deny,
                direction: if m % 4 < 2 {
                    Direction::Ingress
                } else {
                    Direction::Egress
                },
                peer,
                priority: 2000 - m,
                ..rule((one.min(other), one.max(other)))
            }
        });
        firewall::Group {
            name: format!("g{n}").as_str().into(),
            egress: EgressDefault::Allow,
            rules: rules.collect(),
        }
    });
    (groups.collect(), sets)
}

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.next().to_be_bytes();
        [a, b, c, d]
    }
}

fn at(buffers_at: usize, index: u16) -> usize {
    buffers_at + (ROOM + LINE_LEN) * usize::from(index)
}

/// A transmit queue whose buffers hold a frame each.
struct Source {
    ring: Ring,
    guest_memory: Arc<outboard_generator::raw::Memory>,
    buffers_at: usize,
    frames: Vec<Vec<u8>>,
    /// Frames that were given, of all time.
    given: u64,
}

impl Source {
    fn new(guest: &mut Guest, frame: impl Fn(u16) -> Vec<u8>) -> Result<Self, Error> {
        let ring = Ring::new(&mut guest.space, QUEUE_SIZE, FEATURES)?;
        let buffers_at = guest.space.take((ROOM + LINE_LEN) * usize::from(QUEUE_SIZE));
        let mut frames = Vec::new();
        for index in 0..QUEUE_SIZE {
            let bytes = frame(index);
            let descriptor = Descriptor {
                at: at(buffers_at, index),
                len: u32::from(short(bytes.len())),
                flags: 0,
                next: 0,
            };
            guest.memory().write(descriptor.at, &bytes);
            ring.describe(index, descriptor);
            ring.offer(index, index);
            frames.push(bytes);
        }
        Ok(Self {
            ring,
            guest_memory: Arc::clone(guest.memory()),
            buffers_at,
            frames,
            given: 0,
        })
    }

    /// Gives as many frames as there is room for, each made anew.
    fn refill(&mut self, mut make: impl FnMut(&mut [u8], u64)) -> Result<(), Error> {
        self.take_back()?;
        let room = QUEUE_SIZE - self.ring.held();
        for n in 0..room {
            let index = self.ring.next().wrapping_add(n) & (QUEUE_SIZE - 1);
            if let Some(frame) = self.frames.get_mut(usize::from(index)) {
                make(frame, self.given);
                self.guest_memory.write(at(self.buffers_at, index), frame);
            }
            self.given += 1;
        }
        self.ring.publish(room);
        Ok(())
    }

    /// Gives `count` frames as they are.
    fn publish(&mut self, count: u16) {
        self.given += u64::from(count);
        self.ring.publish(count);
    }

    /// How many came back.
    fn take_back(&mut self) -> Result<u16, Error> {
        let back = self.ring.waiting().map_err(|fault| Error::Used {
            queue: "transmit",
            fault,
        })?;
        self.ring.take(back);
        Ok(back)
    }
}

/// A receive queue with room for everything.
struct Sink {
    ring: Ring,
}

impl Sink {
    fn new(guest: &mut Guest) -> Result<Self, Error> {
        let mut ring = Ring::new(&mut guest.space, QUEUE_SIZE, FEATURES)?;
        let buffers_at = guest.space.take((ROOM + LINE_LEN) * usize::from(QUEUE_SIZE));
        for index in 0..QUEUE_SIZE {
            let descriptor = Descriptor {
                at: at(buffers_at, index),
                len: u32::from(short(ROOM)),
                flags: DESC_WRITE,
                next: 0,
            };
            ring.describe(index, descriptor);
            ring.offer(index, index);
        }
        ring.publish(QUEUE_SIZE);
        Ok(Self { ring })
    }

    /// Gives what was filled back to be filled again.
    fn recycle(&mut self) -> Result<(), Error> {
        let filled = self.ring.waiting().map_err(|fault| Error::Used {
            queue: "receive",
            fault,
        })?;
        self.ring.take(filled);
        self.ring.publish(filled);
        Ok(())
    }
}
