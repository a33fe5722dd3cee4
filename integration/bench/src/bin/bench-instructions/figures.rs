//! Figures that were recorded, and how new ones compare.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use outboard_bench::error::Failure;
use serde::{Deserialize, Serialize};

use crate::{
    WHO,
    load::{VICTIM, VICTIM_LEGAL},
};

/// How much more than recorded is a failure.
const TOLERANCE: f64 = 0.05;
/// How much of its rate an attack has to leave to a victim.
const SHARE_MIN: f64 = 0.95;

const HEADER: &str = "\
# Instructions that the device executes for a frame or a request, without the driver, by case.
# Written by `cargo bench-instructions --record`; `cargo bench-instructions --check` compares.
# Another compiler or another libc (its memcpy) makes other figures: record anew with them, before the change that is judged.

";

/// Figures by case.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Which compiler.
    compiler: String,
    /// Instructions of an operation.
    instructions: BTreeMap<String, f64>,
}

impl Figures {
    /// None yet, of the present compiler.
    ///
    /// # Errors
    /// There is none.
    pub fn new() -> Result<Self, Failure> {
        let output = Command::new("rustc")
            .arg("--version")
            .output()
            .map_err(|e| Failure::io(WHO, "rustc --version", &e, "install Rust's toolchain"))?;
        Ok(Self {
            compiler: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            instructions: BTreeMap::new(),
        })
    }

    /// As they were recorded.
    ///
    /// # Errors
    /// The file cannot be read or is no record.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let remedy = "record them with: cargo bench-instructions --record";
        let text = fs::read_to_string(path).map_err(|e| Failure::io(WHO, path.display(), &e, remedy))?;
        toml::from_str(&text).map_err(|e| Failure::new(WHO, format!("{}: {e}", path.display()), remedy))
    }

    /// Writes them over those in a file; cases that are only there stay.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_over(mut self, path: &Path) -> Result<(), Failure> {
        if path.exists() {
            for (case, figure) in Self::read(path)?.instructions {
                self.instructions.entry(case).or_insert(figure);
            }
        }
        let failed = |what: String| Failure::new(WHO, format!("{}: {what}", path.display()), "check owner and space");
        let text = toml::to_string(&self).map_err(|e| failed(e.to_string()))?;
        fs::write(path, format!("{HEADER}{text}")).map_err(|e| failed(e.to_string()))
    }

    /// A case costs so much.
    pub fn set(&mut self, case: &str, instructions: f64) {
        self.instructions.insert(case.to_owned(), instructions.round());
    }

    /// How a case compares.
    ///
    /// # Errors
    /// It costs more than 5 % above what was recorded, or was never recorded.
    pub fn compare(&self, case: &str, now: f64) -> Result<String, String> {
        let Some(recorded) = self.instructions.get(case) else {
            return Err(format!(
                "{case}: {now:.0} instructions, and none recorded: record them with --record"
            ));
        };
        let change = now / recorded - 1.0;
        let text = format!(
            "{case}: {now:.0} instructions, recorded {recorded:.0} ({:+.1} %)",
            change * 100.0
        );
        if change > TOLERANCE {
            return Err(format!("{text}: more than {:.0} % above", TOLERANCE * 100.0));
        }
        Ok(text)
    }

    /// What is left to a victim of its rate beside legal traffic, if `attack` is one and both were measured: instructions
    /// for each of its frames then and now, as the worker does nothing else.
    ///
    /// # Errors
    /// It is less than 95 %.
    pub fn share(&self, attack: &str) -> Option<Result<String, String>> {
        if !attack.starts_with(VICTIM) || attack == VICTIM_LEGAL {
            return None;
        }
        let (legal, now) = (self.instructions.get(VICTIM_LEGAL)?, self.instructions.get(attack)?);
        let text = format!("{attack}: the victim has {:.0} % of its rate", legal / now * 100.0);
        Some(if legal / now < SHARE_MIN {
            Err(format!("{text}, less than {:.0} %", SHARE_MIN * 100.0))
        } else {
            Ok(text)
        })
    }

    /// Whether both are of one compiler. Says so if not: then a difference is nobody's fault.
    pub fn is_comparable(&self, measured: &Self) -> bool {
        let same = self.compiler == measured.compiler;
        if !same {
            eprintln!(
                "note: recorded with {}, measured with {}: figures that differ do not count",
                self.compiler, measured.compiler
            );
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Figures {
        Figures {
            compiler: "rustc 1".into(),
            instructions: [("l2-64".into(), 1000.0)].into(),
        }
    }

    #[test]
    fn more_than_five_percent_above_the_record_is_a_failure_that_names_the_case() {
        assert!(recorded().compare("l2-64", 1049.0).is_ok());
        assert!(recorded().compare("l2-64", 500.0).is_ok());
        let text = recorded().compare("l2-64", 1051.0).expect_err("too much");
        assert_eq!(
            text,
            "l2-64: 1051 instructions, recorded 1000 (+5.1 %): more than 5 % above"
        );
        assert!(
            recorded().compare("tso-64k", 1.0).is_err(),
            "a case that is not recorded is not good"
        );
    }

    #[test]
    fn an_attack_that_leaves_a_victim_less_than_its_share_is_a_failure() {
        let mut figures = recorded();
        figures.set("victim-macs", 1000.0);
        assert_eq!(
            figures.share("victim-macs"),
            None,
            "there is nothing to compare it with"
        );
        figures.set(VICTIM_LEGAL, 960.0);
        assert_eq!(
            figures.share("victim-macs"),
            Some(Ok("victim-macs: the victim has 96 % of its rate".into()))
        );
        assert_eq!((figures.share(VICTIM_LEGAL), figures.share("l2-64")), (None, None));
        figures.set("victim-macs", 1100.0);
        assert_eq!(
            figures.share("victim-macs"),
            Some(Err(
                "victim-macs: the victim has 87 % of its rate, less than 95 %".into()
            ))
        );
    }

    #[test]
    fn a_record_keeps_the_cases_that_were_not_measured() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("instructions.toml");
        recorded().write_over(&path).expect("it can be written");
        let mut others = Figures::default();
        others.set("tso-64k", 9000.4);
        others.write_over(&path).expect("it can be written");
        let read = Figures::read(&path).expect("it can be read");
        assert_eq!(
            read.instructions,
            [("l2-64".into(), 1000.0), ("tso-64k".into(), 9000.0)].into()
        );
    }
}
