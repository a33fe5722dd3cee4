//! Results: one line for machines, one row for people.

use serde::Serialize;

use crate::{
    cases::{Case, Suite, System},
    error::Failure,
    generator::Outcome,
    stats::{Summary, rounded},
};

/// A result, as `--json` prints it: one object a line. Its fields are kept, so that results of different versions can be
/// compared.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// The suite.
    pub suite: Suite,
    /// The case.
    pub case: String,
    /// The system.
    pub system: System,
    /// Unit of the following three.
    pub unit: &'static str,
    /// The median run. Of a latency case: its median round trip.
    pub median: f64,
    /// The least of the runs.
    pub min: f64,
    /// The most of the runs.
    pub max: f64,
    /// How many runs.
    pub runs: usize,
    /// CPU time of the backend, with the kernel's work for it, of one core.
    pub backend_cpu_pct: f64,
    /// CPU time of all else on the machine but the generator, of one core.
    pub host_cpu_pct: f64,
    /// The generator could hardly do more: the result is its own limit, or close to it.
    pub generator_limited: bool,
    /// 99th percentile of the round trips; of latency cases only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// What one thread's memcpy alone carries between the same buffers, in the same run and unit; of segments only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memcpy: Option<f64>,
    /// How often a second the rules were replaced, where they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes_per_s: Option<f64>,
}

/// What stands beside a result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Notes {
    /// Negotiated virtio features, and protocol features.
    pub features: Option<String>,
    /// Share of the generator's polls that found nothing.
    pub empty_polls_pct: Option<f64>,
    /// Share of its attempts to send that found the ring full.
    pub ring_full_pct: Option<f64>,
    /// CPU time of the generator, of one core.
    pub generator_cpu_pct: f64,
    /// Throughput.
    pub gbit_s: Option<f64>,
    /// A victim's frames beside legal ones and beside the attack, and the attack's, in millions per second.
    pub beside_mpps: Option<[f64; 3]>,
    /// Frames sent that had to be denied.
    pub denied_sent: Option<u64>,
    /// Runs thrown away: others took more of a core than is allowed.
    pub discarded: usize,
    /// The least share of its core that backend or generator could have had, of the runs that count.
    pub obtained_pct: f64,
    /// No run got its cores: these figures are those of disturbed runs.
    pub disturbed: bool,
}

/// What became of a system in a case.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// It was measured.
    Measured(Line, Notes),
    /// It was not, on purpose.
    Absent(System, String),
    /// It could not be.
    Failed(System, Failure),
}

impl Row {
    /// The system.
    pub fn system(&self) -> System {
        match self {
            Self::Measured(line, _) => line.system,
            Self::Absent(system, _) | Self::Failed(system, _) => *system,
        }
    }

    /// Its median.
    pub fn median(&self) -> Option<f64> {
        match self {
            Self::Measured(line, _) => Some(line.median),
            Self::Absent(..) | Self::Failed(..) => None,
        }
    }
}

/// All systems in one case.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseResult {
    /// The case.
    pub case: Case,
    /// The systems.
    pub rows: Vec<Row>,
    /// What the generator alone can do, in the unit of the case.
    pub ceiling: Option<f64>,
}

impl CaseResult {
    /// How many times as good as `other` is `row`? For latencies the smaller is the better.
    pub fn ratio(&self, row: &Row, other: &Row) -> Option<f64> {
        let (own, others) = (row.median()?, other.median()?);
        let (good, reference) = if self.case.less_is_better() {
            (others, own)
        } else {
            (own, others)
        };
        (reference > 0.0).then(|| good / reference)
    }

    /// The peer that the case is first compared with.
    pub fn yardstick(&self) -> Option<&Row> {
        let yardstick = self.case.yardstick();
        self.rows.iter().find(|row| row.system() == yardstick)
    }

    /// The best system that is a peer: neither ours, nor fio, which serves no device.
    pub fn best_peer(&self) -> Option<&Row> {
        let peers = self
            .rows
            .iter()
            .filter(|row| !matches!(row.system(), System::Outboard | System::Raw) && row.median().is_some());
        let order = |row: &&Row| row.median().unwrap_or_default();
        if self.case.less_is_better() {
            peers.min_by(|one, two| order(one).total_cmp(&order(two)))
        } else {
            peers.max_by(|one, two| order(one).total_cmp(&order(two)))
        }
    }
}

/// Within this share of the generator's ceiling a result is the generator's.
const CEILING_SHARE: f64 = 0.9;
/// Where a case has no ceiling of its own, a generator that finds work at nearly every look is the limit: less than
/// this share of its polls finds nothing, and of its attempts to send finds no room.
const IDLE_PCT_MIN: f64 = 1.0;

/// The value of a run, in the unit of the case.
pub fn value(case: &Case, outcome: &Outcome) -> Option<f64> {
    let report = &outcome.report;
    match case.unit() {
        "%" if case.is_idle() => Some(outcome.shares.backend_pct),
        "%" => report.victim_pct,
        "Mpps" | "Mconn/s" => report.pps.map(|pps| pps / 1e6),
        "us" => report.p50_us,
        "Gbit/s" => report.gbit_s,
        "kIOPS" => report.iops.map(|iops| iops / 1e3),
        _ => None,
    }
}

/// A result from the runs of a system; none if the generator told no value.
pub fn row(case: &Case, system: System, clean: &[Outcome], disturbed: &[Outcome], ceiling: Option<f64>) -> Option<Row> {
    let counted = if clean.is_empty() { disturbed } else { clean };
    let summary = Summary::of(counted.iter().filter_map(|outcome| value(case, outcome)))?;
    let median =
        |part: &dyn Fn(&Outcome) -> Option<f64>| Summary::of(counted.iter().filter_map(part)).map(|s| s.median);
    let mpps = |part: &dyn Fn(&Outcome) -> Option<f64>| median(part).map(|pps| pps / 1e6);
    let beside_mpps = match [
        mpps(&|o| o.report.legal_pps),
        mpps(&|o| o.report.pps),
        mpps(&|o| o.report.attack_pps),
    ] {
        [Some(legal), Some(attacked), Some(attack)] => Some([legal, attacked, attack]),
        _ => None,
    };
    let notes = Notes {
        features: counted.first().and_then(features),
        empty_polls_pct: median(&|o| o.report.empty_polls_pct),
        ring_full_pct: median(&|o| o.report.ring_full_pct),
        generator_cpu_pct: median(&|o| Some(o.shares.generator_pct)).unwrap_or_default(),
        gbit_s: median(&|o| o.report.gbit_s),
        beside_mpps,
        denied_sent: counted
            .iter()
            .filter_map(|o| o.report.denied_sent)
            .reduce(u64::saturating_add),
        discarded: disturbed.len(),
        obtained_pct: Summary::of(counted.iter().map(|o| o.shares.obtained_pct)).map_or(0.0, |s| s.min),
        disturbed: clean.is_empty(),
    };
    let line = Line {
        suite: case.suite,
        case: case.name.clone(),
        system,
        unit: case.unit(),
        median: rounded(summary.median),
        min: rounded(summary.min),
        max: rounded(summary.max),
        runs: summary.runs,
        backend_cpu_pct: rounded(median(&|o| Some(o.shares.backend_pct)).unwrap_or_default()),
        host_cpu_pct: rounded(median(&|o| Some(o.shares.host_pct)).unwrap_or_default()),
        generator_limited: limited(case, summary.median, ceiling, &notes),
        p99: if case.is_latency() {
            median(&|o| o.report.p99_us).map(rounded)
        } else {
            None
        },
        memcpy: ceiling.filter(|_| case.is_segments()).map(rounded),
        changes_per_s: median(&|o| o.changes_per_s).map(rounded),
    };
    Some(Row::Measured(line, notes))
}

fn features(outcome: &Outcome) -> Option<String> {
    let virtio = outcome.report.features.clone()?;
    let protocol = outcome.report.protocol_features.as_deref();
    Some(protocol.map_or(virtio.clone(), |protocol| format!("{virtio}, protocol {protocol}")))
}

fn limited(case: &Case, median: f64, ceiling: Option<f64>, notes: &Notes) -> bool {
    if case.less_is_better() || case.unit() == "%" {
        return false;
    }
    match (ceiling, notes.empty_polls_pct, notes.ring_full_pct) {
        (Some(ceiling), _, _) => median >= CEILING_SHARE * ceiling,
        (None, Some(empty), full) => empty < IDLE_PCT_MIN && full.unwrap_or(0.0) < IDLE_PCT_MIN,
        (None, None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{accounting::Shares, cases::cases, generator::Report};

    fn case(suite: Suite, name: &str) -> Case {
        let found = cases(suite).into_iter().find(|case| case.name == name);
        found.unwrap_or_else(|| panic!("no case {name}"))
    }

    fn run(pps: f64, obtained_pct: f64) -> Outcome {
        Outcome {
            report: Report {
                pps: Some(pps),
                p50_us: Some(1.434),
                p99_us: Some(2.07),
                features: Some("0x130008000".into()),
                empty_polls_pct: Some(12.0),
                ring_full_pct: Some(40.0),
                ..Report::default()
            },
            shares: Shares {
                backend_pct: 99.5,
                host_pct: 0.4,
                generator_pct: 99.0,
                obtained_pct,
            },
            changes_per_s: None,
        }
    }

    #[test]
    fn a_line_has_exactly_the_fields_that_were_promised() -> Result<(), serde_json::Error> {
        let runs = [run(9e6, 99.0), run(11e6, 98.5), run(10e6, 99.9)];
        let made = row(&case(Suite::Net, "l2-64"), System::Outboard, &runs, &[], Some(20.0));
        let Some(Row::Measured(line, _)) = made else {
            panic!("measured")
        };
        let expected = "{\"suite\":\"net\",\"case\":\"l2-64\",\"system\":\"outboard\",\"unit\":\"Mpps\",\"median\":10.0,\
                        \"min\":9.0,\"max\":11.0,\"runs\":3,\"backend_cpu_pct\":99.5,\"host_cpu_pct\":0.4,\
                        \"generator_limited\":false}";
        assert_eq!(serde_json::to_string(&line)?, expected);
        Ok(())
    }

    #[test]
    fn a_latency_line_has_the_99th_percentile_too() -> Result<(), serde_json::Error> {
        let made = row(
            &case(Suite::Net, "rtt-l2"),
            System::DpdkIo,
            &[run(6e5, 99.0)],
            &[],
            None,
        );
        let Some(Row::Measured(line, _)) = made else {
            panic!("measured")
        };
        let json = serde_json::to_value(&line)?;
        assert_eq!(
            (&json["unit"], &json["median"], &json["p99"]),
            (&"us".into(), &1.434.into(), &2.07.into())
        );
        assert_eq!(json["generator_limited"], false);
        Ok(())
    }

    #[test]
    fn what_is_close_to_the_ceiling_is_the_generators() {
        let limited = |pps, ceiling| {
            let made = row(
                &case(Suite::Net, "l2-64"),
                System::DpdkIo,
                &[run(pps, 99.0)],
                &[],
                ceiling,
            );
            matches!(made, Some(Row::Measured(line, _)) if line.generator_limited)
        };
        assert!(limited(18.1e6, Some(20.0)));
        assert!(!limited(17.9e6, Some(20.0)));
        assert!(!limited(18.1e6, None), "it waited for the backend");
    }

    #[test]
    fn without_a_ceiling_a_generator_that_never_waits_is_the_limit() {
        let mut busy = run(1e6, 99.0);
        busy.report.empty_polls_pct = Some(0.2);
        busy.report.ring_full_pct = Some(0.0);
        let made = row(&case(Suite::Net, "tso"), System::OvsDpdk, &[], &[], None);
        assert_eq!(made, None, "no runs, no row");
        busy.report.gbit_s = Some(40.0);
        let made = row(&case(Suite::Net, "tso"), System::OvsDpdk, &[busy], &[], None);
        assert!(matches!(made, Some(Row::Measured(line, _)) if line.generator_limited));
    }

    #[test]
    fn disturbed_runs_count_only_where_there_are_no_others_and_are_told() {
        let case = case(Suite::Net, "l2-64");
        let (clean, disturbed) = ([run(10e6, 99.0)], [run(2e6, 40.0), run(3e6, 50.0)]);
        let Some(Row::Measured(line, notes)) = row(&case, System::DpdkIo, &clean, &disturbed, None) else {
            panic!("measured")
        };
        assert_eq!(
            (line.median, line.runs, notes.discarded, notes.disturbed),
            (10.0, 1, 2, false)
        );
        let Some(Row::Measured(line, notes)) = row(&case, System::DpdkIo, &[], &disturbed, None) else {
            panic!("measured")
        };
        assert_eq!((line.median, notes.disturbed, notes.obtained_pct), (2.5, true, 40.0));
    }

    #[test]
    fn more_is_better_but_for_latencies() {
        let made = |name: &str, ours: f64, ovs: f64, dpdk: f64| {
            let case = case(Suite::Net, name);
            let runs = |value: f64| {
                let mut run = run(value * 1e6, 99.0);
                run.report.p50_us = Some(value);
                [run]
            };
            let rows = [(System::Outboard, ours), (System::DpdkIo, dpdk), (System::OvsDpdk, ovs)];
            let rows = rows.map(|(system, value)| row(&case, system, &runs(value), &[], None));
            CaseResult {
                case,
                rows: rows.into_iter().flatten().collect(),
                ceiling: None,
            }
        };
        let ratios = |result: &CaseResult| {
            let ours = &result.rows[0];
            let against = |other: Option<&Row>| other.and_then(|other| result.ratio(ours, other));
            (against(result.yardstick()), against(result.best_peer()))
        };
        assert_eq!(ratios(&made("l2-64", 8.0, 10.0, 16.0)), (Some(0.8), Some(0.5)));
        assert_eq!(ratios(&made("rtt-l2", 4.0, 2.0, 1.0)), (Some(0.5), Some(0.25)));
    }
}
