//! The table and the parser against each other, and hostile messages against both.

use crate::session::framing::Descriptor;

use outboard_controls::{Check, Off};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::session::vhost_user_wire::{FLAG_VERSION, RULES};

fn descriptors(count: usize) -> Vec<Descriptor> {
    (0..count)
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap().into())
        .collect()
}

/// A legal payload and the number of descriptors with it.
fn legal(rule: &Rule) -> (Vec<u8>, usize) {
    let payload = match rule.layout {
        Layout::Empty => vec![],
        Layout::U64 | Layout::VringDescriptor | Layout::VringState => vec![0; 8],
        Layout::VringAddress => vec![0; 40],
        Layout::Regions => [2_u32.to_le_bytes().to_vec(), vec![0; 4 + 64]].concat(),
        Layout::Region => vec![0; 40],
        Layout::Config => [vec![0; 4], 4_u32.to_le_bytes().to_vec(), vec![0; 8]].concat(),
        Layout::Inflight => vec![0; 24],
        Layout::Log => vec![0; 16],
    };
    let count = match rule.descriptors {
        Descriptors::None | Descriptors::Ignored => 0,
        Descriptors::One | Descriptors::UnlessFlagged | Descriptors::WithLongForm => 1,
        Descriptors::PerRegion if rule.layout == Layout::Regions => 2,
        Descriptors::PerRegion => 1,
    };
    (payload, count)
}

fn parse(code: Code, payload: Vec<u8>, count: usize) -> Result<Request, Fault> {
    let message = Message {
        request: code as u32,
        flags: FLAG_VERSION,
        payload,
        descriptors: descriptors(count),
    };
    Request::parse(message)
}

#[test]
fn every_legal_request_passes() {
    for rule in RULES {
        let (payload, count) = legal(rule);
        let request = parse(rule.code, payload.clone(), count).unwrap();
        assert_eq!(
            (request.code(), &request.bytes, request.descriptors.len()),
            (rule.code, &payload, count)
        );
        assert_eq!(rule.code.to_string(), rule.name);
    }
}

#[test]
fn stray_and_missing_descriptors_are_refused_on_every_request() {
    for rule in RULES {
        let (payload, right) = legal(rule);
        for wrong in (0..=32).filter(|&count| count != right) {
            let spare = rule.descriptors == Descriptors::Ignored && wrong == 1;
            let outcome = parse(rule.code, payload.clone(), wrong);
            assert_eq!(outcome.is_ok(), spare, "{} with {wrong} descriptors", rule.name);
            if rule.descriptors == Descriptors::PerRegion && wrong < right {
                assert!(outcome.unwrap_err().is_no_shared_memory(), "{}", rule.name);
            }
        }
        // With the check off, one too many passes.
        let _off = Off::here(Check::MessageDescriptors);
        assert!(parse(rule.code, payload, right + 1).is_ok(), "{}", rule.name);
    }
}

#[test]
fn memory_without_descriptors_would_pass_but_for_the_check() {
    let payload = [1_u32.to_le_bytes().to_vec(), vec![0; 4 + 32]].concat();
    let refused = parse(Code::SetMemTable, payload.clone(), 0).unwrap_err();
    assert!(matches!(
        refused,
        Fault::MemoryWithoutDescriptors { regions: 1, got: 0, .. }
    ));
    // A table without regions is what a VM without shared memory amounts to as well.
    assert!(
        parse(Code::SetMemTable, vec![0; 8], 0)
            .unwrap_err()
            .is_no_shared_memory()
    );
    let _off = Off::here(Check::SharedMemory);
    assert!(parse(Code::SetMemTable, payload, 0).is_ok());
}

#[test]
fn the_descriptor_flag_of_ring_messages_counts() {
    let flagged = (VRING_NO_DESCRIPTOR | 3).to_le_bytes().to_vec();
    for code in [Code::SetVringKick, Code::SetVringCall, Code::SetVringErr] {
        let request = parse(code, flagged.clone(), 0).unwrap();
        assert_eq!(
            request.payload,
            Payload::VringDescriptor {
                index: 3,
                present: false
            }
        );
        assert!(parse(code, flagged.clone(), 1).is_err());
        assert!(parse(code, 3_u64.to_le_bytes().to_vec(), 0).is_err());
    }
}

#[test]
fn a_removed_regions_descriptor_is_not_passed_on() {
    assert!(parse(Code::RemMemReg, vec![0; 40], 1).unwrap().descriptors.is_empty());
}

#[test]
fn wrong_lengths_are_refused_on_every_request() {
    for rule in RULES {
        let (payload, count) = legal(rule);
        for len in (0..100).chain([4096]).filter(|&len| len != payload.len()) {
            let mut other = payload.clone();
            other.resize(len, 0);
            let short_form = matches!((rule.layout, len), (Layout::Inflight, 20));
            // The short form of SET_LOG_BASE has no descriptor.
            let count = if rule.layout == Layout::Log && len == 8 {
                0
            } else {
                count
            };
            let legal = short_form || (rule.layout == Layout::Log && len == 8);
            assert_eq!(
                parse(rule.code, other, count).is_ok(),
                legal,
                "{} with {len} bytes",
                rule.name
            );
        }
    }
}

#[test]
fn region_counts_that_overflow_are_refused() {
    for count in [3_u32, 127, 1 << 27, u32::MAX] {
        let payload = [count.to_le_bytes().to_vec(), vec![0; 4 + 64]].concat();
        assert!(matches!(
            parse(Code::SetMemTable, payload, 2),
            Err(Fault::PayloadLength(..))
        ));
    }
}

#[test]
fn unknown_requests_and_answers_are_refused() {
    for number in [0, 22, 23, 26, 28, 33, 35, 41, u32::MAX] {
        let message = Message {
            request: number,
            flags: FLAG_VERSION,
            payload: vec![],
            descriptors: vec![],
        };
        assert!(matches!(Request::parse(message), Err(Fault::UnknownRequest(n)) if n == number));
    }
    let reply = Message {
        request: 1,
        flags: FLAG_VERSION | FLAG_REPLY,
        payload: vec![],
        descriptors: vec![],
    };
    assert!(matches!(
        Request::parse(reply),
        Err(Fault::UnaskedReply(Code::GetFeatures))
    ));
    assert!(parse(Code::GetFeatures, vec![], 0).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(
        request in 0_u32..50, flags: u32, payload in prop::collection::vec(any::<u8>(), 0..400), count in 0_usize..4,
    ) {
        let whole = payload.clone();
        let message = Message { request, flags, payload, descriptors: descriptors(count) };
        if let Ok(request) = Request::parse(message) {
            prop_assert_eq!(request.bytes, whole);
            prop_assert!(request.descriptors.len() <= count);
        }
    }
}
