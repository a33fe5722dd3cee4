use std::sync::Arc;

use outboard_controls::Off;
use outboard_ring::{Segment, driver::GuestRam};
use outboard_storage::{
    Backend, MemoryBackend,
    recording::{Keep, Recording},
};
use proptest::prelude::*;

use super::*;
use crate::{LBA_LEN, NSID, TRANSFER_LEN_MAX, spec::NSID_BROADCAST, spec::opcode};

const SIZE_BYTES: u64 = 4 << 20;
const BLOCKS: u64 = SIZE_BYTES / LBA_LEN;

/// A controller and memory for its data.
struct Bench {
    ram: GuestRam,
    controller: Controller,
}

impl Bench {
    fn new(backend: impl Backend + 'static, read_only: bool) -> Self {
        let namespace = Namespace::new(Box::new(backend), SIZE_BYTES, read_only);
        Self {
            ram: GuestRam::new(16 << 20),
            controller: Controller::new(namespace),
        }
    }

    fn data(&self, len: u64, byte: u8) -> Buffer {
        let mut buffer = Buffer::new();
        if len > 0 {
            let segment = Segment {
                addr: self.ram.alloc(len, 1),
                len: u32::try_from(len).expect("short"),
            };
            buffer
                .fill(self.ram.memory(), &[segment], 0, len)
                .expect("it is long enough");
            buffer
                .write_at(0, &vec![byte; usize::try_from(len).expect("short")])
                .expect("it is mapped");
        }
        buffer
    }

    fn run(&mut self, entry: SubmissionEntry, data: Buffer) -> Completed {
        self.controller.submit(entry, data).expect("it is idle");
        self.controller.start();
        // Memory completes at once, but no more than some pieces of a deallocation in one call.
        let mut calls = (0..128).map(|_| self.controller.complete());
        let completed = calls.find_map(|completed| completed).expect("it ends");
        assert_eq!(completed.entry.cid(), entry.cid());
        assert_eq!(self.controller.in_flight(), 0);
        completed
    }

    /// The data of a Dataset Management command.
    fn ranges(&self, ranges: &[(u64, u32)]) -> Buffer {
        let data = self.data((16 * ranges.len()) as u64, 0);
        for (n, &(slba, block_count)) in ranges.iter().enumerate() {
            let bytes = Range { slba, block_count }.to_bytes();
            data.write_at(16 * n as u64, &bytes).expect("it is mapped");
        }
        data
    }

    fn deallocate(&mut self, ranges: &[(u64, u32)]) -> Status {
        let nr = u8::try_from(ranges.len() - 1).expect("at most 256");
        let data = self.ranges(ranges);
        self.run(SubmissionEntry::deallocate(1, NSID, nr), data).entry.status()
    }

    fn byte_at(&mut self, block: u64) -> u8 {
        let data = self.data(512, 0xee);
        let completed = self.run(SubmissionEntry::read(7, NSID, block, 0), data);
        assert!(completed.entry.status().is_success());
        first_bytes(&completed.data)[0]
    }

    fn status(&mut self, entry: SubmissionEntry, len: u64) -> Status {
        let data = self.data(len, 1);
        self.run(entry, data).entry.status()
    }
}

fn memory() -> MemoryBackend {
    MemoryBackend::new(SIZE_BYTES, false)
}

fn first_bytes(data: &Buffer) -> [u8; 16] {
    let mut bytes = [0; 16];
    data.read_at(0, &mut bytes).expect("it is mapped");
    bytes
}

#[test]
fn what_is_written_is_read() {
    let mut bench = Bench::new(memory(), false);
    let (write, read) = (bench.data(1024, 7), bench.data(1024, 0));
    assert_eq!(
        bench
            .run(SubmissionEntry::write(1, NSID, 10, 1, false), write)
            .entry
            .status(),
        Status::SUCCESS
    );
    let completed = bench.run(SubmissionEntry::read(2, NSID, 10, 1), read);
    assert_eq!(
        (completed.entry.status(), first_bytes(&completed.data)),
        (Status::SUCCESS, [7; 16])
    );
    assert_eq!(bench.status(SubmissionEntry::flush(3, NSID), 0), Status::SUCCESS);
    assert_eq!(
        bench.status(SubmissionEntry::flush(4, NSID_BROADCAST), 0),
        Status::SUCCESS
    );
}

#[test]
fn each_wrong_field_is_told_apart_and_not_to_be_tried_again() {
    let mut bench = Bench::new(memory(), false);
    let unknown = |opcode: u8| {
        let mut bytes = SubmissionEntry::flush(1, NSID).to_bytes();
        bytes[0] = opcode;
        SubmissionEntry::from_bytes(bytes)
    };
    let mut fused = SubmissionEntry::read(1, NSID, 0, 0).to_bytes();
    fused[1] = 1;
    let fused = SubmissionEntry::from_bytes(fused);
    let full = u16::try_from(TRANSFER_LEN_MAX / LBA_LEN - 1).expect("small");
    let cases = [
        (unknown(0x0d), 0, Status::INVALID_OPCODE),
        (unknown(0xff), 0, Status::INVALID_OPCODE),
        (fused, 512, Status::INVALID_FIELD),
        (SubmissionEntry::read(1, 0, 0, 0), 512, Status::INVALID_NAMESPACE),
        (
            SubmissionEntry::write(1, 2, 0, 0, false),
            512,
            Status::INVALID_NAMESPACE,
        ),
        (
            SubmissionEntry::read(1, NSID_BROADCAST, 0, 0),
            512,
            Status::INVALID_NAMESPACE,
        ),
        (SubmissionEntry::flush(1, 2), 0, Status::INVALID_NAMESPACE),
        (SubmissionEntry::flush(1, NSID), 512, Status::DATA_LENGTH_INVALID),
        (
            SubmissionEntry::read(1, NSID, 0, full),
            TRANSFER_LEN_MAX,
            Status::SUCCESS,
        ),
        (
            SubmissionEntry::read(1, NSID, 0, full + 1),
            TRANSFER_LEN_MAX + 512,
            Status::INVALID_FIELD,
        ),
        (SubmissionEntry::read(1, NSID, 0, u16::MAX), 512, Status::INVALID_FIELD),
        (SubmissionEntry::read(1, NSID, 0, 0), 0, Status::DATA_LENGTH_INVALID),
        (SubmissionEntry::read(1, NSID, 0, 0), 511, Status::DATA_LENGTH_INVALID),
        (SubmissionEntry::read(1, NSID, 0, 0), 1024, Status::DATA_LENGTH_INVALID),
        (SubmissionEntry::read(1, NSID, BLOCKS - 1, 0), 512, Status::SUCCESS),
        (SubmissionEntry::read(1, NSID, BLOCKS, 0), 512, Status::LBA_OUT_OF_RANGE),
        (
            SubmissionEntry::write(1, NSID, BLOCKS - 1, 1, true),
            1024,
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            SubmissionEntry::read(1, NSID, u64::MAX, 0),
            512,
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            SubmissionEntry::read(1, NSID, u64::MAX - 1, 1),
            1024,
            Status::LBA_OUT_OF_RANGE,
        ),
        (
            SubmissionEntry::read(1, NSID, u64::MAX / 512 + 1, 0),
            512,
            Status::LBA_OUT_OF_RANGE,
        ),
    ];
    for (n, (entry, len, status)) in cases.into_iter().enumerate() {
        assert_eq!(bench.status(entry, len), status, "case {n}");
        let again = status.bits() >> 14 == 0;
        assert_eq!(again, status.is_success(), "case {n}: DNR");
    }
}

#[test]
fn what_is_zeroed_reads_as_zeros_and_nothing_beside_it() {
    let mut bench = Bench::new(memory(), false);
    let data = bench.data(TRANSFER_LEN_MAX, 7);
    bench.run(SubmissionEntry::write(1, NSID, 0, 2047, false), data);
    for (deallocate, first) in [(false, 100), (true, 300)] {
        let entry = SubmissionEntry::write_zeroes(1, NSID, first, 149, deallocate, true);
        assert_eq!(bench.status(entry, 0), Status::SUCCESS);
        let bytes = [first - 1, first, first + 149, first + 150].map(|block| bench.byte_at(block));
        assert_eq!(bytes, [7, 0, 0, 7]);
    }
    // All of it: more than one command may read or write.
    let all = SubmissionEntry::write_zeroes(1, NSID, 0, u16::try_from(BLOCKS - 1).expect("small"), true, false);
    assert_eq!(bench.status(all, 0), Status::SUCCESS);
    assert_eq!(bench.byte_at(0), 0);
}

#[test]
fn what_is_deallocated_may_be_gone_and_nothing_else_is() {
    let mut bench = Bench::new(memory(), false);
    let data = bench.data(TRANSFER_LEN_MAX, 7);
    bench.run(SubmissionEntry::write(1, NSID, 0, 2047, false), data);
    assert_eq!(
        bench.deallocate(&[(128, 128), (0, 0), (512, 256), (2047, 1)]),
        Status::SUCCESS
    );
    // A volume in memory frees what it can.
    let bytes = [127, 128, 255, 256, 511, 512, 767, 768, 2046, 2047].map(|block| bench.byte_at(block));
    assert_eq!(bytes, [7, 0, 0, 7, 7, 0, 0, 7, 7, 0]);
    assert_eq!(
        bench.deallocate(&[(0, 1); 256]),
        Status::SUCCESS,
        "as many ranges as there may be"
    );
    assert_eq!(bench.deallocate(&[(0, 0)]), Status::SUCCESS, "nothing at all");

    let mut hint = SubmissionEntry::deallocate(1, NSID, 0).to_bytes();
    hint[44] = 0b011;
    let data = bench.ranges(&[(1000, 8)]);
    let completed = bench.run(SubmissionEntry::from_bytes(hint), data);
    assert_eq!(completed.entry.status(), Status::SUCCESS);
    assert_eq!(bench.byte_at(1000), 7, "a hint changes nothing");
}

#[test]
fn ranges_and_zeroes_outside_the_namespace_are_refused_whole() {
    let mut bench = Bench::new(memory(), false);
    let data = bench.data(512, 7);
    bench.run(SubmissionEntry::write(1, NSID, 0, 0, false), data);
    for bad in [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX - 1, 2),
    ] {
        assert_eq!(bench.deallocate(&[(0, 1), bad]), Status::LBA_OUT_OF_RANGE, "{bad:?}");
    }
    assert_eq!(bench.byte_at(0), 7, "a good range beside a bad one is not touched");
    let zeroes = |slba, nlb| SubmissionEntry::write_zeroes(1, NSID, slba, nlb, true, false);
    for entry in [
        zeroes(BLOCKS, 0),
        zeroes(BLOCKS - 1, 1),
        zeroes(u64::MAX, 0),
        zeroes(0, u16::MAX),
    ] {
        assert_eq!(bench.status(entry, 0), Status::LBA_OUT_OF_RANGE);
    }
    let wrong = [
        (SubmissionEntry::deallocate(1, NSID, 1), 16),
        (SubmissionEntry::deallocate(1, NSID, 0), 32),
        (SubmissionEntry::deallocate(1, NSID, 0), 0),
        (zeroes(0, 0), 512),
    ];
    for (n, (entry, len)) in wrong.into_iter().enumerate() {
        assert_eq!(bench.status(entry, len), Status::DATA_LENGTH_INVALID, "case {n}");
    }
    for entry in [
        SubmissionEntry::deallocate(1, 2, 0),
        SubmissionEntry::write_zeroes(1, NSID_BROADCAST, 0, 0, true, true),
    ] {
        let len = if entry.opcode() == opcode::DATASET_MANAGEMENT {
            16
        } else {
            0
        };
        assert_eq!(bench.status(entry, len), Status::INVALID_NAMESPACE);
        let mut fused = entry.to_bytes();
        fused[1] = 1;
        assert_eq!(
            bench.status(SubmissionEntry::from_bytes(fused), len),
            Status::INVALID_FIELD
        );
    }
    let data = bench.ranges(&[(0, 1)]);
    bench.ram.file().set_len(0).expect("the host may truncate it");
    let completed = bench.run(SubmissionEntry::deallocate(1, NSID, 0), data);
    assert_eq!(completed.entry.status(), Status::DATA_TRANSFER_ERROR);
}

#[test]
fn control_without_the_range_check_blocks_behind_the_namespace_are_zeroed() {
    let mut bench = Bench::new(MemoryBackend::new(2 * SIZE_BYTES, false), false);
    let _off = Off::here(Check::VolumeRange);
    let data = bench.data(512, 7);
    assert!(
        bench
            .run(SubmissionEntry::write(1, NSID, BLOCKS, 0, false), data)
            .entry
            .status()
            .is_success()
    );
    assert_eq!(bench.byte_at(BLOCKS), 7);
    let zeroes = SubmissionEntry::write_zeroes(1, NSID, BLOCKS, 0, true, false);
    assert!(bench.status(zeroes, 0).is_success());
    assert_eq!(bench.byte_at(BLOCKS), 0);
}

/// Longer ranges than the backend takes at once are done piece by piece, and other commands go on between them.
#[test]
fn long_deallocations_are_done_in_pieces_beside_other_commands() {
    const LONG: u64 = 1 << 40;
    let namespace = Namespace::new(Box::new(MemoryBackend::new(LONG, false)), LONG, false);
    let mut bench = Bench {
        ram: GuestRam::new(16 << 20),
        controller: Controller::new(namespace),
    };
    let blocks = 20 << 16;
    let last = u64::from(blocks) - 1;
    for block in [0, last] {
        let data = bench.data(512, 7);
        bench.run(SubmissionEntry::write(1, NSID, block, 0, false), data);
    }
    let jobs = 9;
    for cid in 0..jobs {
        let data = bench.ranges(&[(0, blocks)]);
        let taken = bench.controller.submit(SubmissionEntry::deallocate(cid, NSID, 0), data);
        assert_eq!(taken.is_err(), cid == 8, "so many at once");
    }
    let data = bench.data(512, 0);
    bench
        .controller
        .submit(SubmissionEntry::read(100, NSID, 5, 0), data)
        .expect("a read is taken all the same");
    let mut order = Vec::new();
    let mut calls = 0;
    while bench.controller.in_flight() > 0 {
        calls += 1;
        bench.controller.start();
        order.extend(bench.controller.complete().map(|completed| {
            assert!(completed.entry.status().is_success());
            completed.entry.cid()
        }));
        assert!(
            bench.controller.arm() || bench.controller.in_flight() == 0,
            "nobody sleeps meanwhile"
        );
    }
    assert_eq!(order[0], 100);
    assert!(calls >= 8 * 20 / 4, "{calls}");
    order[1..].sort_unstable();
    assert_eq!(order[1..], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!([0, last].map(|block| bench.byte_at(block)), [0, 0]);
}

#[test]
fn a_failed_deallocation_ends_and_makes_room() {
    let recording = Recording::new(SIZE_BYTES, false);
    let mut bench = Bench::new(recording.backend(), false);
    recording.fail_syncs(1);
    assert_eq!(bench.status(SubmissionEntry::flush(1, NSID), 0), Status::WRITE_FAULT);
    for _ in 0..20 {
        assert_eq!(
            bench.deallocate(&[(0, 1), (5, 1)]),
            Status::WRITE_FAULT.for_good(),
            "it is latched"
        );
    }
}

#[test]
fn a_namespace_that_changed_its_size_serves_all_of_it_and_no_more() {
    let mut bench = Bench::new(memory(), false);
    let beyond = SubmissionEntry::read(1, NSID, BLOCKS, 0);
    assert_eq!(bench.status(beyond, 512), Status::LBA_OUT_OF_RANGE);
    assert_eq!(bench.controller.resize(2 * SIZE_BYTES), Ok(()));
    assert_eq!(bench.status(beyond, 512), Status::SUCCESS);
    assert!(bench.controller.resize(1000).is_err());
    assert_eq!(
        bench.controller.namespace().block_count(),
        2 * BLOCKS,
        "it keeps its size"
    );
    assert_eq!(bench.controller.resize(SIZE_BYTES), Ok(()));
    assert_eq!(bench.status(beyond, 512), Status::LBA_OUT_OF_RANGE);
}

#[test]
fn a_read_only_namespace_is_read_and_flushed_only() {
    let mut bench = Bench::new(memory(), true);
    assert_eq!(
        bench.status(SubmissionEntry::write(1, NSID, 0, 0, false), 512),
        Status::WRITE_PROTECTED
    );
    assert_eq!(bench.deallocate(&[(0, 1)]), Status::WRITE_PROTECTED);
    let zeroes = SubmissionEntry::write_zeroes(1, NSID, 0, 0, true, false);
    assert_eq!(bench.status(zeroes, 0), Status::WRITE_PROTECTED);
    assert_eq!(bench.status(SubmissionEntry::read(1, NSID, 0, 0), 512), Status::SUCCESS);
    assert_eq!(bench.status(SubmissionEntry::flush(1, NSID), 0), Status::SUCCESS);
}

#[test]
fn a_command_id_in_flight_is_refused_and_the_first_command_unharmed() {
    let mut bench = Bench::new(memory(), false);
    let (first, second) = (bench.data(512, 3), bench.data(512, 4));
    bench
        .controller
        .submit(SubmissionEntry::write(9, NSID, 0, 0, false), first)
        .expect("it is idle");
    bench
        .controller
        .submit(SubmissionEntry::write(9, NSID, 0, 0, false), second)
        .expect("there is room");
    let mut statuses: Vec<u16> = (0..2)
        .map(|_| bench.controller.complete().expect("two are over").entry.status().bits())
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [Status::SUCCESS.bits(), Status::CID_CONFLICT.bits()]);
    let read = bench.data(512, 0);
    let completed = bench.run(SubmissionEntry::read(9, NSID, 0, 0), read);
    assert_eq!(
        first_bytes(&completed.data),
        [3; 16],
        "the id is free again, and the second was not written"
    );
}

#[test]
fn a_full_controller_gives_the_command_back() {
    let mut bench = Bench::new(memory(), false);
    let depth = u16::try_from(bench.controller.depth()).expect("small");
    for cid in 0..depth {
        // Every other is refused, which takes room too.
        let entry = SubmissionEntry::flush(cid, if cid % 2 == 0 { NSID } else { 77 });
        bench.controller.submit(entry, Buffer::new()).expect("there is room");
    }
    let one_more = SubmissionEntry::read(depth, NSID, 0, 0);
    let data = bench.data(512, 0);
    let busy = bench.controller.submit(one_more, data).expect_err("it is full");
    assert_eq!((busy.entry, busy.data.len()), (one_more, 512));
    assert!(bench.controller.arm());
    for _ in 0..depth {
        assert!(bench.controller.complete().is_some());
    }
    assert!(bench.controller.complete().is_none() && !bench.controller.arm());
}

#[test]
fn errors_of_the_backend_become_statuses() {
    let recording = Recording::new(SIZE_BYTES, false);
    let mut bench = Bench::new(recording.backend(), false);
    recording.fail_writes(1);
    let data = bench.data(512, 1);
    let completed = bench.run(SubmissionEntry::write(1, NSID, 0, 0, false), data);
    assert_eq!(completed.entry.status(), Status::WRITE_FAULT);
    assert!(matches!(completed.cause, Some(IoError::System { call: "writev", .. })));
    assert_eq!(completed.data.len(), 512, "the data is given back");

    recording.fail_syncs(1);
    assert_eq!(bench.status(SubmissionEntry::flush(1, NSID), 0), Status::WRITE_FAULT);
    assert_eq!(
        bench.status(SubmissionEntry::flush(1, NSID), 0),
        Status::WRITE_FAULT.for_good(),
        "it is latched"
    );

    let data = bench.data(512, 1);
    bench.ram.file().set_len(0).expect("the host may truncate it");
    assert_eq!(
        bench.run(SubmissionEntry::read(1, NSID, 0, 0), data).entry.status(),
        Status::DATA_TRANSFER_ERROR
    );
}

fn survives(entries: &[SubmissionEntry]) -> bool {
    let recording = Recording::new(SIZE_BYTES, false);
    let mut bench = Bench::new(recording.backend(), false);
    for &entry in entries {
        let len = if entry.opcode() == opcode::WRITE { 512 } else { 0 };
        assert!(bench.status(entry, len).is_success());
    }
    recording.power_loss(Keep::Nothing);
    recording.sector(0) == [1; 512]
}

#[test]
fn zeroes_are_as_durable_as_writes() {
    let written = SubmissionEntry::write(1, NSID, 0, 0, true);
    let zeroes = |fua| SubmissionEntry::write_zeroes(1, NSID, 0, 0, true, fua);
    let flush = SubmissionEntry::flush(2, NSID);
    assert!(survives(&[written, zeroes(false)]), "the zeros do not");
    assert!(!survives(&[written, zeroes(true)]));
    assert!(!survives(&[written, zeroes(false), flush]));
}

#[test]
fn fua_and_flush_are_durable_and_a_plain_write_is_not() {
    let plain = SubmissionEntry::write(1, NSID, 0, 0, false);
    let forced = SubmissionEntry::write(1, NSID, 0, 0, true);
    let flush = SubmissionEntry::flush(2, NSID);
    assert!(!survives(&[plain]));
    assert!(survives(&[forced]));
    assert!(survives(&[plain, flush]));
    let _off = Off::here(Check::DurableFlush);
    assert!(
        !survives(&[forced]) && !survives(&[plain, flush]),
        "which is what the check is for"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever 64 bytes a command is, it is answered once, holds no memory afterwards, and changes no block but those
    /// it names.
    #[test]
    fn arbitrary_commands_are_answered_once(
        mut bytes in proptest::array::uniform32(any::<u8>()),
        opcode in prop_oneof![0u8..4, 8u8..10, any::<u8>()],
        cdw11 in prop_oneof![Just(4u32), any::<u32>()],
        nsid in prop_oneof![Just(NSID), Just(NSID_BROADCAST), any::<u32>()],
        slba in prop_oneof![0..BLOCKS + 2, any::<u64>()],
        cdw12 in prop_oneof![0u32..4, any::<u32>()],
        blocks in 0u64..5,
    ) {
        let mut bench = Bench::new(memory(), false);
        bytes[0] = opcode;
        bytes[4..8].copy_from_slice(&nsid.to_le_bytes());
        let mut whole = [0; 64];
        whole[..32].copy_from_slice(&bytes);
        whole[40..48].copy_from_slice(&slba.to_le_bytes());
        if opcode == opcode::DATASET_MANAGEMENT {
            whole[44..48].copy_from_slice(&cdw11.to_le_bytes());
        }
        whole[48..52].copy_from_slice(&cdw12.to_le_bytes());
        let entry = SubmissionEntry::from_bytes(whole);
        let data = bench.data(blocks * 512, 9);
        let held = Arc::strong_count(bench.ram.memory());
        let completed = bench.run(entry, data);
        let served = completed.entry.status().is_success();
        if served {
            prop_assert!(matches!(opcode, 0..3 | 8 | 9) && entry.fuse() == 0 && (nsid == NSID || opcode == 0));
            prop_assert!(matches!(opcode, 0 | 9) || entry.slba() + entry.block_count() <= BLOCKS);
        }
        drop(completed);
        prop_assert_eq!(Arc::strong_count(bench.ram.memory()), held - usize::from(blocks > 0));
        let before = entry.slba().wrapping_sub(1);
        if served && opcode == 1 && before < BLOCKS {
            let read = bench.data(512, 1);
            let completed = bench.run(SubmissionEntry::read(0, NSID, before, 0), read);
            prop_assert_eq!(first_bytes(&completed.data), [0; 16]);
        }
    }
}
