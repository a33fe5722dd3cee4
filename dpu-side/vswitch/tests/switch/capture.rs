//! Captures: what passes a port, both ways, and what became of it.

use std::time::Duration;

use crate::FEATURES;
use outboard_firewall::{Direction, EgressDefault, PortSpec, Protocol};
use outboard_vswitch::{
    CAPTURES_MAX, CaptureFilter, CaptureRead, CaptureRefused, CaptureSpec, CaptureWay, DropReason, Switch,
};
use vhost_net_dpu::header::NetHeader;

use crate::{
    firewall::{Filtered, datagram, group, rule},
    frames::{BROADCAST, ping, udp},
    rig::{Rig, mac},
};

use CaptureWay::{FromGuest, ToGuest};

const HOUR: Duration = Duration::from_secs(3600);

fn of(port: &str, filter: CaptureFilter) -> CaptureSpec {
    CaptureSpec {
        port: port.into(),
        filter,
        snaplen: 256,
        frames_max: u64::MAX,
        time_max: HOUR,
        unread_max: HOUR,
        len_max: 1 << 20,
    }
}

fn all() -> CaptureFilter {
    Box::new(|_| true)
}

fn open(switch: &mut Switch, spec: CaptureSpec) -> u64 {
    switch.open_capture(spec).expect("it begins")
}

fn read(switch: &mut Switch, id: u64, after: u64) -> CaptureRead {
    switch.read_capture(id, after, 1 << 20).expect("it runs")
}

/// Ways, bytes and drops.
fn seen(read: &CaptureRead) -> Vec<(CaptureWay, &[u8], Option<DropReason>)> {
    read.frames
        .iter()
        .map(|frame| (frame.way, frame.bytes.as_slice(), frame.dropped))
        .collect()
}

#[test]
fn both_ways_are_seen_with_the_reason_of_each_drop() {
    let dns = rule(Direction::Ingress, Protocol::UDP, PortSpec::Range(53, 53));
    let groups = vec![
        group("dns", EgressDefault::Deny, vec![dns]),
        group("out", EgressDefault::Allow, vec![]),
    ];
    let mut guests = Filtered::new(groups, &[Some(&["out"]), Some(&["dns"])]);
    let (good, bad) = (datagram(1, 2, (5, 53)), datagram(1, 2, (5, 54)));
    let (reply, mine) = (datagram(2, 1, (53, 5)), datagram(2, 1, (9, 9)));
    let switch = &mut guests.rig.switch;
    let (at_a, at_b) = (open(switch, of("a", all())), open(switch, of("b", all())));
    for (from, frame) in [(0, &good), (0, &bad), (1, &reply), (1, &mine)] {
        let _ = guests.send(from, frame);
    }
    let denied = Some(DropReason::IngressNoRule);
    let b = read(&mut guests.rig.switch, at_b, 0);
    let mine_denied = Some(DropReason::EgressNoRule);
    assert_eq!(
        seen(&b),
        [
            (ToGuest, good.as_slice(), None),
            (ToGuest, &bad, denied),
            (FromGuest, &reply, None),
            (FromGuest, &mine, mine_denied),
        ]
    );
    assert!(b.frames.windows(2).all(|pair| pair[0].unix_ns <= pair[1].unix_ns));
    // The sender's side knows why its frame did not arrive, and nothing of what never left b.
    let a = read(&mut guests.rig.switch, at_a, 0);
    let want = [
        (FromGuest, good.as_slice(), None),
        (FromGuest, &bad, denied),
        (ToGuest, &reply, None),
    ];
    assert_eq!(seen(&a), want);
}

#[test]
fn a_receiver_that_takes_nothing_is_told_apart() {
    let mut rig = Rig::without_buffers(&[FEATURES; 2]);
    let id = open(&mut rig.switch, of("b", all()));
    let frame = ping(mac(1), mac(2));
    rig.send_plain(0, &frame);
    rig.switch.shut("b");
    rig.send_plain(0, &frame);
    let read = read(&mut rig.switch, id, 0);
    let drops: Vec<_> = read.frames.iter().map(|frame| frame.dropped).collect();
    assert_eq!(drops, [Some(DropReason::RxFull), Some(DropReason::PortShut)]);
}

#[test]
fn capturing_changes_nothing_of_what_is_delivered_or_counted() {
    let run = |capture: bool| {
        let mut rig = Rig::new(&[FEATURES; 3]);
        if capture {
            for port in ["a", "b", "c"] {
                open(&mut rig.switch, of(port, all()));
            }
        }
        for n in 0..40u8 {
            let spoofed = udp((mac(1), mac(2)), ([10, 0, 0, 9], [10, 0, 0, 2]), (1, 2), &[n]);
            let call = udp((mac(1), BROADCAST), ([10, 0, 0, 1], [255; 4]), (1, 2), &[n]);
            for frame in [ping(mac(1), mac(2)), spoofed, call, ping(mac(1), mac(3))] {
                rig.guests[0].queue(NetHeader::default(), &frame);
            }
            rig.guests[0].tx.publish();
            rig.breathe();
            rig.guests.iter_mut().for_each(|guest| guest.repost());
        }
        let received: Vec<_> = rig.guests.iter_mut().map(|guest| guest.received()).collect();
        (rig.switch.counters(), received)
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn only_what_the_filter_takes_in_is_kept_and_as_much_of_it_as_asked() {
    let mut rig = Rig::pair();
    let udp_only = Box::new(|seen: &outboard_vswitch::Seen<'_>| seen.record.protocol == 17);
    let spec = CaptureSpec {
        snaplen: 1000,
        ..of("a", udp_only)
    };
    let id = open(&mut rig.switch, spec);
    let payload: Vec<u8> = (0..1400u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let long = udp((mac(1), mac(2)), ([10, 0, 0, 1], [10, 0, 0, 2]), (1, 2), &payload);
    rig.send_plain(0, &ping(mac(1), mac(2)));
    rig.send_plain(0, &long);
    let read = read(&mut rig.switch, id, 0);
    assert_eq!(
        seen(&read),
        [(FromGuest, &long[..1000], None)],
        "beyond the inspected bytes too"
    );
    assert_eq!(read.frames[0].len as usize, long.len());
}

#[test]
fn a_reading_that_is_lost_can_be_repeated_and_what_was_read_is_forgotten() {
    let mut rig = Rig::pair();
    let id = open(&mut rig.switch, of("a", all()));
    let frame = ping(mac(1), mac(2));
    (0..5).for_each(|_| rig.send_plain(0, &frame));
    let numbers = |read: &CaptureRead| read.frames.iter().map(|f| f.number).collect::<Vec<_>>();
    // As many as fit.
    let some = rig.switch.read_capture(id, 0, 2 * frame.len()).expect("it runs");
    assert_eq!(numbers(&some), [1, 2]);
    assert_eq!(numbers(&read(&mut rig.switch, id, 0)), [1, 2, 3, 4, 5]);
    assert_eq!(numbers(&read(&mut rig.switch, id, 3)), [4, 5]);
    assert_eq!(numbers(&read(&mut rig.switch, id, 0)), [4, 5]);
    assert!(rig.switch.close_capture(id) && !rig.switch.close_capture(id));
    assert_eq!(rig.switch.read_capture(id, 0, 1), None);
}

#[test]
fn it_is_bounded_by_room_count_and_time_and_ends_if_nobody_reads_it() {
    let mut rig = Rig::pair();
    let frame = ping(mac(1), mac(2));
    let send = |rig: &mut Rig, count: usize| {
        for _ in 0..count {
            rig.send_plain(0, &frame);
            rig.guests[1].received();
            rig.guests[1].repost();
        }
    };
    let room = CaptureSpec {
        len_max: 10 * frame.len(),
        ..of("a", all())
    };
    let count = CaptureSpec {
        frames_max: 3,
        ..of("a", all())
    };
    let time = CaptureSpec {
        time_max: Duration::ZERO,
        ..of("a", all())
    };
    let unread = CaptureSpec {
        unread_max: Duration::ZERO,
        ..of("a", all())
    };
    let [room, count, time] = [room, count, time].map(|spec| open(&mut rig.switch, spec));
    send(&mut rig, 25);
    let of_room = read(&mut rig.switch, room, 0);
    assert_eq!((of_room.frames.len(), of_room.lost, of_room.ended), (10, 15, None));
    let of_count = read(&mut rig.switch, count, 0);
    assert_eq!((of_count.frames.len(), of_count.lost), (3, 0));
    assert!(of_count.ended.is_some_and(|why| why.contains("all the frames")));
    let of_time = read(&mut rig.switch, time, 0);
    assert!(of_time.frames.is_empty() && of_time.ended == Some("its time is up"));
    // Room that was read is used again.
    read(&mut rig.switch, room, 10);
    send(&mut rig, 4);
    assert_eq!(read(&mut rig.switch, room, 10).frames.len(), 4);
    let unread = open(&mut rig.switch, unread);
    send(&mut rig, 1);
    assert!(rig.switch.sweep_captures(), "the others are left");
    assert_eq!(rig.switch.read_capture(unread, 0, 1 << 20), None);
    for id in [room, count, time] {
        rig.switch.close_capture(id);
    }
    assert!(!rig.switch.sweep_captures());
}

#[test]
fn there_are_few_at_a_time_and_none_of_a_port_that_is_not() {
    let mut rig = Rig::pair();
    let refused = |switch: &mut Switch, port| switch.open_capture(of(port, all())).err();
    assert_eq!(refused(&mut rig.switch, "x"), Some(CaptureRefused::NoPort));
    let ids: Vec<_> = (0..CAPTURES_MAX)
        .map(|_| open(&mut rig.switch, of("a", all())))
        .collect();
    assert_eq!(refused(&mut rig.switch, "a"), Some(CaptureRefused::TooMany));
    rig.switch.close_capture(ids[0]);
    assert_eq!(refused(&mut rig.switch, "a"), None);
    // One whose port goes says so.
    rig.switch.set_ports(vec![]);
    let read = read(&mut rig.switch, ids[1], 0);
    assert_eq!(read.ended, Some("the port is gone"));
}
