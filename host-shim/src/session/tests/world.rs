//! A session, a DPU for it, and a VMM's messages.

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use outboard_protocol::id::ObjectKind;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::pwrite,
};

use super::model_dpu::ModelDpu;
use crate::session::{
    Note, Output, Session,
    fault::Fault,
    framing::{Descriptor, Message},
    vhost_user_wire::{
        Code, FLAG_NEED_REPLY, FLAG_VERSION, VIRTIO_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1, protocol_feature::*,
    },
};

pub const VIRTIO: u64 = VIRTIO_F_VERSION_1 | VIRTIO_F_PROTOCOL_FEATURES | 1 << 26 | 1 << 9;
pub const PROTOCOL: u64 =
    MQ | LOG_SHMFD | REPLY_ACK | MTU | BACKEND_REQ | CONFIG | INFLIGHT_SHMFD | RESET_DEVICE | CONFIGURE_MEM_SLOTS;
/// Where the VMM has mapped the guest's memory.
pub const USER_ADDR: u64 = 0x7f00_0000_0000;
/// Where a ring's used ring lies in its region.
pub const USED: u64 = 0x2000;
pub const CONFIG_SPACE: [u8; 60] = [7; 60];

/// The session and both its sides.
pub struct World {
    pub session: Session,
    pub dpu: Option<ModelDpu>,
    pub now: Instant,
    /// What the VMM has got.
    pub to_vmm: Vec<Message>,
    pub notes: Vec<Note>,
    pub announced: usize,
    pub dropped: Vec<Fault>,
    /// A message that the DPU has not answered, where the test answers.
    pub unanswered: Option<Message>,
    /// The DPU takes messages and answers none.
    pub hangs: bool,
    /// The DPU closes its stream when it is told this.
    pub ends_at: Option<Code>,
}

pub fn dpu() -> ModelDpu {
    ModelDpu::new(VIRTIO, PROTOCOL, 4, &CONFIG_SPACE)
}

pub fn event() -> Descriptor {
    eventfd(0, EventfdFlags::CLOEXEC).unwrap().into()
}

pub fn memory() -> Descriptor {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 1 << 20).unwrap();
    memory.into()
}

pub fn message(code: Code, payload: Vec<u8>, descriptors: impl Into<Vec<Descriptor>>) -> Message {
    Message {
        request: code as u32,
        flags: FLAG_VERSION | FLAG_NEED_REPLY,
        payload,
        descriptors: descriptors.into(),
    }
}

pub fn number(code: Code, value: u64) -> Message {
    message(code, value.to_le_bytes().to_vec(), [])
}

pub fn pair(code: Code, index: u32, num: u32) -> Message {
    message(code, [index, num].into_iter().flat_map(u32::to_le_bytes).collect(), [])
}

fn region(index: u64, file_offset: u64) -> Vec<u8> {
    let words = [index << 20, 1 << 20, USER_ADDR + (index << 20), file_offset];
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// `SET_MEM_TABLE` of one region per file.
pub fn memory_table(files: &[Descriptor]) -> Message {
    let mut payload = (files.len() as u64).to_le_bytes().to_vec();
    (0..files.len() as u64).for_each(|index| payload.extend(region(index, 0)));
    message(Code::SetMemTable, payload, files)
}

pub fn memory_region(code: Code, index: u64, file: Option<Descriptor>) -> Message {
    let payload = [vec![0; 8], region(index, 0)].concat();
    message(code, payload, file.into_iter().collect::<Vec<_>>())
}

/// `SET_VRING_ADDR` of a ring in the first region.
pub fn address(index: u32, flags: u32) -> Message {
    let mut payload: Vec<u8> = [index, flags].into_iter().flat_map(u32::to_le_bytes).collect();
    let at = USER_ADDR + u64::from(index) * 0x1_0000;
    for address in [at, at + USED, at + 0x1000, 0x99] {
        payload.extend_from_slice(&address.to_le_bytes());
    }
    message(Code::SetVringAddr, payload, [])
}

pub fn ring_event(code: Code, index: u64, event: Option<Descriptor>) -> Message {
    let flag = if event.is_some() { 0 } else { 0x100 };
    message(
        code,
        (index | flag).to_le_bytes().to_vec(),
        event.into_iter().collect::<Vec<_>>(),
    )
}

pub fn config(code: Code, offset: u32, bytes: &[u8]) -> Message {
    let len = u32::try_from(bytes.len()).unwrap();
    let head = [offset, len, 0].into_iter().flat_map(u32::to_le_bytes);
    message(code, head.chain(bytes.iter().copied()).collect(), [])
}

pub fn set_used_idx(file: &Descriptor, ring: u64, used_idx: u16) {
    pwrite(file, &used_idx.to_le_bytes(), ring * 0x1_0000 + USED + 2).unwrap();
}

/// The `u64` that an answer begins with.
pub fn value(message: &Message) -> u64 {
    u64::from_le_bytes(message.payload[..8].try_into().unwrap())
}

impl World {
    pub fn new(kind: ObjectKind) -> Self {
        Self {
            session: Session::new(kind, None, None),
            dpu: None,
            now: Instant::now(),
            to_vmm: Vec::new(),
            notes: Vec::new(),
            announced: 0,
            dropped: Vec::new(),
            unanswered: None,
            hangs: false,
            ends_at: None,
        }
    }

    /// With a DPU, and a VMM that accepted these protocol features.
    pub fn negotiated(kind: ObjectKind, accepted: u64) -> Self {
        let mut world = Self::new(kind);
        world.connect(dpu()).unwrap();
        assert!(world.try_ask(message(Code::SetOwner, vec![], [])).unwrap().is_none());
        // Acknowledged if that was accepted.
        world.try_ask(number(Code::SetProtocolFeatures, accepted)).unwrap();
        world
    }

    /// With a volume or port whose first ring runs over the returned memory.
    pub fn running(kind: ObjectKind) -> (Self, Descriptor) {
        let mut world = Self::negotiated(kind, PROTOCOL);
        let file = memory();
        world.ask(number(Code::SetFeatures, VIRTIO & !(1 << 26)));
        world.ask(memory_table(std::slice::from_ref(&file)));
        world.start_ring(0);
        (world, file)
    }

    pub fn start_ring(&mut self, index: u32) {
        self.ask(pair(Code::SetVringNum, index, 256));
        self.ask(pair(Code::SetVringBase, index, 0));
        self.ask(address(index, 0));
        self.ask(ring_event(Code::SetVringKick, index.into(), Some(event())));
        self.ask(ring_event(Code::SetVringCall, index.into(), Some(event())));
        self.ask(pair(Code::SetVringEnable, index, 1));
    }

    /// A DPU's stream is there.
    pub fn connect(&mut self, dpu: ModelDpu) -> Result<(), Fault> {
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        self.dpu = Some(dpu);
        self.unanswered = None;
        self.session.dpu_connected(Arc::new(OwnedFd::from(theirs)), self.now);
        self.pump()
    }

    /// The DPU's process is killed.
    pub fn kill(&mut self) -> Result<(), Fault> {
        self.dpu = None;
        self.unanswered = None;
        self.session.dpu_lost(self.now)?;
        self.pump()
    }

    /// The same DPU's program begins anew.
    pub fn restart(&mut self, fresh: ModelDpu) {
        self.kill().unwrap();
        self.connect(fresh).unwrap();
    }

    /// The VMM asks; what it got, if anything.
    pub fn try_ask(&mut self, message: Message) -> Result<Option<Message>, Fault> {
        let before = self.to_vmm.len();
        self.session.request(message, self.now)?;
        self.pump()?;
        assert!(self.to_vmm.len() <= before + 1, "two answers to one request");
        Ok(self.to_vmm.get(before).cloned())
    }

    /// The VMM asks and gets an answer that says yes.
    pub fn ask(&mut self, message: Message) -> Message {
        let code = message.request;
        let answer = self.try_ask(message).unwrap().expect("an answer");
        assert_eq!(answer.request, code);
        if answer.payload.len() == 8 && rule_has_ack(code) {
            assert_eq!(value(&answer), 0, "refused");
        }
        answer
    }

    pub fn after(&mut self, passed: Duration) -> Result<(), Fault> {
        self.now += passed;
        self.session.tick(self.now)?;
        self.pump()
    }

    /// The DPU answers what it had not.
    pub fn answer(&mut self) -> Result<(), Fault> {
        let message = self.unanswered.take().expect("something to answer");
        let answer = self.dpu.as_mut().unwrap().take(&message).expect("an answer");
        self.session.dpu_answered(answer, self.now)?;
        self.pump()
    }

    /// Does what the session wants done, until it wants no more.
    pub fn pump(&mut self) -> Result<(), Fault> {
        while let Some(output) = self.session.take() {
            match output {
                Output::ToVmm(message) => self.to_vmm.push(message),
                Output::Note(note) => self.notes.push(note),
                Output::Announce(_) => self.announced += 1,
                Output::DropDpu(fault) => {
                    self.dropped.push(fault);
                    self.dpu = None;
                }
                Output::ToDpu(message) if self.hangs && message.request != Code::SetProtocolFeatures as u32 => {
                    assert!(self.unanswered.is_none(), "two requests outstanding");
                    self.unanswered = Some(message);
                }
                Output::ToDpu(message) if self.ends_at.is_some_and(|code| code as u32 == message.request) => {
                    self.dpu = None;
                    self.session.dpu_lost(self.now)?;
                }
                Output::ToDpu(message) => {
                    let dpu = self.dpu.as_mut().expect("a message for a DPU that is not there");
                    if let Some(answer) = dpu.take(&message) {
                        self.session.dpu_answered(answer, self.now)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub fn state(&self) -> &super::model_dpu::ModelState {
        &self.dpu.as_ref().unwrap().state
    }

    pub fn seen(&self) -> &[Code] {
        &self.dpu.as_ref().unwrap().seen
    }
}

fn rule_has_ack(code: u32) -> bool {
    let rule = crate::session::vhost_user_wire::rule(code).unwrap();
    matches!(rule.answer, crate::session::vhost_user_wire::Answer::Ack)
}
