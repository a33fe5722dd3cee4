//! Every question about small tables, at both ends of what addresses and ports there are.

use super::{Lowered, LoweredPeer, NONE, Question, Table};
use crate::members::Ranges;

/// Numbers that look random, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 40).expect("24 bits") % end
    }
}

/// A prefix among 16 addresses from `base` on.
fn prefix(random: &mut Random, base: u32) -> (u32, u32) {
    let size = 1 << random.below(5);
    let first = base + random.below(16) / size * size;
    (first, first + (size - 1))
}

fn rule(random: &mut Random, rank: u32, (address, port): (u32, u16)) -> Lowered<u32> {
    let mut at = |_| port + u16::try_from(random.below(16)).expect("small");
    let (one, other) = (at(0), at(1));
    let (first, last) = prefix(random, address);
    Lowered {
        rank,
        protocol: if random.below(4) == 0 { None } else { Some(6) },
        selectors: (one.min(other), one.max(other)),
        peer: if random.below(12) == 0 {
            LoweredPeer::Any
        } else {
            LoweredPeer::Range(first, last)
        },
    }
}

#[test]
fn every_question_is_answered_with_the_first_rule_that_matches() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..200 {
        let base = if round % 2 == 0 {
            (0, 0)
        } else {
            (u32::MAX - 15, u16::MAX - 15)
        };
        let count = 1 + random.below(40);
        let mut rules: Vec<Lowered<u32>> = (0..count).map(|rank| rule(&mut random, rank, base)).collect();
        for rule in rules.iter_mut().filter(|rule| rule.protocol.is_none()) {
            // Without a protocol there are no ports.
            rule.selectors = (0, u16::MAX);
        }
        let table = Table::new(&rules);
        for (address, port) in (0..16).flat_map(|a| (0..16).map(move |p| (base.0 + a, base.1 + p))) {
            let question = Question {
                peer: address,
                protocol: 6,
                selector: port,
            };
            let matches = |rule: &&Lowered<u32>| {
                (rule.selectors.0..=rule.selectors.1).contains(&port)
                    && match rule.peer {
                        LoweredPeer::Any => true,
                        LoweredPeer::Range(first, last) => (first..=last).contains(&address),
                        LoweredPeer::Named(_) => false,
                    }
            };
            let plain = rules.iter().find(matches).map_or(NONE, |rule| rule.rank);
            let nobody = |_| None::<&Ranges<u32>>;
            assert_eq!(
                table.first(question, nobody, &mut ()),
                plain,
                "{address} {port} {rules:?}"
            );
        }
    }
}
