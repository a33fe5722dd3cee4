//! What a guest may try. Each attack fails, what is legitimate passes before and after, and with the check off the
//! attack succeeds.

use outboard_conntrack::{
    ACK, Address, Budget, Config, Direction, Embedded, Filter, Packet, PortCounters, RST, Refused, Segment, State, TCP,
    Table, Tuple, icmp,
};
use outboard_controls::{Check, Off};

use crate::{
    START, established, established_from, find, open_from, pass, segment, table, table_of, tcp_tuple, udp, v4,
};

const ATTACKER: u32 = 2;
const VICTIM: u32 = 1;

/// The attacker, with a friend who answers, takes all it can get. Says how many connections the victim can then open.
fn exhaust(table: &Table) -> usize {
    for i in 0..3000 {
        let tuple = udp(i, 1, 5000, 2);
        if let Ok(entry) = open_from(table, ATTACKER, &tuple, &Packet::Other, START) {
            table.observe(entry, Direction::Reply, &Packet::Other, START);
        }
    }
    (0..100)
        .filter(|&i| open_from(table, VICTIM, &udp(i, 7, 6000, 8), &Packet::Other, START).is_ok())
        .count()
}

fn with_budgets() -> Table {
    let table = table(1000);
    table.set_budget(ATTACKER, Budget::of(500));
    table.set_budget(VICTIM, Budget::of(200));
    table
}

#[test]
fn h48_exhaustion_stays_inside_the_budget_of_the_port() {
    let table = with_budgets();
    established_from(&table, VICTIM, &tcp_tuple(), START);
    assert_eq!(exhaust(&table), 100);
    let all_answered = PortCounters {
        entries: 500,
        half_open: 0,
        opened: 500,
        evicted: 0,
        refused: 2500,
    };
    assert_eq!(table.counters(ATTACKER), Some(all_answered));
    let unharmed = PortCounters {
        entries: 101,
        half_open: 100,
        opened: 101,
        ..PortCounters::default()
    };
    assert_eq!(table.counters(VICTIM), Some(unharmed));
    assert!(find(&table, &tcp_tuple(), START).is_some());

    let off = Off::here(Check::ConnectionBudget);
    assert_eq!(exhaust(&with_budgets()), 0, "without budgets the victim opens nothing");
    drop(off);
}

#[test]
fn h48_a_syn_flood_pushes_out_its_own_kind_only() {
    let table = with_budgets();
    let victims = |i: u16| Tuple {
        source_port: i,
        ..tcp_tuple()
    };
    for i in 0..50 {
        established_from(&table, VICTIM, &victims(i), START);
        open_from(&table, VICTIM, &victims(1000 + i), &crate::syn(), START).unwrap();
        established_from(&table, ATTACKER, &victims(2000 + i), START);
    }
    for i in 0..20_000 {
        let tuple = Tuple {
            protocol: TCP,
            ..udp(i, 9, 4, 80)
        };
        let _ = open_from(&table, ATTACKER, &tuple, &crate::syn(), START);
    }
    // One step passes by 32 of the established ones at the queue's end.
    assert!(
        table.counters(ATTACKER).unwrap().refused <= 2,
        "newer ones take the place of older ones"
    );
    for i in 0..50 {
        assert!(find(&table, &victims(i), START).is_some(), "established");
        assert!(
            find(&table, &victims(1000 + i), START).is_some(),
            "half-open, of another port"
        );
        assert!(
            find(&table, &victims(2000 + i), START).is_some(),
            "established, of the flooding port"
        );
    }
    assert_eq!(table.counters(ATTACKER).unwrap().entries, 500);
}

/// How many of 4000 connections fit whose addresses were chosen so that hashes without a key, or that just add both
/// ends up, put all of them in one place.
fn flood() -> usize {
    let table = table_of(&Config {
        entries: 8000,
        ports: 4,
        ..Config::default()
    });
    let tuple = |i: u32| udp(i, 7, 20_000 - i, 7);
    let fit = (0..4000).filter(|&i| {
        let opened = open_from(&table, ATTACKER, &tuple(i), &Packet::Other, START);
        assert!(matches!(opened, Ok(_) | Err(Refused::TableFull)));
        opened.is_ok()
    });
    let fit = fit.count();
    assert!(
        fit < 4000 || table.statistics().evicted > 0 || (0..4000).all(|i| find(&table, &tuple(i), START).is_some())
    );
    fit - usize::try_from(table.statistics().evicted).unwrap()
}

#[test]
fn h49_tuples_cannot_be_chosen_to_fall_together() {
    assert_eq!(flood(), 4000);
    let off = Off::here(Check::KeyedHash);
    assert!(flood() < 100, "without keys they all fall together");
    drop(off);
    assert_eq!(flood(), 4000);
}

#[test]
fn h49_pings_with_anothers_identifiers_leave_it_alone() {
    let table = with_budgets();
    let ping = |source, id| Tuple {
        protocol: icmp::ICMP,
        destination_port: 8 << 8,
        ..udp(source, id, 9, 0)
    };
    for id in 0..100 {
        open_from(&table, VICTIM, &ping(1, id), &Packet::Other, START).unwrap();
    }
    for id in 0..=u16::MAX {
        open_from(&table, ATTACKER, &ping(2, id), &Packet::Other, START).unwrap();
    }
    for id in 0..100 {
        let answer = find(&table, &ping(1, id).reverse(), START).expect("the victim's stays");
        assert_eq!(answer.direction, Direction::Reply);
    }
}

#[test]
fn h50_a_reset_out_of_the_window_closes_nothing() {
    let (table, tuple) = (table(100), tcp_tuple());
    established(&table, &tuple, START);
    let state = || find(&table, &tuple, START).map(|f| f.state);
    let data = Packet::Tcp(Segment {
        data_len: 10,
        ..segment(ACK, 1001, 5001)
    });
    assert_eq!(pass(&table, &tuple, &data, START), Ok(()));
    let guesses = (0..64_u32).map(|i| i << 26 | 0x1234);
    for guess in guesses.clone() {
        for back in [tuple, tuple.reverse()] {
            let reset = Packet::Tcp(segment(RST, guess, 0));
            assert!(pass(&table, &back, &reset, START).is_err(), "{guess}");
        }
    }
    assert_eq!(state(), Some(State::Established));
    assert_eq!(pass(&table, &tuple, &data, START), Ok(()));

    let off = Off::here(Check::ConnectionWindow);
    for guess in guesses {
        let _ = pass(&table, &tuple, &Packet::Tcp(segment(RST, guess, 0)), START);
    }
    assert_eq!(state(), Some(State::Close), "without the window any reset closes it");
    drop(off);
}

#[test]
fn h50_an_error_is_related_only_to_what_its_receiver_sent() {
    let table = table(100);
    established(&table, &tcp_tuple(), START);
    let datagram = udp(1, 5, 2, 53);
    let entry = open_from(&table, 0, &datagram, &Packet::Other, START).unwrap();
    let about = |tuple: Tuple, sequence| Embedded {
        tuple,
        sequence,
        error_to: tuple.source,
    };
    let related = |e: &Embedded| table.related(e, START);

    // Genuine ones: about a datagram, and about either end's segments.
    let found = related(&about(datagram, None)).unwrap();
    assert_eq!((found.entry, found.direction), (entry, Direction::Reply));
    assert_eq!(
        related(&about(tcp_tuple(), Some(1001))).map(|r| r.direction),
        Some(Direction::Reply)
    );
    assert_eq!(
        related(&about(tcp_tuple().reverse(), Some(5001))).map(|r| r.direction),
        Some(Direction::Original)
    );

    let forged = [
        about(tcp_tuple(), Some(1001 + 70_000)),
        about(tcp_tuple(), Some(900)),
        about(tcp_tuple(), None),
        about(datagram.reverse(), None),
        Embedded {
            error_to: v4(66),
            ..about(datagram, None)
        },
        Embedded {
            error_to: datagram.destination,
            ..about(datagram, None)
        },
        Embedded {
            error_to: v4(66),
            ..about(tcp_tuple(), Some(1001))
        },
    ];
    for e in &forged {
        assert_eq!(related(e), None, "{e:?}");
    }
    let other = [
        Tuple {
            source_port: 6,
            ..datagram
        },
        Tuple {
            destination_port: 54,
            ..datagram
        },
        Tuple { zone: 2, ..datagram },
        Tuple {
            source: Address(7),
            ..datagram
        },
    ];
    for tuple in other {
        assert_eq!(related(&about(tuple, None)), None, "{tuple:?}");
    }
    let off = Off::here(Check::RelatedError);
    assert!(
        forged.iter().all(|e| related(e).is_some()),
        "unchecked, all of these pass"
    );
    drop(off);
}

#[test]
fn h50_a_zone_that_is_given_anew_knows_nothing_of_its_former_network() {
    let table = table(100);
    established(&table, &tcp_tuple(), START);
    let others = Tuple { zone: 9, ..tcp_tuple() };
    established(&table, &others, START);
    let injected = Packet::Tcp(Segment {
        data_len: 10,
        ..segment(ACK, 5001, 1001)
    });
    assert_eq!(
        pass(&table, &tcp_tuple().reverse(), &injected, START),
        Ok(()),
        "the former network's answer"
    );

    let zone = Filter {
        zone: Some(1),
        ..Filter::default()
    };
    assert_eq!(table.flush_all(START, |c| zone.matches(c)), 1);
    assert!(pass(&table, &tcp_tuple().reverse(), &injected, START).is_err());
    assert_eq!(pass(&table, &others.reverse(), &injected, START), Ok(()));
}
