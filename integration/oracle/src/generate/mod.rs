//! Cases from seeds.

mod rules;
mod tcp;
mod traffic;

use outboard_integration::random::Random;

use crate::Case;

/// The case of a seed.
pub fn case(seed: u64) -> Case {
    let mut random = Random(seed);
    let rules = rules::rules(&mut random);
    let steps = traffic::steps(&mut random, &rules);
    Case { rules, steps }
}

/// True in `percent` of all calls.
fn chance(random: &mut Random, percent: usize) -> bool {
    random.below(100) < percent
}

/// One of them.
fn pick<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len())]
}
