//! A volume's file that somebody else has locked.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use outboard_protocol::{
    binding::State,
    card::{BindingReport, FromCard},
    card_side::PREPARE_RETRY_MS,
    desired::{DesiredState, VolumeBackend},
    id::ObjectRef,
    link::FromDpu,
    refusal::Code,
};

use crate::{
    broker::{Broker, CardStream},
    fixture::{Card, Change, desired, eventually, port, volume},
    host::Host,
};

const SIZE_BYTES: u64 = 1 << 20;

fn with_disk(state: DesiredState) -> DesiredState {
    state
        .with("disk", SIZE_BYTES, VolumeBackend::File { path: "disk".into() })
        .grant(volume("disk"), 1)
}

fn newest(stream: &mut CardStream, object: &ObjectRef, wanted: impl Fn(&BindingReport) -> bool) -> BindingReport {
    let mut newest = None;
    eventually("the binding is reported", || {
        let all = stream.heard.iter().rev();
        newest = all
            .filter_map(|message| match message {
                FromCard::Inventory { bindings, .. } => bindings.iter().find(|b| b.object == *object).cloned(),
                _ => None,
            })
            .next();
        if newest.as_ref().is_some_and(&wanted) {
            return newest.take();
        }
        assert!(stream.listen());
        None
    })
}

/// What redeeming is answered by while the file is locked.
fn is_told_to_wait(host: &mut Host) {
    let refusal = host.redeem(&volume("disk")).unwrap_err();
    assert!(
        refusal.code == Code::Unavailable && refusal.text.contains("try again"),
        "{refusal}"
    );
}

#[test]
fn a_locked_file_is_waited_for_and_holds_nothing_up() {
    let card = Card::holding(desired(1, 1));
    let broker = Broker::new(&card.authority);
    card.identity(&broker.address()).save(&card.config.state_dir).unwrap();
    let file = File::create(card.volume_path("disk")).unwrap();
    file.set_len(SIZE_BYTES).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();

    let daemon = card.start();
    let mut stream = broker.welcome();
    stream.desire(with_disk(desired(2, 1).grant(port("vm1"), 1)));
    let locked = newest(&mut stream, &volume("disk"), |b| b.error.is_some());
    assert_eq!(locked.state, State::Reserved);
    assert!(
        locked.error.as_ref().unwrap().text.contains("is in use by"),
        "{locked:?}"
    );
    let mut host = card.host();
    is_told_to_wait(&mut host);

    // Everything else goes on meanwhile, revocations above all.
    host.attach(&port("vm1"));
    stream.desire(with_disk(desired(3, 1)));
    assert!(matches!(host.receive(), Some(FromDpu::Revoked { object, .. }) if object == port("vm1")));
    is_told_to_wait(&mut host);

    drop(lock);
    let freed = Instant::now();
    host.attach(&volume("disk"));
    let taken = freed.elapsed();
    assert!(taken < Duration::from_millis(PREPARE_RETRY_MS), "{taken:?}");
    let served = newest(&mut stream, &volume("disk"), |b| b.state == State::Attached);
    assert_eq!(served.error, None);
    daemon.stop();
}

#[test]
fn what_is_revoked_while_it_is_locked_is_not_taken_up() {
    let card = Card::holding(desired(1, 1));
    let broker = Broker::new(&card.authority);
    card.identity(&broker.address()).save(&card.config.state_dir).unwrap();
    let path = card.volume_path("disk");
    File::create(&path).unwrap().set_len(SIZE_BYTES).unwrap();
    let lock = || Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
    let held = lock().unwrap();

    let daemon = card.start();
    let mut stream = broker.welcome();
    stream.desire(with_disk(desired(2, 1)));
    newest(&mut stream, &volume("disk"), |b| b.error.is_some());
    stream.desire(desired(3, 1));
    newest(&mut stream, &volume("disk"), |b| b.state == State::Released);
    drop(held);
    std::thread::sleep(Duration::from_millis(300));
    assert!(lock().is_ok(), "nobody opened it");
    daemon.stop();
}
