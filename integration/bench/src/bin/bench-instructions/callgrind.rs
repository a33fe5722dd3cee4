//! What callgrind wrote (valgrind's manual, "Callgrind Format Specification").

use std::collections::BTreeMap;

use outboard_bench::error::Failure;

use crate::WHO;

/// Instructions of a function: of its own, and with those that it called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cost {
    exclusive: u64,
    called: u64,
}

/// Instructions of a run, by function.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    functions: BTreeMap<String, Cost>,
    total: u64,
    operations: u64,
}

/// What operations cost, for each.
#[derive(Debug)]
pub struct Profile {
    functions: Vec<Function>,
    per_operation: f64,
}

/// A function's share of an operation, in instructions.
#[derive(Debug)]
pub struct Function {
    /// As its symbol says.
    pub name: String,
    /// With those that it called.
    pub inclusive: f64,
    /// Without.
    pub exclusive: f64,
}

impl Counts {
    /// From callgrind's output with names and positions in full, of a run that did so many operations.
    ///
    /// # Errors
    /// It is none, or counted nothing.
    pub fn parse(text: &str, operations: u64) -> Result<Self, Failure> {
        let mut counts = Self {
            operations,
            ..Self::default()
        };
        let mut function = None;
        let mut of_call = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                function = Some(name.to_owned());
            } else if line.starts_with("calls=") {
                // The next line is what the call cost, not what the function did.
                of_call = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit()) {
                let (Some(name), Some(cost)) = (&function, last_number(line)) else {
                    return Err(Failure::new(
                        "callgrind",
                        format!("wrote '{line}', which is not understood"),
                        "use a valgrind of 3.16 or later",
                    ));
                };
                let entry = counts.functions.entry(name.clone()).or_default();
                if std::mem::take(&mut of_call) {
                    entry.called += cost;
                } else {
                    entry.exclusive += cost;
                    counts.total += cost;
                }
            }
        }
        if counts.total == 0 {
            let remedy = "build datapath-load anew: it must not be stripped";
            return Err(Failure::new(WHO, "callgrind found nothing to count", remedy));
        }
        Ok(counts)
    }

    /// What the operations cost that this run did more.
    pub fn without(&self, fewer: &Self) -> Profile {
        let operations = real(self.operations.saturating_sub(fewer.operations).max(1));
        let each = |more: u64, less: u64| real(more.saturating_sub(less)) / operations;
        let mut functions: Vec<Function> = self
            .functions
            .iter()
            .map(|(name, cost)| {
                let less = fewer.functions.get(name).copied().unwrap_or_default();
                let exclusive = each(cost.exclusive, less.exclusive);
                Function {
                    name: name.clone(),
                    inclusive: exclusive + each(cost.called, less.called),
                    exclusive,
                }
            })
            .collect();
        functions.sort_by(|a, b| b.inclusive.total_cmp(&a.inclusive));
        Profile {
            functions,
            per_operation: each(self.total, fewer.total),
        }
    }
}

impl Profile {
    /// Instructions of an operation.
    pub fn per_operation(&self) -> f64 {
        self.per_operation
    }

    /// Its functions, the most expensive first, callees included.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }
}

fn last_number(line: &str) -> Option<u64> {
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: &str = "version: 1\nevents: Ir\n\nob=/load\nfl=switch.rs\nfn=breathe\n10 5\n11 2\ncfn=take\ncalls=3 20\n12 30\n\n\
                        fn=take\nfi=other.rs\n20 25\nfe=switch.rs\n21 5\ntotals: 37\n";

    #[test]
    fn calls_are_told_from_what_a_function_does_itself() {
        let counts = Counts::parse(ONCE, 1).expect("in order");
        assert_eq!(counts.total, 37);
        let profile = counts.without(&Counts::default());
        let of: Vec<(&str, f64, f64)> = profile
            .functions()
            .iter()
            .map(|f| (f.name.as_str(), f.inclusive, f.exclusive))
            .collect();
        assert_eq!(of, [("breathe", 37.0, 7.0), ("take", 30.0, 30.0)]);
    }

    #[test]
    fn what_both_runs_did_does_not_count() {
        let once = Counts::parse(ONCE, 4).expect("in order");
        let more = ONCE.replace("20 25", "20 45").replace("12 30", "12 50");
        let profile = Counts::parse(&more, 8).expect("in order").without(&once);
        assert!((profile.per_operation() - 5.0).abs() < 1e-9);
        assert!((profile.functions()[0].inclusive - 5.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_in_which_nothing_was_counted_says_so() {
        assert!(Counts::parse("version: 1\nevents: Ir\ntotals: 0\n", 1).is_err());
    }
}
