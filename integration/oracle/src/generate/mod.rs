//! Cases from seeds.

mod rules;
mod tcp;
mod traffic;

use outboard_integration::random::Random;

use crate::{Case, Step};

/// Packets of [`openings`].
const OPENINGS: usize = 40;

/// The case of a seed.
pub fn case(seed: u64) -> Case {
    let mut random = Random(seed);
    let rules = rules::rules(&mut random);
    let steps = traffic::steps(&mut random, &rules);
    Case { rules, steps }
}

/// Rules of a seed and packets that each would open a connection, were it alone.
pub fn openings(seed: u64) -> Case {
    let mut random = Random(seed);
    let rules = rules::rules(&mut random);
    let steps = (0..OPENINGS)
        .map(|_| Step::Send(traffic::opening(&mut random)))
        .collect();
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
