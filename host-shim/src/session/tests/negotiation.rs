//! Who is told what, and what is acknowledged when.

use std::fs::File;

use outboard_controls::{Check, Off};
use outboard_protocol::id::ObjectKind::{Port, Volume};

use super::world::*;
use crate::{
    config::object,
    session::{
        Note, Session,
        fault::Fault,
        vhost_user_wire::{Code, FLAG_VERSION, VIRTIO_F_VERSION_1, protocol_feature::*},
    },
};

fn get(code: Code) -> crate::session::framing::Message {
    message(code, vec![], [])
}

#[test]
fn the_dpu_is_greeted_before_the_vmm_is_heard() {
    let mut world = World::new(Volume);
    assert!(!world.session.wants_request());
    world.connect(dpu()).unwrap();
    assert!(world.session.wants_request());
    use Code::*;
    let greeting = [
        GetFeatures,
        GetProtocolFeatures,
        SetProtocolFeatures,
        SetOwner,
        GetQueueNum,
        GetMaxMemSlots,
        GetConfig,
        SetBackendReqFd,
    ];
    assert_eq!(world.seen(), greeting);
    // What it offers is answered from memory.
    assert_eq!(value(&world.ask(get(GetFeatures))), VIRTIO);
    assert_eq!(value(&world.ask(get(GetProtocolFeatures))), PROTOCOL);
    world.ask(number(SetProtocolFeatures, PROTOCOL));
    assert_eq!(value(&world.ask(get(GetQueueNum))), 4);
    assert_eq!(value(&world.ask(get(GetMaxMemSlots))), 16);
    world.ask(get(SetOwner));
    assert_eq!(world.seen(), greeting);
    assert_eq!(world.notes.len(), 2);
    assert_eq!(world.notes[1], Note::Ready { replay: false });
}

#[test]
fn features_the_shim_cannot_carry_are_not_offered() {
    let (page_fault, in_band, status) = (1 << 8, 1 << 14, 1 << 16);
    let mut world = World::new(Volume);
    let mut generous = dpu();
    generous.protocol |= page_fault | in_band | status;
    world.connect(generous).unwrap();
    assert_eq!(value(&world.ask(get(Code::GetProtocolFeatures))), PROTOCOL);
    let taken = world.try_ask(number(Code::SetProtocolFeatures, CONFIG | in_band));
    assert!(matches!(taken.unwrap_err(), Fault::NotOffered("protocol features", bits) if bits == in_band));
    let taken = world.try_ask(number(Code::SetFeatures, VIRTIO | 1));
    assert!(matches!(taken.unwrap_err(), Fault::NotOffered("virtio features", 1)));
    // Control: without the check the VMM gets what it was not offered.
    let _off = Off::here(Check::KnownRequestsOnly);
    world.ask(number(Code::SetProtocolFeatures, CONFIG | REPLY_ACK | in_band));
    world.ask(number(Code::SetFeatures, VIRTIO | 1));
    assert_eq!(world.state().features, Some(VIRTIO | 1));
}

#[test]
fn requests_need_the_feature_that_they_belong_to() {
    let mut world = World::negotiated(Volume, REPLY_ACK);
    let mtu = || number(Code::NetSetMtu, 1400);
    let requests = [
        get(Code::GetQueueNum),
        config(Code::GetConfig, 0, &[0; 8]),
        get(Code::GetMaxMemSlots),
        mtu(),
        get(Code::ResetDevice),
    ];
    for request in requests {
        let refused = world.try_ask(request).unwrap_err();
        assert!(matches!(refused, Fault::NotNegotiated(_)), "{refused}");
    }
    // Control: with the check off it reaches the DPU.
    {
        let _off = Off::here(Check::KnownRequestsOnly);
        world.ask(mtu());
    }
    assert_eq!(world.state().mtu, Some(1400));
    let mut world = World::negotiated(Volume, REPLY_ACK | MTU);
    world.ask(mtu());
}

#[test]
fn a_vmm_without_acknowledgements_gets_none_and_the_dpu_gives_them_all_the_same() {
    let mut world = World::negotiated(Volume, REPLY_ACK);
    world.ask(number(Code::SetProtocolFeatures, CONFIG | REPLY_ACK));
    let got = world.try_ask(number(Code::SetProtocolFeatures, CONFIG)).unwrap();
    assert!(got.is_none());
    // The flag is set in vain; the model DPU insists on being asked.
    assert!(world.try_ask(number(Code::SetFeatures, VIRTIO)).unwrap().is_none());
    assert_eq!(world.state().features, Some(VIRTIO));
}

#[test]
fn a_refusal_reaches_a_vmm_that_asks_and_ends_the_session_of_one_that_does_not() {
    let mut world = World::negotiated(Volume, REPLY_ACK);
    world.dpu.as_mut().unwrap().refuses = vec![Code::SetFeatures];
    let got = world.try_ask(number(Code::SetFeatures, VIRTIO)).unwrap().unwrap();
    assert_eq!((got.request, value(&got)), (2, 1));
    assert_eq!(
        world.session.remembered().features,
        None,
        "what was refused is not remembered"
    );
    let mut unasked = number(Code::SetFeatures, VIRTIO);
    unasked.flags = FLAG_VERSION;
    assert!(matches!(
        world.try_ask(unasked).unwrap_err(),
        Fault::RefusedByDpu(Code::SetFeatures)
    ));
}

#[test]
fn the_log_has_an_answer_of_its_own() {
    let mut world = World::negotiated(Port, LOG_SHMFD);
    let payload: Vec<u8> = [1_u64 << 16, 64].into_iter().flat_map(u64::to_le_bytes).collect();
    let log = message(Code::SetLogBase, payload.clone(), [memory()]);
    for away in [false, true] {
        if away {
            world.kill().unwrap();
        }
        let answer = world.try_ask(log.clone()).unwrap().unwrap();
        assert_eq!(
            (answer.request, answer.payload),
            (Code::SetLogBase as u32, payload.clone())
        );
    }
}

#[test]
fn a_vm_without_shared_memory_is_told_so() {
    let vm1 = object(outboard_shim_api::DeviceKind::Port, "vm1").unwrap();
    let kick = || ring_event(Code::SetVringKick, 0, Some(event()));
    let mut missing = memory_table(&[event()]);
    missing.descriptors.clear();
    for bad in [memory_table(&[event()]), kick(), missing] {
        let mut world = World::negotiated(Port, PROTOCOL);
        let problem = world.try_ask(bad).unwrap_err().problem(&vm1);
        assert!(
            problem.error.starts_with("VM of port vm1 has no shared memory: "),
            "{}",
            problem.error
        );
        assert!(problem.remedy.contains("share=on") && problem.remedy.contains("memoryBacking"));
    }
    // Control: with the check off, an eventfd goes through for memory.
    let mut world = World::negotiated(Port, PROTOCOL);
    let _off = Off::here(Check::SharedMemory);
    world.ask(memory_table(&[event()]));
    assert_eq!(world.state().memory.len(), 1);
}

#[test]
fn memory_is_had_once_the_dpu_has_accepted_it_and_missed_after_a_while() {
    let mut world = World::negotiated(Port, PROTOCOL);
    // As QEMU does.
    world.ask(pair(Code::SetVringEnable, 0, 1));
    world.after(crate::session::MEMORY_WAIT_MAX).unwrap();
    assert_eq!(world.notes.pop(), Some(Note::MemoryMissing));
    world.ask(memory_table(&[memory()]));
    assert_eq!(world.notes.pop(), Some(Note::MemoryAccepted));
    world.ask(ring_event(Code::SetVringKick, 0, Some(event())));
    // A driver that is ready after its memory misses nothing.
    let mut world = World::negotiated(Port, PROTOCOL);
    world.ask(memory_table(&[memory()]));
    world.ask(number(Code::SetFeatures, VIRTIO_F_VERSION_1));
    assert_eq!(world.session.deadline(), None);
}

#[test]
fn a_privately_mapped_region_is_found_out() {
    let file = File::from(rustix::io::dup(memory()).unwrap());
    let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
    // MAP_PRIVATE, PROT_READ | PROT_WRITE.
    let mapping = vm_memory::MmapRegion::<()>::build(Some(offset), 4096, 3, 2).unwrap();
    let mut world = World::new(Port);
    world.session = Session::new(Port, Some(rustix::process::getpid()), None);
    world.connect(dpu()).unwrap();
    let mut table = memory_table(&[std::sync::Arc::new(file.into())]);
    table.payload[24..32].copy_from_slice(&(mapping.as_ptr() as u64).to_le_bytes());
    let fault = world.try_ask(table).unwrap_err();
    assert!(
        fault.to_string().contains("mapped privately by the VMM (share=off)"),
        "{fault}"
    );
}

#[test]
fn answers_that_do_not_fit_cost_the_dpu_its_stream_and_not_the_vmm_its_session() {
    for spoil in 0..5 {
        let mut world = World::negotiated(Volume, PROTOCOL);
        world.hangs = true;
        assert!(world.try_ask(number(Code::SetFeatures, VIRTIO)).unwrap().is_none());
        let asked = world.unanswered.take().unwrap();
        let mut answer = world.dpu.as_mut().unwrap().take(&asked).unwrap();
        match spoil {
            0 => answer.request = Code::SetOwner as u32,
            1 => answer.flags = FLAG_VERSION,
            2 => answer.payload.truncate(7),
            3 => answer.payload = vec![0; 4096],
            _ => answer.descriptors.push(memory()),
        }
        world.session.dpu_answered(answer, world.now).unwrap();
        world.pump().unwrap();
        assert!(matches!(world.dropped[..], [Fault::WrongAnswer { .. }]));
        // The VMM is answered, and the next DPU is told.
        assert_eq!(value(world.to_vmm.last().unwrap()), 0);
        world.hangs = false;
        world.connect(dpu()).unwrap();
        assert_eq!(world.state().features, Some(VIRTIO));
    }
    // One that nobody asked for.
    let mut world = World::negotiated(Volume, PROTOCOL);
    let answer = number(Code::GetFeatures, 1);
    world.session.dpu_answered(answer, world.now).unwrap();
    world.pump().unwrap();
    assert!(matches!(world.dropped[..], [Fault::UnaskedAnswer(1)]));
}
