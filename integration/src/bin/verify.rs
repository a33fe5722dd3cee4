//! `cargo verify`: the one test command. Sets the machine up, then formatting, lints, dependencies, and every test
//! from unit to real guests; ends with the sum of what the test runner counted.
#![forbid(unsafe_code)]

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use clap::Parser;
use outboard_integration::setup;

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
    #[arg(long, value_name = "STEP", value_parser = STEPS.map(|step| step.name))]
    skip: Vec<String>,
}

/// What the test runner counted.
#[derive(Default, Clone, Copy)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&mut Counts) -> io::Result<bool>,
}

const STEPS: [Step; 5] = [
    Step {
        name: "format",
        about: "formatting",
        run: |_| cargo(&["fmt", "--all", "--check"]),
    },
    Step {
        name: "lint",
        about: "lints",
        run: |_| {
            cargo(&[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
        },
    },
    Step {
        name: "dependencies",
        about: "licences, sources and advisories of dependencies",
        run: dependencies,
    },
    Step {
        name: "tests",
        about: "unit, property, fuzz-corpus and process tests",
        run: |counts| test(&["--workspace", "--exclude", "outboard-integration"], counts),
    },
    Step {
        name: "guests",
        about: "end to end, with real guests",
        // one at a time: two guests already fill a small machine
        run: |counts| test(&["-p", "outboard-integration", "--", "--test-threads=1"], counts),
    },
];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = setup::test_packages(arguments.yes) {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    let mut counts = Counts::default();
    let mut broken = Vec::new();
    for step in STEPS
        .iter()
        .filter(|step| !arguments.skip.iter().any(|name| name == step.name))
    {
        println!("== {}: {}", step.name, step.about);
        let started = Instant::now();
        let good = (step.run)(&mut counts).unwrap_or_else(|error| {
            eprintln!("error: {error}");
            false
        });
        println!(
            "== {}: {} after {:.1} s",
            step.name,
            if good { "good" } else { "BAD" },
            started.elapsed().as_secs_f64()
        );
        if !good {
            broken.push(step.name);
        }
    }
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

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(arguments);
    command
}

fn cargo(arguments: &[&str]) -> io::Result<bool> {
    Ok(cargo_command(arguments).status()?.success())
}

/// Licences, bans and sources always; advisories where their database can be had.
fn dependencies(_: &mut Counts) -> io::Result<bool> {
    let installed = cargo_command(&["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !installed.success() {
        println!("installing cargo-deny (a few minutes, once)");
        // Built without optimisation: it runs for a second, and takes a third of the time to build.
        let built = cargo_command(&["install", "--quiet", "--locked", "--debug", "cargo-deny"])
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .status()?;
        if !built.success() {
            return Ok(false);
        }
    }
    if !cargo(&[
        "deny",
        "--log-level",
        "error",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ])? {
        return Ok(false);
    }
    let advisories = cargo_command(&["deny", "--log-level", "error", "check", "advisories"]).output()?;
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

/// `cargo test ARGUMENTS`, passing its output on and adding up its `test result:` lines.
fn test(arguments: &[&str], counts: &mut Counts) -> io::Result<bool> {
    let mut child = cargo_command(&["test", "--no-fail-fast"])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("no output of cargo test"))?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some(result) = line.strip_prefix("test result: ") {
            counts.passed += number_before(result, " passed");
            counts.failed += number_before(result, " failed");
            counts.skipped += number_before(result, " ignored");
        }
        println!("{line}");
    }
    Ok(child.wait()?.success())
}

/// The number in front of `word`, as in "ok. 12 passed; 0 failed".
fn number_before(text: &str, word: &str) -> u64 {
    let before = text.split(word).next().unwrap_or_default();
    before
        .rsplit([' ', '.', ';'])
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::number_before;

    #[test]
    fn the_runner_s_line_is_read() {
        let line = "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(number_before(line, " passed"), 12);
        assert_eq!(number_before(line, " failed"), 3);
        assert_eq!(number_before(line, " ignored"), 1);
        assert_eq!(number_before("nothing here", " passed"), 0);
    }
}
