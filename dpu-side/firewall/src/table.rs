//! The rules of one group, one direction and one address family, for finding the first that matches.

use crate::{
    members::{Number, Ranges},
    search::Meter,
};

/// No rule.
pub(crate) const NONE: u32 = u32::MAX;

/// A rule reduced to what is compared. Rules are numbered by rank: the lower, the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lowered<T> {
    pub(crate) rank: u32,
    /// None: any.
    pub(crate) protocol: Option<u8>,
    /// The first and last port, or ICMP type and code.
    pub(crate) selectors: (u16, u16),
    pub(crate) peer: LoweredPeer<T>,
}

/// Which peers a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoweredPeer<T> {
    Any,
    /// The addresses of a prefix, first and last.
    Range(T, T),
    /// The peer of that number among those that the group names.
    Named(u8),
}

/// What is asked: a packet's peer, protocol, and destination port or ICMP type and code.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<T> {
    pub(crate) peer: T,
    pub(crate) protocol: u8,
    pub(crate) selector: u16,
}

/// The rules, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table<T> {
    rules: Box<[Lowered<T>]>,
}

impl<T: Number> Table<T> {
    pub(crate) fn new(rules: &[Lowered<T>]) -> Self {
        Self { rules: rules.into() }
    }

    /// The rank of the first rule that matches, or [`NONE`]. `members` are the peers that the group names.
    pub(crate) fn first<'a>(
        &self,
        question: Question<T>,
        members: impl Fn(usize) -> Option<&'a Ranges<T>>,
        meter: &mut impl Meter,
    ) -> u32
    where
        T: 'a,
    {
        let matching = self.rules.iter().find(|rule| {
            meter.step();
            rule.protocol.is_none_or(|protocol| protocol == question.protocol)
                && (rule.selectors.0..=rule.selectors.1).contains(&question.selector)
                && match rule.peer {
                    LoweredPeer::Any => true,
                    LoweredPeer::Range(first, last) => (first..=last).contains(&question.peer),
                    LoweredPeer::Named(slot) => {
                        members(usize::from(slot)).is_some_and(|ranges| ranges.contains(question.peer, meter))
                    }
                }
        });
        matching.map_or(NONE, |rule| rule.rank)
    }
}
