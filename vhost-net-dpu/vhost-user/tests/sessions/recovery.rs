//! What outlives a session: requests in flight; and what a session does besides queues.

use std::{
    fs::File,
    io::Read,
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use outboard_ring::{
    Chain,
    driver::{Driver, GuestRam},
};
use vhost::vhost_user::message::FrontendReq;

use crate::{
    device::{QUEUE_COUNT, QUEUE_SIZE_MAX},
    frontend::{Frontend, NEED_REPLY, VERSION, event_fd, inflight, message, words, working},
};

/// Ask for a region and hand it back, as front-ends do.
pub fn set_region(frontend: &Frontend) -> File {
    let ask = inflight(0, 0, QUEUE_COUNT, QUEUE_SIZE_MAX);
    let (reply, fd) = frontend.get_fd(FrontendReq::GET_INFLIGHT_FD, &ask);
    let file = File::from(fd);
    let len = file.metadata().unwrap().len();
    assert_eq!(reply, inflight(len, 0, QUEUE_COUNT, QUEUE_SIZE_MAX));
    frontend.ask(FrontendReq::SET_INFLIGHT_FD, &reply, &[file.as_fd()]);
    file
}

fn start(ram: &GuestRam, driver: &Driver, region: &File) -> Frontend {
    let frontend = Frontend::new().negotiated();
    let len = region.metadata().unwrap().len();
    frontend.ask(
        FrontendReq::SET_INFLIGHT_FD,
        &inflight(len, 0, QUEUE_COUNT, QUEUE_SIZE_MAX),
        &[region.as_fd()],
    );
    frontend.set_memory(&[ram]);
    frontend.set_up_queue(0, driver);
    frontend
}

/// Pop chains of queue 0 and give some back, by their place among those popped.
pub fn serve_some(frontend: &Frontend, pop: usize, give_back: &[usize]) -> Vec<u16> {
    let mut seen = frontend.log.seen();
    let ring = &mut seen.running.get_mut(&0).unwrap().ring;
    let mut chains: Vec<Chain> = (0..pop).map(|_| Chain::new()).collect();
    for chain in &mut chains {
        assert_eq!(ring.pop(chain), Ok(true));
    }
    for &nth in give_back {
        ring.push_used(&chains[nth], 0).unwrap();
    }
    ring.publish().unwrap();
    chains.iter().map(Chain::head).collect()
}

/// The first session ends with A in flight and B, C done. The second is told base 0, and goes on with A and then D.
#[test]
fn what_was_in_flight_is_done_again_whatever_the_base() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, 0);
    let first = Frontend::new().negotiated();
    let region = set_region(&first);
    first.set_memory(&[&ram]);
    first.set_up_queue(0, &driver);
    let heads: Vec<u16> = (0..3).map(|_| driver.add_bytes(&[b"x"], &[4]).unwrap().head).collect();
    driver.publish();
    assert_eq!(serve_some(&first, 3, &[1, 2]), heads);
    first.close();
    assert_eq!(
        (driver.used(), driver.used()),
        (Some((heads[1], 0)), Some((heads[2], 0)))
    );

    let fresh = driver.add_bytes(&[b"y"], &[4]).unwrap().head;
    driver.publish();
    let second = start(&ram, &driver, &region);
    assert_eq!(second.log.events(), ["start 0 at 3"]);
    assert_eq!(serve_some(&second, 2, &[0, 1]), [heads[0], fresh]);
    assert_eq!(second.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])), words(&[0, 4]));
    second.close();

    // Control: without the region the second session does all of them again.
    let control = Frontend::new().negotiated();
    control.set_memory(&[&ram]);
    control.set_up_queue(0, &driver);
    assert_eq!(control.log.events(), ["start 0 at 0"]);
    control.close();
}

/// Queues are stopped and started under one session: nothing is done twice.
#[test]
fn a_region_does_not_disturb_queues_that_stop_and_start() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, 0);
    let frontend = Frontend::new().negotiated();
    let _region = set_region(&frontend);
    frontend.set_memory(&[&ram]);
    frontend.set_up_queue(0, &driver);
    for _ in 0..20 {
        frontend.round(0, &mut driver);
        frontend.set_memory(&[&ram]);
        frontend.round(0, &mut driver);
        frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 0]), &[]);
        frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    }
    frontend.round(0, &mut driver);
    frontend.close();
}

/// A queue that its guest broke leaves requests that nobody answers any more. A driver that was reset begins without
/// them; one that was only paused has them still.
#[test]
fn a_driver_that_was_reset_has_nothing_in_flight_though_its_former_queue_was_broken() {
    let ram = GuestRam::new(1 << 20);
    let mut broken = Driver::new(&ram, 8, 0);
    let frontend = Frontend::new().negotiated();
    let region = set_region(&frontend);
    frontend.set_memory(&[&ram]);
    frontend.set_up_queue(0, &broken);
    for _ in 0..3 {
        broken.add_bytes(&[b"x"], &[4]).unwrap();
    }
    broken.publish();
    let heads = serve_some(&frontend, 3, &[1]);
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 3])
    );

    frontend.set_up_queue_at(0, &broken, 3);
    assert_eq!(frontend.log.events(), ["start 0 at 0", "stop 0 at 3", "start 0 at 3"]);
    assert_eq!(serve_some(&frontend, 2, &[]), [heads[0], heads[2]]);
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 3])
    );

    let mut driver = Driver::new(&ram, 8, 0);
    frontend.set_up_queue(0, &driver);
    assert_eq!(frontend.log.events(), ["stop 0 at 3", "start 0 at 0"]);
    for _ in 0..10 {
        frontend.round(0, &mut driver);
    }

    // The same by a reset of the whole device, after which the front-end gives the region back.
    driver.add_bytes(&[b"x"], &[4]).unwrap();
    driver.publish();
    serve_some(&frontend, 1, &[]);
    frontend.ask(FrontendReq::RESET_DEVICE, &[], &[]);
    let features = 1u64 << 32 | crate::frontend::F_PROTOCOL_FEATURES;
    frontend.ask(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]);
    let len = region.metadata().unwrap().len();
    let body = inflight(len, 0, QUEUE_COUNT, QUEUE_SIZE_MAX);
    frontend.ask(FrontendReq::SET_INFLIGHT_FD, &body, &[region.as_fd()]);
    let mut driver = Driver::new(&ram, 8, 0);
    frontend.set_up_queue(0, &driver);
    assert_eq!(frontend.log.events(), ["stop 0 at 11", "reset", "start 0 at 0"]);
    frontend.round(0, &mut driver);
    frontend.close();
}

/// The vhost crate, as cloud-hypervisor uses it.
#[test]
fn the_vhost_crate_gets_and_sets_a_region_and_a_channel_and_resets() {
    use vhost::{
        VhostBackend,
        vhost_user::{
            VhostUserFrontend,
            message::{VhostUserHeaderFlag, VhostUserInflight},
        },
    };
    let (stream, other) = UnixStream::pair().unwrap();
    let log = crate::device::Log::default();
    let mut device = crate::device::Echo {
        log: log.clone(),
        has_config: true,
    };
    let served = std::thread::spawn(move || outboard_vhost_user::serve(other, &mut device));
    let mut frontend = vhost::vhost_user::Frontend::from_stream(stream, 4);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features).unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(offered).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);

    let asked = VhostUserInflight::new(0, 0, 2, 64);
    let (region, file) = frontend.get_inflight_fd(&asked).unwrap();
    assert_eq!(region.mmap_size, file.metadata().unwrap().len());
    assert_eq!((region.num_queues, region.queue_size), (2, 64));
    frontend
        .set_inflight_fd(&region, std::os::fd::AsRawFd::as_raw_fd(&file))
        .unwrap();

    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    assert!(log.seen().channel.is_some());
    frontend.reset_device().unwrap();
    assert_eq!(log.events(), ["reset"]);
    drop((frontend, theirs));
    assert!(matches!(
        served.join().unwrap(),
        outboard_vhost_user::SessionEnd::Closed
    ));
    assert!(log.seen().channel.is_none(), "the channel ends with the session");
    assert_eq!((&ours).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_reset_device_is_as_at_the_beginning() {
    let (frontend, ram, mut driver) = working();
    frontend.log.events();
    let more = driver.add_bytes(&[b"x"], &[4]).unwrap();
    driver.publish();
    frontend.ask(FrontendReq::RESET_DEVICE, &[], &[]);
    assert_eq!(frontend.log.events(), ["stop 0 at 1", "reset"]);
    assert_eq!(driver.used(), None, "{more:?} is not touched any more");
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 0])
    );
    // The driver begins anew; the memory is known, the features are not.
    let mut driver = Driver::new(&ram, 16, 0);
    frontend.set_up_queue(0, &driver);
    assert!(frontend.log.events().is_empty());
    let features = 1u64 << 32 | crate::frontend::F_PROTOCOL_FEATURES;
    frontend.ask(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]);
    assert_eq!(frontend.log.events(), ["start 0 at 0"]);
    frontend.round(0, &mut driver);
    frontend.close();
}

#[test]
fn an_mtu_is_told_to_the_device_and_may_be_refused() {
    let (frontend, ..) = working();
    frontend.log.events();
    frontend.ask(FrontendReq::NET_SET_MTU, &1500u64.to_ne_bytes(), &[]);
    assert_eq!(frontend.log.events(), ["mtu 1500"]);
    frontend.send_raw(
        &message(FrontendReq::NET_SET_MTU, VERSION | NEED_REPLY, &12u64.to_ne_bytes()),
        &[],
    );
    assert_eq!(frontend.reply(FrontendReq::NET_SET_MTU), 1u64.to_ne_bytes());
    frontend.assert_alive();
    frontend.close();
}

#[test]
fn config_changes_are_announced_without_waiting_for_anybody() {
    let (frontend, ..) = working();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    frontend.ask(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    let channel = frontend.log.seen().channel.clone().unwrap();
    channel.config_changed();
    let mut announced = [0; 12];
    ours.read_exact(&mut announced).unwrap();
    // CONFIG_CHANGE_MSG of version 1, without NEED_REPLY and without a body.
    assert_eq!(announced, *words(&[2, 1, 0]));

    // Nobody reads, and whoever shares our end clears O_NONBLOCK; nobody is left at all.
    theirs.set_nonblocking(false).unwrap();
    let start = std::time::Instant::now();
    (0..10_000).for_each(|_| channel.config_changed());
    drop(ours);
    channel.config_changed();
    // Writing to nobody would be for ever.
    assert!(start.elapsed() < Duration::from_secs(60));
    frontend.assert_alive();
    frontend.close();
}

/// Each queue of a device with several pairs runs by itself.
#[test]
fn queues_of_a_device_are_enabled_and_disabled_one_by_one() {
    let ram = GuestRam::new(1 << 20);
    let mut drivers: Vec<Driver> = (0..QUEUE_COUNT).map(|_| Driver::new(&ram, 8, 0)).collect();
    let frontend = Frontend::new().negotiated();
    assert_eq!(
        frontend.get(FrontendReq::GET_QUEUE_NUM, &[]),
        u64::from(QUEUE_COUNT).to_ne_bytes()
    );
    frontend.set_memory(&[&ram]);
    for (index, driver) in (0..).zip(&drivers) {
        frontend.set_up_queue(index, driver);
    }
    frontend.log.events();
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[2, 0]), &[]);
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[3, 0]), &[]);
    assert_eq!(frontend.log.events(), ["stop 2 at 0", "stop 3 at 0"]);
    for (index, driver) in (0..2).zip(&mut drivers) {
        frontend.round(index, driver);
    }
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[2, 1]), &[]);
    frontend.ask(FrontendReq::SET_VRING_KICK, &3u64.to_ne_bytes(), &[event_fd().as_fd()]);
    assert_eq!(frontend.log.events(), ["start 2 at 0"], "3 is still disabled");
    frontend.round(2, &mut drivers[2]);
    frontend.close();
}
