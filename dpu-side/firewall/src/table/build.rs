//! Arranging rules into a table.

use super::{FAN_OUT, FAN_OUT_BITS, Lowered, LoweredPeer, NONE, Named, Node, Partition, Table};
use crate::members::Number;

impl<T: Number> Table<T> {
    /// Arranges rules, which are in order of rank.
    pub(crate) fn new(rules: &[Lowered<T>]) -> Self {
        let mut building = Building {
            nodes: Vec::new(),
            firsts: Vec::new(),
            ranks: Vec::new(),
            named: Vec::new(),
            ranges: Vec::new(),
            enclosing: Vec::new(),
        };
        let mut by_protocol: Vec<Vec<&Lowered<T>>> = Vec::new();
        let mut places = [None::<usize>; 256];
        let mut any = Vec::new();
        for rule in rules {
            let Some(protocol) = rule.protocol else {
                any.push(rule);
                continue;
            };
            let fresh = by_protocol.len();
            if let Some(place) = places.get_mut(usize::from(protocol)) {
                let place = *place.get_or_insert(fresh);
                if place == fresh {
                    by_protocol.push(Vec::new());
                }
                by_protocol[place].push(rule);
            }
        }
        in_order_of_addresses(&mut any);
        building.node(&any);
        let (mut protocols, mut partitions) = (Vec::new(), Vec::new());
        for (protocol, place) in (0..=u8::MAX).zip(places) {
            if let Some(rules) = place.and_then(|place| by_protocol.get_mut(place)) {
                in_order_of_addresses(rules);
                protocols.push(protocol);
                partitions.push(building.partition(rules));
            }
        }
        Self {
            protocols: protocols.into(),
            partitions: partitions.into(),
            nodes: building.nodes.into(),
            firsts: building.firsts.into(),
            ranks: building.ranks.into(),
            named: building.named.into(),
        }
    }
}

/// A table in the making.
struct Building<T> {
    nodes: Vec<Node>,
    firsts: Vec<T>,
    ranks: Vec<u32>,
    named: Vec<Named>,
    /// Kept from node to node for its memory.
    ranges: Vec<Range<T>>,
    enclosing: Vec<Enclosing<T>>,
}

/// A rule about an address range.
#[derive(Clone, Copy)]
struct Range<T> {
    first: T,
    last: T,
    rank: u32,
}

/// A range that the present place lies in, and the first rule of all that enclose it.
struct Enclosing<T> {
    last: T,
    rank: u32,
}

impl<T: Number> Building<T> {
    fn partition(&mut self, rules: &[&Lowered<T>]) -> Partition {
        let mut cuts = Cuts::default();
        for rule in rules {
            cuts.add(rule.selectors);
        }
        let starts = cuts.count();
        let leaf_count = u32::try_from(starts.len()).unwrap_or(u32::MAX) + 1;
        let mut counts = vec![leaf_count];
        while let Some(count) = counts.last().filter(|count| **count > 1) {
            counts.push(count.div_ceil(FAN_OUT));
        }
        // Where the places of each level begin in one numbering of all, leaves first.
        let bases: Vec<u32> = counts
            .iter()
            .scan(0, |next, count| {
                let base = *next;
                *next += count;
                Some(base)
            })
            .collect();
        let place_count = bases
            .iter()
            .zip(&counts)
            .map(|(base, count)| base + count)
            .max()
            .unwrap_or(0);
        let mut hung = Vec::with_capacity(rules.len());
        for rule in rules {
            let leaves = (cuts.leaf(rule.selectors.0), cuts.leaf(rule.selectors.1));
            cover(leaves, &counts, &bases, |place| hung.push((place, *rule)));
        }
        let (hung, ends) = by_place(&hung, place_count as usize);
        let mut levels: Vec<Box<[u32]>> = Vec::with_capacity(counts.len());
        let (mut first, mut ends) = (0, ends.iter());
        for count in &counts {
            let of_place = |end: &usize| {
                let rules = hung.get(first..*end).unwrap_or(&[]);
                first = *end;
                if rules.is_empty() { NONE } else { self.node(rules) }
            };
            levels.push(ends.by_ref().take(*count as usize).map(of_place).collect());
        }
        levels.reverse();
        Partition {
            starts: starts.into(),
            levels: levels.into(),
        }
    }

    /// Makes a node of rules in order of their addresses, and tells its number.
    fn node(&mut self, rules: &[&Lowered<T>]) -> u32 {
        let (pieces_first, named_first) = (self.firsts.len(), self.named.len());
        let of_any = |rule: &&&Lowered<T>| matches!(rule.peer, LoweredPeer::Any);
        // What comes after the first rule for any peer can never be first.
        let otherwise = rules.iter().filter(of_any).map(|rule| rule.rank).min().unwrap_or(NONE);
        let mut best = otherwise;
        self.ranges.clear();
        for rule in rules.iter().filter(|rule| rule.rank < otherwise) {
            best = best.min(rule.rank);
            match rule.peer {
                LoweredPeer::Any => {}
                LoweredPeer::Range(first, last) => self.ranges.push(Range {
                    first,
                    last,
                    rank: rule.rank,
                }),
                LoweredPeer::Named(peer) => self.named.push(Named { rank: rule.rank, peer }),
            }
        }
        self.order_named(named_first);
        self.flatten(otherwise, pieces_first);
        let span = |first: usize, end: usize| (number(first), number(end - first));
        let id = number(self.nodes.len());
        self.nodes.push(Node {
            best,
            otherwise,
            pieces: span(pieces_first, self.firsts.len()),
            named: span(named_first, self.named.len()),
        });
        id
    }

    /// Sorts the named peers of the last node, and keeps the first rule of each.
    fn order_named(&mut self, node_first: usize) {
        let mut named = self.named.split_off(node_first);
        named.sort_unstable_by_key(|named| named.rank);
        let mut seen = 0_u64;
        named.retain(|named| {
            let bit = 1 << (named.peer & 63);
            let fresh = seen & bit == 0;
            seen |= bit;
            fresh
        });
        self.named.append(&mut named);
    }

    /// Lays the ranges, of which any two are disjoint or one within the other, flat into pieces with their first rule.
    fn flatten(&mut self, otherwise: u32, node_first: usize) {
        let ranges = std::mem::take(&mut self.ranges);
        for range in &ranges {
            self.leave(Some(range.first), otherwise, node_first);
            let rank = self
                .enclosing
                .last()
                .map_or(otherwise, |outer| outer.rank)
                .min(range.rank);
            self.piece(range.first, rank, otherwise, node_first);
            let last = range.last;
            self.enclosing.push(Enclosing { last, rank });
        }
        self.leave(None, otherwise, node_first);
        self.ranges = ranges;
    }

    /// Leaves the ranges that end before `next`, or all.
    fn leave(&mut self, next: Option<T>, otherwise: u32, node_first: usize) {
        while let Some(inner) = self.enclosing.pop_if(|inner| next.is_none_or(|next| inner.last < next)) {
            let rank = self.enclosing.last().map_or(otherwise, |outer| outer.rank);
            if let Some(after) = inner.last.next() {
                self.piece(after, rank, otherwise, node_first);
            }
        }
    }

    /// A piece from `first` on, in place of one that begins there; none where it would go on as before.
    fn piece(&mut self, first: T, rank: u32, otherwise: u32, node_first: usize) {
        if self.firsts.len() > node_first && self.firsts.last() == Some(&first) {
            self.firsts.pop();
            self.ranks.pop();
        }
        let before = if self.firsts.len() > node_first {
            self.ranks.last()
        } else {
            None
        };
        if *before.unwrap_or(&otherwise) != rank {
            self.firsts.push(first);
            self.ranks.push(rank);
        }
    }
}

/// Sorts rules by where the addresses of their peers begin, the longer of two ranges first. They are then in this order at
/// every place where they hang, and are not sorted again.
fn in_order_of_addresses<T: Number>(rules: &mut [&Lowered<T>]) {
    rules.sort_unstable_by_key(|rule| match rule.peer {
        LoweredPeer::Any | LoweredPeer::Named(_) => None,
        LoweredPeer::Range(first, last) => Some(T::order(first, last)),
    });
}

/// Brings what hangs at one place together, in its order, the places in theirs, and tells where each place ends.
fn by_place<'a, T>(hung: &[(u32, &'a Lowered<T>)], place_count: usize) -> (Vec<&'a Lowered<T>>, Vec<usize>) {
    let Some((_, any)) = hung.first() else {
        return (Vec::new(), vec![0; place_count]);
    };
    let mut ends = vec![0_usize; place_count];
    for (place, _) in hung {
        if let Some(count) = ends.get_mut(*place as usize) {
            *count += 1;
        }
    }
    let mut first = 0;
    for end in &mut ends {
        first += std::mem::replace(end, first);
    }
    let mut sorted = vec![*any; hung.len()];
    for (place, rule) in hung {
        if let Some(next) = ends.get_mut(*place as usize)
            && let Some(slot) = sorted.get_mut(*next)
        {
            *slot = rule;
            *next += 1;
        }
    }
    (sorted, ends)
}

/// The counts of a table are far smaller than this by the limit on rules.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(NONE)
}

/// Finds the fewest places that cover the leaves from the first to the last and no others.
fn cover((mut first, mut last): (u32, u32), counts: &[u32], bases: &[u32], mut hang: impl FnMut(u32)) {
    for (count, base) in counts.iter().zip(bases) {
        // At the upper end a parent may have fewer children, and covers them all the same.
        let whole_first = first.next_multiple_of(FAN_OUT);
        let whole_end = if last + 1 == *count {
            *count
        } else {
            (last + 1) / FAN_OUT * FAN_OUT
        };
        if *count == 1 || whole_first >= whole_end {
            (first..=last).for_each(|place| hang(base + place));
            return;
        }
        (first..whole_first).for_each(|place| hang(base + place));
        (whole_end..=last).for_each(|place| hang(base + place));
        first = whole_first >> FAN_OUT_BITS;
        last = (whole_end - 1) >> FAN_OUT_BITS;
    }
}

/// Where ports are cut: a bit for each port at which a piece begins, and how many there are before each word of bits.
struct Cuts {
    bits: Box<[u64; 1024]>,
    before: Box<[u32; 1024]>,
}

impl Default for Cuts {
    fn default() -> Self {
        Self {
            bits: Box::new([0; 1024]),
            before: Box::new([0; 1024]),
        }
    }
}

impl Cuts {
    fn add(&mut self, (first, last): (u16, u16)) {
        self.cut(first);
        if let Some(after) = last.checked_add(1) {
            self.cut(after);
        }
    }

    fn cut(&mut self, port: u16) {
        if let Some(word) = self.bits.get_mut(usize::from(port >> 6)) {
            *word |= 1 << (port & 63);
        }
    }

    /// Counts the pieces, and tells where they begin, but for the one at 0.
    fn count(&mut self) -> Vec<u16> {
        if let Some(word) = self.bits.first_mut() {
            *word &= !1;
        }
        let mut starts = Vec::new();
        for (high, (bits, before)) in (0_u16..).zip(self.bits.iter().zip(self.before.iter_mut())) {
            *before = number(starts.len());
            let mut left = *bits;
            while left != 0 {
                #[expect(clippy::cast_possible_truncation, reason = "below 64")]
                starts.push(high << 6 | left.trailing_zeros() as u16);
                left &= left - 1;
            }
        }
        starts
    }

    /// The piece that a port lies in.
    fn leaf(&self, port: u16) -> u32 {
        let word = usize::from(port >> 6);
        let upto = u64::MAX >> (63 - (port & 63));
        let bits = self.bits.get(word).copied().unwrap_or(0) & upto;
        self.before.get(word).copied().unwrap_or(0) + bits.count_ones()
    }
}
