//! Makes a case on which two sides differ as small as it goes.

use crate::{
    Case, Failure, Mismatch, Side, Step,
    case::compare,
    packet::{Body, Packet},
    rules::{Peer, Protocol, Rules},
};

/// Runs of a case while it is made smaller, at most.
pub const RUNS_MAX: usize = 1500;

/// The smallest case found on which the sides still differ, and where.
pub fn smallest(
    case: &Case,
    mismatch: &Mismatch,
    first: &mut dyn Side,
    second: &mut dyn Side,
) -> Result<(Case, Mismatch), Failure> {
    let mut best = (case.clone(), mismatch.clone());
    let mut runs = 0;
    'again: while runs < RUNS_MAX {
        for smaller in smaller(&best) {
            runs += 1;
            if let Some(mismatch) = compare(&smaller, first, second)?.mismatch {
                best = (smaller, mismatch);
                continue 'again;
            }
            if runs == RUNS_MAX {
                break;
            }
        }
        break;
    }
    Ok(best)
}

/// Cases that are a little smaller, those that promise most first.
fn smaller((case, mismatch): &(Case, Mismatch)) -> Vec<Case> {
    let mut all = Vec::new();
    let last = mismatch.step;
    if case.steps.len() > last + 1 {
        let mut shorter = case.clone();
        shorter.steps.truncate(last + 1);
        all.push(shorter);
    }
    // Steps: all of those before, half of them, a quarter, …, one.
    let mut len = last;
    while len > 0 {
        for from in (0..last).step_by(len) {
            let mut shorter = case.clone();
            shorter.steps.drain(from..(from + len).min(last));
            all.push(shorter);
        }
        len /= 2;
    }
    all.extend(simpler_rules(&case.rules).into_iter().map(|rules| Case {
        rules,
        steps: case.steps.clone(),
    }));
    for (index, step) in case.steps.iter().enumerate() {
        let simpler: Vec<Step> = match step {
            Step::Send(packet) => simpler_packets(packet).into_iter().map(Step::Send).collect(),
            Step::Change(rules) => simpler_rules(rules).into_iter().map(Step::Change).collect(),
        };
        for step in simpler {
            let mut one = case.clone();
            one.steps[index] = step;
            all.push(one);
        }
    }
    all
}

fn simpler_rules(rules: &Rules) -> Vec<Rules> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Rules)| {
        let mut one = rules.clone();
        change(&mut one);
        if one != *rules {
            all.push(one);
        }
    };
    for port in 0..rules.ports.len() {
        with(&|one| one.ports[port] = None);
        for place in 0..rules.ports[port].as_ref().map_or(0, Vec::len) {
            with(&|one| {
                if let Some(groups) = &mut one.ports[port] {
                    groups.remove(place);
                }
            });
        }
    }
    for (group, content) in rules.groups.iter().enumerate() {
        with(&|one| one.groups[group].rules.clear());
        with(&|one| one.groups[group].egress_deny = false);
        for rule in 0..content.rules.len() {
            with(&|one| {
                one.groups[group].rules.remove(rule);
            });
        }
        for rule in 0..content.rules.len() {
            with(&|one| one.groups[group].rules[rule].peer = Peer::Any);
            with(&|one| {
                let rule = &mut one.groups[group].rules[rule];
                // types mean something in one family only
                if !matches!(rule.protocol, Protocol::Icmp(Some(_))) {
                    rule.family = None;
                }
            });
            with(&|one| one.groups[group].rules[rule].priority = crate::rules::PRIORITY_DEFAULT);
            with(&|one| {
                let protocol = &mut one.groups[group].rules[rule].protocol;
                *protocol = match *protocol {
                    Protocol::Tcp(Some(_)) => Protocol::Tcp(None),
                    Protocol::Udp(Some(_)) => Protocol::Udp(None),
                    Protocol::Icmp(Some(_)) => Protocol::Icmp(None),
                    _ => Protocol::Any,
                };
            });
        }
    }
    with(&|one| one.sets.iter_mut().for_each(|set| set.truncate(1)));
    all
}

fn simpler_packets(packet: &Packet) -> Vec<Packet> {
    let mut all = Vec::new();
    let mut with = |change: &dyn Fn(&mut Packet)| {
        let mut one = packet.clone();
        change(&mut one);
        if one != *packet {
            all.push(one);
        }
    };
    with(&|one| one.extension = false);
    with(&|one| one.fragments = 1);
    match &packet.body {
        Body::Tcp(_) => {
            let mut tcp = |change: &dyn Fn(&mut crate::packet::Tcp)| {
                with(&|one| {
                    if let Body::Tcp(tcp) = &mut one.body {
                        change(tcp);
                    }
                });
            };
            tcp(&|tcp| tcp.len = 0);
            tcp(&|tcp| tcp.sack = None);
            tcp(&|tcp| tcp.sack_permitted = false);
            tcp(&|tcp| tcp.window_scale = None);
            tcp(&|tcp| tcp.flags &= 0b1_0111);
            tcp(&|tcp| tcp.window = 1000);
        }
        Body::Udp { .. } | Body::Icmp { .. } | Body::Other { .. } => with(&|one| match &mut one.body {
            Body::Udp { len, .. } | Body::Icmp { len, .. } | Body::Other { len, .. } => *len = 0,
            _ => {}
        }),
        Body::Error { .. } => with(&|one| {
            if let Body::Error { about, quoted_len, .. } = &mut one.body {
                *quoted_len = 8;
                about.fragments = 1;
                about.extension = false;
            }
        }),
    }
    all
}
