//! Front-ends that keep the protocol.

use std::os::fd::{AsFd, AsRawFd};

use outboard_ring::{
    REGION_COUNT_MAX,
    driver::{Driver, GuestRam, RAM_START, USER_OFFSET},
};
use outboard_vhost_user::{SessionEnd, serve};
use vhost::{
    VhostBackend, VhostUserMemoryRegionInfo, VringConfigData,
    vhost_user::{
        VhostUserFrontend, VhostUserProtocolFeatures,
        message::{FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag},
    },
};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    device::{CONFIG, Echo, FEATURES, Log, PACKED, QUEUE_COUNT},
    frontend::{
        F_LOG_ALL, F_PROTOCOL_FEATURES, Frontend, PROTOCOL_FEATURES, event_fd, single_region, vring_addr, words,
        working,
    },
};

fn region_info(ram: &GuestRam) -> VhostUserMemoryRegionInfo {
    let spec = ram.spec();
    VhostUserMemoryRegionInfo {
        guest_phys_addr: spec.guest_phys_addr,
        memory_size: spec.len,
        userspace_addr: spec.user_addr,
        mmap_offset: spec.mmap_offset,
        mmap_handle: ram.file().as_raw_fd(),
    }
}

fn vring(driver: &Driver) -> VringConfigData {
    let config = driver.config();
    VringConfigData {
        queue_max_size: config.size,
        queue_size: config.size,
        flags: 0,
        desc_table_addr: config.desc + USER_OFFSET,
        used_ring_addr: config.used + USER_OFFSET,
        avail_ring_addr: config.avail + USER_OFFSET,
        log_addr: None,
    }
}

/// The front-end of the vhost crate, which cloud-hypervisor and others use.
#[test]
fn the_vhost_crates_frontend_is_served() {
    let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let log = Log::default();
    let mut device = Echo {
        log: log.clone(),
        has_config: true,
    };
    let served = std::thread::spawn(move || serve(other, &mut device));
    let mut frontend = vhost::vhost_user::Frontend::from_stream(stream, QUEUE_COUNT.into());

    frontend.set_owner().unwrap();
    assert_eq!(
        frontend.get_features().unwrap(),
        FEATURES | PACKED | F_PROTOCOL_FEATURES | F_LOG_ALL
    );
    frontend.set_features(FEATURES | F_PROTOCOL_FEATURES).unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    assert_eq!(offered.bits(), PROTOCOL_FEATURES);
    frontend.set_protocol_features(offered).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(frontend.get_queue_num().unwrap(), u64::from(QUEUE_COUNT));
    assert_eq!(frontend.get_max_mem_slots().unwrap(), REGION_COUNT_MAX as u64);

    let (header, config) = frontend
        .get_config(7, 5, VhostUserConfigFlags::empty(), &[0; 5])
        .unwrap();
    assert_eq!(
        ({ header.offset }, { header.size }, config.as_slice()),
        (7, 5, b"space".as_slice())
    );
    frontend.set_config(3, VhostUserConfigFlags::WRITABLE, b"abc").unwrap();
    assert_eq!(log.seen().written_config, [(3, b"abc".to_vec())]);

    let ram = GuestRam::new(1 << 20);
    let second = GuestRam::at(RAM_START + (1 << 20), 1 << 20);
    let mut drivers = [Driver::new(&ram, 8, FEATURES), Driver::new(&second, 16, FEATURES)];
    frontend
        .set_mem_table(&[region_info(&ram), region_info(&second)])
        .unwrap();
    for (index, driver) in drivers.iter().enumerate() {
        let (call, kick, error) = (
            EventFd::new(0).unwrap(),
            EventFd::new(0).unwrap(),
            EventFd::new(0).unwrap(),
        );
        frontend.set_vring_num(index, driver.config().size).unwrap();
        frontend.set_vring_addr(index, &vring(driver)).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        frontend.set_vring_call(index, &call).unwrap();
        frontend.set_vring_err(index, &error).unwrap();
        frontend.set_vring_kick(index, &kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }
    assert_eq!(log.events(), ["start 0 at 0", "start 1 at 0"]);
    for (index, driver) in (0..).zip(&mut drivers) {
        let added = driver.add_bytes(&[b"ping"], &[4]).unwrap();
        driver.publish();
        assert_eq!(log.answer(index), Ok(1));
        assert_eq!(driver.used(), Some((added.head, 4)));
    }
    assert_eq!(frontend.get_vring_base(0).unwrap(), 1);
    drop(frontend);
    assert!(matches!(served.join().unwrap(), SessionEnd::Closed));
    assert_eq!(log.events(), ["stop 0 at 1", "stop 1 at 1"]);
    assert!(log.seen().closed);
}

#[test]
fn a_queue_stops_and_goes_on_where_it_was() {
    let (frontend, _ram, mut driver) = working();
    frontend.log.events();
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 1])
    );
    assert_eq!(
        driver.published_used(),
        1,
        "the index is that of the used ring: nothing was left in flight"
    );
    // Asked again, it answers the same.
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 1])
    );
    // It needs a new kick descriptor.
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    assert_eq!(frontend.log.events(), ["stop 0 at 1"]);
    frontend.ask(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes(), &[event_fd().as_fd()]);
    assert_eq!(frontend.log.events(), ["start 0 at 1"]);
    frontend.round(0, &mut driver);
    // Disabled and enabled, it keeps its descriptors.
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 0]), &[]);
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    assert_eq!(frontend.log.events(), ["stop 0 at 2", "start 0 at 2"]);
    frontend.round(0, &mut driver);
    frontend.close();
}

#[test]
fn rings_start_enabled_only_without_protocol_features() {
    let ram = GuestRam::new(1 << 20);
    let driver = Driver::new(&ram, 8, 0);
    let start = |features: u64| {
        let frontend = Frontend::new();
        frontend.send(
            FrontendReq::SET_PROTOCOL_FEATURES,
            &PROTOCOL_FEATURES.to_ne_bytes(),
            &[],
        );
        frontend.ask(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]);
        frontend.set_memory(&[&ram]);
        frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[0, 8]), &[]);
        frontend.ask(FrontendReq::SET_VRING_ADDR, &vring_addr(0, &driver), &[]);
        frontend.ask(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes(), &[event_fd().as_fd()]);
        frontend
    };
    let without = start(1 << 32);
    assert_eq!(without.log.events(), ["start 0 at 0"]);
    assert_eq!(without.log.seen().running[&0].features, 1 << 32);
    without.close();

    let with = start(1 << 32 | F_PROTOCOL_FEATURES);
    assert!(with.log.events().is_empty());
    with.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    assert_eq!(with.log.events(), ["start 0 at 0"]);
    with.close();
}

/// In QEMU's order for a network device: enabled before features and memory, the call descriptor after the kick.
#[test]
fn queues_may_be_enabled_long_before_they_can_start() {
    let ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&ram, 8, 0);
    let frontend = Frontend::start(false, None);
    let features = frontend.get(FrontendReq::GET_FEATURES, &[]).try_into().unwrap();
    let features = (u64::from_ne_bytes(features) & !PACKED).to_ne_bytes();
    let offered = frontend.get(FrontendReq::GET_PROTOCOL_FEATURES, &[]);
    frontend.send(FrontendReq::SET_PROTOCOL_FEATURES, &offered, &[]);
    frontend.send(FrontendReq::SET_OWNER, &[], &[]);
    let masked = event_fd();
    frontend.send(FrontendReq::SET_VRING_CALL, &0u64.to_ne_bytes(), &[masked.as_fd()]);
    frontend.send(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
    frontend.ask(FrontendReq::SET_FEATURES, &features, &[]);
    frontend.set_memory(&[&ram]);
    frontend.send(FrontendReq::SET_VRING_NUM, &words(&[0, 8]), &[]);
    frontend.send(FrontendReq::SET_VRING_BASE, &words(&[0, 0]), &[]);
    frontend.send(FrontendReq::SET_VRING_ADDR, &vring_addr(0, &driver), &[]);
    frontend.send(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes(), &[event_fd().as_fd()]);
    frontend.ask(FrontendReq::SET_VRING_CALL, &0u64.to_ne_bytes(), &[event_fd().as_fd()]);
    assert_eq!(frontend.log.events(), ["start 0 at 0", "call 0"]);
    frontend.round(0, &mut driver);
    // No call descriptor: the driver polls.
    frontend.ask(FrontendReq::SET_VRING_CALL, &0x100u64.to_ne_bytes(), &[]);
    assert!(frontend.log.seen().running[&0].call.is_none());
    frontend.close();
}

#[test]
fn memory_may_be_added_and_removed_under_running_queues() {
    let (frontend, _ram, mut driver) = working();
    frontend.log.events();
    let second = GuestRam::at(1 << 32, 1 << 20);
    let mut other = Driver::new(&second, 8, 0);
    frontend.ask(
        FrontendReq::ADD_MEM_REG,
        &single_region(&second.spec()),
        &[second.file().as_fd()],
    );
    assert_eq!(
        frontend.log.events(),
        ["stop 0 at 1", "start 0 at 1"],
        "it goes on over the new table"
    );
    frontend.round(0, &mut driver);
    frontend.set_up_queue(1, &other);
    frontend.round(1, &mut other);
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[1, 0])),
        words(&[1, 1])
    );
    // With or without a descriptor, which older front-ends pass.
    frontend.ask(
        FrontendReq::REM_MEM_REG,
        &single_region(&second.spec()),
        &[second.file().as_fd()],
    );
    frontend.round(0, &mut driver);
    frontend.ask(
        FrontendReq::ADD_MEM_REG,
        &single_region(&second.spec()),
        &[second.file().as_fd()],
    );
    frontend.ask(FrontendReq::REM_MEM_REG, &single_region(&second.spec()), &[]);
    frontend.round(0, &mut driver);
    frontend.close();
}

/// QEMU describes a region anew, when it grows or moves, by removing it and adding the new one.
#[test]
fn a_queue_whose_region_is_removed_and_added_again_goes_on() {
    let (frontend, ram, mut driver) = working();
    let second = GuestRam::at(1 << 32, 1 << 20);
    frontend.ask(
        FrontendReq::ADD_MEM_REG,
        &single_region(&second.spec()),
        &[second.file().as_fd()],
    );
    frontend.log.events();
    frontend.ask(FrontendReq::REM_MEM_REG, &single_region(&ram.spec()), &[]);
    assert_eq!(frontend.log.events(), ["stop 0 at 1"]);
    frontend.ask(
        FrontendReq::ADD_MEM_REG,
        &single_region(&ram.spec()),
        &[ram.file().as_fd()],
    );
    assert_eq!(frontend.log.events(), ["start 0 at 1"]);
    frontend.round(0, &mut driver);
    frontend.close();
}

#[test]
fn config_is_exactly_as_long_as_asked_for() {
    let frontend = Frontend::new().negotiated();
    let get = |offset: u32, len: u32| {
        let body: Vec<u8> = words(&[offset, len, 0])
            .into_iter()
            .chain(vec![0; len as usize])
            .collect();
        frontend.get(FrontendReq::GET_CONFIG, &body)
    };
    assert_eq!(get(0, 12)[12..], *CONFIG);
    // Fields of features that the device does not have are zeros.
    let long = get(0, 60);
    assert_eq!((&long[12..24], &long[24..]), (CONFIG, [0; 48].as_slice()));
    assert_eq!(get(100, 4)[12..], [0; 4]);
    // Past the largest config space there is nothing, and the session goes on.
    assert_eq!(get(253, 4), words(&[253, 0, 0]));
    assert_eq!(get(0, 257), words(&[0, 0, 0]));
    frontend.close();
}

#[test]
fn a_refused_write_to_config_does_not_end_the_session() {
    let frontend = Frontend::new().negotiated();
    let body: Vec<u8> = words(&[0, 4, 1]).into_iter().chain(*b"evil").collect();
    frontend.send_raw(&crate::frontend::message(FrontendReq::SET_CONFIG, 9, &body), &[]);
    assert_ne!(frontend.reply(FrontendReq::SET_CONFIG), 0u64.to_ne_bytes());
    frontend.assert_alive();
    assert!(frontend.log.seen().written_config.is_empty());
    frontend.close();
}

#[test]
fn acknowledgements_come_only_where_negotiated_and_asked_for() {
    let frontend = Frontend::new();
    frontend.send_raw(&crate::frontend::message(FrontendReq::SET_OWNER, 9, &[]), &[]);
    assert_eq!(
        frontend.get(FrontendReq::GET_FEATURES, &[]).len(),
        8,
        "REPLY_ACK was not negotiated"
    );
    let only_ack = VhostUserProtocolFeatures::REPLY_ACK.bits();
    frontend.ask(FrontendReq::SET_PROTOCOL_FEATURES, &only_ack.to_ne_bytes(), &[]);
    frontend.ask(FrontendReq::SET_FEATURES, &(1u64 << 32).to_ne_bytes(), &[]);
    frontend.close();
}

#[test]
fn messages_may_come_in_pieces() {
    let frontend = Frontend::new().negotiated();
    frontend.drip(&crate::frontend::message(
        FrontendReq::SET_VRING_NUM,
        9,
        &words(&[1, 8]),
    ));
    assert_eq!(frontend.reply(FrontendReq::SET_VRING_NUM), 0u64.to_ne_bytes());
    frontend.close();
}

#[test]
fn reset_owner_stops_and_forgets_the_queues() {
    let (frontend, _ram, driver) = working();
    frontend.log.events();
    frontend.ask(FrontendReq::RESET_OWNER, &[], &[]);
    assert_eq!(frontend.log.events(), ["stop 0 at 1"]);
    assert_eq!(
        frontend.get(FrontendReq::GET_VRING_BASE, &words(&[0, 0])),
        words(&[0, 0])
    );
    frontend.ask(FrontendReq::SET_OWNER, &[], &[]);
    frontend.set_up_queue(0, &driver);
    assert_eq!(frontend.log.events(), ["start 0 at 0"]);
    frontend.close();
}
