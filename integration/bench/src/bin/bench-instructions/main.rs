//! `cargo bench-instructions`: see `--help`.
#![forbid(unsafe_code)]

mod callgrind;
mod figures;
mod load;
mod stages;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use outboard_bench::error::Failure;
use outboard_integration::setup;
use regex::Regex;
use serde::Serialize;

use crate::{
    callgrind::Profile,
    figures::Figures,
    load::{CASES, Load},
    stages::Stage,
};

/// Who speaks in error messages.
pub const WHO: &str = "bench-instructions";
/// Where figures are kept, from the project's folder.
const FIGURES: &str = "docs/instructions.toml";
/// Functions with less of a case's instructions than this are not listed.
const SHARE_MIN: f64 = 0.005;

/// Count the instructions that the datapath executes for a frame or a request.
///
/// The switch and a volume are driven in one thread for N operations and for twice as many under valgrind's callgrind; the
/// difference is what the operations cost, without start and warm-up. The counts are exact and the same on a busy machine.
/// In the cases victim-* an operation is a frame of a port beside an attacker: the attack may not cost it 5 % of its rate.
/// valgrind knows no AVX-512: what is counted is the code for other machines. valgrind (and for --time perf) is installed where
/// it is missing (asks first on a terminal).
#[derive(Debug, Parser)]
#[command(
    name = "bench-instructions",
    max_term_width = 120,
    after_help = "Examples:\n  cargo bench-instructions                                       all cases\n  \
    cargo bench-instructions --case '^l2-64$' --top 20             where the instructions of one case are\n  \
    cargo bench-instructions --check                               fails if a case costs more than 5 % above the record\n  \
    cargo bench-instructions --record                              writes the record anew\n  \
    cargo bench-instructions --time --case l2-64                   where the time goes, by samples of perf"
)]
struct Arguments {
    /// Only cases whose name matches.
    #[arg(long, value_name = "REGEX")]
    case: Option<Regex>,
    /// Frames or requests.
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(32..), default_value_t = 2048)]
    operations: u64,
    /// Functions to list of each case.
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    top: usize,
    /// Print results as JSON, one object a line, and no table.
    #[arg(long)]
    json: bool,
    /// Compare with the figures in a file; exit status 1 if a case costs more than 5 % above them.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = FIGURES)]
    check: Option<PathBuf>,
    /// Write the figures to a file; those of cases that were left out stay.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = FIGURES, conflicts_with = "check")]
    record: Option<PathBuf>,
    /// Instead of instructions, sample the time for some seconds, and split it into the stages of the walk.
    #[arg(long, conflicts_with_all = ["check", "record"])]
    time: bool,
    /// Seconds of each case with --time.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Install missing packages without asking.
    #[arg(long)]
    yes: bool,
}

/// A case, as a line of JSON.
#[derive(Serialize)]
struct CaseLine<'a> {
    case: &'a str,
    instructions_per_operation: f64,
    functions: Vec<FunctionLine<'a>>,
}

#[derive(Serialize)]
struct FunctionLine<'a> {
    function: &'a str,
    inclusive: f64,
    exclusive: f64,
}

/// A case's stages, as a line of JSON.
#[derive(Serialize)]
struct StagesLine<'a> {
    case: &'a str,
    nanoseconds_per_operation: f64,
    samples: u64,
    stages: &'a [Stage],
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is as recorded.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let chosen = |case: &&str| arguments.case.as_ref().is_none_or(|pattern| pattern.is_match(case));
    let cases: Vec<&str> = CASES.into_iter().filter(chosen).collect();
    if cases.is_empty() {
        return Err(Failure::new(
            WHO,
            "no case of this name",
            "leave --case out to see all names",
        ));
    }
    let recorded = arguments.check.as_ref().map(|path| Figures::read(path)).transpose()?;
    let group = if arguments.time { "perf" } else { "valgrind" };
    setup::peers(&[group], arguments.yes)
        .map_err(|e| Failure::new("set-up", e.to_string(), format!("install {group}")))?;
    let load = Load::build()?;
    if arguments.time {
        return time(arguments, &load, &cases);
    }
    let mut measured = Figures::new()?;
    let comparable = recorded
        .as_ref()
        .is_none_or(|recorded| recorded.is_comparable(&measured));
    let mut good = true;
    for case in cases {
        let once = load.count(case, arguments.operations)?;
        let twice = load.count(case, 2 * arguments.operations)?;
        let profile = twice.without(&once);
        measured.set(case, profile.per_operation());
        show(arguments, case, &profile);
        if let Some(recorded) = &recorded {
            good &= told(recorded.compare(case, profile.per_operation())) || !comparable;
        }
        if let Some(share) = measured.share(case) {
            good &= told(share);
        }
    }
    if let Some(path) = &arguments.record {
        measured.write_over(path)?;
    }
    Ok(good)
}

/// Whether it is good, and why, as a line on standard error.
fn told(outcome: Result<String, String>) -> bool {
    match outcome {
        Ok(text) => {
            eprintln!("{text}");
            true
        }
        Err(text) => {
            eprintln!("error: {text}");
            false
        }
    }
}

fn show(arguments: &Arguments, case: &str, profile: &Profile) {
    let all = profile.per_operation();
    let functions = profile.functions();
    // Those that are (nearly) everything are the loop around it.
    let listed = functions
        .iter()
        .filter(|function| function.exclusive >= SHARE_MIN * all || function.inclusive >= 10.0 * SHARE_MIN * all)
        .filter(|function| function.inclusive < 0.995 * all || function.exclusive >= SHARE_MIN * all)
        .take(arguments.top);
    if arguments.json {
        let lines = listed.map(|function| FunctionLine {
            function: &function.name,
            inclusive: tenths(function.inclusive),
            exclusive: tenths(function.exclusive),
        });
        let line = CaseLine {
            case,
            instructions_per_operation: tenths(all),
            functions: lines.collect(),
        };
        println!("{}", serde_json::to_string(&line).unwrap_or_default());
        return;
    }
    if arguments.top == 0 {
        return;
    }
    let mut table = table([&format!("{case}: {all:.0} instructions"), "inclusive", "exclusive"]);
    for function in listed {
        table.add_row([
            shortened(&function.name),
            format!("{:.0}", function.inclusive),
            format!("{:.0}", function.exclusive),
        ]);
    }
    println!("{table}");
}

/// Samples the cases, and shows their stages.
fn time(arguments: &Arguments, load: &Load, cases: &[&str]) -> Result<bool, Failure> {
    for case in cases {
        let timed = load.sample(case, arguments.seconds)?;
        let line = StagesLine {
            case,
            nanoseconds_per_operation: timed.nanoseconds_per_operation,
            samples: timed.samples,
            stages: &timed.stages,
        };
        if arguments.json {
            println!("{}", serde_json::to_string(&line).unwrap_or_default());
            continue;
        }
        let title = format!(
            "{case}: {:.0} ns, {} samples",
            timed.nanoseconds_per_operation, timed.samples
        );
        let mut table = table([&title, "ns", "%"]);
        for stage in &timed.stages {
            table.add_row([
                stage.name.to_owned(),
                format!("{:.1}", stage.nanoseconds),
                format!("{:.1}", stage.percent),
            ]);
        }
        println!("{table}");
    }
    Ok(true)
}

fn table(header: [&str; 3]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A function's name without what does not fit a line.
fn shortened(name: &str) -> String {
    const LEN_MAX: usize = 76;
    if name.chars().count() <= LEN_MAX {
        return name.to_owned();
    }
    let start: String = name.chars().take(LEN_MAX - 1).collect();
    format!("{start}…")
}
