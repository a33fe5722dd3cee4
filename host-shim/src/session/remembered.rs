//! What a session remembers of what the VMM has said, as state: enough to say it again to another DPU.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    framing::{Descriptor, Message},
    guest_memory::{GuestMemory, MappedRegion},
    inflight::{Inflight, PackedState},
    request::Region,
    vhost_user_wire::{
        Code, FLAG_NEED_REPLY, FLAG_VERSION, VIRTIO_F_LOG_ALL, VIRTIO_F_RING_PACKED, VRING_NO_DESCRIPTOR,
    },
};

/// Regions that fit one `SET_MEM_TABLE`, as every back-end takes them (vhost-user, `VHOST_MEMORY_BASELINE_NREGIONS`).
const TABLE_REGIONS_MAX: usize = 8;
/// Where a ring's index stands in its used ring (virtio 1.3 §2.7.8).
const USED_IDX_OFFSET: u64 = 2;
/// Length of a descriptor, and where its flags are in a packed ring (virtio 1.3 §2.8.13).
const DESCRIPTOR_LEN: u64 = 16;
const DESCRIPTOR_FLAGS_OFFSET: u64 = 14;

/// Addresses of a ring, as `SET_VRING_ADDR` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddress {
    /// Bit 0: log writes to the used ring.
    pub flags: u32,
    /// Descriptor table, in the VMM's address space.
    pub descriptor: u64,
    /// Used ring, in the VMM's address space.
    pub used: u64,
    /// Available ring, in the VMM's address space.
    pub available: u64,
    /// Where the used ring is logged, guest-physical.
    pub log: u64,
}

/// An eventfd of a ring's: not said, said to be none, or there.
#[derive(Debug, Clone, Default)]
pub enum Event {
    /// Nothing was said.
    #[default]
    Unsaid,
    /// There is none: the ring is polled, or the driver polls.
    None,
    /// This one.
    Some(Descriptor),
}

/// One ring.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// Its size.
    pub num: Option<u32>,
    /// Where it begins, or where it stood when that was last known.
    pub base: u32,
    /// Where it is.
    pub addr: Option<RingAddress>,
    /// How the driver kicks.
    pub kick: Event,
    /// How the driver is called.
    pub call: Event,
    /// How a broken ring is told.
    pub err: Event,
    /// What `SET_VRING_ENABLE` said last.
    pub enable: Option<u32>,
}

impl Ring {
    /// A DPU may be serving it: it has a kick, or was told that there is none.
    pub fn is_live(&self) -> bool {
        !matches!(self.kick, Event::Unsaid)
    }
}

/// The dirty log.
#[derive(Debug, Clone)]
pub struct Log {
    /// Its file.
    pub file: Descriptor,
    /// Its length in bytes.
    pub mmap_size: u64,
    /// Where it begins in its file.
    pub mmap_offset: u64,
}

/// A change of what is remembered: what a request of the VMM's means.
#[derive(Debug, Clone)]
pub enum Change {
    /// `SET_FEATURES`.
    Features(u64),
    /// `SET_INFLIGHT_FD`.
    Inflight(Inflight),
    /// `SET_MEM_TABLE`.
    Memory(Vec<MappedRegion>),
    /// `ADD_MEM_REG`.
    Add(MappedRegion),
    /// `REM_MEM_REG`.
    Remove(Region),
    /// `SET_LOG_BASE`.
    Log(Log),
    /// `NET_SET_MTU`.
    Mtu(u64),
    /// `SET_CONFIG`.
    Config {
        /// First byte.
        offset: u32,
        /// What was written.
        bytes: Vec<u8>,
    },
    /// `SET_VRING_NUM`.
    Num(u16, u32),
    /// `SET_VRING_BASE`.
    Base(u16, u32),
    /// `SET_VRING_ADDR`.
    Addr(u16, RingAddress),
    /// `SET_VRING_KICK`.
    Kick(u16, Event),
    /// `SET_VRING_CALL`.
    Call(u16, Event),
    /// `SET_VRING_ERR`.
    Err(u16, Event),
    /// `SET_VRING_ENABLE`.
    Enable(u16, u32),
    /// The ring was stopped by `GET_VRING_BASE` and goes on here.
    Stopped(u16, u32),
    /// `RESET_DEVICE`: all but the memory and what belongs to the connection.
    Reset,
    /// `RESET_OWNER`, of old: the rings.
    ResetRings,
}

/// What the VMM has said.
#[derive(Debug, Clone, Default)]
pub struct Remembered {
    /// Virtio features that it acked.
    pub features: Option<u64>,
    /// The region that tracks what is in flight: the VMM's, or the shim's own.
    pub inflight: Option<Inflight>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The dirty log.
    pub log: Option<Log>,
    /// The largest packet.
    pub mtu: Option<u64>,
    /// Bytes of configuration space that the guest wrote.
    pub config: BTreeMap<u32, u8>,
    /// The rings.
    pub rings: Vec<Ring>,
}

impl Remembered {
    /// Takes a change in. The ring of a change has to be one of [`Self::rings`].
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Features(acked) => {
                let logged = self.features.is_some_and(|before| before & VIRTIO_F_LOG_ALL != 0);
                if logged && acked & VIRTIO_F_LOG_ALL == 0 {
                    // A migration has ended, and the VMM takes its log away.
                    self.log = None;
                }
                self.features = Some(acked);
                // Firmware may have had rings of the other kind.
                let packed = self.packed();
                self.inflight.take_if(|region| region.packed != packed);
            }
            Change::Inflight(region) => self.inflight = Some(region),
            Change::Memory(regions) => self.memory = GuestMemory::new(regions),
            Change::Add(region) => self.memory.add(region),
            Change::Remove(region) => self.memory.remove(&region),
            Change::Log(log) => self.log = Some(log),
            Change::Mtu(mtu) => self.mtu = Some(mtu),
            Change::Config { offset, bytes } => self.config.extend((offset..).zip(bytes)),
            Change::Num(ring, num) => self.ring(ring, |r| r.num = Some(num)),
            Change::Base(ring, base) => self.ring(ring, |r| r.base = base),
            Change::Addr(ring, addr) => self.ring(ring, |r| r.addr = Some(addr)),
            Change::Kick(ring, event) => self.ring(ring, |r| r.kick = event),
            Change::Call(ring, event) => self.ring(ring, |r| r.call = event),
            Change::Err(ring, event) => self.ring(ring, |r| r.err = event),
            Change::Enable(ring, enable) => self.ring(ring, |r| r.enable = Some(enable)),
            // Kick and call have to be said again before it starts (vhost-user, GET_VRING_BASE).
            Change::Stopped(ring, base) => self.ring(ring, |r| {
                r.base = base;
                (r.kick, r.call) = (Event::Unsaid, Event::Unsaid);
            }),
            Change::Reset => {
                (self.features, self.inflight, self.log) = (None, None, None);
                self.config.clear();
                self.apply(Change::ResetRings);
            }
            Change::ResetRings => self.rings.iter_mut().for_each(|ring| *ring = Ring::default()),
        }
    }

    fn ring(&mut self, index: u16, change: impl FnOnce(&mut Ring)) {
        if let Some(ring) = self.rings.get_mut(usize::from(index)) {
            change(ring);
        }
    }

    /// Are the rings packed?
    pub fn packed(&self) -> bool {
        self.features
            .is_some_and(|features| features & VIRTIO_F_RING_PACKED != 0)
    }

    /// Where a packed ring stands, if its region and the ring can be read.
    pub fn packed_state(&self, index: u16) -> Option<PackedState> {
        let addr = self.rings.get(usize::from(index))?.addr?;
        let flags_at = |slot: u16| {
            let offset = DESCRIPTOR_LEN * u64::from(slot) + DESCRIPTOR_FLAGS_OFFSET;
            self.memory.read_u16(addr.descriptor.checked_add(offset)?)
        };
        self.inflight.as_ref()?.packed_state(index, flags_at)
    }

    /// The VMM says where a ring begins: what the shim's own region has of it holds no more. A region of the VMM's is renewed
    /// by the VMM when the driver is reset.
    pub fn forget_position(&self, index: u16) {
        let rests = self.rings.get(usize::from(index)).is_some_and(|ring| !ring.is_live());
        if let Some(region) = self.inflight.as_ref().filter(|region| region.own && region.packed)
            && rests
            && index < region.queue_count
            && let Err(error) = region.forget(index)
        {
            tracing::warn!(%error, queue = index, "the shim's in-flight region could not be written");
        }
    }

    /// Up to where a ring is used, as GET_VRING_BASE tells it, if that can be read: of a packed ring that is the position
    /// of both sides (vhost-user, "Vring descriptor indices for packed virtqueues").
    pub fn stands(&self, index: u16) -> Option<u32> {
        match self.packed() {
            false => self.used_idx(index).map(u32::from),
            true => {
                let position = u32::from(self.packed_state(index)?.position?);
                Some(position | position << 16)
            }
        }
    }

    /// Where a ring's used index stands, if it can be read.
    pub fn used_idx(&self, index: u16) -> Option<u16> {
        let addr = self.rings.get(usize::from(index))?.addr?;
        self.memory.read_u16(addr.used.checked_add(USED_IDX_OFFSET)?)
    }

    /// Brings the bases of live rings up to where their used rings stand, now that nobody serves them. What cannot be
    /// read stays as it is: such a ring cannot be served either.
    pub fn refresh_bases(&mut self) {
        for index in self.indices() {
            if let (Some(base), true) = (self.stands(index), self.rings[usize::from(index)].is_live()) {
                self.rings[usize::from(index)].base = base;
            }
        }
    }

    /// Indices of all rings.
    pub fn indices(&self) -> Range<u16> {
        0..u16::try_from(self.rings.len()).unwrap_or(u16::MAX)
    }

    /// Requests in flight on one ring; none if nothing tells.
    pub fn in_flight(&self, index: u16) -> Option<u16> {
        if self.packed() {
            return self.packed_state(index).map(|state| state.in_flight);
        }
        let used_idx = self.used_idx(index)?;
        self.inflight.as_ref()?.in_flight(index, used_idx)
    }

    /// Requests in flight on all live rings; none if nothing tells of any.
    pub fn in_flight_total(&self) -> Option<u32> {
        self.inflight.as_ref()?;
        let live = self.indices().filter(|&index| self.rings[usize::from(index)].is_live());
        Some(live.filter_map(|index| self.in_flight(index)).map(u32::from).sum())
    }

    /// All of it as messages for a DPU that knows nothing yet, in the order in which they have to come. Each asks for
    /// an acknowledgement, but for `SET_LOG_BASE`, which has an answer of its own.
    pub fn replay(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        if let Some(features) = self.features {
            messages.push(number(Code::SetFeatures, features));
        }
        if let Some(inflight) = &self.inflight {
            messages.push(set_inflight(inflight));
        }
        messages.extend(self.memory_messages());
        if let Some(log) = &self.log {
            let payload = [log.mmap_size.to_le_bytes(), log.mmap_offset.to_le_bytes()].concat();
            messages.push(message(Code::SetLogBase, payload, [log.file.clone()]));
        }
        if let Some(mtu) = self.mtu {
            messages.push(number(Code::NetSetMtu, mtu));
        }
        messages.extend(self.config_messages());
        for (index, ring) in self.rings.iter().enumerate() {
            ring_messages(u32::try_from(index).unwrap_or(u32::MAX), ring, &mut messages);
        }
        messages
    }

    fn memory_messages(&self) -> Vec<Message> {
        let regions = self.memory.regions();
        let files = |regions: &[MappedRegion]| regions.iter().map(|r| r.file.clone()).collect::<Vec<_>>();
        match regions.len() {
            0 => Vec::new(),
            count @ 1..=TABLE_REGIONS_MAX => {
                let mut payload = (count as u64).to_le_bytes().to_vec();
                payload.extend(regions.iter().flat_map(|r| region_bytes(&r.region)));
                vec![message(Code::SetMemTable, payload, files(regions))]
            }
            _ => regions
                .iter()
                .map(|r| {
                    let payload = [vec![0; 8], region_bytes(&r.region)].concat();
                    message(Code::AddMemReg, payload, [r.file.clone()])
                })
                .collect(),
        }
    }

    /// One message for each run of bytes that lie side by side.
    fn config_messages(&self) -> Vec<Message> {
        let mut runs: Vec<(u32, Vec<u8>)> = Vec::new();
        for (&at, &byte) in &self.config {
            match runs.last_mut() {
                Some((offset, bytes)) if u64::from(*offset) + bytes.len() as u64 == u64::from(at) => bytes.push(byte),
                _ => runs.push((at, vec![byte])),
            }
        }
        runs.into_iter()
            .map(|(offset, bytes)| {
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let head = [offset, len, 0].into_iter().flat_map(u32::to_le_bytes);
                message(Code::SetConfig, head.chain(bytes).collect(), [])
            })
            .collect()
    }
}

fn ring_messages(index: u32, ring: &Ring, messages: &mut Vec<Message>) {
    if let Some(num) = ring.num {
        messages.push(state(Code::SetVringNum, index, num));
    }
    if ring.num.is_some() || ring.addr.is_some() || ring.base != 0 {
        messages.push(state(Code::SetVringBase, index, ring.base));
    }
    if let Some(addr) = ring.addr {
        let mut payload = [index, addr.flags].concat_le();
        for address in [addr.descriptor, addr.used, addr.available, addr.log] {
            payload.extend_from_slice(&address.to_le_bytes());
        }
        messages.push(message(Code::SetVringAddr, payload, []));
    }
    let events = [
        (Code::SetVringKick, &ring.kick),
        (Code::SetVringCall, &ring.call),
        (Code::SetVringErr, &ring.err),
    ];
    for (code, event) in events {
        match event {
            Event::Unsaid => {}
            Event::None => messages.push(number(code, u64::from(index) | VRING_NO_DESCRIPTOR)),
            Event::Some(fd) => messages.push(message(code, u64::from(index).to_le_bytes().to_vec(), [fd.clone()])),
        }
    }
    if let Some(enable) = ring.enable {
        messages.push(state(Code::SetVringEnable, index, enable));
    }
}

/// Numbers side by side, as they go over the wire.
trait ConcatLe {
    fn concat_le(self) -> Vec<u8>;
}

impl<const N: usize> ConcatLe for [u32; N] {
    fn concat_le(self) -> Vec<u8> {
        self.into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

fn region_bytes(region: &Region) -> Vec<u8> {
    let Region {
        guest_phys_addr,
        len,
        user_addr,
        mmap_offset,
    } = *region;
    let words = [guest_phys_addr, len, user_addr, mmap_offset];
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// `SET_INFLIGHT_FD` of a region.
pub fn set_inflight(inflight: &Inflight) -> Message {
    message(Code::SetInflightFd, inflight.payload(), [Arc::clone(&inflight.file)])
}

/// A message that carries one number.
pub fn number(code: Code, value: u64) -> Message {
    message(code, value.to_le_bytes().to_vec(), [])
}

fn state(code: Code, index: u32, num: u32) -> Message {
    message(code, [index, num].concat_le(), [])
}

/// A message that asks for an acknowledgement, unless it has an answer of its own.
pub fn message(code: Code, payload: Vec<u8>, descriptors: impl Into<Vec<Descriptor>>) -> Message {
    let flags = if code == Code::SetLogBase { 0 } else { FLAG_NEED_REPLY };
    Message {
        request: code as u32,
        flags: FLAG_VERSION | flags,
        payload,
        descriptors: descriptors.into(),
    }
}
