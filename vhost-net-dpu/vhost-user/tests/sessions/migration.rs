//! Dirty logging in the order in which front-ends speak of it.

use std::{
    fs::File,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
};

use outboard_ring::driver::{Driver, GuestRam, RAM_START};
use vhost::vhost_user::message::FrontendReq;

use crate::frontend::{
    F_LOG_ALL, F_PROTOCOL_FEATURES, Frontend, NEED_REPLY, VERSION, event_fd, log_base, logged_vring_addr, memfd,
    message, single_region, vring_addr, words, working,
};

const LOG_LEN: u64 = 4096;
const FEATURES: u64 = 1 << 32 | F_PROTOCOL_FEATURES;

fn set_log(frontend: &Frontend, log: &File, len: u64, offset: u64) {
    let body = log_base(len, offset);
    // A reply of its own, and no acknowledgement beside it.
    frontend.send_raw(
        &message(FrontendReq::SET_LOG_BASE, VERSION | NEED_REPLY, &body),
        &[log.as_fd()],
    );
    assert_eq!(frontend.reply(FrontendReq::SET_LOG_BASE), body);
}

fn set_features(frontend: &Frontend, features: u64) {
    frontend.ask(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]);
}

/// Take the marks of a log that begins at `offset`.
fn take(log: &File, offset: u64) -> Vec<u64> {
    let mut bytes = vec![0; 4096];
    log.read_exact_at(&mut bytes, offset).unwrap();
    log.write_all_at(&[0; 4096], offset).unwrap();
    let bits = (0u64..).zip(&bytes);
    bits.flat_map(|(at, byte)| {
        (0..8)
            .filter(move |bit| byte & 1 << bit != 0)
            .map(move |bit| 8 * at + bit)
    })
    .collect()
}

fn page(addr: u64) -> u64 {
    addr / 4096
}

/// Add a chain whose answer comes to a page of its own, and let it be answered.
fn round_far(frontend: &Frontend, driver: &mut Driver, addr: u64) {
    let head = driver.add(&[], &[(addr, 4)]).unwrap();
    driver.publish();
    assert_eq!(frontend.log.answer(0), Ok(1));
    assert_eq!(driver.used(), Some((head, 4)));
}

/// As QEMU does it: SET_LOG_BASE, SET_FEATURES and SET_VRING_ADDR on the live queue, the same backwards when the
/// migration is cancelled, and the index at the end.
#[test]
fn logging_is_turned_on_and_off_under_a_live_queue() {
    let (frontend, ram, mut driver) = working();
    frontend.log.events();
    let far = ram.alloc(4096, 4096);
    let used = driver.config().used;
    let log = memfd(LOG_LEN + 8);
    set_log(&frontend, &log, LOG_LEN, 0);
    assert!(frontend.log.events().is_empty(), "not before LOG_ALL");
    round_far(&frontend, &mut driver, far);
    assert!(take(&log, 0).is_empty());

    set_features(&frontend, FEATURES | F_LOG_ALL);
    assert_eq!(frontend.log.events(), ["log 0"]);
    round_far(&frontend, &mut driver, far);
    assert_eq!(take(&log, 0), [page(far)], "the used ring is not logged yet");
    frontend.ask(FrontendReq::SET_VRING_ADDR, &logged_vring_addr(0, &driver, used), &[]);
    assert_eq!(frontend.log.events(), ["log 0"]);
    assert_eq!(take(&log, 0), [page(used)]);
    round_far(&frontend, &mut driver, far);
    assert_eq!(take(&log, 0), [page(used), page(far)]);

    // The guest's memory grows: first the log, then the memory.
    let second = GuestRam::at(8 << 20, 1 << 20);
    let larger = memfd(LOG_LEN * 2);
    set_log(&frontend, &larger, LOG_LEN * 2, 0);
    assert_eq!(frontend.log.events(), ["log 0"]);
    frontend.ask(
        FrontendReq::ADD_MEM_REG,
        &single_region(&second.spec()),
        &[second.file().as_fd()],
    );
    assert_eq!(frontend.log.events(), ["stop 0 at 4", "start 0 at 4"]);
    take(&larger, 0);
    round_far(&frontend, &mut driver, far);
    assert_eq!(
        take(&larger, 0),
        [page(used), page(far)],
        "a queue that starts logs at once"
    );
    assert!(take(&log, 0).is_empty(), "nothing comes to the former log");

    frontend.ask(FrontendReq::SET_VRING_ADDR, &vring_addr(0, &driver), &[]);
    set_features(&frontend, FEATURES);
    assert_eq!(frontend.log.events(), ["log 0", "no log 0"]);
    take(&larger, 0);
    round_far(&frontend, &mut driver, far);
    assert!(take(&larger, 0).is_empty());
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 6])
    );
    assert_eq!(driver.published_used(), 6, "it went on where it was all the time");
    frontend.close();
}

/// A queue that runs while logging is on and no log is there: what it wrote is unknown, so that all is marked.
#[test]
fn writes_before_the_log_comes_are_not_lost() {
    let (frontend, _ram, mut driver) = working();
    set_features(&frontend, FEATURES | F_LOG_ALL);
    frontend.round(0, &mut driver);
    let log = memfd(LOG_LEN);
    set_log(&frontend, &log, LOG_LEN, 0);
    let all: Vec<u64> = (page(RAM_START)..page(RAM_START + (1 << 20))).collect();
    assert_eq!(take(&log, 0), all);
    // Once.
    set_log(&frontend, &log, LOG_LEN, 0);
    assert!(take(&log, 0).is_empty());
    frontend.close();
}

/// QEMU starts a device in the middle of a migration with LOG_ALL in the first features and the log at the end.
#[test]
fn a_queue_may_start_with_logging_on() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, 0);
    let used = driver.config().used;
    let frontend = Frontend::new().negotiated();
    set_features(&frontend, FEATURES | F_LOG_ALL);
    frontend.set_memory(&[&ram]);
    let log = memfd(LOG_LEN);
    frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[0, 8]), &[]);
    frontend.ask(FrontendReq::SET_VRING_ADDR, &logged_vring_addr(0, &driver, used), &[]);
    frontend.ask(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes(), &[event_fd().as_fd()]);
    set_log(&frontend, &log, LOG_LEN, 0);
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    {
        let seen = frontend.log.seen();
        assert_eq!(
            seen.running[&0].features, FEATURES,
            "LOG_ALL is the session's, not the device's"
        );
        assert_eq!(seen.running[&0].log.as_ref().unwrap().used_addr, Some(used));
    }
    assert_eq!(take(&log, 0), [page(used)]);
    frontend.round(0, &mut driver);
    assert!(take(&log, 0).contains(&page(used)));
    frontend.close();
}

/// The vhost crate, as cloud-hypervisor uses it.
#[test]
fn the_vhost_crate_turns_logging_on() {
    use vhost::{
        VhostBackend, VhostUserDirtyLogRegion,
        vhost_user::{VhostUserFrontend, VhostUserProtocolFeatures, message::VhostUserHeaderFlag},
    };
    let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut device = crate::device::Echo {
        log: Default::default(),
        has_config: true,
    };
    let served = std::thread::spawn(move || outboard_vhost_user::serve(other, &mut device));
    let mut frontend = vhost::vhost_user::Frontend::from_stream(stream, 4);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features & !F_LOG_ALL).unwrap();
    assert!(
        frontend
            .get_protocol_features()
            .unwrap()
            .contains(VhostUserProtocolFeatures::LOG_SHMFD)
    );
    frontend
        .set_protocol_features(VhostUserProtocolFeatures::LOG_SHMFD | VhostUserProtocolFeatures::REPLY_ACK)
        .unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let log = memfd(LOG_LEN);
    let region = VhostUserDirtyLogRegion {
        mmap_size: LOG_LEN,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    frontend.set_log_base(0, Some(region)).unwrap();
    frontend.set_features(features).unwrap();
    drop(frontend);
    assert!(matches!(
        served.join().unwrap(),
        outboard_vhost_user::SessionEnd::Closed
    ));
}
