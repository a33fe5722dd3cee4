//! The receive path: a frame into a driver's buffers, whole or not at all.

use outboard_controls::{Check, on};
use outboard_ring::{Chain, ChainError, GuestMemory, Reader, RingError};
use outboard_vhost_user::QueueResources;

use crate::{
    HEAD_LEN_MAX,
    deliver::Source,
    error::{RxDrop, StartError},
    features::Accepted,
    header::{GSO_NONE, HEADER_LEN, NetHeader},
    queue::Queue,
    vlan::{self, VLAN_TAG_LEN},
};

/// Buffers one frame may be spread over. A 64 KiB frame fills 43 of the 1,526 bytes that virtio 1.3 §5.1.6.3.1 has as
/// least.
pub const MERGED_BUFFERS_MAX: usize = 64;

/// The header of a frame as it is, in one buffer.
const PLAIN_HEADER: [u8; HEADER_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// What follows a frame's private first bytes.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// Bytes in private memory.
    Private(&'a [u8]),
    /// Bytes in the sender's memory, to be copied once.
    Guest {
        /// The sender's memory.
        memory: &'a GuestMemory,
        /// The sender's chain.
        chain: &'a Chain,
        /// Where in the chain they start.
        offset: usize,
        /// How many they are.
        len: usize,
    },
}

impl Payload<'_> {
    fn len(&self) -> usize {
        match self {
            Payload::Private(bytes) => bytes.len(),
            Payload::Guest { len, .. } => *len,
        }
    }
}

/// A guest's receive queue.
#[derive(Debug)]
pub struct RxQueue {
    queue: Queue,
    /// Buffers of the frame at hand.
    chains: Vec<Chain>,
}

impl RxQueue {
    /// Serves a queue.
    ///
    /// # Errors
    /// The driver is a legacy one.
    pub fn new(resources: QueueResources) -> Result<Self, StartError> {
        let queue = Queue::new(resources)?;
        let count = if queue.accepted.mergeable {
            MERGED_BUFFERS_MAX
        } else {
            1
        };
        Ok(Self {
            queue,
            chains: (0..count).map(|_| Chain::new()).collect(),
        })
    }

    /// What the driver takes.
    pub fn accepted(&self) -> Accepted {
        self.queue.accepted
    }

    /// Writes a frame on which nothing is left to do, in the plainest of cases: into one buffer, from memory in one piece.
    /// False if [`RxQueue::give`] has to see to it, or to say why the frame is dropped; then nothing was done.
    // Wherever it is called, it is most of what is done there.
    #[inline(always)]
    pub(crate) fn give_plain(&mut self, source: Source<'_>) -> bool {
        let Source {
            memory,
            chain,
            record,
            head,
            len,
        } = source;
        if len > self.queue.frame_len_max && on(Check::FrameLength) {
            return false;
        }
        let start = HEADER_LEN + head.len();
        let rest = match len.saturating_sub(head.len()) {
            0 => None,
            rest => match chain.readable_piece(memory, (record.start() + head.len()) as u64, rest) {
                None => return false,
                some => some,
            },
        };
        self.queue.fill_next(HEADER_LEN + len, |bytes| {
            let write = || {
                bytes.put(0, &PLAIN_HEADER)?;
                bytes.part(HEADER_LEN, head.len())?.copy_from(head);
                let Some(rest) = rest else { return Some(true) };
                rest.copy_to_guest(bytes.part(start, rest.len())?);
                Some(!memory.poisoned())
            };
            write() == Some(true)
        })
    }

    /// Writes a frame, with a tag of this VLAN id if there is one: see [`RxQueue::give`]. `header` and lengths are those of
    /// the frame without it; it may be as much longer than the MTU allows (IEEE 802.3-2022 §3.2.7).
    ///
    /// # Errors
    /// Why the frame is dropped.
    pub fn give_on(
        &mut self,
        vlan: Option<u16>,
        header: NetHeader,
        head: &[u8],
        payload: Payload<'_>,
    ) -> Result<(), RxDrop> {
        match vlan {
            None => self.give(header, head, payload),
            Some(vlan) => {
                let mut room = [0; HEAD_LEN_MAX + VLAN_TAG_LEN];
                let head = vlan::insert(head, vlan, &mut room);
                self.give_with(vlan::with_tag(header), head, payload, VLAN_TAG_LEN)
            }
        }
    }

    /// Writes a frame, `head` and then `payload`, and stages its buffers as used. Either all of it or nothing: buffers
    /// are reserved before the first byte is written, and given back if it cannot be finished.
    ///
    /// # Errors
    /// Why the frame is dropped.
    pub fn give(&mut self, header: NetHeader, head: &[u8], payload: Payload<'_>) -> Result<(), RxDrop> {
        self.give_with(header, head, payload, 0)
    }

    /// The same, with so many bytes of a tag, which the MTU does not count.
    fn give_with(
        &mut self,
        header: NetHeader,
        head: &[u8],
        payload: Payload<'_>,
        tag_len: usize,
    ) -> Result<(), RxDrop> {
        if self.queue.broken() {
            return Err(RxDrop::Broken);
        }
        let total = HEADER_LEN + head.len() + payload.len();
        // A frame that the guest segments itself is no longer than its own segments (Linux' bridge asks the same of a
        // port: `is_skb_forwardable`).
        let long = total - HEADER_LEN > self.queue.frame_len_max + tag_len;
        if long && header.gso_type == GSO_NONE && on(Check::FrameLength) {
            return Err(RxDrop::OverMtu);
        }
        let count = self.reserve(total)?;
        let num_buffers = u16::try_from(count).unwrap_or(u16::MAX);
        let header = NetHeader { num_buffers, ..header };
        if !(count == 1 && self.write_whole(header, head, payload).is_some())
            && let Err(drop) = self.write(header, head, payload)
        {
            self.queue.log_writes(self.chains.iter().take(count));
            self.queue.ring.unpop(num_buffers);
            return Err(drop);
        }
        let mut left = total;
        for chain in self.chains.iter().take(count) {
            let filled = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX).min(left);
            left -= filled;
            // No more than the frame, which is far below 4 GiB.
            self.queue.push(chain, u32::try_from(filled).unwrap_or(0));
        }
        Ok(())
    }

    /// Writes a frame into the first buffer, which has room for it, if that is one piece of memory and the payload is one
    /// too. `None` if it has to be done piece by piece, or memory is gone.
    #[inline]
    fn write_whole(&self, header: NetHeader, head: &[u8], payload: Payload<'_>) -> Option<()> {
        let own = self.queue.ring.memory();
        let total = HEADER_LEN + head.len() + payload.len();
        let bytes = self.chains.first()?.writable_piece(own, total)?;
        let rest = bytes.part(HEADER_LEN + head.len(), payload.len())?;
        let source_lives = match payload {
            Payload::Private(payload) => {
                rest.copy_from(payload);
                true
            }
            Payload::Guest { len: 0, .. } => true,
            Payload::Guest {
                memory,
                chain,
                offset,
                len,
            } => {
                chain.readable_piece(memory, offset as u64, len)?.copy_to_guest(rest);
                !memory.poisoned()
            }
        };
        bytes.put(0, &header.to_bytes())?;
        bytes.part(HEADER_LEN, head.len())?.copy_from(head);
        (source_lives && !own.poisoned()).then_some(())
    }

    /// Takes as many buffers as hold `total` bytes: how many.
    fn reserve(&mut self, total: usize) -> Result<usize, RxDrop> {
        let mut room = 0u64;
        let mut count = 0u16;
        let mut outcome = Err(RxDrop::BufferTooSmall);
        for chain in &mut self.chains {
            if !self.queue.pop(chain) {
                outcome = Err(if self.queue.broken() {
                    RxDrop::Broken
                } else {
                    RxDrop::Full
                });
                break;
            }
            count += 1;
            if let Some(reason) = unfit(chain).filter(|_| on(Check::ReceiveBuffer)) {
                self.queue.fail(RingError::Request {
                    head: chain.head(),
                    reason,
                });
                outcome = Err(RxDrop::Broken);
                break;
            }
            room += chain.writable_len();
            if room >= total as u64 {
                outcome = Ok(usize::from(count));
                break;
            }
        }
        if outcome.is_err() {
            self.queue.ring.unpop(count);
        }
        outcome
    }

    fn write(&mut self, header: NetHeader, head: &[u8], payload: Payload<'_>) -> Result<(), RxDrop> {
        let own = self.queue.ring.memory();
        // Header and head in one copy; what a head has beyond what is inspected follows.
        let (near, far) = head.split_at(head.len().min(HEAD_LEN_MAX));
        let mut first = [0; HEADER_LEN + HEAD_LEN_MAX];
        let first = first.get_mut(..HEADER_LEN + near.len()).unwrap_or_default();
        if let Some((bytes, rest)) = first.split_first_chunk_mut() {
            *bytes = header.to_bytes();
            rest.copy_from_slice(near);
        }
        let put = |start, bytes: &[u8]| {
            scatter(&self.chains, start, bytes.len(), |chain, at, from, len| {
                chain.write_at(own, at, bytes.get(from..from + len).unwrap_or_default())
            })
        };
        let mut written = put(0, first).and_then(|()| put(first.len(), far));
        let start = HEADER_LEN + head.len();
        written = written.and_then(|()| match payload {
            Payload::Private(bytes) => put(start, bytes),
            Payload::Guest {
                memory,
                chain: source,
                offset,
                len,
            } => {
                let mut reader = Reader::new(memory, source, offset as u64, len)?;
                scatter(&self.chains, start, len, |chain, at, _, len| {
                    reader.copy_to(own, chain, at, len)
                })?;
                reader.finish(own)
            }
        });
        if written.is_ok() {
            return Ok(());
        }
        // All lengths were checked when the chains were taken, so it is memory that is gone: whose?
        if matches!(payload, Payload::Guest { memory, .. } if memory.poisoned()) && !own.poisoned() {
            return Err(RxDrop::SourceGone);
        }
        self.queue.fail(RingError::MemoryVanished);
        Err(RxDrop::Broken)
    }

    /// Its ring: to show the guest the frames it was given, and to call it.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The same, to change it.
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

/// Why a receive buffer is none (virtio 1.3 §5.1.6.3.1: only for the device to write, and no smaller than the header).
fn unfit(chain: &Chain) -> Option<&'static str> {
    if chain.readable_len() != 0 {
        return Some("a receive buffer that is not for the device to write");
    }
    (chain.writable_len() < HEADER_LEN as u64).then_some("a receive buffer smaller than the virtio header")
}

/// Spreads `len` bytes over `chains` from `start` on: `put(chain, offset in it, offset in the bytes, how many)`.
fn scatter(
    chains: &[Chain],
    start: usize,
    len: usize,
    mut put: impl FnMut(&Chain, u64, usize, usize) -> Result<(), ChainError>,
) -> Result<(), ChainError> {
    let mut skip = start as u64;
    let mut done = 0;
    for chain in chains {
        if done == len {
            break;
        }
        let room = chain.writable_len();
        if skip >= room {
            skip -= room;
            continue;
        }
        let piece = usize::try_from(room - skip).unwrap_or(usize::MAX).min(len - done);
        put(chain, skip, done, piece)?;
        done += piece;
        skip = 0;
    }
    Ok(())
}
