//! Two guests at a switch: one sends, the other receives.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use outboard_firewall::{self as firewall, Direction, EgressDefault, Policy, PortSpec, Protocol, Rule};
use outboard_generator::{
    features::{
        IN_ORDER, INDIRECT_DESC, NET_CSUM, NET_GUEST_CSUM, NET_GUEST_TSO4, NET_HOST_TSO4, NET_MRG_RXBUF, VERSION_1,
    },
    raw::{LINE_LEN, Memory},
    ring::{DESC_INDIRECT, DESC_LEN, DESC_NEXT, DESC_WRITE, Descriptor, Ring, ring_len},
};
use outboard_vswitch::{BURST_FRAMES, PortCounters, PortPolicy, Switch};

use crate::{
    Done,
    error::Error,
    frames::{ADDRESSES, HEADER_LEN, MACS, TSO_PAYLOAD_LEN, UDP_PORT, short, tcp_segments, udp},
    guest::{Calls, Guest},
};

/// Sizes in the "simple IMIX": 7 : 4 : 1, spread over a burst.
pub const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];
/// Bytes of a frame on a wire that no ring carries.
const FCS_LEN: usize = 4;

const QUEUE_SIZE: u16 = 1024;
/// Large frames are in few transmit buffers; each takes many to receive. No fewer than a table has descriptors.
const LARGE_COUNT: u16 = 32;
const LARGE_BURST: u16 = 8;
const RX_ROOM: usize = 2048;
const PIECE_LEN: usize = 4096;
const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
const NAMES: [&str; 2] = ["a", "b"];

/// Of so many frames one is compared byte by byte, and the others by their length: no divisor of the number of frames, so
/// that each has its turn.
const COMPARED: u64 = 61;

/// What is sent.
#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// UDP frames of these lengths on a wire in turn, of so many flows.
    Frames(&'static [usize], u16),
    /// TCP segments of 64 KiB, for the receiver to take as they are.
    Segments,
}

impl Traffic {
    fn features(self) -> u64 {
        let negotiated = VERSION_1 | NET_MRG_RXBUF | INDIRECT_DESC | IN_ORDER;
        match self {
            Self::Frames(..) => negotiated,
            Self::Segments => negotiated | NET_CSUM | NET_HOST_TSO4 | NET_GUEST_CSUM | NET_GUEST_TSO4,
        }
    }

    /// Virtio header and frame, of each transmit buffer in turn.
    fn frame(self, index: u16) -> Vec<u8> {
        match self {
            Self::Frames(lens, flows) => {
                let len = lens[usize::from(index) % lens.len()];
                udp(len - FCS_LEN, index % flows)
            }
            Self::Segments => tcp_segments(),
        }
    }

    /// Transmit buffers, and how many are given in one go.
    fn counts(self) -> (u16, u16) {
        match self {
            Self::Frames(..) => (QUEUE_SIZE, short(BURST_FRAMES)),
            // As large frames may have to be cut, each counts as its segments in a burst: the switch serves one at a time, and
            // must not look at the others in vain.
            Self::Segments => (LARGE_COUNT, LARGE_BURST),
        }
    }
}

/// Whether the ports have security groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// They have none: nothing is filtered.
    Open,
    /// One each: the sender's lets everything out, the receiver's what is sent here in.
    Filtered,
}

/// Sends at least `operations` frames after at least `warm_up`.
pub fn run(traffic: Traffic, ports: Ports, warm_up: u64, operations: u64) -> Result<Done, Error> {
    let mut load = Load::new(traffic, ports)?;
    load.send(warm_up)?;
    load.send(operations)
}

/// One breath. A function of its own, which no optimiser takes apart: profilers look for its name.
#[inline(never)]
fn measured_breath(switch: &mut Switch, calls: &mut Calls) -> bool {
    std::hint::black_box(switch).breathe(calls)
}

/// Puts a policy in force, as the worker does between two breaths: the former one, and how long it took.
#[inline(never)]
fn measured_breath_between(
    switch: &mut Switch,
    policies: Vec<PortPolicy>,
    next: Arc<Policy>,
) -> (Arc<Policy>, Duration) {
    let started = Instant::now();
    let former = std::hint::black_box(switch).set_policy(policies, next);
    (former, started.elapsed())
}

/// One breath: whether there was anything to do, and how long it took.
pub fn timed_breath(switch: &mut Switch, calls: &mut Calls) -> (bool, Duration) {
    let started = Instant::now();
    let worked = measured_breath(switch, calls);
    (worked, started.elapsed())
}

/// A sender and a receiver.
pub struct Load {
    traffic: Traffic,
    switch: Switch,
    calls: Calls,
    sender: Sender,
    receiver: Receiver,
    /// Queues that are there and in which nothing happens.
    _idle: [Ring; 2],
}

impl Load {
    /// Both, with nothing sent yet.
    pub fn new(traffic: Traffic, ports: Ports) -> Result<Self, Error> {
        let features = traffic.features();
        let mut switch = Switch::new();
        match ports {
            Ports::Open => switch.set_ports(policies()),
            Ports::Filtered => {
                let firewall = Policy::compile(&groups([allowing(UDP_PORT)])).map_err(refused)?;
                switch.set_policy(policies(), Arc::new(firewall));
            }
        }
        NAMES.into_iter().for_each(|name| switch.open(name));

        let [mut a, mut b] = [
            Guest::new(Sender::memory_len(traffic))?,
            Guest::new(Receiver::memory_len())?,
        ];
        let sender = Sender::new(&mut a, traffic)?;
        let receiver = Receiver::new(&mut b, features)?;
        let idle = [&mut a, &mut b].map(|guest| Ring::new(&mut guest.space, QUEUE_SIZE, features));
        let [idle_rx, idle_tx] = idle;
        let (idle_rx, idle_tx) = (idle_rx?, idle_tx?);
        let queues = [
            (&a, TX_QUEUE, &sender.ring),
            (&a, RX_QUEUE, &idle_rx),
            (&b, RX_QUEUE, &receiver.ring),
            (&b, TX_QUEUE, &idle_tx),
        ];
        for ((guest, index, ring), name) in queues.into_iter().zip(["a", "a", "b", "b"]) {
            switch.start_queue(name, index, guest.device_end(ring, features)?)?;
        }
        Ok(Self {
            traffic,
            switch,
            calls: Calls::default(),
            sender,
            receiver,
            _idle: [idle_rx, idle_tx],
        })
    }

    /// Puts another policy in force: how long that took the worker.
    pub fn change(&mut self, next: Arc<Policy>) -> Duration {
        let (former, spent) = measured_breath_between(&mut self.switch, policies(), next);
        // Where it is dropped is another thread's time.
        drop(former);
        spent
    }

    /// Sends one frame, and checks that it arrives, or that the firewall drops it.
    pub fn passes(&mut self, wanted: bool) -> Result<(), Error> {
        let dropped = |switch: &Switch| {
            let counters = switch.counters();
            counters
                .iter()
                .flat_map(PortCounters::dropped)
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        let before = dropped(&self.switch);
        self.sender.send(1);
        timed_breath(&mut self.switch, &mut self.calls);
        if self.sender.take_back()? != 1 {
            return Err(Error::wrong("a frame was not taken in the breath after the change"));
        }
        if wanted {
            return self.receiver.take(&self.sender.frames, 1);
        }
        self.receiver.skip(1);
        match dropped(&self.switch) - before {
            1 => Ok(()),
            count => Err(Error::wrong(format!(
                "{count} frames were dropped after the change instead of 1"
            ))),
        }
    }

    /// Sends at least `frames`, and checks that all of them arrive as they were.
    pub fn send(&mut self, frames: u64) -> Result<Done, Error> {
        let before = self.switch.counters();
        let (_, burst) = self.traffic.counts();
        let mut done = Done::default();
        while done.operations < frames {
            self.sender.send(burst);
            done.spent += timed_breath(&mut self.switch, &mut self.calls).1;
            while self.sender.take_back()? < burst {
                // A large frame may have been put off: its port had more than its share before.
                let (worked, spent) = timed_breath(&mut self.switch, &mut self.calls);
                if !worked {
                    return Err(Error::wrong(
                        "frames were sent, and the switch says that it has nothing to do",
                    ));
                }
                done.spent += spent;
            }
            self.receiver.take(&self.sender.frames, burst)?;
            done.operations += u64::from(burst);
        }
        let after = self.switch.counters();
        let [Some(sent), Some(received)] = [0, 1].map(|n| Some((before.get(n)?, after.get(n)?))) else {
            return Err(Error::wrong("the switch lost a port"));
        };
        if sent.1.tx_frames - sent.0.tx_frames != done.operations
            || received.1.rx_frames - received.0.rx_frames != done.operations
            || after.iter().any(|port| port.dropped().count() > 0)
        {
            return Err(Error::wrong(format!("the switch counted {after:?}")));
        }
        done.bytes = received.1.rx_bytes - received.0.rx_bytes;
        Ok(done)
    }
}

/// What is said of the ports.
fn policies() -> Vec<PortPolicy> {
    let ports = NAMES.into_iter().zip(MACS).zip(ADDRESSES);
    ports
        .map(|((name, mac), address)| PortPolicy {
            name: name.into(),
            network: "blue".into(),
            mac,
            addresses: vec![IpAddr::V4(address)],
            trunk: None,
        })
        .collect()
}

/// Datagrams to this port may come in.
pub fn allowing(port: u16) -> Rule {
    Rule {
        protocol: Protocol::UDP,
        ports: PortSpec::Range(port, port),
        ..Rule::allow(Direction::Ingress)
    }
}

/// Both ports in one group of these rules.
pub fn groups(rules: impl IntoIterator<Item = Rule>) -> firewall::Spec {
    let group = firewall::Group {
        name: "load".into(),
        egress: EgressDefault::Allow,
        rules: rules.into_iter().collect(),
    };
    let ports = policies().into_iter().map(|policy| {
        Arc::new(firewall::Port {
            name: policy.name.as_str().into(),
            network: policy.network.as_str().into(),
            addresses: policy.addresses,
            groups: Some(vec!["load".into()]),
        })
    });
    firewall::Spec {
        groups: vec![Arc::new(group)],
        ports: ports.collect(),
        ..firewall::Spec::default()
    }
}

/// A policy that cannot be.
pub fn refused(error: firewall::PolicyError) -> Error {
    Error::wrong(error.to_string())
}

struct Sender {
    ring: Ring,
    /// What is sent, in order, again and again.
    frames: Vec<Vec<u8>>,
    sent: u16,
}

impl Sender {
    fn memory_len(traffic: Traffic) -> usize {
        let (count, _) = traffic.counts();
        let each = match traffic {
            Traffic::Frames(..) => RX_ROOM,
            Traffic::Segments => TSO_PAYLOAD_LEN + 8 * PIECE_LEN,
        };
        2 * ring_len(QUEUE_SIZE) + usize::from(count) * each + (1 << 16)
    }

    /// A queue whose every buffer holds a frame for good.
    fn new(guest: &mut Guest, traffic: Traffic) -> Result<Self, Error> {
        let (count, _) = traffic.counts();
        let ring = Ring::new(&mut guest.space, count, traffic.features())?;
        let mut frames = Vec::new();
        for index in 0..count {
            let bytes = traffic.frame(index);
            let descriptor = match traffic {
                Traffic::Frames(..) => in_one(guest, &bytes),
                Traffic::Segments => in_pieces(guest, &bytes),
            };
            ring.describe(index, descriptor);
            ring.offer(index, index);
            frames.push(bytes);
        }
        Ok(Self { ring, frames, sent: 0 })
    }

    fn send(&mut self, count: u16) {
        self.sent = 0;
        self.ring.publish(count);
    }

    /// How many of those sent last came back.
    fn take_back(&mut self) -> Result<u16, Error> {
        let fault = |fault| Error::Used {
            queue: "transmit",
            fault,
        };
        let back = self.ring.waiting().map_err(fault)?;
        // The first entry names the last buffer of its batch (IN_ORDER, virtio 1.3 §2.7.9).
        let mask = self.ring.size() - 1;
        let mut done = 0;
        while done < back {
            let last = self.ring.used_id(done).map_err(fault)?;
            done += 1 + (last.wrapping_sub(self.ring.seen().wrapping_add(done)) & mask);
        }
        if done != back {
            return Err(Error::wrong("transmit buffers came back out of order"));
        }
        self.ring.take(back);
        self.sent += back;
        Ok(self.sent)
    }
}

/// Header and frame in one buffer that ends its cache line with the header, as DPDK's driver has them.
fn in_one(guest: &mut Guest, bytes: &[u8]) -> Descriptor {
    let at = guest.space.take(LINE_LEN + bytes.len()) + LINE_LEN - HEADER_LEN;
    guest.memory().write(at, bytes);
    Descriptor {
        at,
        len: length(bytes.len()),
        ..Descriptor::default()
    }
}

/// A table of the headers and then pages, as Linux' driver has them.
fn in_pieces(guest: &mut Guest, bytes: &[u8]) -> Descriptor {
    let (headers, payload) = bytes.split_at(bytes.len() - TSO_PAYLOAD_LEN);
    let pieces: Vec<&[u8]> = [headers].into_iter().chain(payload.chunks(PIECE_LEN)).collect();
    let mut table = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        let at = guest.space.take(PIECE_LEN);
        guest.memory().write(at, piece);
        let last = index + 1 == pieces.len();
        let descriptor = Descriptor {
            at,
            len: length(piece.len()),
            flags: if last { 0 } else { DESC_NEXT },
            next: if last { 0 } else { short(index + 1) },
        };
        table.extend(descriptor.to_bytes());
    }
    let at = guest.space.take(DESC_LEN * pieces.len());
    guest.memory().write(at, &table);
    Descriptor {
        at,
        len: length(table.len()),
        flags: DESC_INDIRECT,
        next: 0,
    }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

struct Receiver {
    ring: Ring,
    memory: Arc<Memory>,
    buffers_at: usize,
    /// How many frames were taken.
    count: u64,
    bytes: Vec<u8>,
}

impl Receiver {
    fn memory_len() -> usize {
        2 * ring_len(QUEUE_SIZE) + usize::from(QUEUE_SIZE) * (RX_ROOM + LINE_LEN) + (1 << 16)
    }

    fn new(guest: &mut Guest, features: u64) -> Result<Self, Error> {
        let mut ring = Ring::new(&mut guest.space, QUEUE_SIZE, features)?;
        let buffers_at = guest
            .space
            .take((RX_ROOM + LINE_LEN) * usize::from(QUEUE_SIZE) + LINE_LEN);
        for index in 0..QUEUE_SIZE {
            let descriptor = Descriptor {
                at: Self::at(buffers_at, index),
                len: length(RX_ROOM),
                flags: DESC_WRITE,
                next: 0,
            };
            ring.describe(index, descriptor);
            ring.offer(index, index);
        }
        ring.publish(QUEUE_SIZE);
        Ok(Self {
            ring,
            memory: Arc::clone(guest.memory()),
            buffers_at,
            count: 0,
            bytes: Vec::new(),
        })
    }

    /// An odd number of cache lines apart: buffers spread over all sets of the caches.
    fn at(buffers_at: usize, index: u16) -> usize {
        buffers_at + (RX_ROOM + LINE_LEN) * usize::from(index) + LINE_LEN - HEADER_LEN
    }

    /// Frames that do not come.
    fn skip(&mut self, count: u64) {
        self.count += count;
    }

    /// Takes `count` frames and compares one of [`COMPARED`] byte by byte; gives their buffers back.
    fn take(&mut self, frames: &[Vec<u8>], count: u16) -> Result<(), Error> {
        let fault = |fault| Error::Used {
            queue: "receive",
            fault,
        };
        let waiting = self.ring.waiting().map_err(fault)?;
        let mut taken = 0;
        for _ in 0..count {
            let index = usize::try_from(self.count).unwrap_or(0) % frames.len();
            let want = frames.get(index).map_or(&[][..], Vec::as_slice);
            let compared = self.count.is_multiple_of(COMPARED);
            self.bytes.clear();
            let mut len = 0;
            while len < want.len() && taken < waiting {
                let id = self.ring.used_id(taken).map_err(fault)?;
                let filled = usize::try_from(self.ring.used_len(taken)).unwrap_or(0).min(RX_ROOM);
                if compared {
                    self.bytes.resize(len + filled, 0);
                    self.memory.read(Self::at(self.buffers_at, id), &mut self.bytes[len..]);
                }
                len += filled;
                taken += 1;
            }
            if len != want.len() {
                return Err(Error::wrong(format!(
                    "frame {} has {len} bytes instead of {}",
                    self.count,
                    want.len()
                )));
            }
            if compared && !same(&self.bytes, want) {
                return Err(Error::wrong(format!("frame {} arrived with other bytes", self.count)));
            }
            self.count += 1;
        }
        self.ring.take(taken);
        self.ring.publish(taken);
        Ok(())
    }
}

/// But for the virtio header, and for a checksum that is left to the receiver.
fn same(got: &[u8], want: &[u8]) -> bool {
    const TCP_CHECKSUM_AT: usize = HEADER_LEN + 50;
    let partial = want.first().is_some_and(|flags| flags & 1 != 0);
    let counts = |at: usize| at >= HEADER_LEN && !(partial && (TCP_CHECKSUM_AT..TCP_CHECKSUM_AT + 2).contains(&at));
    got.len() == want.len()
        && got
            .iter()
            .zip(want)
            .enumerate()
            .all(|(at, (got, want))| got == want || !counts(at))
}
