//! Hosts that do not keep to the protocol.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    time::{Duration, Instant},
};

use outboard_protocol::{
    codec::encode,
    id::{BootEpoch, Generation, Incarnation, ObjectRef, OperationId},
    link::{FromDpu, LINK_MESSAGE_LEN_MAX, NumberedRequest, Reply, Request},
    refusal::{Code, Refusal},
};
use rustix::{
    process::{Uid, getuid},
    thread::set_thread_res_uid,
};

use crate::{
    fixture::{Card, Change, PATIENCE, desired, eventually, fails_without, name, port, two_ports, volume},
    host::{Host, hello},
};

/// Two ports and a volume of which the host may have one port; another belongs to another host.
fn card() -> Card {
    let mut state = desired(1, 3).grant(port("vm1"), 1).grant(port("vm3"), 1);
    state.grants[1].host = name("elsewhere");
    Card::holding(state)
}

fn refusal(reply: Option<Reply>) -> Refusal {
    match reply {
        Some(Reply::Refused { refusal }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

/// All that the host can ask about an object it may not have.
fn refusals(host: &mut Host, object: &ObjectRef) -> Vec<Refusal> {
    let operation = || OperationId(uuid::Uuid::new_v4());
    let (stream, _other) = UnixStream::pair().unwrap();
    let (generation, incarnation) = (Generation(1), Incarnation(1));
    let ask = |host: &mut Host, request, streams: &[_]| {
        let mut refusal = refusal(host.ask(request, streams));
        // The only thing that may differ is the name that the host said itself.
        refusal.text = refusal.text.replace(&object.to_string(), "OBJECT");
        refusal
    };
    vec![
        ask(
            host,
            Request::Redeem {
                operation: operation(),
                object: object.clone(),
            },
            &[],
        ),
        ask(
            host,
            Request::Connect {
                object: object.clone(),
                generation,
                incarnation,
            },
            &[stream.as_fd()],
        ),
        ask(
            host,
            Request::Release {
                operation: operation(),
                object: object.clone(),
                generation,
            },
            &[],
        ),
    ]
}

#[test]
fn p06_what_does_not_exist_and_what_is_not_granted_get_one_answer() {
    let card = card();
    let daemon = card.start();
    let mut host = card.host();
    host.attach(&port("vm1"));
    let absent = refusals(&mut host, &port("nothing-of-that-name"));
    assert!(
        absent.iter().all(|refusal| refusal.code == Code::NotGranted),
        "{absent:?}"
    );
    for object in [port("vm2"), port("vm3"), volume("vm1"), volume("vm2")] {
        assert_eq!(refusals(&mut host, &object), absent, "{object}");
    }
    assert!(host.redeem(&port("vm1")).is_ok(), "and what is granted is told still");
    daemon.stop();
}

#[test]
fn p06_control_without_grants_another_hosts_port_is_to_be_had() {
    let test = "link::p06_what_does_not_exist_and_what_is_not_granted_get_one_answer";
    fails_without("grant-required", test, "not refused: Some(Redeemed");
}

#[test]
fn hello_comes_first_and_once_and_versions_are_negotiated() {
    let card = card();
    let daemon = card.start();
    let path = &card.config.link_socket;

    let mut silent = Host::connect(path);
    assert_eq!(refusal(silent.ask(Request::Ping, &[])).code, Code::WrongState);
    assert_eq!(silent.receive(), None, "and the connection is closed");

    let mut newer = Host::connect(path);
    let versions = Request::Hello {
        version_min: 2,
        version_max: 9,
        host_epoch: BootEpoch(1),
    };
    assert_eq!(refusal(newer.ask(versions, &[])).code, Code::Version);
    assert_eq!(newer.receive(), None);

    let mut twice = Host::greeted(path);
    assert_eq!(refusal(twice.ask(hello(1), &[])).code, Code::WrongState);
    assert_eq!(twice.receive(), None);

    let wide = Request::Hello {
        version_min: 0,
        version_max: 9,
        host_epoch: BootEpoch(5),
    };
    assert!(matches!(
        Host::connect(path).ask(wide, &[]),
        Some(Reply::Welcome { version: 1, .. })
    ));
    assert_eq!(
        refusal(Host::connect(path).ask(hello(4), &[])).code,
        Code::Stale,
        "a host from before its reboot"
    );
    daemon.stop();
}

#[test]
fn p11_malformed_packets_close_their_connection_only() {
    let card = card();
    let daemon = card.start();
    let mut neighbour = card.host();
    let good = encode(&NumberedRequest {
        seq: 1,
        request: Request::Ping,
    });
    let mut packets: Vec<Vec<u8>> = vec![
        vec![0xff; 100],
        vec![0x9f; 4000],
        vec![0x81; 4000],
        vec![0; LINK_MESSAGE_LEN_MAX + 1],
        [&good[..], &[0]].concat(),
    ];
    packets.extend((1..good.len()).map(|len| good[..len].to_vec()));
    packets.extend((0..good.len() * 8).map(|bit| {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    }));
    for packet in packets {
        let host = card.host();
        host.send(&packet, &[]).unwrap();
        match host.receive() {
            Some(FromDpu::Reply {
                reply: Reply::Refused { refusal },
                ..
            }) => {
                assert!(
                    matches!(refusal.code, Code::Malformed | Code::WrongState),
                    "{refusal:?}"
                );
                if refusal.code == Code::Malformed {
                    assert_eq!(host.receive(), None, "{packet:?}");
                }
            }
            // A flipped bit of the number is another number.
            Some(FromDpu::Reply {
                reply: Reply::Pong,
                seq,
            }) => assert_ne!(seq, 1),
            other => panic!("{packet:?}: {other:?}"),
        }
        assert_eq!(neighbour.ask(Request::Ping, &[]), Some(Reply::Pong));
    }
    // An empty packet cannot be told from the end.
    let host = card.host();
    host.send(&[], &[]).unwrap();
    assert_eq!(host.receive(), None);
    assert_eq!(neighbour.ask(Request::Ping, &[]), Some(Reply::Pong));
    daemon.stop();
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn stray_missing_and_wrong_descriptors_are_refused_and_closed() {
    let card = card();
    let daemon = card.start();
    let mut host = card.host();
    let (generation, incarnation) = host.attach(&port("vm1"));
    let connect = || Request::Connect {
        object: port("vm1"),
        generation,
        incarnation,
    };
    let (stream, other) = UnixStream::pair().unwrap();
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let before = open_files();
    for _ in 0..50 {
        assert_eq!(
            refusal(host.ask(Request::Ping, &[stream.as_fd()])).code,
            Code::Malformed
        );
        assert_eq!(refusal(host.ask(connect(), &[])).code, Code::Malformed);
        assert_eq!(
            refusal(host.ask(connect(), &[stream.as_fd(), other.as_fd()])).code,
            Code::Malformed
        );
        for wrong in [datagram.as_fd(), tcp.as_fd(), file.as_fd()] {
            assert_eq!(refusal(host.ask(connect(), &[wrong])).code, Code::Malformed);
        }
    }
    // More than are looked at: the kernel closes the rest, and the DPU the connection.
    let crowded = card.host();
    let ping = encode(&NumberedRequest {
        seq: 2,
        request: Request::Ping,
    });
    crowded.send(&ping, &[stream.as_fd(); 30]).unwrap();
    let Some(FromDpu::Reply { reply, .. }) = crowded.receive() else {
        panic!("no answer")
    };
    assert_eq!(refusal(Some(reply)).code, Code::Malformed);
    assert_eq!(crowded.receive(), None);
    drop(crowded);
    // Other tests of this process open files, too; 300 leaked ones would show all the same.
    eventually("descriptors are closed", || (open_files() < before + 150).then_some(()));
    assert_eq!(host.ask(connect(), &[stream.as_fd()]), Some(Reply::Connected));
    daemon.stop();
}

#[test]
fn control_without_the_check_stray_descriptors_pass() {
    let test = "link::stray_missing_and_wrong_descriptors_are_refused_and_closed";
    fails_without("message-descriptors", test, "not refused: Some(Pong)");
}

#[test]
fn connections_are_bounded_and_one_that_says_nothing_is_closed() {
    let mut card = card();
    card.config.limits.connections = 3;
    let daemon = card.start();
    let hosts = [card.host(), card.host()];
    let silent = Host::connect(&card.config.link_socket);
    let refused = Host::connect(&card.config.link_socket);
    assert_eq!(refused.receive(), None, "one too many");
    assert_eq!(silent.receive(), None, "no hello came");
    drop(hosts);
    eventually("there is room again", || {
        Host::connect(&card.config.link_socket)
            .ask(hello(1), &[])
            .filter(|r| matches!(r, Reply::Welcome { .. }))
    });
    daemon.stop();
}

#[test]
fn p05_a_flood_of_requests_slows_its_own_connection_only() {
    let mut card = card();
    card.config.limits.requests_per_s = 200;
    let daemon = card.start();
    let mut flooding = card.host();
    let mut neighbour = card.host();
    let flood = std::thread::spawn(move || {
        let start = Instant::now();
        for _ in 0..300 {
            assert_eq!(flooding.ask(Request::Ping, &[]), Some(Reply::Pong));
        }
        start.elapsed()
    });
    let mut taken = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        assert_eq!(neighbour.ask(Request::Ping, &[]), Some(Reply::Pong));
        taken.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(
        flood.join().unwrap() > Duration::from_secs(1),
        "300 requests at 200 a second"
    );
    taken.sort();
    assert!(taken[taken.len() / 2] < Duration::from_millis(500), "{taken:?}");
    daemon.stop();
}

#[test]
fn a_host_that_does_not_read_loses_its_connection() {
    let card = card();
    let daemon = card.start();
    let deaf = card.host();
    let ping = encode(&NumberedRequest {
        seq: 1,
        request: Request::Ping,
    });
    let start = Instant::now();
    while deaf.send(&ping, &[]).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it was never closed");
    }
    assert_eq!(card.host().ask(Request::Ping, &[]), Some(Reply::Pong));
    daemon.stop();
}

#[test]
fn sessions_are_bounded() {
    let mut card = Card::holding(two_ports());
    card.config.limits.sessions = 1;
    let daemon = card.start();
    let mut host = card.host();
    let _stream = host.open(&port("vm1"));
    let binding = host.attach(&port("vm2"));
    assert_eq!(
        host.connect_device(&port("vm2"), binding).unwrap_err().code,
        Code::Quota
    );
    daemon.stop();
}

#[test]
fn p10_another_user_is_turned_away() {
    // Only root can become somebody else.
    if !getuid().is_root() {
        return;
    }
    let mut card = card();
    card.config.host_uids = vec![4242];
    std::fs::set_permissions(card.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = card.start();
    std::fs::set_permissions(&card.config.link_socket, std::fs::Permissions::from_mode(0o777)).unwrap();
    let path = card.config.link_socket.clone();
    // Of this thread only: the kernel keeps user ids by thread.
    let ask_as = |uid: u32| {
        let path = path.clone();
        let thread = std::thread::spawn(move || {
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).unwrap();
            Host::connect(&path).ask(hello(1), &[])
        });
        thread.join().unwrap()
    };
    assert!(matches!(ask_as(0), Some(Reply::Welcome { .. })));
    assert!(matches!(ask_as(4242), Some(Reply::Welcome { .. })), "configured");
    assert_eq!(ask_as(4243), None);
    daemon.stop();
}

#[test]
fn p10_control_without_the_check_anybody_is_served() {
    if getuid().is_root() {
        fails_without("peer-uid", "link::p10_another_user_is_turned_away", "Some(Welcome");
    }
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let first = card();
    let daemon = first.start();
    let mut second = card();
    second.config.link_socket = first.config.link_socket.clone();
    let error = dpu_side::daemon::Daemon::start(&second.config, dpu_side::state_lock::IfHeld::Fail)
        .err()
        .expect("refused");
    assert!(
        error.to_string().contains("in use: another outboard-dpu listens there"),
        "{error}"
    );
    assert!(
        matches!(first.host().ask(Request::Ping, &[]), Some(Reply::Pong)),
        "the first one serves on"
    );
    daemon.stop();

    // As after a crash: a socket that nobody listens on.
    let stale: OwnedFd = {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&second.config.link_socket).unwrap()).unwrap();
        socket
    };
    drop(stale);
    let daemon = second.start();
    assert!(matches!(second.host().ask(Request::Ping, &[]), Some(Reply::Pong)));
    daemon.stop();

    std::fs::write(&second.config.link_socket, b"a file of somebody's").unwrap();
    let error = dpu_side::daemon::Daemon::start(&second.config, dpu_side::state_lock::IfHeld::Fail)
        .err()
        .expect("refused");
    assert!(error.to_string().contains("no socket"), "{error}");
    assert_eq!(
        std::fs::read(&second.config.link_socket).unwrap(),
        b"a file of somebody's"
    );
}
