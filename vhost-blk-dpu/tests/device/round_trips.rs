//! What a well-behaved driver does.

use crate::DEFAULT_FEATURES;
use outboard_storage::{Backend, MemoryBackend, NullBackend, open_file, recording::Recording};
use vhost_blk_dpu::{BlkConfig, CONFIG_LEN, QUEUE_SIZE_MAX, SEG_MAX, VolumeCounters, device_id};

use crate::guest::{F_EVENT_IDX, Guest, S_OK, T_FLUSH, T_IN, T_OUT, config};

const T_GET_ID: u32 = 8;
const MIB: u64 = 1 << 20;

fn volume_file(size_bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(size_bytes).expect("its size");
    file
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|n| (n as u8).wrapping_mul(7).wrapping_add((n >> 8) as u8) ^ seed)
        .collect()
}

fn serves(backend: Box<dyn Backend>) {
    let mut guest = Guest::new(config(MIB), backend, DEFAULT_FEATURES & !F_EVENT_IDX);
    guest.breathe();
    let data = pattern(2048, 1);
    assert_eq!(guest.run(T_OUT, 9, &data, 0), (S_OK, 1, vec![]));
    assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
    let (status, used_len, read) = guest.run(T_IN, 9, &[], 2048);
    assert_eq!((status, used_len), (S_OK, 2049), "data and status");
    assert_eq!(read, data);
    assert_eq!(
        guest.run(T_IN, 2047, &[], 512),
        (S_OK, 513, vec![0; 512]),
        "the last sector was never written"
    );
    let expected = VolumeCounters {
        reads: 2,
        writes: 1,
        flushes: 1,
        read_bytes: 2560,
        written_bytes: 2048,
        ..VolumeCounters::default()
    };
    assert_eq!(guest.unit.counters(), expected);
    assert_eq!(guest.calls.0, 5, "each answer is called, and once at the start");
}

#[test]
fn a_file_a_memory_and_a_recording_volume_serve_alike() {
    let file = volume_file(MIB);
    serves(Box::new(open_file(file.path(), MIB, false).expect("it opens")));
    serves(Box::new(MemoryBackend::new(MIB, false)));
    serves(Box::new(Recording::new(MIB, false).backend()));
    serves(Box::new(Recording::new(MIB, false).shuffled_backend(1)));
}

#[test]
fn a_null_volume_reads_zeros_whatever_was_in_the_buffer() {
    let mut guest = Guest::new(config(MIB), Box::new(NullBackend::new(MIB, false)), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_OUT, 0, &[5; 512], 0).0, S_OK);
    // The buffer holds something else before.
    assert_eq!(guest.run(T_IN, 0, &[], 512), (S_OK, 513, vec![0; 512]));
}

#[test]
fn what_was_written_is_in_the_file_as_it_is() {
    let file = volume_file(MIB);
    let backend = open_file(file.path(), MIB, false).expect("it opens");
    let mut guest = Guest::new(config(MIB), Box::new(backend), DEFAULT_FEATURES);
    assert_eq!(guest.run(T_OUT, 100, &pattern(1024, 9), 0).0, S_OK);
    assert_eq!(guest.run(T_FLUSH, 0, &[], 0).0, S_OK);
    let bytes = std::fs::read(file.path()).expect("it is readable");
    assert_eq!(bytes[51_200..52_224], pattern(1024, 9));
    assert!(bytes[..51_200].iter().chain(&bytes[52_224..]).all(|&byte| byte == 0));
}

#[test]
fn the_id_is_that_of_the_volume() {
    let mut guest = Guest::new(config(MIB), Box::new(MemoryBackend::new(MIB, false)), DEFAULT_FEATURES);
    let (status, used_len, id) = guest.run(T_GET_ID, 0, &[], 20);
    assert_eq!((status, used_len, id), (S_OK, 21, device_id("disk1").to_vec()));
    assert_eq!(
        guest.unit.counters(),
        VolumeCounters {
            ids: 1,
            ..VolumeCounters::default()
        }
    );
}

#[test]
fn features_and_config_space_say_what_is_served() {
    let guest = Guest::new(config(MIB), Box::new(MemoryBackend::new(MIB, false)), DEFAULT_FEATURES);
    assert_eq!(guest.unit.features(), vhost_blk_dpu::DEFAULT_FEATURES);
    let space = guest.unit.config_space();
    assert_eq!((space.len(), &space[..8]), (CONFIG_LEN, &2048u64.to_le_bytes()[..]));
    const { assert!(SEG_MAX + 2 <= QUEUE_SIZE_MAX as u32) };

    // Never more than the backend has, and read-only if either says so.
    let config = BlkConfig {
        read_only: true,
        ..config(8 * MIB)
    };
    let guest = Guest::new(config, Box::new(MemoryBackend::new(MIB + 100, false)), DEFAULT_FEATURES);
    let read_only = vhost_blk_dpu::DEFAULT_FEATURES & !(1 << 13 | 1 << 14) | 1 << 5;
    assert_eq!(guest.unit.features(), read_only);
    assert_eq!(guest.unit.config_space()[..8], 2048u64.to_le_bytes());
}

/// The ring keeps several requests in flight; answers come in any order, each once.
#[test]
fn many_requests_at_once_are_each_answered_once() {
    let mut guest = Guest::new(
        config(MIB),
        Box::new(Recording::new(MIB, false).shuffled_backend(5)),
        DEFAULT_FEATURES,
    );
    for round in 0..50u64 {
        let mut heads: Vec<u16> = (0..16)
            .map(|n| {
                guest
                    .add(T_OUT, (round * 16 + n) % 2048, &pattern(512, n as u8), 0)
                    .head
            })
            .collect();
        let mut answered: Vec<u16> = (0..16).map(|_| guest.wait_used().0).collect();
        heads.sort_unstable();
        answered.sort_unstable();
        assert_eq!(heads, answered);
        assert_eq!(guest.driver.used(), None);
    }
    assert_eq!(guest.unit.counters().writes, 800);
    assert_eq!(guest.unit.in_flight(), 0);
}
