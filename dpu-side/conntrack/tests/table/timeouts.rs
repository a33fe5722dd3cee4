use std::time::Duration;

use outboard_conntrack::{ACK, Config, Direction, FIN, Packet, RST, State, Timeouts, Verdict, icmp};

use crate::{SECOND, START, established, find, ns, open, segment, syn, table, tcp_tuple, udp};

/// A tick and the 1/64 by which a deadline may be late.
fn late(timeout: u64) -> u64 {
    timeout + timeout / 64 + SECOND / 3
}

/// It is there until `timeout` after `since`, and not much longer.
fn lives_for(table: &outboard_conntrack::Table, tuple: &outboard_conntrack::Tuple, since: u64, timeout: Duration) {
    let timeout = ns(timeout);
    assert!(find(table, tuple, since + timeout).is_some(), "gone before {timeout}");
    assert!(
        find(table, tuple, since + late(timeout)).is_none(),
        "there after {timeout}"
    );
}

#[test]
fn udp_lives_longer_once_both_ends_talk() {
    let (table, tuple, t) = (table(100), udp(1, 2, 3, 4), Timeouts::default());
    let entry = open(&table, &tuple, &Packet::Other, START).unwrap();
    lives_for(&table, &tuple, START, t.udp);
    let mut now = START + SECOND;
    table.observe(entry, Direction::Reply, &Packet::Other, now);
    lives_for(&table, &tuple, now, t.udp);
    now += 3 * SECOND;
    table.observe(entry, Direction::Original, &Packet::Other, now);
    assert_eq!(find(&table, &tuple, now).map(|f| f.state), Some(State::Stream));
    lives_for(&table, &tuple, now, t.udp_stream);
}

#[test]
fn packets_keep_a_connection_alive() {
    let (table, tuple) = (table(100), udp(1, 2, 3, 4));
    let entry = open(&table, &tuple, &Packet::Other, START).unwrap();
    let mut now = START;
    for _ in 0..50 {
        now += 29 * SECOND;
        assert_eq!(
            table.observe(entry, Direction::Original, &Packet::Other, now),
            Verdict::Ok
        );
        table.expire(now, 1000);
    }
    assert_eq!(find(&table, &tuple, now).map(|f| f.entry), Some(entry));
    lives_for(&table, &tuple, now, Timeouts::default().udp);
}

#[test]
fn each_tcp_state_has_its_timeout() {
    let (table, tuple, t) = (table(100), tcp_tuple(), Timeouts::default());
    let entry = open(&table, &tuple, &syn(), START).unwrap();
    lives_for(&table, &tuple, START, t.syn_sent);
    table.close(entry);
    let entry = established(&table, &tuple, START);
    lives_for(&table, &tuple, START, t.established);
    let mut now = START;
    let steps = [
        (Direction::Original, FIN | ACK, 1001, 5001, State::FinWait, t.fin_wait),
        (Direction::Reply, ACK, 5001, 1002, State::CloseWait, t.close_wait),
        (Direction::Reply, FIN | ACK, 5001, 1002, State::LastAck, t.last_ack),
        (Direction::Original, ACK, 1002, 5002, State::TimeWait, t.time_wait),
    ];
    for (direction, flags, sequence, acknowledgement, state, timeout) in steps {
        now += SECOND;
        let packet = Packet::Tcp(segment(flags, sequence, acknowledgement));
        assert_eq!(
            table.observe(entry, direction, &packet, now),
            Verdict::Ok,
            "to {state:?}"
        );
        assert_eq!(find(&table, &tuple, now).map(|f| f.state), Some(state));
        lives_for(&table, &tuple, now, timeout);
    }
}

#[test]
fn a_reset_connection_is_gone_soon() {
    let (table, tuple, t) = (table(100), tcp_tuple(), Timeouts::default());
    let entry = established(&table, &tuple, START);
    let reset = Packet::Tcp(segment(RST, 1001, 0));
    assert_eq!(table.observe(entry, Direction::Original, &reset, START), Verdict::Ok);
    lives_for(&table, &tuple, START, t.close);
    // And it is cleared away as soon, though it was to live for days.
    assert_eq!(table.statistics().entries, 1);
    table.expire(START + late(ns(t.close)), 1000);
    assert_eq!((table.statistics().entries, table.statistics().expired), (0, 1));
}

#[test]
fn data_that_stays_unacknowledged_shortens_it() {
    let (table, tuple, t) = (table(100), tcp_tuple(), Timeouts::default());
    let entry = established(&table, &tuple, START);
    let mut data = segment(ACK, 1001, 5001);
    data.data_len = 100;
    table.observe(entry, Direction::Original, &Packet::Tcp(data), START);
    lives_for(&table, &tuple, START, t.unacknowledged);
    table.observe(entry, Direction::Reply, &Packet::Tcp(segment(ACK, 5001, 1101)), START);
    lives_for(&table, &tuple, START, t.established);
    let mut shut = segment(ACK, 5001, 1101);
    shut.window = 0;
    table.observe(entry, Direction::Reply, &Packet::Tcp(shut), START);
    lives_for(&table, &tuple, START, t.zero_window);
}

#[test]
fn a_repeated_syn_keeps_nothing_alive() {
    let (table, tuple, t) = (table(100), tcp_tuple(), Timeouts::default());
    let entry = open(&table, &tuple, &syn(), START).unwrap();
    assert_eq!(
        table.observe(entry, Direction::Original, &syn(), START + 60 * SECOND),
        Verdict::Ok
    );
    lives_for(&table, &tuple, START, t.syn_sent);
}

#[test]
fn timeouts_are_those_configured() {
    let timeouts = Timeouts {
        icmp: Duration::from_secs(3),
        other: Duration::MAX,
        udp: Duration::ZERO,
        ..Timeouts::default()
    };
    let table = crate::table_of(&Config {
        entries: 10,
        ports: 1,
        timeouts,
        ..Config::default()
    });
    let mut tuple = udp(1, 2, 3, 8 << 8);
    open(&table, &tuple, &Packet::Other, START).unwrap();
    lives_for(&table, &tuple, START, Duration::ZERO);
    tuple.protocol = icmp::ICMP;
    open(&table, &tuple, &Packet::Other, START).unwrap();
    lives_for(&table, &tuple, START, Duration::from_secs(3));
    tuple.protocol = 47;
    open(&table, &tuple, &Packet::Other, START).unwrap();
    assert!(find(&table, &tuple, START + 300 * 24 * 3600 * SECOND).is_some());
}

#[test]
fn clearing_away_is_done_in_steps_and_finds_everything() {
    let table = table(10_000);
    assert_eq!(table.expire(START, 1), 0);
    for i in 0..5000 {
        open(&table, &udp(i, 1, 2, 3), &Packet::Other, START).unwrap();
    }
    for i in 5000..6000 {
        open(&table, &udp(i, 1, 2, 3), &Packet::Other, START + 20 * SECOND).unwrap();
    }
    assert_eq!(table.expire(START + 21 * SECOND, 100_000), 0, "nothing is due");
    let (now, mut calls) = (START + 32 * SECOND, 0);
    while table.expire(now, 64) > 0 {
        calls += 1;
        assert!(calls < 1000, "it comes to an end");
    }
    assert!(calls >= 5000 / 64);
    assert_eq!((table.statistics().entries, table.statistics().expired), (1000, 5000));
    // After a long sleep everything left is found, too.
    while table.expire(now + 3600 * SECOND, 64) > 0 {}
    assert_eq!((table.statistics().entries, table.statistics().half_open), (0, 0));
    assert_eq!(table.statistics().expired, 6000);
}

#[test]
fn one_that_lives_for_days_is_found_when_they_are_over() {
    let (table, tuple) = (table(100), tcp_tuple());
    established(&table, &tuple, START);
    let day = 24 * 3600 * SECOND;
    let mut now = START;
    while now < START + 5 * day {
        table.expire(now, 1000);
        now += 60 * SECOND;
    }
    assert_eq!(table.statistics().entries, 1);
    table.expire(now + day, 1000);
    assert_eq!(table.statistics().entries, 0);
}

#[test]
fn a_new_connection_takes_the_place_of_an_expired_one() {
    let (table, tuple) = (table(100), udp(1, 2, 3, 4));
    let old = open(&table, &tuple, &Packet::Other, START).unwrap();
    let now = START + 40 * SECOND;
    let new = open(&table, &tuple.reverse(), &Packet::Other, now).unwrap();
    assert_ne!(old, new);
    assert_eq!(
        find(&table, &tuple, now).map(|f| (f.entry, f.direction)),
        Some((new, Direction::Reply))
    );
    assert_eq!(table.statistics().entries, 1);
}
