//! After a replay a fresh DPU stands where one would that was never interrupted, whatever the VMM said before, between
//! and after, and wherever the old one was killed.

use outboard_protocol::id::ObjectKind;
use proptest::prelude::*;

use super::{model_dpu::ModelState, world::*};
use crate::session::{
    framing::{Descriptor, Message},
    vhost_user_wire::Code,
};

/// What happens next.
#[derive(Debug, Clone)]
enum Event {
    /// The VMM asks this.
    Ask(Ask),
    /// The DPU is killed while idle, and another one comes after so many requests.
    Kill(u8),
    /// The DPU is killed after this many messages of the next exchange, before it has answered the last.
    KillAt(u8),
}

#[derive(Debug, Clone)]
enum Ask {
    Features(bool),
    Table(u8),
    Add(u8),
    Remove(u8),
    Log,
    Mtu(u16),
    Config(u8, u8),
    Num(u32, u8),
    Base(u32, u16),
    Addr(u32, bool),
    Kick(u32, bool),
    Call(u32, bool),
    Err(u32),
    Enable(u32, bool),
    Stop(u32),
    Reset(bool),
}

fn ask() -> impl Strategy<Value = Ask> {
    let ring = 0_u32..4;
    prop_oneof![
        any::<bool>().prop_map(Ask::Features),
        (1_u8..4).prop_map(Ask::Table),
        (0_u8..12).prop_map(Ask::Add),
        (0_u8..12).prop_map(Ask::Remove),
        Just(Ask::Log),
        any::<u16>().prop_map(Ask::Mtu),
        (0_u8..60, any::<u8>()).prop_map(|(at, byte)| Ask::Config(at, byte)),
        (ring.clone(), 0_u8..10).prop_map(|(r, n)| Ask::Num(r, n)),
        (ring.clone(), any::<u16>()).prop_map(|(r, n)| Ask::Base(r, n)),
        (ring.clone(), any::<bool>()).prop_map(|(r, l)| Ask::Addr(r, l)),
        (ring.clone(), any::<bool>()).prop_map(|(r, p)| Ask::Kick(r, p)),
        (ring.clone(), any::<bool>()).prop_map(|(r, p)| Ask::Call(r, p)),
        ring.clone().prop_map(Ask::Err),
        (ring.clone(), any::<bool>()).prop_map(|(r, e)| Ask::Enable(r, e)),
        ring.prop_map(Ask::Stop),
        any::<bool>().prop_map(Ask::Reset),
    ]
}

fn event_of_history() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => ask().prop_map(Event::Ask),
        1 => (0_u8..4).prop_map(Event::Kill),
        1 => (0_u8..40).prop_map(Event::KillAt),
    ]
}

/// The VMM's own view, so that it says nothing that a DPU would refuse.
struct Vmm {
    regions: Vec<(u8, Descriptor)>,
    files: Vec<Descriptor>,
}

impl Vmm {
    fn new() -> Self {
        Self {
            regions: Vec::new(),
            files: (0..12).map(|_| memory()).collect(),
        }
    }

    fn message(&mut self, ask: &Ask) -> Option<Message> {
        let file = |n: u8| self.files[usize::from(n)].clone();
        Some(match *ask {
            Ask::Features(log) => number(Code::SetFeatures, VIRTIO & !(u64::from(!log) << 26)),
            Ask::Table(count) => {
                self.regions = (0..count).map(|n| (n, file(n))).collect();
                let files: Vec<_> = self.regions.iter().map(|(_, file)| file.clone()).collect();
                memory_table(&files)
            }
            Ask::Add(n) if self.regions.iter().all(|(known, _)| *known != n) => {
                self.regions.push((n, file(n)));
                memory_region(Code::AddMemReg, n.into(), Some(file(n)))
            }
            Ask::Remove(n) if self.regions.iter().any(|(known, _)| *known == n) && self.regions.len() > 1 => {
                self.regions.retain(|(known, _)| *known != n);
                memory_region(Code::RemMemReg, n.into(), None)
            }
            Ask::Log => {
                let payload = [1_u64 << 16, 0].into_iter().flat_map(u64::to_le_bytes).collect();
                message(Code::SetLogBase, payload, [memory()])
            }
            Ask::Mtu(mtu) => number(Code::NetSetMtu, mtu.into()),
            Ask::Config(at, byte) => config(Code::SetConfig, at.into(), &[byte]),
            Ask::Num(ring, log2) => pair(Code::SetVringNum, ring, 1 << log2),
            Ask::Base(ring, base) => {
                // So it is in a guest: a ring begins where it stands.
                set_used_idx(&self.files[0], ring.into(), base);
                pair(Code::SetVringBase, ring, base.into())
            }
            Ask::Addr(ring, log) if !self.regions.is_empty() => address(ring, log.into()),
            Ask::Kick(ring, present) if !self.regions.is_empty() => {
                ring_event(Code::SetVringKick, ring.into(), present.then(event))
            }
            Ask::Call(ring, present) => ring_event(Code::SetVringCall, ring.into(), present.then(event)),
            Ask::Err(ring) => ring_event(Code::SetVringErr, ring.into(), Some(event())),
            Ask::Enable(ring, enable) => pair(Code::SetVringEnable, ring, enable.into()),
            Ask::Stop(ring) => pair(Code::GetVringBase, ring, 0),
            Ask::Reset(device) => {
                (0..4).for_each(|ring| set_used_idx(&self.files[0], ring, 0));
                let code = if device { Code::ResetDevice } else { Code::ResetOwner };
                message(code, vec![], [])
            }
            _ => return None,
        })
    }
}

/// A state without what a replay may legitimately change: where live rings stand is read from the guest's memory, a
/// ring that was never spoken of is as good as none, and a region of the shim's own is another file.
fn comparable(state: &ModelState, own_inflight: bool) -> ModelState {
    let mut state = state.clone();
    for ring in state.rings.values_mut() {
        if ring.kick.is_some() {
            ring.base = 0;
        }
    }
    state.rings.retain(|_, ring| *ring != Default::default());
    if own_inflight {
        state.inflight = state.inflight.map(|(payload, _)| (payload, 0));
    }
    state
}

/// Runs a history with and without its kills.
fn check(history: &[Event]) -> Result<(), TestCaseError> {
    let kind = ObjectKind::Port;
    let mut steady = World::negotiated(kind, PROTOCOL);
    let mut shaken = World::negotiated(kind, PROTOCOL);
    let mut vmm = Vmm::new();
    let mut back_in: Option<u8> = None;
    let mut kill_at: Option<u8> = None;
    for event in history {
        match event {
            Event::Kill(requests) => {
                shaken.kill().unwrap();
                shaken.after(std::time::Duration::from_secs(1)).unwrap();
                back_in = Some(*requests);
            }
            Event::KillAt(messages) => kill_at = Some(*messages),
            Event::Ask(ask) => {
                let Some(message) = vmm.message(ask) else { continue };
                let expected = steady.ask(message.clone());
                let got = match kill_at.take() {
                    Some(messages) if shaken.dpu.is_some() => shaken.ask_and_kill(message, messages),
                    _ => shaken.ask(message),
                };
                if !matches!(ask, Ask::Stop(_)) {
                    prop_assert_eq!(&got.payload, &expected.payload);
                }
            }
        }
        back_in = match back_in {
            Some(0) => {
                shaken.connect(dpu()).unwrap();
                None
            }
            Some(left) => Some(left - 1),
            None => None,
        };
    }
    shaken.kill().unwrap();
    shaken.connect(dpu()).unwrap();
    prop_assert!(shaken.dropped.is_empty() && steady.dropped.is_empty());
    prop_assert_eq!(comparable(shaken.state(), true), comparable(steady.state(), true));
    Ok(())
}

impl World {
    /// The VMM asks, and the DPU dies as it takes the message with this number, counted through replays. The next one
    /// is there at once, and dies in the same way, until the number is reached.
    fn ask_and_kill(&mut self, request: Message, mut messages: u8) -> Message {
        let before = self.to_vmm.len();
        self.hangs = true;
        self.session.request(request, self.now).unwrap();
        loop {
            self.pump().unwrap();
            if messages == 0 {
                break;
            }
            messages -= 1;
            match self.unanswered.is_some() {
                true => self.answer().unwrap(),
                // It is idle: it dies, and the next one is told all.
                false => {
                    self.kill().unwrap();
                    self.connect(dpu()).unwrap();
                }
            }
        }
        self.hangs = false;
        self.kill().unwrap();
        self.now += std::time::Duration::from_secs(1);
        self.session.tick(self.now).unwrap();
        self.pump().unwrap();
        self.connect(dpu()).unwrap();
        assert_eq!(self.to_vmm.len(), before + 1, "one request, one answer");
        self.to_vmm[before].clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_replayed_dpu_stands_where_an_uninterrupted_one_does(history in prop::collection::vec(event_of_history(), 1..60)) {
        check(&history)?;
    }
}

#[test]
fn killed_at_every_message_of_a_session() {
    let asks = [
        Ask::Features(false),
        Ask::Table(2),
        Ask::Num(0, 8),
        Ask::Base(0, 0),
        Ask::Addr(0, false),
        Ask::Kick(0, true),
        Ask::Call(0, true),
        Ask::Enable(0, true),
        Ask::Config(32, 1),
        Ask::Add(9),
        Ask::Stop(0),
    ];
    for ask in 0..asks.len() {
        for message in 0..30 {
            let mut history: Vec<Event> = asks.iter().cloned().map(Event::Ask).collect();
            history.insert(ask, Event::KillAt(message));
            check(&history).unwrap();
        }
    }
}
