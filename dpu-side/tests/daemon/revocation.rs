//! Silence after a revocation: at once, whatever else the DPU has to do.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use dpu_side::{
    broker_channel::Outbox,
    clock,
    datapath::Datapath,
    enforcement::{Disk, Enforcement, Parts},
    gate::Gate,
    link::Links,
    message::{self, Message},
    opener::Opener,
    policy::Tracking,
    sessions::Sessions,
    workers::Workers,
};
use outboard_controls::{Check, Off};
use outboard_engine::{WorkerConfig, WorkerHandle};
use outboard_protocol::{
    card_side::{CardCore, Input, SessionId},
    desired::{DesiredState, Trunk, VolumeBackend},
    id::{Generation, Incarnation, ObjectRef, OperationId},
    link::Reply,
    refusal::Code,
};

use crate::{
    fixture::{CARD, Change, PATIENCE, desired, name, port, two_ports, volume},
    guest::{BLK_T_OUT, BlkGuest, NetGuest, frame},
};

/// From receipt of the desired state to silence.
const DEADLINE: Duration = Duration::from_millis(10);
/// How long nothing may be heard of what is silent.
const SILENCE: Duration = Duration::from_millis(100);
/// How often the deadline is tried: a machine that is busy with other work keeps a thread from its core now and then.
const TRIES: usize = 10;

/// A disk that can be made slow, or broken: a save on a slow one ends when it is slow no more.
#[derive(Clone, Default)]
struct TestDisk {
    slow: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    saving: Arc<AtomicBool>,
    saves: Arc<AtomicU64>,
}

impl Disk for TestDisk {
    fn save(&mut self, _: &[u8]) -> io::Result<()> {
        self.saving.store(true, Ordering::SeqCst);
        while self.slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.saving.store(false, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::other("no space left, for the test"));
        }
        self.saves.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The daemon without its sockets.
struct Dpu {
    gate: Gate,
    disk: TestDisk,
    messages: SyncSender<Message>,
    worker: WorkerHandle<Datapath>,
    thread: std::thread::JoinHandle<()>,
}

impl Dpu {
    fn start(state: DesiredState) -> Self {
        let (core, effects) = CardCore::start(name(CARD), None, clock::now());
        let (messages, inbox) = message::channel();
        let config = WorkerConfig {
            name: "datapath".into(),
            core: None,
            spin: Duration::from_micros(50),
        };
        let (worker, _) = outboard_engine::spawn(config, Datapath::new(messages.clone())).unwrap();
        let workers = Workers::new(vec![worker.clone()]);
        let gate = Gate::new(core.desired(), workers.clone());
        let disk = TestDisk::default();
        let parts = Parts {
            tracking: Tracking {
                connections: 1 << 10,
                ..Tracking::default()
            },
            workers: workers.clone(),
            gate: gate.clone(),
            disk: Box::new(disk.clone()),
            opener: Opener::new("/nonexistent".into(), 1 << 30, {
                let messages = messages.clone();
                move |done| drop(messages.send(Message::Volume(Box::new(done))))
            }),
            sessions: Sessions::new(16, workers, messages.clone()),
            links: Arc::new(Links::default()),
            outbox: Outbox::new(core.desired().version()),
        };
        let enforcement = Enforcement::start(core, effects, parts).unwrap();
        let thread = std::thread::spawn(move || enforcement.run(&inbox));
        let dpu = Self {
            gate,
            disk,
            messages,
            worker,
            thread,
        };
        dpu.receive(state);
        dpu
    }

    /// What the channel does with a desired state. How long until silence.
    fn receive(&self, state: DesiredState) -> Duration {
        let start = Instant::now();
        self.gate.arrived(&state).unwrap();
        let taken = start.elapsed();
        self.messages.send(Message::Broker(Input::Desired(state))).unwrap();
        taken
    }

    fn ask(&self, input: Input, stream: Option<std::os::unix::net::UnixStream>) -> Reply {
        let (reply, answer) = sync_channel(1);
        self.messages.send(Message::Host { input, stream, reply }).unwrap();
        answer.recv().unwrap()
    }

    fn redeem(&self, object: &ObjectRef) -> Reply {
        let operation = OperationId(uuid::Uuid::new_v4());
        self.ask(
            Input::Redeem {
                host: name(CARD),
                operation,
                object: object.clone(),
            },
            None,
        )
    }

    fn open(&self, object: &ObjectRef) -> std::os::unix::net::UnixStream {
        let (generation, incarnation) = crate::fixture::eventually("it is granted", || match self.redeem(object) {
            Reply::Redeemed {
                generation,
                incarnation,
            } => Some((generation, incarnation)),
            _ => None,
        });
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let connect = Input::Connect {
            host: name(CARD),
            object: object.clone(),
            generation,
            incarnation,
        };
        assert_eq!(self.ask(connect, Some(theirs)), Reply::Connected);
        ours
    }

    fn guests(&self) -> (NetGuest, NetGuest) {
        (
            NetGuest::start(self.open(&port("vm1"))),
            NetGuest::start(self.open(&port("vm2"))),
        )
    }

    /// Keeps the enforcement at a slow save.
    fn keep_busy(&self) {
        self.disk.slow.store(true, Ordering::SeqCst);
        let (reply, _answer) = sync_channel(1);
        let hello = Input::HostHello {
            // Not the guests' host: that one's sessions would end with its boot epoch.
            host: name("elsewhere"),
            host_epoch: outboard_protocol::id::BootEpoch(u64::MAX),
            version: 1,
        };
        self.messages
            .send(Message::Host {
                input: hello,
                stream: None,
                reply,
            })
            .unwrap();
        crate::fixture::eventually("the save has begun", || {
            self.disk.saving.load(Ordering::SeqCst).then_some(())
        });
    }

    fn stop(self) {
        self.disk.slow.store(false, Ordering::SeqCst);
        self.messages.send(Message::Stop).unwrap();
        self.thread.join().unwrap();
        self.worker.stop();
    }
}

/// Does a frame that is sent now arrive?
fn passes(from: &mut NetGuest, to: &mut NetGuest, frame: &[u8]) -> bool {
    while to.take().is_some() {}
    from.send(frame);
    to.receive(PATIENCE).is_some()
}

fn is_silent(from: &mut NetGuest, to: &mut NetGuest, frame: &[u8]) -> bool {
    while to.take().is_some() {}
    from.send(frame);
    to.receive(SILENCE).is_none()
}

/// The first of a few tries that keeps the deadline; each has to keep everything else that it asserts.
fn keeps_the_deadline(attempt: impl FnMut() -> Duration) {
    let mut taken = Vec::new();
    let kept = std::iter::repeat_with(attempt).take(TRIES).any(|time| {
        taken.push(time);
        time <= DEADLINE
    });
    assert!(kept, "{taken:?}");
}

#[test]
fn p08_a_subport_goes_silent_with_its_parent_and_alone_within_the_deadline() {
    let with_subport = |revision, parent: bool, subport: bool| {
        let mut state = desired(revision, 3).grant(port("vm2"), 1);
        for (vm, granted) in [("vm1", parent), ("vm3", subport)] {
            if granted {
                state = state.grant(port(vm), 1);
            }
        }
        state.ports[2].trunk = Some(Trunk {
            parent: name("vm1"),
            vlan: 9,
        });
        state
    };
    let attempt = |parent_revoked: bool| {
        let dpu = Dpu::start(with_subport(1, true, true));
        let (mut vm1, mut vm2) = dpu.guests();
        let there = frame(3, 2, b"from the subport");
        let there = [&there[..12], &[0x81, 0, 0, 9], &there[12..]].concat();
        let (back, own) = (frame(2, 3, b"to it"), frame(1, 2, b"the parent's"));
        crate::fixture::eventually("the subport is attached with its parent", || {
            (!is_silent(&mut vm1, &mut vm2, &there)).then_some(())
        });
        assert!(passes(&mut vm2, &mut vm1, &back) && passes(&mut vm1, &mut vm2, &own));
        dpu.keep_busy();
        let taken = dpu.receive(with_subport(2, !parent_revoked, parent_revoked));
        assert!(is_silent(&mut vm1, &mut vm2, &there), "nothing of the subport goes out");
        assert!(is_silent(&mut vm2, &mut vm1, &back), "nothing comes in");
        if parent_revoked {
            assert!(is_silent(&mut vm1, &mut vm2, &own), "nothing of the parent's");
        } else {
            assert!(passes(&mut vm1, &mut vm2, &own), "the parent's own");
        }
        drop((vm1, vm2));
        dpu.stop();
        taken
    };
    for parent_revoked in [true, false] {
        keeps_the_deadline(|| attempt(parent_revoked));
    }
}

#[test]
fn p08_a_revoked_port_is_silent_within_the_deadline_while_the_disk_is_busy() {
    keeps_the_deadline(|| {
        let dpu = Dpu::start(two_ports());
        let (mut vm1, mut vm2) = dpu.guests();
        assert!(passes(&mut vm1, &mut vm2, &frame(1, 2, b"before")));
        assert!(passes(&mut vm2, &mut vm1, &frame(2, 1, b"before")));
        dpu.keep_busy();
        let taken = dpu.receive(desired(2, 2).grant(port("vm2"), 1));
        assert!(is_silent(&mut vm1, &mut vm2, &frame(1, 2, b"out")), "nothing goes out");
        assert!(is_silent(&mut vm2, &mut vm1, &frame(2, 1, b"in")), "nothing comes in");
        assert!(dpu.disk.saving.load(Ordering::SeqCst), "the disk was busy all the time");
        dpu.stop();
        taken
    });
}

#[test]
fn p08_control_without_the_gate_the_revocation_waits_for_the_disk() {
    let dpu = Dpu::start(two_ports());
    let (mut vm1, mut vm2) = dpu.guests();
    assert!(passes(&mut vm1, &mut vm2, &frame(1, 2, b"before")));
    dpu.keep_busy();
    assert!(passes(&mut vm1, &mut vm2, &frame(1, 2, b"while the disk is busy")));
    {
        let _off = Off::here(Check::SilenceFirst);
        dpu.receive(desired(2, 2).grant(port("vm2"), 1));
    }
    assert!(dpu.disk.saving.load(Ordering::SeqCst));
    assert!(
        passes(&mut vm1, &mut vm2, &frame(1, 2, b"out")),
        "the revoked port is heard"
    );
    dpu.stop();
}

#[test]
fn p08_a_revoked_volume_completes_nothing_more() {
    let disk = || desired(1, 0).with("disk", 1 << 20, VolumeBackend::Memory);
    keeps_the_deadline(|| {
        let dpu = Dpu::start(disk().grant(volume("disk"), 1));
        let mut vm = BlkGuest::start(dpu.open(&volume("disk")));
        assert_eq!(vm.request(BLK_T_OUT, 0, &[1; 512], 0).0, 0);
        dpu.keep_busy();
        let mut without = disk();
        without.revision = outboard_protocol::id::Revision(2);
        let taken = dpu.receive(without);
        vm.submit(BLK_T_OUT, 0, &[2; 512], 0);
        std::thread::sleep(SILENCE);
        assert!(!vm.is_answered(), "no answer after the revocation");
        assert!(dpu.disk.saving.load(Ordering::SeqCst), "the disk was busy all the time");
        dpu.stop();
        taken
    });
}

#[test]
fn p08_sessions_that_do_what_they_like_do_not_delay_silence() {
    let dpu = Dpu::start(two_ports());
    let (vm1, mut vm2) = dpu.guests();
    let stop = Arc::new(AtomicBool::new(false));
    // One guest stops and starts its queue without pause; the other floods.
    let toggling = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut vm1 = vm1;
            use vhost::vhost_user::VhostUserFrontend;
            while !stop.load(Ordering::SeqCst) {
                if vm1.0.frontend.set_vring_enable(0, false).is_err()
                    || vm1.0.frontend.set_vring_enable(0, true).is_err()
                {
                    return;
                }
            }
        })
    };
    let mut taken = Vec::new();
    for revision in 2..40u64 {
        for n in 0..20 {
            vm2.send(&frame(2, 1, &[n; 1000]));
        }
        let state = desired(revision, 2).grant(port("vm1"), 1).grant(port("vm2"), 1);
        taken.push(dpu.receive(state));
    }
    taken.push(dpu.receive(desired(100, 2)));
    taken.sort();
    // A session that could delay silence would delay most of them; a busy machine delays some.
    assert!(taken[taken.len() / 2] <= DEADLINE, "{taken:?}");
    stop.store(true, Ordering::SeqCst);
    toggling.join().unwrap();
    dpu.stop();
}

#[test]
fn nothing_is_opened_that_a_newer_state_does_not_grant() {
    let dpu = Dpu::start(two_ports());
    let fence = |generation| outboard_protocol::binding::Fence {
        generation: Generation(generation),
        incarnation: Incarnation(generation),
    };
    assert_eq!(dpu.gate.open(&port("vm1"), fence(1), &name(CARD)), Ok(true));
    assert_eq!(
        dpu.gate.open(&port("vm1"), fence(2), &name(CARD)),
        Ok(false),
        "another generation"
    );
    assert_eq!(
        dpu.gate.open(&port("vm1"), fence(1), &name("elsewhere")),
        Ok(false),
        "another host"
    );
    dpu.gate.arrived(&desired(2, 2).grant(port("vm1"), 2)).unwrap();
    assert_eq!(
        dpu.gate.open(&port("vm1"), fence(1), &name(CARD)),
        Ok(false),
        "the enforcement is behind"
    );
    dpu.stop();
}

#[test]
fn what_cannot_be_made_durable_is_not_granted_and_is_tried_again() {
    let dpu = Dpu::start(two_ports());
    // Once this is answered, the desired state is durable.
    assert!(matches!(dpu.redeem(&port("vm2")), Reply::Redeemed { .. }));
    dpu.disk.broken.store(true, Ordering::SeqCst);
    let Reply::Refused { refusal } = dpu.redeem(&port("vm1")) else {
        panic!("redeemed without a record")
    };
    assert_eq!(refusal.code, Code::Unavailable);
    dpu.disk.broken.store(false, Ordering::SeqCst);
    let (mut vm1, mut vm2) = dpu.guests();
    assert!(passes(&mut vm1, &mut vm2, &frame(1, 2, b"once it is durable")));

    // A session that ends while the disk is broken is not forgotten: its binding drains once the disk works.
    dpu.disk.broken.store(true, Ordering::SeqCst);
    dpu.receive(desired(2, 2).grant(port("vm2"), 1));
    assert!(is_silent(&mut vm1, &mut vm2, &frame(1, 2, b"silent all the same")));
    drop(vm1);
    std::thread::sleep(Duration::from_millis(100));
    dpu.disk.broken.store(false, Ordering::SeqCst);
    dpu.receive(desired(3, 2).grant(port("vm1"), 2).grant(port("vm2"), 1));
    let end = Instant::now() + PATIENCE;
    while !matches!(
        dpu.redeem(&port("vm1")),
        Reply::Redeemed {
            generation: Generation(2),
            ..
        }
    ) {
        assert!(Instant::now() < end, "the former binding never drained");
        std::thread::sleep(Duration::from_millis(50));
    }
    dpu.stop();
}

#[test]
fn time_passes_however_many_messages_come() {
    let mut state = two_ports();
    state.grants[0].expires_unix_s = Some(clock::now().unix_s + 2);
    let dpu = Dpu::start(state);
    assert!(matches!(dpu.redeem(&port("vm2")), Reply::Redeemed { .. }));
    let before = dpu.disk.saves.load(Ordering::SeqCst);
    let stop = Arc::new(AtomicBool::new(false));
    let flood = || {
        let (messages, stopped) = (dpu.messages.clone(), Arc::clone(&stop));
        let session = SessionId(u64::MAX);
        std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                messages
                    .send(Message::Datapath(Input::SessionClosed { session }))
                    .unwrap();
            }
        })
    };
    let floods: Vec<_> = (0..8).map(|_| flood()).collect();
    crate::fixture::eventually("the expired grant is ended", || {
        (dpu.disk.saves.load(Ordering::SeqCst) > before).then_some(())
    });
    stop.store(true, Ordering::SeqCst);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    dpu.stop();
}

#[test]
fn a_call_that_its_host_made_block_costs_that_session_only() {
    use vhost::VhostBackend;
    let dpu = Dpu::start(
        desired(1, 3)
            .grant(port("vm1"), 1)
            .grant(port("vm2"), 1)
            .grant(port("vm3"), 1),
    );
    let (mut vm1, mut vm2) = dpu.guests();
    let mut vm3 = NetGuest::start_with(dpu.open(&port("vm3")), 0);
    assert!(passes(&mut vm1, &mut vm3, &frame(1, 3, b"before")));
    vm3.0.call(0).read().unwrap();
    vm3.0.call(0).write(u64::MAX - 1).unwrap();
    vm1.send(&frame(1, 3, b"this cannot be signalled"));
    let start = Instant::now();
    let mut taken = Vec::new();
    while start.elapsed() < Duration::from_millis(400) {
        let sent = Instant::now();
        assert!(passes(&mut vm1, &mut vm2, &frame(1, 2, b"neighbours")));
        taken.push(sent.elapsed());
    }
    taken.sort();
    assert!(taken[taken.len() / 2] < Duration::from_millis(50), "{taken:?}");
    crate::fixture::eventually("its session is closed", || vm3.0.frontend.get_features().err());
    drop(vm3);
    let mut vm3 = NetGuest::start(crate::fixture::eventually("the device can be opened again", || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (generation, incarnation) = (Generation(1), Incarnation(1));
        let connect = Input::Connect {
            host: name(CARD),
            object: port("vm3"),
            generation,
            incarnation,
        };
        (dpu.ask(connect, Some(theirs)) == Reply::Connected).then_some(ours)
    }));
    assert!(passes(&mut vm1, &mut vm3, &frame(1, 3, b"after")));
    dpu.stop();
}
