//! What a VMM says is bounded by what it was offered, also while there is no DPU that would refuse it.

use outboard_controls::{Check, Off};
use outboard_protocol::id::ObjectKind::Volume;

use super::world::*;
use crate::session::{fault::Fault, inflight::Inflight, vhost_user_wire::Code};

/// Each is refused with the DPU there and away, and a good request passes before and after.
fn refused(mut bad: impl FnMut() -> crate::session::framing::Message, fits: impl Fn(&Fault) -> bool) {
    for away in [false, true] {
        let mut world = World::negotiated(Volume, PROTOCOL);
        world.ask(memory_table(&[memory()]));
        if away {
            world.kill().unwrap();
        }
        world.start_ring(0);
        let fault = world.try_ask(bad()).unwrap_err();
        assert!(fits(&fault), "{fault}");
        assert!(
            world.session.remembered().memory.regions().len() == 1,
            "nothing of it is remembered"
        );
        world.start_ring(1);
    }
}

#[test]
fn hostile_case_6_rings_that_the_device_has_not() {
    for code in [
        Code::SetVringNum,
        Code::SetVringBase,
        Code::SetVringEnable,
        Code::GetVringBase,
    ] {
        for index in [4, 255, 65_536, u32::MAX] {
            refused(
                || pair(code, index, 1),
                |fault| matches!(fault, Fault::NoSuchRing { .. }),
            );
        }
    }
    refused(|| address(4, 0), |fault| matches!(fault, Fault::NoSuchRing { .. }));
    for code in [Code::SetVringKick, Code::SetVringCall, Code::SetVringErr] {
        refused(
            || ring_event(code, 4, Some(event())),
            |fault| matches!(fault, Fault::NoSuchRing { .. }),
        );
    }
    // Control: with the check off, another ring is hit.
    let mut world = World::negotiated(Volume, PROTOCOL);
    let _off = Off::here(Check::QueueIndex);
    world.kill().unwrap();
    world.ask(pair(Code::SetVringNum, 99, 64));
    assert_eq!(world.session.remembered().rings[0].num, Some(64));
}

#[test]
fn hostile_case_13_memory_beyond_the_slots() {
    for away in [false, true] {
        let mut world = World::negotiated(Volume, PROTOCOL);
        if away {
            world.kill().unwrap();
        }
        for index in 0..16 {
            world.ask(memory_region(Code::AddMemReg, index, Some(memory())));
        }
        let one_more = || memory_region(Code::AddMemReg, 16, Some(memory()));
        let fault = world.try_ask(one_more()).unwrap_err();
        assert!(matches!(fault, Fault::TooManyRegions(16)));
        // Control: with the check off it is remembered, and so would any number be.
        {
            let _off = Off::here(Check::SessionBounds);
            world.ask(one_more());
            assert_eq!(world.session.remembered().memory.regions().len(), 17);
        }
        // A region makes room as it goes.
        world.ask(memory_region(Code::RemMemReg, 16, None));
        world.ask(memory_region(Code::RemMemReg, 3, None));
        world.ask(memory_region(Code::AddMemReg, 3, Some(memory())));
    }
    refused(
        || memory_region(Code::RemMemReg, 7, None),
        |fault| matches!(fault, Fault::NoSuchRegion(_)),
    );
}

#[test]
fn hostile_case_8_in_flight_regions_out_of_range() {
    let region = Inflight::make(false, 4, 256, 4).unwrap();
    let set = |change: fn(&mut Inflight)| {
        let mut region = region.clone();
        change(&mut region);
        message(Code::SetInflightFd, region.payload(), [region.file])
    };
    let changes: [fn(&mut Inflight); 5] = [
        |r| r.queue_count = 5,
        |r| r.queue_size = 255,
        |r| r.mmap_size -= 64,
        |r| r.mmap_offset = 64,
        |r| r.mmap_offset = u64::MAX,
    ];
    for change in changes {
        refused(|| set(change), |fault| matches!(fault, Fault::Inflight(..)));
        // Control: with the check off it reaches the DPU.
        let mut world = World::negotiated(Volume, PROTOCOL);
        let _off = Off::here(Check::SessionBounds);
        world.ask(set(change));
        assert!(world.state().inflight.is_some());
    }
    let mut world = World::negotiated(Volume, PROTOCOL);
    world.ask(set(|_| ()));
    assert!(world.state().inflight.is_some());
    // What the VMM asks for has to be within the offer, too.
    let get = |queues: u16, size: u16| {
        let mut payload = vec![0; 24];
        payload[16..18].copy_from_slice(&queues.to_le_bytes());
        payload[18..20].copy_from_slice(&size.to_le_bytes());
        message(Code::GetInflightFd, payload, [])
    };
    for (queues, size) in [(0, 256), (5, 256), (65_535, 256), (4, 0), (4, 3), (4, 65_535)] {
        refused(|| get(queues, size), |fault| matches!(fault, Fault::Inflight(..)));
    }
    // Asked for without end, nothing is kept but what is set.
    for _ in 0..2000 {
        let answer = world.try_ask(get(4, 256)).unwrap().unwrap();
        assert_eq!(answer.descriptors.len(), 1);
        world.to_vmm.clear();
    }
    let seen = world.seen().iter().filter(|code| **code == Code::GetInflightFd).count();
    assert_eq!(seen, 0, "the shim answers it by itself");
}

#[test]
fn numbers_that_a_ring_cannot_have() {
    let wrong = |fault: &Fault| matches!(fault, Fault::Value { .. });
    for num in [0, 3, 65_536, u32::MAX] {
        refused(|| pair(Code::SetVringNum, 0, num), wrong);
    }
    refused(|| pair(Code::SetVringBase, 0, 65_536), wrong);
    refused(|| pair(Code::SetVringEnable, 0, 2), wrong);
    refused(|| config(Code::SetConfig, 255, &[0; 2]), wrong);
    refused(|| config(Code::SetConfig, u32::MAX, &[0; 2]), wrong);
}
