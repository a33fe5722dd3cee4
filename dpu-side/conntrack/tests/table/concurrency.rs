//! Two workers in one table: what a reader sees belongs together, and nothing is lost or counted twice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use outboard_conntrack::{ACK, Budget, Direction, Opened, Packet, Ports, Table, Tuple, Verdict};

use crate::{START, established, find, segment, table, tcp_tuple, udp};

const ROUNDS: u64 = 20_000;

/// Words of which each says what the others must be.
fn words(of: u32, round: u64) -> [u64; 3] {
    let first = u64::from(of) << 32 | round;
    [first, !first, first.rotate_left(17)]
}

fn check(of: u32, words: [u64; 3]) {
    let [first, second, third] = words;
    assert_eq!(first >> 32, u64::from(of), "another connection's words");
    assert_eq!(
        (second, third),
        (!first, first.rotate_left(17)),
        "words of different times"
    );
}

fn tuple(i: u32) -> Tuple {
    udp(i, 1, 1000, 2)
}

/// Open, publish, look up and close a few connections over and over, all of which others work on too.
fn churn(table: &Table, port: u32) {
    let mut random = u64::from(port) + 1;
    for round in 0..ROUNDS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let i = u32::try_from(random >> 60).unwrap();
        let key = table.key(&if random >> 59 & 1 == 0 {
            tuple(i)
        } else {
            tuple(i).reverse()
        });
        match table.lookup(&key, START) {
            Some(found) => {
                check(i, found.words);
                match random >> 56 & 7 {
                    0..3 => drop(table.close(found.entry)),
                    3..5 => drop(table.publish(found.entry, words(i, round))),
                    _ => {
                        let verdict = table.observe(found.entry, found.direction, &Packet::Other, START);
                        assert!(matches!(verdict, Verdict::Ok | Verdict::Gone));
                    }
                }
            }
            None => {
                let ports = Ports { from: port, to: 3 };
                match table.open(&key, ports, &Packet::Other, words(i, round), START) {
                    Ok(Opened::New(_)) => {}
                    Ok(Opened::Exists(found)) => check(i, found.words),
                    Err(refused) => panic!("{refused:?}"),
                }
            }
        }
    }
}

#[test]
fn words_and_connections_stay_whole() {
    let table = table(64);
    thread::scope(|s| {
        for port in 0..2 {
            let table = &table;
            s.spawn(move || churn(table, port));
        }
    });
    let there = (0..16).filter(|&i| find(&table, &tuple(i), START).is_some()).count() as u64;
    let s = table.statistics();
    assert_eq!(s.entries, there);
    assert_eq!(s.opened, s.entries + s.ended, "{s:?}");
    table.flush_all(START, |_| true);
    assert_eq!((table.statistics().entries, table.statistics().half_open), (0, 0));
}

#[test]
fn a_flood_that_evicts_disturbs_no_reader() {
    let table = table(256);
    table.set_budget(0, Budget::of(32));
    let entry = established(&table, &tcp_tuple(), START);
    table.publish(entry, words(7, 0));
    let is_over = AtomicBool::new(false);
    thread::scope(|s| {
        s.spawn(|| {
            for i in 0..u32::try_from(ROUNDS).unwrap() {
                let key = table.key(&udp(i, 1, 2, 3));
                table
                    .open(&key, Ports { from: 0, to: 1 }, &Packet::Other, [0; 3], START)
                    .expect("something gives way");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        s.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let found = find(&table, &tcp_tuple(), START).expect("an established connection stays");
                check(7, found.words);
            }
        });
    });
    assert_eq!(table.counters(0).unwrap().entries, 32);
}

#[test]
fn both_directions_of_a_connection_move_its_windows_at_once() {
    let table = table(16);
    let entry = established(&table, &tcp_tuple(), START);
    // Each end sends its next bytes; none is refused, and all of them are accounted for in the end.
    let send = |direction, ours: u32, theirs: u32| {
        for i in 0..900 {
            let packet = Packet::Tcp(outboard_conntrack::Segment {
                data_len: 1,
                ..segment(ACK, ours + i, theirs)
            });
            assert_eq!(
                table.observe(entry, direction, &packet, START),
                Verdict::Ok,
                "{direction:?} {i}"
            );
        }
    };
    thread::scope(|s| {
        s.spawn(|| send(Direction::Original, 1001, 5001));
        s.spawn(|| send(Direction::Reply, 5001, 1001));
    });
    for (direction, sequence, all) in [(Direction::Original, 1901, 5901), (Direction::Reply, 5901, 1901)] {
        let too_many = Packet::Tcp(segment(ACK, sequence, all + 1));
        assert_ne!(table.observe(entry, direction, &too_many, START), Verdict::Ok);
        let all = Packet::Tcp(segment(ACK, sequence, all));
        assert_eq!(table.observe(entry, direction, &all, START), Verdict::Ok);
    }
}
