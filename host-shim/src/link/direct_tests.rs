//! The link against a DPU that misbehaves.

use std::{
    os::unix::net::UnixStream,
    sync::mpsc::{Receiver, channel},
};

use outboard_protocol::{
    id::{Generation, Name, ObjectKind, ObjectRef},
    refusal::{Code, Refusal},
};
use rustix::net::{accept, bind, listen, recv, send};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// A link, what it reports, and the DPU's listener.
struct World {
    link: DirectLink,
    events: Receiver<Input>,
    listener: OwnedFd,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("link.sock");
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 4).unwrap();
        let (sink, events) = channel();
        let link = DirectLink::start(&path, BootEpoch(7), Arc::new(move |input| drop(sink.send(input)))).unwrap();
        Self {
            link,
            events,
            listener,
            _folder: folder,
        }
    }

    /// The next connection, with its hello read.
    fn accept(&self) -> OwnedFd {
        let link = accept(&self.listener).unwrap();
        let hello = read(&link);
        let Request::Hello { host_epoch, .. } = hello.request else {
            panic!("{hello:?}")
        };
        assert_eq!((hello.seq, host_epoch), (OWN_SEQ_FIRST, BootEpoch(7)));
        link
    }

    /// The next connection, welcomed.
    fn welcome(&self) -> OwnedFd {
        let link = self.accept();
        write(&link, OWN_SEQ_FIRST, welcome(1));
        while !matches!(self.event(), Input::LinkUp { .. }) {}
        link
    }

    fn event(&self) -> Input {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    fn down(&self) -> Problem {
        match self.event() {
            Input::LinkDown { problem, .. } => problem,
            other => panic!("not down but {other:?}"),
        }
    }
}

fn welcome(version: u16) -> Reply {
    let card: Name = "local".parse().unwrap();
    Reply::Welcome {
        version,
        card,
        dpu_epoch: BootEpoch(1),
    }
}

fn vm1() -> ObjectRef {
    ObjectRef {
        kind: ObjectKind::Port,
        name: "vm1".parse().unwrap(),
    }
}

fn read(link: &OwnedFd) -> NumberedRequest {
    let mut packet = [0; LINK_MESSAGE_LEN_MAX];
    let (len, _) = recv(link, &mut packet, RecvFlags::empty()).unwrap();
    codec::decode(&packet[..len], LINK_MESSAGE_LEN_MAX).unwrap()
}

fn write(link: &OwnedFd, seq: u64, reply: Reply) {
    let packet = codec::encode(&FromDpu::Reply { seq, reply });
    send(link, &packet, SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn requests_and_notices_pass_in_order() {
    let world = World::new();
    let link = world.welcome();
    let (stream, _theirs) = UnixStream::pair().unwrap();
    world.link.send(Ticket(3), Request::Ping, None);
    world.link.send(Ticket(4), Request::Ping, Some(stream.into()));
    assert_eq!((read(&link).seq, read(&link).seq), (3, 4));
    let notice = FromDpu::Revoked {
        object: vm1(),
        generation: Generation(2),
    };
    send(&link, &codec::encode(&notice), SendFlags::NOSIGNAL).unwrap();
    write(&link, 3, Reply::Pong);
    write(&link, 4, Reply::Released);
    assert!(matches!(world.event(), Input::Revoked(object, Generation(2)) if object == vm1()));
    assert!(matches!(world.event(), Input::Answer(Ticket(3), Reply::Pong)));
    assert!(matches!(world.event(), Input::Answer(Ticket(4), Reply::Released)));
}

#[test]
fn a_dpu_that_says_no_or_nonsense_is_left_and_tried_again() {
    let world = World::new();
    let refusal = Refusal {
        code: Code::Version,
        text: "too old".to_owned(),
    };
    write(&world.accept(), OWN_SEQ_FIRST, Reply::Refused { refusal });
    assert!(world.down().error.contains("the DPU refused the link: too old"));
    // A version that was not offered; an answer that is none; another's answer.
    write(&world.accept(), OWN_SEQ_FIRST, welcome(2));
    assert!(world.down().error.contains("not asked"));
    write(&world.accept(), OWN_SEQ_FIRST, Reply::Pong);
    assert!(world.down().error.contains("not asked"));
    write(&world.accept(), 5, welcome(1));
    assert!(world.down().error.contains("not asked"));
    for garbage in [&b"\xff"[..], &[0; 100], &[7; LINK_MESSAGE_LEN_MAX + 1]] {
        send(world.accept(), garbage, SendFlags::NOSIGNAL).unwrap();
        let problem = world.down();
        assert!(problem.error.contains("was not understood"), "{problem}");
    }
    // Control: after all that, one that behaves.
    world.welcome();
}

#[test]
fn answers_out_of_order_end_the_connection() {
    let world = World::new();
    let link = world.welcome();
    world.link.send(Ticket(0), Request::Ping, None);
    world.link.send(Ticket(1), Request::Ping, None);
    write(&link, 1, Reply::Pong);
    assert!(world.down().error.contains("not asked"));
}

#[test]
fn what_is_sent_while_the_link_is_down_is_dropped() {
    let world = World::new();
    drop(world.welcome());
    world.down();
    world.link.send(Ticket(9), Request::Ping, None);
    // Taken in before the next hello is answered.
    let link = world.accept();
    thread::sleep(Duration::from_millis(50));
    write(&link, OWN_SEQ_FIRST, welcome(1));
    while !matches!(world.event(), Input::LinkUp { .. }) {}
    world.link.send(Ticket(10), Request::Ping, None);
    assert_eq!(read(&link).seq, 10);
}

#[test]
fn dropping_the_link_ends_it_whatever_it_waits_for() {
    for welcomed in [true, false] {
        let world = World::new();
        let connection = if welcomed { world.welcome() } else { world.accept() };
        drop(world.link);
        let mut packet = [0; 64];
        assert_eq!(recv(&connection, &mut packet, RecvFlags::empty()).unwrap().0, 0);
    }
}
