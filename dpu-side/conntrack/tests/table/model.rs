//! The table against a map that says the same in few words.

use std::collections::HashMap;

use outboard_conntrack::{Budget, Config, Direction, Packet, Ports, State, Table, Timeouts, Tuple, UDP, Verdict, icmp};
use proptest::prelude::*;

use crate::{SECOND, START, find, ns, v4};

#[derive(Debug, Clone)]
enum Step {
    Packet(Tuple),
    Wait(u64),
    Clear(u32),
    Close(Tuple),
    Flush(u32),
}

fn tuples() -> impl Strategy<Value = Tuple> {
    let protocol = prop_oneof![Just(UDP), Just(icmp::ICMP), Just(47)];
    (
        0..2_u32,
        protocol,
        0..3_u32,
        0..3_u32,
        0..3_u16,
        0..3_u16,
        any::<bool>(),
    )
        .prop_map(
            |(zone, protocol, source, destination, source_port, destination_port, is_reply)| Tuple {
                zone,
                protocol,
                source: v4(source),
                destination: v4(destination),
                source_port: if protocol == 47 { 0 } else { source_port },
                destination_port: match protocol {
                    icmp::ICMP if is_reply => 0,
                    icmp::ICMP => 8 << 8,
                    47 => 0,
                    _ => destination_port,
                },
            },
        )
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => tuples().prop_map(Step::Packet),
        2 => prop_oneof![0..SECOND, 0..40 * SECOND, 0..200 * SECOND].prop_map(Step::Wait),
        2 => (0..50_u32).prop_map(Step::Clear),
        1 => tuples().prop_map(Step::Close),
        1 => (0..2_u32).prop_map(Step::Flush),
    ]
}

struct Modelled {
    opened_by: Tuple,
    state: State,
    began: u64,
    /// Between these its time is up.
    over: [u64; 2],
}

impl Modelled {
    fn see(&mut self, direction: Direction, now: u64) {
        let t = Timeouts::default();
        if direction == Direction::Reply && self.state == State::Unreplied {
            self.state = State::Replied;
        }
        let (young, old) = (now - self.began < 2 * SECOND, now - self.began > 3 * SECOND);
        if self.opened_by.protocol == UDP && self.state == State::Replied && old {
            self.state = State::Stream;
        }
        let could_be_stream = self.opened_by.protocol == UDP && self.state != State::Unreplied && !young;
        let shortest = match self.opened_by.protocol {
            UDP if self.state == State::Stream => t.udp_stream,
            UDP => t.udp,
            icmp::ICMP => t.icmp,
            _ => t.other,
        };
        let longest = if could_be_stream { t.udp_stream } else { shortest };
        self.over = [now + ns(shortest), now + ns(longest) + ns(longest) / 64 + SECOND];
    }
}

/// Both directions' name of a connection; for ICMP a question and its answer have one.
fn name(tuple: &Tuple) -> (Tuple, Direction) {
    let is_answer = tuple.protocol == icmp::ICMP && tuple.destination_port == 0;
    if is_answer {
        return (tuple.reverse(), Direction::Reply);
    }
    if tuple.protocol == icmp::ICMP {
        return (*tuple, Direction::Original);
    }
    let back = tuple.reverse();
    let ends = |t: &Tuple| (t.source, t.source_port);
    if ends(tuple) <= ends(&back) {
        (*tuple, Direction::Original)
    } else {
        (back, Direction::Reply)
    }
}

fn compare(steps: Vec<Step>) {
    let table = Table::new(&Config {
        entries: 400,
        ports: 1,
        ..Config::default()
    });
    table.set_budget(0, Budget::of(400));
    let mut model: HashMap<Tuple, Modelled> = HashMap::new();
    let mut now = START;
    for step in steps {
        match step {
            Step::Wait(ns) => now += ns,
            Step::Clear(budget) => drop(table.expire(now, budget)),
            Step::Flush(zone) => {
                table.flush_all(now, |c| c.tuple.zone == zone);
                model.retain(|name, _| name.zone != zone);
            }
            Step::Close(tuple) => {
                if let Some(found) = find(&table, &tuple, now) {
                    assert!(table.close(found.entry));
                    assert!(model.remove(&name(&tuple).0).is_some(), "{tuple:?} was no connection");
                }
            }
            Step::Packet(tuple) => packet(&table, &mut model, &tuple, now),
        }
        model.retain(|_, c| now <= c.over[1]);
    }
    let alive = model.iter().filter(|(_, c)| now < c.over[0]);
    for (_, c) in alive {
        assert!(find(&table, &c.opened_by, now).is_some(), "{:?} is lost", c.opened_by);
    }
    while table.expire(now + 3600 * SECOND, 100) > 0 {}
    assert_eq!(table.statistics().entries, 0);
    assert_eq!(table.statistics().half_open, 0);
}

fn packet(table: &Table, model: &mut HashMap<Tuple, Modelled>, tuple: &Tuple, now: u64) {
    let (name, _) = name(tuple);
    let found = find(table, tuple, now);
    let known = model.get(&name).filter(|c| now <= c.over[1]);
    match (&found, known) {
        (None, Some(c)) => assert!(now >= c.over[0], "{tuple:?} is lost"),
        (Some(found), None) => panic!("{tuple:?} found {found:?}, which never was or is over"),
        _ => {}
    }
    if let Some(found) = found {
        let c = model.get_mut(&name).expect("it was there");
        let is_original = *tuple == c.opened_by;
        let direction = if is_original {
            Direction::Original
        } else {
            Direction::Reply
        };
        assert_eq!(found.direction, direction, "{tuple:?} of {:?}", c.opened_by);
        let unsure = c.state == State::Replied && found.state == State::Stream;
        assert!(
            found.state == c.state || unsure,
            "{:?} is not {:?}",
            found.state,
            c.state
        );
        c.state = found.state;
        c.see(direction, now);
        assert_eq!(
            table.observe(found.entry, found.direction, &Packet::Other, now),
            Verdict::Ok
        );
        return;
    }
    let is_answer = tuple.protocol == icmp::ICMP && tuple.destination_port == 0;
    let opened = table.open(&table.key(tuple), Ports { from: 0, to: 0 }, &Packet::Other, [0; 3], now);
    assert_eq!(opened.is_ok(), !is_answer, "{tuple:?}: {opened:?}");
    model.remove(&name);
    if opened.is_ok() {
        let mut c = Modelled {
            opened_by: *tuple,
            state: State::Unreplied,
            began: now,
            over: [0; 2],
        };
        c.see(Direction::Original, now);
        model.insert(name, c);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]
    #[test]
    fn the_table_is_a_map_with_timeouts(steps in prop::collection::vec(steps(), 1..200)) {
        compare(steps);
    }
}

/// `OUTBOARD_CONNTRACK_CASES` has more of them tried.
fn cases() -> u32 {
    std::env::var("OUTBOARD_CONNTRACK_CASES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(64)
}
