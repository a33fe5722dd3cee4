//! What happens while the DPU is away: killed, hung, or replaced by one that will not do.

use std::time::Duration;

use outboard_protocol::id::ObjectKind::{Port, Volume};
use rustix::io::pwrite;

use super::world::*;
use crate::session::{
    HELD_QUIETLY_MAX, Note, STOPPING_MAX, Session,
    exchange::{ANSWER_WAIT_MAX, DRAIN_WAIT_MAX, STREAM_ENDS_MAX},
    fault::Fault,
    offer::Unfit,
    vhost_user_wire::{Code, VIRTIO_F_PROTOCOL_FEATURES, VIRTIO_F_VERSION_1, protocol_feature::*},
};

fn base_of(answer: &crate::session::framing::Message) -> (u64, u64) {
    (value(answer) & 0xffff_ffff, value(answer) >> 32)
}

/// Marks a descriptor of ring 0 as in flight, as the DPU does.
fn mark_in_flight(world: &World, entry: u64) {
    let inflight = world.session.remembered().inflight.clone().unwrap();
    pwrite(&inflight.file, &[1], 16 + entry * 16).unwrap();
}

fn clear_in_flight(world: &World, entry: u64) {
    let inflight = world.session.remembered().inflight.clone().unwrap();
    pwrite(&inflight.file, &[0], 16 + entry * 16).unwrap();
}

fn sync_logged_index(world: &World, used_idx: u16) {
    let inflight = world.session.remembered().inflight.clone().unwrap();
    pwrite(&inflight.file, &used_idx.to_le_bytes(), 14).unwrap();
}

#[test]
fn all_that_is_remembered_is_said_in_order() {
    let (mut world, _file) = World::running(Volume);
    use Code::*;
    world.ask(number(NetSetMtu, 1400));
    world.ask(config(SetConfig, 32, &[1, 2]));
    let log = [1_u64 << 16, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    world.ask(message(SetLogBase, log, [memory()]));
    world.ask(ring_event(SetVringErr, 0, Some(event())));
    let before = world.state().clone();
    world.restart(dpu());
    let replay = [
        SetFeatures,
        SetInflightFd,
        SetMemTable,
        SetLogBase,
        NetSetMtu,
        SetConfig,
        SetVringNum,
        SetVringBase,
        SetVringAddr,
        SetVringKick,
        SetVringCall,
        SetVringErr,
        SetVringEnable,
    ];
    assert_eq!(world.seen()[8..], replay);
    assert_eq!(*world.state(), before);
    assert_eq!(world.notes.last(), Some(&Note::Ready { replay: true }));
    assert_eq!(world.announced, 0, "the configuration is the same");
}

#[test]
fn a_killed_dpus_request_is_answered_and_said_to_the_next() {
    let (mut world, _file) = World::running(Volume);
    world.hangs = true;
    assert!(world.try_ask(pair(Code::SetVringEnable, 0, 0)).unwrap().is_none());
    world.kill().unwrap();
    assert_eq!(value(world.to_vmm.last().unwrap()), 0);
    world.hangs = false;
    world.connect(dpu()).unwrap();
    assert_eq!(world.state().rings[&0].enable, Some(0));
}

#[test]
fn a_ring_goes_on_where_its_used_ring_stands() {
    let (mut world, file) = World::running(Port);
    set_used_idx(&file, 0, 4711);
    world.restart(dpu());
    assert_eq!(world.state().rings[&0].base, 4711);
    // Where a DPU is killed again during the replay, all the same.
    world.kill().unwrap();
    set_used_idx(&file, 0, 4712);
    world.restart(dpu());
    assert_eq!(world.state().rings[&0].base, 4712);
    // A ring that is stopped begins where it was stopped, or where the VMM says.
    let (_, base) = base_of(&world.ask(pair(Code::GetVringBase, 0, 0)));
    assert_eq!(base, 4712);
    set_used_idx(&file, 0, 9);
    world.restart(dpu());
    assert_eq!(world.state().rings[&0].base, 4712);
    assert_eq!(world.state().rings[&0].kick, None, "and is not started");
}

#[test]
fn what_the_vmm_asks_meanwhile_is_answered_and_said_to_the_next_dpu() {
    let (mut world, _file) = World::running(Volume);
    world.kill().unwrap();
    assert_eq!(world.notes.last(), Some(&Note::DpuLost(Some(0))));
    assert_eq!(value(&world.ask(message(Code::GetFeatures, vec![], []))), VIRTIO);
    let answer = world.ask(config(Code::GetConfig, 8, &[0; 4]));
    assert_eq!(answer.payload[12..], [7; 4]);
    let beyond = world.ask(config(Code::GetConfig, 252, &[0; 8]));
    assert_eq!(beyond.payload.len(), 12, "an answer of no bytes says that it failed");
    let more = memory();
    world.ask(memory_region(Code::AddMemReg, 1, Some(more)));
    world.start_ring(1);
    world.ask(pair(Code::SetVringEnable, 0, 0));
    world.ask(config(Code::SetConfig, 32, &[1]));
    assert_eq!(world.ask(config(Code::GetConfig, 32, &[0])).payload[12], 1);
    world.connect(dpu()).unwrap();
    assert_eq!(world.state().memory.len(), 2);
    assert_eq!(world.state().rings[&0].enable, Some(0));
    assert!(world.state().rings[&1].kick.is_some());
    assert_eq!(world.state().config[32], 1);
    assert_eq!(world.announced, 0, "the guest wrote this itself");
}

#[test]
fn what_the_vmm_asks_during_a_replay_comes_after_it() {
    let (mut world, _file) = World::running(Volume);
    world.kill().unwrap();
    world.hangs = true;
    world.connect(dpu()).unwrap();
    // The greeting, and then half of the replay.
    while world.seen().last() != Some(&Code::SetMemTable) {
        world.answer_or_pump();
    }
    world.ask(pair(Code::SetVringEnable, 0, 0));
    world.ask(pair(Code::SetVringNum, 0, 128));
    while world.unanswered.is_some() {
        world.answer_or_pump();
    }
    assert_eq!(
        (world.state().rings[&0].enable, world.state().rings[&0].num),
        (Some(0), Some(128))
    );
}

#[test]
fn where_nothing_is_in_flight_get_vring_base_is_answered_without_a_dpu() {
    for kind in [Port, Volume] {
        let (mut world, file) = World::running(kind);
        set_used_idx(&file, 0, 40);
        sync_logged_index(&world, 40);
        if kind == Port {
            // In order: what is used is all that was done, whatever the log may say.
            mark_in_flight(&world, 3);
        }
        world.kill().unwrap();
        // At first the DPU may still be stopping its rings.
        assert!(world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap().is_none());
        assert!(!world.session.wants_request(), "one request at a time");
        set_used_idx(&file, 0, 41);
        sync_logged_index(&world, 41);
        world.after(STOPPING_MAX).unwrap();
        assert_eq!(base_of(world.to_vmm.last().unwrap()), (0, 41));
        world.connect(dpu()).unwrap();
        assert_eq!((world.state().rings[&0].base, world.state().rings[&0].kick), (41, None));
    }
}

#[test]
fn with_requests_in_flight_get_vring_base_waits_for_a_dpu_that_drains() {
    let (mut world, file) = World::running(Volume);
    set_used_idx(&file, 0, 2);
    sync_logged_index(&world, 2);
    mark_in_flight(&world, 0);
    world.kill().unwrap();
    assert_eq!(world.notes.last(), Some(&Note::DpuLost(Some(1))));
    world.after(Duration::from_secs(5)).unwrap();
    let before = world.to_vmm.len();
    assert!(world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap().is_none());
    assert_ne!(world.notes.last(), Some(&Note::Held));
    world.after(HELD_QUIETLY_MAX).unwrap();
    assert_eq!(world.notes.last(), Some(&Note::Held));
    world.after(Duration::from_secs(3600)).unwrap();
    assert_eq!(world.to_vmm.len(), before, "no time makes an answer of it");
    // A DPU that dies again before it has drained leaves it waiting.
    world.hangs = true;
    world.connect(dpu()).unwrap();
    while world.unanswered.as_ref().unwrap().request != Code::GetVringBase as u32 {
        world.answer().unwrap();
    }
    world.kill().unwrap();
    world.after(Duration::from_secs(5)).unwrap();
    assert_eq!(world.to_vmm.len(), before);
    // One that drains answers.
    world.hangs = false;
    clear_in_flight(&world, 0);
    set_used_idx(&file, 0, 3);
    world.connect(dpu()).unwrap();
    assert_eq!(base_of(world.to_vmm.last().unwrap()), (0, 3));
    assert_eq!(world.notes.last(), Some(&Note::HeldOver));
    assert_eq!(world.session.deadline(), None);
}

#[test]
fn a_volume_without_an_in_flight_region_waits_too() {
    let mut world = World::new(Volume);
    let mut simple = dpu();
    simple.protocol &= !INFLIGHT_SHMFD;
    world.connect(simple.clone()).unwrap();
    world.ask(number(Code::SetProtocolFeatures, REPLY_ACK));
    world.ask(memory_table(&[memory()]));
    world.start_ring(0);
    assert_eq!(world.state().inflight, None);
    world.kill().unwrap();
    world.after(Duration::from_secs(5)).unwrap();
    assert!(world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap().is_none());
    world.connect(simple).unwrap();
    assert_eq!(world.to_vmm.last().unwrap().request, Code::GetVringBase as u32);
    // Control: a port's rings are in order, and are answered.
    let (mut world, _file) = World::running(Port);
    world.kill().unwrap();
    world.after(Duration::from_secs(5)).unwrap();
    assert!(world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap().is_some());
}

#[test]
fn a_hung_dpu_is_away_and_its_late_answer_counts_for_nothing() {
    let (mut world, file) = World::running(Port);
    world.hangs = true;
    assert!(world.try_ask(config(Code::GetConfig, 0, &[0; 4])).unwrap().is_none());
    let late = world.unanswered.clone().unwrap();
    let late = world.dpu.as_mut().unwrap().take(&late).unwrap();
    world.after(ANSWER_WAIT_MAX - Duration::from_millis(1)).unwrap();
    assert!(world.dropped.is_empty());
    world.after(Duration::from_millis(1)).unwrap();
    assert!(matches!(world.dropped[..], [Fault::DpuSilent(Code::GetConfig, _)]));
    assert_eq!(
        world.to_vmm.last().unwrap().payload[12..],
        [7; 4],
        "answered from memory"
    );
    // It may still be serving rings, so that where they stand is not certain, not even of a port.
    set_used_idx(&file, 0, 5);
    world.after(Duration::from_secs(60)).unwrap();
    assert!(world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap().is_none());
    world.hangs = false;
    world.connect(dpu()).unwrap();
    assert_eq!(base_of(world.to_vmm.last().unwrap()), (0, 5));
    // If the old one's answer were taken for the new one's, this would be the next DPU's fault.
    world.session.dpu_answered(late, world.now).unwrap();
    world.pump().unwrap();
    assert!(matches!(world.dropped[1..], [Fault::UnaskedAnswer(_)]));
}

#[test]
fn draining_has_more_time_than_a_question() {
    let (mut world, _file) = World::running(Volume);
    world.hangs = true;
    world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap();
    world.after(ANSWER_WAIT_MAX * 2).unwrap();
    assert!(world.dropped.is_empty());
    world.after(DRAIN_WAIT_MAX).unwrap();
    assert!(matches!(world.dropped[..], [Fault::DpuSilent(Code::GetVringBase, _)]));
}

#[test]
fn a_dpu_that_offers_less_is_refused_and_the_vmm_waits() {
    let (acked, all) = (VIRTIO_F_VERSION_1 | VIRTIO_F_PROTOCOL_FEATURES, VIRTIO);
    type Spoil = (fn(&mut super::model_dpu::ModelDpu), Unfit);
    let spoils: [Spoil; 6] = [
        (|d| d.virtio &= !VIRTIO_F_VERSION_1, Unfit::Features(VIRTIO_F_VERSION_1)),
        (|d| d.protocol &= !CONFIG, Unfit::Protocol(CONFIG)),
        (|d| d.queues = 3, Unfit::Queues(3, 4)),
        (|d| d.slots = 15, Unfit::Slots(15, 16)),
        (|d| d.protocol &= !REPLY_ACK, Unfit::NoAcks),
        (|d| d.protocol &= !BACKEND_REQ, Unfit::Protocol(BACKEND_REQ)),
    ];
    for (spoil, expected) in spoils {
        let mut world = World::negotiated(Volume, PROTOCOL);
        world.ask(number(Code::SetFeatures, acked));
        world.kill().unwrap();
        let mut less = dpu();
        spoil(&mut less);
        world.connect(less).unwrap();
        assert!(matches!(&world.dropped[..], [Fault::Unfit(unfit)] if *unfit == expected));
        // It was told nothing that it might have served, and the VMM is answered all the same.
        assert_eq!(value(&world.ask(message(Code::GetFeatures, vec![], []))), all);
        // Control: one that offers what is used takes over, though it lacks what nobody uses.
        let mut enough = dpu();
        enough.virtio = acked | 1 << 40;
        world.connect(enough).unwrap();
        assert_eq!(world.state().features, Some(acked));
    }
}

#[test]
fn before_a_driver_has_chosen_all_that_it_may_still_choose_is_relied_on() {
    let mut world = World::negotiated(Volume, PROTOCOL);
    let mut less = dpu();
    less.virtio &= !(1 << 9);
    world.restart(less);
    assert!(matches!(&world.dropped[..], [Fault::Unfit(Unfit::Features(512))]));
}

#[test]
fn a_dpu_that_refuses_what_the_last_one_took_is_left_and_the_vmm_waits() {
    let (mut world, _file) = World::running(Volume);
    let mut strict = dpu();
    strict.refuses = vec![Code::SetVringAddr];
    world.restart(strict);
    assert!(matches!(world.dropped[..], [Fault::ReplayRefused(Code::SetVringAddr)]));
    world.connect(dpu()).unwrap();
    assert_eq!(world.notes.last(), Some(&Note::Ready { replay: true }));
    // What the VMM said while there was nobody to refuse it is its own fault, and it hears of it.
    world.kill().unwrap();
    world.ask(pair(Code::SetVringNum, 0, 512));
    let mut strict = dpu();
    strict.refuses = vec![Code::SetVringNum];
    assert!(matches!(
        world.connect(strict).unwrap_err(),
        Fault::RefusedByDpu(Code::SetVringNum)
    ));
}

#[test]
fn a_changed_configuration_is_announced_after_the_replay() {
    let (mut world, _file) = World::running(Volume);
    world.ask(message(Code::SetBackendReqFd, vec![], [event()]));
    world.kill().unwrap();
    let grown = dpu().restarted(&[8; 60]);
    world.connect(grown).unwrap();
    assert_eq!(world.announced, 1);
    assert_eq!(world.ask(config(Code::GetConfig, 0, &[0; 4])).payload[12..], [8; 4]);
    world.kill().unwrap();
    assert_eq!(world.ask(config(Code::GetConfig, 0, &[0; 4])).payload[12..], [8; 4]);
    // And when the DPU says so.
    world.connect(dpu().restarted(&[8; 60])).unwrap();
    assert_eq!(world.announced, 1);
    world.session.config_changed();
    world.pump().unwrap();
    assert_eq!(world.announced, 2);
}

#[test]
fn a_vmm_that_comes_while_the_dpu_is_away_is_answered_from_the_last_offer() {
    let mut world = World::new(Volume);
    world.connect(dpu()).unwrap();
    let Some(Note::Offered(offer)) = world.notes.first().cloned() else {
        panic!("{:?}", world.notes)
    };
    let mut world = World::new(Volume);
    world.session = Session::new(Volume, None, Some(offer));
    assert!(world.session.wants_request());
    world.ask(number(Code::SetProtocolFeatures, PROTOCOL));
    world.ask(number(Code::SetFeatures, VIRTIO));
    world.ask(memory_table(&[memory()]));
    world.start_ring(0);
    world.connect(dpu()).unwrap();
    assert!(world.state().rings[&0].kick.is_some() && world.state().inflight.is_some());
    assert_eq!(
        world.notes.last(),
        Some(&Note::Ready { replay: false }),
        "no DPU is replaced"
    );
}

impl World {
    /// Answers what is outstanding; what needs no answer is only taken.
    fn answer_or_pump(&mut self) {
        let message = self.unanswered.take().expect("something to answer");
        let answer = self.dpu.as_mut().unwrap().take(&message).expect("an answer");
        self.session.dpu_answered(answer, self.now).unwrap();
        self.pump().unwrap();
    }
}

/// `SET_LOG_BASE` has no answer that says no: a DPU that does not take it can only end its stream.
fn log_base() -> crate::session::framing::Message {
    let log = [1_u64 << 16, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    message(Code::SetLogBase, log, [memory()])
}

#[test]
fn what_ends_one_dpus_stream_after_the_other_is_refused() {
    let (mut world, _file) = World::running(Volume);
    world.ends_at = Some(Code::SetLogBase);
    world.try_ask(log_base()).unwrap();
    let ended = (1..STREAM_ENDS_MAX).find_map(|before| world.connect(dpu()).err().map(|fault| (before, fault)));
    assert!(
        matches!(ended, Some((4, Fault::EndsEveryDpu(Code::SetLogBase, 5)))),
        "{ended:?}"
    );
}

#[test]
fn dpus_that_die_of_what_one_has_served_are_waited_for() {
    let (mut world, _file) = World::running(Volume);
    world.ask(log_base());
    world.kill().unwrap();
    world.ends_at = Some(Code::SetLogBase);
    for _ in 0..3 * STREAM_ENDS_MAX {
        world.connect(dpu()).unwrap();
    }
    world.ends_at = None;
    world.connect(dpu()).unwrap();
    assert_eq!(world.notes.last(), Some(&Note::Ready { replay: true }));
}
