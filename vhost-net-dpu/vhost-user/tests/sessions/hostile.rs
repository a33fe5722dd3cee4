//! Front-ends that break the protocol. Each has a session that works beside it, and a control where one check is what
//! stops it.

use std::{
    fs::File,
    io::Write,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use outboard_controls::Check;
use outboard_ring::{
    GuestMemory, MemoryError, NotifyError, REGION_COUNT_MAX, RegionSpec, RingError,
    driver::{Driver, GuestRam},
};
use outboard_vhost_user::SessionError;
use vhost::vhost_user::message::FrontendReq;

use crate::{
    device::{QUEUE_COUNT, QUEUE_SIZE_MAX},
    frontend::{
        Frontend, VERSION, event_fd, log_base, logged_vring_addr, mem_table, memfd, message, single_region, vring_addr,
        words, working, working_without,
    },
};

const VRING_FDS: [FrontendReq; 3] = [
    FrontendReq::SET_VRING_KICK,
    FrontendReq::SET_VRING_CALL,
    FrontendReq::SET_VRING_ERR,
];

/// Send one request to a session that works. Returns why that ended; its neighbour goes on.
pub fn attack(request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) -> SessionError {
    let (neighbour, _ram, mut driver) = working();
    let (frontend, ..) = working();
    frontend.send(request, body, fds);
    let error = frontend.refused();
    neighbour.round(0, &mut driver);
    neighbour.close();
    error
}

fn spec(guest_phys_addr: u64, len: u64, file: File) -> RegionSpec {
    RegionSpec {
        guest_phys_addr,
        len,
        user_addr: guest_phys_addr,
        mmap_offset: 0,
        file,
    }
}

fn set_mem_table(spec: &RegionSpec) -> SessionError {
    attack(
        FrontendReq::SET_MEM_TABLE,
        &mem_table(std::slice::from_ref(spec)),
        &[spec.file.as_fd()],
    )
}

#[test]
fn h01_region_larger_than_its_file_ends_the_session() {
    let larger = spec(0, 1 << 20, memfd(4096));
    let error = set_mem_table(&larger);
    assert!(
        matches!(error, SessionError::Memory(MemoryError::OutsideFile { .. })),
        "{error}"
    );
    let error = attack(
        FrontendReq::ADD_MEM_REG,
        &single_region(&larger),
        &[larger.file.as_fd()],
    );
    assert!(
        matches!(error, SessionError::Memory(MemoryError::OutsideFile { .. })),
        "{error}"
    );

    let control = Frontend::without(Check::RegionInsideFile).negotiated();
    control.ask(
        FrontendReq::ADD_MEM_REG,
        &single_region(&larger),
        &[larger.file.as_fd()],
    );
    control.close();
}

#[test]
fn h02_memory_truncated_under_a_running_queue_fails_that_queue_only() {
    let (neighbour, _other_ram, mut other) = working();
    let (frontend, ram, mut driver) = working();
    driver.add_bytes(&[b"ping"], &[4]).unwrap();
    driver.publish();
    ram.file().set_len(0).unwrap();
    assert_eq!(frontend.log.answer(0), Err(RingError::MemoryVanished));
    assert_eq!(frontend.log.answer(0), Ok(0));
    neighbour.round(0, &mut other);
    frontend.close();
    neighbour.close();
}

#[test]
fn h04_descriptors_that_are_no_eventfds_end_the_session() {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds: [OwnedFd; 4] = [
        pipe.into(),
        socket.into(),
        memfd(4096).into(),
        File::open("/dev/null").unwrap().into(),
    ];
    for request in VRING_FDS {
        for fd in &fds {
            let error = attack(request, &0u64.to_ne_bytes(), &[fd.as_fd()]);
            assert!(
                matches!(
                    error,
                    SessionError::Notify {
                        index: 0,
                        source: NotifyError::NotEventFd { .. }
                    }
                ),
                "{error}"
            );
            let (control, ..) = working_without(Some(Check::EventfdOnly));
            control.ask(request, &0u64.to_ne_bytes(), &[fd.as_fd()]);
            control.close();
        }
    }
}

#[test]
fn h05_memory_whose_pages_may_never_come_ends_the_session() {
    let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.set_len(4096).unwrap();
    let region = spec(0, 4096, on_disk);
    let error = set_mem_table(&region);
    assert!(
        matches!(error, SessionError::Memory(MemoryError::NotMemoryFile { .. })),
        "{error}"
    );

    let control = Frontend::without(Check::MemoryFileOnly).negotiated();
    control.ask(
        FrontendReq::SET_MEM_TABLE,
        &mem_table(std::slice::from_ref(&region)),
        &[region.file.as_fd()],
    );
    control.close();
}

#[test]
fn h06_h31_h38_queue_indices_are_checked_in_every_message() {
    let driver = Driver::new(&GuestRam::new(1 << 20), 8, 0);
    let count = u32::from(QUEUE_COUNT);
    for index in [count, 255, 256, 0x1_0000, u32::MAX] {
        for (request, body) in [
            (FrontendReq::SET_VRING_NUM, words(&[index, 8])),
            (FrontendReq::SET_VRING_ADDR, vring_addr(index, &driver)),
            (FrontendReq::SET_VRING_BASE, words(&[index, 0])),
            (FrontendReq::GET_VRING_BASE, words(&[index, 0])),
            (FrontendReq::SET_VRING_ENABLE, words(&[index, 1])),
        ] {
            let error = attack(request, &body, &[]);
            assert!(
                matches!(error, SessionError::QueueIndex { index: i, .. } if i == index),
                "{request:?}: {error}"
            );
        }
    }
    let fd = event_fd();
    for request in VRING_FDS {
        for index in [u64::from(QUEUE_COUNT), 255] {
            let error = attack(request, &index.to_ne_bytes(), &[fd.as_fd()]);
            assert!(matches!(error, SessionError::QueueIndex { .. }), "{request:?}: {error}");
            let error = attack(request, &(index | 0x100).to_ne_bytes(), &[]);
            assert!(matches!(error, SessionError::QueueIndex { .. }), "{request:?}: {error}");
        }
        let error = attack(request, &0x200u64.to_ne_bytes(), &[fd.as_fd()]);
        assert!(
            matches!(error, SessionError::Value { value: 0x200, .. }),
            "{request:?}: {error}"
        );
    }
    // The last one that there is is fine.
    let frontend = Frontend::new().negotiated();
    frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[count - 1, 8]), &[]);
    frontend.close();

    let control = Frontend::without(Check::QueueIndex).negotiated();
    control.ask(FrontendReq::SET_VRING_NUM, &words(&[count, 8]), &[]);
    control.ask(FrontendReq::SET_VRING_CALL, &255u64.to_ne_bytes(), &[fd.as_fd()]);
    control.close();
}

#[test]
fn requests_that_are_not_served_end_the_session() {
    use FrontendReq as R;
    let fd = memfd(4096);
    let error = attack(R::SET_LOG_FD, &[], &[fd.as_fd()]);
    assert!(matches!(error, SessionError::Unknown { .. }), "{error}");
    for request in [R::SEND_RARP, R::SET_STATUS, R::GET_STATUS, R::VRING_KICK, R::IOTLB_MSG] {
        let error = attack(request, &[0; 8], &[]);
        assert!(matches!(error, SessionError::Unknown { .. }), "{request:?}: {error}");
    }
    let (frontend, ..) = working();
    frontend.send_raw(&words(&[4711, VERSION, 0]), &[]);
    assert!(matches!(frontend.refused(), SessionError::Unknown { request: 4711 }));
}

#[test]
fn h09_a_running_queue_is_not_changed() {
    let ram = GuestRam::new(1 << 20);
    let _first = Driver::new(&ram, 8, 0);
    let second = Driver::new(&ram, 8, 0);
    for (request, body) in [
        (FrontendReq::SET_VRING_NUM, words(&[0, 4])),
        (FrontendReq::SET_VRING_BASE, words(&[0, 7])),
        (FrontendReq::SET_VRING_ADDR, vring_addr(0, &second)),
    ] {
        let error = attack(request, &body, &[]);
        assert!(
            matches!(error, SessionError::QueueRuns { index: 0, .. }),
            "{request:?}: {error}"
        );
    }
    let error = attack(FrontendReq::SET_FEATURES, &(1u64 << 32).to_ne_bytes(), &[]);
    assert!(matches!(error, SessionError::FeaturesInUse), "{error}");

    let (control, _ram, mut driver) = working_without(Some(Check::QueueAtRest));
    control.ask(FrontendReq::SET_VRING_NUM, &words(&[0, 4]), &[]);
    control.ask(FrontendReq::SET_VRING_BASE, &words(&[0, 7]), &[]);
    control.round(0, &mut driver);
    control.close();
}

/// Memory, descriptors, logging and enablement change all the time while chains come and go: each comes back once.
#[test]
fn h09_traffic_goes_on_whatever_changes_around_it() {
    let (frontend, ram, mut driver) = working();
    let used = driver.config().used;
    let log = memfd(4096);
    let features = 1u64 << 32 | crate::frontend::F_PROTOCOL_FEATURES;
    let stop = AtomicBool::new(false);
    let answered = std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                count += frontend.log.answer_if_running(0).unwrap();
            }
            count + frontend.log.answer_if_running(0).unwrap()
        });
        let (mut added, mut returned) = (0, 0);
        for turn in 0..400u32 {
            while driver.add_bytes(&[b"ping"], &[4]).is_some() {
                added += 1;
            }
            driver.publish();
            match turn % 8 {
                0 => frontend.set_memory(&[&ram]),
                1 => frontend.ask(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes(), &[event_fd().as_fd()]),
                2 => frontend.ask(FrontendReq::SET_VRING_CALL, &0u64.to_ne_bytes(), &[event_fd().as_fd()]),
                3 => frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 0]), &[]),
                4 => frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]),
                5 => {
                    frontend.send(FrontendReq::SET_LOG_BASE, &log_base(4096, 0), &[log.as_fd()]);
                    frontend.reply(FrontendReq::SET_LOG_BASE);
                    let logging = features | crate::frontend::F_LOG_ALL;
                    frontend.ask(FrontendReq::SET_FEATURES, &logging.to_ne_bytes(), &[]);
                }
                6 => frontend.ask(FrontendReq::SET_VRING_ADDR, &logged_vring_addr(0, &driver, used), &[]),
                _ => frontend.ask(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]),
            }
            while let Some((_, len)) = driver.used() {
                assert_eq!(len, 4);
                returned += 1;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while returned < added && Instant::now() < deadline {
            returned += usize::from(driver.used().is_some());
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(returned, added);
        assert_eq!(driver.used(), None);
        (device.join().unwrap(), added)
    });
    assert_eq!(answered.0, answered.1, "each was taken once");
    frontend.round(0, &mut driver);
    frontend.close();
}

#[test]
fn h09_what_is_repeated_on_a_running_queue_changes_nothing() {
    let (frontend, _ram, mut driver) = working();
    frontend.log.events();
    frontend.ask(FrontendReq::SET_VRING_ADDR, &vring_addr(0, &driver), &[]);
    frontend.ask(FrontendReq::SET_FEATURES, &(1u64 << 32 | 1 << 30).to_ne_bytes(), &[]);
    assert!(frontend.log.events().is_empty());
    frontend.round(0, &mut driver);
    // There is one flag.
    let mut unknown = vring_addr(0, &driver);
    unknown[4] = 2;
    frontend.send(FrontendReq::SET_VRING_ADDR, &unknown, &[]);
    assert!(matches!(frontend.refused(), SessionError::Value { field: "flags", .. }));
}

#[test]
fn h09_a_memory_table_changed_under_traffic_moves_the_queues() {
    let (frontend, ram, mut driver) = working();
    for _ in 0..20 {
        frontend.set_memory(&[&ram]);
        frontend.round(0, &mut driver);
    }
    // One without the ring ends the session.
    let other = GuestRam::at(1 << 40, 1 << 20);
    let specs = [other.spec()];
    frontend.send(FrontendReq::SET_MEM_TABLE, &mem_table(&specs), &[specs[0].file.as_fd()]);
    assert!(matches!(frontend.refused(), SessionError::RingAddress { index: 0, .. }));
}

#[test]
fn h09_memory_removed_under_a_running_ring_stops_its_queue() {
    let (frontend, ram, _driver) = working();
    frontend.send(FrontendReq::REM_MEM_REG, &single_region(&ram.spec()), &[]);
    // Without any memory the queue rests; it does not run on what is gone.
    frontend.assert_alive();
    assert!(frontend.log.seen().running.is_empty());
    frontend.close();
}

#[test]
fn h10_wrapping_overlapping_and_empty_regions_end_the_session() {
    let file = memfd(8192);
    let wraps = spec(u64::MAX - 4095, 8192, file.try_clone().unwrap());
    assert!(matches!(
        set_mem_table(&wraps),
        SessionError::Memory(MemoryError::Wraps { .. })
    ));
    let empty = spec(0, 0, file.try_clone().unwrap());
    assert!(matches!(
        set_mem_table(&empty),
        SessionError::Memory(MemoryError::Empty { .. })
    ));
    let overlap = [spec(0, 8192, file.try_clone().unwrap()), spec(4096, 4096, file)];
    let fds = [overlap[0].file.as_fd(), overlap[1].file.as_fd()];
    let error = attack(FrontendReq::SET_MEM_TABLE, &mem_table(&overlap), &fds);
    assert!(
        matches!(error, SessionError::Memory(MemoryError::Overlap { .. })),
        "{error}"
    );
    let control = Frontend::without(Check::RegionsApart).negotiated();
    control.ask(FrontendReq::SET_MEM_TABLE, &mem_table(&overlap), &fds);
    control.close();
    let unknown = spec(0x77_0000, 4096, memfd(4096));
    let error = attack(FrontendReq::REM_MEM_REG, &single_region(&unknown), &[]);
    assert!(
        matches!(error, SessionError::Memory(MemoryError::NoSuchRegion { .. })),
        "{error}"
    );
}

/// Buffers may span regions that touch; a part of a ring may not, since it is accessed as one.
#[test]
fn h10_a_ring_that_spans_regions_ends_the_session() {
    let (first, second) = (
        GuestRam::at(1 << 20, 1 << 16),
        GuestRam::at((1 << 20) + (1 << 16), 1 << 16),
    );
    let frontend = Frontend::new().negotiated();
    frontend.set_memory(&[&first, &second]);
    let edge = (1 << 20) + (1 << 16) + outboard_ring::driver::USER_OFFSET;
    let mut body = words(&[1, 0]);
    for addr in [edge - 64, edge + 4096, edge + 8192, 0] {
        body.extend(addr.to_ne_bytes());
    }
    frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[1, 8]), &[]);
    frontend.ask(FrontendReq::SET_VRING_ADDR, &body, &[]);
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[1, 1]), &[]);
    frontend.send(FrontendReq::SET_VRING_KICK, &1u64.to_ne_bytes(), &[event_fd().as_fd()]);
    assert!(matches!(
        frontend.refused(),
        SessionError::Ring {
            index: 1,
            source: RingError::Config(_)
        }
    ));
}

#[test]
fn h12_stray_descriptors_end_the_session_with_any_message() {
    let fd = event_fd();
    for (request, body) in [
        (FrontendReq::GET_FEATURES, vec![]),
        (FrontendReq::SET_OWNER, vec![]),
        (FrontendReq::SET_VRING_NUM, words(&[1, 8])),
        (FrontendReq::GET_VRING_BASE, words(&[0, 0])),
        (FrontendReq::SET_VRING_CALL, 0x100u64.to_ne_bytes().to_vec()),
        (FrontendReq::GET_QUEUE_NUM, vec![]),
    ] {
        for count in [1, 32] {
            let error = attack(request, &body, &vec![fd.as_fd(); count]);
            assert!(
                matches!(error, SessionError::Descriptors { .. }),
                "{request:?}: {error}"
            );
        }
        // More than there is room for are dropped by the kernel, which says so.
        let error = attack(request, &body, &[fd.as_fd(); 33]);
        assert!(
            matches!(error, SessionError::TooManyDescriptors),
            "{request:?}: {error}"
        );
    }
    for request in VRING_FDS {
        let error = attack(request, &0u64.to_ne_bytes(), &[]);
        assert!(
            matches!(
                error,
                SessionError::Descriptors {
                    count: 0,
                    expected: 1,
                    ..
                }
            ),
            "{error}"
        );
        let error = attack(request, &0u64.to_ne_bytes(), &[fd.as_fd(); 2]);
        assert!(
            matches!(
                error,
                SessionError::Descriptors {
                    count: 2,
                    expected: 1,
                    ..
                }
            ),
            "{error}"
        );
    }
    let region = [spec(0, 4096, memfd(4096))];
    let error = attack(FrontendReq::SET_MEM_TABLE, &mem_table(&region), &[]);
    assert!(
        matches!(
            error,
            SessionError::Descriptors {
                count: 0,
                expected: 1,
                ..
            }
        ),
        "{error}"
    );
    let error = attack(FrontendReq::ADD_MEM_REG, &single_region(&region[0]), &[]);
    assert!(
        matches!(
            error,
            SessionError::Descriptors {
                count: 0,
                expected: 1,
                ..
            }
        ),
        "{error}"
    );

    let control = Frontend::without(Check::MessageDescriptors).negotiated();
    control.ask(FrontendReq::SET_VRING_NUM, &words(&[1, 8]), &[fd.as_fd(); 32]);
    control.close();
}

#[test]
fn h13_regions_beyond_the_advertised_slots_end_the_session() {
    let frontend = Frontend::new().negotiated();
    let slots = frontend.get(FrontendReq::GET_MAX_MEM_SLOTS, &[]);
    assert_eq!(slots, (REGION_COUNT_MAX as u64).to_ne_bytes());
    let file = memfd(4096);
    let nth = |n: usize| spec(n as u64 * 4096, 4096, file.try_clone().unwrap());
    for n in 0..REGION_COUNT_MAX {
        frontend.ask(FrontendReq::ADD_MEM_REG, &single_region(&nth(n)), &[file.as_fd()]);
    }
    frontend.send(
        FrontendReq::ADD_MEM_REG,
        &single_region(&nth(REGION_COUNT_MAX)),
        &[file.as_fd()],
    );
    assert!(matches!(
        frontend.refused(),
        SessionError::Memory(MemoryError::TooManyRegions { .. })
    ));

    let control = Frontend::without(Check::RegionCount).negotiated();
    for n in 0..=REGION_COUNT_MAX {
        control.ask(FrontendReq::ADD_MEM_REG, &single_region(&nth(n)), &[file.as_fd()]);
    }
    control.close();
}

#[test]
fn h14_queue_sizes_that_cannot_be_end_the_session() {
    for size in [0, 3, 255, u32::from(QUEUE_SIZE_MAX) * 2, 65_535, 65_536, u32::MAX] {
        let error = attack(FrontendReq::SET_VRING_NUM, &words(&[1, size]), &[]);
        assert!(
            matches!(error, SessionError::QueueSize { index: 1, size: s, .. } if s == size),
            "{error}"
        );
    }
    let frontend = Frontend::new().negotiated();
    for _ in 0..1000 {
        frontend.send(FrontendReq::SET_VRING_NUM, &words(&[1, 8]), &[]);
        frontend.send(FrontendReq::SET_VRING_NUM, &words(&[1, QUEUE_SIZE_MAX.into()]), &[]);
    }
    frontend.assert_alive();
    frontend.close();

    let control = Frontend::without(Check::QueueSize).negotiated();
    control.ask(FrontendReq::SET_VRING_NUM, &words(&[1, 3]), &[]);
    control.close();
}

#[test]
fn h15_a_kick_descriptor_before_memory_ends_the_session() {
    let fd = event_fd();
    let early = |frontend: Frontend| {
        frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[0, 8]), &[]);
        // To enable a queue this early is allowed, and QEMU does so, but it starts nothing.
        frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[0, 1]), &[]);
        assert!(frontend.log.events().is_empty());
        frontend.send(FrontendReq::SET_VRING_KICK, &0u64.to_ne_bytes(), &[fd.as_fd()]);
        frontend
    };
    let (neighbour, _ram, mut driver) = working();
    let error = early(Frontend::new().negotiated()).refused();
    assert!(matches!(error, SessionError::NoMemory { index: 0 }), "{error}");
    neighbour.round(0, &mut driver);
    neighbour.close();

    // Control: without the check the queue is started on whatever there is, which is nothing.
    let control = early(Frontend::without(Check::MemoryBeforeStart).negotiated());
    control.assert_alive();
    control.send(FrontendReq::SET_VRING_ADDR, &vring_addr(0, &driver), &[]);
    assert!(matches!(control.refused(), SessionError::RingAddress { .. }));
}

#[test]
fn h15_a_ring_outside_of_memory_ends_the_session() {
    let (frontend, ram, _driver) = working();
    let mut body = words(&[1, 0]);
    for addr in [0xdead_0000u64, 0xdead_1000, 0xdead_2000, 0] {
        body.extend(addr.to_ne_bytes());
    }
    frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[1, 8]), &[]);
    frontend.ask(FrontendReq::SET_VRING_ADDR, &body, &[]);
    frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[1, 1]), &[]);
    frontend.send(FrontendReq::SET_VRING_KICK, &1u64.to_ne_bytes(), &[event_fd().as_fd()]);
    assert!(matches!(
        frontend.refused(),
        SessionError::RingAddress {
            index: 1,
            user_addr: 0xdead_0000
        }
    ));
    assert!(GuestMemory::map(vec![ram.spec()]).is_ok());
}

#[test]
fn h16_wrong_lengths_end_the_session() {
    for request in [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_ADDR,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_MEM_TABLE,
        FrontendReq::GET_CONFIG,
        FrontendReq::SET_CONFIG,
        FrontendReq::ADD_MEM_REG,
        FrontendReq::REM_MEM_REG,
    ] {
        let error = attack(request, &[], &[]);
        assert!(
            matches!(error, SessionError::Len { len: 0, .. }),
            "{request:?}: {error}"
        );
    }
    for request in [
        FrontendReq::GET_FEATURES,
        FrontendReq::SET_OWNER,
        FrontendReq::GET_QUEUE_NUM,
    ] {
        let error = attack(request, &[0; 8], &[]);
        assert!(
            matches!(
                error,
                SessionError::Len {
                    len: 8,
                    expected: 0,
                    ..
                } | SessionError::Owned
            ),
            "{error}"
        );
    }
    let error = attack(FrontendReq::SET_VRING_NUM, &[0; 4096], &[]);
    assert!(
        matches!(
            error,
            SessionError::Len {
                len: 4096,
                expected: 8,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn h16_bodies_larger_than_any_message_are_not_waited_for() {
    for len in [4097, 1 << 20, u32::MAX] {
        let (frontend, ..) = working();
        frontend.send_raw(&words(&[FrontendReq::SET_VRING_NUM.into(), VERSION, len]), &[]);
        assert!(matches!(frontend.refused(), SessionError::TooLong { len: l, .. } if l == len));
    }
    // Control: without the check it takes in all that the header claims.
    let control = Frontend::without(Check::MessageSize).negotiated();
    control.send_raw(&words(&[FrontendReq::SET_VRING_NUM.into(), VERSION, 1 << 20]), &[]);
    (&control.stream).write_all(&vec![0; 1 << 20]).unwrap();
    assert!(matches!(control.refused(), SessionError::Len { len: 0x10_0000, .. }));
}

#[test]
fn h16_headers_that_are_no_requests_end_the_session() {
    for flags in [0, 2, 3, VERSION | 4, VERSION | 16, u32::MAX] {
        let (frontend, ..) = working();
        frontend.send_raw(&words(&[1, flags, 0]), &[]);
        assert!(matches!(frontend.refused(), SessionError::Header { flags: f } if f == flags));
    }
}

#[test]
fn h16_a_stall_in_mid_message_holds_up_only_its_own_session_and_can_be_ended() {
    let (neighbour, _ram, mut driver) = working();
    let (stalled, ..) = working();
    let half = &message(FrontendReq::SET_VRING_NUM, VERSION, &words(&[1, 8]))[..15];
    stalled.send_raw(half, &[]);
    neighbour.round(0, &mut driver);
    // What a daemon does with the clone that it keeps.
    let start = Instant::now();
    stalled.stream.shutdown(Shutdown::Both).unwrap();
    assert!(matches!(stalled.refused(), SessionError::Truncated));
    assert!(start.elapsed() < Duration::from_secs(60));
    neighbour.round(0, &mut driver);
    neighbour.close();
}

#[test]
fn h18_lengths_inside_messages_are_checked_against_the_message() {
    // A table that claims more regions than it has, or than there are descriptors for.
    let region = [spec(0, 4096, memfd(4096))];
    let fd = region[0].file.as_fd();
    let table = mem_table(&region);
    for count in [0u32, 2, 33, u32::MAX] {
        let mut body = table.clone();
        body[..4].copy_from_slice(&count.to_ne_bytes());
        let error = attack(FrontendReq::SET_MEM_TABLE, &body, &[fd]);
        assert!(matches!(error, SessionError::Descriptors { .. }), "{error}");
    }
    let mut two = table.clone();
    two[..4].copy_from_slice(&2u32.to_ne_bytes());
    let error = attack(FrontendReq::SET_MEM_TABLE, &two, &[fd, fd]);
    assert!(matches!(error, SessionError::Len { .. }), "{error}");

    for request in [FrontendReq::GET_CONFIG, FrontendReq::SET_CONFIG] {
        for len in [0, 3, 5, u32::MAX] {
            let body: Vec<u8> = words(&[0, len, 0]).into_iter().chain([0; 4]).collect();
            let error = attack(request, &body, &[]);
            assert!(matches!(error, SessionError::Len { .. }), "{request:?} {len}: {error}");
        }
    }
    // An offset that wraps is answered with nothing.
    let (frontend, ..) = working();
    let body: Vec<u8> = words(&[u32::MAX, 4, 0]).into_iter().chain([0; 4]).collect();
    assert_eq!(frontend.get(FrontendReq::GET_CONFIG, &body), words(&[u32::MAX, 0, 0]));
    frontend.close();

    let error = attack(FrontendReq::SET_VRING_NUM, &words(&[1, 8, 8]), &[]);
    assert!(
        matches!(
            error,
            SessionError::Len {
                len: 12,
                expected: 8,
                ..
            }
        ),
        "{error}"
    );
    let control = Frontend::without(Check::MessageLength).negotiated();
    control.ask(FrontendReq::SET_VRING_NUM, &words(&[1, 8, 8]), &[]);
    control.close();
}

#[test]
fn what_was_not_offered_or_negotiated_ends_the_session() {
    let error = attack(FrontendReq::SET_FEATURES, &u64::MAX.to_ne_bytes(), &[]);
    assert!(
        matches!(
            error,
            SessionError::Features {
                what: "virtio features",
                ..
            }
        ),
        "{error}"
    );
    // RARP.
    let error = attack(FrontendReq::SET_PROTOCOL_FEATURES, &4u64.to_ne_bytes(), &[]);
    assert!(
        matches!(
            error,
            SessionError::Features {
                what: "protocol features",
                extra: 4
            }
        ),
        "{error}"
    );
    for request in [FrontendReq::GET_QUEUE_NUM, FrontendReq::GET_MAX_MEM_SLOTS] {
        let frontend = Frontend::new();
        frontend.send(request, &[], &[]);
        assert!(matches!(frontend.refused(), SessionError::NotNegotiated { .. }));
    }
    let error = attack(FrontendReq::SET_OWNER, &[], &[]);
    assert!(matches!(error, SessionError::Owned), "{error}");
    let error = attack(FrontendReq::SET_VRING_BASE, &words(&[1, 65_536]), &[]);
    assert!(matches!(error, SessionError::Value { field: "base", .. }), "{error}");
    let error = attack(FrontendReq::SET_VRING_ENABLE, &words(&[1, 2]), &[]);
    assert!(matches!(error, SessionError::Value { field: "enable", .. }), "{error}");
    let error = attack(FrontendReq::SET_VRING_KICK, &0x100u64.to_ne_bytes(), &[]);
    assert!(matches!(error, SessionError::NoKick { index: 0 }), "{error}");
}

#[test]
fn a_failed_request_is_acknowledged_as_such_before_the_session_ends() {
    let (frontend, ..) = working();
    frontend.send_raw(&message(FrontendReq::SET_VRING_NUM, 9, &words(&[1, 3])), &[]);
    assert_ne!(frontend.reply(FrontendReq::SET_VRING_NUM), 0u64.to_ne_bytes());
    assert!(matches!(frontend.refused(), SessionError::QueueSize { .. }));
}

#[test]
fn a_frontend_that_sets_o_nonblock_and_reads_nothing_costs_no_time() {
    // The host may have made the pair and hold a duplicate of our end.
    let (stream, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let duplicate = ours.try_clone().unwrap();
    let mut device = crate::device::Echo {
        log: Default::default(),
        has_config: true,
    };
    let served = std::thread::spawn(move || {
        let end = outboard_vhost_user::serve(ours, &mut device);
        (end, rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime))
    });
    duplicate.set_nonblocking(true).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&duplicate, 1).unwrap();
    let request = message(FrontendReq::GET_FEATURES, VERSION, &[]);
    // Until replies fill the buffers, and then half a request.
    stream.set_nonblocking(true).unwrap();
    for _ in 0..100 {
        for _ in 0..100 {
            let _full = (&stream).write(&request);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.shutdown(Shutdown::Both).unwrap();
    let (_end, cpu) = served.join().unwrap();
    let cpu = Duration::new(cpu.tv_sec.unsigned_abs(), u32::try_from(cpu.tv_nsec).unwrap());
    assert!(
        cpu < Duration::from_millis(250),
        "it waited by burning {cpu:?} of 500 ms"
    );
}
