// Patterns are made by cutting numbers down to bytes; all lengths are small.
#![allow(clippy::cast_possible_truncation)]

use outboard_ring::driver::GuestRam;
use proptest::prelude::*;

use super::*;

proptest! {
    /// Any part of any pieces is those bytes of their concatenation.
    #[test]
    fn a_part_of_the_pieces_is_that_part_of_their_bytes(
        lens in proptest::collection::vec(0u32..300, 0..12),
        skip in 0u64..2000,
        len in 0u64..2000,
    ) {
        let ram = GuestRam::new(1 << 16);
        let mut all = Vec::new();
        let mut segments = Vec::new();
        for (n, &len) in lens.iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(3) ^ (n as u8) << 4).collect();
            let addr = ram.alloc(u64::from(len) + 7, 1);
            ram.memory().write(addr, &bytes).expect("it is mapped");
            segments.push(Segment { addr, len });
            all.extend(bytes);
        }
        let mut buffer = Buffer::new();
        let filled = buffer.fill(ram.memory(), &segments, skip, len);
        let (first, end) = (skip as usize, (skip + len) as usize);
        if len > 0 && end > all.len() {
            let too_short = matches!(filled, Err(BufferError::TooShort { .. }));
            prop_assert!(too_short);
            prop_assert!(buffer.is_empty() && buffer.memory().is_none());
            return Ok(());
        }
        prop_assert_eq!(filled, Ok(()));
        prop_assert_eq!(buffer.len(), len);
        let mut bytes = vec![0; len as usize];
        buffer.read_at(0, &mut bytes).expect("it is mapped");
        prop_assert_eq!(&bytes[..], if len == 0 { &[] } else { &all[first..end] });

        buffer.write_at(len / 2, &vec![0xee; len as usize]).expect("it is mapped");
        buffer.read_at(0, &mut bytes).expect("it is mapped");
        let half = (len / 2) as usize;
        prop_assert!(bytes[half..].iter().all(|&byte| byte == 0xee), "what is beyond the end is not copied");
        buffer.clear();
        prop_assert!(buffer.memory().is_none());
    }
}

#[test]
fn no_more_pieces_are_taken_than_there_is_room_for() {
    let ram = GuestRam::new(1 << 16);
    let segments = vec![
        Segment {
            addr: ram.alloc(8, 8),
            len: 1
        };
        SEGMENT_COUNT_MAX + 1
    ];
    let mut buffer = Buffer::new();
    let room = buffer.segments.capacity();
    assert_eq!(
        buffer.fill(ram.memory(), &segments, 0, SEGMENT_COUNT_MAX as u64),
        Ok(())
    );
    assert_eq!(
        buffer.fill(ram.memory(), &segments, 0, SEGMENT_COUNT_MAX as u64 + 1),
        Err(BufferError::TooManySegments)
    );
    assert_eq!(buffer.segments.capacity(), room, "nothing was allocated");
}
