//! Network modes.

use clap::Parser;
use outboard_generator::{
    args::{CeilingArgs, NetArgs, Role},
    ceiling,
    error::Error,
    features::{IN_ORDER, NET_MRG_RXBUF},
    net::{self, outcome::Outcome},
    report::Report,
};

use crate::backend::{Backend, Engine, Ports, Wire};

/// Runs the generator with a back-end.
fn run(engine: impl Engine, role: Role, more: &[&str]) -> Result<Outcome, Error> {
    let backend = Backend::start(engine, 2, role);
    drive(&backend, role, more)
}

fn drive(backend: &Backend, role: Role, more: &[&str]) -> Result<Outcome, Error> {
    let (a, b) = (backend.socket(0), backend.socket(1));
    let role = if role == Role::Connect { "connect" } else { "listen" };
    let common = [
        "net",
        "--a",
        a.to_str().unwrap(),
        "--b",
        b.to_str().unwrap(),
        "--role",
        role,
    ];
    let times = ["--seconds", "0.1", "--warmup", "0.02", "--queue-size", "256"];
    let args = NetArgs::try_parse_from([&common[..], &times, more].concat()).unwrap();
    net::run(&args)
}

/// Runs in a mode against Outboard's own switch, in both roles, and expects that all is right.
#[track_caller]
fn right(more: &[&str]) -> Outcome {
    run(Ports::new(), Role::Listen, more)
        .map(|outcome| assert_right(&outcome))
        .unwrap();
    let outcome = run(Ports::new(), Role::Connect, more).unwrap();
    assert_right(&outcome);
    outcome
}

#[track_caller]
fn assert_right(outcome: &Outcome) {
    assert!(outcome.wrong.is_none(), "{:?}: {:?}", outcome.wrong, outcome.report);
    let report = &outcome.report;
    assert!(report.frames.unwrap() > 0 && report.pps.unwrap() > 0.0, "{report:?}");
    assert_eq!(report.corrupt, Some(0));
    assert!(report.features.starts_with("0x"));
}

#[test]
fn oneway() {
    let report = right(&["--mode", "oneway", "--window", "128", "--max-loss-percent", "0"]).report;
    assert_eq!(report.bytes, report.frames.map(|frames| frames * 64));
    assert_eq!((report.lost, report.reordered), (Some(0), Some(0)));
    assert!(report.sampled.unwrap() > 0);
}

#[test]
fn oneway_without_a_window_may_lose_but_not_reorder() {
    right(&["--mode", "oneway", "--frame", "1518"]);
}

#[test]
fn bidir_with_flows_over_tcp() {
    let flows = [
        "--flows",
        "5000",
        "--l4",
        "tcp",
        "--frame",
        "128",
        "--window",
        "64",
        "--max-loss-percent",
        "0",
    ];
    right(&[&["--mode", "bidir"], &flows[..]].concat());
}

#[test]
fn sleeping_drivers_are_woken() {
    right(&[
        "--mode",
        "bidir",
        "--notify",
        "eventfd",
        "--window",
        "64",
        "--max-loss-percent",
        "0",
    ]);
}

#[test]
fn pingpong() {
    let report = right(&["--mode", "pingpong"]).report;
    let quantiles = [report.p50_us, report.p99_us, report.p999_us, report.max_us].map(Option::unwrap);
    assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{quantiles:?}");
    assert_eq!(report.lost, Some(0));
}

#[test]
fn paced() {
    let report = right(&["--mode", "paced", "--rate", "2000", "--notify", "eventfd"]).report;
    assert_rate(&report, 2000);
    assert!(report.longest_gap_us.unwrap() >= 500.0);
    assert_eq!(report.lost, Some(0));
}

#[test]
fn new_tcp_connections() {
    assert_eq!(right(&["--mode", "newconn", "--l4", "tcp"]).report.lost, Some(0));
}

#[test]
fn new_udp_connections() {
    assert_eq!(right(&["--mode", "newconn", "--l4", "udp"]).report.lost, Some(0));
}

#[test]
fn large_segments() {
    let report = right(&["--mode", "tso", "--burst", "2"]).report;
    assert!(report.bytes.unwrap() > 1 << 20, "{report:?}");
}

#[test]
fn a_thread_that_only_copies_carries_segments_whole() {
    let args = CeilingArgs::parse_from(["ceiling", "--mode", "tso", "--seconds", "0.2", "--warmup", "0.05"]);
    let Outcome { report, wrong, .. } = ceiling::run(&args).unwrap();
    assert!(wrong.is_none(), "{wrong:?}: {report:?}");
    assert!(
        report.gbit_s.unwrap() > 0.1 && report.sampled.unwrap() > 0,
        "{report:?}"
    );
    // Whole: they are far larger than what crosses a wire.
    assert!(report.bytes.unwrap() / report.frames.unwrap() > 60_000, "{report:?}");
}

#[test]
fn resting_queues_move_nothing() {
    let report = right_without_frames(&["--mode", "idle", "--notify", "eventfd"]).report;
    assert_eq!((report.frames, report.lost), (None, Some(0)));
    assert!(report.seconds >= 0.1 && report.cpu_pct < 50.0, "{report:?}");
}

/// Runs against Outboard's own switch, in a mode that counts no frames.
#[track_caller]
fn right_without_frames(more: &[&str]) -> Outcome {
    let outcome = run(Ports::new(), Role::Connect, more).unwrap();
    assert!(outcome.wrong.is_none(), "{:?}: {:?}", outcome.wrong, outcome.report);
    outcome
}

/// Both pairs of ports, one of which attacks.
fn beside(role: Role, attack: &str) -> Outcome {
    let backend = Backend::start(Ports::new(), 4, role);
    let sockets = [2, 3].map(|port| backend.socket(port));
    let [a, b] = sockets.each_ref().map(|path| path.to_str().unwrap());
    let more = ["--mode", "victim", "--attack", attack, "--victim-a", a, "--victim-b", b];
    drive(&backend, role, &more).unwrap()
}

#[test]
fn an_attacker_and_its_victim() {
    for attack in ["tuples", "masks", "connections"] {
        for role in [Role::Connect, Role::Listen] {
            let outcome = beside(role, attack);
            assert_right(&outcome);
            let report = outcome.report;
            assert_eq!(report.reordered, Some(0));
            let rates = [
                report.legal_pps,
                report.beside_pps,
                report.attack_pps,
                report.victim_pct,
            ];
            assert!(rates.iter().all(|rate| rate.unwrap() > 0.0), "{attack}: {report:?}");
        }
    }
}

#[test]
fn a_victim_needs_ports_of_its_own() {
    let error = run(honest(MERGEABLE), Role::Connect, &["--mode", "victim"]);
    assert!(error.is_err_and(|error| error.to_string().contains("four sockets")));
}

#[test]
fn paced_streams_keep_their_rate() {
    assert_rate(&right(&["--mode", "oneway", "--rate", "10000"]).report, 10_000);
}

/// At most the rate, with what may be made up for; how much less there is on a busy machine is anybody's guess.
#[track_caller]
fn assert_rate(report: &Report, per_second: u32) {
    let frames = f64::from(u32::try_from(report.frames.unwrap()).unwrap());
    let most = f64::from(per_second) * report.seconds + 100.0;
    assert!(frames >= 1.0 && frames <= most, "{frames} of at most {most}");
}

const MERGEABLE: u64 = NET_MRG_RXBUF;

/// Passes everything, as the control of those that do not.
fn honest(features: u64) -> Wire {
    Wire::new(features, |frame| vec![frame])
}

/// A data frame, not one that finds the path.
fn is_data(bytes: &[u8]) -> bool {
    let word = |at: usize| u32::from_be_bytes(bytes[12 + at..12 + at + 4].try_into().unwrap());
    bytes[24..26] == [8, 0] && word(48) == !word(52)
}

#[track_caller]
fn wrong(engine: impl Engine, more: &[&str]) -> String {
    let outcome = run(engine, Role::Connect, more).unwrap();
    outcome
        .wrong
        .unwrap_or_else(|| panic!("nothing found wrong: {:?}", outcome.report))
        .to_string()
}

const WINDOW: [&str; 2] = ["--window", "32"];

#[test]
fn an_honest_wire_is_right_with_and_without_features() {
    for features in [0, MERGEABLE, MERGEABLE | IN_ORDER] {
        assert_right(&run(honest(features), Role::Connect, &WINDOW).unwrap());
    }
}

#[test]
fn a_changed_byte_is_found() {
    // The last byte is in no header and no sequence number: only sampled frames show it.
    let engine = Wire::new(MERGEABLE, |mut frame| {
        if is_data(&frame) {
            *frame.last_mut().unwrap() ^= 1;
        }
        vec![frame]
    });
    assert!(wrong(engine, &WINDOW).contains("other bytes than were sent"));
}

#[test]
fn a_shorter_frame_is_found() {
    let engine = Wire::new(MERGEABLE, |mut frame| {
        if is_data(&frame) {
            frame.pop();
        }
        vec![frame]
    });
    assert!(wrong(engine, &[]).contains("other bytes than were sent"));
}

#[test]
fn swapped_and_doubled_frames_are_found() {
    let mut held = None;
    let swap = Wire::new(MERGEABLE, move |frame| match held.take() {
        _ if !is_data(&frame) => vec![frame],
        Some(before) => vec![frame, before],
        None => {
            held = Some(frame);
            Vec::new()
        }
    });
    assert!(wrong(swap, &WINDOW).contains("late or twice"));
    let double = Wire::new(MERGEABLE, |frame| {
        if is_data(&frame) {
            vec![frame.clone(), frame]
        } else {
            vec![frame]
        }
    });
    assert!(wrong(double, &WINDOW).contains("late or twice"));
    // Between flows, order is free, and within one it is not.
    let double = Wire::new(MERGEABLE, |frame| {
        if is_data(&frame) {
            vec![frame.clone(), frame]
        } else {
            vec![frame]
        }
    });
    assert!(wrong(double, &["--window", "32", "--flows", "100"]).contains("late or twice"));
}

#[test]
fn a_lost_frame_counts_where_none_may_be_lost() {
    let dropping = || {
        let mut count = 0u64;
        Wire::new(MERGEABLE, move |frame| {
            count += u64::from(is_data(&frame));
            if count % 100 == 99 { Vec::new() } else { vec![frame] }
        })
    };
    let lossless = ["--rate", "20000", "--max-loss-percent", "0"];
    assert!(wrong(dropping(), &lossless).contains("frames were lost"));
    let outcome = run(dropping(), Role::Connect, &lossless[..2]).unwrap();
    assert_right(&outcome);
    assert!(outcome.report.lost.unwrap() > 0);
    assert_right(&run(honest(MERGEABLE), Role::Connect, &lossless).unwrap());
}

#[test]
fn frames_to_be_denied_must_not_arrive() {
    let deny = ["--deny-percent", "1", "--rate", "20000", "--max-loss-percent", "0"];
    assert!(wrong(honest(MERGEABLE), &deny).contains("must be denied"));
    let firewall = Wire::new(MERGEABLE, |frame| {
        let denied = frame[24..26] == [8, 0] && frame[12 + 36..12 + 38] == [0, 7];
        if denied { Vec::new() } else { vec![frame] }
    });
    let outcome = run(firewall, Role::Connect, &deny).unwrap();
    assert_right(&outcome);
    assert!(outcome.report.denied_sent.unwrap() > 0, "{:?}", outcome.report);
    assert_eq!(
        (outcome.report.denied_received, outcome.report.lost),
        (Some(0), Some(0))
    );
}

#[test]
fn a_path_that_is_none_is_said_to_be_none() {
    let blackhole = Wire::new(MERGEABLE, |_| Vec::new());
    let error = run(blackhole, Role::Connect, &["--patience", "1"]);
    assert!(error.is_err_and(|error| error.to_string().contains("nothing sent at")));
}

#[test]
fn a_backend_without_segmentation_is_named() {
    let error = run(honest(MERGEABLE), Role::Connect, &["--mode", "tso"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("lack CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4"),
        "{error}"
    );
}
