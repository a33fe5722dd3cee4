//! The firewall's stage of a burst: all lookups are prepared before the first one is made, and frames that follow one of
//! their own flow share its lookup.

use outboard_conntrack::{Direction, EntryRef, Key, Packet, Table, Tuple, Verdict};
use outboard_controls::{Check, on};
use outboard_firewall::{Action, Direction as Way, RuleId};
use vhost_net_dpu::{
    packet::Fragment,
    record::Record,
    tx::{BURST_MAX, TxQueue},
};

use super::{
    Allowed, BURST_COST_MAX, Denial, Firewall, OPENING_COST, Question, THOUGHT_COST, datagrams,
    datagrams::Datagrams,
    is_icmp_error,
    quoted::quoted,
    tracked::{self, Pair},
};
use crate::{
    burst::Fate,
    layers::Output,
    policy::{PolicySet, Rules},
    reason::DropReason,
};

/// A burst whose frames the layers let through.
pub(crate) struct Burst<'a> {
    pub(crate) policy: &'a PolicySet,
    /// The sender, and its index.
    pub(crate) from: &'a Rules,
    pub(crate) index: usize,
    pub(crate) tx: &'a TxQueue,
    /// The first slot of the burst that it is about.
    pub(crate) first: usize,
    /// What the sender's guest sends in fragments.
    pub(crate) datagrams: &'a Datagrams,
    /// Nanoseconds on a clock that never goes back.
    pub(crate) now: u64,
}

/// What an entry has to say for packets to one receiver to pass.
#[derive(Debug, Clone, Copy)]
struct Aim {
    /// The receiver's index.
    port: usize,
    /// Of connections that the sender opened, and of those that the receiver did.
    original: [u64; 3],
    reply: [u64; 3],
}

impl Default for Aim {
    fn default() -> Self {
        Self {
            port: usize::MAX,
            original: [0; 3],
            reply: [0; 3],
        }
    }
}

/// What is known of a packet by its connection's entry alone.
#[derive(Clone, Copy)]
enum Known {
    /// It is of a connection that was allowed, and still is: of this one, in this direction.
    Passes(EntryRef, Direction),
    /// It contradicts its connection's state.
    Invalid,
    /// More has to be asked.
    Unsure,
}

impl Aim {
    /// Turns to another receiver. False if there is no such port.
    fn turn(&mut self, policy: &PolicySet, from: &Rules, port: usize) -> bool {
        let Some(to) = policy.rules(port) else { return false };
        let pair = Pair {
            from: from.filter.end,
            to: to.filter.end,
        };
        *self = Self {
            port,
            original: pair.to_words(),
            reply: pair.reverse().to_words(),
        };
        true
    }

    /// Asks a packet's connection, and has it take in the packet.
    #[inline]
    fn holds(&self, table: &Table, key: &Key, (record, head): (&Record, &[u8]), now: u64) -> Known {
        if record.fragment != Fragment::No || is_icmp_error(record.protocol, record.destination_port) {
            return Known::Unsure;
        }
        let Some(found) = table.lookup(key, now) else {
            return Known::Unsure;
        };
        let words = match found.direction {
            Direction::Original => &self.original,
            Direction::Reply => &self.reply,
        };
        if found.words != *words {
            return Known::Unsure;
        }
        let Ok(packet) = tracked::packet(record, head) else {
            return Known::Invalid;
        };
        take_in(table, (found.entry, found.direction), &packet, now)
    }
}

/// Has a connection take in a packet of it.
#[inline]
fn take_in(table: &Table, (entry, direction): (EntryRef, Direction), packet: &Packet<'_>, now: u64) -> Known {
    match table.observe(entry, direction, packet, now) {
        Verdict::Ok => Known::Passes(entry, direction),
        Verdict::Invalid(_) => Known::Invalid,
        Verdict::Reopens | Verdict::Gone => Known::Unsure,
    }
}

/// What is known of a packet that comes right after another one of its flow, which passed by that connection's entry.
#[inline]
fn follow(table: &Table, of: (EntryRef, Direction), (record, head): (&Record, &[u8]), now: u64) -> Known {
    match tracked::packet(record, head) {
        // At the same time and in the same direction, a second packet changes nothing that the first one has not.
        Ok(Packet::Other) => Known::Passes(of.0, of.1),
        Ok(packet) => take_in(table, of, &packet, now),
        Err(_) => Known::Invalid,
    }
}

/// Which frames of a burst come right after one of their own flow, by slot.
#[derive(Clone, Copy, Default)]
struct Followers(u32);

const _: () = assert!(BURST_MAX <= u32::BITS as usize, "a bit for each slot");

impl Followers {
    fn add(&mut self, slot: usize) {
        self.0 |= 1 << slot;
    }

    fn has(self, slot: usize) -> bool {
        self.0 >> slot & 1 == 1
    }
}

impl Firewall {
    /// Decides about those frames of a burst whose fate is [`Fate::Ask`], up to where it costs too much. How many of them
    /// are dealt with, and what that cost beyond the frames and what was asked of the rules, in frames.
    pub(crate) fn resolve(&mut self, burst: Burst<'_>, fates: &mut [Fate]) -> (usize, usize) {
        let mut done = fates.len();
        let Some(table) = self.table.take() else {
            return (done, 0);
        };
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        let records = burst.tx.records().get(burst.first..).unwrap_or_default();
        let mut followers = Followers::default();
        // Nothing continues what was refused.
        let mut before: (&Record, &[u8]) = (&Record::default(), &[]);
        for (slot, (fate, record)) in (burst.first..).zip(fates.iter().zip(records)) {
            if !matches!(fate, Fate::Ask(_)) {
                continue;
            }
            let head = burst.tx.head_of(slot);
            if record.continues(head, before.0, before.1) {
                followers.add(slot);
            } else {
                keys.push(table.key(&tracked::tuple(record, head, burst.from.zone)));
            }
            before = (record, head);
        }
        table.prepare(&mut keys);
        let mut cost = 0;
        let mut aim = Aim::default();
        let mut remaining = keys.iter();
        let mut flow = None;
        // What was known of the frame before, of which the one at hand may be a follower.
        let mut known = Known::Unsure;
        for (slot, (fate, record)) in (burst.first..).zip(fates.iter_mut().zip(records)) {
            let Fate::Ask(output) = *fate else { continue };
            let head = burst.tx.head_of(slot);
            let follows = followers.has(slot);
            if !follows {
                flow = remaining.next();
            }
            let Some(key) = flow else { break };
            known = match (known, output) {
                (Known::Passes(entry, direction), Output::Port(port)) if follows && port == aim.port => {
                    follow(&table, (entry, direction), (record, head), burst.now)
                }
                (_, Output::Port(port)) if port == aim.port || aim.turn(burst.policy, burst.from, port) => {
                    aim.holds(&table, key, (record, head), burst.now)
                }
                _ => Known::Unsure,
            };
            *fate = match known {
                Known::Passes(..) => Fate::Output(output),
                Known::Invalid => Fate::Refused {
                    reason: DropReason::CtInvalid,
                    at: burst.index,
                    reject: false,
                },
                Known::Unsure => {
                    let (decided, more) = self.think(&table, key, (slot, output), &burst);
                    *fate = decided;
                    cost += more;
                    if cost + self.due() >= BURST_COST_MAX && on(Check::WorkCharged) {
                        done = slot + 1 - burst.first;
                        break;
                    }
                    continue;
                }
            };
        }
        (self.keys, self.table) = (keys, Some(table));
        (done, cost)
    }

    /// Decides about a packet of which more has to be asked than whether its connection is known. What becomes of it, and
    /// what that cost beyond the frame, in frames.
    #[inline(never)]
    fn think(&self, table: &Table, key: &Key, (slot, output): (usize, Output), burst: &Burst<'_>) -> (Fate, usize) {
        let Some(record) = burst.tx.records().get(slot) else {
            return (Fate::Drop(DropReason::UnknownDestination), 0);
        };
        let (to, reporter) = match output {
            Output::Port(port) => (burst.policy.rules(port), port),
            Output::Flood => (None, burst.index),
        };
        let tuple = &tracked::tuple(record, burst.tx.head_of(slot), burst.from.zone);
        let question = Question {
            record,
            head: burst.tx.head_of(slot),
            tuple,
            from: burst.from,
            to: to.unwrap_or(burst.from),
            now: burst.now,
        };
        let outcome = match output {
            Output::Port(_) => self.one(table, key, &question, burst.datagrams),
            Output::Flood => self.flood(&question, burst.policy.filters(burst.from)),
        };
        match outcome {
            Ok(None) => (Fate::Output(output), THOUGHT_COST),
            Ok(Some(allowed)) => {
                self.log_allowed(&allowed, tuple, burst.now);
                (Fate::Output(output), OPENING_COST)
            }
            Err(denial) => {
                if let Some(entry) = denial.ends {
                    table.close(entry);
                }
                self.log_denied(&denial, tuple, burst.now);
                let fate = Fate::Refused {
                    reason: denial.reason,
                    at: if denial.reason.at_receiver() {
                        reporter
                    } else {
                        burst.index
                    },
                    reject: denial.reject,
                };
                (fate, THOUGHT_COST)
            }
        }
    }

    /// Decides about a packet for one port. By which judgement, if there was one.
    #[inline]
    fn one(
        &self,
        table: &Table,
        key: &Key,
        question: &Question<'_>,
        datagrams: &Datagrams,
    ) -> Result<Option<Allowed>, Denial> {
        match question.record.fragment {
            Fragment::No if !question.is_icmp_error() => self.pass(table, key, question),
            Fragment::No => self.related(table, question),
            Fragment::First => {
                let passed = self.pass(table, key, question);
                match passed {
                    Ok(_) => datagrams.allow(question.record, question.tuple, question.pair(), question.now),
                    Err(_) => datagrams.forget(question.record, question.tuple),
                }
                passed
            }
            Fragment::Later => later(question, datagrams).map(|()| None),
        }
    }

    /// An error is about a packet of an allowed connection, which went to the port that it comes from.
    pub(super) fn related(&self, table: &Table, question: &Question<'_>) -> Result<Option<Allowed>, Denial> {
        let quoted = quoted(question.tuple, question.record.transport(question.head)).ok_or(DropReason::CtInvalid)?;
        let related = table.related(&quoted, question.now).ok_or(DropReason::CtInvalid)?;
        let pair = question.pair_of(related.direction);
        if related.words == pair.to_words() || !on(Check::ErrorFromPeer) {
            return Ok(None);
        }
        if !pair.has_ports_of(related.words) {
            return Err(DropReason::CtInvalid.into());
        }
        // Of the connection's first packet, whichever way the quoted one went.
        match related.direction {
            Direction::Original => self.judge(&quoted.tuple.reverse(), question.from, question.to),
            Direction::Reply => self.judge(&quoted.tuple, question.to, question.from),
        }
        .map(Some)
    }

    /// A packet for a group is of no connection: the sender is asked here, each receiver when it is its turn.
    pub(super) fn flood(&self, question: &Question<'_>, filters: bool) -> Result<Option<Allowed>, Denial> {
        if question.record.fragment == Fragment::Later && filters {
            return Err(DropReason::FragmentWithoutFirst.into());
        }
        let judgement = self.ask(question.tuple, question.from, Way::Egress)?;
        Ok(Some(Allowed {
            egress: judgement.rule,
            ingress: None,
            log: judgement.log,
        }))
    }

    /// May a receiver get a packet for a group?
    pub(crate) fn admits(&self, record: &Record, head: &[u8], to: &Rules) -> Result<(), Denial> {
        self.ask(&tracked::tuple(record, head, to.zone), to, Way::Ingress)?;
        Ok(())
    }

    fn log_allowed(&self, allowed: &Allowed, tuple: &Tuple, now: u64) {
        if allowed.log && self.commons.log.take(now) {
            for rule in [allowed.egress, allowed.ingress].into_iter().flatten() {
                self.tell(Action::Allow, rule, tuple);
            }
        }
    }

    fn log_denied(&self, denial: &Denial, tuple: &Tuple, now: u64) {
        if denial.log
            && let Some(rule) = denial.rule
            && self.commons.log.take(now)
        {
            let action = if denial.reject { Action::Reject } else { Action::Deny };
            self.tell(action, rule, tuple);
        }
    }
}

impl Firewall {
    /// Logs a judgement whose rule asks for it.
    #[cold]
    fn tell(&self, action: Action, rule: RuleId, tuple: &Tuple) {
        let rule = self.policy.rule(rule).map(|rule| rule.name).unwrap_or_default();
        let (source, destination) = (tuple.source.ip(), tuple.destination.ip());
        tracing::info!(
            rule,
            ?action,
            %source,
            source_port = tuple.source_port,
            %destination,
            destination_port = tuple.destination_port,
            protocol = tuple.protocol,
            "a rule decided about a connection"
        );
    }
}

/// A later fragment goes where the first one of its datagram went.
pub(crate) fn later(question: &Question<'_>, datagrams: &Datagrams) -> Result<(), Denial> {
    let Question { record, tuple, now, .. } = *question;
    let offset = datagrams::offset(record, question.head);
    let passes = datagrams.allows(record, tuple, offset, question.pair(), now);
    if passes || !on(Check::FragmentsOfAllowed) {
        return Ok(());
    }
    Err(DropReason::FragmentWithoutFirst.into())
}
