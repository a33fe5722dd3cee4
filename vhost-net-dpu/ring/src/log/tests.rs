use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::{
    Chain, SplitRing,
    driver::{BUFFER_LEN, Driver, GuestRam, RAM_START},
};

const RAM_LEN: u64 = 1 << 18;
/// INDIRECT_DESC and EVENT_IDX.
const FEATURES: [u64; 4] = [0, 1 << 28, 1 << 29, 3 << 28];

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// A log of `len` bytes at an odd offset, and the file it is in.
fn log(len: u64) -> (Arc<DirtyLog>, File) {
    let file = memfd(len + 3);
    (Arc::new(DirtyLog::map(&file, 3, len).unwrap()), file)
}

/// Take the marks, as a migration does: the pages that were marked.
fn take(file: &File) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap() - 3];
    file.read_exact_at(&mut bytes, 3).unwrap();
    file.write_all_at(&vec![0; bytes.len()], 3).unwrap();
    let bits = bytes.iter().zip(0u64..);
    bits.flat_map(|(byte, at)| {
        (0..8)
            .filter(move |bit| byte & 1 << bit != 0)
            .map(move |bit| 8 * at + bit)
    })
    .collect()
}

#[test]
fn each_page_of_a_range_is_marked_and_no_other() {
    let (log, file) = log(8);
    for (addr, len, pages) in [
        (0, 0, 0..0),
        (0, 1, 0..1),
        (4095, 1, 0..1),
        (4095, 2, 0..2),
        (7 * 4096, 4097, 7..9),
        (3 * 4096 + 5, 20 * 4096, 3..24),
        (0, 64 * 4096, 0..64),
        // Past the log's end.
        (63 * 4096, 1 << 20, 63..64),
        (64 * 4096, 1, 0..0),
        (u64::MAX - 1, u64::MAX, 0..0),
    ] {
        log.mark(addr, len);
        assert_eq!(take(&file), pages.collect::<Vec<_>>(), "{len} bytes from {addr:#x}");
    }
}

#[test]
fn marks_of_others_stay() {
    let (log, file) = log(1);
    file.write_all_at(&[0b1000_0001], 3).unwrap();
    log.mark(4096, 1);
    assert_eq!(take(&file), [0, 1, 7]);
}

#[test]
fn h07_logs_that_wrap_or_are_not_in_their_file_are_refused() {
    let file = memfd(4096);
    assert_eq!(
        DirtyLog::map(&file, u64::MAX - 7, 16).unwrap_err(),
        LogError::File(FileFault::Wraps)
    );
    assert_eq!(
        DirtyLog::map(&file, 4090, 7).unwrap_err(),
        LogError::File(FileFault::Outside {
            end: 4097,
            file_len: 4096
        })
    );
    for len in [0, LOG_LEN_MAX + 1, u64::MAX] {
        assert_eq!(DirtyLog::map(&file, 0, len).unwrap_err(), LogError::Len { len });
    }
    let (pipe, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    assert!(matches!(
        DirtyLog::map(&pipe, 0, 8).unwrap_err(),
        LogError::File(FileFault::NotMemory { .. })
    ));
    let log = DirtyLog::map(&file, 4088, 8).unwrap();
    assert_eq!(log.check_covers(64 * 4096), Ok(()));
    assert_eq!(
        log.check_covers(64 * 4096 + 1),
        Err(LogError::TooSmall {
            len: 8,
            end: 64 * 4096 + 1,
            needed: 9
        })
    );
}

#[test]
fn a_log_that_the_host_takes_away_fails_the_ring_that_uses_it() {
    let ram = GuestRam::new(RAM_LEN);
    let mut driver = Driver::new(&ram, 8, 0);
    let mut ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
    let (log, file) = log((RAM_START + RAM_LEN) / LOG_BYTE_SPAN);
    let used_addr = Some(driver.config().used);
    ring.set_log(Some(RingLog { log, used_addr }));
    file.set_len(0).unwrap();
    driver.add_bytes(&[], &[4]).unwrap();
    driver.add_bytes(&[], &[4]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert_eq!(ring.pop(&mut chain), Ok(true));
    ring.push_used(&chain, 4).unwrap();
    assert_eq!(ring.pop(&mut chain), Err(crate::RingError::MemoryVanished));
}

/// What is done to a ring that logs.
#[derive(Debug, Clone)]
enum Step {
    /// A chain comes and goes: the lengths of its writable buffers, whether it is indirect, the bytes that are written
    /// and those that are told.
    Chain {
        lens: Vec<u32>,
        indirect: bool,
        written: u64,
        told: u32,
    },
    Sleep,
    Wake,
    /// The migration takes the marks.
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let max = u32::try_from(BUFFER_LEN).unwrap();
    let lens = prop::collection::vec(1..=max, 1..4);
    prop_oneof![
        6 => (lens, any::<bool>(), 0u64..8000, 0u32..8000)
            .prop_map(|(lens, indirect, written, told)| Step::Chain { lens, indirect, written, told }),
        1 => Just(Step::Sleep),
        1 => Just(Step::Wake),
        1 => Just(Step::Sync),
    ]
}

fn contents(ram: &GuestRam) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(RAM_LEN).unwrap()];
    ram.memory().read(RAM_START, &mut bytes).unwrap();
    bytes
}

/// Pages in which the device changed anything.
fn changed(before: &[u8], after: &[u8]) -> Vec<u64> {
    let pages = before.chunks(4096).zip(after.chunks(4096));
    pages
        .zip(RAM_START / LOG_PAGE_LEN..)
        .filter_map(|((a, b), page)| (a != b).then_some(page))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the device does: a page that it changed since the marks were taken is marked.
    #[test]
    fn every_page_that_is_written_is_marked(
        features in 0usize..4,
        start in prop_oneof![Just(0), Just(u16::MAX - 5)],
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let ram = GuestRam::new(RAM_LEN);
        let features = FEATURES[features];
        let mut driver = Driver::new(&ram, 16, features).starting_at(start);
        let mut ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
        let (log, file) = log((RAM_START + RAM_LEN).div_ceil(LOG_BYTE_SPAN));
        let used_addr = Some(driver.config().used);
        ring.set_log(Some(RingLog { log, used_addr }));
        let mut chain = Chain::new();
        let (mut marked, mut expected): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut fill = 0u8;
        for step in steps {
            match &step {
                Step::Chain { lens, indirect, .. } => {
                    let buffers: Vec<(u64, u32)> = (0..).zip(lens).map(|(n, &len)| (driver.buffer(n), len)).collect();
                    let head = if *indirect && features & 1 << 28 != 0 {
                        driver.add_indirect(&[], &buffers)
                    } else {
                        driver.add(&[], &buffers)
                    };
                    prop_assert!(head.is_some());
                    driver.publish();
                }
                Step::Sync => (marked, expected) = (Vec::new(), Vec::new()),
                _ => {}
            }
            let before = contents(&ram);
            match step {
                Step::Chain { written, told, .. } => {
                    prop_assert_eq!(ring.pop(&mut chain), Ok(true));
                    let written = written.min(chain.writable_len());
                    let told = told.min(u32::try_from(written).unwrap());
                    fill = fill.wrapping_add(1);
                    chain.write_at(ring.memory(), 0, &vec![fill; usize::try_from(written).unwrap()]).unwrap();
                    ring.push_used_dirtying(&chain, told, written).unwrap();
                    ring.publish().unwrap();
                }
                Step::Sleep => drop(ring.enable_kicks().unwrap()),
                Step::Wake => ring.disable_kicks(),
                Step::Sync => {}
            }
            expected.extend(changed(&before, &contents(&ram)));
            marked.extend(take(&file));
            for page in &expected {
                prop_assert!(marked.contains(page), "page {page:#x} was written and is not marked");
            }
            while driver.used().is_some() {}
        }
    }
}

/// The property is not empty: without the ring's marks, or with fewer bytes than were written, pages are missed.
#[test]
fn a_page_is_missed_if_fewer_bytes_are_said_to_be_written() {
    let ram = GuestRam::new(RAM_LEN);
    let mut driver = Driver::new(&ram, 8, 0);
    let mut ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
    let (log, file) = log((RAM_START + RAM_LEN).div_ceil(LOG_BYTE_SPAN));
    ring.set_log(Some(RingLog { log, used_addr: None }));
    let far = driver.buffer(7).next_multiple_of(4096);
    driver.add(&[], &[(far - 100, 200)]).unwrap();
    driver.add(&[], &[(far - 100, 200)]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    for dirtied in [100, 101] {
        assert_eq!(ring.pop(&mut chain), Ok(true));
        ring.push_used_dirtying(&chain, 0, dirtied).unwrap();
        ring.publish().unwrap();
        let pages = [far / 4096 - 1, far / 4096];
        assert_eq!(take(&file), pages[..if dirtied == 100 { 1 } else { 2 }]);
    }
    // Turned off, it marks nothing; turned on, all of the used ring.
    ring.set_log(None);
    driver.add(&[], &[(far - 100, 200)]).unwrap();
    driver.publish();
    while driver.used().is_some() {}
    assert_eq!(ring.pop(&mut chain), Ok(true));
    ring.push_used(&chain, 200).unwrap();
    ring.publish().unwrap();
    assert!(take(&file).is_empty());
}

#[test]
fn a_log_that_is_set_marks_the_whole_used_ring_and_leaves_the_indices() {
    let ram = GuestRam::new(1 << 20);
    let driver = Driver::new(&ram, 64, 0);
    let mut ring = SplitRing::new(driver.config(), ram.memory().clone()).unwrap();
    let (log, file) = log(64);
    let at = ring.next_avail();
    // 516 bytes, wherever the front-end wants them to be marked.
    ring.set_log(Some(RingLog {
        log,
        used_addr: Some(8192 - 515),
    }));
    assert_eq!(take(&file), [1, 2]);
    assert_eq!(ring.next_avail(), at);
}
