//! How a request is spread over descriptors means nothing (virtio 1.3 §2.7.4.1).

use crate::DEFAULT_FEATURES;
use outboard_storage::{Backend, MemoryBackend, open_file};
use vhost_blk_dpu::{SEG_MAX, SIZE_MAX};

use crate::guest::{Guest, S_OK, T_IN, T_OUT, config, header};

const MIB: u64 = 1 << 20;

/// Cut `len` bytes at `addr` into pieces.
fn cut(addr: u64, len: u32, piece_len: u32) -> Vec<(u64, u32)> {
    (0..len.div_ceil(piece_len))
        .map(|n| (addr + u64::from(n * piece_len), piece_len.min(len - n * piece_len)))
        .collect()
}

fn writes_and_reads(guest: &mut Guest, piece_len: u32) {
    let (out, back) = (guest.ram.alloc(1040, 1), guest.ram.alloc(1025, 1));
    let data: Vec<u8> = (0..1024u32).map(|n| (n * piece_len) as u8).collect();
    guest.driver.write(out, &[&header(T_OUT, 3)[..], &data].concat());
    guest.driver.write(back, &[0xff; 1025]);
    guest
        .driver
        .add(&cut(out, 1040, piece_len), &[(back, 1)])
        .expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, 1);
    assert_eq!(guest.driver.read(back, 1), [S_OK]);

    guest.driver.write(out, &header(T_IN, 3));
    guest.driver.write(back, &[0xff; 1025]);
    guest
        .driver
        .add_indirect(&cut(out, 16, piece_len), &cut(back, 1025, piece_len))
        .expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, 1025);
    let read = guest.driver.read(back, 1025);
    assert_eq!(
        (&read[..1024], read[1024]),
        (&data[..], S_OK),
        "the status is the last writable byte"
    );
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MIB).expect("its size");
    let backend = open_file(file.path(), MIB, false).expect("it opens");
    let mut guest = Guest::new(config(MIB), Box::new(backend), DEFAULT_FEATURES);
    for piece_len in [17, 20, 31, 100, 511, 512, 513, 1024, 1040] {
        writes_and_reads(&mut guest, piece_len);
    }
}

/// A request longer than one command may transfer is carried out in parts, in one answer. Its one segment is longer than
/// `size_max`, too.
#[test]
fn a_request_longer_than_a_command_is_split() {
    const LEN: u32 = SIZE_MAX + (1 << 19) + 512;
    let mut guest = Guest::new(
        config(8 * MIB),
        Box::new(MemoryBackend::new(8 * MIB, false)),
        DEFAULT_FEATURES,
    );
    let (head_addr, data_addr) = (guest.ram.alloc(17, 16), guest.ram.alloc(u64::from(LEN), 512));
    let data: Vec<u8> = (0..LEN).map(|n| (n / 512) as u8 ^ (n / 131_072) as u8).collect();
    guest.driver.write(data_addr, &data);
    guest.driver.write(head_addr, &header(T_OUT, 1));
    guest
        .driver
        .add(&[(head_addr, 16), (data_addr, LEN)], &[(head_addr + 16, 1)])
        .expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, 1);
    assert_eq!(guest.driver.read(head_addr + 16, 1), [S_OK]);

    guest.driver.write(data_addr, &vec![0; LEN as usize]);
    guest.driver.write(head_addr, &header(T_IN, 1));
    guest
        .driver
        .add(&[(head_addr, 16)], &[(data_addr, LEN), (head_addr + 16, 1)])
        .expect("there is room");
    guest.driver.publish();
    assert_eq!(guest.wait_used().1, LEN + 1);
    assert!(guest.driver.read(data_addr, LEN as usize) == data);
    let counters = guest.unit.counters();
    assert_eq!((counters.reads, counters.writes), (1, 1));
    assert_eq!(
        (counters.read_bytes, counters.written_bytes),
        (u64::from(LEN), u64::from(LEN))
    );
}

/// As many segments as the largest queue has descriptors, many more than `seg_max`, in a file and in memory.
#[test]
fn a_request_of_a_thousand_segments_is_served() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(MIB).expect("its size");
    let backends: [Box<dyn Backend>; 2] = [
        Box::new(open_file(file.path(), MIB, false).expect("it opens")),
        Box::new(MemoryBackend::new(MIB, false)),
    ];
    for backend in backends {
        let mut guest = Guest::with_queue(config(MIB), backend, DEFAULT_FEATURES, 1024);
        // With header and status 1024 descriptors.
        let pieces = cut(guest.ram.alloc(1022 * 512, 1), 1022 * 512, 512);
        assert!(pieces.len() > SEG_MAX as usize);
        let at = guest.ram.alloc(32, 1);
        let data: Vec<u8> = (0..1022 * 512u32).map(|n| (n / 512) as u8 ^ n as u8).collect();
        for (kind, expected_len) in [(T_OUT, 1), (T_IN, 1022 * 512 + 1)] {
            if kind == T_OUT {
                guest.driver.write(pieces[0].0, &data);
            } else {
                guest.driver.write(pieces[0].0, &vec![0; data.len()]);
            }
            guest.driver.write(at, &header(kind, 3));
            let (header, status) = ((at, 16), (at + 16, 1));
            // From the last piece to the first, so that they are not one buffer by chance.
            let backwards: Vec<_> = pieces.iter().rev().copied().collect();
            if kind == T_OUT {
                let readable = [&[header], &backwards[..]].concat();
                guest.driver.add(&readable, &[status]).expect("there is room");
            } else {
                let writable = [&backwards[..], &[status]].concat();
                guest.driver.add_indirect(&[header], &writable).expect("there is room");
            }
            guest.driver.publish();
            assert_eq!(guest.wait_used().1, expected_len);
            assert_eq!(guest.driver.read(at + 16, 1), [S_OK]);
        }
        assert!(guest.driver.read(pieces[0].0, data.len()) == data);
    }
}
