//! The table as its caller sees it.

mod budget;
mod concurrency;
mod hostile;
mod listing;
mod lookup;
mod model;
mod tcp;
mod timeouts;

use std::time::Duration;

use outboard_conntrack::{
    ACK, Address, Budget, Config, Direction, EntryRef, Found, Key, Opened, Packet, Ports, Refused, SYN, Segment, Table,
    Tuple, UDP, Verdict,
};

/// When a test begins: any time but the table's own first tick.
pub(crate) const START: u64 = 3_600_000_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const PORTS: Ports = Ports { from: 0, to: 1 };

pub(crate) fn table(entries: u32) -> Table {
    table_of(&Config {
        entries,
        ports: 4,
        ..Config::default()
    })
}

pub(crate) fn table_of(config: &Config) -> Table {
    let table = Table::new(config);
    for port in 0..config.ports {
        assert!(table.set_budget(port, Budget::of(config.entries)));
    }
    table
}

pub(crate) fn v4(last: u32) -> Address {
    Address::v4(0x0a00_0000 | last)
}

pub(crate) fn udp(source: u32, source_port: u16, destination: u32, destination_port: u16) -> Tuple {
    Tuple {
        zone: 1,
        protocol: UDP,
        source: v4(source),
        destination: v4(destination),
        source_port,
        destination_port,
    }
}

pub(crate) fn tcp_tuple() -> Tuple {
    Tuple {
        protocol: 6,
        ..udp(1, 40_000, 2, 80)
    }
}

pub(crate) fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Segment<'static> {
    Segment {
        flags,
        sequence,
        acknowledgement,
        window: 1000,
        data_len: 0,
        options: &[],
    }
}

pub(crate) fn syn() -> Packet<'static> {
    Packet::Tcp(segment(SYN, 1000, 0))
}

pub(crate) fn find(table: &Table, tuple: &Tuple, now: u64) -> Option<Found> {
    table.lookup(&table.key(tuple), now)
}

pub(crate) fn open(table: &Table, tuple: &Tuple, packet: &Packet<'_>, now: u64) -> Result<EntryRef, Refused> {
    open_from(table, 0, tuple, packet, now)
}

pub(crate) fn open_from(
    table: &Table,
    from: u32,
    tuple: &Tuple,
    packet: &Packet<'_>,
    now: u64,
) -> Result<EntryRef, Refused> {
    match table.open(&table.key(tuple), Ports { from, to: 1 }, packet, [0; 3], now)? {
        Opened::New(entry) => Ok(entry),
        Opened::Exists(found) => panic!("{found:?} was there already"),
    }
}

/// What the datapath does with a packet: look up, then take it in or open a connection.
pub(crate) fn pass(table: &Table, tuple: &Tuple, packet: &Packet<'_>, now: u64) -> Result<(), String> {
    let key: Key = table.key(tuple);
    if let Some(found) = table.lookup(&key, now) {
        match table.observe(found.entry, found.direction, packet, now) {
            Verdict::Ok => return Ok(()),
            Verdict::Invalid(reason) => return Err(format!("{reason:?}")),
            Verdict::Reopens | Verdict::Gone => {}
        }
    }
    table
        .open(&key, PORTS, packet, [0; 3], now)
        .map(drop)
        .map_err(|refused| format!("{refused:?}"))
}

/// Shake hands; afterwards the client sent 1001 bytes (its SYN among them from 1000) and the server likewise from 5000.
pub(crate) fn established(table: &Table, tuple: &Tuple, now: u64) -> EntryRef {
    established_from(table, 0, tuple, now)
}

pub(crate) fn established_from(table: &Table, from: u32, tuple: &Tuple, now: u64) -> EntryRef {
    let entry = open_from(table, from, tuple, &syn(), now).expect("room for one more");
    let answer = Packet::Tcp(segment(SYN | ACK, 5000, 1001));
    assert_eq!(table.observe(entry, Direction::Reply, &answer, now), Verdict::Ok);
    let last = Packet::Tcp(segment(ACK, 1001, 5001));
    assert_eq!(table.observe(entry, Direction::Original, &last, now), Verdict::Ok);
    entry
}

pub(crate) const fn ns(duration: Duration) -> u64 {
    duration.as_secs() * SECOND
}
