//! The broker's questions to the daemon, about real traffic.

use outboard_protocol::{
    binding::State,
    card::{FromBroker, FromCard},
    desired::{DesiredState, Egress, Group, VolumeBackend},
    id::ObjectRef,
    inquiry::{
        ANSWER_LEN_MAX, Answer, CAPTURES_MAX, CapturedFrame, End, Filter, INQUIRY_VERSION, ObjectReport, Question,
        SNAPLEN_MAX, Term, Verdict, Way,
    },
    refusal::Code,
};

use crate::{
    broker::{Broker, CardStream},
    fixture::{Card, Change, PATIENCE, desired, eventually, port, two_ports, volume},
    guest::{NetGuest, frame},
};

/// Asks, and waits for the answer.
fn ask(stream: &mut CardStream, id: u64, question: Question) -> Answer {
    stream.say(&FromBroker::Ask {
        id,
        deadline_ms: 10_000,
        question,
    });
    answer(stream, id)
}

fn answer(stream: &mut CardStream, wanted: u64) -> Answer {
    stream.hear("an answer", |message| match message {
        FromCard::Answer { id, answer } if *id == wanted => Some(answer.clone()),
        _ => None,
    })
}

fn trace(frame: Vec<u8>) -> Question {
    Question::Trace {
        port: "vm1".parse().unwrap(),
        frame: frame.into(),
    }
}

fn ends(answer: Answer) -> Vec<(String, Option<String>)> {
    let Answer::Traced { trace } = answer else {
        panic!("{answer:?}")
    };
    let end = |end: &End| (end.port.to_string(), end.dropped.as_ref().map(|r| r.name.clone()));
    trace.ends.iter().map(end).collect()
}

fn report(stream: &mut CardStream, id: u64, object: ObjectRef) -> ObjectReport {
    match ask(stream, id, Question::Object { object }) {
        Answer::Object { report } => report,
        other => panic!("{other:?}"),
    }
}

/// A daemon that holds `card`'s state, and its connection to a broker that asks questions.
fn connected(card: &Card) -> (dpu_side::daemon::Daemon, CardStream) {
    let broker = Broker::new(&card.authority);
    card.identity(&broker.address())
        .save(&card.config.state_dir)
        .expect("saved");
    let daemon = card.start();
    let stream = broker.welcome_as(INQUIRY_VERSION);
    (daemon, stream)
}

#[test]
fn a_trace_tells_what_then_happens_to_the_same_frame() {
    let card = Card::holding(two_ports());
    let (daemon, mut stream) = connected(&card);
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    let (good, spoofed) = (frame(1, 2, b"hello"), frame(3, 2, b"hello"));
    let to = |port: &str, dropped: Option<&str>| vec![(port.to_owned(), dropped.map(str::to_owned))];
    assert_eq!(ends(ask(&mut stream, 1, trace(good.clone()))), to("vm2", None));
    assert_eq!(
        ends(ask(&mut stream, 2, trace(spoofed.clone()))),
        to("vm1", Some("spoofed_mac"))
    );
    // Nothing of that was sent or counted.
    let before = report(&mut stream, 3, port("vm1"));
    assert!(
        before.drops.is_empty() && before.queues.iter().all(|q| q.frames == Some(0)),
        "{before:?}"
    );
    assert!(vm2.take().is_none());
    // The same frames from the guest.
    assert!(vm1.send(&spoofed) && vm1.send(&good));
    assert_eq!(
        vm2.receive(PATIENCE),
        Some(good),
        "the first that arrives is the good one"
    );
    let after = report(&mut stream, 4, port("vm1"));
    let drops: Vec<_> = after.drops.iter().map(|d| (d.reason.name.as_str(), d.frames)).collect();
    assert_eq!(drops, [("spoofed_mac", 1)]);
    assert!(after.drops[0].reason.sentence.ends_with('.'));
    daemon.stop();
}

#[test]
fn an_objects_state_is_told_from_binding_to_rings() {
    let card = Card::holding(two_ports());
    let (daemon, mut stream) = connected(&card);
    let fresh = report(&mut stream, 1, port("vm1"));
    assert!(
        fresh.described && fresh.granted && fresh.set_up && !fresh.open && !fresh.session,
        "{fresh:?}"
    );
    let mut host = card.host();
    let _vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut id = 1;
    let active = eventually("the binding is active", || {
        id += 1;
        let told = report(&mut stream, id, port("vm1"));
        (told.binding.as_ref()?.state == State::Active).then_some(told)
    });
    assert!(active.open && active.session, "{active:?}");
    let queues: Vec<_> = active.queues.iter().map(|q| (q.index, q.role.as_str())).collect();
    assert_eq!(queues, [(0, "receive"), (1, "transmit")]);
    assert!(active.queues.iter().all(|q| q.features & 1 << 32 != 0), "{active:?}");
    let states: Vec<_> = active.incidents.iter().map(|i| i.state).collect();
    assert!(
        states.ends_with(&[State::Prepared, State::Attached, State::Active]),
        "{states:?}"
    );
    // A neighbour that nobody has opened says so.
    let other = report(&mut stream, 1000, port("vm2"));
    assert_eq!(other.binding.map(|b| b.state), Some(State::Prepared));
    assert!(!other.open && other.queues.is_empty());
    let none = report(&mut stream, 1001, port("vm9"));
    assert_eq!(none, ObjectReport::default());
    daemon.stop();
}

#[test]
fn a_volume_that_cannot_be_opened_says_why_and_since_when() {
    let backend = VolumeBackend::File {
        path: "gone.raw".into(),
    };
    let card = Card::holding(desired(1, 0).with("disk1", 1 << 20, backend).grant(volume("disk1"), 1));
    let (daemon, mut stream) = connected(&card);
    let mut id = 0;
    let told = eventually("the error is known", || {
        id += 1;
        let told = report(&mut stream, id, volume("disk1"));
        told.binding.as_ref()?.error.is_some().then_some(told)
    });
    assert!(!told.set_up && told.granted, "{told:?}");
    let last = told.incidents.last().expect("it is remembered");
    assert!(
        last.error.as_ref().is_some_and(|e| e.text.contains("gone.raw")),
        "{last:?}"
    );
    assert!(last.unix_s > 1_600_000_000);
    daemon.stop();
}

#[test]
fn reasons_are_listed_and_odd_questions_are_refused() {
    let card = Card::holding(two_ports());
    let (daemon, mut stream) = connected(&card);
    let Answer::Reasons { reasons } = ask(&mut stream, 1, Question::Reasons) else {
        panic!("reasons")
    };
    assert!(reasons.len() > 20 && reasons.iter().any(|r| r.name == "rx_full" && r.at_receiver));
    let unknown = Question::Trace {
        port: "vm9".parse().unwrap(),
        frame: frame(1, 2, b"x").into(),
    };
    let Answer::Refused { refusal } = ask(&mut stream, 2, unknown) else {
        panic!("refused")
    };
    assert_eq!(refusal.code, Code::Unavailable);
    // A frame that is none is traced to the parser, and the longest one that a message takes is no trouble.
    let Answer::Traced { trace: runt } = ask(&mut stream, 3, trace(vec![1; 5])) else {
        panic!("traced")
    };
    assert_eq!(runt.steps.last().map(|s| s.verdict), Some(Verdict::Drop));
    let long = frame(1, 2, &vec![0; 16_000]);
    assert!(matches!(ask(&mut stream, 4, trace(long)), Answer::Traced { .. }));
    const { assert!(ANSWER_LEN_MAX < outboard_protocol::card::CARD_MESSAGE_LEN_MAX) };
    daemon.stop();
}

#[test]
fn more_questions_than_are_taken_are_refused_or_answered_and_none_is_lost() {
    let card = Card::holding(two_ports());
    let (daemon, mut stream) = connected(&card);
    for id in 1..=24 {
        stream.say(&FromBroker::Ask {
            id,
            deadline_ms: 10_000,
            question: Question::Object { object: port("vm1") },
        });
    }
    for id in 1..=24 {
        match answer(&mut stream, id) {
            Answer::Object { .. } => {}
            Answer::Refused { refusal } => assert_eq!(refusal.code, Code::Busy),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        ask(&mut stream, 25, Question::Reasons),
        Answer::Reasons { .. }
    ));
    daemon.stop();
}

#[test]
fn a_question_in_a_version_that_has_none_ends_the_connection() {
    let card = Card::holding(two_ports());
    let broker = Broker::new(&card.authority);
    card.identity(&broker.address())
        .save(&card.config.state_dir)
        .expect("saved");
    let daemon = card.start();
    let mut stream = broker.welcome_as(INQUIRY_VERSION - 1);
    stream.say(&FromBroker::Ask {
        id: 1,
        deadline_ms: 1000,
        question: Question::Reasons,
    });
    eventually("the card hangs up", || (!stream.listen()).then_some(()));
    assert!(!stream.heard.iter().any(|m| matches!(m, FromCard::Answer { .. })));
    daemon.stop();
}

fn open_capture(port: &str, filter: Filter) -> Question {
    Question::OpenCapture {
        port: port.parse().unwrap(),
        filter,
        snaplen: 2000,
        frames_max: None,
        seconds_max: 60,
    }
}

fn captured(stream: &mut CardStream, id: u64, capture: u64, after: u64) -> Vec<CapturedFrame> {
    match ask(stream, id, Question::ReadCapture { capture, after }) {
        Answer::Captured { frames, .. } => frames,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_capture_shows_what_passed_and_what_was_dropped_and_why() {
    let card = Card::holding(two_ports());
    let (daemon, mut stream) = connected(&card);
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    let udp = Filter {
        terms: vec![Term::Protocol { number: 17 }],
    };
    let Answer::CaptureOpened { capture } = ask(&mut stream, 1, open_capture("vm1", udp)) else {
        panic!("it begins")
    };
    let (good, spoofed, back) = (frame(1, 2, &[7; 600]), frame(3, 2, b"x"), frame(2, 1, b"back"));
    assert!(vm1.send(&spoofed) && vm1.send(&good));
    assert!(vm2.receive(PATIENCE).is_some());
    assert!(vm2.send(&back) && vm1.receive(PATIENCE).is_some());
    let frames = captured(&mut stream, 2, capture, 0);
    let shown: Vec<_> = frames
        .iter()
        .map(|f| (f.way, f.bytes.to_vec(), f.dropped.as_ref().map(|r| r.name.as_str())))
        .collect();
    let want = [
        (Way::FromGuest, spoofed, Some("spoofed_mac")),
        (Way::FromGuest, good, None),
        (Way::ToGuest, back, None),
    ];
    assert_eq!(shown, want);
    // What was read is forgotten; until then it can be read again.
    assert_eq!(captured(&mut stream, 3, capture, 1).len(), 2);
    let close = || Question::CloseCapture { capture };
    assert!(matches!(ask(&mut stream, 4, close()), Answer::Captured { .. }));
    let Answer::Refused { refusal } = ask(&mut stream, 5, Question::ReadCapture { capture, after: 0 }) else {
        panic!("it is gone")
    };
    assert_eq!(refusal.code, Code::Stale);
    // Frames pass as before.
    assert!(vm1.send(&frame(1, 2, b"on")) && vm2.receive(PATIENCE).is_some());
    daemon.stop();
}

#[test]
fn captures_are_few_and_their_bounds_are_held() {
    let card = Card::holding(two_ports());
    let (daemon, mut stream) = connected(&card);
    let refused = |stream: &mut CardStream, id, question| match ask(stream, id, question) {
        Answer::Refused { refusal } => refusal.code,
        other => panic!("{other:?}"),
    };
    let unsound = Filter { terms: vec![Term::And] };
    assert_eq!(
        refused(&mut stream, 1, open_capture("vm1", unsound.clone())),
        Code::Malformed
    );
    let flows = Question::Flows {
        port: None,
        filter: unsound,
        limit: 1,
    };
    assert_eq!(refused(&mut stream, 2, flows), Code::Malformed);
    let long = Question::OpenCapture {
        port: "vm1".parse().unwrap(),
        filter: Filter::default(),
        snaplen: SNAPLEN_MAX + 1,
        frames_max: None,
        seconds_max: 60,
    };
    assert_eq!(refused(&mut stream, 3, long), Code::Malformed);
    assert_eq!(
        refused(&mut stream, 4, open_capture("vm9", Filter::default())),
        Code::Unavailable
    );
    for id in 5..5 + CAPTURES_MAX as u64 {
        let opened = ask(&mut stream, id, open_capture("vm1", Filter::default()));
        assert!(matches!(opened, Answer::CaptureOpened { .. }), "{opened:?}");
    }
    assert_eq!(
        refused(&mut stream, 20, open_capture("vm1", Filter::default())),
        Code::Quota
    );
    daemon.stop();
}

#[test]
fn connections_are_listed_and_ended() {
    let card = Card::holding(filtered());
    let (daemon, mut stream) = connected(&card);
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    let list = |stream: &mut CardStream, id, port: Option<&str>, terms: Vec<Term>| {
        let question = Question::Flows {
            port: port.map(|port| port.parse().unwrap()),
            filter: Filter { terms },
            limit: 1000,
        };
        match ask(stream, id, question) {
            Answer::Flows { flows, more: false } => flows,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(list(&mut stream, 1, None, vec![]), []);
    assert!(vm1.send(&frame(1, 2, b"hello")));
    assert!(
        vm2.receive(PATIENCE).is_some(),
        "vm1 may send what it likes, and vm2 is not filtered"
    );
    let flows = list(&mut stream, 2, Some("vm2"), vec![]);
    assert_eq!(flows.len(), 1, "{flows:?}");
    let flow = &flows[0];
    assert_eq!(
        (flow.network.as_str(), flow.protocol, flow.replied),
        ("blue", 17, false)
    );
    assert_eq!(flow.source, std::net::IpAddr::from([10, 0, 0, 1]));
    assert_eq!(
        (flow.from.as_ref(), flow.to.as_ref()),
        (Some(&"vm1".parse().unwrap()), Some(&"vm2".parse().unwrap()))
    );
    assert_eq!(list(&mut stream, 3, None, vec![Term::Protocol { number: 6 }]), []);
    // The reply passes because of it, and does not once it was ended.
    assert!(
        vm2.send(&frame(2, 1, b"reply")) && vm1.receive(PATIENCE).is_some(),
        "control"
    );
    let flush = Question::FlushFlows {
        port: Some("vm1".parse().unwrap()),
        filter: Filter::default(),
    };
    assert_eq!(ask(&mut stream, 4, flush), Answer::Flushed { count: 1 });
    assert_eq!(list(&mut stream, 5, None, vec![]), []);
    assert!(vm2.send(&frame(2, 1, b"late")));
    let mut id = 100;
    eventually("the late reply is dropped", || {
        id += 1;
        let told = report(&mut stream, id, port("vm1"));
        told.drops
            .iter()
            .any(|drop| drop.reason.name.contains("ingress"))
            .then_some(())
    });
    assert!(vm1.take().is_none());
    daemon.stop();
}

/// Two ports; the first one has a group that lets it send only.
fn filtered() -> DesiredState {
    let mut state = two_ports();
    state.groups.push(Group {
        name: "out".parse().unwrap(),
        egress: Egress::Allow,
        rules: vec![],
    });
    state.ports[0].groups = Some(vec!["out".parse().unwrap()]);
    state
}
