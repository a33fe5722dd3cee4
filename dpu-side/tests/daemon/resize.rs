//! Volumes that grow while a guest uses them.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
};

use outboard_protocol::{
    card::{BindingReport, FromCard},
    desired::{DesiredState, VolumeBackend},
};
use vhost::vhost_user::VhostUserFrontend;

use crate::{
    broker::{Broker, CardStream},
    fixture::{Card, Change, desired, eventually, volume},
    guest::{BLK_T_IN, BLK_T_OUT, BlkGuest},
};

const MIB: u64 = 1 << 20;
/// virtio 1.3 §5.2.6: the request failed.
const S_IOERR: u8 = 1;
/// vhost-user, "Back-end message types": VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
const CONFIG_CHANGE: u32 = 2;

fn with_disk(revision: u64, size_bytes: u64, backend: VolumeBackend) -> DesiredState {
    desired(revision, 0)
        .with("disk", size_bytes, backend)
        .grant(volume("disk"), 1)
}

fn file() -> VolumeBackend {
    VolumeBackend::File { path: "disk".into() }
}

/// The newest report of the disk's binding that `wanted` accepts.
fn report(stream: &mut CardStream, wanted: impl Fn(&BindingReport) -> bool) -> BindingReport {
    eventually("the binding is reported", || {
        let newest = stream.heard.iter().rev().find_map(|message| match message {
            FromCard::Inventory { bindings, .. } => bindings.iter().find(|b| b.object == volume("disk")).cloned(),
            _ => None,
        });
        if let Some(newest) = newest.filter(&wanted) {
            return Some(newest);
        }
        assert!(stream.listen());
        None
    })
}

/// The end on which the VMM hears what the device says of itself.
fn back_channel(vm: &mut BlkGuest) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    vm.0.frontend.set_backend_request_fd(&theirs).expect("it is taken");
    ours.set_nonblocking(true).unwrap();
    ours
}

/// Config changes announced since this was last asked.
fn announced(channel: &mut UnixStream) -> usize {
    let (mut count, mut message) = (0, [0; 12]);
    loop {
        match channel.read(&mut message) {
            Ok(12) => assert_eq!(message[..4], CONFIG_CHANGE.to_ne_bytes()),
            Ok(len) => panic!("{len} bytes"),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return count,
            Err(e) => panic!("{e}"),
        }
        count += 1;
    }
}

fn card_with(broker: &Broker, card: Card) -> Card {
    card.identity(&broker.address()).save(&card.config.state_dir).unwrap();
    card
}

#[test]
fn a_volume_grows_under_its_guest_once_its_file_has() {
    let card = Card::holding(with_disk(1, MIB, file()));
    let broker = Broker::new(&card.authority);
    let card = card_with(&broker, card);
    let disk = File::create(card.volume_path("disk")).unwrap();
    disk.set_len(MIB).unwrap();
    let daemon = card.start();
    let mut stream = broker.welcome();
    let mut vm = BlkGuest::start(card.host().open(&volume("disk")));
    let mut channel = back_channel(&mut vm);
    let beyond = MIB / 512;
    assert_eq!(vm.capacity(), MIB / 512);
    assert_eq!(vm.request(BLK_T_OUT, 0, &[1; 512], 0).0, 0);
    assert_eq!(vm.request(BLK_T_OUT, beyond, &[2; 512], 0).0, S_IOERR);

    // The operator forgot the file: he is told, and the guest goes on as it was.
    stream.desire(with_disk(2, 2 * MIB, file()));
    let short = report(&mut stream, |b| b.error.is_some());
    let text = short.error.unwrap().text;
    assert!(
        text.contains("volume disk") && text.contains("truncate -s 2097152"),
        "{text}"
    );
    assert_eq!((vm.capacity(), announced(&mut channel)), (MIB / 512, 0));
    assert_eq!(vm.request(BLK_T_IN, 0, &[], 512), (0, vec![1; 512]));

    // Once it has grown, so does the device, without another word and without another session.
    disk.set_len(2 * MIB).unwrap();
    report(&mut stream, |b| b.error.is_none());
    assert_eq!(vm.capacity(), 2 * MIB / 512);
    assert_eq!(announced(&mut channel), 1);
    assert_eq!(vm.request(BLK_T_OUT, beyond, &[2; 512], 0).0, 0);
    assert_eq!(vm.request(BLK_T_IN, beyond, &[], 512), (0, vec![2; 512]));

    // With the file there first, it is a matter of moments.
    disk.set_len(4 * MIB).unwrap();
    stream.desire(with_disk(3, 4 * MIB, file()));
    eventually("the guest is told", || (announced(&mut channel) == 1).then_some(()));
    assert_eq!(vm.capacity(), 4 * MIB / 512);
    drop(vm);
    daemon.stop();
}

#[test]
fn a_restart_before_the_file_has_grown_takes_nothing_from_the_guest() {
    let card = Card::holding(with_disk(1, MIB, file()));
    let broker = Broker::new(&card.authority);
    let card = card_with(&broker, card);
    let disk = File::create(card.volume_path("disk")).unwrap();
    disk.set_len(MIB).unwrap();
    let daemon = card.start();
    let mut stream = broker.welcome();
    card.host().attach(&volume("disk"));
    stream.desire(with_disk(2, 2 * MIB, file()));
    report(&mut stream, |b| b.error.is_some());
    daemon.stop();

    let daemon = card.start();
    let mut stream = broker.welcome();
    let mut vm = BlkGuest::start(card.host().open(&volume("disk")));
    assert_eq!(vm.capacity(), MIB / 512);
    report(&mut stream, |b| b.error.is_some());
    disk.set_len(2 * MIB).unwrap();
    eventually("it has its size", || (vm.capacity() == 2 * MIB / 512).then_some(()));
    report(&mut stream, |b| b.error.is_none());
    daemon.stop();
}

#[test]
fn a_volume_in_memory_grows_within_the_limit() {
    let mut card = Card::holding(with_disk(1, MIB, VolumeBackend::Memory));
    card.config.limits.memory_volume_bytes = 2 * MIB;
    let broker = Broker::new(&card.authority);
    let card = card_with(&broker, card);
    let daemon = card.start();
    let mut stream = broker.welcome();
    let mut vm = BlkGuest::start(card.host().open(&volume("disk")));
    assert_eq!(vm.request(BLK_T_OUT, 0, &[1; 512], 0).0, 0);
    stream.desire(with_disk(2, 4 * MIB, VolumeBackend::Memory));
    let refused = report(&mut stream, |b| b.error.is_some());
    assert!(refused.error.unwrap().text.contains("limits.memory_volume_bytes"));
    assert_eq!(vm.capacity(), MIB / 512);
    assert_eq!(vm.request(BLK_T_IN, 0, &[], 512), (0, vec![1; 512]));
    drop(vm);
    daemon.stop();
}
