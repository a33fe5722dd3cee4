use outboard_conntrack::{Budget, Direction, Packet, PortCounters, Refused, Verdict};

use crate::{START, established_from, find, open, open_from, syn, table, tcp_tuple, udp};

#[test]
fn a_port_without_a_budget_opens_nothing() {
    let table = table(100);
    assert!(table.set_budget(3, Budget::NONE));
    assert!(!table.set_budget(4, Budget::of(1)), "there is no such port");
    for from in [3, 4, u32::MAX] {
        assert_eq!(
            open_from(&table, from, &udp(1, 2, 3, 4), &Packet::Other, START),
            Err(Refused::PortFull)
        );
    }
    assert_eq!(
        table.counters(3),
        Some(PortCounters {
            refused: 1,
            ..PortCounters::default()
        })
    );
    assert_eq!(table.counters(4), None);
}

#[test]
fn the_oldest_half_open_connection_gives_way_to_a_new_one() {
    let table = table(100);
    table.set_budget(0, Budget::of(3));
    for i in 0..5 {
        open(&table, &udp(i, 1, 100, 2), &Packet::Other, START).unwrap();
    }
    let there: Vec<u32> = (0..5)
        .filter(|&i| find(&table, &udp(i, 1, 100, 2), START).is_some())
        .collect();
    assert_eq!(there, [2, 3, 4]);
    let counters = PortCounters {
        entries: 3,
        half_open: 3,
        opened: 5,
        evicted: 2,
        refused: 0,
    };
    assert_eq!(table.counters(0), Some(counters));
}

#[test]
fn established_connections_never_give_way() {
    let table = table(1000);
    table.set_budget(0, Budget::of(10));
    let tuple = |i: u16| outboard_conntrack::Tuple {
        source_port: i,
        ..tcp_tuple()
    };
    for i in 0..9 {
        established_from(&table, 0, &tuple(i), START);
    }
    for i in 100..600 {
        open(&table, &tuple(i), &syn(), START).unwrap();
    }
    assert!((0..9).all(|i| find(&table, &tuple(i), START).is_some()));
    let counters = PortCounters {
        entries: 10,
        half_open: 1,
        opened: 509,
        evicted: 499,
        refused: 0,
    };
    assert_eq!(table.counters(0), Some(counters));
    // The tenth is established too, and then there is room for none.
    let last = tuple(599);
    let found = find(&table, &last, START).unwrap();
    let answer = Packet::Tcp(crate::segment(0x12, 5000, 1001));
    assert_eq!(
        table.observe(found.entry, Direction::Reply, &answer, START),
        Verdict::Ok
    );
    let ack = Packet::Tcp(crate::segment(0x10, 1001, 5001));
    assert_eq!(
        table.observe(found.entry, Direction::Original, &ack, START),
        Verdict::Ok
    );
    assert_eq!(open(&table, &tuple(700), &syn(), START), Err(Refused::PortFull));
    let counters = PortCounters {
        entries: 10,
        half_open: 0,
        opened: 509,
        evicted: 499,
        refused: 1,
    };
    assert_eq!(table.counters(0), Some(counters));
    // Another port isn't concerned.
    assert!(open_from(&table, 1, &tuple(701), &syn(), START).is_ok());
}

#[test]
fn half_open_connections_have_a_bound_of_their_own() {
    let table = table(1000);
    table.set_budget(
        0,
        Budget {
            entries: 100,
            half_open: 4,
        },
    );
    for i in 0..50 {
        let entry = open(&table, &udp(i, 1, 200, 2), &Packet::Other, START).unwrap();
        if i % 2 == 0 {
            table.observe(entry, Direction::Reply, &Packet::Other, START);
        }
    }
    let counters = table.counters(0).unwrap();
    assert_eq!(
        (counters.entries, counters.half_open, counters.evicted),
        (25 + 4, 4, 21)
    );
    assert!(
        (0..50)
            .step_by(2)
            .all(|i| find(&table, &udp(i, 1, 200, 2), START).is_some())
    );
    assert!(
        [43, 45, 47, 49]
            .iter()
            .all(|&i| find(&table, &udp(i, 1, 200, 2), START).is_some())
    );
}

#[test]
fn a_smaller_budget_holds_for_what_comes() {
    let table = table(100);
    for i in 0..20 {
        open(&table, &udp(i, 1, 100, 2), &Packet::Other, START).unwrap();
    }
    table.set_budget(0, Budget::of(5));
    assert_eq!(table.counters(0).unwrap().entries, 20);
    assert_eq!(
        open(&table, &udp(50, 1, 100, 2), &Packet::Other, START),
        Err(Refused::PortFull)
    );
    table.set_budget(0, Budget::of(30));
    assert!(open(&table, &udp(50, 1, 100, 2), &Packet::Other, START).is_ok());
}

#[test]
fn in_a_full_table_something_half_open_gives_way_and_nothing_else() {
    let table = table(64);
    let room = (0..10_000)
        .find(|&i| {
            let full = open(&table, &udp(i, 1, 2, 3), &Packet::Other, START).is_ok();
            table.statistics().evicted > 0 || !full
        })
        .unwrap();
    assert!(room >= 64, "what was promised fits");
    // Make all of them replied.
    for i in 0..10_000 {
        if let Some(found) = find(&table, &udp(i, 1, 2, 3), START) {
            table.observe(found.entry, Direction::Reply, &Packet::Other, START);
        }
    }
    let before = table.statistics();
    assert_eq!(before.half_open, 0);
    assert_eq!(
        open_from(&table, 1, &udp(1, 9, 9, 9), &Packet::Other, START),
        Err(Refused::TableFull)
    );
    assert_eq!(table.statistics().full, before.full + 1);
    assert_eq!(table.statistics().entries, before.entries);
    // Those whose time is up give way to anyone.
    assert!(open_from(&table, 1, &udp(1, 9, 9, 9), &Packet::Other, START + 200 * crate::SECOND).is_ok());
}
