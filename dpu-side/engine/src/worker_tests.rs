use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::RecvTimeoutError,
    },
    time::Duration,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use outboard_controls::{Check, Off};

use super::*;
use crate::CALL_TIMEOUT;

/// Counts what the worker does with it; signals `ring_each_breath` in each breath that has work left.
#[derive(Default)]
struct Probe {
    breaths: Arc<AtomicU64>,
    work_left: u64,
    wakes: u64,
    broken: Vec<i32>,
    waiting_at_sleep: bool,
    ring_each_breath: Option<CallFd>,
}

impl Workload for Probe {
    fn breathe(&mut self, io: &mut Io) -> bool {
        self.breaths.fetch_add(1, Ordering::Relaxed);
        self.waiting_at_sleep = false;
        let worked = self.work_left > 0;
        if worked && let Some(call) = &self.ring_each_breath {
            io.signal(call);
            io.signal(call);
        }
        self.work_left = self.work_left.saturating_sub(1);
        worked
    }

    fn before_sleep(&mut self, _: &mut Io) -> bool {
        self.waiting_at_sleep
    }

    fn after_sleep(&mut self, _: &mut Io) {
        self.wakes += 1;
    }

    fn call_broken(&mut self, call: &CallFd, _: &mut Io) {
        self.broken.push(call.as_fd().as_raw_fd());
    }
}

fn config() -> WorkerConfig {
    WorkerConfig {
        name: "worker-under-test".into(),
        core: None,
        spin: Duration::from_micros(50),
    }
}

fn start() -> (WorkerHandle<Probe>, JoinHandle<io::Result<()>>) {
    spawn(config(), Probe::default()).expect("a worker starts")
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).expect("an eventfd")
}

/// The DPU's copy of the host's eventfd: another descriptor, the same file description.
fn call_of(host: &EventFd) -> CallFd {
    let copy: OwnedFd = host.as_fd().try_clone_to_owned().expect("a copy");
    CallFd::new(copy).expect("an eventfd is a call")
}

/// What a hostile host does: clear `O_NONBLOCK` in the shared description and fill the counter.
fn block(host: &EventFd) {
    host.write(u64::MAX - 1).expect("the counter can be filled");
    fcntl(host, FcntlArg::F_SETFL(OFlag::empty())).expect("the flag can be cleared");
}

/// How long something may take that is only to happen at all. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn commands_run_in_order_and_return_their_results() {
    let (worker, thread) = start();
    for left in 0..1000 {
        worker.post(move |probe, _| probe.broken.push(left)).unwrap();
    }
    assert_eq!(worker.call(|probe, _| probe.broken.clone()), Ok((0..1000).collect()));
    worker.stop();
    thread.join().unwrap().unwrap();
    assert_eq!(worker.call(|_, _| ()), Err(WorkerGone));
}

#[test]
fn more_commands_than_a_breath_takes_run_without_another_wake_up() {
    let config = WorkerConfig {
        spin: Duration::ZERO,
        ..config()
    };
    let (worker, _thread) = spawn(config, Probe::default()).unwrap();
    let (entered, in_command) = mpsc::sync_channel(0);
    let (go, gate) = mpsc::sync_channel::<()>(0);
    worker
        .post(move |_, _| {
            entered.send(()).unwrap();
            gate.recv().unwrap();
        })
        .unwrap();
    in_command.recv().unwrap();
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..200 {
        let done = Arc::clone(&done);
        worker
            .post(move |_, _| {
                done.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
    }
    go.send(()).unwrap();
    eventually("all 200 commands", || done.load(Ordering::Relaxed) == 200);
}

#[test]
fn the_worker_ends_when_its_last_handle_goes() {
    let (worker, thread) = start();
    let other = worker.clone();
    drop(worker);
    assert_eq!(other.call(|_, _| 1), Ok(1));
    drop(other);
    thread.join().unwrap().unwrap();
}

#[test]
fn a_panic_in_the_workload_ends_the_worker_and_its_callers_hear_of_it() {
    let (worker, thread) = start();
    assert_eq!(worker.call(|_, _| panic!("for the test")), Err::<(), _>(WorkerGone));
    assert!(thread.join().is_err());
}

/// Nanoseconds a thread of this process has been on a core.
fn cpu_ns(thread: Pid) -> u64 {
    let path = format!("/proc/self/task/{thread}/schedstat");
    let text = std::fs::read_to_string(path).expect("the kernel counts a thread's time");
    text.split(' ')
        .next()
        .and_then(|ns| ns.parse().ok())
        .expect("the first number is the time on a core")
}

#[test]
fn an_idle_worker_sleeps_and_a_kick_wakes_it() {
    let (worker, _thread) = start();
    let kick = eventfd();
    let copy = kick.as_fd().try_clone_to_owned().unwrap();
    let (breaths, thread, copy) = worker
        .call(move |probe, io| {
            io.watch(copy.as_fd()).unwrap();
            (Arc::clone(&probe.breaths), nix::unistd::gettid(), copy)
        })
        .unwrap();
    // It falls asleep when a core lets it, and then stays so.
    eventually("an idle worker does not poll, and costs no CPU", || {
        let at_rest = (breaths.load(Ordering::Relaxed), cpu_ns(thread));
        std::thread::sleep(Duration::from_millis(300));
        (breaths.load(Ordering::Relaxed), cpu_ns(thread)) == at_rest
    });
    for _ in 0..3 {
        let before = breaths.load(Ordering::Relaxed);
        kick.write(1).unwrap();
        eventually("a breath after a kick that nobody drains", || {
            breaths.load(Ordering::Relaxed) > before
        });
        std::thread::sleep(Duration::from_millis(20));
    }
    // Unwatched, the host's copy of the same file description wakes nobody any more.
    worker.call(move |_, io| io.unwatch(copy.as_fd())).unwrap();
    let mut before = 0;
    eventually("the worker sleeps again", || {
        let breath = std::mem::replace(&mut before, breaths.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(100));
        breaths.load(Ordering::Relaxed) == breath
    });
    kick.write(1).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(breaths.load(Ordering::Relaxed), before);
}

#[test]
fn work_found_while_arming_the_kicks_keeps_the_worker_awake() {
    let (worker, _thread) = start();
    let before = worker
        .call(|probe, _| (probe.wakes, probe.waiting_at_sleep = true).0)
        .unwrap();
    // Nothing wakes it but itself: a second `after_sleep` means that it did not sleep at the first.
    eventually("the worker went on by itself", || {
        worker.call(|probe, _| probe.wakes).unwrap() > before + 1
    });
}

#[test]
fn a_core_that_does_not_exist_is_named() {
    let config = WorkerConfig {
        core: Some(1023),
        ..config()
    };
    let error = spawn(config, Probe::default()).err().expect("there is no such core");
    assert!(
        error.to_string().contains("core 1023") && error.fix().contains("taskset"),
        "{error}"
    );
}

#[test]
fn a_kernel_without_io_uring_is_named_as_such() {
    let error = StartError::of_io_uring(Errno::EPERM.into());
    assert!(matches!(&error, StartError::IoUringForbidden(_)));
    assert!(
        error.to_string().contains("io_uring") && error.fix().contains("kernel.io_uring_disabled"),
        "{error}"
    );
    assert!(matches!(
        StartError::of_io_uring(Errno::ENOMEM.into()),
        StartError::IoUring(_)
    ));
}

#[test]
fn signals_of_one_breath_become_one_and_none_is_lost() {
    let (worker, _thread) = start();
    let host = eventfd();
    let call = call_of(&host);
    let again = call.clone();
    worker
        .call(move |_, io| (io.signal(&call), io.signal(&call)).0)
        .unwrap();
    eventually("the guest is signalled", || host.read() == Ok(1));
    assert_eq!(host.read(), Err(Errno::EAGAIN), "once");
    worker
        .call(move |probe, _| {
            probe.ring_each_breath = Some(again);
            probe.work_left = 10_000;
        })
        .unwrap();
    eventually("the work is done", || {
        worker.call(|probe, _| probe.work_left).unwrap() == 0
    });
    eventually("the guest is signalled", || matches!(host.read(), Ok(n) if n <= 10_000));
    assert_eq!(worker.call(|probe, _| probe.broken.len()), Ok(0));
}

#[test]
fn more_guests_than_the_ring_has_entries_are_all_signalled() {
    let (worker, _thread) = start();
    let hosts: Vec<_> = (0..400).map(|_| eventfd()).collect();
    let calls: Vec<_> = hosts.iter().map(call_of).collect();
    worker
        .call(move |_, io| calls.iter().for_each(|call| io.signal(call)))
        .unwrap();
    for host in &hosts {
        eventually("each guest is signalled", || host.read() == Ok(1));
    }
}

#[test]
fn a_full_counter_breaks_its_device_even_if_it_does_not_block() {
    let (worker, _thread) = start();
    let host = eventfd();
    let call = call_of(&host);
    host.write(u64::MAX - 1).unwrap();
    worker.call(move |_, io| io.signal(&call)).unwrap();
    eventually("it is reported", || worker.call(|probe, _| probe.broken.len()) == Ok(1));
}

#[test]
fn a_saturated_blocking_call_breaks_its_device_alone() {
    let (worker, _thread) = start();
    let (hostile, neighbour) = (eventfd(), eventfd());
    let (hostile_call, neighbour_call) = (call_of(&hostile), call_of(&neighbour));
    let hostile_number = hostile_call.as_fd().as_raw_fd();
    // Before the attack the hostile guest's calls arrive, too.
    let call = hostile_call.clone();
    worker.call(move |_, io| io.signal(&call)).unwrap();
    eventually("a call arrives before the attack", || hostile.read() == Ok(1));

    block(&hostile);
    let call = hostile_call.clone();
    let attack = Instant::now();
    worker.call(move |_, io| io.signal(&call)).unwrap();
    let mut taken = Vec::new();
    while attack.elapsed() < CALL_TIMEOUT * 3 {
        let (call, hostile_call) = (neighbour_call.clone(), hostile_call.clone());
        let start = Instant::now();
        worker
            .call(move |_, io| (io.signal(&call), io.signal(&hostile_call)).0)
            .unwrap();
        eventually("the neighbour is signalled", || neighbour.read() == Ok(1));
        taken.push(start.elapsed());
    }
    // A worker that waits for the call waits for ever, as the control shows; a busy machine delays some.
    taken.sort();
    assert!(
        taken[taken.len() / 2] < CALL_TIMEOUT,
        "the neighbour waited for its calls: {taken:?}"
    );
    let broken = worker.call(|probe, _| probe.broken.clone()).unwrap();
    assert!(
        !broken.is_empty() && broken.iter().all(|&fd| fd == hostile_number),
        "{broken:?}"
    );

    // Once the host behaves again, so does its call: nothing stays behind.
    fcntl(&hostile, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    std::thread::sleep(CALL_TIMEOUT * 2);
    hostile.read().unwrap();
    worker.call(move |_, io| io.signal(&hostile_call)).unwrap();
    eventually("a call arrives after the attack", || hostile.read() == Ok(1));
}

#[test]
fn control_a_plain_write_to_a_saturated_blocking_call_stops_the_worker() {
    let (worker, _thread) = start();
    let host = eventfd();
    let call = call_of(&host);
    block(&host);
    worker
        .post(move |_, io| {
            let _off = Off::here(Check::NonBlockingCall);
            io.signal(&call);
        })
        .unwrap();
    let (reply, result) = mpsc::channel();
    worker.post(move |_, _| reply.send(()).unwrap()).unwrap();
    assert_eq!(
        result.recv_timeout(CALL_TIMEOUT * 3),
        Err(RecvTimeoutError::Timeout),
        "the worker is stuck"
    );
    host.read().unwrap();
    assert_eq!(
        result.recv_timeout(PATIENCE),
        Ok(()),
        "and was stuck on the host's eventfd"
    );
}
