//! What a device counts.

/// Frames and bytes of a port, without virtio headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames taken from the guest. One to be segmented is one.
    pub tx_frames: u64,
    /// Bytes of those.
    pub tx_bytes: u64,
    /// Frames given to the guest. Each segment that was cut for it is one.
    pub rx_frames: u64,
    /// Bytes of those.
    pub rx_bytes: u64,
}

impl Traffic {
    /// Counts a frame taken from the guest.
    pub fn sent(&mut self, len: u64) {
        self.tx_frames = self.tx_frames.wrapping_add(1);
        self.tx_bytes = self.tx_bytes.wrapping_add(len);
    }

    /// Counts a frame given to the guest.
    pub fn received(&mut self, len: usize) {
        self.rx_frames = self.rx_frames.wrapping_add(1);
        self.rx_bytes = self.rx_bytes.wrapping_add(len as u64);
    }
}
