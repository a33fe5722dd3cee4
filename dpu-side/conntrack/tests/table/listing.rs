use outboard_conntrack::{Address, Connection, Cursor, Filter, Packet, Ports, State, Table, Tuple, icmp};

use crate::{SECOND, START, established, open, table, tcp_tuple, udp, v4};

fn all(table: &Table, filter: &Filter, page: usize, now: u64) -> Vec<Connection> {
    let (mut list, mut cursor) = (Vec::new(), Some(Cursor::default()));
    while let Some(from) = cursor {
        let before = list.len();
        cursor = table.list(from, page, now, |c| filter.matches(c), &mut list);
        assert!(list.len() - before <= page);
    }
    list
}

#[test]
fn a_connection_is_listed_as_it_was_opened() {
    let table = table(100);
    let ping = Tuple {
        protocol: icmp::ICMP,
        source_port: 7,
        destination_port: 8 << 8,
        ..udp(2, 0, 1, 0)
    };
    let v6 = Tuple {
        source: Address(u128::MAX),
        destination: Address(5),
        ..udp(0, 65_535, 0, 1)
    };
    for tuple in [
        udp(1, 2, 3, 4),
        udp(3, 4, 1, 3),
        v6,
        v6.reverse(),
        ping,
        Tuple { zone: u32::MAX, ..ping },
    ] {
        let key = table.key(&tuple);
        table.flush_all(START, |_| true);
        table
            .open(&key, Ports { from: 2, to: 3 }, &Packet::Other, [7, 8, 9], START)
            .unwrap();
        let listed = all(&table, &Filter::default(), 10, START + 3 * SECOND);
        let [c] = listed[..] else { panic!("{listed:?}") };
        assert_eq!(c.tuple, tuple);
        assert_eq!((c.state, c.replied, c.half_open), (State::Unreplied, false, true));
        assert_eq!((c.from, c.to, c.words), (2, 3, [7, 8, 9]));
        assert!(c.age_ns.abs_diff(3 * SECOND) < SECOND / 4, "{c:?}");
        assert!(c.left_ns.abs_diff(27 * SECOND) < SECOND, "{c:?}");
    }
    let entry = established(&table, &tcp_tuple(), START);
    let tcp = Filter {
        protocol: Some(6),
        ..Filter::default()
    };
    let listed = all(&table, &tcp, 10, START);
    let [c] = listed[..] else { panic!("{listed:?}") };
    assert_eq!(
        (c.entry, c.state, c.half_open, c.scales),
        (entry, State::Established, false, None)
    );
}

#[test]
fn filters_pick_by_each_property() {
    let table = table(1000);
    let tuples = [
        udp(1, 10, 2, 20),
        udp(2, 30, 1, 10),
        udp(3, 10, 4, 20),
        Tuple {
            zone: 2,
            ..udp(1, 10, 2, 20)
        },
        Tuple {
            protocol: 47,
            ..udp(1, 0, 2, 0)
        },
    ];
    for (from, tuple) in (0..).zip(tuples) {
        let ports = Ports { from: from % 3, to: 3 };
        table
            .open(&table.key(&tuple), ports, &Packet::Other, [0; 3], START)
            .unwrap();
    }
    let none = Filter::default();
    for (filter, expected) in [
        (none, vec![0, 1, 2, 3, 4]),
        (Filter { zone: Some(1), ..none }, vec![0, 1, 2, 4]),
        (
            Filter {
                switch_port: Some(1),
                ..none
            },
            vec![1, 4],
        ),
        (
            Filter {
                switch_port: Some(3),
                ..none
            },
            vec![0, 1, 2, 3, 4],
        ),
        (
            Filter {
                protocol: Some(47),
                ..none
            },
            vec![4],
        ),
        (
            Filter {
                address: Some(v4(4)),
                ..none
            },
            vec![2],
        ),
        (
            Filter {
                address: Some(v4(1)),
                other_address: Some(v4(2)),
                ..none
            },
            vec![0, 1, 3, 4],
        ),
        (
            Filter {
                address: Some(v4(1)),
                other_address: Some(v4(3)),
                ..none
            },
            vec![],
        ),
        (
            Filter {
                port: Some(10),
                zone: Some(1),
                ..none
            },
            vec![0, 1, 2],
        ),
        (Filter { port: Some(30), ..none }, vec![1]),
    ] {
        for page in [1, 3, 100] {
            let mut listed: Vec<_> = all(&table, &filter, page, START)
                .iter()
                .map(|c| tuples.iter().position(|t| *t == c.tuple).expect("one of ours"))
                .collect();
            listed.sort_unstable();
            assert_eq!(listed, expected, "{filter:?}, {page} a page");
        }
    }
    let zone = Filter { zone: Some(1), ..none };
    assert_eq!(table.flush_all(START, |c| zone.matches(c)), 4);
    assert_eq!(all(&table, &none, 10, START).len(), 1);
    assert_eq!((table.statistics().entries, table.statistics().flushed), (1, 4));
}

#[test]
fn statistics_add_up() {
    let table = table(128);
    let mut now = START;
    for i in 0..600 {
        let _ = open(&table, &udp(i, 1, 2, 3), &Packet::Other, now);
        if i % 50 == 0 {
            now += 31 * SECOND;
            table.expire(now, 20);
            table.flush(Cursor::default(), now, |c| c.tuple.source == v4(i));
        }
    }
    let s = table.statistics();
    assert_eq!(
        s.opened,
        s.entries + s.expired + s.ended + s.flushed + s.evicted,
        "{s:?}"
    );
    assert!(s.expired > 0 && s.flushed > 0, "{s:?}");
}
