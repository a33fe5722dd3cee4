//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use regex::Regex;

use crate::{
    cases::{Case, Suite, System, cases},
    generator::Timing,
    measure::Plan,
};

/// Runs of each system that count, and of `--quick`.
const RUNS: (usize, usize) = (5, 3);
/// Measured seconds of a run, and of `--quick`.
const SECONDS: (f64, f64) = (3.0, 1.0);
/// Seconds before.
const WARMUP: (f64, f64) = (1.0, 0.3);

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suites {
    /// Frames between two guests
    Net,
    /// Requests of a guest to its disk
    Blk,
    /// Frames between a guest and an encapsulated wire
    Tunnel,
    /// All of them
    All,
}

/// Measure Outboard and its peers in one run, by the same load generator, each with one core.
///
/// Installs the peers where they are missing (asks first on a terminal), builds Outboard's own programs, starts all systems of
/// a case, and lets them take turns. Backend and generator have a core each; a run in which others took more than 3 % of one is
/// repeated. Prints a table and writes a plot to target/bench/SUITE.svg. The exit status tells whether all was measured.
#[derive(Debug, Parser)]
#[command(
    name = "bench-peers",
    max_term_width = 120,
    after_help = "Examples:\n  cargo bench-peers net --quick                       all network cases, some minutes\n  \
    cargo bench-peers net --case '^l2-64$' --system outboard,ovs-dpdk\n  \
    cargo bench-peers blk --case qd32 --json            one JSON object a line\n  \
    cargo bench-peers blk --spdk ~/spdk/build/bin/vhost"
)]
pub struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    pub suite: Suites,
    /// Only cases whose name matches.
    #[arg(long, value_name = "REGEX")]
    pub case: Option<Regex>,
    /// Only these systems, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SYSTEM")]
    pub system: Vec<System>,
    /// Print results as JSON, one object a line, and no table.
    #[arg(long)]
    pub json: bool,
    /// Fewer and shorter runs: 3 of 1 s instead of 5 of 3 s.
    #[arg(long)]
    pub quick: bool,
    /// Runs of each system that count.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: Option<u16>,
    /// Measured seconds of a run.
    #[arg(long, value_name = "S", value_parser = seconds)]
    pub seconds: Option<f64>,
    /// SPDK's vhost program (build/bin/vhost), to measure it too.
    #[arg(long, value_name = "PATH")]
    pub spdk: Option<PathBuf>,
    /// Install missing packages without asking.
    #[arg(long)]
    pub yes: bool,
    /// Also tell negotiated features, empty polls and full rings, and keep the folder with configuration and logs.
    #[arg(long, short)]
    pub verbose: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if (0.1..=600.0).contains(&value) {
        Ok(value)
    } else {
        Err("give 0.1 to 600 seconds".into())
    }
}

impl Arguments {
    /// The suites.
    pub fn suites(&self) -> Vec<Suite> {
        match self.suite {
            Suites::Net => vec![Suite::Net],
            Suites::Blk => vec![Suite::Blk],
            Suites::Tunnel => vec![Suite::Tunnel],
            Suites::All => vec![Suite::Net, Suite::Blk, Suite::Tunnel],
        }
    }

    /// The chosen cases of a suite.
    pub fn cases(&self, suite: Suite) -> Vec<Case> {
        let wanted = |case: &Case| self.case.as_ref().is_none_or(|regex| regex.is_match(&case.name));
        cases(suite).into_iter().filter(wanted).collect()
    }

    /// The chosen systems, in the order of tables. SPDK is only there where its program is given.
    pub fn systems(&self) -> Vec<System> {
        let chosen = |system: &System| self.system.is_empty() || self.system.contains(system);
        let there = |system: &System| *system != System::Spdk || self.spdk.is_some() || self.system.contains(system);
        System::ALL.into_iter().filter(chosen).filter(there).collect()
    }

    /// How much to measure.
    pub fn plan(&self) -> Plan {
        let of = |pair: (f64, f64)| if self.quick { pair.1 } else { pair.0 };
        let runs = if self.quick { RUNS.1 } else { RUNS.0 };
        Plan {
            runs: self.runs.map_or(runs, usize::from),
            timing: Timing {
                seconds: self.seconds.unwrap_or(of(SECONDS)),
                warmup: of(WARMUP),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from([&["bench-peers"], words].concat())
    }

    #[test]
    fn suites_cases_and_systems_are_chosen() -> Result<(), clap::Error> {
        let chosen = arguments(&["net", "--case", "l2-64$", "--system", "ovs-dpdk,outboard"])?;
        let names: Vec<String> = chosen.cases(Suite::Net).into_iter().map(|case| case.name).collect();
        assert_eq!(names, ["l2-64"]);
        assert_eq!(chosen.systems(), [System::Outboard, System::OvsDpdk]);
        assert_eq!(arguments(&["all"])?.suites().len(), 3);
        assert!(arguments(&["net", "--case", "("]).is_err());
        assert!(arguments(&["net", "--system", "vpp"]).is_err());
        assert!(arguments(&["net", "--seconds", "0"]).is_err());
        Ok(())
    }

    #[test]
    fn spdk_is_there_where_it_is_given() -> Result<(), clap::Error> {
        assert!(!arguments(&["blk"])?.systems().contains(&System::Spdk));
        assert!(
            arguments(&["blk", "--spdk", "/opt/vhost"])?
                .systems()
                .contains(&System::Spdk)
        );
        // asked for by name without a path it fails with the remedy, and is not left out silently
        assert!(
            arguments(&["blk", "--system", "spdk"])?
                .systems()
                .contains(&System::Spdk)
        );
        Ok(())
    }

    #[test]
    fn five_runs_count_unless_it_has_to_be_quick() -> Result<(), clap::Error> {
        let plan = arguments(&["net"])?.plan();
        assert_eq!((plan.runs, plan.timing.seconds), (5, 3.0));
        let quick = arguments(&["net", "--quick"])?.plan();
        assert_eq!((quick.runs, quick.timing.seconds), (3, 1.0));
        let own = arguments(&["net", "--quick", "--runs", "7", "--seconds", "0.5"])?.plan();
        assert_eq!((own.runs, own.timing.seconds), (7, 0.5));
        Ok(())
    }
}
