//! From state to state, by what kind of segment goes which way: the middle's view, as Linux' connection tracking has it.

use super::segment::Kind;
use crate::{
    state::State::{self, Close, CloseWait, Established, FinWait, LastAck, SynRecv, SynSent, SynSent2, TimeWait},
    tuple::Direction::{self, Original, Reply},
};

/// Where a segment leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// To this state, which may be the same.
    To(State),
    /// Nowhere: it may be genuine where we are out of step, so it passes.
    PassBy,
    /// Nowhere: it doesn't belong here.
    Invalid,
}

use Next::{Invalid, PassBy, To};

#[inline]
pub(super) const fn next(state: State, direction: Direction, kind: Kind) -> Next {
    match kind {
        Kind::Ack => acknowledge(state, direction),
        Kind::Syn => synchronise(state, direction),
        Kind::SynAck => answer(state, direction),
        Kind::Fin => finish(state),
        Kind::Reset => To(Close),
        Kind::None => Invalid,
    }
}

const fn acknowledge(state: State, direction: Direction) -> Next {
    match (state, direction) {
        // Half of a connection that only the answering end remembers, or the answer to half of one.
        (SynSent | SynSent2, Reply) => PassBy,
        (SynSent | SynSent2, Original) => Invalid,
        (SynRecv, Original) => To(Established),
        (SynRecv, Reply) => To(SynRecv),
        (FinWait, _) => To(CloseWait),
        (LastAck, _) => To(TimeWait),
        _ => To(state),
    }
}

const fn synchronise(state: State, direction: Direction) -> Next {
    match (state, direction) {
        (SynSent, Original) => To(SynSent),
        (SynSent | SynSent2, _) => To(SynSent2),
        (TimeWait, _) | (Close, Original) => To(SynSent),
        (_, Original) => PassBy,
        (_, Reply) => Invalid,
    }
}

const fn answer(state: State, direction: Direction) -> Next {
    match (state, direction) {
        (SynSent2, _) | (SynRecv, Original) | (SynSent, Reply) => To(SynRecv),
        (_, Original) => Invalid,
        (_, Reply) => PassBy,
    }
}

const fn finish(state: State) -> Next {
    match state {
        SynSent | SynSent2 => Invalid,
        SynRecv | Established => To(FinWait),
        FinWait | CloseWait => To(LastAck),
        _ => To(state),
    }
}
