//! The stateful firewall: what passes between two ports of which at least one is filtered.
//!
//! A packet's connection is looked up first, once, whichever way the packet goes: both directions are one entry, and the
//! entry says between which ports and under which epochs of their policy the connection was allowed. While these are in
//! force, that is all. If the policy of one of the ports has changed since, the connection's first packet is judged again,
//! then and not before, and a connection that would not be allowed now ends. A packet of no connection is judged by the
//! groups of its sender (egress) and of its receiver (ingress), and opens one if both allow it.
//!
//! ARP and neighbour discovery pass, as Neutron lets them: the source guard saw to them. What is for a group of stations
//! belongs to no connection, and each such packet is judged on its own. Of a datagram in fragments, the first one is
//! judged, and later ones go where it went. An ICMP error passes if it is about a packet of an allowed connection, and
//! comes from the port that packet went to.
//!
//! All connections of a switch are in one table, in zones, one for each network.

pub(crate) mod allowance;
pub(crate) mod datagrams;
pub(crate) mod explain;
mod quoted;
pub(crate) mod reject;
mod stage;
pub(crate) mod tracked;

use std::{cell::Cell, collections::HashMap, sync::Arc};

use outboard_conntrack::{
    Budget, Direction, EntryRef, Found, Key, Opened, Packet, Ports, Refused, Table, Tuple, Verdict,
    icmp::{Class as IcmpClass, class as icmp_class},
};
use outboard_controls::{Check, on};
use outboard_firewall::{Action, Direction as Way, Judgement, Policy, RuleId};
use vhost_net_dpu::{
    packet::{Fragment, IP_PROTOCOL_ICMP, IP_PROTOCOL_ICMPV6},
    record::{Class, Record},
    tx::BURST_MAX,
};

use crate::{commons::Commons, policy::Rules, reason::DropReason};
pub(crate) use stage::Burst;

use tracked::Pair;

/// Connections that a switch has room for which was given no table.
pub const CONNECTIONS_DEFAULT: u32 = 1 << 16;
/// What opening a connection costs beyond a frame that is of one, in frames: in time, as its memory is in no cache; of
/// instructions it is half of that. What the rules are asked is charged besides, by the step.
pub(crate) const OPENING_COST: usize = 4;
/// What it costs to find out about a packet for which it is not enough that its connection is known: fragments, errors, and
/// what is of no connection and opens none.
pub(crate) const THOUGHT_COST: usize = 1;
/// What a burst may cost before what is left of it has to wait, in frames, so that no breath takes long.
pub(crate) const BURST_COST_MAX: usize = 512;
/// How many steps of judgements cost as much as a frame: where rules are many, most steps wait for memory.
const FRAME_STEPS: u32 = 16;
/// What asking for a judgement costs beyond its steps, in steps.
const ASK_STEPS: u32 = 10;
/// How often a packet is looked at again whose connection went away meanwhile.
const TRIES_MAX: usize = 3;
/// ICMPv6 messages of neighbour discovery (RFC 4861 §4): router solicitation to redirect.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// Policy, and the connections that it allowed.
pub(crate) struct Firewall {
    policy: Arc<Policy>,
    /// None until a port is filtered.
    table: Option<Arc<Table>>,
    /// How many connections it holds.
    capacity: u32,
    /// Each port's share of them, as far as one was given, by the port's number.
    shares: HashMap<u32, u32>,
    /// What all workers have in common.
    commons: Arc<Commons>,
    /// Of the burst at hand.
    keys: Vec<Key>,
    /// What was asked of the policy and not charged to anybody yet, in steps.
    asked: Cell<u32>,
}

impl std::fmt::Debug for Firewall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Firewall")
            .field("version", &self.policy.version())
            .finish_non_exhaustive()
    }
}

impl Firewall {
    /// Without a policy, which allows everything.
    pub(crate) fn new(commons: Arc<Commons>) -> Self {
        Self {
            policy: Arc::default(),
            table: None,
            capacity: 0,
            shares: HashMap::new(),
            commons,
            keys: Vec::with_capacity(BURST_MAX),
            asked: Cell::new(0),
        }
    }
}

/// Why the firewall is against a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) reason: DropReason,
    /// The rule that says so.
    pub(crate) rule: Option<RuleId>,
    /// The sender is to be told.
    pub(crate) reject: bool,
    /// It is to be logged.
    log: bool,
    /// The connection that ends with this.
    ends: Option<EntryRef>,
}

impl From<DropReason> for Denial {
    fn from(reason: DropReason) -> Self {
        Self {
            reason,
            rule: None,
            reject: false,
            log: false,
            ends: None,
        }
    }
}

/// The rules that allow a connection: the sender's, and the receiver's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Allowed {
    pub(crate) egress: Option<RuleId>,
    pub(crate) ingress: Option<RuleId>,
    /// One of them asks for it to be logged.
    log: bool,
}

/// A packet that is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub(crate) record: &'a Record,
    pub(crate) head: &'a [u8],
    pub(crate) tuple: &'a Tuple,
    pub(crate) from: &'a Rules,
    pub(crate) to: &'a Rules,
    /// Nanoseconds on a clock that never goes back.
    pub(crate) now: u64,
}

impl Question<'_> {
    fn is_icmp_error(&self) -> bool {
        is_icmp_error(self.tuple.protocol, self.tuple.destination_port)
    }

    fn pair(&self) -> Pair {
        Pair {
            from: self.from.filter.end,
            to: self.to.filter.end,
        }
    }

    /// The same as the connection's first packet went, of which this one goes that way.
    #[inline]
    fn pair_of(&self, direction: Direction) -> Pair {
        match direction {
            Direction::Original => self.pair(),
            Direction::Reply => self.pair().reverse(),
        }
    }
}

/// What a look at a packet's connection shows; nothing was changed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Its connection was allowed, and still is. `judged`: by a judgement that the entry does not know of yet.
    Known { found: Found, judged: Option<Allowed> },
    /// It is of none, and one may be opened.
    New(Allowed),
}

/// Is it a packet that rules are about?
#[inline]
pub(crate) fn is_judged(record: &Record) -> bool {
    match record.class {
        Class::Ipv4 => true,
        Class::Ipv6 => {
            let [kind, _] = record.destination_port.to_be_bytes();
            let discovery = record.protocol == IP_PROTOCOL_ICMPV6 && DISCOVERY.contains(&kind);
            !(discovery && record.fragment == Fragment::No)
        }
        Class::Arp | Class::Other | Class::Refused => false,
    }
}

#[inline]
fn is_icmp_error(protocol: u8, destination_port: u16) -> bool {
    let [kind, _] = destination_port.to_be_bytes();
    matches!(protocol, IP_PROTOCOL_ICMP | IP_PROTOCOL_ICMPV6) && icmp_class(protocol, kind) == IcmpClass::Error
}

impl Firewall {
    /// Puts a policy in force. The former one.
    pub(crate) fn set_policy(&mut self, policy: Arc<Policy>) -> Arc<Policy> {
        std::mem::replace(&mut self.policy, policy)
    }

    pub(crate) fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    pub(crate) fn table(&self) -> Option<&Table> {
        self.table.as_deref()
    }

    pub(crate) fn shared_table(&self) -> Option<Arc<Table>> {
        self.table.clone()
    }

    /// Keeps connections in this table from now on, which holds so many; those that were are unknown then.
    pub(crate) fn set_table(&mut self, table: Arc<Table>, capacity: u32) {
        self.table = Some(table);
        self.capacity = capacity;
        self.shares.clear();
    }

    /// Gives the ports of these numbers equal shares of the table: none of them can fill it for another one.
    pub(crate) fn share(&mut self, ports: &[u32]) {
        if self.table.is_none() {
            self.set_table(self.commons.table(), CONNECTIONS_DEFAULT);
        }
        // Rounded, so that shares stay as they are while single ports come and go.
        let count = u32::try_from(ports.len().next_power_of_two()).unwrap_or(u32::MAX);
        let share = (self.capacity / count).max(1);
        let gone: Vec<u32> = self
            .shares
            .keys()
            .copied()
            .filter(|port| !ports.contains(port))
            .collect();
        for (port, share) in gone
            .into_iter()
            .map(|port| (port, 0))
            .chain(ports.iter().map(|port| (*port, share)))
        {
            if self.shares.insert(port, share) != Some(share)
                && let Some(table) = &self.table
            {
                table.set_budget(port, Budget::of(share));
            }
            if share == 0 {
                self.shares.remove(&port);
            }
        }
    }

    /// What the judgements that nobody has paid for yet cost, in frames.
    fn due(&self) -> usize {
        usize::try_from(self.asked.get() / FRAME_STEPS).unwrap_or(usize::MAX)
    }

    /// What the judgements since the last time cost, in frames. What is less than a frame is left for the next time.
    pub(crate) fn take_cost(&self) -> usize {
        let due = self.due();
        self.asked.set(self.asked.get() % FRAME_STEPS);
        due
    }

    /// Asks without anybody being charged.
    fn uncharged<T>(&self, ask: impl FnOnce() -> T) -> T {
        let before = self.asked.get();
        let told = ask();
        self.asked.set(before);
        told
    }

    /// What the groups of both ports say about a connection's first packet.
    fn judge(&self, tuple: &Tuple, from: &Rules, to: &Rules) -> Result<Allowed, Denial> {
        let egress = self.ask(tuple, from, Way::Egress)?;
        let ingress = self.ask(tuple, to, Way::Ingress)?;
        Ok(Allowed {
            egress: egress.rule,
            ingress: ingress.rule,
            log: egress.log || ingress.log,
        })
    }

    /// What the groups of a port say.
    pub(crate) fn ask(&self, tuple: &Tuple, port: &Rules, way: Way) -> Result<Judgement, Denial> {
        if !port.filter.filtered || !on(Check::SecurityGroups) {
            return Ok(Judgement::UNFILTERED);
        }
        let judgement = match port.filter.id {
            Some(id) => {
                let (judgement, steps) = self.policy.judge_for(id, way, &tracked::flow(tuple));
                self.asked.set(self.asked.get() + steps + ASK_STEPS);
                judgement
            }
            None => Judgement::DEFAULT,
        };
        let reason = match (way, judgement.action, judgement.rule) {
            (_, Action::Allow, _) => return Ok(judgement),
            (Way::Egress, _, None) => DropReason::EgressNoRule,
            (Way::Egress, Action::Deny, _) => DropReason::EgressDenied,
            (Way::Egress, Action::Reject, _) => DropReason::EgressRejected,
            (Way::Ingress, _, None) => DropReason::IngressNoRule,
            (Way::Ingress, Action::Deny, _) => DropReason::IngressDenied,
            (Way::Ingress, Action::Reject, _) => DropReason::IngressRejected,
        };
        Err(Denial {
            reason,
            rule: judgement.rule,
            reject: judgement.action == Action::Reject,
            log: judgement.log,
            ends: None,
        })
    }

    /// Looks at a packet's connection, or judges it if it is of none and may open one. Changes nothing.
    pub(crate) fn look(
        &self,
        table: &Table,
        (key, packet): (&Key, &Packet<'_>),
        question: &Question<'_>,
    ) -> Result<Sight, Denial> {
        let Some(found) = table.lookup(key, question.now) else {
            if let Err(Refused::Invalid(_)) = table.preview_open(key, question.pair().from.port, packet, question.now) {
                return Err(DropReason::CtInvalid.into());
            }
            return self.judge(question.tuple, question.from, question.to).map(Sight::New);
        };
        let pair = question.pair_of(found.direction);
        if found.words == pair.to_words() {
            return Ok(Sight::Known { found, judged: None });
        }
        match table.preview(found.entry, found.direction, packet, question.now) {
            // What is not of the connection does not end it either.
            Verdict::Invalid(_) => Err(DropReason::CtInvalid.into()),
            Verdict::Ok => self.judge_again(&found, pair, question),
            // It opens another one, which is judged once this one has made room.
            Verdict::Reopens | Verdict::Gone => Ok(Sight::Known { found, judged: None }),
        }
    }

    /// Would the connection be opened today, between these ports?
    #[cold]
    fn judge_again(&self, found: &Found, pair: Pair, question: &Question<'_>) -> Result<Sight, Denial> {
        let judged = match found.direction {
            Direction::Original => self.judge(question.tuple, question.from, question.to),
            Direction::Reply => self.judge(&question.tuple.reverse(), question.to, question.from),
        };
        match judged {
            Ok(judged) => Ok(Sight::Known {
                found: *found,
                judged: Some(judged),
            }),
            // Between other ports it is somebody's try, which ends nothing.
            Err(denial) => Err(Denial {
                ends: pair.has_ports_of(found.words).then_some(found.entry),
                ..denial
            }),
        }
    }

    /// Decides about a packet that is no later fragment and no error: it is of an allowed connection, or opens one. By
    /// which judgement, if there was one.
    fn pass(&self, table: &Table, key: &Key, question: &Question<'_>) -> Result<Option<Allowed>, Denial> {
        let packet = tracked::packet(question.record, question.head).map_err(|_| DropReason::CtInvalid)?;
        for _ in 0..TRIES_MAX {
            match self.look(table, (key, &packet), question)? {
                Sight::Known { found, judged } => {
                    if judged.is_some() {
                        table.publish(found.entry, question.pair_of(found.direction).to_words());
                    }
                    match table.observe(found.entry, found.direction, &packet, question.now) {
                        Verdict::Ok => return Ok(judged),
                        Verdict::Invalid(_) => return Err(DropReason::CtInvalid.into()),
                        Verdict::Reopens | Verdict::Gone => {}
                    }
                }
                Sight::New(allowed) => {
                    if self.open(table, key, question, &packet)? {
                        return Ok(Some(allowed));
                    }
                }
            }
        }
        Err(DropReason::CtInvalid.into())
    }

    /// Opens a connection. False if somebody else did so meanwhile.
    fn open(&self, table: &Table, key: &Key, question: &Question<'_>, packet: &Packet<'_>) -> Result<bool, Denial> {
        let pair = question.pair();
        let ports = Ports {
            from: pair.from.port,
            to: pair.to.port,
        };
        match table.open(key, ports, packet, pair.to_words(), question.now) {
            Ok(Opened::New(_)) => Ok(true),
            Ok(Opened::Exists(_)) => Ok(false),
            Err(refused) => Err(refusal(refused).into()),
        }
    }
}

/// Why no connection is opened.
pub(crate) fn refusal(refused: Refused) -> DropReason {
    match refused {
        Refused::Invalid(_) => DropReason::CtInvalid,
        Refused::PortFull => DropReason::ConnectionBudget,
        Refused::TableFull => DropReason::ConnectionTableFull,
    }
}
