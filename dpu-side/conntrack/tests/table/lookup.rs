use outboard_conntrack::{
    ACK, Address, Config, Direction, Opened, Packet, RST, Reason, Refused, SYN, Segment, State, Tuple, Verdict, icmp,
};

use crate::{PORTS, SECOND, START, find, open, segment, syn, table, tcp_tuple, udp, v4};

const ECHO: u16 = 8 << 8;

fn ping(source: u32, destination: u32, id: u16, kind: u8, code: u8) -> Tuple {
    Tuple {
        zone: 1,
        protocol: icmp::ICMP,
        source: v4(source),
        destination: v4(destination),
        source_port: id,
        destination_port: u16::from_be_bytes([kind, code]),
    }
}

#[test]
fn both_directions_are_one_connection() {
    let table = table(100);
    let tuple = udp(9, 1234, 3, 53);
    assert_eq!(find(&table, &tuple, START), None);
    let entry = open(&table, &tuple, &Packet::Other, START).unwrap();

    let there = find(&table, &tuple, START).unwrap();
    assert_eq!(
        (there.entry, there.direction, there.state),
        (entry, Direction::Original, State::Unreplied)
    );
    let back = find(&table, &tuple.reverse(), START).unwrap();
    assert_eq!((back.entry, back.direction), (entry, Direction::Reply));
    assert_eq!(
        table.observe(entry, Direction::Reply, &Packet::Other, START),
        Verdict::Ok
    );
    let there = find(&table, &tuple, START).unwrap();
    assert_eq!((there.state, there.replied), (State::Replied, true));
}

#[test]
fn what_differs_in_anything_is_another_connection() {
    let table = table(100);
    let tuple = udp(9, 1234, 3, 53);
    open(&table, &tuple, &Packet::Other, START).unwrap();
    for other in [
        Tuple { zone: 2, ..tuple },
        Tuple { protocol: 136, ..tuple },
        Tuple { source: v4(8), ..tuple },
        Tuple {
            source: Address(v4(9).0 | 1 << 100),
            ..tuple
        },
        Tuple {
            destination: v4(4),
            ..tuple
        },
        Tuple {
            source_port: 53,
            destination_port: 1234,
            ..tuple
        },
        Tuple {
            destination_port: 54,
            ..tuple
        },
    ] {
        assert_eq!(find(&table, &other, START), None, "{other:?}");
    }
}

#[test]
fn one_to_itself_is_found() {
    let table = table(100);
    let tuple = udp(1, 7, 1, 7);
    let entry = open(&table, &tuple, &Packet::Other, START).unwrap();
    assert_eq!(
        find(&table, &tuple, START).map(|f| (f.entry, f.direction)),
        Some((entry, Direction::Original))
    );
}

#[test]
fn an_icmp_question_and_its_answer_are_one_connection_whatever_the_identifier() {
    for id in [0, 8, 77, ECHO, u16::MAX] {
        for (client, server) in [(1, 2), (2, 1)] {
            let table = table(100);
            let question = ping(client, server, id, 8, 0);
            let answer = ping(server, client, id, 0, 0);
            assert_eq!(question.reverse(), answer);
            assert_eq!(answer.reverse(), question);
            let entry = open(&table, &question, &Packet::Other, START).unwrap();
            let found = find(&table, &answer, START).unwrap();
            assert_eq!((found.entry, found.direction), (entry, Direction::Reply));
            // The other end's own question with that identifier is another connection.
            assert_eq!(find(&table, &ping(server, client, id, 8, 0), START), None);
            assert_eq!(find(&table, &ping(client, server, id, 0, 0), START), None);
            assert_eq!(find(&table, &ping(client, server, id, 13, 0), START), None);
            assert_eq!(find(&table, &ping(client, server, id, 8, 1), START), None);
        }
    }
}

#[test]
fn icmpv6_echo_is_tracked_and_neighbour_discovery_is_not() {
    let table = table(100);
    let echo = Tuple {
        protocol: icmp::ICMPV6,
        source: Address(1),
        destination: Address(2),
        source_port: 5,
        destination_port: 128 << 8,
        zone: 1,
    };
    let entry = open(&table, &echo, &Packet::Other, START).unwrap();
    assert_eq!(find(&table, &echo.reverse(), START).map(|f| f.entry), Some(entry));
    let solicitation = Tuple {
        destination_port: 135 << 8,
        ..echo
    };
    let refused = table.open(&table.key(&solicitation), PORTS, &Packet::Other, [0; 3], START);
    assert_eq!(refused, Err(Refused::Invalid(Reason::NotOpening)));
}

#[test]
fn an_icmp_answer_or_error_opens_nothing() {
    let table = table(100);
    for kind in [0, 14, 3, 11, 40] {
        let refused = open(&table, &ping(1, 2, 3, kind, 0), &Packet::Other, START);
        assert_eq!(refused, Err(Refused::Invalid(Reason::NotOpening)), "type {kind}");
    }
}

#[test]
fn only_a_syn_opens_tcp_unless_connections_are_picked_up() {
    let table = table(100);
    for flags in [ACK, SYN | ACK, RST, RST | ACK, 0x11] {
        let refused = open(&table, &tcp_tuple(), &Packet::Tcp(segment(flags, 1, 1)), START);
        assert_eq!(refused, Err(Refused::Invalid(Reason::NotOpening)), "flags {flags:#x}");
    }
    assert_eq!(
        open(&table, &tcp_tuple(), &Packet::Other, START),
        Err(Refused::Invalid(Reason::Header))
    );
    assert_eq!(
        open(&table, &udp(1, 2, 3, 4), &syn(), START),
        Err(Refused::Invalid(Reason::Header))
    );
    assert!(open(&table, &tcp_tuple(), &syn(), START).is_ok());

    let mut config = Config {
        entries: 100,
        ports: 1,
        ..Config::default()
    };
    config.tcp.pick_up = true;
    let lax = crate::table_of(&config);
    assert!(open(&lax, &tcp_tuple(), &Packet::Tcp(segment(ACK, 1, 1)), START).is_ok());
    assert_eq!(
        find(&lax, &tcp_tuple(), START).map(|f| f.state),
        Some(State::Established)
    );
}

#[test]
fn opening_again_finds_the_first() {
    let table = table(100);
    let key = table.key(&udp(1, 2, 3, 4));
    let Ok(Opened::New(entry)) = table.open(&key, PORTS, &Packet::Other, [1, 2, 3], START) else {
        panic!("new")
    };
    let again = table.open(&key, PORTS, &Packet::Other, [4, 5, 6], START);
    let Ok(Opened::Exists(found)) = again else {
        panic!("{again:?}")
    };
    assert_eq!((found.entry, found.words), (entry, [1, 2, 3]));
    assert_eq!(table.statistics().opened, 1);
    assert_eq!(table.statistics().entries, 1);
}

#[test]
fn words_are_replaced_and_a_connection_that_ended_takes_none() {
    let table = table(100);
    let tuple = udp(1, 2, 3, 4);
    let entry = open(&table, &tuple, &Packet::Other, START).unwrap();
    assert!(table.publish(entry, [1, 2, 3]));
    assert_eq!(find(&table, &tuple.reverse(), START).map(|f| f.words), Some([1, 2, 3]));
    assert!(table.close(entry));
    assert!(!table.close(entry));
    assert!(!table.publish(entry, [4, 5, 6]));
    assert_eq!(
        table.observe(entry, Direction::Original, &Packet::Other, START),
        Verdict::Gone
    );
    assert_eq!(find(&table, &tuple, START), None);

    // The same place, another connection: the old reference still is stale.
    let next = open(&table, &udp(5, 6, 7, 8), &Packet::Other, START).unwrap();
    assert_ne!(next, entry);
    assert!(!table.publish(entry, [4, 5, 6]));
    assert_eq!(
        table.preview(entry, Direction::Original, &Packet::Other, START),
        Verdict::Gone
    );
    assert_eq!(find(&table, &udp(5, 6, 7, 8), START).map(|f| f.words), Some([0, 0, 0]));
}

#[test]
fn a_preview_changes_nothing() {
    let table = table(100);
    let entry = open(&table, &tcp_tuple(), &syn(), START).unwrap();
    let before = find(&table, &tcp_tuple(), START);
    let answer = Packet::Tcp(segment(SYN | ACK, 5000, 1001));
    assert_eq!(table.preview(entry, Direction::Reply, &answer, START), Verdict::Ok);
    let early = Packet::Tcp(segment(ACK, 1001, 1));
    assert_eq!(
        table.preview(entry, Direction::Original, &early, START),
        Verdict::Invalid(Reason::State)
    );
    assert_eq!(find(&table, &tcp_tuple(), START), before);
}

#[test]
fn a_full_table_finds_each_of_its_connections() {
    let table = table(20_000);
    let tuple = |i: u32| udp(i, 1, i % 7, 2);
    for i in 0..20_000 {
        open(&table, &tuple(i), &Packet::Other, START).unwrap();
    }
    let mut keys: Vec<_> = (0..20_000).map(|i| table.key(&tuple(i).reverse())).collect();
    table.prepare(&mut keys);
    for (i, key) in (0..20_000).zip(&keys) {
        let unprepared = find(&table, &tuple(i), START + SECOND).unwrap();
        assert_eq!(table.lookup(key, START).map(|f| f.entry), Some(unprepared.entry), "{i}");
    }
    for i in (0..20_000).step_by(2) {
        assert!(table.close(find(&table, &tuple(i), START).unwrap().entry));
    }
    for i in 0..20_000 {
        assert_eq!(find(&table, &tuple(i), START).is_some(), i % 2 == 1, "{i}");
    }
    assert_eq!(table.statistics().entries, 10_000);
}

#[test]
fn a_header_is_read_only_whole() {
    let mut header = [0_u8; 24];
    header[..4].copy_from_slice(&[0, 80, 0, 81]);
    header[4..8].copy_from_slice(&7_u32.to_be_bytes());
    header[12] = 6 << 4;
    header[13] = SYN;
    header[14..16].copy_from_slice(&500_u16.to_be_bytes());
    let read = Segment::read(&header, 24).unwrap();
    assert_eq!(
        (read.sequence, read.window, read.data_len, read.options),
        (7, 500, 0, &[0_u8; 4][..])
    );
    use outboard_conntrack::Malformed::{DataOffset, Flags, Short};
    assert_eq!(Segment::read(&header[..19], 24), Err(Short));
    assert_eq!(Segment::read(&header[..23], 24), Err(Short));
    assert_eq!(Segment::read(&header, 23), Err(DataOffset));
    header[12] = 4 << 4;
    assert_eq!(Segment::read(&header, 24), Err(DataOffset));
    header[12] = 5 << 4;
    for flags in [0, SYN | RST, SYN | 1, 1, RST | 1, 0x20, 0x3f] {
        header[13] = flags;
        assert_eq!(Segment::read(&header, 24), Err(Flags), "{flags:#x}");
    }
}
