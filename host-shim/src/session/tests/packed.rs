//! Packed rings, of which only the in-flight region tells where they stand.

use outboard_protocol::id::ObjectKind::{self, Port, Volume};
use rustix::io::pwrite;

use super::{
    model_dpu::ModelDpu,
    world::{CONFIG_SPACE, PROTOCOL, VIRTIO, World, memory, memory_table, message, number, pair, ring_event},
};
use crate::session::{
    STOPPING_MAX,
    framing::{Descriptor, Message},
    vhost_user_wire::{Code, VIRTIO_F_RING_PACKED},
};

/// What a ring begins with: both positions 0, and both wrap counters 1.
const START: u32 = 0x8000_8000;
/// Flags of a descriptor in the first lap: available, and used (virtio 1.3 §2.8.1).
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 7 | 1 << 15;

fn dpu() -> ModelDpu {
    ModelDpu::new(VIRTIO | VIRTIO_F_RING_PACKED, PROTOCOL, 4, &CONFIG_SPACE)
}

/// A guest with packed rings, of which the first runs, and its memory.
fn running(kind: ObjectKind) -> (World, Descriptor) {
    let mut world = World::new(kind);
    world.connect(dpu()).unwrap();
    assert!(world.try_ask(message(Code::SetOwner, vec![], [])).unwrap().is_none());
    world.try_ask(number(Code::SetProtocolFeatures, PROTOCOL)).unwrap();
    let file = memory();
    world.ask(number(Code::SetFeatures, VIRTIO & !(1 << 26) | VIRTIO_F_RING_PACKED));
    world.ask(memory_table(std::slice::from_ref(&file)));
    world.start_ring(0);
    (world, file)
}

/// What a DPU has written to the first ring's part: where it is, where it was before its last batch, and whether the first
/// entry is in flight.
fn log(world: &World, used: u16, old: u16, in_flight: bool) {
    let inflight = world.session.remembered().inflight.clone().unwrap();
    assert!(inflight.packed);
    let mut part = [0; 68];
    part[8] = 1;
    // The first entry is not free, and the list begins with the second.
    part[12..16].copy_from_slice(&[1, 0, 1, 0]);
    part[16..18].copy_from_slice(&used.to_le_bytes());
    part[18..20].copy_from_slice(&old.to_le_bytes());
    (part[20], part[21]) = (1, 1);
    part[32] = in_flight.into();
    part[66..68].fill(0xff);
    pwrite(&inflight.file, &part, 0).unwrap();
}

fn set_flags(file: &Descriptor, slot: u64, flags: u16) {
    pwrite(file, &flags.to_le_bytes(), 16 * slot + 14).unwrap();
}

fn base_of(answer: &Message) -> u32 {
    u32::from_le_bytes(answer.payload[4..8].try_into().unwrap())
}

#[test]
fn a_base_of_two_positions_reaches_the_dpu_and_comes_back() {
    let (mut world, _file) = running(Volume);
    world.ask(pair(Code::SetVringBase, 1, START));
    assert_eq!(world.state().rings[&1].base, START);
    // Of a split ring it is one index.
    let (mut split, _file) = World::running(Volume);
    assert!(split.try_ask(pair(Code::SetVringBase, 1, START)).is_err());
}

#[test]
fn a_dpu_that_is_killed_is_followed_where_the_region_says() {
    for kind in [Port, Volume] {
        let (mut world, file) = running(kind);
        log(&world, 5, 5, true);
        world.kill().unwrap();
        world.connect(dpu()).unwrap();
        assert_eq!(world.state().rings[&0].base, 0x8005_8005);
        // It was killed within a batch, before that was shown and after.
        for (flags, base) in [(AVAILABLE, 0x8005_8005), (USED, 0x8007_8007)] {
            log(&world, 7, 5, true);
            set_flags(&file, 5, flags);
            world.kill().unwrap();
            world.connect(dpu()).unwrap();
            assert_eq!(world.state().rings[&0].base, base);
        }
    }
}

#[test]
fn get_vring_base_is_answered_without_a_dpu_only_where_the_ring_is_whole() {
    let ask = |kind, used, old, in_flight, flags| {
        let (mut world, file) = running(kind);
        log(&world, used, old, in_flight);
        set_flags(&file, old.into(), flags);
        world.kill().unwrap();
        world.after(STOPPING_MAX).unwrap();
        let before = world.to_vmm.len();
        let answer = world.try_ask(pair(Code::GetVringBase, 0, 0)).unwrap();
        assert_eq!(answer.is_some(), world.to_vmm.len() > before);
        answer.as_ref().map(base_of)
    };
    for kind in [Port, Volume] {
        assert_eq!(ask(kind, 5, 5, false, AVAILABLE), Some(0x8005_8005));
        assert_eq!(ask(kind, 7, 5, false, USED), Some(0x8007_8007));
        assert_eq!(ask(kind, 7, 5, false, AVAILABLE), None, "a DPU has to finish the batch");
    }
    // A port does again what it has not used; of a volume that would repeat what is in flight.
    assert_eq!(ask(Port, 5, 5, true, AVAILABLE), Some(0x8005_8005));
    assert_eq!(ask(Volume, 5, 5, true, AVAILABLE), None);
}

#[test]
fn firmware_with_split_rings_and_a_driver_with_packed_ones_have_each_their_region() {
    let mut world = World::new(Volume);
    world.connect(dpu()).unwrap();
    assert!(world.try_ask(message(Code::SetOwner, vec![], [])).unwrap().is_none());
    world.try_ask(number(Code::SetProtocolFeatures, PROTOCOL)).unwrap();
    let file = memory();
    world.ask(memory_table(std::slice::from_ref(&file)));
    for packed in [0, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_PACKED, 0] {
        world.ask(number(Code::SetFeatures, VIRTIO & !(1 << 26) | packed));
        world.start_ring(0);
        let inflight = world.session.remembered().inflight.clone().unwrap();
        assert_eq!(inflight.packed, packed != 0);
        world.ask(pair(Code::GetVringBase, 0, 0));
        world.ask(ring_event(Code::SetVringCall, 0, None));
    }
}
