//! The rules of one group, one direction and one address family, arranged so that the first that matches is found in a
//! bounded number of steps.
//!
//! The protocol picks a [`Partition`]. In it the destination ports (or ICMP types and codes) are cut where rules begin
//! and end, and the pieces are the leaves of a tree in which [`FAN_OUT`] nodes share a parent. A rule hangs at the few
//! nodes that together cover its ports exactly, so that a packet meets each of its rules at one node of the way from the root
//! to its own leaf and nowhere else. Within a node only the peer is left: address ranges are laid flat into disjoint
//! pieces, each with its first rule, for one binary search; groups and address sets are asked one by one, at most
//! once each in a lookup.
//!
//! A lookup so costs a search over the pieces of ports, one search over addresses for each node of the way, and the
//! named peers, however the rules overlap. The price is paid in memory: a rule hangs at up to
//! 2 · ([`FAN_OUT`] − 1) nodes a level, typically at one.

mod build;

use crate::{
    members::{Number, Ranges},
    search::{Meter, at_or_before},
};

/// Nodes with one parent. More make the way shorter and let a rule hang at more nodes.
pub(crate) const FAN_OUT: u32 = 1 << FAN_OUT_BITS;
pub(crate) const FAN_OUT_BITS: u32 = 3;
/// No rule, or no node.
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

/// The rules, arranged. See the module.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table<T> {
    /// The protocols that rules name, in order, each with its partition at the same place.
    protocols: Box<[u8]>,
    partitions: Box<[Partition]>,
    /// All nodes; the first has the rules for any protocol.
    nodes: Box<[Node]>,
    /// Where the pieces of addresses begin, node after node, and the first rule of each.
    firsts: Box<[T]>,
    ranks: Box<[u32]>,
    /// Rules with named peers, node after node, in order of rank, each peer once a node.
    named: Box<[Named]>,
}

/// The ports of one protocol.
#[derive(Debug, PartialEq, Eq)]
struct Partition {
    /// Where pieces begin, but for the first, which begins at 0.
    starts: Box<[u16]>,
    /// From the root to the leaves: the node of each place, or [`NONE`] where no rule hangs.
    levels: Box<[Box<[u32]>]>,
}

/// The rules that hang at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    /// The first of them all.
    best: u32,
    /// The first for any peer.
    otherwise: u32,
    /// Its pieces of addresses: where they begin in the table's list, and how many there are.
    pieces: (u32, u32),
    /// The same of its named peers.
    named: (u32, u32),
}

/// The first rule of a node that names a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named {
    rank: u32,
    peer: u8,
}

impl<T: Number> Table<T> {
    /// The rank of the first rule that matches, or [`NONE`]. `members` are the peers that the group names.
    #[inline]
    pub(crate) fn first<'a>(
        &self,
        question: Question<T>,
        members: impl Fn(usize) -> Option<&'a Ranges<T>>,
        meter: &mut impl Meter,
    ) -> u32
    where
        T: 'a,
    {
        let mut lookup = Lookup {
            best: NONE,
            asked: 0,
            within: 0,
        };
        lookup.visit(self, 0, question.peer, &members, meter);
        let Some(place) = at_or_before(&self.protocols, question.protocol, meter).checked_sub(1) else {
            return lookup.best;
        };
        if self.protocols.get(place) != Some(&question.protocol) {
            return lookup.best;
        }
        let Some(partition) = self.partitions.get(place) else {
            return lookup.best;
        };
        let leaf = at_or_before(&partition.starts, question.selector, meter);
        // From the root, where rules for all ports make many looks further down unnecessary.
        for (above, level) in (0..partition.levels.len()).rev().zip(&partition.levels) {
            let node = level.get(leaf >> (above * FAN_OUT_BITS as usize));
            lookup.visit(self, *node.unwrap_or(&NONE), question.peer, &members, meter);
        }
        lookup.best
    }
}

/// What a lookup knows so far.
struct Lookup {
    best: u32,
    /// The named peers that were asked, and those of them that have the address: one bit each.
    asked: u64,
    within: u64,
}

impl Lookup {
    #[inline]
    fn visit<'a, T: Number + 'a>(
        &mut self,
        table: &Table<T>,
        node: u32,
        peer: T,
        members: &impl Fn(usize) -> Option<&'a Ranges<T>>,
        meter: &mut impl Meter,
    ) {
        meter.step();
        let Some(node) = table.nodes.get(node as usize).filter(|node| node.best < self.best) else {
            return;
        };
        self.best = self.best.min(node.first(table, peer, meter));
        for named in slice(&table.named, node.named) {
            meter.step();
            if named.rank >= self.best {
                break;
            }
            if self.has(named.peer, peer, members, meter) {
                self.best = named.rank;
                break;
            }
        }
    }

    fn has<'a, T: Number + 'a>(
        &mut self,
        named: u8,
        peer: T,
        members: &impl Fn(usize) -> Option<&'a Ranges<T>>,
        meter: &mut impl Meter,
    ) -> bool {
        let bit = 1_u64 << (named & 63);
        if self.asked & bit == 0 {
            self.asked |= bit;
            if members(usize::from(named)).is_some_and(|ranges| ranges.contains(peer, meter)) {
                self.within |= bit;
            }
        }
        self.within & bit != 0
    }
}

impl Node {
    /// The first of its rules without a named peer that matches.
    #[inline]
    fn first<T: Number>(&self, table: &Table<T>, peer: T, meter: &mut impl Meter) -> u32 {
        let before = at_or_before(slice(&table.firsts, self.pieces), peer, meter);
        let piece = before.checked_sub(1).map(|piece| self.pieces.0 as usize + piece);
        piece
            .and_then(|piece| table.ranks.get(piece).copied())
            .unwrap_or(self.otherwise)
    }
}

#[inline]
fn slice<I>(items: &[I], (first, count): (u32, u32)) -> &[I] {
    items.get(first as usize..(first + count) as usize).unwrap_or(&[])
}

#[cfg(test)]
mod tests;
