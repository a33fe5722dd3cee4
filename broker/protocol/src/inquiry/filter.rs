//! Which frames or flows an operator asks about: conditions in postfix order, run on a stack of bits.

use std::net::IpAddr;

use minicbor::{Decode, Encode};

use crate::{desired::Cidr, id::MacAddr};

/// Most terms of a filter.
pub const FILTER_TERMS_MAX: usize = 64;

/// A filter: an expression in postfix order. Without terms it takes everything in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Filter {
    /// The terms.
    #[n(0)]
    pub terms: Vec<Term>,
}

/// A condition, or what joins those before it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Term {
    /// Both of the last two hold.
    #[n(0)]
    And,
    /// One of the last two holds.
    #[n(1)]
    Or,
    /// The last one does not hold.
    #[n(2)]
    Not,
    /// The frame has this EtherType.
    #[n(3)]
    Ethertype {
        /// Which.
        #[n(0)]
        ethertype: u16,
    },
    /// It is an IP packet of this protocol.
    #[n(4)]
    Protocol {
        /// Which.
        #[n(0)]
        number: u8,
    },
    /// It is an IP packet with an address of this subnet at this end.
    #[n(5)]
    Address {
        /// Which end.
        #[n(0)]
        side: Side,
        /// The subnet.
        #[n(1)]
        cidr: Cidr,
    },
    /// It has a TCP or UDP port in this range at this end.
    #[n(6)]
    Port {
        /// Which end.
        #[n(0)]
        side: Side,
        /// The lowest.
        #[n(1)]
        first: u16,
        /// The highest.
        #[n(2)]
        last: u16,
    },
    /// It has this MAC at this end. Of a flow never true.
    #[n(7)]
    Mac {
        /// Which end.
        #[n(0)]
        side: Side,
        /// The MAC.
        #[n(1)]
        mac: MacAddr,
    },
    /// It was dropped. Of a flow never true.
    #[n(8)]
    Dropped {
        /// For this reason, if one is given.
        #[n(0)]
        reason: Option<String>,
    },
    /// It went this way. Of a flow never true.
    #[n(9)]
    Way {
        /// Which.
        #[n(0)]
        way: Way,
    },
}

/// An end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Side {
    /// Either.
    #[n(0)]
    Either,
    /// The source.
    #[n(1)]
    Source,
    /// The destination.
    #[n(2)]
    Destination,
}

/// Which way a frame passes a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum Way {
    /// From the port's guest.
    #[n(0)]
    FromGuest,
    /// To the port's guest.
    #[n(1)]
    ToGuest,
}

/// Why a filter is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// More than [`FILTER_TERMS_MAX`].
    #[error("a filter has at most {FILTER_TERMS_MAX} terms, this one has {0}")]
    TooLong(usize),
    /// A joining term without as many before it as it joins, or several results.
    #[error("the filter's terms do not make one expression")]
    Unbalanced,
}

/// What is known of a frame or flow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// EtherType.
    pub ethertype: u16,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// IP source and destination.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// TCP's and UDP's source and destination port.
    pub ports: Option<(u16, u16)>,
    /// Source and destination MAC.
    pub macs: Option<([u8; 6], [u8; 6])>,
    /// Which way it goes.
    pub way: Option<Way>,
    /// Why it was dropped, if it was.
    pub dropped: Option<&'a str>,
}

impl Side {
    fn any<T>(self, (source, destination): &(T, T), is: impl Fn(&T) -> bool) -> bool {
        match self {
            Self::Either => is(source) || is(destination),
            Self::Source => is(source),
            Self::Destination => is(destination),
        }
    }
}

impl Filter {
    /// Whether it is an expression.
    ///
    /// # Errors
    /// It is too long, or none.
    pub fn check(&self) -> Result<(), FilterError> {
        if self.terms.len() > FILTER_TERMS_MAX {
            return Err(FilterError::TooLong(self.terms.len()));
        }
        let mut depth = 0_usize;
        for term in &self.terms {
            depth = match term {
                Term::And | Term::Or if depth >= 2 => depth - 1,
                Term::Not if depth >= 1 => depth,
                Term::And | Term::Or | Term::Not => return Err(FilterError::Unbalanced),
                _ => depth + 1,
            };
        }
        if depth == usize::from(!self.terms.is_empty()) {
            Ok(())
        } else {
            Err(FilterError::Unbalanced)
        }
    }

    /// Does it take this in? Of a filter that is no expression the answer means nothing.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        // No more results than terms, so that they fit.
        let mut stack: u64 = u64::from(self.terms.is_empty());
        for term in &self.terms {
            let (first, second) = (stack & 1, stack >> 1 & 1);
            stack = match term {
                Term::And => stack >> 2 << 1 | (first & second),
                Term::Or => stack >> 2 << 1 | (first | second),
                Term::Not => stack ^ 1,
                condition => stack << 1 | u64::from(condition.holds(facts)),
            };
        }
        stack & 1 == 1
    }
}

impl Term {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::And | Self::Or | Self::Not => false,
            Self::Ethertype { ethertype } => facts.ethertype == *ethertype,
            Self::Protocol { number } => facts.protocol == Some(*number),
            Self::Address { side, cidr } => facts
                .addresses
                .is_some_and(|ends| side.any(&ends, |address| contains(cidr, *address))),
            Self::Port { side, first, last } => facts
                .ports
                .is_some_and(|ends| side.any(&ends, |port| (*first..=*last).contains(port))),
            Self::Mac { side, mac } => facts.macs.is_some_and(|ends| side.any(&ends, |end| *end == mac.0)),
            Self::Dropped { reason } => match (facts.dropped, reason) {
                (Some(dropped), Some(reason)) => dropped == reason,
                (dropped, None) => dropped.is_some(),
                (None, Some(_)) => false,
            },
            Self::Way { way } => facts.way == Some(*way),
        }
    }
}

fn contains(cidr: &Cidr, address: IpAddr) -> bool {
    let prefix = u32::from(cidr.prefix_len);
    match (cidr.address, address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            (net.to_bits() ^ address.to_bits())
                .checked_shr(32_u32.saturating_sub(prefix))
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            (net.to_bits() ^ address.to_bits())
                .checked_shr(128_u32.saturating_sub(prefix))
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(side: Side, text: &str, prefix_len: u8) -> Term {
        let cidr = Cidr {
            address: text.parse().unwrap(),
            prefix_len,
        };
        Term::Address { side, cidr }
    }

    fn facts() -> Facts<'static> {
        Facts {
            ethertype: 0x0800,
            protocol: Some(6),
            addresses: Some(([10, 0, 0, 1].into(), [10, 0, 0, 2].into())),
            ports: Some((1234, 80)),
            macs: Some(([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])),
            way: Some(Way::FromGuest),
            dropped: Some("spoofed_ipv4"),
        }
    }

    #[test]
    fn each_condition_holds_where_it_should_and_nowhere_else() {
        use Side::{Destination, Either, Source};
        let port = |side, first, last| Term::Port { side, first, last };
        let mac = |side, last| Term::Mac {
            side,
            mac: MacAddr([2, 0, 0, 0, 0, last]),
        };
        let reason = |text: &str| Term::Dropped {
            reason: Some(text.into()),
        };
        let cases = [
            (
                Term::Ethertype { ethertype: 0x0800 },
                Term::Ethertype { ethertype: 0x0806 },
            ),
            (Term::Protocol { number: 6 }, Term::Protocol { number: 17 }),
            (host(Source, "10.0.0.1", 32), host(Destination, "10.0.0.1", 32)),
            (host(Either, "10.0.0.0", 24), host(Either, "10.0.1.0", 24)),
            (host(Either, "0.0.0.0", 0), host(Either, "::", 0)),
            (port(Destination, 80, 80), port(Source, 80, 80)),
            (port(Either, 1000, 2000), port(Either, 81, 1233)),
            (mac(Source, 1), mac(Source, 2)),
            (Term::Dropped { reason: None }, reason("runt")),
            (reason("spoofed_ipv4"), reason("spoofed")),
            (Term::Way { way: Way::FromGuest }, Term::Way { way: Way::ToGuest }),
        ];
        for (yes, no) in cases {
            let filter = |term: &Term| Filter {
                terms: vec![term.clone()],
            };
            assert!(filter(&yes).matches(&facts()), "{yes:?}");
            assert!(!filter(&no).matches(&facts()), "{no:?}");
            assert!(!filter(&no).matches(&Facts::default()), "{no:?} of nothing");
        }
    }

    #[test]
    fn terms_are_joined_in_postfix_order() {
        let (yes, no) = (Term::Protocol { number: 6 }, Term::Protocol { number: 17 });
        let eval = |terms: &[&Term]| {
            let filter = Filter {
                terms: terms.iter().map(|t| (*t).clone()).collect(),
            };
            assert_eq!(filter.check(), Ok(()), "{terms:?}");
            filter.matches(&facts())
        };
        let (and, or, not) = (Term::And, Term::Or, Term::Not);
        assert!(eval(&[]));
        for (one, other) in [(&yes, &no), (&no, &yes)] {
            assert!(eval(&[one, other, &or]) && !eval(&[one, other, &and]));
        }
        assert!(eval(&[&no, &not]) && !eval(&[&yes, &not]));
        assert!(eval(&[&yes, &no, &not, &and]) && !eval(&[&yes, &no, &and, &yes, &not, &or]));
        // As deep as it can be.
        let mut deep = vec![&yes; 32];
        deep.extend(vec![&and; 31]);
        assert!(eval(&deep));
    }

    #[test]
    fn what_is_no_expression_is_told() {
        let yes = || Term::Protocol { number: 6 };
        let check = |terms: Vec<Term>| Filter { terms }.check();
        assert_eq!(check(vec![Term::And]), Err(FilterError::Unbalanced));
        assert_eq!(check(vec![yes(), Term::And]), Err(FilterError::Unbalanced));
        assert_eq!(check(vec![Term::Not]), Err(FilterError::Unbalanced));
        assert_eq!(check(vec![yes(), yes()]), Err(FilterError::Unbalanced));
        assert_eq!(check(vec![yes(); 65]), Err(FilterError::TooLong(65)));
        assert_eq!(check(vec![yes(), Term::Not]), Ok(()), "control");
    }
}
