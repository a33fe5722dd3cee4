//! A case, and what two sides say about it.

use std::fmt;

use crate::{
    Failure, Side, Verdict,
    packet::{Body, Packet, flag},
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

const SYN_ACK: u8 = flag::SYN | flag::ACK;

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

/// Runs a case on two sides, ours and Linux. The first packet on which they differ, if any, and how many packets passed on both.
pub fn compare(case: &Case, ours: &mut dyn Side, linux: &mut dyn Side) -> Result<Outcome, Failure> {
    let (ours, linux) = (case.run(ours)?, case.run(linux)?);
    let mut outcome = Outcome::default();
    let mut passed: Vec<&Packet> = Vec::new();
    for ((step, one, one_why), (_, other, other_why)) in ours.into_iter().zip(linux) {
        let Some(Step::Send(packet)) = case.steps.get(step) else {
            continue;
        };
        if is_early_reset(packet, &passed) {
            // From here on one of them may know the connection and the other one not.
            break;
        }
        if !same(packet, [one, other], &passed) {
            outcome.mismatch = Some(Mismatch {
                step,
                verdicts: [one, other],
                why: [one_why, other_why],
            });
            break;
        }
        match one {
            Verdict::Pass => {
                outcome.passed += 1;
                outcome.errors_passed += usize::from(matches!(packet.body, Body::Error { .. }));
                passed.push(packet);
            }
            Verdict::Drop => outcome.dropped += 1,
            Verdict::Reject | Verdict::Partly => outcome.rejected += 1,
        }
    }
    Ok(outcome)
}

/// Do our verdict and that of Linux agree, as far as they should? See the crate's documentation.
fn same(packet: &Packet, verdicts: [Verdict; 2], passed: &[&Packet]) -> bool {
    match (&packet.body, verdicts) {
        (_, [ours, linux]) if ours == linux => true,
        // Linux answers a rejected packet only if it knows the protocol's checksum (nf_reject_verify_csum).
        (Body::Other { .. }, [ours, linux]) => ours != Verdict::Pass && linux != Verdict::Pass,
        (Body::Error { about, .. }, [Verdict::Drop, Verdict::Pass]) => {
            let by_receiver = packet.from == about.to;
            let without_sequence = !matches!(about.body, Body::Tcp(_));
            !(by_receiver && without_sequence && passed.contains(&&**about))
        }
        _ => false,
    }
}

/// Is it a reset, and did nothing pass before that shows a connection to be established?
fn is_early_reset(packet: &Packet, passed: &[&Packet]) -> bool {
    let Body::Tcp(reset) = packet.body else { return false };
    if reset.flags & flag::RST == 0 {
        return false;
    }
    // Segments of the connection since it was opened last, and which of them have the reset's direction.
    let mut opening = None;
    let mut answered = None;
    let mut acknowledged = 0;
    for other in passed {
        let Body::Tcp(tcp) = other.body else { continue };
        let there = (other.from, other.to, tcp.source_port, tcp.destination_port);
        let forward = there == (packet.from, packet.to, reset.source_port, reset.destination_port);
        let back = there == (packet.to, packet.from, reset.destination_port, reset.source_port);
        if other.family != packet.family || !forward && !back {
            continue;
        }
        match tcp.flags & (flag::SYN | flag::ACK | flag::RST) {
            flag::SYN => (opening, answered, acknowledged) = (Some((forward, tcp.end())), None, 0),
            SYN_ACK if opening == Some((!forward, tcp.ack)) => answered = Some((forward, tcp.end())),
            flag::ACK if acknowledged > 0 || answered == Some((!forward, tcp.ack)) => acknowledged += 1,
            flag::ACK => {}
            _ => (opening, answered, acknowledged) = (None, None, 0),
        }
    }
    // The one that ends the handshake, and one more.
    acknowledged < 2
}

/// What became of a case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Packets that passed on both sides.
    pub passed: usize,
    /// Of these, ICMP errors.
    pub errors_passed: usize,
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
