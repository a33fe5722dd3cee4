//! The channel to the broker: desired states, inventories, counters, trouble.

use std::time::Duration;

use outboard_protocol::{
    binding::State,
    card::{BindingReport, FromBroker, FromCard},
    desired::VolumeBackend,
    id::{ObjectRef, Revision},
    link::FromDpu,
    refusal::{Code, Refusal},
};

use crate::{
    broker::{Authority, Broker, CardStream},
    fixture::{Card, Change, PATIENCE, desired, eventually, fails_without, port, two_ports, volume},
    guest::{NetGuest, frame},
};

fn start() -> (Card, Broker) {
    let authority = Authority::new();
    let broker = Broker::new(&authority);
    let mut card = Card::new();
    card.authority = authority;
    card.identity(&broker.address()).save(&card.config.state_dir).unwrap();
    (card, broker)
}

/// The newest report about an object, if it says so.
fn reported(stream: &mut CardStream, object: &ObjectRef, state: State) -> BindingReport {
    stream.hear(&format!("{object} is {state:?}"), |message| match message {
        FromCard::Inventory { bindings, .. } => bindings
            .iter()
            .find(|b| b.object == *object && b.state == state)
            .cloned(),
        _ => None,
    })
}

fn applied(stream: &mut CardStream, revision: u64) {
    stream.hear("applied", |m| {
        (*m == FromCard::Applied {
            revision: Revision(revision),
        })
        .then_some(())
    });
}

#[test]
fn a_desired_state_is_applied_used_and_revoked() {
    let (card, broker) = start();
    let daemon = card.start();
    let mut stream = broker.welcome();
    stream.desire(two_ports());
    applied(&mut stream, 1);
    reported(&mut stream, &port("vm1"), State::Prepared);
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    assert!(vm1.send(&frame(1, 2, &[1; 100])));
    assert!(vm2.receive(PATIENCE).is_some());
    reported(&mut stream, &port("vm1"), State::Active);
    stream.hear("both ports' counters", |message| match message {
        FromCard::Telemetry { ports, .. } => {
            let of = |name: &str| ports.iter().find(|p| p.name.as_str() == name);
            (of("vm1")?.tx_frames == 1 && of("vm2")?.rx_bytes == 142).then_some(())
        }
        _ => None,
    });

    stream.desire(desired(2, 2).grant(port("vm2"), 1));
    applied(&mut stream, 2);
    let released = reported(&mut stream, &port("vm1"), State::Released);
    assert_eq!(released.error, None);
    vm1.send(&frame(1, 2, b"after"));
    assert_eq!(vm2.receive(Duration::from_millis(200)), None);
    // The host is told, unasked.
    while !host
        .notices
        .iter()
        .any(|n| matches!(n, FromDpu::Revoked { object, .. } if *object == port("vm1")))
    {
        let notice = host.receive().expect("a notice");
        host.notices.push(notice);
    }
    daemon.stop();
}

#[test]
fn an_older_or_contradicting_desired_state_changes_nothing() {
    let (card, broker) = start();
    let daemon = card.start();
    let mut stream = broker.welcome();
    let mut newer = two_ports();
    newer.revision = Revision(7);
    stream.desire(newer);
    applied(&mut stream, 7);
    let mut host = card.host();
    let mut vm1 = NetGuest::start(host.open(&port("vm1")));
    let mut vm2 = NetGuest::start(host.open(&port("vm2")));
    // Rolled back, and without grants.
    stream.desire(desired(6, 2));
    let mut twice = desired(8, 2);
    twice.ports.extend(desired(8, 1).ports);
    stream.desire(twice);
    // The control need not wait long for what does not come.
    let patience = match std::env::var_os("OUTBOARD_CHECKS_OFF") {
        Some(_) => Duration::from_secs(5),
        None => PATIENCE,
    };
    for n in 0..20 {
        assert!(vm1.send(&frame(1, 2, &[n; 60])));
        assert!(vm2.receive(patience).is_some(), "traffic goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
    stream.desire(two_ports_at(9));
    applied(&mut stream, 9);
    assert!(
        !stream
            .heard
            .iter()
            .any(|m| matches!(m, FromCard::Applied { revision } if matches!(revision.0, 6 | 8)))
    );
    daemon.stop();
}

#[test]
fn p07_control_without_the_high_water_mark_a_rollback_is_taken_up() {
    fails_without(
        "high-water",
        "channel::an_older_or_contradicting_desired_state_changes_nothing",
        "panicked",
    );
}

fn two_ports_at(revision: u64) -> outboard_protocol::desired::DesiredState {
    desired(revision, 2).grant(port("vm1"), 1).grant(port("vm2"), 1)
}

#[test]
fn a_card_that_is_dropped_or_refused_comes_back() {
    let (card, broker) = start();
    let daemon = card.start();
    let mut stream = broker.welcome();
    stream.desire(two_ports());
    applied(&mut stream, 1);
    drop(stream);
    let mut refused = broker.accept();
    let hello = refused.hear("a hello", |m| Some(m.clone()));
    assert!(
        matches!(
            hello,
            FromCard::Hello {
                revision: Revision(1),
                ..
            }
        ),
        "it says what it holds: {hello:?}"
    );
    refused.say(&FromBroker::Refused {
        refusal: Refusal::new(Code::Stale, "not now"),
    });
    drop(refused);
    // Neither silence nor rubbish holds it up for ever.
    let mut confusing = broker.accept();
    confusing.hear("a hello", |_| Some(()));
    confusing.say(&FromBroker::InventoryAck { seq: 99 });
    drop(confusing);
    let mut stream = broker.welcome();
    reported(&mut stream, &port("vm1"), State::Prepared);
    card.host().attach(&port("vm1"));
    daemon.stop();
}

#[test]
fn a_volume_that_cannot_be_served_is_reported_and_others_work() {
    let (card, broker) = start();
    let daemon = card.start();
    let mut stream = broker.welcome();
    let file = |path: &str| VolumeBackend::File { path: path.into() };
    let small = card.volume_path("small.raw");
    std::fs::File::create(&small).unwrap().set_len(1 << 19).unwrap();
    stream.desire(
        desired(1, 1)
            .with("missing", 1 << 20, file("missing.raw"))
            .with("small", 1 << 20, file("small.raw"))
            .with("twin", 1 << 19, file("small.raw"))
            .with("memory", 1 << 20, VolumeBackend::Memory)
            .grant(volume("missing"), 1)
            .grant(volume("small"), 1)
            .grant(volume("memory"), 1)
            .grant(port("vm1"), 1),
    );
    for prepared in [volume("memory"), port("vm1")] {
        assert_eq!(reported(&mut stream, &prepared, State::Prepared).error, None);
    }
    let error = |stream: &mut CardStream, object| {
        let find = |message: &FromCard| match message {
            FromCard::Inventory { bindings, .. } => bindings.iter().find(|b| b.object == object)?.error.clone(),
            _ => None,
        };
        stream.hear("an error", find)
    };
    let missing = error(&mut stream, volume("missing"));
    assert!(
        missing.code == Code::Unavailable && missing.text.contains("missing.raw"),
        "{missing:?}"
    );
    let too_small = error(&mut stream, volume("small"));
    assert!(too_small.text.contains("small.raw"), "{too_small:?}");

    let mut host = card.host();
    assert_eq!(host.redeem(&volume("missing")).unwrap_err().code, Code::Unavailable);
    let hint = host.redeem(&volume("missing")).unwrap_err().text;
    assert!(!hint.contains("missing.raw"), "the host learns no path: {hint}");
    host.attach(&volume("memory"));

    // Once the operator has made the file, the DPU finds it by itself.
    std::fs::File::create(card.volume_path("missing.raw"))
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert_eq!(reported(&mut stream, &volume("missing"), State::Prepared).error, None);
    host.attach(&volume("missing"));
    daemon.stop();
}

#[test]
fn an_expired_certificate_stops_no_guest_and_a_new_one_is_taken_up() {
    let (card, broker) = start();
    card.authority
        .identity_until("local", &broker.address(), 2020)
        .save(&card.config.state_dir)
        .unwrap();
    let mut file = dpu_side::state_file::StateFile::open(&card.config.state_dir).unwrap().0;
    file.save(&crate::fixture::record(two_ports())).unwrap();
    let daemon = card.start();
    card.host().attach(&port("vm1"));
    card.identity(&broker.address()).save(&card.config.state_dir).unwrap();
    let mut stream = broker.welcome();
    eventually("the inventory", || {
        stream.listen();
        stream
            .heard
            .iter()
            .any(|m| matches!(m, FromCard::Inventory { .. }))
            .then_some(())
    });
    daemon.stop();
}

#[test]
fn a_certificate_that_the_broker_does_not_accept_is_told_from_other_trouble() {
    use dpu_side::{
        broker_stream::{StreamError, connect},
        tls::{Rejection, enrolled, rejection},
    };
    let authority = Authority::new();
    let ours = authority.identity("local", "");
    let mut foreign = Authority::new().identity("local", "");
    foreign.ca.clone_from(&ours.ca);
    let mut untrusting = ours.clone();
    untrusting.ca = Authority::new().identity("local", "").ca;
    let cases = [
        (authority.identity_until("local", "", 2020), Rejection::OurCertificate),
        (foreign, Rejection::OurCertificate),
        (untrusting, Rejection::TheirAuthority),
    ];
    for (identity, expected) in cases {
        let broker = Broker::new(&authority);
        let address = broker.address();
        let serving = std::thread::spawn(move || {
            let mut stream = broker.accept();
            while stream.listen() {}
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let error = runtime.block_on(async {
            match connect(&address, enrolled(&identity).unwrap()).await {
                Ok((_sender, mut receiver)) => receiver.receive().await.map(|_| ()).unwrap_err(),
                Err(error) => error,
            }
        });
        let StreamError::Io(error) = error else {
            panic!("{error}")
        };
        assert_eq!(rejection(&error), Some(expected), "{error}");
        serving.join().unwrap();
    }
}
