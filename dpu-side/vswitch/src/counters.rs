//! A port's counters.

use vhost_net_dpu::{QueueKind, error::RxDrop, metrics::Traffic};

use crate::reason::DropReason;

/// Counters of one port, since it was first known; they outlive queues and sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortCounters {
    /// The port.
    pub name: String,
    /// Frames taken from the guest.
    pub tx_frames: u64,
    /// Bytes of those, without the virtio header.
    pub tx_bytes: u64,
    /// Frames given to the guest.
    pub rx_frames: u64,
    /// Bytes of those, without the virtio header.
    pub rx_bytes: u64,
    /// Frames dropped, by [`DropReason`] as index.
    pub drops: [u64; DropReason::COUNT],
}

impl PortCounters {
    /// Adds what another worker counted at the same port.
    pub fn add(&mut self, other: &Self) {
        self.tx_frames = self.tx_frames.wrapping_add(other.tx_frames);
        self.tx_bytes = self.tx_bytes.wrapping_add(other.tx_bytes);
        self.rx_frames = self.rx_frames.wrapping_add(other.rx_frames);
        self.rx_bytes = self.rx_bytes.wrapping_add(other.rx_bytes);
        for (count, more) in self.drops.iter_mut().zip(other.drops) {
            *count = count.wrapping_add(more);
        }
    }

    /// The reasons that occurred, and how often.
    pub fn dropped(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .zip(self.drops)
            .filter(|(_, count)| *count != 0)
    }
}

/// Counters of one running queue, since it was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueCounters {
    /// Which queue it is.
    pub kind: QueueKind,
    /// Frames taken from the guest, or given to it.
    pub frames: u64,
    /// Bytes of those, without the virtio header.
    pub bytes: u64,
    /// Why it is dead until the guest resets it, if it is.
    pub failed: Option<String>,
}

/// What a port counts while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) traffic: Traffic,
    drops: [u64; DropReason::COUNT],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            traffic: Traffic::default(),
            drops: [0; DropReason::COUNT],
        }
    }
}

impl Tally {
    /// So many frames were taken from the guest.
    #[inline]
    pub(crate) fn sent(&mut self, frames: u64, bytes: u64) {
        self.traffic.tx_frames = self.traffic.tx_frames.wrapping_add(frames);
        self.traffic.tx_bytes = self.traffic.tx_bytes.wrapping_add(bytes);
    }

    /// So many were given to it.
    #[inline]
    pub(crate) fn received(&mut self, frames: u64, bytes: u64) {
        self.traffic.rx_frames = self.traffic.rx_frames.wrapping_add(frames);
        self.traffic.rx_bytes = self.traffic.rx_bytes.wrapping_add(bytes);
    }

    /// One was given to it by a queue that counts for itself, too.
    #[inline]
    pub(crate) fn received_by(&mut self, (frames, total): (&mut u64, &mut u64), bytes: u64) {
        self.received(1, bytes);
        *frames = frames.wrapping_add(1);
        *total = total.wrapping_add(bytes);
    }

    /// One was not given to it.
    pub(crate) fn missed(&mut self, why: RxDrop) {
        self.drop(match why {
            RxDrop::Full => DropReason::RxFull,
            RxDrop::BufferTooSmall => DropReason::RxBufferTooSmall,
            RxDrop::OverMtu => DropReason::RxOverMtu,
            RxDrop::Broken => DropReason::RxBroken,
            RxDrop::SourceGone => DropReason::TxMemoryGone,
        });
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        if let Some(count) = self.drops.get_mut(reason as usize) {
            *count = count.wrapping_add(1);
        }
    }

    /// Frames given to the guest, and drops: what shows whether one more was.
    pub(crate) fn marks(&self) -> (u64, [u64; DropReason::COUNT]) {
        (self.traffic.rx_frames, self.drops)
    }

    /// Writes a snapshot over an earlier one.
    pub(crate) fn write_over(&self, name: &str, counters: &mut PortCounters) {
        let mut name_kept = std::mem::take(&mut counters.name);
        if name_kept != name {
            name.clone_into(&mut name_kept);
        }
        *counters = PortCounters {
            name: name_kept,
            ..self.snapshot("")
        };
    }

    pub(crate) fn snapshot(&self, name: &str) -> PortCounters {
        let Traffic {
            tx_frames,
            tx_bytes,
            rx_frames,
            rx_bytes,
        } = self.traffic;
        PortCounters {
            name: name.to_owned(),
            tx_frames,
            tx_bytes,
            rx_frames,
            rx_bytes,
            drops: self.drops,
        }
    }
}
