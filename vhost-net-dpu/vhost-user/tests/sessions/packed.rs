//! Sessions with packed rings: where they begin and go on, and what is in flight.

use std::os::fd::AsFd;

use outboard_ring::driver::{Driver, GuestRam};
use vhost::vhost_user::message::FrontendReq;

use crate::{
    device::{PACKED, QUEUE_COUNT, QUEUE_SIZE_MAX},
    frontend::{Frontend, inflight, words},
    recovery::{serve_some, set_region},
};

/// Both positions and both wrap counters travel (vhost-user, "Vring descriptor indices for packed virtqueues").
#[test]
fn a_packed_ring_goes_on_at_both_positions() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, PACKED);
    let frontend = Frontend::new().negotiated_with(PACKED);
    frontend.set_memory(&[&ram]);
    // DPDK's driver tells the available position alone.
    for base in [0x8000, 0x8000_8000] {
        frontend.set_up_queue_at(0, &driver, base);
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0]));
    }
    let mut base = driver.config().base;
    for _ in 0..9 {
        frontend.set_up_queue_at(0, &driver, base);
        frontend.round(0, &mut driver);
        base = driver.base();
        assert_eq!(
            frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
            words(&[0, base])
        );
    }
    frontend.close();
}

/// The first session ends with A in flight and B, C done, over a ring that B and C were written into as used.
#[test]
fn what_was_in_flight_on_a_packed_ring_is_done_again() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, PACKED);
    let first = Frontend::new().negotiated_with(PACKED);
    let region = set_region(&first);
    first.set_memory(&[&ram]);
    first.set_up_queue(0, &driver);
    let heads: Vec<u16> = (0..3).map(|_| driver.add_bytes(&[b"x"], &[4]).unwrap().head).collect();
    driver.publish();
    assert_eq!(serve_some(&first, 3, &[1, 2]), heads);
    // Killed: nobody says where the ring is.
    first.close();
    assert_eq!(
        (driver.used(), driver.used()),
        (Some((heads[1], 0)), Some((heads[2], 0)))
    );
    let fresh = driver.add_bytes(&[b"y"], &[4]).unwrap().head;
    driver.publish();

    let second = Frontend::new().negotiated_with(PACKED);
    let len = region.metadata().unwrap().len();
    let body = inflight(len, 0, QUEUE_COUNT, QUEUE_SIZE_MAX);
    second.ask(FrontendReq::SET_INFLIGHT_FD, &body, &[region.as_fd()]);
    second.set_memory(&[&ram]);
    second.set_up_queue(0, &driver);
    // Four descriptors were used, and the two of A are in flight.
    assert_eq!(second.log.events(), [format!("start 0 at {}", 0x8004_8006_u32)]);
    assert_eq!(serve_some(&second, 2, &[0, 1]), [heads[0], fresh]);
    assert_eq!((driver.used(), driver.used()), (Some((heads[0], 0)), Some((fresh, 0))));
    second.close();
}
