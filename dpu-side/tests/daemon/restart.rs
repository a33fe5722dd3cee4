//! The program is killed, stopped or replaced under its guests, whose sessions somebody keeps meanwhile.

use std::{
    fs::File,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use outboard_protocol::{
    desired::{DesiredState, VolumeBackend},
    id::ObjectRef,
    link::Reply,
};
use outboard_ring::driver::Added;

use crate::{
    fixture::{Card, Change, PATIENCE, desired, eventually, port, volume},
    guest::{BLK_T_IN, BLK_T_OUT, BlkGuest, NetGuest, frame},
    host::{Binding, Host, hello},
    process::{command, start},
};

const SIZE_BYTES: u64 = 1 << 20;
/// Requests that are in flight when the program is killed.
const DEPTH: u64 = 16;
/// Longest time from the start of a new process until a frame has passed again, in most rounds. It takes some 20 ms where
/// nothing else runs; the tests share their cores.
const GAP_MAX: Duration = Duration::from_secs(3);

/// What asks it to stop and has to wait longer is not waiting for requests: after this it gives them up.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Most rounds keep to [`GAP_MAX`]: a busy machine delays some.
fn assert_soon(mut gaps: Vec<Duration>) {
    gaps.sort();
    assert!(gaps[gaps.len() / 2] < GAP_MAX, "{gaps:?}");
}

/// How often to kill it; more by `OUTBOARD_ROUNDS`.
fn rounds(few: u8) -> u8 {
    std::env::var("OUTBOARD_ROUNDS").map_or(few, |n| n.parse().expect("OUTBOARD_ROUNDS is a number up to 255"))
}

fn state() -> DesiredState {
    desired(1, 2)
        .with("disk", SIZE_BYTES, VolumeBackend::File { path: "disk".into() })
        .grant(port("vm1"), 1)
        .grant(port("vm2"), 1)
        .grant(volume("disk"), 1)
}

/// Starts the program without waiting for it.
fn spawn(card: &Card) -> Child {
    let mut command = command(card);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// The guests of a card and what whoever keeps their sessions knows.
struct Guests {
    vm1: NetGuest,
    vm2: NetGuest,
    disk: BlkGuest,
    bindings: Vec<(ObjectRef, Binding)>,
    sent: u8,
}

impl Guests {
    fn start(card: &Card) -> Self {
        let mut host = card.host();
        let objects = [port("vm1"), port("vm2"), volume("disk")];
        let bindings: Vec<_> = objects.map(|object| (object.clone(), host.attach(&object))).into();
        let mut open = |n: usize| host.connect_device(&bindings[n].0, bindings[n].1).expect("attached");
        Self {
            vm1: NetGuest::start(open(0)),
            vm2: NetGuest::start(open(1)),
            disk: BlkGuest::start(open(2)),
            bindings,
            sent: 0,
        }
    }

    /// Takes the sessions to the program that runs now, as soon as it lets that happen.
    fn resume(&mut self, card: &Card) {
        let mut host = eventually("the link is back", || {
            let mut host = Host::try_connect(&card.config.link_socket)?;
            let reply = host.ask(hello(1), &[])?;
            matches!(reply, Reply::Welcome { .. }).then_some(host)
        });
        let devices = [&mut self.vm1.0, &mut self.vm2.0, &mut self.disk.0];
        for ((object, binding), device) in self.bindings.iter().zip(devices) {
            let stream = eventually("the device is back", || host.connect_device(object, *binding).ok());
            device.resume(stream).expect("the device takes its session up again");
        }
    }

    /// A frame passes each way.
    fn talk(&mut self) {
        self.sent = self.sent.wrapping_add(1);
        pass(&mut self.vm1, &mut self.vm2, &frame(1, 2, &[self.sent; 100]));
        pass(&mut self.vm2, &mut self.vm1, &frame(2, 1, &[self.sent; 100]));
    }
}

fn pass(from: &mut NetGuest, to: &mut NetGuest, frame: &[u8]) {
    assert!(from.send(frame), "the device takes frames");
    // One that was sent before may come first.
    while to.receive(PATIENCE).expect("a frame passes") != frame {}
}

fn holding_a_disk() -> Card {
    let card = Card::holding(state());
    let file = File::create(card.volume_path("disk")).unwrap();
    file.set_len(SIZE_BYTES).unwrap();
    card
}

fn end(child: &mut Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait().unwrap();
}

/// What this test does to a disk.
trait UnderLoad {
    fn submit_all(&mut self, data: &[u8]) -> Vec<Added>;
    /// Each of these is answered well, and once.
    fn finish(&mut self, submitted: &[Added]);
    /// Writes until the program is stopped in the middle of some.
    fn catch_in_flight(&mut self, child: &Child, data: &[u8]) -> Vec<Added>;
}

impl UnderLoad for BlkGuest {
    fn submit_all(&mut self, data: &[u8]) -> Vec<Added> {
        (0..DEPTH).map(|n| self.submit(BLK_T_OUT, 2 * n, data, 0)).collect()
    }

    fn finish(&mut self, submitted: &[Added]) {
        let mut open: Vec<u16> = submitted.iter().map(|added| added.head).collect();
        while !open.is_empty() {
            let (head, status) = eventually("each request is answered", || self.answer(submitted));
            assert_eq!(status, 0);
            let at = open.iter().position(|h| *h == head);
            open.swap_remove(at.expect("each request is answered once"));
        }
        assert!(self.answer(submitted).is_none());
    }

    fn catch_in_flight(&mut self, child: &Child, data: &[u8]) -> Vec<Added> {
        let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
        eventually("requests are in flight", || {
            let submitted = self.submit_all(data);
            let end = Instant::now() + Duration::from_millis(5);
            while self.0.in_flight() == 0 && Instant::now() < end {}
            kill(process, Signal::SIGSTOP).unwrap();
            if self.0.in_flight() > 0 {
                return Some(submitted);
            }
            kill(process, Signal::SIGCONT).unwrap();
            self.finish(&submitted);
            None
        })
    }
}

#[test]
fn killed_under_load_it_comes_back_under_its_guests() {
    let card = holding_a_disk();
    let mut child = start(&card);
    let mut guests = Guests::start(&card);
    guests.talk();
    let (mut unfinished, mut gaps) = (0, Vec::new());
    for round in 1..=rounds(5) {
        // The driver did not take FLUSH, so each of these is on its way until it is durable.
        let data = [round; 1024];
        let submitted = guests.disk.catch_in_flight(&child, &data);
        end(&mut child, Signal::SIGKILL);
        unfinished += guests.disk.0.in_flight();
        let killed = Instant::now();
        child = spawn(&card);
        guests.resume(&card);
        guests.talk();
        gaps.push(killed.elapsed());

        guests.disk.finish(&submitted);
        for n in 0..DEPTH {
            assert_eq!(guests.disk.request(BLK_T_IN, 2 * n, &[], 1024), (0, data.to_vec()));
        }
    }
    eprintln!("{unfinished} requests were in flight at kills; back after {gaps:?}");
    assert!(unfinished > 0);
    assert_soon(gaps);
    end(&mut child, Signal::SIGTERM);
}

/// Starts the program in place of the one that runs.
fn take_over(card: &Card) -> Child {
    let mut command = command(card);
    command.arg("--take-over").stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn stopped_and_replaced_under_load_it_loses_no_request() {
    let card = holding_a_disk();
    let mut child = start(&card);
    let mut guests = Guests::start(&card);
    guests.talk();
    let mut gaps = Vec::new();
    for round in 1..=rounds(5) {
        let submitted = guests.disk.submit_all(&[round; 1024]);
        let begin = Instant::now();
        let mut next = take_over(&card);
        assert!(child.wait().unwrap().success(), "the old one ends by itself");
        guests.resume(&card);
        guests.talk();
        gaps.push(begin.elapsed());
        assert!(next.try_wait().unwrap().is_none(), "the new one serves");
        child = next;
        guests.disk.finish(&submitted);
        assert_eq!(guests.disk.request(BLK_T_IN, 0, &[], 512), (0, vec![round; 512]));
    }
    eprintln!("the new program served {gaps:?} after it was started");
    assert_soon(gaps);
    end(&mut child, Signal::SIGTERM);
}

#[test]
fn asked_to_stop_it_finishes_what_is_in_flight_and_is_quick() {
    let card = holding_a_disk();
    let mut child = start(&card);
    let mut guests = Guests::start(&card);
    guests.talk();
    let submitted = guests.disk.submit_all(&[1; 1024]);
    let begin = Instant::now();
    end(&mut child, Signal::SIGTERM);
    let taken = begin.elapsed();
    assert!(taken < STOP_MAX, "{taken:?}");
    assert_eq!(guests.disk.0.in_flight(), 0, "what was taken was finished");
    assert!(!card.config.link_socket.exists());
    let mut child = spawn(&card);
    guests.resume(&card);
    guests.disk.finish(&submitted);
    guests.talk();
    let begin = Instant::now();
    end(&mut child, Signal::SIGTERM);
    eprintln!("stopped within {taken:?}, and {:?} when idle", begin.elapsed());
}

#[test]
fn one_that_hangs_keeps_all_to_itself_until_it_is_killed() {
    let card = holding_a_disk();
    let mut child = start(&card);
    let mut guests = Guests::start(&card);
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap());
    kill(process, Signal::SIGSTOP).unwrap();
    let second = command(&card).output().unwrap();
    let told = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success());
    assert!(
        told.contains(&format!("process {process}")) && told.contains(&format!("kill -9 {process}")),
        "{told}"
    );
    // It wakes up and nobody was there meanwhile.
    kill(process, Signal::SIGCONT).unwrap();
    guests.talk();
    assert_eq!(guests.disk.request(BLK_T_OUT, 0, &[1; 512], 0).0, 0);

    kill(process, Signal::SIGSTOP).unwrap();
    end(&mut child, Signal::SIGKILL);
    let mut child = spawn(&card);
    guests.resume(&card);
    guests.talk();
    assert_eq!(guests.disk.request(BLK_T_IN, 0, &[], 512), (0, vec![1; 512]));
    end(&mut child, Signal::SIGTERM);
}
