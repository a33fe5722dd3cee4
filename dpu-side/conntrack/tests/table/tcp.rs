use outboard_conntrack::{
    ACK, Config, Direction, FIN, Outside, Packet, RST, Reason, SYN, Segment, State, Table, Tuple, Verdict,
};

use crate::{START, established, find, open, pass, segment, syn, table, tcp_tuple};
use Direction::{Original, Reply};

/// Sends segments of one connection, and says what became of each.
struct Line {
    table: Table,
    tuple: Tuple,
}

impl Line {
    fn new() -> Self {
        Self {
            table: table(16),
            tuple: tcp_tuple(),
        }
    }

    fn established() -> Self {
        let line = Self::new();
        established(&line.table, &line.tuple, START);
        line
    }

    fn send(&self, direction: Direction, segment: Segment<'_>) -> Result<State, String> {
        let tuple = if direction == Original {
            self.tuple
        } else {
            self.tuple.reverse()
        };
        pass(&self.table, &tuple, &Packet::Tcp(segment), START)?;
        Ok(self.state().expect("the connection is there"))
    }

    fn state(&self) -> Option<State> {
        find(&self.table, &self.tuple, START).map(|f| f.state)
    }

    /// The same, of a segment's fields; data of so many bytes.
    fn put(
        &self,
        direction: Direction,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
        data_len: u32,
    ) -> Result<State, String> {
        self.send(
            direction,
            Segment {
                data_len,
                ..segment(flags, sequence, acknowledgement)
            },
        )
    }
}

fn outside(what: Outside) -> Result<State, String> {
    Err(format!("{:?}", Reason::Window(what)))
}

#[test]
fn from_handshake_to_time_wait() {
    let line = Line::new();
    assert_eq!(line.put(Original, SYN, 1000, 0, 0), Ok(State::SynSent));
    assert_eq!(line.put(Reply, SYN | ACK, 5000, 1001, 0), Ok(State::SynRecv));
    assert_eq!(line.put(Original, ACK, 1001, 5001, 0), Ok(State::Established));
    assert_eq!(line.put(Original, ACK, 1001, 5001, 500), Ok(State::Established));
    assert_eq!(line.put(Reply, ACK, 5001, 1501, 700), Ok(State::Established));
    assert_eq!(line.put(Reply, FIN | ACK, 5701, 1501, 0), Ok(State::FinWait));
    assert_eq!(line.put(Original, ACK, 1501, 5702, 0), Ok(State::CloseWait));
    assert_eq!(line.put(Original, FIN | ACK, 1501, 5702, 0), Ok(State::LastAck));
    assert_eq!(line.put(Reply, ACK, 5702, 1502, 0), Ok(State::TimeWait));
}

#[test]
fn both_ends_close_at_once() {
    let line = Line::established();
    assert_eq!(line.put(Original, FIN | ACK, 1001, 5001, 0), Ok(State::FinWait));
    assert_eq!(line.put(Reply, FIN | ACK, 5001, 1001, 0), Ok(State::LastAck));
    assert_eq!(line.put(Original, ACK, 1002, 5002, 0), Ok(State::TimeWait));
    assert_eq!(line.put(Reply, ACK, 5002, 1002, 0), Ok(State::TimeWait));
}

#[test]
fn both_ends_open_at_once() {
    let line = Line::new();
    assert_eq!(line.put(Original, SYN, 1000, 0, 0), Ok(State::SynSent));
    assert_eq!(line.put(Reply, SYN, 5000, 0, 0), Ok(State::SynSent2));
    assert_eq!(line.put(Original, SYN | ACK, 1000, 5001, 0), Ok(State::SynRecv));
    assert_eq!(line.put(Reply, SYN | ACK, 5000, 1001, 0), Ok(State::SynRecv));
    assert_eq!(line.put(Reply, ACK, 5001, 1001, 0), Ok(State::Established));
    assert_eq!(line.put(Original, ACK, 1001, 5001, 100), Ok(State::Established));
}

#[test]
fn repeated_segments_of_the_handshake_pass() {
    let line = Line::new();
    for _ in 0..3 {
        assert_eq!(line.put(Original, SYN, 1000, 0, 0), Ok(State::SynSent));
    }
    for _ in 0..3 {
        assert_eq!(line.put(Reply, SYN | ACK, 5000, 1001, 0), Ok(State::SynRecv));
    }
    for _ in 0..3 {
        assert_eq!(line.put(Original, ACK, 1001, 5001, 10), Ok(State::Established));
    }
    assert_eq!(line.put(Reply, SYN | ACK, 5000, 1001, 0), Ok(State::Established));
}

#[test]
fn a_refused_connection_is_gone_at_once() {
    let line = Line::new();
    line.put(Original, SYN, 1000, 0, 0).unwrap();
    let reset = Packet::Tcp(segment(RST | ACK, 0, 1001));
    assert_eq!(pass(&line.table, &line.tuple.reverse(), &reset, START), Ok(()));
    assert_eq!(line.state(), None);
    assert_eq!(line.table.statistics().ended, 1);
}

#[test]
fn segments_out_of_place_in_the_handshake_are_invalid() {
    let line = Line::new();
    let invalid = Err("State".to_owned());
    line.put(Original, SYN, 1000, 0, 0).unwrap();
    assert_eq!(line.put(Original, ACK, 1001, 5001, 0), invalid);
    assert_eq!(line.put(Original, FIN | ACK, 1001, 5001, 0), invalid);
    assert_eq!(line.put(Original, SYN | ACK, 1001, 5001, 0), invalid);
    line.put(Reply, SYN | ACK, 5000, 1001, 0).unwrap();
    assert_eq!(line.put(Reply, SYN, 5000, 0, 0), invalid);
}

#[test]
fn what_lies_beyond_the_window_is_invalid() {
    let line = Line::established();
    assert_eq!(
        line.put(Original, ACK, 1001 + 1000 + 5000, 5001, 10),
        outside(Outside::Beyond)
    );
    assert_eq!(line.put(Reply, ACK, 5001 + 4000, 1001, 10), outside(Outside::Beyond));
    assert_eq!(
        line.put(Original, ACK, 1001, 5500, 10),
        outside(Outside::AcknowledgesUnsent)
    );
    // In it all of these pass; out of order too.
    assert_eq!(line.put(Original, ACK, 1501, 5001, 500), Ok(State::Established));
    assert_eq!(line.put(Original, ACK, 1001, 5001, 500), Ok(State::Established));
    assert_eq!(line.put(Reply, ACK, 5001, 2001, 0), Ok(State::Established));
    // The window moved on with that acknowledgement.
    assert_eq!(line.put(Original, ACK, 2001, 5001, 1000), Ok(State::Established));
}

#[test]
fn sequence_numbers_wrap() {
    let line = Line::new();
    let (client, server) = (u32::MAX - 100, u32::MAX - 3);
    line.put(Original, SYN, client, 0, 0).unwrap();
    line.put(Reply, SYN | ACK, server, client.wrapping_add(1), 0).unwrap();
    line.put(Original, ACK, client.wrapping_add(1), server.wrapping_add(1), 0)
        .unwrap();
    for i in 0..10_u32 {
        let (at, ours) = (client.wrapping_add(1 + i * 900), server.wrapping_add(1 + i * 50));
        assert_eq!(line.put(Original, ACK, at, ours, 900), Ok(State::Established), "{i}");
        assert_eq!(
            line.put(Reply, ACK, ours, at.wrapping_add(900), 50),
            Ok(State::Established),
            "{i}"
        );
    }
}

const SCALE_7: &[u8] = &[2, 4, 5, 180, 4, 2, 1, 3, 3, 7];
const SCALE_2: &[u8] = &[1, 3, 3, 2, 4, 2, 0, 0];

fn handshake(line: &Line, ours: &[u8], theirs: &[u8]) {
    line.send(
        Original,
        Segment {
            options: ours,
            ..segment(SYN, 1000, 0)
        },
    )
    .unwrap();
    line.send(
        Reply,
        Segment {
            options: theirs,
            ..segment(SYN | ACK, 5000, 1001)
        },
    )
    .unwrap();
    line.put(Original, ACK, 1001, 5001, 0).unwrap();
}

#[test]
fn windows_are_scaled_if_both_ends_offer_it() {
    let scaled = Line::new();
    handshake(&scaled, SCALE_7, SCALE_2);
    // The server's window is 1000 << 2 from here on, the client's 1000 << 7.
    scaled.put(Reply, ACK, 5001, 1001, 0).unwrap();
    assert_eq!(
        scaled.put(Original, ACK, 1001 + 3000, 5001, 1000),
        Ok(State::Established)
    );
    assert_eq!(
        scaled.put(Original, ACK, 1001 + 20_000, 5001, 1),
        outside(Outside::Beyond)
    );
    assert_eq!(
        scaled.put(Reply, ACK, 5001 + 100_000, 1001, 1000),
        Ok(State::Established)
    );

    for (ours, theirs) in [(SCALE_7, &[][..]), (&[][..], SCALE_2)] {
        let plain = Line::new();
        handshake(&plain, ours, theirs);
        plain.put(Reply, ACK, 5001, 1001, 0).unwrap();
        assert_eq!(
            plain.put(Original, ACK, 1001 + 3000, 5001, 1000),
            outside(Outside::Beyond)
        );
    }
}

#[test]
fn selective_acknowledgements_count() {
    let line = Line::new();
    handshake(&line, SCALE_7, SCALE_2);
    // The client sends 1001..1101 (lost on the way to the server) and 1101..1201.
    line.put(Original, ACK, 1101, 5001, 100).unwrap();
    let block = |left: u32, right: u32| {
        let mut options = vec![1, 1, 5, 10];
        options.extend(left.to_be_bytes());
        options.extend(right.to_be_bytes());
        options
    };
    let good = block(1101, 1201);
    assert_eq!(
        line.send(
            Reply,
            Segment {
                options: &good,
                ..segment(ACK, 5001, 1001)
            }
        ),
        Ok(State::Established)
    );
    let unsent = block(1101, 9000);
    let refused = line.send(
        Reply,
        Segment {
            options: &unsent,
            ..segment(ACK, 5001, 1001)
        },
    );
    assert_eq!(refused, outside(Outside::AcknowledgesUnsent));
}

#[test]
fn options_cut_short_are_survived() {
    let line = Line::new();
    for options in [
        &[3][..],
        &[3, 3],
        &[3, 0, 0, 0],
        &[3, 1],
        &[5, 255, 1, 2],
        &[1, 1, 1, 2],
    ] {
        assert!(
            line.send(
                Original,
                Segment {
                    options,
                    ..segment(SYN, 1000, 0)
                }
            )
            .is_ok()
        );
    }
}

#[test]
fn a_reset_counts_only_with_a_number_that_its_sender_knows() {
    let line = Line::established();
    line.put(Original, ACK, 1001, 5001, 500).unwrap();
    line.put(Reply, ACK, 5001, 1501, 0).unwrap();
    // Before what was acknowledged, beyond the window, and in the window but not exact.
    assert_eq!(line.put(Original, RST, 1400, 0, 0), Err("Reset".into()));
    assert_eq!(line.put(Original, RST, 9000, 0, 0), outside(Outside::Beyond));
    assert_eq!(line.put(Original, RST, 1600, 0, 0), Ok(State::Established));
    assert_eq!(line.put(Reply, RST, 4000, 0, 0), Err("Reset".into()));
    assert_eq!(line.put(Original, ACK, 1501, 5001, 10), Ok(State::Established));
    assert_eq!(line.put(Reply, ACK, 5001, 1511, 0), Ok(State::Established));
    assert_eq!(line.put(Original, RST, 1511, 0, 0), Ok(State::Close));
}

#[test]
fn a_closed_connection_is_reopened_by_a_syn() {
    let line = Line::established();
    line.put(Original, FIN | ACK, 1001, 5001, 0).unwrap();
    line.put(Reply, FIN | ACK, 5001, 1002, 0).unwrap();
    line.put(Original, ACK, 1002, 5002, 0).unwrap();
    assert_eq!(line.state(), Some(State::TimeWait));
    assert_eq!(line.put(Original, SYN, 900_000, 0, 0), Ok(State::SynSent));
    assert_eq!(line.put(Reply, SYN | ACK, 77, 900_001, 0), Ok(State::SynRecv));
    assert_eq!(line.put(Original, ACK, 900_001, 78, 0), Ok(State::Established));
    line.put(Original, RST, 900_001, 0, 0).unwrap();
    assert_eq!(line.state(), Some(State::Close));
    assert_eq!(line.put(Original, SYN, 5, 0, 0), Ok(State::SynSent));
    assert_eq!(line.table.statistics().entries, 1);
}

#[test]
fn from_time_wait_the_other_end_may_open_too() {
    let line = Line::established();
    line.put(Original, FIN | ACK, 1001, 5001, 0).unwrap();
    line.put(Reply, FIN | ACK, 5001, 1002, 0).unwrap();
    line.put(Original, ACK, 1002, 5002, 0).unwrap();
    line.put(Reply, SYN, 900_000, 0, 0).unwrap();
    assert_eq!(find(&line.table, &line.tuple, START).map(|f| f.direction), Some(Reply));
}

#[test]
fn ends_that_began_anew_without_us_are_followed() {
    // The client lost its connection and connects again from the same port; the server lost it too.
    let line = Line::established();
    assert_eq!(line.put(Original, SYN, 70_000_000, 0, 0), Ok(State::Established));
    assert_eq!(
        line.put(Reply, SYN | ACK, 90_000_000, 70_000_001, 0),
        Ok(State::SynRecv)
    );
    assert_eq!(
        line.put(Original, ACK, 70_000_001, 90_000_001, 0),
        Ok(State::Established)
    );
    assert_eq!(
        line.put(Original, ACK, 70_000_001, 90_000_001, 500),
        Ok(State::Established)
    );
}

#[test]
fn a_challenge_acknowledges_no_fin() {
    let line = Line::established();
    line.put(Original, FIN | ACK, 1001, 5001, 0).unwrap();
    line.put(Reply, FIN | ACK, 5001, 1002, 0).unwrap();
    assert_eq!(line.put(Original, SYN, 70_000_000, 0, 0), Ok(State::LastAck));
    assert_eq!(line.put(Reply, ACK, 5002, 1002, 0), Ok(State::LastAck));
    assert_eq!(line.put(Original, ACK, 1002, 5002, 0), Ok(State::TimeWait));
}

#[test]
fn a_connection_picked_up_is_followed_without_its_handshake() {
    let mut config = Config {
        entries: 16,
        ports: 1,
        ..Config::default()
    };
    config.tcp.pick_up = true;
    let line = Line {
        table: crate::table_of(&config),
        tuple: tcp_tuple(),
    };
    assert_eq!(line.put(Original, ACK, 50_000, 90_000, 100), Ok(State::Established));
    assert_eq!(line.put(Reply, ACK, 90_000, 50_100, 100), Ok(State::Established));
    assert_eq!(line.put(Original, ACK, 50_100, 90_100, 0), Ok(State::Established));
    // Without scaling known, windows are no bound.
    assert_eq!(line.put(Original, ACK, 950_100, 90_100, 10), Ok(State::Established));
}

#[test]
fn a_liberal_table_lets_strays_through() {
    let mut config = Config {
        entries: 16,
        ports: 1,
        ..Config::default()
    };
    config.tcp.liberal = true;
    let line = Line {
        table: crate::table_of(&config),
        tuple: tcp_tuple(),
    };
    established(&line.table, &line.tuple, START);
    assert_eq!(line.put(Original, ACK, 950_100, 5001, 10), Ok(State::Established));
    assert_eq!(line.put(Original, RST, 500, 0, 0), Err("Reset".into()));
}

#[test]
fn an_acknowledgement_that_says_nothing_new_writes_nothing_and_passes() {
    let line = Line::established();
    let found = find(&line.table, &line.tuple, START).unwrap();
    let packet = Packet::Tcp(segment(ACK, 1001, 5001));
    for _ in 0..1000 {
        assert_eq!(line.table.observe(found.entry, Original, &packet, START), Verdict::Ok);
    }
    assert_eq!(find(&line.table, &line.tuple, START), Some(found));
}

#[test]
fn another_protocols_packet_is_no_part_of_it() {
    let table = table(16);
    let entry = open(&table, &tcp_tuple(), &syn(), START).unwrap();
    assert_eq!(
        table.observe(entry, Original, &Packet::Other, START),
        Verdict::Invalid(Reason::Header)
    );
}
