//! A DPU as a pure state machine, written against the vhost-user text: what it was told is its state.

use std::{collections::BTreeMap, os::fd::AsFd};

use rustix::fs::fstat;

use crate::session::{
    framing::{Descriptor, Message},
    vhost_user_wire::{Code, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, rule},
};

/// A descriptor, as far as it can be told from others.
pub fn identity(fd: &Descriptor) -> u64 {
    fstat(fd.as_fd()).unwrap().st_ino
}

/// One ring as the DPU knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelRing {
    pub num: Option<u32>,
    pub base: u32,
    pub addr: Option<Vec<u8>>,
    pub kick: Option<u64>,
    pub call: Option<u64>,
    pub err: Option<u64>,
    pub enable: Option<u32>,
}

/// What was said to the DPU, as state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelState {
    pub features: Option<u64>,
    pub inflight: Option<(Vec<u8>, u64)>,
    pub memory: Vec<(Vec<u8>, u64)>,
    pub log: Option<(Vec<u8>, u64)>,
    pub mtu: Option<u64>,
    pub config: Vec<u8>,
    pub rings: BTreeMap<u32, ModelRing>,
}

/// The DPU.
#[derive(Debug, Clone)]
pub struct ModelDpu {
    pub virtio: u64,
    pub protocol: u64,
    pub queues: u64,
    pub slots: u64,
    pub state: ModelState,
    pub channel: Option<Descriptor>,
    /// All that it was told, in order.
    pub seen: Vec<Code>,
    /// Says no to these.
    pub refuses: Vec<Code>,
    config_at_start: Vec<u8>,
    acks: bool,
    owned: bool,
}

fn word(payload: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(payload[index * 4..][..4].try_into().unwrap())
}

fn quad(payload: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(payload[at..][..8].try_into().unwrap())
}

impl ModelDpu {
    pub fn new(virtio: u64, protocol: u64, queues: u64, config: &[u8]) -> Self {
        Self {
            virtio,
            protocol,
            queues,
            slots: 16,
            state: ModelState {
                config: config.to_vec(),
                ..ModelState::default()
            },
            channel: None,
            seen: Vec::new(),
            refuses: Vec::new(),
            config_at_start: config.to_vec(),
            acks: false,
            owned: false,
        }
    }

    /// What another process of it is at its start.
    pub fn restarted(&self, config: &[u8]) -> Self {
        let mut fresh = Self::new(self.virtio, self.protocol, self.queues, config);
        fresh.slots = self.slots;
        fresh
    }

    /// Takes a message in and gives the answer, if there is one.
    pub fn take(&mut self, message: &Message) -> Option<Message> {
        let code = rule(message.request).expect("a known request").code;
        self.seen.push(code);
        let own_answer = self.own_answer(code, message);
        let wants_ack = message.flags & FLAG_NEED_REPLY != 0;
        assert!(
            !(own_answer.is_some() && wants_ack),
            "{code} is answered by itself and asks for an acknowledgement"
        );
        assert_eq!(
            wants_ack,
            own_answer.is_none() && self.acks && code != Code::SetProtocolFeatures,
            "{code}: every request asks for an acknowledgement once the DPU gives them"
        );
        if code == Code::SetProtocolFeatures {
            self.acks = quad(&message.payload, 0) & 8 != 0;
            assert_eq!(quad(&message.payload, 0) & !self.protocol, 0);
        }
        let refused = self.refuses.contains(&code);
        if own_answer.is_none() && !refused {
            self.change(code, message);
        }
        let answer = match (own_answer, wants_ack) {
            (Some(payload), _) => payload,
            (None, true) => u64::from(refused).to_le_bytes().to_vec(),
            (None, false) => return None,
        };
        Some(Message {
            request: message.request,
            flags: FLAG_VERSION | FLAG_REPLY,
            payload: answer,
            descriptors: Vec::new(),
        })
    }

    fn own_answer(&mut self, code: Code, message: &Message) -> Option<Vec<u8>> {
        let quad_answer = |value: u64| Some(value.to_le_bytes().to_vec());
        match code {
            Code::GetFeatures => quad_answer(self.virtio),
            Code::GetProtocolFeatures => quad_answer(self.protocol),
            Code::GetQueueNum => quad_answer(self.queues),
            Code::GetMaxMemSlots => quad_answer(self.slots),
            Code::GetConfig => {
                let (offset, len) = (word(&message.payload, 0) as usize, word(&message.payload, 1) as usize);
                let mut answer = message.payload[..12].to_vec();
                let mut config = self.state.config.clone();
                config.resize(256, 0);
                answer.extend_from_slice(&config[offset..offset + len]);
                Some(answer)
            }
            Code::SetLogBase => {
                self.state.log = Some((message.payload.clone(), identity(&message.descriptors[0])));
                Some(message.payload.clone())
            }
            Code::GetVringBase => {
                let index = word(&message.payload, 0);
                let ring = self.state.rings.entry(index).or_default();
                (ring.kick, ring.call) = (None, None);
                Some([index, ring.base].into_iter().flat_map(u32::to_le_bytes).collect())
            }
            _ => None,
        }
    }

    fn change(&mut self, code: Code, message: &Message) {
        let payload = &message.payload;
        let file = message.descriptors.first().map(identity);
        let regions = payload.get(8..).unwrap_or_default().chunks(32).map(<[u8]>::to_vec);
        let files: Vec<u64> = message.descriptors.iter().map(identity).collect();
        let state = &mut self.state;
        match code {
            Code::SetOwner => {
                assert!(!self.owned, "owned twice");
                self.owned = true;
            }
            Code::SetBackendReqFd => self.channel = message.descriptors.first().cloned(),
            Code::SetFeatures => {
                let (before, now) = (state.features.unwrap_or(0), quad(payload, 0));
                if before & !now & 1 << 26 != 0 {
                    state.log = None;
                }
                state.features = Some(now);
            }
            Code::SetInflightFd => state.inflight = Some((payload[..20].to_vec(), files[0])),
            Code::SetMemTable => state.memory = regions.zip(files).collect(),
            Code::AddMemReg => state.memory.extend(regions.zip(files)),
            Code::RemMemReg => {
                let gone = &payload[8..32];
                state.memory.retain(|(region, _)| &region[..24] != gone);
            }
            Code::NetSetMtu => state.mtu = Some(quad(payload, 0)),
            Code::SetConfig => {
                let offset = word(payload, 0) as usize;
                let bytes = &payload[12..];
                state.config[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Code::ResetDevice | Code::ResetOwner => {
                state.rings.clear();
                if code == Code::ResetDevice {
                    state.config.clone_from(&self.config_at_start);
                    (state.features, state.inflight, state.log) = (None, None, None);
                }
                self.owned = code == Code::ResetDevice;
            }
            Code::SetVringNum => self.ring(word(payload, 0)).num = Some(word(payload, 1)),
            Code::SetVringBase => self.ring(word(payload, 0)).base = word(payload, 1),
            Code::SetVringEnable => self.ring(word(payload, 0)).enable = Some(word(payload, 1)),
            Code::SetVringAddr => self.ring(word(payload, 0)).addr = Some(payload[4..].to_vec()),
            Code::SetVringKick => {
                assert!(!self.state.memory.is_empty(), "a ring before memory");
                self.ring(word(payload, 0) & 0xff).kick = file;
            }
            Code::SetVringCall => self.ring(word(payload, 0) & 0xff).call = file,
            Code::SetVringErr => self.ring(word(payload, 0) & 0xff).err = file,
            Code::SetProtocolFeatures => {}
            other => panic!("{other} was not expected"),
        }
    }

    fn ring(&mut self, index: u32) -> &mut ModelRing {
        assert!(u64::from(index) < self.queues);
        self.state.rings.entry(index).or_default()
    }
}
