use std::{
    fs::File,
    time::{Duration, Instant},
};

use outboard_controls::Off;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fs::{MemfdFlags, memfd_create},
};

use super::*;

fn plain_eventfd() -> OwnedFd {
    // Blocking, as a host may make it.
    eventfd(0, EventfdFlags::CLOEXEC).unwrap()
}

fn readable(fd: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn h04_only_eventfds_are_taken() {
    assert!(KickFd::new(plain_eventfd()).is_ok() && CallFd::new(plain_eventfd()).is_ok());

    let (pipe, _writer) = std::io::pipe().unwrap();
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let timer = rustix::time::timerfd_create(
        rustix::time::TimerfdClockId::Monotonic,
        rustix::time::TimerfdFlags::empty(),
    )
    .unwrap();
    let named_like_one = memfd_create("anon_inode:[eventfd]", MemfdFlags::CLOEXEC).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file_named_like_one = File::create(dir.path().join("anon_inode:[eventfd]")).unwrap();
    let others: [OwnedFd; 6] = [
        pipe.into(),
        socket.into(),
        timer,
        named_like_one,
        file_named_like_one.into(),
        File::open("/dev/null").unwrap().into(),
    ];
    for fd in others {
        let error = KickFd::new(fd.try_clone().unwrap()).unwrap_err();
        assert!(matches!(&error, NotifyError::NotEventFd { .. }), "{error}");
        assert_eq!(
            CallFd::new(fd.try_clone().unwrap()).unwrap_err().to_string(),
            error.to_string()
        );
        // Control: without the check it is taken.
        let _off = Off::here(Check::EventfdOnly);
        assert!(KickFd::new(fd.try_clone().unwrap()).is_ok() && CallFd::new(fd).is_ok());
    }

    assert!(KickFd::new(plain_eventfd()).is_ok() && CallFd::new(plain_eventfd()).is_ok());
}

#[test]
fn a_kick_is_drained_and_an_empty_one_does_not_block() {
    let fd = plain_eventfd();
    let kick = KickFd::new(fd.try_clone().unwrap()).unwrap();
    rustix::io::write(&fd, &3u64.to_ne_bytes()).unwrap();
    assert!(readable(&kick));
    kick.drain();
    assert!(!readable(&kick));
    let start = Instant::now();
    kick.drain();
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "the descriptor is blocking, the read is not"
    );
}

#[test]
fn a_refused_descriptor_is_closed() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    assert!(CallFd::new(OwnedFd::from(writer)).is_err());
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
    assert!(rest.is_empty(), "the end of the pipe shows that its writer was closed");
}
