//! Two workers in threads of their own, and guests in others: nothing is lost, overtaken or given back twice.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::FEATURES;
use outboard_ring::driver::GuestRam;
use outboard_vswitch::Switch;
use vhost_net_dpu::header::NetHeader;

use crate::{
    fleet::{Fleet, Silent},
    frames::udp,
    rig::{Pair, mac},
};

/// Flows from each guest, and frames of each.
const FLOWS: u32 = 16;
const FRAMES: u32 = 2_500;
/// How long it may take on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How many frames a guest may have sent more than it got. The other one may have as many, so that twice this number are on
/// their way to a guest at most: no more than one of its queues has buffers, and all of them may be for that one.
const WINDOW: u32 = 32;

fn frame(from: u8, to: u8, flow: u8, number: u32) -> Vec<u8> {
    let payload = [&[flow][..], &number.to_be_bytes(), &[from; 300]].concat();
    let ports = (1000 + u16::from(flow), 1000 + u16::from(flow));
    udp(
        (mac(from), mac(to)),
        ([10, 0, 0, from], [10, 0, 0, to]),
        ports,
        &payload,
    )
}

/// Works until it is told to stop; sleeps for an instant where a worker would sleep on its descriptors.
fn work(mut switch: Switch, stop: &AtomicBool) -> Switch {
    while !stop.load(Ordering::Relaxed) {
        if !switch.breathe(&mut Silent) {
            if !switch.before_sleep() {
                std::thread::yield_now();
            }
            switch.after_sleep();
        }
    }
    // What is under way comes home.
    for _ in 0..1000 {
        switch.breathe(&mut Silent);
        std::thread::yield_now();
    }
    switch
}

/// A guest: sends flows, as fast as what it gets shows that the other one keeps up.
fn drive(me: u8, other: u8, ram: &GuestRam, pairs: &mut [Pair]) -> HashMap<u8, u32> {
    let begin = Instant::now();
    let mut next: HashMap<u8, u32> = HashMap::new();
    let mut sent = 0;
    let mut got = 0;
    let total = FRAMES * FLOWS;
    while got < total || sent < total {
        assert!(begin.elapsed() < TIMEOUT, "{got} of {total} came, {sent} were sent");
        while sent < total && sent < got + WINDOW {
            // Each flow keeps to one queue.
            let flow = u8::try_from(sent % FLOWS).expect("few");
            let pair = usize::from(flow) % pairs.len();
            pairs[pair].send_at(ram, NetHeader::default(), &frame(me, other, flow, sent / FLOWS));
            sent += 1;
        }
        for pair in pairs.iter_mut() {
            for (_, frame) in pair.received_here() {
                let number = u32::from_be_bytes([frame[43], frame[44], frame[45], frame[46]]);
                let expected = next.entry(frame[42]).or_default();
                assert_eq!(number, *expected, "flow {} is in order", frame[42]);
                assert!(frame[47..].iter().all(|byte| *byte == other), "and whole");
                *expected += 1;
                got += 1;
            }
            pair.repost();
        }
        std::thread::yield_now();
    }
    next
}

#[test]
fn two_threads_hand_over_to_each_other() {
    let mut fleet = Fleet::new(2, &[(FEATURES, &[0, 1]), (FEATURES, &[1, 0])]);
    let workers = std::mem::take(&mut fleet.workers);
    let stop = AtomicBool::new(false);
    let [a, b] = &mut fleet.guests[..] else {
        panic!("two guests")
    };
    let (workers, flows) = std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(|| work(worker, &stop)))
            .collect();
        let (ram, pairs) = a.split();
        let one = scope.spawn(|| drive(1, 2, ram, pairs));
        let (ram, pairs) = b.split();
        let other = scope.spawn(|| drive(2, 1, ram, pairs));
        let flows = [one.join(), other.join()];
        stop.store(true, Ordering::Relaxed);
        let workers: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("it works"))
            .collect();
        (workers, flows.map(|flows| flows.expect("all came")))
    });
    for next in flows {
        assert_eq!(next.into_values().collect::<Vec<_>>(), [FRAMES; FLOWS as usize]);
    }
    fleet.workers = workers;
    fleet.breathe();
    assert!(fleet.workers.iter().all(Switch::is_quiet));
    let crossed: u64 = fleet.workers.iter().flat_map(|worker| worker.crossed().sent).sum();
    assert!(crossed > 0, "some flows have their queue in the other worker");
    let total = u64::from(FLOWS * FRAMES);
    for port in fleet.counters() {
        assert_eq!((port.tx_frames, port.rx_frames), (total, total));
        assert_eq!(port.dropped().count(), 0);
    }
}
