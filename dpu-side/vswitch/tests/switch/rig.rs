//! A switch with guests around it: each guest drives its own two rings, over its own memory.

use std::{collections::HashMap, net::IpAddr};

use outboard_ring::{
    CallFd, GuestMemory, KickFd, Signals, SplitRing,
    driver::{Driver, GuestRam},
};
use outboard_vhost_user::QueueResources;
use outboard_vswitch::{DropReason, PortCounters, PortPolicy, Switch};
use rustix::event::{EventfdFlags, eventfd};
use vhost_net_dpu::{
    RX_QUEUE, TX_QUEUE,
    features::FEATURES,
    header::{HEADER_LEN, NetHeader},
};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 128;
/// Room for the largest frame of a guest that has no mergeable buffers.
pub const LARGE_BUFFER_LEN: u32 = 65_562;

/// Counts calls.
#[derive(Default)]
pub struct Calls(pub usize);

impl Signals for Calls {
    fn signal(&mut self, _call: &CallFd) {
        self.0 += 1;
    }
}

/// A guest with its two drivers.
pub struct Guest {
    pub name: &'static str,
    pub mac: [u8; 6],
    pub ram: GuestRam,
    pub rx: Driver,
    pub tx: Driver,
    buffers: HashMap<u16, (u64, usize)>,
    tx_buffer: u64,
    reaped: usize,
    pub features: u64,
}

impl Guest {
    fn new(name: &'static str, mac: [u8; 6], features: u64) -> Self {
        let ram = GuestRam::new(64 << 20);
        let rx = Driver::new(&ram, QUEUE_SIZE, features);
        let tx = Driver::new(&ram, QUEUE_SIZE, features);
        let tx_buffer = ram.alloc(1 << 17, 64);
        Self {
            name,
            mac,
            ram,
            rx,
            tx,
            buffers: HashMap::new(),
            tx_buffer,
            reaped: 0,
            features,
        }
    }

    /// Makes `count` receive buffers of `len` bytes available.
    pub fn post(&mut self, count: usize, len: u32) {
        for _ in 0..count {
            let addr = self.ram.alloc(u64::from(len), 64);
            let head = self.rx.add(&[], &[(addr, len)]).expect("the queue has room");
            self.buffers.insert(head, (addr, len as usize));
        }
        self.rx.publish();
    }

    /// Queues a frame in two descriptors, header and frame, without publishing it.
    pub fn queue(&mut self, header: NetHeader, frame: &[u8]) {
        self.reap();
        let at = self.ram.alloc((HEADER_LEN + frame.len()) as u64, 16);
        self.tx.write(at, &[&header.to_bytes(), frame].concat());
        let len = u32::try_from(frame.len()).expect("short");
        let parts = [(at, 12), (at + 12, len)];
        let parts = if frame.is_empty() { &parts[..1] } else { &parts[..] };
        self.tx.add(parts, &[]).expect("the queue has room");
    }

    /// Sends bytes as one transmit buffer cut in descriptors of the given lengths.
    pub fn send_parts(&mut self, bytes: &[u8], lens: &[u32]) {
        self.reap();
        self.tx.write(self.tx_buffer, bytes);
        let mut at = self.tx_buffer;
        let place = |len: &u32| {
            let part = (at, *len);
            at += u64::from(*len);
            part
        };
        let parts: Vec<_> = lens.iter().map(place).collect();
        self.tx.add(&parts, &[]).expect("the queue has room");
        self.tx.publish();
    }

    /// Where [`Guest::send_parts`] puts its bytes.
    pub fn tx_buffer(&self) -> u64 {
        self.tx_buffer
    }

    /// Frames received since the last call; `num_buffers` says how many buffers each filled.
    pub fn received(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(first) = self.next_buffer() {
            let header = NetHeader::parse(first.first_chunk().expect("a header"));
            assert!(header.num_buffers >= 1);
            let mut frame = first[HEADER_LEN..].to_vec();
            for _ in 1..header.num_buffers {
                frame.extend(self.next_buffer().expect("all of a frame's buffers are shown at once"));
            }
            frames.push((header, frame));
        }
        frames
    }

    fn next_buffer(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.rx.used()?;
        let (addr, capacity) = self.buffers.remove(&head).expect("a buffer that was posted");
        assert!(len as usize <= capacity, "used.len is no more than the buffer");
        Some(self.rx.read(addr, len as usize))
    }

    fn reap(&mut self) {
        while let Some((_, len)) = self.tx.used() {
            assert_eq!(len, 0, "nothing is written to a transmit buffer");
            self.reaped += 1;
        }
    }

    /// Transmit buffers given back since the last call.
    pub fn given_back(&mut self) -> usize {
        self.reap();
        std::mem::take(&mut self.reaped)
    }
}

/// What a queue runs on, with eventfds of its own.
pub fn resources(driver: &Driver, memory: &std::sync::Arc<GuestMemory>, features: u64) -> QueueResources {
    let ring = SplitRing::new(driver.config(), memory.clone()).expect("a sound ring");
    let fd = || eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
    let kick = Some(KickFd::new(fd()).expect("an eventfd"));
    let call = Some(CallFd::new(fd()).expect("an eventfd"));
    QueueResources {
        ring,
        kick,
        call,
        features,
        log: None,
    }
}

/// A switch, its guests, and the counters as they were last looked at.
pub struct Rig {
    pub switch: Switch,
    pub guests: Vec<Guest>,
    pub calls: Calls,
    before: Vec<PortCounters>,
}

/// What a step changed in one port.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Delta {
    pub tx: (u64, u64),
    pub rx: (u64, u64),
    pub drop: Option<(DropReason, u64)>,
}

/// `count` frames of `bytes` in all were taken from the guest.
pub fn sent(count: u64, bytes: usize) -> Delta {
    Delta {
        tx: (count, bytes as u64),
        ..Delta::default()
    }
}

/// `count` frames of `bytes` in all were given to the guest.
pub fn got(count: u64, bytes: usize) -> Delta {
    Delta {
        rx: (count, bytes as u64),
        ..Delta::default()
    }
}

/// `count` frames for the guest were dropped.
pub fn missed(reason: DropReason, count: u64) -> Delta {
    Delta {
        drop: Some((reason, count)),
        ..Delta::default()
    }
}

impl Delta {
    /// And so many were dropped.
    pub fn dropped(self, reason: DropReason, count: u64) -> Self {
        Delta {
            drop: Some((reason, count)),
            ..self
        }
    }
}

pub fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

/// Port `number` of network "blue": 10.0.0.N, fd00:1::N.
pub fn policy(name: &str, number: u8) -> PortPolicy {
    let v6: IpAddr = format!("fd00:1::{number}").parse().expect("an address");
    let addresses = vec![IpAddr::from([10, 0, 0, number]), v6];
    PortPolicy {
        name: name.into(),
        network: "blue".into(),
        mac: mac(number),
        addresses,
    }
}

impl Rig {
    /// Guests a, b, … with these features, in one network, each with 64 buffers of 1,526 bytes (or large ones, where
    /// they are not mergeable).
    pub fn new(features: &[u64]) -> Self {
        let mut rig = Self::without_buffers(features);
        for guest in &mut rig.guests {
            let mergeable = guest.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
            guest.post(64, if mergeable { 1526 } else { LARGE_BUFFER_LEN });
        }
        rig
    }

    /// The same, but none of them has receive buffers.
    pub fn without_buffers(features: &[u64]) -> Self {
        let names = ["a", "b", "c", "d"];
        let guests: Vec<_> = (1..)
            .zip(names.iter().zip(features))
            .map(|(n, (name, features))| Guest::new(name, mac(n), *features))
            .collect();
        let mut switch = Switch::new();
        switch.set_ports((1..).zip(&guests).map(|(n, guest)| policy(guest.name, n)).collect());
        let mut rig = Self {
            switch,
            guests,
            calls: Calls::default(),
            before: Vec::new(),
        };
        for n in 0..rig.guests.len() {
            rig.switch.open(rig.guests[n].name);
            rig.start(n);
        }
        rig.breathe();
        rig.before = rig.switch.counters();
        rig
    }

    /// Two guests that negotiated all there is.
    pub fn pair() -> Self {
        Self::new(&[FEATURES, FEATURES])
    }

    /// Starts both queues of a guest.
    pub fn start(&mut self, n: usize) {
        let guest = &self.guests[n];
        for (index, driver) in [(RX_QUEUE, &guest.rx), (TX_QUEUE, &guest.tx)] {
            let queue = resources(driver, guest.ram.memory(), guest.features);
            self.switch
                .start_queue(guest.name, index, queue)
                .expect("the queue can be served");
        }
    }

    /// Until there is nothing to do.
    pub fn breathe(&mut self) {
        let breaths = (0..1000).take_while(|_| self.switch.breathe(&mut self.calls)).count();
        assert!(breaths < 1000, "the switch comes to rest");
    }

    /// Guest `n` sends a frame, and it is dealt with.
    pub fn send(&mut self, n: usize, header: NetHeader, frame: &[u8]) {
        let guest = &mut self.guests[n];
        guest.queue(header, frame);
        guest.tx.publish();
        self.breathe();
    }

    /// The same without offloads.
    pub fn send_plain(&mut self, n: usize, frame: &[u8]) {
        self.send(n, NetHeader::default(), frame);
    }

    /// Asserts what the counters of *all* ports changed by since the last time, in the ports' order.
    #[track_caller]
    pub fn expect(&mut self, want: &[Delta]) {
        let now = self.switch.counters();
        let got: Vec<_> = self
            .before
            .iter()
            .zip(&now)
            .map(|(before, now)| delta(before, now))
            .collect();
        assert_eq!(got, want);
        self.before = now;
    }

    /// A frame passes from guest `from` to guest `to` and back: the system is alive.
    #[track_caller]
    pub fn alive(&mut self, from: usize, to: usize) {
        for (from, to) in [(from, to), (to, from)] {
            let frame = super::frames::ping(self.guests[from].mac, self.guests[to].mac);
            self.send_plain(from, &frame);
            let received = self.guests[to].received();
            assert_eq!(received.iter().map(|(_, frame)| frame).collect::<Vec<_>>(), [&frame]);
        }
        self.before = self.switch.counters();
    }
}

fn delta(before: &PortCounters, now: &PortCounters) -> Delta {
    assert_eq!(before.name, now.name);
    let drops: Vec<_> = DropReason::ALL
        .into_iter()
        .map(|reason| (reason, now.drops[reason as usize] - before.drops[reason as usize]))
        .filter(|(_, count)| *count != 0)
        .collect();
    assert!(drops.len() < 2, "one step has one reason: {drops:?}");
    Delta {
        tx: (now.tx_frames - before.tx_frames, now.tx_bytes - before.tx_bytes),
        rx: (now.rx_frames - before.rx_frames, now.rx_bytes - before.rx_bytes),
        drop: drops.first().copied(),
    }
}
