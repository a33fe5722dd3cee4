//! What is negotiated with whom, and what a session refuses.

use std::{fs::File, os::fd::OwnedFd};

use outboard_controls::Off;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{MemfdFlags, ftruncate, memfd_create},
};

use super::*;
use crate::{config::object, session::vhost_user_wire::protocol_feature::*};

const VIRTIO: u64 = VIRTIO_F_VERSION_1 | VIRTIO_F_PROTOCOL_FEATURES;

fn message(code: Code, flags: u32, payload: Vec<u8>, descriptors: Vec<OwnedFd>) -> Message {
    Message {
        request: code as u32,
        flags: FLAG_VERSION | flags,
        payload,
        descriptors,
    }
}

fn u64_message(code: Code, flags: u32, value: u64) -> Message {
    message(code, flags, value.to_le_bytes().to_vec(), vec![])
}

fn reply(code: Code, value: u64) -> Message {
    u64_message(code, FLAG_REPLY, value)
}

fn memory() -> OwnedFd {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 1 << 20).unwrap();
    memory
}

fn memory_table(descriptor: OwnedFd) -> Message {
    let payload = [1_u32.to_le_bytes().to_vec(), vec![0; 4 + 32]].concat();
    message(Code::SetMemTable, 0, payload, vec![descriptor])
}

fn kick() -> Message {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    message(Code::SetVringKick, 0, vec![0; 8], vec![event])
}

/// Runs a request that the DPU answers well; returns what the DPU saw and what the VMM got.
fn exchange(session: &mut Session, request: Message, answer: u64) -> (Message, Option<Message>) {
    let code = rule_of(&request);
    let forward = session.request(request).unwrap();
    let (back, _) = if forward.answered {
        session.answer(reply(code, answer)).unwrap()
    } else {
        session.unanswered().unwrap()
    };
    (forward.message, back)
}

fn rule_of(message: &Message) -> Code {
    vhost_user_wire::rule(message.request).unwrap().code
}

/// A session in which the DPU offered `offered` and the VMM accepted `accepted`.
fn negotiated(offered: u64, accepted: u64) -> Session {
    let mut session = Session::new(None);
    exchange(&mut session, message(Code::GetFeatures, 0, vec![], vec![]), VIRTIO);
    exchange(
        &mut session,
        message(Code::GetProtocolFeatures, 0, vec![], vec![]),
        offered,
    );
    exchange(&mut session, u64_message(Code::SetProtocolFeatures, 0, accepted), 0);
    session
}

#[test]
fn the_dpu_acknowledges_though_the_vmm_cannot_ask() {
    let mut session = Session::new(None);
    exchange(&mut session, message(Code::GetFeatures, 0, vec![], vec![]), VIRTIO);
    exchange(
        &mut session,
        message(Code::GetProtocolFeatures, 0, vec![], vec![]),
        REPLY_ACK | CONFIG,
    );
    let (seen, got) = exchange(&mut session, u64_message(Code::SetProtocolFeatures, 0, CONFIG), 0);
    assert_eq!(value_of(&seen), CONFIG | REPLY_ACK);
    assert!(got.is_none());
    // From now on each request asks, and the VMM hears nothing of it; not even where it sets the flag in vain.
    for flags in [0, FLAG_NEED_REPLY] {
        let forward = session.request(message(Code::SetOwner, flags, vec![], vec![])).unwrap();
        assert!(forward.answered && forward.message.flags & FLAG_NEED_REPLY != 0);
        assert!(session.answer(reply(Code::SetOwner, 0)).unwrap().0.is_none());
    }
}

#[test]
fn the_vmm_is_acknowledged_after_the_dpu_if_it_asks() {
    let mut session = negotiated(REPLY_ACK, REPLY_ACK);
    let (seen, got) = exchange(&mut session, u64_message(Code::SetFeatures, FLAG_NEED_REPLY, VIRTIO), 0);
    assert_ne!(seen.flags & FLAG_NEED_REPLY, 0);
    let got = got.unwrap();
    assert_eq!(
        (got.request, got.flags, value_of(&got)),
        (2, FLAG_VERSION | FLAG_REPLY, 0)
    );
    let (seen, got) = exchange(&mut session, u64_message(Code::SetFeatures, 0, VIRTIO), 0);
    assert_ne!(seen.flags & FLAG_NEED_REPLY, 0);
    assert!(got.is_none());
    // The DPU's refusal reaches the VMM.
    let (_, got) = exchange(&mut session, u64_message(Code::SetFeatures, FLAG_NEED_REPLY, VIRTIO), 1);
    assert_eq!(value_of(&got.unwrap()), 1);
}

#[test]
fn a_refusal_that_the_vmm_cannot_hear_ends_the_session() {
    let mut session = negotiated(REPLY_ACK, REPLY_ACK);
    session.request(u64_message(Code::SetFeatures, 0, VIRTIO)).unwrap();
    let refused = session.answer(reply(Code::SetFeatures, 1)).unwrap_err();
    assert!(matches!(refused, Fault::RefusedByDpu(Code::SetFeatures)));
}

#[test]
fn the_acknowledgement_of_the_negotiation_itself_is_the_shims() {
    let mut session = Session::new(None);
    exchange(&mut session, message(Code::GetFeatures, 0, vec![], vec![]), VIRTIO);
    exchange(
        &mut session,
        message(Code::GetProtocolFeatures, 0, vec![], vec![]),
        REPLY_ACK,
    );
    let request = u64_message(Code::SetProtocolFeatures, FLAG_NEED_REPLY, REPLY_ACK);
    let forward = session.request(request).unwrap();
    assert!(!forward.answered && forward.message.flags & FLAG_NEED_REPLY == 0);
    assert_eq!(value_of(&session.unanswered().unwrap().0.unwrap()), 0);
}

#[test]
fn requests_with_answers_of_their_own_do_not_ask_for_another() {
    let mut session = negotiated(REPLY_ACK, REPLY_ACK);
    let (seen, got) = exchange(
        &mut session,
        message(Code::GetVringBase, FLAG_NEED_REPLY, vec![0; 8], vec![]),
        77,
    );
    assert_eq!(seen.flags, FLAG_VERSION);
    assert_eq!(value_of(&got.unwrap()), 77);
}

#[test]
fn a_dpu_without_acknowledgements_is_not_waited_for() {
    let mut session = negotiated(CONFIG, CONFIG);
    let forward = session.request(message(Code::SetOwner, 0, vec![], vec![])).unwrap();
    assert!(!forward.answered);
    assert_eq!(forward.message.flags, FLAG_VERSION);
    assert!(matches!(session.unanswered().unwrap(), (None, None)));
}

#[test]
fn log_base_has_an_answer_of_its_own_if_the_log_is_a_descriptor() {
    let log = || message(Code::SetLogBase, FLAG_NEED_REPLY, vec![0; 16], vec![memory()]);
    let mut session = negotiated(LOG_SHMFD | REPLY_ACK, LOG_SHMFD | REPLY_ACK);
    let forward = session.request(log()).unwrap();
    assert_eq!((forward.answered, forward.message.flags), (true, FLAG_VERSION));
    let answer = message(Code::SetLogBase, FLAG_REPLY, vec![0; 16], vec![]);
    assert_eq!(session.answer(answer).unwrap().0.unwrap().payload.len(), 16);
    let mut session = negotiated(REPLY_ACK, REPLY_ACK);
    assert_ne!(session.request(log()).unwrap().message.flags & FLAG_NEED_REPLY, 0);
}

#[test]
fn features_the_shim_cannot_carry_are_not_offered() {
    let (page_fault, in_band) = (1 << 8, 1 << 14);
    let mut session = Session::new(None);
    exchange(&mut session, message(Code::GetFeatures, 0, vec![], vec![]), VIRTIO);
    let offer = message(Code::GetProtocolFeatures, 0, vec![], vec![]);
    let (_, got) = exchange(&mut session, offer, page_fault | in_band | CONFIG);
    assert_eq!(value_of(&got.unwrap()), CONFIG);
    let taken = session.request(u64_message(Code::SetProtocolFeatures, 0, CONFIG | in_band));
    assert!(matches!(taken.unwrap_err(), Fault::NotOffered(bits) if bits == in_band));
    // Control: without the check the VMM gets what it was not offered.
    let _off = Off::here(Check::KnownRequestsOnly);
    let forward = session
        .request(u64_message(Code::SetProtocolFeatures, 0, CONFIG | in_band))
        .unwrap();
    assert_eq!(value_of(&forward.message), CONFIG | in_band);
}

#[test]
fn protocol_features_come_after_features() {
    let refused = Session::new(None)
        .request(u64_message(Code::SetProtocolFeatures, 0, CONFIG))
        .unwrap_err();
    assert!(matches!(refused, Fault::NotOffered(CONFIG)));
}

#[test]
fn a_vm_without_shared_memory_is_told_so() {
    let event = || eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let vm1 = object(outboard_shim_api::DeviceKind::Port, "vm1").unwrap();
    let mut missing = memory_table(event());
    missing.descriptors.clear();
    for bad in [memory_table(event()), kick(), missing] {
        let fault = Session::new(None).request(bad).unwrap_err();
        let problem = fault.problem(&vm1);
        assert!(
            problem.error.starts_with("VM of port vm1 has no shared memory: "),
            "{}",
            problem.error
        );
        assert!(problem.remedy.contains("share=on") && problem.remedy.contains("memoryBacking"));
    }
    // Control: with the check off, an eventfd goes through for memory.
    let _off = Off::here(Check::SharedMemory);
    assert!(Session::new(None).request(memory_table(event())).is_ok());
    assert!(Session::new(None).request(kick()).is_ok());
}

#[test]
fn memory_is_had_once_the_dpu_has_accepted_it() {
    let mut session = negotiated(REPLY_ACK, 0);
    exchange(&mut session, u64_message(Code::SetFeatures, 0, VIRTIO), 0);
    assert!(session.lacks_memory());
    session.request(memory_table(memory())).unwrap();
    assert!(session.lacks_memory());
    assert_eq!(
        session.answer(reply(Code::SetMemTable, 0)).unwrap().1,
        Some(Note::MemoryAccepted)
    );
    assert!(!session.lacks_memory());
    assert!(session.request(kick()).is_ok());
}

#[test]
fn rings_may_be_enabled_before_memory_as_qemu_does_but_not_for_long() {
    let mut session = negotiated(REPLY_ACK, REPLY_ACK);
    let enable = [0_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat();
    exchange(&mut session, message(Code::SetVringEnable, 0, enable, vec![]), 0);
    assert!(session.lacks_memory());
}

#[test]
fn a_privately_mapped_region_is_found_out() {
    let file = File::from(memory());
    let offset = vm_memory::FileOffset::new(file.try_clone().unwrap(), 0);
    // MAP_PRIVATE, PROT_READ | PROT_WRITE.
    let mapping = vm_memory::MmapRegion::<()>::build(Some(offset), 4096, 3, 2).unwrap();
    let mut payload = [1_u32.to_le_bytes().to_vec(), vec![0; 4 + 32]].concat();
    payload[24..32].copy_from_slice(&(mapping.as_ptr() as u64).to_le_bytes());
    let table = message(Code::SetMemTable, 0, payload, vec![file.into()]);
    let fault = Session::new(Some(rustix::process::getpid()))
        .request(table)
        .unwrap_err();
    assert!(
        fault.to_string().contains("mapped privately by the VMM (share=off)"),
        "{fault}"
    );
}

#[test]
fn answers_that_do_not_fit_end_the_session() {
    let get = || message(Code::GetFeatures, 0, vec![], vec![]);
    let right = reply(Code::GetFeatures, 1);
    let wrong = [
        reply(Code::SetOwner, 1),
        u64_message(Code::GetFeatures, 0, 1),
        message(Code::GetFeatures, FLAG_REPLY, vec![0; 7], vec![]),
        message(Code::GetFeatures, FLAG_REPLY, vec![0; 4096], vec![]),
        message(Code::GetFeatures, FLAG_REPLY, vec![0; 8], vec![memory()]),
    ];
    for answer in wrong {
        let mut session = Session::new(None);
        session.request(get()).unwrap();
        assert!(matches!(session.answer(answer), Err(Fault::WrongAnswer { .. })));
    }
    let mut session = Session::new(None);
    session.request(get()).unwrap();
    assert!(session.answer(right).is_ok());
    assert!(matches!(
        session.answer(reply(Code::GetFeatures, 1)),
        Err(Fault::UnaskedAnswer(1))
    ));
}

#[test]
fn the_inflight_region_comes_back_with_its_descriptor() {
    let mut session = negotiated(REPLY_ACK | INFLIGHT_SHMFD, INFLIGHT_SHMFD);
    session
        .request(message(Code::GetInflightFd, 0, vec![0; 24], vec![]))
        .unwrap();
    let answer = message(Code::GetInflightFd, FLAG_REPLY, vec![0; 24], vec![memory()]);
    assert_eq!(session.answer(answer).unwrap().0.unwrap().descriptors.len(), 1);
}
