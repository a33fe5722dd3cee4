//! Random scripts against the card's decisions, and for each property a control: with the one check behind it off, the
//! scripts find the violation.

mod world;

use outboard_controls::{Check, Off};
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use world::{Violation, World, actions};

const SCRIPTS: u32 = 1_000;

proptest! {
    #![proptest_config(Config { cases: SCRIPTS, ..Config::default() })]

    /// One live binding per object, generations only rise, nothing stale takes effect, repeats have no effect, what was
    /// acknowledged survives a crash, nothing is open without a grant in force, and everything ends when it has to.
    #[test]
    fn p06_p07_no_script_breaks_the_cards_promises(script in actions()) {
        prop_assert_eq!(World::play(&script), Ok(()));
    }
}

#[test]
fn control_without_the_device_check_a_host_gets_a_subport() {
    found_without(Check::SubportDevice, Violation::GivenToWrongHost);
}

#[test]
fn control_without_following_a_subport_outlives_its_parent() {
    found_without(Check::SubportFollows, Violation::SubportAstray);
}

/// The violations that scripts find with one check off.
fn found_without(check: Check, wanted: Violation) {
    let _off = Off::here(check);
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config {
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, rng);
    let mut found = Vec::new();
    for _ in 0..4 * SCRIPTS {
        let script = actions().new_tree(&mut runner).expect("scripts can be made").current();
        if let Err(violation) = World::play(&script) {
            if violation == wanted {
                return;
            }
            found.push(violation);
        }
    }
    panic!("without {check:?} no script ended in {wanted:?}, only in {found:?}");
}

#[test]
fn control_without_the_grant_check_another_host_gets_the_object() {
    found_without(Check::GrantRequired, Violation::GivenToWrongHost);
}

#[test]
fn control_without_the_generation_fence_a_stale_connect_opens_a_session() {
    found_without(Check::GenerationFence, Violation::StaleConnect);
}

#[test]
fn control_without_high_water_marks_a_replayed_state_comes_back() {
    found_without(Check::HighWater, Violation::DesiredFell);
}

#[test]
fn control_without_waiting_for_the_former_binding_there_are_two() {
    found_without(Check::OneBinding, Violation::TwoBindings);
}

#[test]
fn control_without_stored_results_a_repeat_is_done_again() {
    found_without(Check::OperationReplay, Violation::RepeatHadEffect);
}

#[test]
fn control_without_persisting_first_a_crash_loses_what_was_acknowledged() {
    found_without(Check::PersistFirst, Violation::AcknowledgedLost);
}
