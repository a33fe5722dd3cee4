//! A report, and whether it is right.

use crate::{
    args::{Mode, NetArgs},
    error::Error,
    meter::percent,
    meter::real,
    net::link::Link,
    report::Report,
};

/// What a run ends with: numbers in any case, and what is wrong with them.
#[derive(Debug)]
pub struct Outcome {
    /// The numbers.
    pub report: Report,
    /// What is wrong.
    pub wrong: Option<Error>,
}

impl Outcome {
    /// Adds what was compared in the whole run, judges it, and ends the sessions.
    pub fn of_stream(args: &NetArgs, report: Report, link: Link) -> Self {
        let [at_a, at_b] = link.counts();
        let sent: u64 = link.plans.iter().map(|plan| plan.sent()).sum();
        let received = at_a.received + at_b.received;
        let report = Report {
            lost: Some(sent.saturating_sub(received)),
            reordered: Some(at_a.reordered + at_b.reordered),
            corrupt: Some(at_a.corrupt + at_b.corrupt),
            foreign: Some(at_a.foreign + at_b.foreign),
            sampled: Some(at_a.sampled + at_b.sampled),
            denied_sent: Some(link.plans.iter().map(|plan| plan.denied_sent()).sum()),
            denied_received: Some(at_a.denied + at_b.denied),
            ..report
        };
        Self::new(args, report, sent, received, link)
    }

    /// Judges a report of which `sent` and `received` are over the whole run, and ends the sessions.
    pub fn new(args: &NetArgs, report: Report, sent: u64, received: u64, link: Link) -> Self {
        let (features, protocol_features) = link.ports[0].features();
        let report = Report {
            mode: clap::ValueEnum::to_possible_value(&args.mode).map_or_else(String::new, |v| v.get_name().into()),
            features: format!("{:#x}", features),
            protocol_features: format!("{:#x}", protocol_features),
            ..report
        };
        // What was counted is worth to be seen, also if the back-end is gone.
        let closed = link.close().err();
        let wrong = judge(args, &report, sent, received).map(Error::Wrong).or(closed);
        Self { report, wrong }
    }
}

/// What is wrong, if anything is.
fn judge(args: &NetArgs, report: &Report, sent: u64, received: u64) -> Option<String> {
    let (a, b) = (args.a.display(), args.b.display());
    let between = format!("between {a} and {b}");
    let some = |count: Option<u64>| count.filter(|count| *count > 0);
    if let Some(count) = some(report.corrupt) {
        return Some(format!(
            "{count} frames arrived with other bytes than were sent, {between}"
        ));
    }
    if let Some(count) = some(report.denied_received) {
        let port = args.deny_port;
        return Some(format!(
            "{count} frames to port {port}, which must be denied, arrived {between}"
        ));
    }
    if let Some(count) = some(report.reordered) {
        return Some(format!("{count} frames arrived late or twice, {between}"));
    }
    if received > sent {
        return Some(format!("{received} frames arrived of {sent} that were sent, {between}"));
    }
    if report.frames == Some(0) {
        return Some(format!("nothing arrived in the measured time, {between}"));
    }
    let lost = percent(real(sent - received), real(sent));
    let strict = matches!(args.mode, Mode::Pingpong | Mode::Paced);
    let most = args.max_loss_percent.or(strict.then_some(0.0))?;
    (lost > most).then(|| {
        format!(
            "{} of {sent} frames were lost ({lost} %, of at most {most} %), {between}",
            sent - received
        )
    })
}
