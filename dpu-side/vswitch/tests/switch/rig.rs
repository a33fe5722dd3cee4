//! A switch with guests around it: each guest drives its own rings, over its own memory.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    ops::{Deref, DerefMut},
};

use crate::FEATURES;
use outboard_ring::{
    CallFd, GuestMemory, KickFd, Ring, RingConfig, RingFormat, Signals,
    driver::{Driver, GuestRam},
};
use outboard_vhost_user::QueueResources;
use outboard_vswitch::{DropReason, PortCounters, PortPolicy, Switch};
use rustix::event::{EventfdFlags, eventfd};
use vhost_net_dpu::{
    QueueKind,
    header::{HEADER_LEN, NetHeader},
};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

/// Descriptors of each queue.
pub const QUEUE_SIZE: u16 = 128;
/// Room for the largest frame of a guest that has no mergeable buffers.
pub const LARGE_BUFFER_LEN: u32 = 65_562;

/// The queues of the first pair.
pub const RX_QUEUE: u16 = QueueKind::Rx { pair: 0 }.index();
pub const TX_QUEUE: u16 = QueueKind::Tx { pair: 0 }.index();

/// Counts calls.
#[derive(Default)]
pub struct Calls(pub usize);

impl Signals for Calls {
    fn signal(&mut self, _call: &CallFd) {
        self.0 += 1;
    }
}

/// The drivers of one queue pair.
pub struct Pair {
    pub rx: Driver,
    pub tx: Driver,
    buffers: HashMap<u16, (u64, usize)>,
    /// Buffers that came back, to be posted again.
    spare: Vec<(u64, u32)>,
    tx_buffer: u64,
    reaped: usize,
    /// Transmit buffers in the order they were queued: what IN_ORDER is held to.
    queued: VecDeque<u16>,
    posted: VecDeque<u16>,
    /// Places for frames.
    slots: VecDeque<u64>,
}

impl Pair {
    fn new(ram: &GuestRam, features: u64) -> Self {
        Self {
            rx: Driver::new(ram, QUEUE_SIZE, features),
            tx: Driver::new(ram, QUEUE_SIZE, features),
            buffers: HashMap::new(),
            spare: Vec::new(),
            tx_buffer: ram.alloc(1 << 17, 64),
            reaped: 0,
            queued: VecDeque::new(),
            posted: VecDeque::new(),
            slots: VecDeque::new(),
        }
    }

    /// Where [`Pair::send_parts`] puts its bytes.
    pub fn tx_buffer(&self) -> u64 {
        self.tx_buffer
    }

    /// Makes `count` receive buffers of `len` bytes available.
    pub fn post_from(&mut self, ram: &GuestRam, count: usize, len: u32) {
        for _ in 0..count {
            let addr = ram.alloc(u64::from(len), 64);
            self.post_at(addr, len);
        }
        self.rx.publish();
    }

    /// Makes the buffers that came back available again.
    pub fn repost(&mut self) {
        for (addr, len) in std::mem::take(&mut self.spare) {
            self.post_at(addr, len);
        }
        self.rx.publish();
    }

    fn post_at(&mut self, addr: u64, len: u32) {
        let head = self.rx.add(&[], &[(addr, len)]).expect("the queue has room");
        self.buffers.insert(head, (addr, len as usize));
        self.posted.push_back(head);
    }

    /// Queues a frame in two descriptors, header and frame, without publishing it.
    pub fn queue_from(&mut self, ram: &GuestRam, header: NetHeader, frame: &[u8]) {
        self.reap();
        let at = ram.alloc((HEADER_LEN + frame.len()) as u64, 16);
        self.tx.write(at, &[&header.to_bytes(), frame].concat());
        let len = u32::try_from(frame.len()).expect("short");
        let parts = [(at, 12), (at + 12, len)];
        let parts = if frame.is_empty() { &parts[..1] } else { &parts[..] };
        let head = self.tx.add(parts, &[]).expect("the queue has room");
        self.queued.push_back(head);
    }

    /// Sends a frame of up to 2 KiB, from one of a few places that are used in turn.
    pub fn send_at(&mut self, ram: &GuestRam, header: NetHeader, frame: &[u8]) {
        const SLOT_LEN: u64 = 2048;
        if self.slots.is_empty() {
            self.slots.extend((0..QUEUE_SIZE).map(|_| ram.alloc(SLOT_LEN, 64)));
        }
        self.reap();
        let at = self.slots.pop_front().expect("a place");
        self.slots.push_back(at);
        self.tx.write(at, &[&header.to_bytes(), frame].concat());
        let len = u32::try_from(HEADER_LEN + frame.len()).expect("short");
        let head = self.tx.add(&[(at, len)], &[]).expect("the queue has room");
        self.queued.push_back(head);
        self.tx.publish();
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
        let head = self.tx.add(&parts, &[]).expect("the queue has room");
        self.queued.push_back(head);
        self.tx.publish();
    }

    /// Frames received since the last call; `num_buffers` says how many buffers each filled.
    pub fn received_here(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
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
        self.rx.set_used_event(self.rx.published_used());
        frames
    }

    fn next_buffer(&mut self) -> Option<Vec<u8>> {
        let (head, len) = self.rx.used()?;
        assert_eq!(
            in_order(&mut self.posted, head),
            Some(head),
            "buffers are used in order"
        );
        let (addr, capacity) = self.buffers.remove(&head).expect("a buffer that was posted");
        assert!(len as usize <= capacity, "used.len is no more than the buffer");
        self.spare.push((addr, u32::try_from(capacity).expect("short")));
        Some(self.rx.read(addr, len as usize))
    }

    fn reap(&mut self) {
        while let Some((head, len)) = self.tx.used() {
            assert_eq!(len, 0, "nothing is written to a transmit buffer");
            assert_eq!(
                in_order(&mut self.queued, head),
                Some(head),
                "buffers are given back in order"
            );
            self.reaped += 1;
        }
        // As drivers do that want to be called for the next one; looked at only with EVENT_IDX.
        self.tx.set_used_event(self.tx.published_used());
    }

    /// Transmit buffers given back since the last call.
    pub fn given_back(&mut self) -> usize {
        self.reap();
        std::mem::take(&mut self.reaped)
    }
}

/// The buffer whose turn it is to come back; `head`, if a test made buffers by hand.
fn in_order(waiting: &mut VecDeque<u16>, head: u16) -> Option<u16> {
    if waiting.contains(&head) {
        waiting.pop_front()
    } else {
        Some(head)
    }
}

/// A guest with its drivers. Its first pair is what most tests speak of.
pub struct Guest {
    pub name: &'static str,
    pub mac: [u8; 6],
    pub ram: GuestRam,
    pub pairs: Vec<Pair>,
    pub features: u64,
}

impl Deref for Guest {
    type Target = Pair;
    fn deref(&self) -> &Pair {
        &self.pairs[0]
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Pair {
        &mut self.pairs[0]
    }
}

impl Guest {
    pub fn new(name: &'static str, mac: [u8; 6], features: u64, pair_count: usize) -> Self {
        let ram = GuestRam::new(64 << 20);
        Self {
            name,
            mac,
            pairs: (0..pair_count).map(|_| Pair::new(&ram, features)).collect(),
            ram,
            features,
        }
    }

    /// Makes `count` receive buffers of `len` bytes available in each pair.
    pub fn post(&mut self, count: usize, len: u32) {
        for pair in &mut self.pairs {
            pair.post_from(&self.ram, count, len);
        }
    }

    /// Queues a frame in the first pair, without publishing it.
    pub fn queue(&mut self, header: NetHeader, frame: &[u8]) {
        self.queue_on(0, header, frame);
    }

    /// Queues a frame in a pair, without publishing it.
    pub fn queue_on(&mut self, pair: usize, header: NetHeader, frame: &[u8]) {
        self.pairs[pair].queue_from(&self.ram, header, frame);
    }

    /// A new transmit ring in the first pair, as after a reset.
    pub fn renew_tx(&mut self) {
        self.pairs[0].tx = Driver::new(&self.ram, QUEUE_SIZE, self.features);
        self.pairs[0].queued.clear();
    }

    /// Its memory and its pairs, apart.
    pub fn split(&mut self) -> (&GuestRam, &mut [Pair]) {
        (&self.ram, &mut self.pairs)
    }

    /// Frames received since the last call, in all pairs.
    pub fn received(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        self.pairs.iter_mut().flat_map(Pair::received_here).collect()
    }
}

/// What a queue runs on, with eventfds of its own.
pub fn resources(driver: &Driver, memory: &std::sync::Arc<GuestMemory>, features: u64) -> QueueResources {
    // Where the driver has taken everything back; a split ring in memory tells that itself.
    let config = RingConfig {
        base: driver.base(),
        ..driver.config()
    };
    let ring = Ring::new(config, memory.clone()).expect("a sound ring");
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

/// Where a ring goes on after so many chains of `each` descriptors.
pub fn base(chains: u16, each: u16) -> u32 {
    match RingFormat::of(FEATURES) {
        RingFormat::Split => chains.into(),
        RingFormat::Packed => {
            let descriptors = chains * each;
            let wrap = u16::from((descriptors / QUEUE_SIZE).is_multiple_of(2)) << 15;
            let told = u32::from((descriptors % QUEUE_SIZE) | wrap);
            told | told << 16
        }
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
    /// And so many were given to the guest.
    pub fn and_got(self, count: u64, bytes: usize) -> Self {
        Delta {
            rx: (count, bytes as u64),
            ..self
        }
    }

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
        trunk: None,
    }
}

impl Rig {
    /// Guests a, b, … with these features, in one network, each with 64 buffers of 1,526 bytes (or large ones, where
    /// they are not mergeable).
    pub fn new(features: &[u64]) -> Self {
        Self::with_pairs(features, 1)
    }

    /// The same with several queue pairs each.
    pub fn with_pairs(features: &[u64], pair_count: usize) -> Self {
        let mut rig = Self::bare(features, pair_count);
        for guest in &mut rig.guests {
            let mergeable = guest.features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0;
            guest.post(64, if mergeable { 1526 } else { LARGE_BUFFER_LEN });
        }
        rig
    }

    /// The same, but none of them has receive buffers.
    pub fn without_buffers(features: &[u64]) -> Self {
        Self::bare(features, 1)
    }

    /// The same with several queue pairs each.
    pub fn bare(features: &[u64], pair_count: usize) -> Self {
        let names = ["a", "b", "c", "d"];
        let guests: Vec<_> = (1..)
            .zip(names.iter().zip(features))
            .map(|(n, (name, features))| Guest::new(name, mac(n), *features, pair_count))
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

    /// Starts all queues of a guest.
    pub fn start(&mut self, n: usize) {
        for pair in 0..self.guests[n].pairs.len() {
            self.start_pair(n, pair);
        }
    }

    /// Starts both queues of one of a guest's pairs.
    pub fn start_pair(&mut self, n: usize, pair: usize) {
        let index = u16::try_from(pair).expect("few");
        for kind in [QueueKind::Rx { pair: index }, QueueKind::Tx { pair: index }] {
            let queue = self.queue_resources(n, kind);
            self.switch
                .start_queue(self.guests[n].name, kind.index(), queue)
                .expect("the queue can be served");
        }
    }

    /// What one of a guest's queues runs on.
    pub fn queue_resources(&self, n: usize, kind: QueueKind) -> QueueResources {
        let guest = &self.guests[n];
        let driver = match kind {
            QueueKind::Rx { pair } => &guest.pairs[usize::from(pair)].rx,
            QueueKind::Tx { pair } => &guest.pairs[usize::from(pair)].tx,
        };
        resources(driver, guest.ram.memory(), guest.features)
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

    /// Takes the counters as they are for what the next step starts from.
    pub fn settle(&mut self) {
        self.before = self.switch.counters();
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

pub fn delta(before: &PortCounters, now: &PortCounters) -> Delta {
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
