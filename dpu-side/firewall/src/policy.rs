//! The compiled policy of a card: one immutable value, replaced as a whole.

use std::{collections::HashMap, sync::Arc};

use crate::{
    AddressSet, Direction, Flow, GroupMembers, Judgement, Name, Port, PortId, RuleId,
    flow::Addresses,
    group::{Compiled, Effective},
    members::Members,
    search::Meter,
    slots::Slots,
};

/// A network's number.
pub(crate) type NetworkId = u32;
/// A group's number.
pub(crate) type GroupId = u32;

/// What all ports' security groups mean, compiled.
///
/// It is never changed. [`Policy::update`] and [`Policy::follow`] make the next one, which shares with this one
/// whatever did not change. Making and dropping one takes time in proportion to the change and belongs on a thread that
/// does not serve traffic; a lookup allocates nothing and takes no lock.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    pub(crate) version: u64,
    pub(crate) groups: Slots<Name, Arc<Compiled>>,
    pub(crate) sets: Slots<Name, Arc<CompiledSet>>,
    pub(crate) ports: Slots<Name, Arc<CompiledPort>>,
    pub(crate) networks: Slots<Name, Name>,
    /// The groups that ports have, by network.
    pub(crate) bound: Slots<(NetworkId, GroupId), Arc<Bound>>,
    /// The addresses of a group's ports in a network, of those groups that a rule in force there names.
    pub(crate) remote: Arc<HashMap<(NetworkId, Name), Arc<Members>>>,
    /// What was told of members elsewhere, by network and group.
    pub(crate) elsewhere: Arc<HashMap<(Name, Name), Arc<GroupMembers>>>,
    /// By port.
    pub(crate) epochs: Vec<u64>,
}

/// An address set.
#[derive(Debug)]
pub(crate) struct CompiledSet {
    pub(crate) source: Arc<AddressSet>,
    pub(crate) members: Arc<Members>,
}

/// A port.
#[derive(Debug)]
pub(crate) struct CompiledPort {
    pub(crate) source: Arc<Port>,
    pub(crate) network: NetworkId,
    /// None: not filtered.
    pub(crate) filter: Option<Filter>,
    /// The version in which its network or list of groups last changed.
    pub(crate) epoch: u64,
}

/// The groups of a filtered port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) groups: Box<[GroupId]>,
    /// The same groups in the port's network, by their number in [`Policy::bound`].
    pub(crate) bound: Box<[u32]>,
}

impl CompiledPort {
    pub(crate) fn groups(&self) -> &[GroupId] {
        self.filter.as_ref().map_or(&[], |filter| &filter.groups)
    }
}

/// A group in a network: its rules, with the peers that they name as they are there.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) network: NetworkId,
    pub(crate) group: GroupId,
    pub(crate) compiled: Arc<Compiled>,
    pub(crate) peers: Box<[PeerId]>,
    pub(crate) members: Box<[Arc<Members>]>,
    /// The version in which it last changed.
    pub(crate) epoch: u64,
}

/// Addresses that rules name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PeerId {
    Group(NetworkId, Name),
    AddressSet(Name),
}

impl Policy {
    /// The number of a port.
    pub fn port(&self, name: &str) -> Option<PortId> {
        self.ports.id(name).map(PortId)
    }

    /// Whether the port is filtered at all. Of a port that is not, nothing has to be tracked or judged.
    pub fn filtered(&self, port: PortId) -> bool {
        self.ports.get(port.0).is_none_or(|port| port.filter.is_some())
    }

    /// Changes if a judgement about the port may have changed, and then to a number that it never was before, in all policies
    /// that were made one out of the other by [`Policy::update`] and [`Policy::follow`]. One that was compiled afresh
    /// begins anew: what was judged under another one is not to be compared with it. 0 if there is no such port.
    #[inline]
    pub fn epoch(&self, port: PortId) -> u64 {
        self.epochs.get(port.index()).copied().unwrap_or(0)
    }

    /// Rises with every update.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// What is done with a connection that comes to the port or leaves it, by its first packet. What the policy does not
    /// know is denied.
    #[inline]
    pub fn judge(&self, port: PortId, direction: Direction, flow: &Flow) -> Judgement {
        self.judge_counted(port, direction, flow, &mut ())
    }

    /// The same, and how many steps it took: what it cost, and at most [`crate::limits::LOOKUP_STEPS_MAX`].
    #[inline]
    pub fn judge_for(&self, port: PortId, direction: Direction, flow: &Flow) -> (Judgement, u32) {
        let mut steps = 0;
        let judgement = self.judge_counted(port, direction, flow, &mut steps);
        (judgement, steps)
    }

    pub(crate) fn judge_counted(
        &self,
        port: PortId,
        direction: Direction,
        flow: &Flow,
        meter: &mut impl Meter,
    ) -> Judgement {
        meter.step();
        let Some(port) = self.ports.get(port.0) else {
            return Judgement::DEFAULT;
        };
        let Some(filter) = &port.filter else {
            return Judgement::UNFILTERED;
        };
        let mut first: Option<(GroupId, &Effective)> = None;
        let mut below = u32::MAX;
        for bound in filter.bound.iter().filter_map(|id| self.bound.get(*id)) {
            meter.step();
            if let Some(rule) = bound.compiled.first(direction, flow, &bound.members, below, meter) {
                below = rule.precedence;
                first = Some((bound.group, rule));
            }
        }
        first.map_or(Judgement::DEFAULT, |(group, rule)| Judgement {
            action: rule.action,
            rule: Some(RuleId {
                group,
                place: rule.place,
            }),
            log: rule.log,
        })
    }
}

impl Flow {
    /// The other end's address, seen from the port.
    pub(crate) fn peer(&self, direction: Direction) -> PeerAddress {
        match (self.addresses, direction) {
            (Addresses::V4 { source: peer, .. }, Direction::Ingress)
            | (Addresses::V4 { destination: peer, .. }, Direction::Egress) => PeerAddress::V4(peer),
            (Addresses::V6 { source: peer, .. }, Direction::Ingress)
            | (Addresses::V6 { destination: peer, .. }, Direction::Egress) => PeerAddress::V6(peer),
        }
    }
}

/// The other end's address.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PeerAddress {
    V4(u32),
    V6(u128),
}

#[cfg(test)]
#[path = "bound_tests.rs"]
mod bound_tests;
#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
