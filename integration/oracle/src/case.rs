//! A case, and what two sides say about it.

use std::fmt;

use crate::{
    Failure, Side, Verdict,
    packet::{Body, Packet},
    rules::Rules,
};

/// What is done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A packet is sent.
    Send(Packet),
    /// Other rules are in force from here on.
    Change(Rules),
}

/// Rules, and what is sent under them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// At the beginning, when no connection is known.
    pub rules: Rules,
    /// In their order.
    pub steps: Vec<Step>,
}

/// The first packet on whose fate two sides differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its step.
    pub step: usize,
    /// What the first side said, and then the second.
    pub verdicts: [Verdict; 2],
    /// What the sides said about it.
    pub why: [Option<String>; 2],
}

type Told = Vec<(usize, Verdict, Option<String>)>;

impl Case {
    /// Packets with their steps.
    pub fn packets(&self) -> impl Iterator<Item = (usize, &Packet)> {
        self.steps.iter().enumerate().filter_map(|(index, step)| match step {
            Step::Send(packet) => Some((index, packet)),
            Step::Change(_) => None,
        })
    }

    /// One side's verdicts, with the packets' steps.
    pub fn run(&self, side: &mut dyn Side) -> Result<Told, Failure> {
        side.begin(&self.rules)?;
        let mut told = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                Step::Send(packet) => {
                    let number = u16::try_from(index + 1).unwrap_or(u16::MAX);
                    told.push((index, side.send(packet, number)?, side.why()));
                }
                Step::Change(rules) => side.change(rules)?,
            }
        }
        Ok(told)
    }
}

/// Runs a case on two sides. The first packet on which they differ, if any, and how many packets passed on both.
pub fn compare(case: &Case, first: &mut dyn Side, second: &mut dyn Side) -> Result<Outcome, Failure> {
    let (first, second) = (case.run(first)?, case.run(second)?);
    let mut outcome = Outcome::default();
    for ((step, one, one_why), (_, other, other_why)) in first.into_iter().zip(second) {
        let Some(Step::Send(packet)) = case.steps.get(step) else {
            continue;
        };
        if !same(packet, one, other) {
            outcome.mismatch = Some(Mismatch {
                step,
                verdicts: [one, other],
                why: [one_why, other_why],
            });
            break;
        }
        match one {
            Verdict::Pass => outcome.passed += 1,
            Verdict::Drop => outcome.dropped += 1,
            Verdict::Reject => outcome.rejected += 1,
        }
    }
    Ok(outcome)
}

/// Linux answers a rejected packet only if it knows the protocol's checksum, and finds it right (`nf_reject_verify_csum`).
fn same(packet: &Packet, one: Verdict, other: Verdict) -> bool {
    let unanswered = matches!(packet.body, Body::Other { .. });
    one == other || unanswered && one != Verdict::Pass && other != Verdict::Pass
}

/// What became of a case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Packets that passed on both sides.
    pub passed: usize,
    /// Packets that were dropped on both.
    pub dropped: usize,
    /// Packets that were rejected on both.
    pub rejected: usize,
    /// Where they differ first.
    pub mismatch: Option<Mismatch>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rules:\n{}steps:\n", self.rules)?;
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                Step::Send(packet) => writeln!(f, "  {index}: {packet}")?,
                Step::Change(rules) => write!(f, "  {index}: other rules:\n{rules}")?,
            }
        }
        Ok(())
    }
}

/// A case and where two sides of these names differ, for people.
pub fn explain(case: &Case, mismatch: &Mismatch, names: [&str; 2]) -> String {
    let mut text = format!("{case}step {}:", mismatch.step);
    for ((name, verdict), why) in names.iter().zip(mismatch.verdicts).zip(&mismatch.why) {
        let why = why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        text += &format!(" {name} says {verdict}{why};");
    }
    text + "\n"
}
