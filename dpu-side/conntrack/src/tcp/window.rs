//! Does a segment lie in the window? Guido van Rooij, "Real Stateful TCP Packet Filtering in IP Filter" (2001).
//!
//! Seen from the middle, with what each end sent so far: a segment may not lie beyond what its receiver last offered
//! (I), nor wholly before what was acknowledged long ago (II), and may acknowledge neither what wasn't sent yet (III)
//! nor what is too old (IV).

use outboard_controls::{Check, on};

use super::{
    Tracked,
    segment::{ACK, Offer, RST, SYN, Segment},
};
use crate::{state::State, tuple::Direction};

/// How old an acknowledgement may at least be, in bytes, even where the window is smaller.
const ACKNOWLEDGED_WINDOW_MIN: u32 = 66_000;

/// What is known of one end from what it sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// The highest sequence number after anything it sent.
    pub end: u32,
    /// The highest sequence number that it may send up to: what the other end acknowledged and offered.
    pub end_max: u32,
    /// The largest window it offered, scaled. 0: nothing of it was seen.
    pub window_max: u32,
    /// The highest acknowledgement it sent.
    pub acknowledged: u32,
    /// How far its windows are shifted, and what is set of the flags below: as an entry keeps it.
    bits: u16,
}

/// What may be known of an end.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(crate) enum Flag {
    /// It offered to scale windows.
    Scales = 1 << 4,
    /// It takes selective acknowledgements.
    SelectiveAck = 1 << 5,
    /// It closed first.
    ClosedFirst = 1 << 6,
    /// Something it sent is not acknowledged yet.
    Unacknowledged = 1 << 7,
    /// An acknowledgement of it was seen.
    HasAcknowledged = 1 << 8,
    /// Its segments are let through wherever they lie: what came before was not seen.
    Liberal = 1 << 9,
}

const SCALE_BITS: u16 = 15;

impl End {
    /// As an entry keeps it.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "halves of words")]
    pub const fn from_words(ends: u64, windows: u64, bits: u16) -> Self {
        Self {
            end: (ends >> 32) as u32,
            end_max: ends as u32,
            window_max: (windows >> 32) as u32,
            acknowledged: windows as u32,
            bits,
        }
    }

    #[inline]
    pub const fn to_words(self) -> ([u64; 2], u16) {
        let ends = (self.end as u64) << 32 | self.end_max as u64;
        let windows = (self.window_max as u64) << 32 | self.acknowledged as u64;
        ([ends, windows], self.bits)
    }

    /// How far its windows are shifted.
    #[inline]
    pub const fn scale(&self) -> u16 {
        self.bits & SCALE_BITS
    }

    #[inline]
    pub const fn is(&self, flag: Flag) -> bool {
        self.bits & flag as u16 != 0
    }

    #[inline]
    pub const fn set(&mut self, flag: Flag) {
        self.bits |= flag as u16;
    }

    #[inline]
    const fn clear(&mut self, flag: Flag) {
        self.bits &= !(flag as u16);
    }

    /// One that has sent a SYN with this offer, and nothing else.
    pub(super) fn of_syn(end: u32, window: u16, offer: Offer) -> Self {
        let mut bits = offer
            .scale
            .map_or(0, |scale| u16::from(scale) & SCALE_BITS | Flag::Scales as u16);
        if offer.selective_ack {
            bits |= Flag::SelectiveAck as u16;
        }
        Self {
            end,
            end_max: end,
            window_max: u32::from(window).max(1),
            acknowledged: 0,
            bits,
        }
    }
}

/// What the window says of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In it: what it says is taken over.
    In,
    /// Let through, without taking over what it says.
    Aside,
    /// Outside.
    Out(Outside),
}

/// Why a segment is not in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// It lies beyond what the receiver offered.
    Beyond,
    /// It acknowledges what was not sent.
    AcknowledgesUnsent,
}

/// Sequence numbers wrap (RFC 9293 §3.4).
#[inline]
pub(crate) const fn is_before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

#[inline]
pub(crate) const fn is_after(a: u32, b: u32) -> bool {
    is_before(b, a)
}

/// Place `segment` of `direction`, and take over what it says if it lies in the window.
#[inline]
pub(crate) fn place(of: &mut Tracked, state: State, direction: Direction, segment: &Segment<'_>, lax: bool) -> Place {
    let [original, reply] = &mut of.ends;
    let (sender, receiver) = match direction {
        Direction::Original => (original, reply),
        Direction::Reply => (reply, original),
    };
    let mut sequence = segment.sequence;
    let mut end = segment.end();
    let (mut ack, mut sack) = (segment.acknowledgement, segment.acknowledgement);
    if receiver.is(Flag::SelectiveAck) && segment.has(ACK) {
        sack = segment.highest_acknowledged();
    }

    // Once both have sent a SYN, neither begins anew (Linux' conntrack is the same in this).
    let in_handshake = matches!(state, State::SynSent | State::SynRecv);
    if sender.window_max == 0 && !segment.has(SYN) {
        join(sender, receiver, end, sack, segment.window);
    } else if segment.has(SYN) && (sender.window_max == 0 || (in_handshake && is_after(end, sender.end))) {
        introduce(sender, receiver, direction, segment);
        if direction == Direction::Reply && !segment.has(ACK) {
            return Place::In; // simultaneous open
        }
    }

    if !segment.has(ACK) || (segment.has(RST) && ack == 0) {
        // Some stacks set ACK in a RST without a number.
        (ack, sack) = (receiver.end, receiver.end);
    }
    if segment.has(RST) && sequence == 0 && state == State::SynSent {
        // The RST that answers a SYN has no number of its own.
        (sequence, end) = (sender.end, sender.end);
    }

    let oldest_ack = receiver
        .end
        .wrapping_sub(sender.window_max.max(ACKNOWLEDGED_WINDOW_MIN))
        .wrapping_sub(1);
    let oldest = sender.end.wrapping_sub(receiver.window_max).wrapping_sub(1);
    let is_not_too_old = receiver.window_max == 0 || is_after(end, oldest);
    let place = if is_after(sequence, sender.end_max) {
        let over = end.wrapping_sub(sender.end_max).wrapping_add(1);
        if receiver.window_max != 0
            && is_not_too_old
            && is_after(sack, oldest_ack)
            && over <= receiver.window_max
            && !is_after(sack, receiver.end)
        {
            // Only a little too much. Should the receiver take it, its acknowledgement must not be refused.
            sender.end = end;
            sender.set(Flag::Unacknowledged);
            Place::Aside
        } else {
            Place::Out(Outside::Beyond)
        }
    } else if is_after(sack, receiver.end) {
        Place::Out(Outside::AcknowledgesUnsent)
    } else if !is_not_too_old || !is_after(sack, oldest_ack) {
        Place::Aside // old data or an old acknowledgement, delayed: the receiver answers it or drops it
    } else {
        Place::In
    };
    if place != Place::In {
        return if lax || sender.is(Flag::Liberal) || !on(Check::ConnectionWindow) {
            Place::In
        } else {
            place
        };
    }

    let window = u32::from(segment.window) << if segment.has(SYN) { 0 } else { sender.scale() };
    sender.window_max = sender.window_max.max(window.saturating_add(sack.wrapping_sub(ack)));
    if is_after(end, sender.end) {
        sender.end = end;
        sender.set(Flag::Unacknowledged);
    }
    if segment.has(ACK) && (!sender.is(Flag::HasAcknowledged) || is_after(ack, sender.acknowledged)) {
        sender.acknowledged = ack;
        sender.set(Flag::HasAcknowledged);
    }
    if receiver.window_max != 0 && is_after(end, sender.end_max) {
        receiver.window_max = receiver.window_max.saturating_add(end.wrapping_sub(sender.end_max));
    }
    let offered = sack.wrapping_add(window);
    if !is_before(offered, receiver.end_max) {
        receiver.end_max = if window == 0 { offered.wrapping_add(1) } else { offered };
    }
    if ack == receiver.end {
        receiver.clear(Flag::Unacknowledged);
    }
    Place::In
}

/// Does an acknowledging segment lie in the window, and say nothing that isn't known of both ends?
#[inline]
pub(super) fn is_old_news(sender: &End, receiver: &End, segment: &Segment<'_>) -> bool {
    let (end, ack) = (segment.end(), segment.acknowledgement);
    let sack = if receiver.is(Flag::SelectiveAck) {
        segment.highest_acknowledged()
    } else {
        ack
    };
    let window = u32::from(segment.window) << sender.scale();
    let offered = sack.wrapping_add(window);
    let oldest = sender.end.wrapping_sub(receiver.window_max).wrapping_sub(1);
    let oldest_ack = receiver
        .end
        .wrapping_sub(sender.window_max.max(ACKNOWLEDGED_WINDOW_MIN))
        .wrapping_sub(1);
    // One branch for all: nearly always all hold.
    (sender.window_max != 0)
        & (receiver.window_max != 0)
        & !is_after(segment.sequence, sender.end_max)
        & !is_after(end, sender.end)
        & !is_after(end, sender.end_max)
        & is_after(end, oldest)
        & !is_after(sack, receiver.end)
        & is_after(sack, oldest_ack)
        & (window.saturating_add(sack.wrapping_sub(ack)) <= sender.window_max)
        & sender.is(Flag::HasAcknowledged)
        & !is_after(ack, sender.acknowledged)
        & (is_before(offered, receiver.end_max) | ((offered == receiver.end_max) & (window != 0)))
        & !(receiver.is(Flag::Unacknowledged) & (ack == receiver.end))
}

/// What `end` says with its (first, or once more) SYN.
pub(super) fn introduce(sender: &mut End, receiver: &mut End, direction: Direction, segment: &Segment<'_>) {
    *sender = End::of_syn(segment.end(), segment.window, segment.offer());
    // Windows are scaled only if both ends offer it (RFC 7323 §2.2).
    if direction == Direction::Reply && !(sender.is(Flag::Scales) && receiver.is(Flag::Scales)) {
        sender.bits &= !SCALE_BITS;
        receiver.bits &= !SCALE_BITS;
    }
}

/// Begin with an end in the middle of its connection.
pub(super) fn join(sender: &mut End, receiver: &mut End, end: u32, sack: u32, window: u16) {
    sender.end = end;
    sender.window_max = (u32::from(window) << sender.scale()).max(1);
    sender.end_max = end.wrapping_add(sender.window_max);
    if receiver.window_max == 0 {
        // Nothing of the other end was seen: whatever is acknowledged was sent.
        receiver.end = sack;
        receiver.end_max = sack;
    } else if sack == receiver.end.wrapping_add(1) {
        receiver.end = sack; // the answer to a keep-alive
    }
}
