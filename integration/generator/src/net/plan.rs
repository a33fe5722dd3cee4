//! What to send next in one direction.

use crate::net::frames::{Frames, Kind};

/// What is sent in one direction, and what was.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The frames.
    pub frames: Frames,
    sequence: u32,
    sample_mask: u32,
    /// One of so many frames is to be denied; 0 for none.
    deny_period: u32,
    deny_left: u32,
    sent: u64,
    denied: u64,
}

impl Plan {
    /// `sample`: every how many frames one is filled anew; a power of two. `deny_percent`: share that is to be denied.
    pub fn new(frames: Frames, sample: u32, deny_percent: f64) -> Self {
        let deny_period = if deny_percent > 0.0 { period(deny_percent) } else { 0 };
        Self {
            frames,
            sequence: 0,
            sample_mask: sample - 1,
            deny_period,
            deny_left: deny_period,
            sent: 0,
            denied: 0,
        }
    }

    /// Do frames differ in more than their sequence number?
    pub fn varied(&self) -> bool {
        self.frames.flows > 1 || self.deny_period > 0
    }

    /// The next frame bears this number: it answers the one that does.
    pub fn answer(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// The number of the next frame.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// Frames that should arrive.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames that should not.
    pub fn denied_sent(&self) -> u64 {
        self.denied
    }

    #[inline(always)]
    pub(crate) fn next_sequence(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        self.sent += 1;
        sequence
    }

    #[inline(always)]
    pub(crate) fn sampled(&self, sequence: u32) -> bool {
        sequence & self.sample_mask == 0
    }

    /// Is the next frame one to be denied?
    #[inline(always)]
    pub(crate) fn deny_next(&mut self) -> bool {
        if self.deny_period == 0 {
            return false;
        }
        self.deny_left -= 1;
        self.deny_left == 0
    }

    pub(crate) fn denied(&mut self) -> Kind {
        self.deny_left = self.deny_period;
        self.denied += 1;
        // Any number does: what counts is where it goes.
        Kind::Denied(u32::try_from(self.denied & 0xffff_ffff).unwrap_or(0))
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded just before"
)]
fn period(percent: f64) -> u32 {
    (100.0 / percent).round().clamp(1.0, 1e6) as u32
}
