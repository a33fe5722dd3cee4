//! `cargo verify`: the one test command. Sets the machine up, then formatting, lints, dependencies, and every test
//! from unit to real guests; ends with the sum of what the test runner counted.
//!
//! Steps come one after another, so that tests that wait for something share the machine with each other only.
#![forbid(unsafe_code)]

mod suite;

use std::{
    env,
    ffi::OsString,
    io,
    num::NonZero,
    process::{Command, ExitCode, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use clap::{Parser, builder::PossibleValuesParser};
use outboard_integration::{binaries::Binaries, setup};
use suite::{Counts, Program};

/// Run every check of the project: formatting, lints, dependencies, unit, property, fuzz-corpus and end-to-end tests.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  cargo verify                 everything, asking before packages are installed\n  \
    cargo verify --yes           the same without asking (CI)\n  cargo verify --skip guests   without the tests that boot guests"
)]
struct Arguments {
    /// Install missing packages without asking.
    #[arg(long)]
    yes: bool,
    /// Leave a step out; may be given more than once.
    #[arg(long, value_name = "STEP", value_parser = PossibleValuesParser::new(names()))]
    skip: Vec<String>,
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&mut Counts) -> io::Result<bool>,
}

/// What came of a step.
struct Report {
    name: &'static str,
    good: bool,
    counts: Counts,
}

const STEPS: &[Step] = &[
    Step {
        name: "format",
        about: "formatting",
        run: |_| succeeds(&mut cargo(&["fmt", "--all", "--check"])),
    },
    Step {
        name: "tests",
        about: "building unit, property, fuzz-corpus and process tests",
        run: |_| build(cargo(&[]), &TESTED, &BUILT_TESTS),
    },
    Step {
        name: "tests",
        about: "unit, property, fuzz-corpus and process tests",
        run: |counts| {
            // they wait more than they compute
            let cpus = thread::available_parallelism().map_or(1, NonZero::get);
            suite::run(built(&BUILT_TESTS), cpus.max(2), 2 * cpus, counts)
        },
    },
    Step {
        name: "lint",
        about: "lints",
        run: |_| succeeds(cargo(&["clippy", "--quiet", "--workspace", "--all-targets"]).args(["--", "-D", "warnings"])),
    },
    Step {
        name: "dependencies",
        about: "licences, sources and advisories of dependencies",
        run: dependencies,
    },
    Step {
        name: "tests",
        about: "examples in the documentation",
        run: |counts| {
            let output = cargo(&["test", "--quiet", "--doc"]).args(TESTED).output()?;
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            counts.add(Counts::of(&text));
            if !output.status.success() {
                println!("{text}");
            }
            Ok(output.status.success())
        },
    },
    Step {
        name: "instructions",
        about: "instructions per frame and request, and what an attack leaves to others, against what was recorded",
        run: |_| {
            let counter = ["run", "--quiet", "-p", "outboard-bench", "--bin", "bench-instructions"];
            succeeds(cargo(&counter).args(["--", "--check", "--top", "0"]))
        },
    },
    Step {
        name: "guests",
        about: "building the tests with guests, and what they run",
        run: |_| {
            let good = build(cargo(&[]), &WITH_GUESTS, &BUILT_GUESTS)?;
            Binaries::build()?;
            Binaries::build_switchable()?;
            Binaries::build_generator()?;
            Ok(good)
        },
    },
    Step {
        name: "guests",
        about: "end to end, with real guests",
        run: |counts| {
            let (together, alone) = built(&BUILT_GUESTS)
                .into_iter()
                .partition(|program| program.unit || SIDE_BY_SIDE.contains(&&*program.target));
            let good = suite::run(together, 2, 1, counts)?;
            Ok(suite::run(alone, 1, 1, counts)? && good)
        },
    },
];

/// Packages of the step "tests", as arguments for cargo; the step "guests" has the other one.
const TESTED: [&str; 3] = ["--workspace", "--exclude", "outboard-integration"];
const WITH_GUESTS: [&str; 2] = ["-p", "outboard-integration"];
static BUILT_TESTS: Mutex<Vec<Program>> = Mutex::new(Vec::new());
static BUILT_GUESTS: Mutex<Vec<Program>> = Mutex::new(Vec::new());

/// Tests of whole processes under scripted guests, which hardly compute: two at a time. The others have real guests, or
/// measure, and are alone: two guests already fill a small machine.
const SIDE_BY_SIDE: [&str; 8] = [
    "bad_input",
    "documents",
    "faults",
    "flushes",
    "hostile",
    "libblkio",
    "sequences",
    "supervise",
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = setup::test_packages(arguments.yes) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let wanted = |step: &&Step| !arguments.skip.iter().any(|name| name == step.name);
    let reports: Vec<_> = STEPS.iter().filter(wanted).map(perform).collect();
    let mut counts = Counts::default();
    reports.iter().for_each(|report| counts.add(report.counts));
    let mut broken: Vec<_> = reports
        .iter()
        .filter(|report| !report.good)
        .map(|report| report.name)
        .collect();
    broken.dedup();
    if !broken.is_empty() {
        println!("steps that failed: {}", broken.join(", "));
    }
    println!(
        "{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Names of steps, each once.
fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = STEPS.iter().map(|step| step.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn perform(step: &Step) -> Report {
    println!("== {}: {}", step.name, step.about);
    let began = Instant::now();
    let mut counts = Counts::default();
    let good = (step.run)(&mut counts).unwrap_or_else(|error| {
        eprintln!("error: {}: {error}", step.about);
        false
    });
    println!(
        "== {}: {} after {:.1} s: {}",
        step.name,
        if good { "good" } else { "BAD" },
        began.elapsed().as_secs_f64(),
        step.about
    );
    Report {
        name: step.name,
        good,
        counts,
    }
}

fn cargo_path() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(cargo_path());
    command.args(arguments);
    command
}

fn succeeds(command: &mut Command) -> io::Result<bool> {
    Ok(command.status()?.success())
}

/// Builds test programs and keeps them for the step that runs them.
fn build(cargo: Command, selection: &[&str], programs: &Mutex<Vec<Program>>) -> io::Result<bool> {
    let built = suite::build(cargo, selection)?;
    let good = built.is_some();
    *programs.lock().unwrap_or_else(PoisonError::into_inner) = built.unwrap_or_default();
    Ok(good)
}

fn built(programs: &Mutex<Vec<Program>>) -> Vec<Program> {
    std::mem::take(&mut programs.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Licences, bans and sources always; advisories where their database can be had.
fn dependencies(_: &mut Counts) -> io::Result<bool> {
    let installed = cargo(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !installed.success() {
        println!("installing cargo-deny (a few minutes, once)");
        // Built without optimisation: it runs for a second, and takes a third of the time to build.
        let built = cargo(&["install", "--quiet", "--locked", "--debug", "cargo-deny"])
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .status()?;
        if !built.success() {
            return Ok(false);
        }
    }
    let check = ["deny", "--log-level", "error", "check", "--hide-inclusion-graph"];
    if !succeeds(cargo(&check).args(["bans", "licenses", "sources"]))? {
        return Ok(false);
    }
    let advisories = cargo(&["deny", "--log-level", "error", "check", "advisories"]).output()?;
    let text = String::from_utf8_lossy(&advisories.stderr);
    if !advisories.status.success() && text.contains("failed to fetch advisory database") {
        println!("advisories: not checked, the advisory database cannot be reached from here");
        return Ok(true);
    }
    if !advisories.status.success() {
        eprint!("{text}");
    }
    Ok(advisories.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_can_be_left_out_by_its_name() {
        assert_eq!(
            names(),
            ["dependencies", "format", "guests", "instructions", "lint", "tests"]
        );
        let few = Arguments::try_parse_from(["verify", "--skip", "guests", "--skip", "lint"]);
        assert!(few.is_ok_and(|few| few.skip == ["guests", "lint"]));
        assert!(Arguments::try_parse_from(["verify", "--skip", "nothing"]).is_err());
    }
}
