//! What arrives in one direction, compared with what was sent.

use crate::net::{
    frames::{Frames, Kind, Station, arp_answer, marked, sequence, word},
    queue::{HEADER_LEN, Sink},
};

/// Order is checked for the first so many flows; the others' frames are counted, and sampled.
pub const ORDERED_FLOWS_MAX: u32 = 4096;
/// ARP answers that wait to be sent; more requests are not answered.
const ANSWERS_MAX: usize = 8;
const HEADER_LEN_U32: u32 = 12;

/// Counts and compares frames of one direction.
#[derive(Debug)]
pub struct Checker {
    frames: Frames,
    sample_mask: u32,
    /// With one flow: the sequence number that comes next.
    want: u32,
    /// With several: that of each flow's next frame at least.
    want_of: Vec<u32>,
    len: u32,
    last: u32,
    single: bool,
    counts: Counts,
    expected: Vec<u8>,
    answers: Vec<Vec<u8>>,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Data frames.
    pub received: u64,
    /// Those that came after a later one of their flow, or twice.
    pub reordered: u64,
    /// Those whose bytes are not what was sent.
    pub corrupt: u64,
    /// Frames of others.
    pub foreign: u64,
    /// Frames that were compared as a whole.
    pub sampled: u64,
    /// Frames that should have been denied.
    pub denied: u64,
    /// Frames that made a path or flow known.
    pub primed: u64,
}

impl Checker {
    /// Checks frames of this kind; `sample` as in [`Plan::new`](crate::net::plan::Plan::new).
    pub fn new(frames: Frames, sample: u32) -> Self {
        let len = u32::try_from(frames.len)
            .unwrap_or(u32::MAX)
            .saturating_add(HEADER_LEN_U32);
        let ordered = usize::try_from(frames.flows.min(ORDERED_FLOWS_MAX)).unwrap_or(0);
        Self {
            frames,
            sample_mask: sample - 1,
            want: 0,
            want_of: vec![0; ordered],
            len,
            last: 0,
            single: frames.flows == 1,
            counts: Counts::default(),
            expected: Vec::with_capacity(frames.len),
            answers: Vec::new(),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The sequence number of the last data frame.
    pub fn last(&self) -> u32 {
        self.last
    }

    /// Who receives.
    pub fn station(&self) -> Station {
        self.frames.to
    }

    /// Frames that should be sent in answer.
    pub fn take_answers(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.answers)
    }

    /// Is anything to be answered?
    #[inline(always)]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Counts a data frame's place in the order.
    #[inline(always)]
    fn place(&mut self, n: u32) {
        self.counts.received += 1;
        self.last = n;
        let want = if self.single {
            Some(&mut self.want)
        } else {
            let flow = usize::try_from(self.frames.flow_of(n)).unwrap_or(usize::MAX);
            self.want_of.get_mut(flow)
        };
        let Some(want) = want else { return };
        if n.wrapping_sub(*want) <= u32::MAX / 2 {
            *want = n.wrapping_add(1);
        } else {
            self.counts.reordered += 1;
        }
    }

    /// A frame that is not what comes next: what is it?
    fn classify(&mut self, frame: &[u8]) {
        if let Some(answer) = arp_answer(frame, self.frames.to) {
            if self.answers.len() < ANSWERS_MAX {
                self.answers.push(answer);
            }
            self.counts.foreign += 1;
            return;
        }
        let at = self.frames.word_at();
        let found = frame
            .get(at..at + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes);
        let ours = frame.get(6..12) == Some(&self.frames.from.mac[..]) && frame.get(12..14) == Some(&[0x08, 0x00]);
        let Some(found) = found.filter(|_| ours) else {
            self.counts.foreign += 1;
            return;
        };
        if frame.get(36..38) == Some(&self.frames.deny_port().to_be_bytes()) {
            self.counts.denied += 1;
        } else if let Some(n) = sequence(found) {
            if frame.len() == self.frames.len {
                self.place(n);
                self.compare(n, frame);
            } else {
                self.counts.corrupt += 1;
            }
        } else if marked(found).is_some() {
            self.counts.primed += 1;
        } else {
            self.counts.corrupt += 1;
        }
    }

    /// Compares a frame as a whole, if it is one that was filled for that.
    fn compare(&mut self, n: u32, frame: &[u8]) {
        if n & self.sample_mask == 0 {
            self.counts.sampled += 1;
            self.frames.build(Kind::Data(n), &mut self.expected);
            self.counts.corrupt += u64::from(self.expected != frame);
        }
    }
}

impl Sink for Checker {
    #[inline(always)]
    fn glance(&mut self, found: u64, len: u32) -> bool {
        if len != self.len {
            return false;
        }
        let n = if self.single {
            if found != word(self.want) {
                return false;
            }
            self.want
        } else {
            match sequence(found) {
                Some(n) => n,
                None => return false,
            }
        };
        if n & self.sample_mask == 0 {
            return false;
        }
        self.place(n);
        true
    }

    fn inspect(&mut self, _header: &[u8; HEADER_LEN], frame: &[u8]) {
        self.classify(frame);
    }
}
