//! Making, checking and reading in-flight regions.

use rustix::{fs::fcntl_get_seals, io::pwrite};

use super::*;

fn region() -> Inflight {
    Inflight::make(false, 2, 8, 4).unwrap()
}

fn mark(region: &Inflight, queue: u64, entry: u64, inflight: u8, next: u16) {
    let at = queue * queue_len(false, 8) + 16 + entry * 16;
    let mut bytes = [0; 8];
    bytes[0] = inflight;
    bytes[6..8].copy_from_slice(&next.to_le_bytes());
    pwrite(&region.file, &bytes, at).unwrap();
}

fn header(region: &Inflight, queue: u64, last_batch_head: u16, used_idx: u16) {
    let at = queue * queue_len(false, 8) + 12;
    pwrite(&region.file, &last_batch_head.to_le_bytes(), at).unwrap();
    pwrite(&region.file, &used_idx.to_le_bytes(), at + 2).unwrap();
}

/// Size, offset, queues, entries.
type Fields = (u64, u64, u16, u16);

fn passed(region: &Inflight, change: impl FnOnce(&mut Fields)) -> Result<Inflight, InflightError> {
    let mut fields = (region.mmap_size, 0, 2, 8);
    change(&mut fields);
    let payload = Payload::Inflight {
        mmap_size: fields.0,
        mmap_offset: fields.1,
        queue_count: fields.2,
        queue_size: fields.3,
    };
    Inflight::passed(false, &payload, region.file.clone(), 4)
}

#[test]
fn a_region_is_as_long_as_its_queues_need_and_cannot_change_its_length() {
    for (size, len) in [(8, 192), (128, 2112), (256, 4160), (1024, 16448)] {
        let region = Inflight::make(false, 3, size, 4).unwrap();
        assert_eq!(region.mmap_size, 3 * len);
        assert_eq!(u64::try_from(fstat(&region.file).unwrap().st_size).unwrap(), 3 * len);
        let seals = fcntl_get_seals(&region.file).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
        assert!(ftruncate(&region.file, 0).is_err());
    }
}

#[test]
fn marks_are_counted_per_queue() {
    let region = region();
    assert_eq!((region.in_flight(0, 0), region.in_flight(1, 0)), (Some(0), Some(0)));
    mark(&region, 1, 0, 1, 0);
    mark(&region, 1, 7, 1, 0);
    assert_eq!((region.in_flight(0, 0), region.in_flight(1, 0)), (Some(0), Some(2)));
    assert_eq!(region.in_flight(2, 0), None);
}

#[test]
fn the_last_batch_is_done_even_if_its_marks_still_stand() {
    let region = region();
    // 3 → 5 were published as one batch, 2 is in flight.
    for entry in [2, 3, 5] {
        mark(&region, 0, entry, 1, if entry == 3 { 5 } else { 0 });
    }
    header(&region, 0, 3, 40);
    assert_eq!(region.in_flight(0, 40), Some(3), "nothing of the batch was published");
    assert_eq!(region.in_flight(0, 42), Some(1));
    header(&region, 0, 3, 65_535);
    assert_eq!(region.in_flight(0, 1), Some(1), "indices wrap");
}

#[test]
fn rubbish_in_a_region_gives_a_number_and_no_more() {
    let region = region();
    for entry in 0..8 {
        mark(&region, 0, entry, 1, u16::MAX);
    }
    header(&region, 0, u16::MAX, 0);
    assert_eq!(region.in_flight(0, 30_000), Some(8));
    // A chain that runs in a circle.
    mark(&region, 0, 1, 1, 1);
    header(&region, 0, 1, 0);
    assert_eq!(region.in_flight(0, 30_000), Some(7));
}

#[test]
fn hostile_case_8_what_a_vmm_passes_is_checked() {
    let region = region();
    assert_eq!(passed(&region, |_| ()).unwrap().payload(), region.payload());
    type Case = (fn(&mut Fields), InflightError);
    let cases: [Case; 8] = [
        (|f| f.2 = 0, InflightError::Queues(0, 4)),
        (|f| f.2 = 5, InflightError::Queues(5, 4)),
        (|f| f.3 = 0, InflightError::Size(0)),
        (|f| f.3 = 6, InflightError::Size(6)),
        (
            |f| f.0 = 383,
            InflightError::TooShort {
                given: 383,
                needed: 384,
            },
        ),
        (|f| f.0 = 385, InflightError::Outside),
        (|f| f.1 = 1, InflightError::Outside),
        (|f| f.1 = u64::MAX, InflightError::Outside),
    ];
    for (change, error) in cases {
        assert_eq!(passed(&region, change).unwrap_err(), error);
    }
    assert_eq!(passed(&region, |_| ()).unwrap().mmap_size, 384);
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let payload = Payload::Inflight {
        mmap_size: 384,
        mmap_offset: 0,
        queue_count: 2,
        queue_size: 8,
    };
    let socket = std::sync::Arc::new(std::os::fd::OwnedFd::from(socket));
    assert_eq!(
        Inflight::passed(false, &payload, socket, 4).unwrap_err(),
        InflightError::Outside
    );
}
