//! What a TCP connection looks like from the middle (RFC 9293 §3.3.2), and what each segment makes of it.
//!
//! States and corner cases are those of Linux' connection tracking, which is what an operator knows. Pure: a connection,
//! a segment, a verdict.

mod segment;
mod transitions;
pub(crate) mod window;

#[cfg(test)]
mod tests;

pub use segment::{ACK, FIN, Malformed, PSH, RST, SYN, Segment, URG};
pub use window::Outside;

use outboard_controls::{Check, on};
use segment::{Kind, Offer};
use transitions::{Next, next};
use window::{End, Flag, Place, introduce, is_before, is_old_news, join, place};

use crate::{
    state::{Life, State},
    time::{Ticks, TimeoutTicks},
    tuple::Direction,
};

/// How exact the table is about TCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Laxness {
    /// Take up connections whose handshake was not seen (Linux' `nf_conntrack_tcp_loose`; off here).
    pub pick_up: bool,
    /// Let segments outside the window through (Linux' `nf_conntrack_tcp_be_liberal`; off here too). A RST is held
    /// to what was acknowledged even then.
    pub liberal: bool,
}

/// Why a segment is no part of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Outside the window.
    Window(Outside),
    /// A RST before what was acknowledged.
    Reset,
    /// No segment of its kind belongs in the connection's state.
    State,
    /// It doesn't open a connection.
    NotOpening,
    /// Its header is malformed, or no header of its protocol came with it.
    Header,
}

/// What is kept of a connection besides its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tracked {
    pub ends: [End; 2],
    /// The last segment's kind, and which way it went. The way of a mere ACK isn't kept.
    last: Kind,
    last_direction: Direction,
    /// Of the last segment let through because the connection may be out of step: what it offered, its window, where it
    /// ended, and what it acknowledged.
    offer: Offer,
    last_window: u16,
    last_end: u32,
    last_acknowledged: u32,
    /// An ACK may be the answer to a spurious SYN (RFC 5961 §4) and not to a FIN.
    expects_challenge: bool,
    simultaneous: bool,
}

/// What becomes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is part of the connection.
    Ok,
    /// It is none.
    Invalid(Reason),
    /// The connection is over and this opens another.
    Reopens,
    /// A SYN was refused: the connection is over with this segment, which passes.
    Refused,
}

/// What the first segment makes of a connection.
pub(crate) fn open(segment: &Segment<'_>, lax: Laxness) -> Result<(State, Tracked), Reason> {
    let mut tracked = Tracked {
        ends: [End::default(); 2],
        last: Kind::None,
        last_direction: Direction::Original,
        offer: Offer::default(),
        last_window: 0,
        last_end: 0,
        last_acknowledged: 0,
        expects_challenge: false,
        simultaneous: false,
    };
    let [original, reply] = &mut tracked.ends;
    match segment.kind() {
        Kind::Syn => {
            introduce(original, reply, Direction::Original, segment);
            tracked.last = Kind::Syn;
            tracked.last_end = segment.end();
            Ok((State::SynSent, tracked))
        }
        Kind::Ack if lax.pick_up => {
            original.set(Flag::SelectiveAck);
            original.set(Flag::Liberal);
            *reply = *original;
            join(
                original,
                reply,
                segment.end(),
                segment.highest_acknowledged(),
                segment.window,
            );
            Ok((State::Established, tracked))
        }
        _ => Err(Reason::NotOpening),
    }
}

impl Tracked {
    /// Take in `segment` of `direction`: changes itself and `life` (all but the deadline), says what becomes of the
    /// segment, and which timeout holds from now (none: the deadline stays).
    #[inline]
    pub fn step(
        &mut self,
        life: &mut Life,
        direction: Direction,
        segment: &Segment<'_>,
        lax: Laxness,
        timeouts: &TimeoutTicks,
    ) -> (Outcome, Option<Ticks>) {
        let kind = segment.kind();
        let before = life.state;
        let after = match self.advance(life, direction, segment, kind) {
            Step::To(state) => {
                match place(self, life.state, direction, segment, lax.liberal) {
                    Place::In => {}
                    Place::Aside => {
                        life.replied |= direction == Direction::Reply;
                        return (Outcome::Ok, None);
                    }
                    Place::Out(outside) => {
                        return (
                            Outcome::Invalid(Reason::Window(outside)),
                            self.after_invalid(life, direction, kind, timeouts),
                        );
                    }
                }
                state
            }
            Step::Without(state) => state,
            Step::PassBy => {
                life.replied |= direction == Direction::Reply;
                return (Outcome::Ok, None);
            }
            Step::Invalid(reason) => return (Outcome::Invalid(reason), None),
            Step::Reopen => return (Outcome::Reopens, None),
        };

        self.last = kind;
        if kind != Kind::Ack {
            self.last_direction = direction;
        }
        if kind != Kind::Ack || !life.assured {
            self.last_end = segment.end();
        }
        life.state = after;
        if before != after && after == State::FinWait {
            self.ends[direction.index()].set(Flag::ClosedFirst);
        }
        let mut timeout = self.timeout(after, kind, segment, timeouts);
        if !life.replied {
            if kind == Kind::Reset {
                return (Outcome::Refused, None);
            }
            if kind == Kind::Syn && before == State::SynSent && direction == Direction::Original {
                // A repeated SYN doesn't keep it alive.
                return (Outcome::Ok, None);
            }
            if after == State::Established {
                timeout = timeout.min(timeouts.unacknowledged);
            }
        } else if matches!(before, State::SynRecv | State::Established) && after == State::Established {
            life.assured = true;
        }
        life.replied |= direction == Direction::Reply;
        (Outcome::Ok, Some(timeout))
    }

    /// Which state the segment leads to, before its place in the window is looked at.
    #[inline]
    fn advance(&mut self, life: &mut Life, direction: Direction, segment: &Segment<'_>, kind: Kind) -> Step {
        let state = life.state;
        match next(state, direction, kind) {
            Next::Invalid => Step::Invalid(Reason::State),
            Next::PassBy => self.pass_by(life, direction, segment, kind),
            Next::To(State::SynSent) if matches!(state, State::TimeWait | State::Close) => {
                let was_reset = self.last == Kind::Reset && self.last_direction == direction;
                if was_reset || self.ends.iter().any(|e| e.is(Flag::ClosedFirst)) {
                    return Step::Reopen;
                }
                self.pass_by(life, direction, segment, kind)
            }
            Next::To(State::TimeWait) if self.is_challenge(state, direction, kind) => {
                self.expects_challenge = false;
                Step::PassBy
            }
            Next::To(State::SynSent2) => {
                self.simultaneous = true;
                Step::To(State::SynSent2)
            }
            Next::To(State::SynRecv) if direction == Direction::Reply && kind == Kind::Ack && self.simultaneous => {
                Step::To(State::Established)
            }
            Next::To(State::Close) if kind == Kind::Reset => self.reset(life, direction, segment),
            Next::To(state) => Step::To(state),
        }
    }

    fn is_challenge(&self, state: State, direction: Direction, kind: Kind) -> bool {
        state == State::LastAck
            && kind == Kind::Ack
            && self.expects_challenge
            && self.last == Kind::Syn
            && self.last_direction != direction
    }

    /// The ends may be in step where we are not: let the segment through and remember it, the answer will tell.
    fn pass_by(&mut self, life: &mut Life, direction: Direction, segment: &Segment<'_>, kind: Kind) -> Step {
        let answers_last =
            self.last == Kind::Syn && self.last_direction != direction && segment.acknowledgement == self.last_end;
        if kind == Kind::SynAck && answers_last {
            // It acknowledges the SYN that we let through: they begin anew, and so do we.
            self.expects_challenge = false;
            self.ends[direction.index()] = End::default();
            self.ends[direction.reverse().index()] = End::of_syn(self.last_end, self.last_window, self.offer);
            life.state = State::SynSent;
            return Step::To(State::SynRecv);
        }
        self.last = kind;
        self.last_direction = direction;
        self.last_end = segment.end();
        self.last_window = segment.window;
        if kind == Kind::Syn && direction == Direction::Original {
            self.offer = segment.offer();
            self.expects_challenge = life.state == State::LastAck;
        }
        if kind == Kind::Ack && life.state == State::SynSent && direction == Direction::Reply {
            self.last_acknowledged = segment.acknowledgement;
        }
        Step::PassBy
    }

    /// A RST counts only where the end that sent it can know the sequence number (RFC 5961 §3).
    fn reset(&self, life: &Life, direction: Direction, segment: &Segment<'_>) -> Step {
        let (sender, receiver) = (&self.ends[direction.index()], &self.ends[direction.reverse().index()]);
        let sequence = segment.sequence;
        let mut to = State::Close;
        if is_closing(life.state) {
            // The ports may be in use again, unseen by us; and nothing is lost that would not be soon.
            return Step::Without(to);
        }
        let is_settled = life.state == State::Established && life.assured;
        if receiver.is(Flag::HasAcknowledged) && self.last != Kind::Syn && (is_settled || sequence != 0) {
            if is_before(sequence, receiver.acknowledged) && on(Check::ConnectionWindow) {
                return Step::Invalid(Reason::Reset);
            }
            let is_exact = sequence == receiver.acknowledged || sequence == sender.end;
            if is_settled && !is_exact && on(Check::ConnectionWindow) {
                // In the window, but not the next number: the other end answers with a challenge, if it listens.
                to = State::Established;
            }
        }
        let refuses = (life.replied && self.last == Kind::Syn) || (!life.assured && self.last == Kind::Ack);
        if refuses && segment.has(ACK) && segment.acknowledgement == self.last_end {
            return Step::Without(to);
        }
        let answers_challenge = life.state == State::SynSent
            && self.last == Kind::Ack
            && self.last_direction == Direction::Reply
            && sequence == self.last_acknowledged;
        if answers_challenge {
            Step::Without(to)
        } else {
            Step::To(to)
        }
    }

    /// A connection whose ends close while we are out of step shouldn't stay for days.
    fn after_invalid(
        &mut self,
        life: &Life,
        direction: Direction,
        kind: Kind,
        timeouts: &TimeoutTicks,
    ) -> Option<Ticks> {
        if !life.assured || !matches!(kind, Kind::Reset | Kind::Fin) {
            return None;
        }
        if self.last_direction != direction && matches!(self.last, Kind::Fin | Kind::Reset) {
            return Some(timeouts.unacknowledged);
        }
        self.last = kind;
        self.last_direction = direction;
        None
    }

    #[inline]
    fn timeout(&self, state: State, kind: Kind, segment: &Segment<'_>, timeouts: &TimeoutTicks) -> Ticks {
        if kind == Kind::Reset {
            return timeouts.close;
        }
        let timeout = match state {
            State::SynSent | State::SynSent2 => timeouts.syn_sent,
            State::SynRecv => timeouts.syn_recv,
            State::Established => timeouts.established,
            State::FinWait => timeouts.fin_wait,
            State::CloseWait => timeouts.close_wait,
            State::LastAck => timeouts.last_ack,
            State::TimeWait => timeouts.time_wait,
            State::Close | State::Unreplied | State::Replied | State::Stream => timeouts.close,
        };
        let waits = self.ends.iter().any(|e| e.is(Flag::Unacknowledged));
        bounded(timeout, waits, segment, timeouts)
    }

    /// May `sequence` be that of a segment which `direction` has in flight? For errors about segments (RFC 5927 §4).
    pub fn is_in_flight(&self, direction: Direction, sequence: u32) -> bool {
        let (sender, receiver) = (&self.ends[direction.index()], &self.ends[direction.reverse().index()]);
        let oldest = if receiver.is(Flag::HasAcknowledged) {
            receiver.acknowledged.wrapping_sub(1)
        } else {
            sender.end.wrapping_sub(receiver.window_max.max(u32::from(u16::MAX)))
        };
        sender.window_max != 0 && !is_before(sequence, oldest) && !is_before(sender.end, sequence)
    }
}

/// A timeout that is shorter while data waits for its acknowledgement, or a window is shut.
#[inline]
fn bounded(timeout: Ticks, waits: bool, segment: &Segment<'_>, timeouts: &TimeoutTicks) -> Ticks {
    if waits {
        timeout.min(timeouts.unacknowledged)
    } else if segment.window == 0 {
        timeout.min(timeouts.zero_window)
    } else {
        timeout
    }
}

/// If `segment` tells an established connection, packed in `words`, nothing that isn't known: the timeout that holds.
/// [`Tracked::step`] would accept it and change nothing either.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "fields of words")]
pub(crate) fn nothing_new(
    words: &[u64; 5],
    direction: Direction,
    segment: &Segment<'_>,
    timeouts: &TimeoutTicks,
) -> Option<Ticks> {
    let [a, b, c, d, rest] = *words;
    let bits = [rest as u16, (rest >> 16) as u16];
    let ends = [End::from_words(a, b, bits[0]), End::from_words(c, d, bits[1])];
    let (sender, receiver) = match direction {
        Direction::Original => (ends[0], ends[1]),
        Direction::Reply => (ends[1], ends[0]),
    };
    if segment.kind() != Kind::Ack || Kind::from_bits((rest >> 32) as u8) != Kind::Ack {
        return None;
    }
    if !is_old_news(&sender, &receiver, segment) {
        return None;
    }
    let waits = sender.is(Flag::Unacknowledged) | receiver.is(Flag::Unacknowledged);
    Some(bounded(timeouts.established, waits, segment, timeouts))
}

const fn is_closing(state: State) -> bool {
    matches!(
        state,
        State::FinWait | State::CloseWait | State::LastAck | State::TimeWait | State::Close
    )
}

enum Step {
    /// To this state, if the segment lies in the window.
    To(State),
    /// To this state, wherever the segment lies.
    Without(State),
    /// The segment passes and nothing changes but what is remembered.
    PassBy,
    Invalid(Reason),
    Reopen,
}

/// Packing into an entry's words.
impl Tracked {
    #[inline]
    pub fn to_words(self) -> ([u64; 5], [u32; 2]) {
        let [([a, b], first), ([c, d], second)] = self.ends.map(End::to_words);
        let mut rest = u64::from(first) | u64::from(second) << 16;
        rest |= (self.last as u64) << 32 | (self.last_direction as u64) << 35;
        rest |= u64::from(self.expects_challenge) << 36 | u64::from(self.simultaneous) << 37;
        rest |= u64::from(self.offer.selective_ack) << 38 | u64::from(self.offer.scale.is_some()) << 39;
        rest |= u64::from(self.offer.scale.unwrap_or(0)) << 40 | u64::from(self.last_window) << 48;
        let words = [a, b, c, d, rest];
        (words, [self.last_end, self.last_acknowledged])
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "fields of words")]
    pub fn from_words(words: [u64; 5], cold: [u32; 2]) -> Self {
        let rest = words[4];
        let bit = |n: u32| rest >> n & 1 == 1;
        Self {
            ends: [
                End::from_words(words[0], words[1], rest as u16),
                End::from_words(words[2], words[3], (rest >> 16) as u16),
            ],
            last: Kind::from_bits((rest >> 32) as u8),
            last_direction: if bit(35) { Direction::Reply } else { Direction::Original },
            expects_challenge: bit(36),
            simultaneous: bit(37),
            offer: Offer {
                selective_ack: bit(38),
                scale: bit(39).then_some((rest >> 40) as u8 & 15),
            },
            last_window: (rest >> 48) as u16,
            last_end: cold[0],
            last_acknowledged: cold[1],
        }
    }
}
