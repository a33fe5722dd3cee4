//! Transmit and receive queues whose descriptors are written once: each has a buffer of its own for good.
//!
//! Both keep the available ring as it is. The entry of used buffer `n` is where the same buffer is made available
//! again, so a device that gives buffers back in order never has an entry of its copy of the available ring invalidated.

use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
};

use crate::{
    args::L4,
    features::{IN_ORDER, NET_MRG_RXBUF},
    net::{
        frames::{Frames, Kind, l4_checksum, pseudo_sum, sum, word},
        plan::Plan,
    },
    raw::{Cells, LINE_LEN, Memory, Shared},
    ring::{DESC_WRITE, Descriptor, Ring, RingFault, Space, ring_len},
};

/// Length of the virtio-net header with VERSION_1 (virtio 1.3 §5.1.6).
pub const HEADER_LEN: usize = 12;
const NUM_BUFFERS_AT: usize = 10;
/// Receive buffers where frames may span several, header and all; what DPDK's and Linux' drivers give is similar.
const RX_ROOM: usize = 2048;
/// Frames that a receiver reassembles are no longer.
pub const FRAME_LEN_MAX: usize = 66_000;
/// Used entries of which the buffers are fetched ahead.
const AHEAD: u16 = 8;

/// Where the virtio header is in a buffer: it ends where a cache line does, so that of a small frame one line is read or
/// written for all of it, and no copy of either straddles lines.
const HEADER_AT: usize = LINE_LEN - HEADER_LEN;
const FRAME_AT: usize = HEADER_AT + HEADER_LEN;

/// Where the buffers are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    stride: usize,
    first: usize,
}

impl Shape {
    fn new(space: &mut Space, count: u16, room: usize) -> Self {
        let stride = stride(HEADER_AT + room);
        Self {
            stride,
            first: space.take(stride * usize::from(count)),
        }
    }

    /// One field of the frame in each buffer.
    fn cells<T: Shared>(&self, memory: &Arc<Memory>, count: u16, at: usize) -> Cells<T> {
        Cells::new(memory, self.first + FRAME_AT + at, usize::from(count), self.stride)
    }

    /// Offset of the virtio header of a buffer.
    fn header(&self, index: u16) -> usize {
        self.first + self.stride * usize::from(index) + HEADER_AT
    }
}

/// An odd number of cache lines: buffers then spread over all sets of the caches.
fn stride(len: usize) -> usize {
    (len.div_ceil(LINE_LEN) | 1) * LINE_LEN
}

/// Bytes of memory that a port's rings and buffers need.
pub fn memory_len(rx: (u16, usize), tx: (u16, usize)) -> usize {
    [rx, tx]
        .map(|(count, room)| ring_len(count) + LINE_LEN + stride(HEADER_AT + room) * usize::from(count))
        .iter()
        .sum()
}

/// Length of a receive buffer.
pub fn rx_room(negotiated: u64, frame_len: usize) -> usize {
    if negotiated & NET_MRG_RXBUF != 0 {
        RX_ROOM
    } else {
        RX_ROOM.max(HEADER_LEN + frame_len)
    }
}

/// A transmit queue.
#[derive(Debug)]
pub struct Tx {
    /// Its ring.
    pub ring: Ring,
    in_order: bool,
    shape: Shape,
    memory: Arc<Memory>,
    /// What each entry of the available ring holds.
    heads: Vec<u16>,
    words: Cells<AtomicU64>,
    sources: Cells<AtomicU16>,
    destinations: Cells<AtomicU16>,
    checksums: Cells<AtomicU16>,
    /// Of each buffer, the sum of all that is checksummed but ports and sequence number; none if it holds no data frame.
    sums: Vec<Option<u32>>,
    lens: Vec<u32>,
    scratch: Vec<u8>,
}

impl Tx {
    /// A queue of `size` buffers for frames like `frames`, of up to `room` bytes with the virtio header.
    ///
    /// # Errors
    /// No eventfds.
    pub fn new(
        space: &mut Space,
        (size, room): (u16, usize),
        negotiated: u64,
        frames: &Frames,
    ) -> std::io::Result<Self> {
        let ring = Ring::new(space, size, negotiated)?;
        let shape = Shape::new(space, size, room);
        let memory = Arc::clone(space.memory());
        let queue = Self {
            in_order: negotiated & IN_ORDER != 0,
            heads: (0..size).collect(),
            words: shape.cells(&memory, size, frames.word_at()),
            sources: shape.cells(&memory, size, 34),
            destinations: shape.cells(&memory, size, 36),
            checksums: shape.cells(&memory, size, frames.checksum_at()),
            sums: vec![None; usize::from(size)],
            lens: vec![0; usize::from(size)],
            scratch: Vec::with_capacity(FRAME_LEN_MAX),
            ring,
            shape,
            memory,
        };
        queue.heads.iter().for_each(|head| queue.ring.offer(*head, *head));
        Ok(queue)
    }

    /// Takes back what was sent; how many frames fit.
    ///
    /// # Errors
    /// The device broke the ring.
    #[inline(always)]
    pub fn room(&mut self) -> Result<u16, RingFault> {
        let done = self.ring.waiting()?;
        if !self.in_order {
            for n in 0..done {
                let id = self.ring.used_id(n)?;
                let slot = self.ring.seen().wrapping_add(n) & (self.ring.size() - 1);
                // The entry that is next in this slot lies a whole ring after the used one.
                if let Some(head) = self.heads.get_mut(usize::from(slot)).filter(|head| **head != id) {
                    *head = id;
                    self.ring.offer(slot.wrapping_sub(self.ring.next()), id);
                }
            }
        }
        self.ring.take(done);
        Ok(self.ring.size() - self.ring.held())
    }

    #[inline(always)]
    fn head(&self, n: u16) -> u16 {
        let slot = self.ring.next().wrapping_add(n) & (self.ring.size() - 1);
        self.heads.get(usize::from(slot)).copied().unwrap_or(0)
    }

    /// Sends `count` frames, no more than fit. `VARIED`: they differ in more than their sequence number.
    #[inline(always)]
    pub fn send<const VARIED: bool>(&mut self, plan: &mut Plan, count: u16) {
        for n in 0..count {
            let head = self.head(n);
            let index = usize::from(head);
            if VARIED && plan.deny_next() {
                let denied = plan.denied();
                self.stamp(head, &plan.frames, denied);
                continue;
            }
            let sequence = plan.next_sequence();
            match self.sums.get(index).copied().flatten() {
                Some(sum) if !plan.sampled(sequence) => {
                    if VARIED {
                        self.vary(index, sum, &plan.frames, sequence);
                    }
                    self.words.at(index).store(word(sequence).to_be(), Relaxed);
                }
                _ => self.stamp(head, &plan.frames, Kind::Data(sequence)),
            }
        }
        self.ring.publish(count);
        // Those that come next; the device is done with them, or holds them for long.
        for n in 0..count {
            self.words.claim(usize::from(self.head(n)));
        }
        self.ring.notify(count);
    }

    /// Gives a data frame the ports of its flow.
    #[inline(always)]
    fn vary(&self, index: usize, sum: u32, frames: &Frames, sequence: u32) {
        let (source, destination) = frames.ports(frames.flow_of(sequence));
        let protocol = if frames.l4 == L4::Udp { 17 } else { 6 };
        let checksum = l4_checksum(protocol, sum + u32::from(source) + u32::from(destination));
        self.sources.at(index).store(source.to_be(), Relaxed);
        self.destinations.at(index).store(destination.to_be(), Relaxed);
        self.checksums.at(index).store(checksum.to_be(), Relaxed);
    }

    /// Writes a frame as a whole.
    #[cold]
    fn stamp(&mut self, head: u16, frames: &Frames, kind: Kind) {
        let mut frame = std::mem::take(&mut self.scratch);
        frames.build(kind, &mut frame);
        let is_data = matches!(kind, Kind::Data(_));
        self.fill(head, &[0; HEADER_LEN], &frame);
        let kept = is_data.then(|| {
            let (word_at, checksum_at) = (frames.word_at(), frames.checksum_at());
            frame[34..38].fill(0);
            frame[checksum_at..checksum_at + 2].fill(0);
            frame[word_at..word_at + 8].fill(0);
            pseudo_sum(&frame) + sum(&frame[34..])
        });
        if let Some(sum) = self.sums.get_mut(usize::from(head)) {
            *sum = kept;
        }
        self.scratch = frame;
    }

    fn fill(&mut self, head: u16, header: &[u8; HEADER_LEN], frame: &[u8]) {
        let at = self.shape.header(head);
        assert!(
            FRAME_AT + frame.len() <= self.shape.stride,
            "the frame is larger than planned"
        );
        self.memory.write(at, header);
        self.memory.write(at + HEADER_LEN, frame);
        let len = u32::try_from(HEADER_LEN + frame.len()).unwrap_or(u32::MAX);
        if let Some(known) = self.lens.get_mut(usize::from(head)).filter(|known| **known != len) {
            *known = len;
            self.ring.describe(
                head,
                Descriptor {
                    at,
                    len,
                    flags: 0,
                    next: 0,
                },
            );
        }
    }

    /// Queues any frame as the `n`th, to be published by [`Tx::flush`].
    pub fn put(&mut self, n: u16, header: &[u8; HEADER_LEN], frame: &[u8]) {
        let head = self.head(n);
        if let Some(sum) = self.sums.get_mut(usize::from(head)) {
            *sum = None;
        }
        self.fill(head, header, frame);
    }

    /// Queues the TCP frame that [`Tx::prepare`] put into the `n`th buffer, with another sequence number.
    pub fn put_prepared(&mut self, n: u16, sequence: u32) {
        let head = self.head(n);
        // The TCP sequence number is 38 bytes into the frame.
        self.memory
            .write(self.shape.header(head) + HEADER_LEN + 38, &sequence.to_be_bytes());
    }

    /// Writes the same frame to all buffers.
    pub fn prepare(&mut self, header: &[u8; HEADER_LEN], frame: &[u8]) {
        for head in 0..self.ring.size() {
            self.fill(head, header, frame);
        }
    }

    /// Writes a frame to each buffer, to be sent as they are by [`Tx::flush`] from then on. `build` is told the buffer.
    pub fn prepare_each(&mut self, mut build: impl FnMut(u16, &mut Vec<u8>)) {
        let mut frame = std::mem::take(&mut self.scratch);
        for head in 0..self.ring.size() {
            build(head, &mut frame);
            self.fill(head, &[0; HEADER_LEN], &frame);
        }
        self.scratch = frame;
        self.sums.fill(None);
    }

    /// Publishes `count` queued frames.
    pub fn flush(&mut self, count: u16) {
        if count > 0 {
            self.ring.publish(count);
            self.ring.notify(count);
        }
    }

    /// Sends one frame, if there is room.
    ///
    /// # Errors
    /// The device broke the ring.
    pub fn send_one(&mut self, frame: &[u8]) -> Result<bool, RingFault> {
        if self.room()? == 0 {
            return Ok(false);
        }
        self.put(0, &[0; HEADER_LEN], frame);
        self.flush(1);
        Ok(true)
    }
}

/// What takes received frames.
pub trait Sink {
    /// Looks at a frame's sequence number and length with the virtio header. True if that is all it needs.
    fn glance(&mut self, word: u64, len: u32) -> bool;
    /// Looks at the whole frame.
    fn inspect(&mut self, header: &[u8; HEADER_LEN], frame: &[u8]);
}

/// A receive queue. The device has all buffers but those of the frames being looked at.
#[derive(Debug)]
pub struct Rx {
    /// Its ring.
    pub ring: Ring,
    mergeable: bool,
    shape: Shape,
    room: u32,
    memory: Arc<Memory>,
    heads: Vec<u16>,
    words: Cells<AtomicU64>,
    scratch: Vec<u8>,
}

impl Rx {
    /// A queue of `size` buffers of `room` bytes, for frames like `frames`, all of them available.
    ///
    /// # Errors
    /// No eventfds.
    pub fn new(
        space: &mut Space,
        (size, room): (u16, usize),
        negotiated: u64,
        frames: &Frames,
    ) -> std::io::Result<Self> {
        let mut ring = Ring::new(space, size, negotiated)?;
        let shape = Shape::new(space, size, room);
        let memory = Arc::clone(space.memory());
        let room = u32::try_from(room).map_err(std::io::Error::other)?;
        for head in 0..size {
            ring.describe(
                head,
                Descriptor {
                    at: shape.header(head),
                    len: room,
                    flags: DESC_WRITE,
                    next: 0,
                },
            );
            ring.offer(head, head);
        }
        ring.publish(size);
        Ok(Self {
            mergeable: negotiated & NET_MRG_RXBUF != 0,
            words: shape.cells(&memory, size, frames.word_at()),
            heads: (0..size).collect(),
            scratch: vec![0; FRAME_LEN_MAX + HEADER_LEN],
            ring,
            shape,
            room,
            memory,
        })
    }

    /// Gives up to `limit` frames to `sink`, and their buffers back to the device. How many there were.
    ///
    /// # Errors
    /// The device broke the ring.
    #[inline(always)]
    pub fn receive(&mut self, limit: u16, sink: &mut impl Sink) -> Result<u16, RingFault> {
        let waiting = self.ring.waiting()?;
        if waiting == 0 {
            return Ok(0);
        }
        let count = waiting.min(limit);
        for n in 0..count.min(AHEAD) {
            self.prefetch(n)?;
        }
        let (mut taken, mut frames) = (0, 0);
        while taken < count {
            let ahead = taken + AHEAD;
            if ahead < count {
                self.prefetch(ahead)?;
            }
            taken += self.frame(taken, waiting, sink)?;
            frames += 1;
        }
        self.ring.take(taken);
        self.ring.publish(taken);
        self.ring.notify(taken);
        Ok(frames)
    }

    #[inline(always)]
    fn prefetch(&self, n: u16) -> Result<(), RingFault> {
        let index = usize::from(self.ring.used_id(n)?);
        self.words.prefetch(index);
        Ok(())
    }

    /// Looks at the frame whose first buffer is the `n`th used one. How many buffers it fills.
    #[inline(always)]
    fn frame(&mut self, n: u16, waiting: u16, sink: &mut impl Sink) -> Result<u16, RingFault> {
        let (head, len) = (self.used(n)?, self.ring.used_len(n));
        // A length that is a whole frame's says that it is in one buffer.
        let word = u64::from_be(self.words.at(usize::from(head)).load(Relaxed));
        if sink.glance(word, len) {
            return Ok(1);
        }
        self.whole(n, waiting, sink)
    }

    /// The buffer of the `n`th used entry; where it is made available again, it stands.
    #[inline(always)]
    fn used(&mut self, n: u16) -> Result<u16, RingFault> {
        let id = self.ring.used_id(n)?;
        let slot = self.ring.seen().wrapping_add(n) & (self.ring.size() - 1);
        if let Some(head) = self.heads.get_mut(usize::from(slot)).filter(|head| **head != id) {
            *head = id;
            self.ring.offer(slot.wrapping_sub(self.ring.next()), id);
        }
        Ok(id)
    }

    #[cold]
    fn whole(&mut self, n: u16, waiting: u16, sink: &mut impl Sink) -> Result<u16, RingFault> {
        let first = self.used(n)?;
        let mut num_buffers = [1, 0];
        if self.mergeable {
            self.memory
                .read(self.shape.header(first) + NUM_BUFFERS_AT, &mut num_buffers);
        }
        let buffers = u16::from_le_bytes(num_buffers);
        let there = waiting - n;
        if buffers == 0 || buffers > there {
            return Err(RingFault::Buffers { buffers, there });
        }
        let mut bytes = std::mem::take(&mut self.scratch);
        let mut filled = 0;
        for part in n..n + buffers {
            let (id, len) = (self.used(part)?, self.ring.used_len(part));
            let least = if part == n { HEADER_LEN } else { 0 };
            let piece = usize::try_from(len)
                .ok()
                .filter(|piece| len <= self.room && *piece >= least);
            let piece = piece.ok_or(RingFault::Length {
                id,
                len,
                room: self.room,
            })?;
            if filled + piece > bytes.len() {
                // Only what is no frame of ours is that large.
                bytes.resize(filled + piece, 0);
            }
            self.memory
                .read(self.shape.header(id), &mut bytes[filled..filled + piece]);
            filled += piece;
        }
        if let Some((header, frame)) = bytes[..filled].split_first_chunk() {
            sink.inspect(header, frame);
        }
        self.scratch = bytes;
        Ok(buffers)
    }
}
