//! Front-ends that are hostile by the memory they share for logs and in-flight regions, and by descriptors.

use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::FileExt, net::UnixStream},
    },
};

use outboard_controls::Check;
use outboard_ring::{FileFault, InflightError, LogError};
use outboard_vhost_user::SessionError;
use vhost::vhost_user::message::FrontendReq;

use crate::{
    device::{QUEUE_COUNT, QUEUE_SIZE_MAX},
    frontend::{
        F_LOG_ALL, F_PROTOCOL_FEATURES, Frontend, event_fd, inflight, log_base, logged_vring_addr, memfd, words,
        working, working_without,
    },
    hostile::attack,
};

const LOG_ALL: u64 = 1 << 32 | F_PROTOCOL_FEATURES | F_LOG_ALL;

#[test]
fn h07_logs_that_wrap_or_lie_outside_their_file_end_the_session() {
    let log = memfd(4096);
    for (len, offset) in [(4096, u64::MAX - 7), (u64::MAX, 1), (4096, 1), (4097, 0), (8, 4096)] {
        let error = attack(FrontendReq::SET_LOG_BASE, &log_base(len, offset), &[log.as_fd()]);
        assert!(
            matches!(
                error,
                SessionError::Log(LogError::File(FileFault::Wraps | FileFault::Outside { .. }) | LogError::Len { .. })
            ),
            "{error}"
        );
    }
    let error = attack(FrontendReq::SET_LOG_BASE, &log_base(0, 0), &[log.as_fd()]);
    assert!(matches!(error, SessionError::Log(LogError::Len { len: 0 })), "{error}");
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let error = attack(FrontendReq::SET_LOG_BASE, &log_base(4096, 0), &[null.as_fd()]);
    assert!(
        matches!(error, SessionError::Log(LogError::File(FileFault::NotMemory { .. }))),
        "{error}"
    );
    // Without a descriptor, or in the form that has an address.
    let error = attack(FrontendReq::SET_LOG_BASE, &log_base(4096, 0), &[]);
    assert!(matches!(error, SessionError::Descriptors { count: 0, .. }), "{error}");
    let error = attack(FrontendReq::SET_LOG_BASE, &[0; 8], &[]);
    assert!(matches!(error, SessionError::Len { len: 8, .. }), "{error}");

    let (control, ..) = working_without(Some(Check::RegionInsideFile));
    control.send(FrontendReq::SET_LOG_BASE, &log_base(8192, 0), &[log.as_fd()]);
    assert_eq!(control.reply(FrontendReq::SET_LOG_BASE), log_base(8192, 0));
    control.close();
}

#[test]
fn h07_logs_smaller_than_memory_end_the_session() {
    // RAM begins at 1 MiB and has 1 MiB: 64 bytes of log.
    let log = memfd(4096);
    let small = |error: SessionError| {
        assert!(
            matches!(error, SessionError::Log(LogError::TooSmall { len: 63, .. })),
            "{error}"
        );
    };
    small(attack(FrontendReq::SET_LOG_BASE, &log_base(63, 0), &[log.as_fd()]));

    // Memory that is added where the log has no bits.
    let second = outboard_ring::driver::GuestRam::at(1 << 32, 1 << 20);
    let region = crate::frontend::single_region(&second.spec());
    let logging = |frontend: &Frontend, len: u64| {
        frontend.send(FrontendReq::SET_LOG_BASE, &log_base(len, 0), &[log.as_fd()]);
        assert_eq!(frontend.reply(FrontendReq::SET_LOG_BASE), log_base(len, 0));
        frontend.ask(FrontendReq::SET_FEATURES, &LOG_ALL.to_ne_bytes(), &[]);
    };
    let (frontend, ..) = working();
    logging(&frontend, 64);
    frontend.send(FrontendReq::ADD_MEM_REG, &region, &[second.file().as_fd()]);
    let error = frontend.refused();
    assert!(
        matches!(error, SessionError::Log(LogError::TooSmall { len: 64, .. })),
        "{error}"
    );

    // A used ring that is to be logged where the log has no bits.
    for at in [2 << 20, u64::MAX - 3] {
        let (frontend, _ram, driver) = working();
        logging(&frontend, 64);
        frontend.send(FrontendReq::SET_VRING_ADDR, &logged_vring_addr(0, &driver, at), &[]);
        let error = frontend.refused();
        assert!(
            matches!(error, SessionError::Log(LogError::TooSmall { len: 64, .. })),
            "{error}"
        );
    }

    // Control: writes to memory that the log does not cover leave no trace, and a migration loses them.
    let (control, _ram, mut driver) = working_without(Some(Check::LogCoversMemory));
    logging(&control, 1);
    control.round(0, &mut driver);
    let mut marks = [0; 4096];
    log.read_exact_at(&mut marks, 0).unwrap();
    assert_eq!(marks, [0; 4096]);
    control.close();
    let (legal, _ram, mut driver) = working();
    logging(&legal, 64);
    legal.round(0, &mut driver);
    log.read_exact_at(&mut marks, 0).unwrap();
    assert_ne!(marks, [0; 4096]);
    legal.close();
}

#[test]
fn h08_regions_of_other_queues_end_the_session() {
    let file = memfd(1 << 20);
    let set = |len, offset, count, size| {
        let frontend = Frontend::new().negotiated();
        let body = inflight(len, offset, count, size);
        frontend.send(FrontendReq::SET_INFLIGHT_FD, &body, &[file.as_fd()]);
        frontend.refused()
    };
    for count in [QUEUE_COUNT + 1, u16::MAX] {
        let error = set(1 << 20, 0, count, 8);
        assert!(
            matches!(
                error,
                SessionError::Value {
                    field: "number of queues",
                    ..
                }
            ),
            "{error}"
        );
        let error = attack(FrontendReq::GET_INFLIGHT_FD, &inflight(0, 0, count, 8), &[]);
        assert!(
            matches!(
                error,
                SessionError::Value {
                    field: "number of queues",
                    ..
                }
            ),
            "{error}"
        );
    }
    for (count, size) in [(0, 8), (1, 0), (1, 32_769), (1, u16::MAX)] {
        let error = set(1 << 20, 0, count, size);
        assert!(
            matches!(error, SessionError::Inflight(InflightError::Shape { .. })),
            "{error}"
        );
        let error = attack(FrontendReq::GET_INFLIGHT_FD, &inflight(0, 0, count, size), &[]);
        assert!(
            matches!(error, SessionError::Inflight(InflightError::Shape { .. })),
            "{error}"
        );
    }
    let error = set(100, 0, 1, QUEUE_SIZE_MAX);
    assert!(
        matches!(error, SessionError::Inflight(InflightError::TooSmall { .. })),
        "{error}"
    );
    for offset in [(1 << 20) - 16, u64::MAX - 15] {
        let error = set(1 << 20, offset, 1, QUEUE_SIZE_MAX);
        assert!(
            matches!(error, SessionError::Inflight(InflightError::File(_))),
            "{error}"
        );
    }
    let error = set(1 << 20, 3, 1, 8);
    assert!(
        matches!(error, SessionError::Inflight(InflightError::Misaligned { offset: 3 })),
        "{error}"
    );
    // Under a queue that runs.
    let error = attack(
        FrontendReq::SET_INFLIGHT_FD,
        &inflight(1 << 20, 0, 1, 8),
        &[file.as_fd()],
    );
    assert!(matches!(error, SessionError::InflightInUse), "{error}");
}

#[test]
fn h08_a_queue_without_its_part_of_the_region_ends_the_session() {
    let (count, size) = (1, 8);
    let file = memfd(4096);
    let run = |index: u32, queue_size: u16, off: Option<Check>| {
        let ram = outboard_ring::driver::GuestRam::new(1 << 20);
        let driver = outboard_ring::driver::Driver::new(&ram, queue_size, 0);
        let frontend = Frontend::start(true, off).negotiated();
        let body = inflight(4096, 0, count, size);
        frontend.ask(FrontendReq::SET_INFLIGHT_FD, &body, &[file.as_fd()]);
        frontend.set_memory(&[&ram]);
        let fd = event_fd();
        frontend.ask(FrontendReq::SET_VRING_NUM, &words(&[index, queue_size.into()]), &[]);
        frontend.ask(
            FrontendReq::SET_VRING_ADDR,
            &crate::frontend::vring_addr(index, &driver),
            &[],
        );
        frontend.ask(FrontendReq::SET_VRING_ENABLE, &words(&[index, 1]), &[]);
        frontend.send(
            FrontendReq::SET_VRING_KICK,
            &u64::from(index).to_ne_bytes(),
            &[fd.as_fd()],
        );
        frontend
    };
    let error = run(1, 8, None).refused();
    assert!(
        matches!(
            error,
            SessionError::Inflight(InflightError::NoSuchQueue { index: 1, .. })
        ),
        "{error}"
    );
    let error = run(0, 16, None).refused();
    assert!(
        error.to_string().contains("in-flight region for queues of size 8"),
        "{error}"
    );
    let legal = run(0, 8, None);
    legal.assert_alive();
    assert_eq!(legal.log.events(), ["start 0 at 0"]);
    legal.close();

    // What the host wrote to it: a head that the ring does not have. Without the check it is taken.
    file.write_all_at(&1u16.to_ne_bytes(), 8).unwrap();
    file.write_all_at(&[1], 16 + 16 * 7).unwrap();
    let error = run(0, 4, None).refused();
    assert!(error.to_string().contains("head in flight is 7"), "{error}");
    let control = run(0, 4, Some(Check::InflightRegion));
    control.assert_alive();
    assert_eq!(control.log.seen().running[&0].ring.to_replay(), 1);
    control.close();
}

#[test]
fn h11_a_hundred_thousand_regions_leave_nothing_behind() {
    let (neighbour, _ram, mut driver) = working();
    let frontend = Frontend::new().negotiated();
    let ask = inflight(0, 0, QUEUE_COUNT, QUEUE_SIZE_MAX);
    let rounds = |count: usize| {
        for _ in 0..count {
            drop(frontend.get_fd(FrontendReq::GET_INFLIGHT_FD, &ask));
        }
    };
    rounds(100);
    let (files, memory) = (memfd_count(), resident_bytes());
    rounds(100_000);
    assert!(memfd_count() <= files + 8, "{} memfds, {files} before", memfd_count());
    let grown = resident_bytes().saturating_sub(memory);
    // Other tests run beside this one; one page a region would be 400 MB.
    assert!(grown < 64 << 20, "{grown} bytes more than before");
    neighbour.round(0, &mut driver);
    // Control: regions that somebody keeps are seen.
    let kept: Vec<_> = (0..64)
        .map(|_| frontend.get_fd(FrontendReq::GET_INFLIGHT_FD, &ask))
        .collect();
    assert!(memfd_count() > files + 8, "{} memfds, {files} before", memfd_count());
    drop(kept);
    frontend.close();
    neighbour.close();
}

/// In-flight regions that this process has open.
fn memfd_count() -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    links
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|link| link.to_string_lossy().starts_with("/memfd:in-flight"))
        .count()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[test]
fn h04_channels_that_are_no_unix_streams_end_the_session() {
    let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let fds: [OwnedFd; 4] = [datagram.into(), tcp.into(), memfd(8).into(), event_fd()];
    for fd in &fds {
        let error = attack(FrontendReq::SET_BACKEND_REQ_FD, &[], &[fd.as_fd()]);
        assert!(matches!(error, SessionError::Channel(_)), "{error}");
    }
    let (frontend, ..) = working();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    frontend.ask(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    frontend.close();
}

/// Each message that exists, with each number of descriptors that is not its own.
#[test]
fn h12_stray_descriptors_are_refused_with_every_message() {
    let fd = event_fd();
    let (neighbour, _ram, mut driver) = working();
    for number in 1..=44u32 {
        let request = FrontendReq::try_from(number).unwrap();
        // A table says itself how many come with it: two here.
        let mut body = vec![0; body_len(request)];
        if request == FrontendReq::SET_MEM_TABLE {
            body[0] = 2;
        }
        let own = match request {
            FrontendReq::SET_MEM_TABLE => 2,
            FrontendReq::SET_LOG_BASE
            | FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR
            | FrontendReq::SET_BACKEND_REQ_FD
            | FrontendReq::SET_INFLIGHT_FD
            | FrontendReq::ADD_MEM_REG => 1,
            _ => 0,
        };
        for count in [1, 2, 3, 5, 8, 31, 32, 33, 48, 64]
            .into_iter()
            .filter(|&count| count != own)
        {
            let (frontend, ..) = working();
            frontend.send(request, &body, &vec![fd.as_fd(); count]);
            if request == FrontendReq::REM_MEM_REG && count == 1 {
                // Older front-ends pass one, which is closed; there is no such region.
                assert!(matches!(frontend.refused(), SessionError::Memory(_)));
                continue;
            }
            let error = frontend.refused();
            let named = match count {
                33.. => matches!(error, SessionError::TooManyDescriptors),
                _ => matches!(error, SessionError::Descriptors { .. } | SessionError::Unknown { .. }),
            };
            assert!(named, "{request:?} with {count}: {error}");
        }
    }
    neighbour.round(0, &mut driver);
    neighbour.close();

    let control = Frontend::without(Check::MessageDescriptors).negotiated();
    control.ask(FrontendReq::RESET_DEVICE, &[], &[fd.as_fd(); 32]);
    control.close();
}

/// Length of a request's body, in bytes.
fn body_len(request: FrontendReq) -> usize {
    match request {
        FrontendReq::SET_MEM_TABLE => 8 + 2 * 32,
        FrontendReq::SET_VRING_ADDR | FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => 40,
        FrontendReq::SET_LOG_BASE => 16,
        FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG => 12,
        FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD => 24,
        FrontendReq::SET_FEATURES
        | FrontendReq::SET_PROTOCOL_FEATURES
        | FrontendReq::SET_VRING_NUM
        | FrontendReq::SET_VRING_BASE
        | FrontendReq::GET_VRING_BASE
        | FrontendReq::SET_VRING_KICK
        | FrontendReq::SET_VRING_CALL
        | FrontendReq::SET_VRING_ERR
        | FrontendReq::SET_VRING_ENABLE
        | FrontendReq::NET_SET_MTU => 8,
        _ => 0,
    }
}
