//! Our verdicts beside those of Linux.

use std::{
    env,
    time::{Duration, Instant},
};

use outboard_controls::{Check, Off};
use outboard_oracle::{
    Case, Failure, Side, Verdict, case, generate,
    linux::Linux,
    namespace,
    ours::{Classifier, Datapath},
    packet::Packet,
    rules::Rules,
    shrink,
};

/// A run ends here, however many cases it has had by then, unless more were asked for.
const TIME_MAX: Duration = Duration::from_secs(3);

/// By `OUTBOARD_ORACLE_CASES=N` N of them, whatever time they take.
fn compare(default_count: u64, generate: fn(u64) -> Case, ours: &mut dyn Side, linux: &mut dyn Side) {
    let asked = env::var("OUTBOARD_ORACLE_CASES").ok();
    let asked: Option<u64> = asked.map(|count| count.parse().expect("OUTBOARD_ORACLE_CASES is a number"));
    let first: u64 =
        env::var("OUTBOARD_ORACLE_SEED").map_or(0, |seed| seed.parse().expect("OUTBOARD_ORACLE_SEED is a number"));
    let began = Instant::now();
    let (mut cases, mut passed, mut errors, mut dropped, mut rejected) = (0, 0, 0, 0, 0);
    for seed in first..first.saturating_add(asked.unwrap_or(default_count)) {
        if asked.is_none() && began.elapsed() > TIME_MAX {
            break;
        }
        let case = generate(seed);
        let outcome = case::compare(&case, ours, linux).expect("both sides can be asked");
        if let Some(mismatch) = outcome.mismatch {
            let (small, mismatch) = shrink::smallest(&case, &mismatch, ours, linux).expect("both sides can be asked");
            panic!(
                "seed {seed}:\n{}",
                case::explain(&small, &mismatch, ["outboard", "linux"])
            );
        }
        cases += 1;
        passed += outcome.passed;
        errors += outcome.errors_passed;
        dropped += outcome.dropped;
        rejected += outcome.rejected;
    }
    println!(
        "{cases} cases: {passed} packets passed, {errors} ICMP errors among them, {dropped} were dropped and {rejected} rejected by both"
    );
    assert!(cases > 0 && passed > 0 && dropped > 0, "something was compared");
}

/// Linux without a memory.
struct Forgetful(Linux);

impl Side for Forgetful {
    fn begin(&mut self, rules: &Rules) -> Result<(), Failure> {
        self.0.begin(rules)
    }

    fn change(&mut self, rules: &Rules) -> Result<(), Failure> {
        self.0.change(rules)
    }

    fn send(&mut self, packet: &Packet, number: u16) -> Result<Verdict, Failure> {
        self.0.forget()?;
        self.0.send(packet, number)
    }
}

#[test]
fn first_packets_are_judged_as_linux_does() {
    if namespace::enter("compared::first_packets_are_judged_as_linux_does") {
        let linux = &mut Forgetful(Linux::new().expect("interfaces can be made"));
        compare(30, generate::openings, &mut Classifier::default(), linux);
    }
}

#[test]
fn the_datapath_agrees_with_linux() {
    if namespace::enter("compared::the_datapath_agrees_with_linux") {
        let (ours, linux) = (Datapath::new(), Linux::new());
        let ours = &mut ours.expect("a switch can be made");
        compare(120, generate::case, ours, &mut linux.expect("interfaces can be made"));
    }
}

#[test]
fn without_one_of_its_checks_the_datapath_is_found_out() {
    if !namespace::enter("compared::without_one_of_its_checks_the_datapath_is_found_out") {
        return;
    }
    let ours = &mut Datapath::new().expect("a switch can be made");
    let linux = &mut Linux::new().expect("interfaces can be made");
    for (check, seeds) in [
        (Check::SecurityGroups, 0..100),
        (Check::ConnectionWindow, 0..100),
        (Check::FragmentsOfAllowed, 0..100),
    ] {
        let _off = Off::here(check);
        let found = seeds.clone().find(|seed| {
            let outcome = case::compare(&generate::case(*seed), ours, linux).expect("both sides can be asked");
            outcome.mismatch.is_some()
        });
        println!("{check:?} is missed by case {found:?}");
        assert!(found.is_some(), "nothing in {seeds:?} needs {check:?}");
    }
}
