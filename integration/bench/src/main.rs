//! `cargo bench-peers`: see `--help`.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal, Write as _, stderr, stdout},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use outboard_bench::{
    args::Arguments,
    cases::{Case, Part, Suite, System, part},
    error::Failure,
    folders::{Changes, Folders},
    huge_pages::HugePages,
    launch::OwnSession,
    machine::Machine,
    measure::{Deck, case},
    plot,
    programs::Programs,
    result::{CaseResult, Row},
    stats::readable,
    systems::Context,
    table::{beneath, table},
};
use outboard_integration::setup;

const WHO: &str = "bench-peers";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all that should be measured was.
fn run(arguments: &Arguments) -> Result<bool, Failure> {
    let chosen: Vec<(Suite, Vec<Case>)> = arguments
        .suites()
        .into_iter()
        .map(|suite| (suite, arguments.cases(suite)))
        .filter(|(_, cases)| !cases.is_empty())
        .collect();
    let systems = arguments.systems();
    let taking = systems_taking_part(&systems, &chosen);
    if chosen.is_empty() {
        let remedy = "leave --case out to see all names";
        return Err(Failure::new(WHO, "no case of this name", remedy));
    }
    check_spdk(arguments, &taking)?;
    let groups: Vec<&str> = taking.iter().filter_map(|system| group(*system)).collect();
    setup::peers(&groups, arguments.yes).map_err(|e| {
        let remedy = "install them, or leave systems out with --system";
        Failure::new("set-up", e.to_string(), remedy)
    })?;
    let programs = Programs::build(taking.contains(&System::Outboard))?;
    if programs.unoptimised() {
        eprintln!("warning: this is not the release profile; figures of our own programs say nothing");
    }
    let results = programs.results();
    let is_dpdk = |system: &System| matches!(system, System::DpdkIo | System::OvsDpdk | System::Spdk);
    let changes = Changes {
        session: OwnSession::put_first(),
        huge_pages: if taking.iter().any(is_dpdk) {
            HugePages::reserve()
        } else {
            HugePages::default()
        },
    };
    let folders = Folders::new(&results, arguments.verbose, changes).map_err(|e| {
        Failure::io(
            WHO,
            results.display(),
            &e,
            "check owner and space of the target folder and /tmp",
        )
    })?;
    let machine = Machine::new()?;
    let context = Context {
        folder: folders.run.clone(),
        memory_folder: folders.memory.clone(),
        disk_folder: folders.disk.clone(),
        machine,
        programs,
        spdk: arguments.spdk.clone(),
    };
    say(arguments, &context.machine.described());
    let mut good = true;
    for (suite, cases) in &chosen {
        good &= measure_suite(arguments, *suite, cases, &systems, &context, &results)?;
    }
    if arguments.verbose {
        say(arguments, &format!("configuration and logs: {}", folders.run.display()));
    }
    Ok(good)
}

fn systems_taking_part(systems: &[System], chosen: &[(Suite, Vec<Case>)]) -> Vec<System> {
    let cases = || chosen.iter().flat_map(|(_, cases)| cases);
    let takes = |system: &System| cases().any(|case| part(*system, case) == Part::Takes);
    systems.iter().copied().filter(takes).collect()
}

fn check_spdk(arguments: &Arguments, taking: &[System]) -> Result<(), Failure> {
    if !taking.contains(&System::Spdk) {
        return Ok(());
    }
    let remedy = "give --spdk the path of SPDK's vhost program (build/bin/vhost in its source tree)";
    match &arguments.spdk {
        Some(path) if path.is_file() => Ok(()),
        Some(path) => Err(Failure::new("spdk", format!("{} is no file", path.display()), remedy)),
        None => Err(Failure::new("spdk", "no distribution packs it", remedy)),
    }
}

/// The group of packages that a system needs.
fn group(system: System) -> Option<&'static str> {
    match system {
        System::DpdkIo | System::OvsDpdk | System::Qsd | System::Raw => Some(system.name()),
        System::Outboard | System::Spdk => None,
    }
}

/// Measures the cases of a suite, and shows what came of it.
fn measure_suite(
    arguments: &Arguments,
    suite: Suite,
    cases: &[Case],
    systems: &[System],
    context: &Context,
    folder: &Path,
) -> Result<bool, Failure> {
    let plan = arguments.plan();
    let runs: usize = cases
        .iter()
        .map(|case| {
            systems
                .iter()
                .filter(|system| part(**system, case) == Part::Takes)
                .count()
        })
        .sum();
    say(
        arguments,
        &format!(
            "suite {}: {} cases, {} runs of {} s each per system{}; about {} min",
            suite.name(),
            cases.len(),
            plan.runs,
            plan.timing.seconds,
            if arguments.quick {
                " (--quick: short and few; the spread is wide)"
            } else {
                ""
            },
            plan.expected(runs).as_secs().div_ceil(60)
        ),
    );
    let progress = progress(cases.len());
    let mut deck = Deck::default();
    let mut versions = BTreeMap::new();
    let mut results = Vec::new();
    for chosen in cases {
        let name = format!("{} {}", suite.name(), chosen.name);
        progress.set_message(name.clone());
        let result = case(chosen, systems, &plan, context, &mut deck, |who| {
            progress.set_message(format!("{name}: {who}"));
        });
        versions.extend(deck.versions());
        progress.suspend(|| show(arguments, &result));
        progress.inc(1);
        results.push(result);
    }
    drop(deck);
    progress.finish_and_clear();
    let subtitle = format!(
        "{}; {} runs of {} s",
        context.machine.described(),
        plan.runs,
        plan.timing.seconds
    );
    let plot = write_plot(folder, suite, &subtitle, &results)?;
    let versions: Vec<String> = versions.into_values().collect();
    if arguments.json {
        eprint!("{}", beneath(&results, arguments.verbose));
    } else {
        println!("{}", table(&results));
        print!("{}", beneath(&results, arguments.verbose));
        println!("{}", versions.join("; "));
        println!("plot: {}", plot.display());
    }
    let failed = |result: &CaseResult| result.rows.iter().any(|row| matches!(row, Row::Failed(..)));
    Ok(!results.iter().any(failed))
}

fn write_plot(folder: &Path, suite: Suite, subtitle: &str, results: &[CaseResult]) -> Result<PathBuf, Failure> {
    let path = folder.join(format!("{}.svg", suite.name()));
    let title = format!("Outboard and its peers: {}", suite.name());
    fs::write(&path, plot::svg(&title, subtitle, results))
        .map_err(|e| Failure::io(WHO, path.display(), &e, "check owner and space of the target folder"))?;
    Ok(path)
}

/// A bar for people who watch; whoever reads a log gets a line for each case instead.
fn progress(cases: usize) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(cases).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} [{elapsed_precise}] {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// What came of a case, at once: its lines of JSON, and a line for people.
fn show(arguments: &Arguments, result: &CaseResult) {
    if arguments.json {
        for row in &result.rows {
            if let Row::Measured(line, _) = row {
                println!("{}", serde_json::to_string(line).unwrap_or_default());
            }
        }
        // whoever reads the lines wants them now; a reader that has gone is seen at the next line
        let _ = stdout().flush();
    }
    let shown = |row: &Row| match row {
        Row::Measured(line, _) => format!("{} {}", line.system.name(), readable(line.median)),
        Row::Absent(system, reason) => format!("{}: {reason}", system.name()),
        Row::Failed(system, _) => format!("{} FAILED", system.name()),
    };
    let rows: Vec<String> = result.rows.iter().map(shown).collect();
    if !stderr().is_terminal() || arguments.json {
        eprintln!("{} [{}]: {}", result.case.name, result.case.unit(), rows.join(", "));
    }
}

fn say(arguments: &Arguments, text: &str) {
    if arguments.json {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}
