//! Test programs: built by cargo, run by us, several side by side where they may. Most of them wait more than they
//! compute, so that this takes a fraction of the time that one after another takes.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};

use serde_json::Value;

/// What the test runner counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Counts {
    /// Adds up the `test result:` lines in what a test program printed.
    pub fn of(text: &str) -> Self {
        let mut counts = Self::default();
        for result in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            counts.add(Self {
                passed: number_before(result, " passed"),
                failed: number_before(result, " failed"),
                skipped: number_before(result, " ignored"),
            });
        }
        counts
    }

    pub fn add(&mut self, more: Self) {
        self.passed += more.passed;
        self.failed += more.failed;
        self.skipped += more.skipped;
    }
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

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The target's name, for example `hostile` of `tests/hostile/main.rs`.
    pub target: String,
    /// Whether it is a package's unit tests rather than a file or folder in `tests`.
    pub unit: bool,
    /// Where it is run: the folder of its package, as `cargo test` does.
    folder: PathBuf,
    path: PathBuf,
}

impl Program {
    /// From a line of cargo's, if that is of a test program.
    fn parse(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        Some(Self {
            target: message["target"]["name"].as_str()?.to_owned(),
            unit: message["target"]["kind"][0] != "test",
            folder: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
            path: message["executable"].as_str()?.into(),
        })
    }
}

/// Builds the test programs that `cargo test SELECTION` would run; none if that fails, which cargo has said why.
pub fn build(mut cargo: Command, selection: &[&str]) -> io::Result<Option<Vec<Program>>> {
    cargo.args([
        "test",
        "--no-run",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ]);
    let output = cargo.args(selection).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Ok(None);
    }
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(Some(lines.lines().filter_map(Program::parse).collect()))
}

/// Runs programs, `side_by_side` at a time, each with so many threads; prints what each printed once it has ended. True
/// if all are good.
pub fn run(programs: Vec<Program>, side_by_side: usize, threads: usize, counts: &mut Counts) -> io::Result<bool> {
    let mut programs = programs;
    // those in `tests` start processes and wait for them: they take longest
    programs.sort_by_key(|program| program.unit);
    let waiting = Mutex::new(VecDeque::from(programs));
    let printed = Mutex::new((Counts::default(), true));
    let lane = || -> io::Result<()> {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(program) = next else { return Ok(()) };
            let began = Instant::now();
            let (good, text) = output(&program, threads)?;
            let mut printed = printed.lock().unwrap_or_else(PoisonError::into_inner);
            let counted = Counts::of(&text);
            printed.0.add(counted);
            printed.1 &= good;
            if good && counted == Counts::default() {
                continue;
            }
            println!(
                "{}, {} ({:.1} s)\n{}",
                program.folder.file_name().unwrap_or(OsStr::new("")).display(),
                program.target,
                began.elapsed().as_secs_f64(),
                text.trim()
            );
            if !good {
                println!("FAILED: {}", program.path.display());
            }
        }
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..side_by_side.max(1)).map(|_| scope.spawn(lane)).collect();
        lanes
            .into_iter()
            .try_for_each(|lane| lane.join().map_err(|_| io::Error::other("a lane panicked"))?)
    })?;
    let (counted, good) = printed.into_inner().unwrap_or_else(PoisonError::into_inner);
    counts.add(counted);
    Ok(good)
}

/// Runs one: whether it is good, and what it printed.
fn output(program: &Program, threads: usize) -> io::Result<(bool, String)> {
    let mut command = Command::new(&program.path);
    command
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder);
    // as a person set it, if so
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        command.env("RUST_TEST_THREADS", threads.to_string());
    }
    let output = command.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Ok((output.status.success(), text.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runner_s_lines_are_read() {
        let text = "running 16 tests\ntest a ... ok\n\n\
            test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n";
        let expected = Counts {
            passed: 14,
            failed: 3,
            skipped: 1,
        };
        assert_eq!(Counts::of(text), expected);
        assert_eq!(Counts::of("nothing here"), Counts::default());
    }

    #[test]
    fn only_test_programs_are_taken_from_what_cargo_says() {
        let line = |reason: &str, test: bool, kind: &str| {
            format!(
                r#"{{"reason":"{reason}","manifest_path":"/w/p/Cargo.toml","profile":{{"test":{test}}},
                "target":{{"name":"hostile","kind":["{kind}"]}},"executable":"/t/hostile-1"}}"#
            )
        };
        let program = Program {
            target: "hostile".into(),
            unit: false,
            folder: "/w/p".into(),
            path: "/t/hostile-1".into(),
        };
        assert_eq!(Program::parse(&line("compiler-artifact", true, "test")), Some(program));
        assert!(Program::parse(&line("compiler-artifact", true, "lib")).is_some_and(|program| program.unit));
        assert_eq!(Program::parse(&line("compiler-artifact", false, "bin")), None);
        assert_eq!(Program::parse(&line("build-finished", true, "test")), None);
        assert_eq!(Program::parse("no JSON"), None);
    }

    #[test]
    fn every_program_runs_once_and_one_that_fails_is_told() {
        let program = |target: &str, path: &str| Program {
            target: target.into(),
            unit: true,
            folder: "/".into(),
            path: path.into(),
        };
        let all_good = vec![program("a", "/bin/true"); 5];
        let mut counts = Counts::default();
        assert!(run(all_good.clone(), 2, 1, &mut counts).is_ok_and(|good| good));
        let one_bad = [all_good, vec![program("b", "/bin/false")]].concat();
        assert!(run(one_bad, 3, 1, &mut counts).is_ok_and(|good| !good));
        assert!(run(vec![program("c", "/nowhere")], 2, 1, &mut counts).is_err());
    }
}
