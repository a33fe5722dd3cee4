//! What a volume counted since the process started.

use vhost_blk_dpu::VolumeCounters;

/// What a volume counted since the process started, over all its units.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeTotals {
    /// Reads.
    pub read_requests: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Writes.
    pub write_requests: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Flushes.
    pub flush_requests: u64,
    /// Requests that were answered by an error.
    pub failed_requests: u64,
}

impl VolumeTotals {
    /// Adds what one unit counted.
    pub fn add(&mut self, counted: &VolumeCounters) {
        let sum = |total: &mut u64, counts: &[u64]| {
            *total = counts.iter().fold(*total, |sum, count| sum.saturating_add(*count));
        };
        sum(&mut self.read_requests, &[counted.reads]);
        sum(&mut self.read_bytes, &[counted.read_bytes]);
        sum(&mut self.write_requests, &[counted.writes]);
        sum(&mut self.write_bytes, &[counted.written_bytes]);
        sum(&mut self.flush_requests, &[counted.flushes]);
        sum(
            &mut self.failed_requests,
            &[counted.unsupported, counted.refused, counted.failed],
        );
    }
}
