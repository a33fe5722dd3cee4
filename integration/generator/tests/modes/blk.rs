//! Block modes.

use clap::Parser;
use outboard_generator::{
    args::{BlkArgs, Role},
    blk,
    error::Error,
    report::Report,
};

use crate::backend::{Backend, Volume};

const DISK_LEN: u64 = 4 << 20;

fn run(role: Role, more: &[&str]) -> Result<(Report, Option<Error>), Error> {
    let backend = Backend::start(Volume::new(DISK_LEN), 1, role);
    let socket = backend.socket(0);
    let role = if role == Role::Connect { "connect" } else { "listen" };
    let common = ["blk", "--socket", socket.to_str().unwrap(), "--role", role];
    let times = ["--seconds", "0.1", "--warmup", "0.02"];
    let args = BlkArgs::try_parse_from([&common[..], &times, more].concat()).unwrap();
    blk::run(&args)
}

#[track_caller]
fn right(more: &[&str]) -> Report {
    let mut last = None;
    for role in [Role::Listen, Role::Connect] {
        let (report, wrong) = run(role, more).unwrap();
        assert!(wrong.is_none(), "{wrong:?}: {report:?}");
        assert!(report.requests.unwrap() > 0 && report.iops.unwrap() > 0.0);
        assert_eq!(report.errors, Some(0));
        last = Some(report);
    }
    last.unwrap()
}

#[test]
fn random_reads() {
    let report = right(&["--op", "randread"]);
    assert!(report.p50_us.unwrap() > 0.0 && report.p50_us <= report.p99_us && report.p99_us <= report.max_us);
    assert_eq!(report.bytes, report.requests.map(|requests| requests * 4096));
}

#[test]
fn sequential_reads_of_large_blocks() {
    right(&["--op", "read", "--block", "131072", "--depth", "4"]);
}

#[test]
fn random_writes_with_flushes_and_three_descriptors() {
    right(&["--op", "randwrite", "--flush-every", "7", "--no-indirect"]);
}

#[test]
fn sleeping_drivers_are_woken() {
    right(&["--op", "write", "--notify", "eventfd", "--depth", "1"]);
}

#[test]
fn written_blocks_are_verified() {
    let report = right(&["--op", "randwrite", "--verify", "--flush-every", "100"]);
    assert!(report.verified.unwrap() > 0);
    assert_eq!(report.corrupt, Some(0));
}

#[test]
fn read_blocks_are_verified() {
    let report = right(&["--op", "randread", "--verify", "--block", "512"]);
    assert!(report.verified >= report.requests, "{report:?}");
}

#[test]
fn a_disk_too_small_is_said_to_be() {
    let error = run(Role::Connect, &["--block", "4194304", "--verify"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("fewer than 33 blocks"), "{error}");
}
