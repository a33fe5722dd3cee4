//! Replacing the rules of a firewall again and again, as an operator's tools do.

use std::{
    ffi::OsString,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{error::Failure, launch::run};

/// Between the beginnings of two changes; one that takes longer is followed at once.
const PERIOD: Duration = Duration::from_millis(100);
/// Rules in each of the two policies.
pub const RULES: u32 = 10_000;

/// Two commands, each of which puts another policy in force.
#[derive(Debug, Clone)]
pub struct Policies {
    /// Programs with their arguments.
    pub commands: [Vec<OsString>; 2],
    /// Their environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// A storm that goes on until it is ended.
#[derive(Debug)]
pub struct Storm {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32, Failure>>,
    begun: Instant,
}

impl Storm {
    /// Begins with the second policy, on `core`.
    pub fn begin(policies: Policies, core: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let begun = Instant::now();
        let thread = thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Relaxed) {
                let next = Instant::now() + PERIOD;
                let words = &policies.commands[(count as usize + 1) % 2];
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string()]).args(words).stdin(Stdio::null());
                command.envs(policies.environment.iter().map(|(name, value)| (name, value)));
                run("storm", &mut command)?;
                count += 1;
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(count)
        });
        Self { stop, thread, begun }
    }

    /// Ends it: how many changes a second there were.
    pub fn end(self) -> Result<f64, Failure> {
        self.stop.store(true, Relaxed);
        let counted = self.thread.join();
        let count = counted.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(f64::from(count) / self.begun.elapsed().as_secs_f64())
    }
}

/// The `n`th rule of a policy: who may come, and to which port.
pub fn rule(policy: usize, n: u32) -> (String, u16) {
    let [_, high, middle, low] = n.to_be_bytes();
    let port = 20_000 + (n % 1000) * 2 + u32::try_from(policy).unwrap_or(0);
    (
        format!("172.{}.{middle}.{low}", 16 + high),
        u16::try_from(port).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_policies_have_no_rule_in_common() {
        let rules = |policy| (0..RULES).map(move |n| rule(policy, n));
        let first: HashSet<_> = rules(0).collect();
        assert_eq!(first.len(), RULES as usize);
        assert!(rules(1).all(|rule| !first.contains(&rule)));
    }

    #[test]
    fn changes_are_counted_and_a_failure_is_told() -> Result<(), Failure> {
        let policies = |program: &str| Policies {
            commands: [vec![program.into()], vec![program.into()]],
            environment: vec![],
        };
        let storm = Storm::begin(policies("true"), 0);
        thread::sleep(Duration::from_millis(250));
        let rate = storm.end()?;
        assert!(rate > 0.0 && rate <= 20.0, "{rate}");
        let storm = Storm::begin(policies("false"), 0);
        thread::sleep(Duration::from_millis(50));
        assert!(storm.end().is_err());
        Ok(())
    }
}
