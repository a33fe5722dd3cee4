use outboard_ring::{Segment, driver::GuestRam};
use proptest::prelude::*;

use super::*;

/// A flight of these pieces, which are in the guest's memory one after the other.
fn flight(ram: &GuestRam, lens: &[u32]) -> Flight {
    let total: u32 = lens.iter().sum();
    let start = ram.alloc(u64::from(total), 1);
    let mut addr = start;
    let mut segments = Vec::new();
    for &len in lens {
        segments.push(Segment { addr, len });
        addr += u64::from(len);
    }
    let mut buffer = Buffer::new();
    buffer
        .fill(ram.memory(), &segments, 0, u64::from(total))
        .expect("it is long enough");
    let mut flight = Flight::new();
    flight.locate(Some(&buffer)).expect("it is mapped");
    flight.request = Some(Request {
        tag: 0,
        op: Op::Write { durable: false },
        offset: 0,
        buffer,
    });
    flight
}

/// What is left to do: the first address, and how many bytes.
fn left(flight: &Flight) -> (usize, usize) {
    let iovecs = &flight.iovecs[flight.first..];
    (
        iovecs.first().map_or(0, |iovec| iovec.iov_base as usize),
        iovecs.iter().map(|iovec| iovec.iov_len).sum(),
    )
}

proptest! {
    /// However short the writes are, each goes on where the last one ended, and the sum of them is the request.
    #[test]
    fn short_transfers_go_on_where_they_ended(
        lens in proptest::collection::vec(1u32..2000, 1..20),
        shorts in proptest::collection::vec(1u32..5000, 1..100),
    ) {
        let ram = GuestRam::new(1 << 16);
        let mut flight = flight(&ram, &lens);
        let (start, total) = left(&flight);
        let mut done = 0;
        for short in shorts {
            let len = (short as usize).min(total - done);
            let over = flight.advance(Ok(u32::try_from(len).expect("small")), 3).expect("no error");
            done += len;
            prop_assert_eq!(flight.done_len, done as u64);
            prop_assert_eq!(over, done == total);
            if over {
                break;
            }
            prop_assert_eq!(left(&flight), (start + done, total - done));
        }
    }
}

#[test]
fn a_transfer_that_never_gets_on_fails() {
    let ram = GuestRam::new(1 << 16);
    let mut flight = flight(&ram, &[512, 512]);
    for _ in 0..3 {
        assert_eq!(flight.advance(Err(Errno::EAGAIN), 3), Ok(false));
    }
    assert_eq!(flight.advance(Ok(600), 3), Ok(false), "which begins the count anew");
    for _ in 0..3 {
        assert_eq!(flight.advance(Err(Errno::EINTR), 3), Ok(false));
    }
    let failed = IoError::System {
        call: "writev",
        errno: Errno::EINTR,
    };
    assert_eq!(flight.advance(Err(Errno::EINTR), 3), Err(failed));
    assert_eq!(
        flight.advance(Ok(0), 3),
        Err(IoError::System {
            call: "writev",
            errno: Errno::ENOSPC
        })
    );
}
