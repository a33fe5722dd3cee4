//! The measuring itself: all systems of a case run at once, and take turns.
//!
//! Turns go round: each system is measured once before any is measured again, so that what changes on the machine
//! meanwhile meets all of them. Who is not being measured and polls all the same is stopped.

use std::{ffi::OsString, time::Duration};

use crate::{
    accounting::Roles,
    cases::{Case, NetMode, Part, System, Work, part},
    error::Failure,
    generator::{
        Load, Outcome, Report, Target, Timing, blk_arguments, ceiling_arguments, net_arguments, parse, victim_arguments,
    },
    launch::Launch,
    result::{CaseResult, Row, row},
    stats::Summary,
    storm::Storm,
    systems::{Backend, Context, Setting, VOLUME_LEN_BYTES, fio_load, rest, start},
};

/// Share of its core that generator and backend must have had for a run to count.
const OBTAINED_PCT_MIN: f64 = 97.0;
/// How many runs may be tried for each that is wanted.
const TRIES: usize = 2;
/// Measured seconds of a run in which nothing happens: at least so many.
const IDLE_S_MIN: f64 = 5.0;

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    /// Runs that count.
    pub runs: usize,
    /// Length of a run.
    pub timing: Timing,
}

impl Plan {
    /// How long a case of so many systems takes at least.
    pub fn expected(&self, systems: usize) -> Duration {
        let run = self.timing.seconds + self.timing.warmup;
        Duration::from_secs_f64(run * self.runs as f64 * systems as f64)
    }
}

/// Systems that run, kept for the next case where it needs the same setting.
#[derive(Default)]
pub struct Deck {
    running: Vec<(System, Setting, Box<dyn Backend>)>,
}

impl Deck {
    /// The system in that setting, started if it is not there. Others of the same system are ended first.
    fn bring(&mut self, system: System, setting: Setting, context: &Context) -> Result<&mut dyn Backend, Failure> {
        let position = self
            .running
            .iter()
            .position(|(s, found, _)| *s == system && *found == setting);
        let position = match position {
            Some(position) => position,
            None => {
                self.end(system);
                let backend = start(system, setting, context)?;
                rest(backend.as_ref(), true);
                self.running.push((system, setting, backend));
                self.running.len() - 1
            }
        };
        Ok(self.running[position].2.as_mut())
    }

    /// Ends a system.
    fn end(&mut self, system: System) {
        self.running.retain(|(running, ..)| *running != system);
    }

    /// Versions of the systems that run.
    pub fn versions(&self) -> Vec<(System, String)> {
        self.running
            .iter()
            .map(|(system, _, backend)| (*system, backend.version()))
            .collect()
    }
}

/// One system's runs of a case so far.
struct Turns {
    system: System,
    clean: Vec<Outcome>,
    disturbed: Vec<Outcome>,
    failure: Option<Failure>,
}

impl Turns {
    fn wants_more(&self, runs: usize) -> bool {
        let tried = self.clean.len() + self.disturbed.len();
        self.failure.is_none() && self.clean.len() < runs && tried < TRIES * runs
    }
}

/// Measures a case on those of `systems` that take part in it. `tell` hears who is next.
pub fn case(
    case: &Case,
    systems: &[System],
    plan: &Plan,
    context: &Context,
    deck: &mut Deck,
    mut tell: impl FnMut(&str),
) -> CaseResult {
    let mut turns = Vec::new();
    let mut rows = Vec::new();
    for system in systems {
        match part(*system, case) {
            Part::Takes => turns.push(Turns {
                system: *system,
                clean: Vec::new(),
                disturbed: Vec::new(),
                failure: None,
            }),
            Part::NotYet(reason) => rows.push(Row::Absent(*system, reason.to_owned())),
            Part::None => {}
        }
    }
    // Once; where it is what results are told in parts of, it takes turns as the systems do.
    let (mut ceilings, often) = (Vec::new(), if case.is_segments() { plan.runs } else { 1 });
    while turns.iter().any(|turn| turn.wants_more(plan.runs)) {
        if ceilings.len() < often && matches!(case.work, Work::Net(_)) {
            tell("the generator's own ceiling");
            ceilings.push(ceiling(case, plan, context));
        }
        for turn in turns.iter_mut().filter(|turn| turn.wants_more(plan.runs)) {
            let number = turn.clean.len() + turn.disturbed.len() + 1;
            tell(&format!("{} run {number}", turn.system.name()));
            match once(case, turn.system, plan, context, deck) {
                Ok(outcome) if undisturbed(case, &outcome) => turn.clean.push(outcome),
                Ok(outcome) => turn.disturbed.push(outcome),
                Err(failure) => {
                    // what it left behind is no base for the next case
                    deck.end(turn.system);
                    turn.failure = Some(failure);
                }
            }
        }
    }
    let ceiling = Summary::of(ceilings.into_iter().flatten()).map(|summary| summary.median);
    for turn in turns {
        let found = match turn.failure {
            Some(failure) => Row::Failed(turn.system, failure),
            None => row(case, turn.system, &turn.clean, &turn.disturbed, ceiling)
                .unwrap_or_else(|| Row::Failed(turn.system, no_value(turn.system, case))),
        };
        rows.push(found);
    }
    rows.sort_by_key(Row::system);
    CaseResult {
        case: case.clone(),
        rows,
        ceiling,
    }
}

/// Did both have their cores? What replaces rules takes the backend's by intent.
fn undisturbed(case: &Case, outcome: &Outcome) -> bool {
    let storm = matches!(case.work, Work::Net(net) if net.mode == NetMode::Storm);
    storm || outcome.shares.obtained_pct >= OBTAINED_PCT_MIN
}

fn no_value(system: System, case: &Case) -> Failure {
    let what = format!("the generator told no {} for {}", case.unit(), case.name);
    Failure::new(system.name(), what, "build generator and runner from the same source")
}

/// One run of one system.
fn once(case: &Case, system: System, plan: &Plan, context: &Context, deck: &mut Deck) -> Result<Outcome, Failure> {
    let setting = Setting::of(case)
        .ok_or_else(|| Failure::new(system.name(), "tunnels cannot be measured yet", "leave the suite out"))?;
    if matches!(case.work, Work::Net(net) if net.mode == NetMode::NewConnections) {
        // A table that was emptied is freed in the background for a long time: only a new one is empty.
        deck.end(system);
    }
    let backend = deck.bring(system, setting, context)?;
    backend.check()?;
    let roles = Roles {
        backend: backend.processes(),
        generator: 0,
        backend_core: context.machine.backend_core,
        generator_core: context.machine.generator_core,
    };
    let timing = timing(case, plan.timing);
    let load = load(case, &backend.target(), timing, context)?;
    rest(backend, false);
    let storm = match case.work {
        Work::Net(net) if net.mode == NetMode::Storm => backend.policies(),
        _ => None,
    };
    let storm = storm.map(|policies| Storm::begin(policies, context.machine.backend_core));
    let outcome = load.run(roles, &context.folder);
    let changes_per_s = storm.map(Storm::end).transpose();
    rest(backend, true);
    // a backend that ended says more than a generator that lost it
    backend.check()?;
    let changes_per_s = changes_per_s?;
    let outcome = outcome.map(|outcome| Outcome {
        changes_per_s,
        ..outcome
    });
    outcome.map_err(|failure| {
        let log = "the load on it failed; the generator's words:";
        Failure::new(system.name(), format!("{log} {}", failure.short()), failure.remedy())
            .command(failure.command_line())
    })
}

/// How long a run of this case is.
fn timing(case: &Case, timing: Timing) -> Timing {
    let seconds = if case.is_idle() {
        timing.seconds.max(IDLE_S_MIN)
    } else {
        timing.seconds
    };
    Timing { seconds, ..timing }
}

fn load(case: &Case, target: &Target, timing: Timing, context: &Context) -> Result<Load, Failure> {
    let core = context.machine.generator_core;
    let mut arguments = match (case.work, target) {
        (Work::Net(net), Target::Net { role, a, b, victim }) => {
            let mut arguments = net_arguments(*role, a, b, net, timing);
            arguments.extend(victim.iter().flat_map(victim_arguments));
            arguments
        }
        (Work::Blk(blk), Target::Blk(socket)) => blk_arguments(socket, blk, VOLUME_LEN_BYTES, timing),
        (Work::Blk(blk), Target::File { path, direct }) => return Ok(fio_load(path, *direct, blk, timing, core)),
        _ => {
            return Err(Failure::new(
                "bench-peers",
                "a backend of another kind than the case",
                "report this",
            ));
        }
    };
    arguments.extend(guest_memory(context));
    let program = context.programs.path("outboard-generator");
    Ok(Load::new(
        Launch::new("generator", program, core).args(arguments),
        timing,
        parse,
    ))
}

/// Guests have their memory in huge pages where DPDK has.
fn guest_memory(context: &Context) -> Option<OsString> {
    context.machine.huge_pages.then(|| "--hugepages".into())
}

/// What the generator can do by itself, in the unit of the case.
fn ceiling(case: &Case, plan: &Plan, context: &Context) -> Option<f64> {
    let Work::Net(net) = case.work else { return None };
    let mut arguments = ceiling_arguments(net, context.machine.backend_core, plan.timing.seconds)?;
    arguments.extend(guest_memory(context));
    let program = context.programs.path("outboard-generator");
    let launch = Launch::new("generator", program, context.machine.generator_core).args(arguments);
    let roles = Roles {
        backend: [].into(),
        generator: 0,
        backend_core: context.machine.backend_core,
        generator_core: context.machine.generator_core,
    };
    // without it the row is flagged by how long the generator waited
    let outcome = Load::new(launch, plan.timing, parse).run(roles, &context.folder).ok()?;
    let Report { pps, gbit_s, .. } = outcome.report;
    match case.is_segments() {
        true => gbit_s,
        false => pps.map(|pps| pps / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::Shares;

    fn outcome() -> Outcome {
        Outcome {
            report: Report::default(),
            shares: Shares::default(),
            changes_per_s: None,
        }
    }

    #[test]
    fn runs_are_repeated_a_bounded_number_of_times() {
        let mut turns = Turns {
            system: System::Qsd,
            clean: Vec::new(),
            disturbed: Vec::new(),
            failure: None,
        };
        let mut tried = 0;
        while turns.wants_more(5) {
            turns.disturbed.push(outcome());
            tried += 1;
        }
        assert_eq!(tried, 10);
        turns.disturbed.truncate(4);
        turns.clean = vec![outcome(), outcome(), outcome(), outcome()];
        assert!(turns.wants_more(5));
        turns.clean.push(outcome());
        assert!(!turns.wants_more(5));
    }

    #[test]
    fn a_failure_ends_a_systems_turns() {
        let turns = Turns {
            system: System::Qsd,
            clean: Vec::new(),
            disturbed: Vec::new(),
            failure: Some(Failure::new("qsd", "ended", "start it again")),
        };
        assert!(!turns.wants_more(5));
    }

    #[test]
    fn the_time_needed_is_told() {
        let plan = Plan {
            runs: 5,
            timing: Timing {
                seconds: 3.0,
                warmup: 1.0,
            },
        };
        assert_eq!(plan.expected(3), Duration::from_secs(60));
    }
}
